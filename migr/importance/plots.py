"""Pictures of fitted fusion networks: who carried which emotion, how the gates judged, how far to trust it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from migr.files.records import Row
from migr.importance import trust
from migr.importance.fit import Scores
from migr.importance.table import is_score

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = {
    "importance": ("o", "black"),
    "entropy gate": ("^", COLOURS[0]),
    "importance gate": ("s", COLOURS[1]),
    "combined gate": ("D", COLOURS[2]),
}
SCORE_GROUPS = tuple(f"{step:+d}" if step else "0" for step in range(-3, 4))


def groups_of(target: torch.Tensor, labels: Sequence[str]) -> tuple[torch.Tensor, Sequence[str]]:
    """Emotions as they are; scores by the seven steps of Acc-7: (n,) int64 and the groups' names."""
    if is_score(target):
        return target.round().clamp(-3, 3).long() + 3, SCORE_GROUPS
    return target, labels


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
    panels = {"importance": scores.importance}
    titles = {"entropy_gate": "entropy gate", "importance_gate": "importance gate", "gate": "combined gate"}
    panels |= {titles[name]: weights for name, weights in scores.parts.items() if name in titles}
    target, labels = groups_of(scores.target, labels)
    rows = [(k, name) for k, name in enumerate(labels) if (target == k).any()]
    for offset, (name, weights) in enumerate(panels.items()):
        means = [float(weights[target == k, 0].mean()) for k, _ in rows]
        marker, colour = MARKERS[name]
        heights = [row + 0.15 * (offset - 1.5) for row in range(len(rows))]
        left.scatter(means, heights, marker=marker, color=colour, label=name, zorder=3)
        if name == "importance":  # each clip's, faint: a mean of 1/2 can be clips of 0 and 1
            for height, (k, _) in zip(heights, rows, strict=True):
                each = weights[target == k, 0].tolist()
                left.scatter(each, [height] * len(each), s=9, color=colour, alpha=0.2, linewidths=0)
    left.axvline(0.5, color="grey", linewidth=0.8)
    left.set(
        xlim=(-0.02, 1.02),
        xlabel=f"weight of {first} (0: none, 1: all)",
        title=f"{first}: mean weights, and each clip's importance (faint)",
    )
    left.set_yticks(range(len(rows)), [f"{name} (n={int((target == k).sum())})" for k, name in rows])
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
            xlabel=f"what {modalities[0]} adds for the target",
            ylabel=f"what {modalities[1]} adds for the target",
            title="contributions, clip by clip",
        )
        right.grid(alpha=0.3)
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize="small", frameon=False)
    figure.savefig(path, dpi=130)


def draw_trust(
    path: str | Path,
    scores: Scores,
    figures: Row,
    modalities: Sequence[str],
    labels: Sequence[str],
    error: torch.Tensor | None = None,
) -> None:
    """Write a PNG of four panels: importance by emotion, margins, what a threshold buys, fused space and errors.

    Args:
        path: File to write.
        scores: Scores of the clips to show.
        found: `measure.trust_of` these clips.
        modalities: Names on the M axis.
        labels: Emotions.
        error: (n,) of `trust.prediction_errors` for the clips with a label, NaN for the others; None leaves it out.
    """
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    (spread, margin), (threshold, space) = figure.subplots(2, 2)

    target, names = groups_of(scores.target, labels)
    rows = [k for k in range(len(names)) if (target == k).any()]
    for m, name in enumerate(modalities):
        columns = [scores.importance[(target == k) & scores.present[:, m], m].numpy() for k in rows]
        places = [row + 0.8 * ((m + 0.5) / len(modalities) - 0.5) for row in range(len(rows))]
        some = [(place, column) for place, column in zip(places, columns, strict=True) if len(column)]
        if not some:
            continue
        boxes = spread.boxplot(
            [column for _, column in some],
            positions=[place for place, _ in some],
            orientation="horizontal",
            widths=0.7 / len(modalities),
            manage_ticks=False,
            patch_artist=True,
            flierprops={"markersize": 2},
            medianprops={"color": "black"},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=COLOURS[m % len(COLOURS)], alpha=0.6)
        spread.plot([], [], color=COLOURS[m % len(COLOURS)], linewidth=6, alpha=0.6, label=name)
    spread.set_yticks(range(len(rows)), [names[k] for k in rows])
    spread.invert_yaxis()
    spread.set(xlim=(-0.02, 1.02), xlabel="importance", title="importance by emotion")
    spread.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize="small", frameon=False)

    margin.hist(trust.margins(scores.importance).numpy(), bins=20, range=(0, 1), color=COLOURS[0])
    margin.set(xlabel="margin (largest minus second importance)", ylabel="clips", title="margins")

    x = [row["min_margin"] for row in figures["thresholds"]]
    curves = {"kept": "clips kept", "agree": "agree with leave-one-out", "right": "planted modality found"}
    for (key, name), colour in zip(curves.items(), COLOURS, strict=False):
        values = [np.nan if row[key] is None else row[key] for row in figures["thresholds"]]
        if not np.isnan(values).all():
            threshold.plot(x, values, marker="o", color=colour, label=name)
    threshold.set(ylim=(-0.02, 1.02), xlabel="--min_margin", title="what a threshold on the margin buys")
    threshold.legend(loc="lower left", fontsize="small", frameon=False)

    have = torch.zeros(0, dtype=torch.bool) if error is None else error.isfinite()
    r = figures["prediction_space_correlation"]
    if r is None or error is None:
        space.set_axis_off()
    else:
        draw_space(space, scores.fused[have], error[have], r)
    for axis in (spread, margin, threshold):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_space(axis: Axes, fused: torch.Tensor, error: torch.Tensor, r: float) -> None:
    """Prediction Space Correlation: mean difference of errors by distance (deciles of the pairs), with quartiles."""
    distance, difference = trust.pairs(fused, error)
    edges = np.quantile(distance, np.linspace(0, 1, 11))
    place = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, 9)
    middle = [distance[place == k].mean() for k in range(10) if (place == k).any()]
    parts = [difference[place == k] for k in range(10) if (place == k).any()]
    low, high = ([np.quantile(part, q) for part in parts] for q in (0.25, 0.75))
    axis.fill_between(middle, low, high, color=COLOURS[0], alpha=0.2, label="quartiles")
    axis.plot(middle, [p.mean() for p in parts], "o-", color=COLOURS[0], label="mean")
    axis.set(
        xlabel="distance of two clips in the fused space",
        ylabel="difference of their errors",
        title=f"prediction space correlation: r = {r:.2f}",
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize="small", frameon=False)
