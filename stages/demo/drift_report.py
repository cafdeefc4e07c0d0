"""What the experiment on drift says: results as data, tables, a figure, and the rule; see stages/demo/drift.py."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eval.page.tables import percent
from migr.files.records import Row, atomic, iter_jsonl, read_json, write_json
from migr.planted.truth import segment_truth
from migr.statistics import estimate, quotient, resampled_sums
from stages.demo.models import MISTAKES, Cell

DRIFT = ("pull_next", "same_next", "pull_answer", "gain_fall", "order_inconsistent")
COLUMNS = {  # of the tables: figure -> heading
    "headline": "inconsistent, correct",
    "video": "video dominant",
    "audio": "audio dominant",
    "war": "WAR",
    "segment_truth": "segments true",
    "pull_next": "pull, next segment",
    "pull_next_audio": "… audio dominant",
    "same_next": "like the own first",
    "pull_answer": "pull, answer",
    "gain_fall": "evidence falls, nats",
    "order_inconsistent": "order: inconsistency",
    "text_coherence": "coherence of the targets, measured",
}
PARTS: dict[str, Callable[[Row], bool]] = {
    "Kinds of targets, with and without rewards": lambda row: (
        (row["base"], row["size"]) == ("demo", "400 x 6") and row["targets"] not in MISTAKES
    ),
    "Cold starts of other sizes": lambda row: row["base"] == "demo" and row["size"] != "400 x 6",
    "Other base models": lambda row: row["base"] != "demo",
}
REMEDIES = ("reordered", "rewritten", "apart")
KEY = ("base", "size", "coherence", "rewards", "targets")
INTRO = """# Drift: when does the order of an explanation matter?

Made by `make drift` (`stages/demo/drift.py`) on the planted benchmark. An annotator writes the targets, and the second
description follows the first one's emotion with probability q (`migr/planted/annotators.py`). The targets are written
*video-first*; the same text *reordered* (dominant modality first, `stages/targets.py`); *rewritten* (written from the
dominant modality on); or from modalities described *apart* by the base model (`stages/describe.py`), which knows no q.
A model of the demo's base learns them (SFT, 400 targets x 6 epochs unless told otherwise), with or without GRPO with
all rewards behind it. Figures are means over seeds of rates over 560 test clips a seed (drift: 140); how drift is
measured: [evaluation](evaluation.md#drift).
"""
BEFOREHAND = """## What was seen before this experiment

One seed (6), no caption errors in the targets, no rewards, 560 test clips, q = 0.6, 400 targets x 6 epochs; a sketch at
commit 8771109, inconsistent among correct:

| targets | the demo's base | a base that was taught true captions and coherent stories |
|---|---|---|
| video-first | 11.6 % [9.0, 14.3] | 16.6 % [13.6, 19.7] |
| the same reordered | 11.7 % [9.2, 14.4] | 13.9 % [11.0, 17.0] |
| written from the dominant modality on | 1.1 % [0.4, 2.0] | 0.2 % [0.0, 0.5] |

GRPO with all rewards behind the first two of the second column: 0.4 and 0.0 %. So where the text is coherent, the order
in which it was *written* mattered, and reordering it afterwards did not undo it. One seed is no claim.
"""
WORDS = """## Does the pull measure what the words do?

Targets written video-first, in which every second description of the face tells a wrong emotion that nothing in the
clip shows (`--mistakes 0.5`). A model that learns to follow them can only follow words, so the pull must rise with q.

| q | seed | pull on the next segment | like the own first | pull on the answer |
|---|---|---|---|---|"""
CHANGES = """## What each remedy changes

Inconsistent among correct, paired over clips: of other targets against video-first ones at the same coherence and
rewards, of rewards against none, of the reward `evidence` beside all others against all others.
"""
HOW = """## The rule

1. Measure your targets: `python eval/drift.py --targets targets.jsonl --clips clips.jsonl --out OUT` (coherence).
2. Measure your model: `python eval/drift.py --predictions FILE --clips FILE --model DIR --out DIR` (pull).
3. Take what the row nearest to your coherence says. A remedy stands there if its interval lies below 0, the cheapest
   first: reordering costs nothing, rewriting a language model (`stages/targets.py --rewrite llm`), describing apart two
   generations a clip (`stages/describe.py`). Rewards cost a GRPO run.
"""


def figures_of(folder: Path, cell: Cell, clips: Path) -> Row:
    """Every figure of the tables of one model.

    Args:
        folder: Where `stages.demo.models.steps` wrote.
        cell: The model.
        clips: Manifest of the planted clips.
    """
    out = folder / "eval" / cell.name
    metrics, drift = read_json(out / "metrics.json"), read_json(out / "drift" / "drift.json")
    by_dominant = {m: part["inconsistent_among_correct"] for m, part in metrics["per_dominant"].items()}
    headline = {"headline": metrics["inconsistent_among_correct"], "war": metrics["war"], **by_dominant}
    truth = segment_truth(out / "predictions.jsonl", clips)["segment_truth"]
    text = read_json(folder / "coherence" / cell.texts / "coherence.json")["coherence"]
    figures = {**headline, "segment_truth": truth, **{key: drift[key] for key in DRIFT}, "text_coherence": text}
    figures["pull_next_ci95"] = drift["pull_next_ci95"]
    if drift["same_next_n"] < 20:
        figures["same_next"] = None  # a share of a few clips says nothing
    return figures | {"pull_next_audio": drift["by_dominant"].get("audio", {}).get("pull_next")}


def collect(cells: Sequence[Cell], run: Path, bases: Path) -> list[Row]:
    """A row for each cell that has been measured, with every figure of the tables.

    Args:
        cells: Of the grid.
        run: The experiment's folder.
        bases: Where the runs with the clips lie.
    """
    rows = []
    for cell in cells:
        folder, seed = run / f"seed{cell.seed}", f"seed{cell.seed}"
        if (out := folder / "eval" / cell.name).joinpath("drift", "drift.json").is_file():
            figures = figures_of(folder, cell, bases / seed / "clips" / "clips.jsonl")
            rows.append({**asdict(cell), **figures, "folder": os.path.relpath(out, run)})
    return rows


def outcomes(folder: Path) -> dict[str, tuple[float, float]]:
    """Clip -> (right answer whose reasoning says otherwise, right and judged answer), each 0 or 1."""
    judged = {row["clip_id"]: row["emotion"] for row in iter_jsonl(folder / "judgements.jsonl", ("clip_id", "emotion"))}
    table = {}
    for row in iter_jsonl(folder / "predictions.jsonl", ("clip_id", "label", "answer")):
        emotion = judged.get(row["clip_id"])
        counts = row["answer"] == row["label"] and emotion is not None
        table[row["clip_id"]] = float(counts and emotion != row["label"]), float(counts)
    return table


def benefit(ours: Sequence[Path], others: Sequence[Path]) -> Row:
    """The headline of some runs minus that of others, seed by seed on the same clips; paired interval over clips."""
    tables = []
    for own, other in zip(ours, others, strict=True):
        one, two = outcomes(own), outcomes(other)
        tables += [[*one[clip], *two[clip]] for clip in one if clip in two]
    sums = resampled_sums(tables or np.zeros((0, 4)))
    return estimate("difference", quotient(sums[:, 0], sums[:, 1]) - quotient(sums[:, 2], sums[:, 3]))


def benefits(rows: Sequence[Row], run: Path) -> Iterator[Row]:
    """Each remedy against video-first at the same coherence and rewards; rewards against none, and the reward
    `evidence` beside all others against all others, with the same targets."""
    by_key: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        by_key.setdefault(tuple(row[name] for name in KEY), {})[row["seed"]] = row
    for (base, size, coherence, rewards, targets), plain in by_key.items():
        others = {"rewards": (base, size, coherence, "all", targets)} if rewards == "none" else {}
        if rewards == "all":
            others["evidence"] = (base, size, coherence, "evidence", targets)
        if targets == "video-first":
            for kind in (*REMEDIES, "random", "least-first"):
                others[kind] = (base, size, 0.0 if kind == "apart" else coherence, rewards, kind)
        for remedy, key in others.items():
            seeds = sorted(plain.keys() & by_key.get(key, {}).keys())
            if seeds:
                folders = [[run / side[seed]["folder"] for seed in seeds] for side in (by_key[key], plain)]
                pull = float(np.mean([plain[seed]["pull_next"] or 0 for seed in seeds]))
                about = {"base": base, "size": size, "coherence": coherence, "rewards": rewards, "targets": targets}
                yield {**about, "remedy": remedy, "seeds": seeds, "pull_next": pull, **benefit(*folders)}


def table(rows: Sequence[Row]) -> list[str]:
    """Means over seeds of the figures, a line a setting."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in KEY), []).append(row)
    lines = [f"| {' | '.join((*KEY, 'seeds', *COLUMNS.values()))} |", "|---" * (len(KEY) + 1 + len(COLUMNS)) + "|"]
    for key, group in groups.items():
        cells = []
        for name in COLUMNS:
            values = [row[name] for row in group if row.get(name) is not None]
            write = "{:.2f}".format if name in ("gain_fall", "text_coherence") else percent
            cells.append(write(float(np.mean(values))) if values else "–")
        lines.append(f"| {' | '.join(map(str, (*key, len(group), *cells)))} |")
    return lines


def words(rows: Sequence[Row]) -> list[str]:
    """The section on models whose targets follow words that the clip does not show; nothing without such models."""
    lines = [WORDS]
    for row in sorted(rows, key=lambda row: (row["coherence"], row["seed"])):
        if row["targets"] in MISTAKES:
            pull, (low, high) = percent(row["pull_next"]), (100 * bound for bound in row["pull_next_ci95"])
            own, answer = ("–" if row[name] is None else percent(row[name]) for name in ("same_next", "pull_answer"))
            lines.append(
                f"| {row['coherence']:g} | {row['seed']} | {pull} [{low:.1f}, {high:.1f}] | {own} | {answer} |"
            )
    return [*lines, ""] if lines[1:] else []


def rule(gains: Sequence[Row]) -> list[str]:
    """For each coherence of the main part: which remedies lower inconsistency, and whether rewards still do."""
    main = [row for row in gains if row["base"] == "demo" and row["size"] == "400 x 6"]
    lines = ["| q | helps without rewards | helps beside rewards | rewards behind video-first |", "|---|---|---|---|"]
    for q in sorted({row["coherence"] for row in main}):
        cells = []
        for rewards in ("none", "all"):
            here = [row for row in main if (row["coherence"], row["rewards"]) == (q, rewards)]
            tried = [row for remedy in REMEDIES for row in here if row["remedy"] == remedy]
            helps = [f"{row['remedy']} ({_points(row)})" for row in tried if _lowers(row)]
            cells.append(", ".join(helps) or ("nothing" if tried else "not run"))
        paid = [r for r in main if (r["coherence"], r["targets"], r["remedy"]) == (q, "video-first", "rewards")]
        lines.append(f"| {q:g} | {cells[0]} | {cells[1]} | {_points(paid[0]) if paid else 'not run'} |")
    return lines


def _lowers(row: Row) -> bool:
    return row["difference_ci95"] is not None and row["difference_ci95"][1] < 0


def _points(row: Row) -> str:
    if row["difference"] is None:
        return "–"
    low, high = (100 * bound for bound in row["difference_ci95"])
    return f"{100 * row['difference']:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _curve(axis: Any, rows: Sequence[Row], name: str, color: str, **line: str) -> None:
    """The means of a figure over coherence as a line, its values as points; nothing without values."""
    values: dict[float, list[float]] = {}
    for row in rows:
        if row[name] is not None:
            values.setdefault(row["coherence"], []).append(100 * row[name])
    if values:
        axis.plot(sorted(values), [np.mean(values[q]) for q in sorted(values)], color=color, **line)
        points = [(q, value) for q, group in values.items() for value in group]
        axis.plot(*zip(*points, strict=True), "o", markersize=4, color=color)


def plot(rows: Sequence[Row], gains: Sequence[Row], path: Path) -> None:
    """Draw inconsistency over coherence, pull over coherence without rewards, and each remedy against the pull."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    main = [row for row in rows if (row["base"], row["size"]) == ("demo", "400 x 6")]
    for number, kind in enumerate(("video-first", *REMEDIES, *MISTAKES)):
        own, rewarded = (
            [row for row in main if (row["targets"], row["rewards"]) == (kind, r)] for r in ("none", "all")
        )
        style = {"color": f"C{number}"}
        if kind not in MISTAKES:
            _curve(axes[0], own, "headline", label=kind, **style)
            _curve(axes[0], rewarded, "headline", label=f"{kind}, rewards", linestyle="--", **style)
        _curve(axes[1], own, "pull_next_audio", label=kind, **style)
    axes[0].set(xlabel="coherence q of the annotator", ylabel="inconsistent among correct, %")
    axes[1].set(xlabel="coherence q of the annotator", ylabel="pull, clips whose sound is dominant, %")
    axes[2].axhline(0, color="0.6", linewidth=1)
    for remedy in (*REMEDIES, "rewards"):
        drawn = [r for r in gains if r["remedy"] == remedy and r["rewards"] == "none" and r["difference"] is not None]
        drawn = [r for r in drawn if r["targets"] == "video-first"]
        if drawn:
            places = np.array([[100 * r["pull_next"], 100 * r["difference"]] for r in drawn])
            bounds = np.array([[100 * bound for bound in r["difference_ci95"]] for r in drawn])
            reach = np.abs(bounds - places[:, 1:]).T
            axes[2].errorbar(places[:, 0], places[:, 1], yerr=reach, fmt="o", capsize=3, label=remedy)
    axes[2].set(xlabel="pull on the next segment, %", ylabel="change by a remedy, points")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write(rows: Sequence[Row], planned: int, run: Path, out: Path) -> None:
    """Write results.json of the run, the figure, and the page.

    Args:
        rows: Of `collect`.
        planned: How many models the grid has.
        run: The run's folder.
        out: Markdown file.
    """
    lines = [INTRO]
    if not rows:
        lines += [f"**Nothing of this has been run yet**: `make drift` trains and measures {planned} models.", ""]
    else:
        gains = list(benefits(rows, run))
        write_json(run / "results.json", {"models": rows, "benefits": gains})
        images = out.parent / "img"
        images.mkdir(exist_ok=True)
        plot(rows, gains, images / "drift.png")
        state = "all" if len(rows) == planned else f"{len(rows)} of {planned}"
        lines += [f"Run so far: {state} models of the grid. What it means: [drift_notes.md](drift_notes.md).", ""]
        lines += [HOW, *rule(gains), "", "![benefit of each remedy](img/drift.png)", ""]
        lines += words(rows)
        for title, belongs in PARTS.items():
            if part := [row for row in rows if belongs(row)]:
                lines += [f"## {title}", "", *table(part), ""]
        lines += [CHANGES]
        lines += ["| base | size | q | rewards | targets | remedy | seeds | change |", "|---" * 8 + "|"]
        for row in gains:
            cells = (*(row[name] for name in ("base", "size", "coherence", "rewards", "targets", "remedy")),)
            lines.append(f"| {' | '.join(map(str, (*cells, len(row['seeds']), _points(row))))} |")
        lines += [""]
    lines += [BEFOREHAND] if not rows else []
    with atomic(out) as file:
        file.write("\n".join(lines).rstrip() + "\n")
