"""The figures of the evaluation: accuracy, consistency between reasoning and answer, and their bootstrap intervals.

Everything a metric needs of a clip fits in one cell of a small joint table (label x outcome x start x hidden x dominant
modality; `eval.figures.codes`). Clips are tallied into that table once; a bootstrap resample of the clips is then one
multinomial draw over its cells, which is the same distribution and costs nothing per clip.

The four cells and the headline follow ERV (arXiv 2510.23506) and MIGR (arXiv 2512.02699), as far as they can be read
off their published figures; the separate counts for what could not be parsed or judged are ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.figures.codes import (
    CELLS,
    MISSING,
    RIGHT_FAILED,
    RIGHT_WITHOUT,
    SHAPE,
    UNPARSEABLE,
    WITHOUT,
    WRONG_FAILED,
    WRONG_WITHOUT,
    Bools,
    Codes,
    Ints,
    hidden_of,
    outcome_of,
    start_of,
)
from eval.figures.rates import RATES
from migr.errors import InputError
from migr.statistics import interval
from migr.text.format import MODALITIES

Floats = NDArray[np.float64]


def check_resamples(resamples: int, seed: int) -> None:
    """Raise InputError for a count that gives no interval, or takes all memory, or a seed that numpy does not take."""
    if not 10 <= resamples <= 1_000_000:
        raise InputError(f"--resamples must be from 10 to 1,000,000, not {resamples}")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to 2^32 - 1, not {seed}")


def measure(
    labels: Sequence[int] | Ints,
    answers: Sequence[int] | Ints,
    judgements: Sequence[int] | Ints,
    classes: Sequence[str],
    first: Sequence[int] | Ints | None = None,
    dominants: Sequence[int] | Ints | None = None,
    resamples: int = 2000,
    seed: int = 0,
    hidden: Sequence[int] | Ints | None = None,
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
        hidden: (n,) as `judgements`, by the judge that does not see words that name an emotion; needed where the
            answer is right.

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
        for values in (labels, answers, judgements, first, dominants, hidden)
    ]
    assert all(column.shape == (size,) for column in columns), "one value for every clip"
    confusion, judged = np.zeros((2, len(classes), len(classes) + 1), np.int64)
    table = np.zeros((len(classes), *SHAPE, len(MODALITIES) + 1), np.int64)
    for begin in range(0, size, 1 << 16):  # a million clips need no more memory than their codes
        _tally(table, confusion, judged, *(column[begin : begin + (1 << 16)].astype(np.int64) for column in columns))

    cells = np.argwhere(table)  # (cells that occur, 5)
    counts = table[tuple(cells.T)]
    draws = np.zeros((resamples, 0))
    if size:
        draws = np.random.default_rng(seed).multinomial(size, counts / size, resamples).astype(np.float64)

    def group(rows: NDArray[np.bool_]) -> dict[str, Any]:
        codes = Codes(*cells[rows, :4].T)
        return _figures(counts[rows].astype(np.float64), draws[:, rows], codes, len(classes))

    def by(axis: int, names: Sequence[str]) -> dict[str, Any]:
        return {name: group(cells[:, axis] == i) for i, name in enumerate(names) if (cells[:, axis] == i).any()}

    return {
        **group(np.ones(len(cells), bool)),
        "per_class": by(0, classes),
        "per_dominant": by(4, MODALITIES),
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
    hidden: Ints,
) -> None:
    """Add some clips to the joint table, to labels x answers and to labels x judgements."""
    classes, modalities = len(confusion), len(MODALITIES)
    assert labels.min() >= 0 and max(labels.max(), answers.max(), judgements.max()) < classes, "no such class"
    assert min(answers.min(), first.min(), dominants.min()) >= MISSING and judgements.min() >= WITHOUT, "no such code"
    assert max(first.max(), dominants.max()) < modalities, "no such modality"
    outcome = outcome_of(labels, answers, judgements)
    start = start_of(first, dominants)
    dominant = np.where(dominants == MISSING, modalities, dominants)
    place = (labels, outcome, start, hidden_of(labels, answers, hidden), dominant)
    code = np.ravel_multi_index(place, table.shape)
    table += np.bincount(code, minlength=table.size).reshape(table.shape)
    for counts, codes in ((confusion, answers), (judged, judgements)):
        cell = labels * (classes + 1) + np.where(codes < 0, classes, codes)
        counts += np.bincount(cell, minlength=counts.size).reshape(counts.shape)


def _figures(counts: Floats, draws: Floats, codes: Codes, classes: int) -> dict[str, Any]:
    """The figures of one group of cells: (c,) counts, (resamples, c) resampled counts, (c,) codes each."""

    def total(cells: Bools) -> int:
        return int(counts[cells].sum())

    figures: dict[str, Any] = {
        "n": int(counts.sum()),
        "n_unparseable": total(codes.among([UNPARSEABLE])),
        "n_judge_failed": total(codes.among([RIGHT_FAILED, WRONG_FAILED])),
        "n_without_reasoning": total(codes.among([RIGHT_WITHOUT, WRONG_WITHOUT])),
        "n_classes": len(np.unique(codes.label)),
        "cells": {name: total(codes.among(outcomes)) for name, outcomes in CELLS.items()},
    }
    values = rates(np.vstack([counts, draws]), codes, classes)  # row 0 is the data, the others are resamples
    for rate in RATES:
        size = total(rate.among(codes))
        figures[rate.name] = float(values[rate.name][0]) if size else None
        figures[f"{rate.name}_ci95"] = interval(values[rate.name][1:]) if size else None
        figures[f"{rate.name}_n"] = size
    return figures


def rates(every: Floats, codes: Codes, classes: int) -> dict[str, Floats]:
    """Each rate of `RATES` for each row of counts; nan where its denominator is 0.

    Args:
        every: (r, c) counts of c cells, one row a sample.
        codes: (c,) the coordinates of the cells.
        classes: Size of the label set.

    Returns:
        Name -> (r,) fractions.
    """
    of_class = codes.label[:, None] == np.arange(classes)
    values: dict[str, Floats] = {}
    for rate in RATES:
        among = rate.among(codes)
        counted = rate.counted(codes) & among
        if rate.by_class:  # (r, classes), nan where a class does not occur
            shares = _divide(every @ (of_class & counted[:, None]), every @ (of_class & among[:, None]))
            occurs = ~np.isnan(shares)
            values[rate.name] = _divide(np.where(occurs, shares, 0.0).sum(1), occurs.sum(1))
        else:
            values[rate.name] = _divide(every @ counted, every @ among)
    return values


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)
