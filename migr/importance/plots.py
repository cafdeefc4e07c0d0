"""The picture of a fitted fusion network: who carried which emotion, and how the two gates judged."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from migr.importance.fit import Scores

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = {
    "importance": ("o", "black"),
    "entropy gate": ("^", COLOURS[0]),
    "importance gate": ("s", COLOURS[1]),
    "combined gate": ("D", COLOURS[2]),
}


def draw(path: str | Path, scores: Scores, modalities: Sequence[str], labels: Sequence[str], what: str) -> None:
    """Write a PNG: mean gates and importance of the first modality by emotion, and contributions of the first two.

    Args:
        path: File to write.
        scores: Scores of the clips to show.
        modalities: Names on the M axis; the scatter needs two.
        labels: Emotions.
        what: Which clips these are, for the title.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(f"Which modality carries the emotion ({len(scores.target)} {what})")
    left, right = figure.subplots(1, 2)

    first = modalities[0]
    shown = {
        "importance": scores.importance,
        "entropy gate": scores.entropy_gate,
        "importance gate": scores.importance_gate,
        "combined gate": scores.gate,
    }
    rows = [(k, name) for k, name in enumerate(labels) if (scores.target == k).any()]
    for offset, (name, weights) in enumerate(shown.items()):
        means = [float(weights[scores.target == k, 0].mean()) for k, _ in rows]
        marker, colour = MARKERS[name]
        heights = [row + 0.15 * (offset - 1.5) for row in range(len(rows))]
        left.scatter(means, heights, marker=marker, color=colour, label=name, zorder=3)
        if name == "importance":  # each clip's, faint: a mean of 1/2 can be clips of 0 and 1
            for height, (k, _) in zip(heights, rows, strict=True):
                each = weights[scores.target == k, 0].tolist()
                left.scatter(each, [height] * len(each), s=9, color=colour, alpha=0.2, linewidths=0)
    left.axvline(0.5, color="grey", linewidth=0.8)
    left.set(
        xlim=(-0.02, 1.02),
        xlabel=f"weight of {first} (0: none, 1: all)",
        title=f"{first}: mean weights, and each clip's importance (faint)",
    )
    left.set_yticks(range(len(rows)), [f"{name} (n={int((scores.target == k).sum())})" for k, name in rows])
    left.invert_yaxis()
    left.grid(axis="y", alpha=0.3)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize="small", frameon=False)

    if len(modalities) < 2:
        right.set_axis_off()
    else:
        winner = scores.importance.argmax(1)
        for m, name in enumerate(modalities):
            points = scores.contributions[winner == m].tolist()
            label = f"{name} found dominant ({len(points)})"
            x, y = [p[0] for p in points], [p[1] for p in points]
            right.scatter(x, y, s=14, alpha=0.6, color=COLOURS[m % len(COLOURS)], label=label)
        right.axline((0, 0), slope=1, color="grey", linewidth=0.8)
        right.set(
            xlabel=f"what {modalities[0]} adds to the target's logit",
            ylabel=f"what {modalities[1]} adds to the target's logit",
            title="contributions, clip by clip",
        )
        right.grid(alpha=0.3)
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize="small", frameon=False)
    figure.savefig(path, dpi=130)
