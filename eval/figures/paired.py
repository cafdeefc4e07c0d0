"""The arithmetic of `eval/compare.py`: two runs on the same clips, clip by clip."""

import numpy as np

from eval.figures.codes import RIGHT, RIGHT_INCONSISTENT, RIGHT_JUDGED, SHAPE, Bools, Codes, Ints
from eval.figures.metrics import rates
from eval.figures.rates import NAMES
from migr.files.records import Row
from migr.statistics import interval


def differences(
    labels: Ints, one: tuple[Ints, ...], other: tuple[Ints, ...], classes: int, resamples: int, seed: int
) -> Row:
    """Each rate of two runs on the same clips, and their difference with a paired percentile interval.

    A clip's place in the joint table (label x outcome, start and hidden in either run) is all that the rates need,
    so one resample of the clips is one multinomial draw, as in `eval.figures.metrics`.

    Args:
        labels: (n,) the true classes.
        one, other: (outcome, start, hidden) codes of each run, (n,) each (`eval.figures.codes`).
        classes: Size of the label set.
        resamples: Bootstrap resamples.
        seed: Their seed.

    Returns:
        Rate -> `first`, `second`, `difference` (second - first) and `difference_ci95`; None where a run has no such
        rate.
    """
    shape = (classes, *SHAPE, *SHAPE)
    code, counts = np.unique(np.ravel_multi_index((labels, *one, *other), shape), return_counts=True)
    label, *places = np.unravel_index(code, shape)
    draws = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), resamples)
    every = np.vstack([counts, draws]).astype(np.float64)
    first, second = (rates(every, Codes(label, *places[i : i + 3]), classes) for i in (0, 3))
    figures: Row = {}
    for name in NAMES:
        change = second[name] - first[name]
        defined = not np.isnan(change[0])
        values = [None if np.isnan(values[0]) else float(values[0]) for values in (first[name], second[name])]
        figures[name] = {
            **dict(zip(("first", "second"), values, strict=True)),
            "difference": float(change[0]) if defined else None,
            "difference_ci95": interval(change[1:]) if defined else None,
        }
    return figures


def mcnemar(one: Ints, other: Ints) -> Row:
    """Exact McNemar tests (two-sided binomial, scipy) between the outcomes of two runs on the same clips.

    Returns:
        `right`: a right answer; `right_inconsistent`: the headline's cell, over all clips; `headline`: inconsistency
        among the clips that both runs answered rightly and that were judged in both, where the headline's denominator
        is the same. Each with `n`, `only_first`, `only_second` and `p` (None without clips to compare).
    """
    from scipy.stats import binomtest

    tests: Row = {}
    for name, (among, event) in _masks(one, other).items():
        only_first, only_second = (int((among & a & ~b).sum()) for a, b in (event, event[::-1]))
        apart = only_first + only_second
        p = float(binomtest(only_first, apart, 0.5).pvalue) if apart else (1.0 if among.any() else None)
        tests[name] = {"n": int(among.sum()), "only_first": only_first, "only_second": only_second, "p": p}
    return tests


def _masks(one: Ints, other: Ints) -> dict[str, tuple[Bools, tuple[Bools, Bools]]]:
    """For each test (n,) masks: the clips that count, and the event in either run."""
    right = np.isin(one, RIGHT), np.isin(other, RIGHT)
    inconsistent = one == RIGHT_INCONSISTENT, other == RIGHT_INCONSISTENT
    everyone = np.ones(len(one), bool)
    both = np.isin(one, RIGHT_JUDGED) & np.isin(other, RIGHT_JUDGED)
    return {
        "right": (everyone, right),
        "right_inconsistent": (everyone, inconsistent),
        "headline": (both, inconsistent),
    }
