"""How far a model drifts from the clip to its own words: the arithmetic of eval/drift.py. Ours.

A row of drift.jsonl is one clip. It has `clip_id`, `label`, `dominant` (or null), and

    evidence  per token of the reasoning: `modality` (null outside segments), `gain` (nats), `attention` (or null)
    pull      null, or `first` (modality of the first segment), `emotion` (what the judge reads in it), `from` (the clip
              that lends its first segment) and `exchanged` (its emotion); `own` and `other`: the model's response
              behind either, with the emotions of its parts (`PARTS`; null where they cannot be read)
    order     null, or for video and audio first: `response`, `answer`, `judged`, `gain` (nats), `tokens`
    cost      `scored`, `generated`, `tokens` (generated), `attended`, `seconds`

Each figure is a quotient of sums over clips, or the difference of two: so one resampling of clips serves all intervals,
and two runs on the same clips are compared pairwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from migr.errors import InputError
from migr.files.records import Row, read_jsonl, read_object
from migr.statistics import Floats, estimate, interval, quotient, resampled_sums

TENTHS = 10
GROUPS = ("all", "video", "audio", "text", "rest")  # of tokens: rest stands outside the segments
PARTS = ("next", "next_planted", "conclusion", "answer")  # what the first segment may pull; planted: read by its cues
MODALITIES = ("video", "audio")
KEYS = ("clip_id", "label", "evidence", "pull", "order", "cost")
Terms = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A drift figure.

    Attributes:
        name: Its key in drift.json; beside it stand `<name>_ci95` and its denominator `<name>_n`.
        heading: Its name in tables.
        meaning: What it says.
        unit: "nats", or "share".
        terms: Row -> (part, whole) of the one quotient, or of the first and of the second, which is subtracted.
    """

    name: str
    heading: str
    meaning: str
    unit: str
    terms: Callable[[Row], Terms]


def _halves(row: Row, key: str) -> list[tuple[float, float]]:
    values = row["evidence"][key] or []
    middle = (len(values) + 1) // 2
    return [(sum(part), len(part)) for part in (values[:middle], values[middle:])]


def moved(row: Row, part: str) -> int | None:
    """1 if a part became the exchanged emotion, -1 if it was it behind the own segment alone; None if unread."""
    pull = row["pull"]
    if pull is None or pull["own"][part] is None or pull["other"][part] is None:
        return None
    return int(pull["other"][part] == pull["exchanged"]) - int(pull["own"][part] == pull["exchanged"])


def _pull(part: str) -> Callable[[Row], Terms]:
    def terms(row: Row) -> Terms:
        move = moved(row, part)
        return [(0, 0) if move is None else (move, 1)]

    return terms


def _same_next(row: Row) -> Terms:
    if moved(row, "next") is None or row["pull"]["emotion"] == row["label"]:
        return [(0, 0)]
    return [(float(row["pull"]["other"]["next"] == row["pull"]["emotion"]), 1)]


def _by_order(count: Callable[[Row, Row], tuple[float, float]]) -> Callable[[Row], Terms]:
    return lambda row: [count(row, row["order"][m]) if row["order"] else (0, 0) for m in MODALITIES]


def _inconsistent(row: Row, response: Row) -> tuple[float, float]:
    right = response["answer"] is not None and response["answer"] == row["label"] and response["judged"] is not None
    return (float(response["judged"] != row["label"]), 1) if right else (0, 0)


def _answer_changes(row: Row) -> Terms:
    if row["order"] is None:
        return [(0, 0)]
    video, audio = (row["order"][modality]["answer"] for modality in MODALITIES)
    return [(float(video != audio), 1)]


FIGURES = (
    Figure(
        "gain_first_half",
        "Evidence, first half",
        "what a token of the reasoning's first half owes to the clip, nats",
        "nats",
        lambda row: _halves(row, "gain")[:1],
    ),
    Figure("gain_second_half", "… second half", "the same later", "nats", lambda row: _halves(row, "gain")[1:]),
    Figure(
        "gain_fall",
        "Fall of the evidence",
        "first half minus second: above 0, the reasoning leaves the clip",
        "nats",
        lambda row: _halves(row, "gain"),
    ),
    Figure(
        "attention_fall",
        "Fall of the attention",
        "share of attention to media tokens, first half minus second",
        "share",
        lambda row: _halves(row, "attention"),
    ),
    Figure(
        "pull_next",
        "Pull on the next segment",
        "it becomes the exchanged first segment's emotion, beyond how often it is that anyway",
        "share",
        _pull("next"),
    ),
    Figure("pull_next_planted", "… by planted cues", "the same, read by the cues", "share", _pull("next_planted")),
    Figure(
        "same_next",
        "… like the clip's own first",
        "where the own first segment is not of the label: behind another clip's, the next one says the own one's "
        "emotion all the same; the modality in the clip colours it, not the words",
        "share",
        _same_next,
    ),
    Figure("pull_conclusion", "Pull on the conclusion", "the same of the conclusion", "share", _pull("conclusion")),
    Figure("pull_answer", "Pull on the answer", "the same of the answer", "share", _pull("answer")),
    Figure(
        "order_inconsistent",
        "Order: inconsistency",
        "inconsistent among correct with video first, minus with audio first",
        "share",
        _by_order(_inconsistent),
    ),
    Figure(
        "order_answer", "Order: answers that change", "with the modality that comes first", "share", _answer_changes
    ),
    Figure(
        "order_war",
        "Order: accuracy",
        "WAR with video first, minus with audio first",
        "share",
        _by_order(lambda row, response: (float(response["answer"] == row["label"]), 1)),
    ),
    Figure(
        "order_gain",
        "Order: evidence",
        "what a token owes to the clip with video first, minus with audio first, nats",
        "nats",
        _by_order(lambda row, response: (response["gain"], response["tokens"])),
    ),
)


def _table(rows: Sequence[Row]) -> Floats:
    """(clips, 4 x figures): part and whole of the first and of the second quotient (zeros where there is none)."""
    table = np.zeros((len(rows), len(FIGURES), 2, 2))
    for i, row in enumerate(rows):
        for j, figure in enumerate(FIGURES):
            for k, term in enumerate(figure.terms(row)):
                table[i, j, k] = term
    return table.reshape(len(rows), 4 * len(FIGURES))


def _values(sums: Floats) -> Iterator[tuple[str, Floats, int]]:
    """Name, (resamples + 1,) values and denominator of each figure."""
    sums = sums.reshape(len(sums), len(FIGURES), 2, 2)
    for j, figure in enumerate(FIGURES):
        first, second = (quotient(sums[:, j, k, 0], sums[:, j, k, 1]) for k in (0, 1))
        two = len(figure.terms(_EMPTY)) == 2
        wholes = sums[0, j, :, 1]
        yield figure.name, first - second if two else first, int(wholes.min() if two else wholes[0])


_EMPTY: Row = {"evidence": {"gain": [], "attention": []}, "pull": None, "order": None, "label": None}


def _figures(rows: Sequence[Row], resamples: int, seed: int) -> Row:
    figures: Row = {}
    for name, values, n in _values(resampled_sums(_table(rows), resamples, seed)):
        figures |= {**estimate(name, values), f"{name}_n": n}
    return figures


def curve(rows: Sequence[Row], key: str, resamples: int, seed: int) -> Row:
    """Mean of a token's `gain` or `attention` over the tenths of the reasoning, for each of GROUPS that occurs.

    Returns:
        Group -> `n` tokens, `mean` and `ci95` (intervals over clips), each a list of ten; None where no token stands.
    """
    table = np.zeros((len(rows), len(GROUPS), TENTHS, 2))
    for i, row in enumerate(rows):
        values = row["evidence"][key] or []
        for place, (modality, value) in enumerate(zip(row["evidence"]["modality"], values, strict=False)):
            tenth = TENTHS * place // len(values)
            for group in ("all", modality or "rest"):
                table[i, GROUPS.index(group), tenth] += (value, 1)
    sums = resampled_sums(table.reshape(len(rows), 2 * TENTHS * len(GROUPS)), resamples, seed)
    sums = sums.reshape(-1, len(GROUPS), TENTHS, 2)
    means = quotient(sums[..., 0], sums[..., 1])
    return {
        group: {
            "n": [int(n) for n in sums[0, g, :, 1]],
            "mean": [None if np.isnan(mean) else float(mean) for mean in means[0, g]],
            "ci95": [interval(means[1:, g, tenth]) for tenth in range(TENTHS)],
        }
        for g, group in enumerate(GROUPS)
        if sums[0, g, :, 1].any()
    }


def measure(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """All figures, with percentile bootstrap intervals over the clips (95 %).

    Args:
        rows: Of drift.jsonl.
        resamples: Bootstrap resamples.
        seed: Their seed.

    Returns:
        `n`; each of FIGURES with its interval and denominator; `curve` and `attention` (see `curve`; the latter None
        where nobody looked); the figures `by_first` (the pull alone, by the modality that comes first) and
        `by_dominant`; counts of what could not be used; `cost` a clip.
    """
    pulls = [row["pull"] for row in rows if row["pull"]]
    figures: dict[str, Any] = {
        "n": len(rows),
        "n_without_reasoning": sum(not row["evidence"]["gain"] for row in rows),
        "n_pull": len(pulls),
        "n_next_unread": sum(pull["own"]["next"] is None or pull["other"]["next"] is None for pull in pulls),
        "n_order": sum(row["order"] is not None for row in rows),
        **_figures(rows, resamples, seed),
        "curve": curve(rows, "gain", resamples, seed),
        "attention": None,
        "by_first": {},
        "by_dominant": {},
    }
    if any(row["evidence"]["attention"] for row in rows):
        figures["attention"] = curve(rows, "attention", resamples, seed)
    for modality in (*MODALITIES, "text"):
        for group, of in (("by_first", _first_of), ("by_dominant", lambda row: row.get("dominant"))):
            if group_rows := [row for row in rows if of(row) == modality]:
                own = _figures(group_rows, resamples, seed)
                only = "pull" if group == "by_first" else ""
                figures[group][modality] = {"n": len(group_rows)} | {k: v for k, v in own.items() if k.startswith(only)}
    costs = [row["cost"] for row in rows]
    figures["cost"] = {
        name: float(np.mean([cost[name] for cost in costs])) if costs else None
        for name in ("scored", "generated", "tokens", "attended")
    }
    seconds = sum(cost["seconds"] for cost in costs)
    figures["cost"]["clips_per_second"] = len(costs) / seconds if seconds else None
    return figures


def _first_of(row: Row) -> str | None:
    return row["pull"] and row["pull"]["first"]


def read_runs(folders: Sequence[Path], any_judge: bool = False) -> list[list[Row]] | None:
    """The rows of each run's drift.jsonl (eval/drift.py with `--out RUN/drift`); None unless all runs have one.

    Raises:
        InputError: A file is wrong, or drift was read by different judges.
    """
    parts = [folder / "drift" for folder in folders]
    if not all((part / "drift.jsonl").is_file() and (part / "drift.json").is_file() for part in parts):
        return None
    judges = [read_object(part / "drift.json").get("judge") for part in parts]
    if len(set(judges)) > 1 and not any_judge:
        named = ", ".join(f"{part} by {judge!r}" for part, judge in zip(parts, judges, strict=True))
        raise InputError(f"drift was read by different judges ({named}): measure it alike, or allow it (--any_judge)")
    return [read_jsonl(part / "drift.jsonl", KEYS, unique="clip_id") for part in parts]


def differences(one: Sequence[Row], other: Sequence[Row], resamples: int, seed: int) -> Row:
    """Each figure of two runs on the clips that both have, and their difference with a paired interval.

    Returns:
        `n` clips; figure -> `first`, `second`, `difference` (second - first), `difference_ci95`, for those that both
        runs have.

    Raises:
        InputError: They have no clip in common.
    """
    by_id = {row["clip_id"]: row for row in other}
    pairs = [(row, by_id[row["clip_id"]]) for row in one if row["clip_id"] in by_id]
    if not pairs:
        raise InputError("drift was measured on no clip that both runs have")
    tables = [_table([pair[side] for pair in pairs]) for side in (0, 1)]
    sums = resampled_sums(np.hstack(tables), resamples, seed)
    width = tables[0].shape[1]
    figures: Row = {"n": len(pairs)}
    for (name, first, n), (_, second, m) in zip(_values(sums[:, :width]), _values(sums[:, width:]), strict=True):
        if n and m:
            change = estimate("difference", second - first)
            figures[name] = {"first": float(first[0]), "second": float(second[0]), **change}
    return figures


def most_drifting(rows: Sequence[Row], count: int) -> list[Row]:
    """The clips that drift most: of which most parts follow the exchanged segment, then the evidence falls most."""

    def key(row: Row) -> tuple[float, float]:
        moves = sum(move for part in PARTS if part != "next_planted" if (move := moved(row, part)) is not None)
        (first, n), (second, m) = _halves(row, "gain")
        return moves, (first / n if n else 0.0) - (second / m if m else 0.0)

    return sorted((row for row in rows if row["pull"]), key=key, reverse=True)[:count]


def shown(figures: Mapping[str, Any], figure: Figure) -> tuple[str, str]:
    """A figure and its interval as text: nats with two decimals, shares in percent."""
    value, bounds = figures[figure.name], figures[f"{figure.name}_ci95"]
    if value is None:
        return "–", ""
    return _text(value, figure.unit) + ("" if figure.unit == "nats" else "\u00a0%"), _between(bounds, figure.unit)


def compared(changes: Row) -> list[tuple[str, ...]]:
    """The `differences` of two runs as text: heading, first, second, difference, interval; shares in percent."""
    rows = []
    for figure in FIGURES:
        if (row := changes.get(figure.name)) is not None:
            values = [_text(row[side], figure.unit) for side in ("first", "second")]
            change = _text(row["difference"], figure.unit, "+"), _between(row["difference_ci95"], figure.unit, "+")
            rows.append((figure.heading, *values, *change))
    return rows


def _text(value: float, unit: str, sign: str = "") -> str:
    return f"{value:{sign}.2f}" if unit == "nats" else f"{100 * value:{sign}.1f}"


def _between(bounds: Sequence[float], unit: str, sign: str = "") -> str:
    return f"{_text(bounds[0], unit, sign)} to {_text(bounds[1], unit, sign)}"
