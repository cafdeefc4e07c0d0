"""The figures of the evaluation: accuracy, consistency between reasoning and answer, and their bootstrap intervals.

Everything a metric needs of a clip fits in one cell of a small joint table (label x outcome x start x dominant
modality). Clips are tallied into that table once; a bootstrap resample of the clips is then one multinomial draw over
its cells, which is the same distribution and costs nothing per clip.

The four cells and the headline follow ERV (arXiv 2510.23506) and MIGR (arXiv 2512.02699), as far as they can be read
off their published figures; the separate counts for what could not be parsed or judged are ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from migr.statistics import interval
from migr.text.format import MODALITIES

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]

MISSING = -1  # an answer that is no known label, a failed judgement, no segment, no importance
WITHOUT = -2  # in place of a judgement: the answer came without any reasoning to judge

# What happened to a clip. RIGHT and WRONG speak of the answer, CONSISTENT of judge == label.
_UNPARSEABLE, _RIGHT_CONSISTENT, RIGHT_INCONSISTENT, _RIGHT_FAILED = range(4)
_WRONG_CONSISTENT, _WRONG_SAME, _WRONG_OTHER, _WRONG_FAILED = range(4, 8)  # SAME: the judge names the (wrong) answer
_RIGHT_WITHOUT, _WRONG_WITHOUT = 8, 9  # without reasoning
OUTCOMES, STARTS = 10, 3  # start: 0 unknown, 1 with another modality, 2 with the dominant one

_RIGHT_REASONED = (_RIGHT_CONSISTENT, RIGHT_INCONSISTENT, _RIGHT_FAILED)
RIGHT = (*_RIGHT_REASONED, _RIGHT_WITHOUT)
RIGHT_JUDGED = (_RIGHT_CONSISTENT, RIGHT_INCONSISTENT)
_JUDGED = (_RIGHT_CONSISTENT, RIGHT_INCONSISTENT, _WRONG_CONSISTENT, _WRONG_SAME, _WRONG_OTHER)
CELLS = {
    "right_consistent": (_RIGHT_CONSISTENT,),
    "right_inconsistent": (RIGHT_INCONSISTENT,),
    "wrong_consistent": (_WRONG_CONSISTENT,),
    "wrong_inconsistent": (_WRONG_SAME, _WRONG_OTHER),
}
# The cell of each outcome by name; clips outside the four cells have names of their own.
CELL_OF = {outcome: name for name, outcomes in CELLS.items() for outcome in outcomes}
CELL_OF |= {_UNPARSEABLE: "unparseable"}
CELL_OF |= dict.fromkeys((_RIGHT_FAILED, _RIGHT_WITHOUT), "right_not_judged")
CELL_OF |= dict.fromkeys((_WRONG_FAILED, _WRONG_WITHOUT), "wrong_not_judged")
# Each rate as (outcomes counted, outcomes in the denominator). UAR and the start are not of this form.
_RATES = {
    "war": (RIGHT, tuple(range(OUTCOMES))),
    "inconsistent_among_correct": ((RIGHT_INCONSISTENT,), (_RIGHT_CONSISTENT, RIGHT_INCONSISTENT)),
    "inconsistent_among_all": ((RIGHT_INCONSISTENT,), tuple(range(OUTCOMES))),
    "inconsistent_among_correct_worst": ((RIGHT_INCONSISTENT, _RIGHT_FAILED), _RIGHT_REASONED),
    "eea": ((_RIGHT_CONSISTENT, _WRONG_CONSISTENT), _JUDGED),
    "fcr": ((_RIGHT_CONSISTENT,), _JUDGED),
    "epc": ((_RIGHT_CONSISTENT, _WRONG_SAME), _JUDGED),
}
RATES = ("war", "uar", *[name for name in _RATES if name != "war"], "starts_with_dominant")


def measure(
    labels: Sequence[int] | Ints,
    answers: Sequence[int] | Ints,
    judgements: Sequence[int] | Ints,
    classes: Sequence[str],
    first: Sequence[int] | Ints | None = None,
    dominants: Sequence[int] | Ints | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute every figure of `metrics.json`.

    Args:
        labels: (n,) the true class of each clip, an index into `classes`.
        answers: (n,) the class that the model answered, or `MISSING` where there is no single known answer.
        judgements: (n,) the class that the judge read from the reasoning, `MISSING` where it failed, or `WITHOUT` where
            there is no reasoning.
        classes: The names of the label set.
        first: (n,) the modality of the reasoning's first segment, an index into `MODALITIES`, or `MISSING` where the
            reasoning has no segments (then nobody can say how it starts, and the clip does not count).
        dominants: (n,) the dominant modality of each clip, an index into `MODALITIES`, or `MISSING`.
        resamples: Bootstrap resamples of the clips, for the percentile intervals.
        seed: Seed of the resamples.

    Returns:
        The counts `n`, `n_unparseable`, `n_judge_failed`, `n_without_reasoning` (answers alone), `n_classes` (classes
        present in the labels), the `cells`, and for each name in `RATES` the rate as a fraction, `<name>_ci95` as
        [low, high] and its denominator `<name>_n`. A rate with denominator 0 is None and so is its interval.
        `per_class` and `per_dominant` hold the same for the
        clips of one label or dominant modality (`war` of a class is its recall). `confusion` counts labels x answers,
        `confusion_judged` labels x judgements.
        A rate of exactly 0 or 1 has an interval of width 0 (nothing can vary in a resample): read its denominator.
    """
    size = len(labels)
    columns = [
        np.full(size, MISSING) if values is None else np.asarray(values)
        for values in (labels, answers, judgements, first, dominants)
    ]
    assert all(column.shape == (size,) for column in columns), "one value for every clip"
    confusion, judged = np.zeros((2, len(classes), len(classes) + 1), np.int64)
    table = np.zeros((len(classes), OUTCOMES, STARTS, len(MODALITIES) + 1), np.int64)
    for begin in range(0, size, 1 << 16):  # a million clips need no more memory than their codes
        _tally(table, confusion, judged, *(column[begin : begin + (1 << 16)].astype(np.int64) for column in columns))

    cells = np.argwhere(table)  # (cells that occur, 4)
    counts = table[tuple(cells.T)]
    draws = np.zeros((resamples, 0))
    if size:
        draws = np.random.default_rng(seed).multinomial(size, counts / size, resamples).astype(np.float64)

    def group(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        return _figures(counts[chosen].astype(np.float64), draws[:, chosen], cells[chosen], len(classes))

    def by(axis: int, names: Sequence[str]) -> dict[str, Any]:
        return {name: group(cells[:, axis] == i) for i, name in enumerate(names) if (cells[:, axis] == i).any()}

    return {
        **group(np.ones(len(cells), bool)),
        "per_class": by(0, classes),
        "per_dominant": by(3, MODALITIES),
        "confusion": {"labels": list(classes), "answers": [*classes, "unparseable"], "counts": confusion.tolist()},
        "confusion_judged": {"labels": list(classes), "answers": [*classes, "not judged"], "counts": judged.tolist()},
        "bootstrap": {"resamples": resamples, "seed": seed},
    }


def _tally(
    table: Ints,
    confusion: Ints,
    judged: Ints,
    labels: Ints,
    answers: Ints,
    judgements: Ints,
    first: Ints,
    dominants: Ints,
) -> None:
    """Add some clips to the joint table (label, outcome, start, dominant), to labels x answers and x judgements."""
    classes, modalities = len(confusion), len(MODALITIES)
    assert labels.min() >= 0 and max(labels.max(), answers.max(), judgements.max()) < classes, "no such class"
    assert min(answers.min(), first.min(), dominants.min()) >= MISSING and judgements.min() >= WITHOUT, "no such code"
    assert max(first.max(), dominants.max()) < modalities, "no such modality"
    outcome = outcome_of(labels, answers, judgements)
    start = start_of(first, dominants)
    dominant = np.where(dominants == MISSING, modalities, dominants)
    code = np.ravel_multi_index((labels, outcome, start, dominant), table.shape)
    table += np.bincount(code, minlength=table.size).reshape(table.shape)
    for counts, found in ((confusion, answers), (judged, judgements)):
        cell = labels * (classes + 1) + np.where(found < 0, classes, found)
        counts += np.bincount(cell, minlength=counts.size).reshape(counts.shape)


def outcome_of(labels: Ints, answers: Ints, judgements: Ints) -> Ints:
    """What happened to each clip: (n,) codes below `OUTCOMES`."""
    unparseable, failed, without = answers == MISSING, judgements == MISSING, judgements == WITHOUT
    right, consistent, same = answers == labels, judgements == labels, judgements == answers
    return np.select(
        [unparseable, right & without, without, right & failed, right & consistent, right, failed, consistent, same],
        [
            _UNPARSEABLE,
            _RIGHT_WITHOUT,
            _WRONG_WITHOUT,
            _RIGHT_FAILED,
            _RIGHT_CONSISTENT,
            RIGHT_INCONSISTENT,
            _WRONG_FAILED,
            _WRONG_CONSISTENT,
            _WRONG_SAME,
        ],
        default=_WRONG_OTHER,
    )


def start_of(first: Ints, dominants: Ints) -> Ints:
    """How each reasoning starts: (n,) codes below `STARTS`."""
    return np.where((first == MISSING) | (dominants == MISSING), 0, 1 + (first == dominants))


def _figures(counts: Floats, draws: Floats, cells: Ints, classes: int) -> dict[str, Any]:
    """The figures of one group of cells: (c,) counts, (resamples, c) resampled counts, (c, 4) coordinates."""
    label, outcome, start = cells[:, 0], cells[:, 1], cells[:, 2]

    def total(outcomes: Sequence[int]) -> int:
        return int(counts[np.isin(outcome, outcomes)].sum())

    figures: dict[str, Any] = {
        "n": int(counts.sum()),
        "n_unparseable": total([_UNPARSEABLE]),
        "n_judge_failed": total([_RIGHT_FAILED, _WRONG_FAILED]),
        "n_without_reasoning": total([_RIGHT_WITHOUT, _WRONG_WITHOUT]),
        "n_classes": len(np.unique(label)),
        "cells": {name: total(outcomes) for name, outcomes in CELLS.items()},
    }
    every = np.vstack([counts, draws])  # row 0 is the data, the others are resamples
    values = rates(every, label, outcome, start, classes)
    sizes = {name: total(among) for name, (_, among) in _RATES.items()}
    sizes |= {"uar": figures["n"], "starts_with_dominant": int(counts[start > 0].sum())}
    for name in RATES:
        known = sizes[name] > 0
        figures[name] = float(values[name][0]) if known else None
        figures[f"{name}_ci95"] = interval(values[name][1:]) if known else None
        figures[f"{name}_n"] = sizes[name]
    return figures


def rates(every: Floats, label: Ints, outcome: Ints, start: Ints, classes: int) -> dict[str, Floats]:
    """Each rate of `RATES` for each row of counts; nan where its denominator is 0.

    Args:
        every: (r, c) counts of c cells, one row a sample.
        label, outcome, start: (c,) the coordinates of the cells.
        classes: Size of the label set.

    Returns:
        Name -> (r,) fractions.
    """
    of_class = label[:, None] == np.arange(classes)
    hits = every @ (of_class & np.isin(outcome, RIGHT)[:, None])
    recalls = _divide(hits, every @ of_class)  # (r, classes), nan where a class does not occur
    occurs = ~np.isnan(recalls)
    values = {"uar": _divide(np.where(occurs, recalls, 0.0).sum(1), occurs.sum(1))}
    for name, (counted, among) in _RATES.items():
        values[name] = _divide(every @ np.isin(outcome, counted), every @ np.isin(outcome, among))
    values["starts_with_dominant"] = _divide(every @ (start == 2), every @ (start > 0))
    return values


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
