"""What a training logged: its last rewards in a line, what should worry whoever started it, and its curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from migr.errors import InputError
from migr.files.records import Row, read_object

Curve = tuple[list[int], list[float]]  # steps, values

# Heading of a panel -> logged keys and how the panel calls them; "*" stands for the name of a reward.
PANELS: dict[str, dict[str, str]] = {
    "rewards, mean": {
        "rewards/*/mean": "*",
        "inconsistent_among_correct": "inconsistent among correct",
    },
    "loss": {"loss": "loss", "eval_loss": "validation loss"},
    "token accuracy": {"mean_token_accuracy": "token accuracy"},
    "KL to the reference": {"kl": "KL"},
    "completions, tokens": {"completions/mean_length": "mean length", "completions/max_length": "longest"},
    "completions that were cut": {"completions/clipped_ratio": "share"},
    "gradient norm": {"grad_norm": "gradient norm"},
    "judgements that failed": {"judge_failed": "share"},
    "judge, seconds a step": {"judge_seconds": "seconds"},
}
SHARES = ("rewards, mean", "token accuracy", "completions that were cut", "judgements that failed")


def read_history(run: str | Path) -> list[Row]:
    """What `stages/sft.py` or `stages/grpo.py` logged in a run's folder, finished or not: one row a logging step.

    Raises:
        InputError: The folder holds no training that has logged anything.
    """
    folder = Path(run)
    states = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    states = sorted((path for path in states if path.is_file()), key=lambda path: path.stat().st_mtime)
    if not states:
        raise InputError(f"{folder}: no trainer_state.json in it; name the output_dir of a training")
    history = read_object(states[-1], finite=False, log_history=list)["log_history"]  # a trainer may log NaN
    if not all(isinstance(row, dict) and isinstance(row.get("step", 0), int) for row in history):
        raise InputError(f"{states[-1]}: log_history holds something else than a trainer's rows")
    rows = [row for row in history if "step" in row]
    if not rows:
        raise InputError(f"{states[-1]}: nothing is logged yet")
    return rows


def curve(history: Sequence[Row], key: str) -> Curve:
    """The steps and values of one logged key, without those that are no finite number."""
    points = [(row["step"], row[key]) for row in history if isinstance(row.get(key), int | float)]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in points], [float(value) for _, value in points]


def rewards(history: Sequence[Row]) -> list[str]:
    """The names of the rewards that a GRPO run logged."""
    keys = dict.fromkeys(key for row in history for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    return [key.split("/")[1] for key in keys]


def reward_line(history: Sequence[Row]) -> str:
    """The last mean of each reward: "format 0.97, accuracy 0.94, consistency –"."""
    parts = []
    for name in rewards(history):
        _, values = curve(history, f"rewards/{name}/mean")
        parts.append(f"{name} {values[-1]:.2f}" if values else f"{name} –")
    return ", ".join(parts)


def warnings(history: Sequence[Row]) -> list[str]:
    """What in a GRPO run's log says that it cannot have worked, a sentence each. The thresholds are ours."""
    lines = []
    for name in rewards(history):
        _, values = curve(history, f"rewards/{name}/mean")
        if not values:
            lines.append(f"the reward {name} was None for every response: it taught nothing (docs/rewards.md)")
        elif name == "accuracy" and max(values) == 0:
            lines.append("no sampled response had the right answer: check --labels, and that the SFT adapter answers")
    _, cut = curve(history, "completions/clipped_ratio")
    if cut and sum(cut) / len(cut) > 0.5:
        lines.append(f"{sum(cut) / len(cut):.0%} of the responses were cut: raise max_completion_length")
    _, failed = curve(history, "judge_failed")
    if failed and sum(failed) / len(failed) > 0.5:
        lines.append(f"the judge failed on {sum(failed) / len(failed):.0%} of what it was asked (docs/rewards.md)")
    _, equal = curve(history, "frac_reward_zero_std")
    if equal and min(equal) >= 1:
        lines.append("all responses to a clip always had the same reward: raise temperature or num_generations")
    return lines


def plot(histories: Mapping[str, Sequence[Row]], path: str | Path, panels: Sequence[str] = tuple(PANELS)) -> None:
    """Draw the curves of runs, one column a run and one row a panel that any of them has.

    Args:
        histories: Name of a run -> its `read_history`.
        path: PNG file to write.
        panels: Which of `PANELS`, from the top.

    Raises:
        InputError: No run has anything of these panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = {
        (panel, name): [
            (label.replace("*", reward), points)
            for key, label in PANELS[panel].items()
            for reward in (rewards(history) if "*" in key else [""])
            if len((points := curve(history, key.replace("*", reward)))[0])
        ]
        for panel in panels
        for name, history in histories.items()
    }
    panels = [panel for panel in panels if any(lines[panel, name] for name in histories)]
    if not panels:
        raise InputError("these runs logged nothing that could be drawn")
    size = (4.5 * len(histories), 2.9 * len(panels) + 0.4)
    figure, axes = plt.subplots(len(panels), len(histories), figsize=size, sharey="row", squeeze=False)
    for row, panel in zip(axes, panels, strict=True):
        for axis, name in zip(row, histories, strict=True):
            for label, points in lines[panel, name]:
                axis.plot(*points, label=label)
            if panel in SHARES:
                axis.set_ylim(-0.02, 1.02)
            if len(lines[panel, name]) > 1:
                axis.legend(frameon=False, fontsize=8)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(panel)
    for axis, name in zip(axes[0], histories, strict=True):
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
