"""Intervals, seeds and paired tests of the sentiment field's figures, all from one bootstrap over clips."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from migr.files.records import Row
from migr.sentiment.metrics import (
    LEFT_OUT,
    Floats,
    Ints,
    accuracy_of,
    f1_of,
    figures,
    read_scores,
    recall_of,
    sortings,
)
from migr.sentiment.sets import SentimentSet
from migr.statistics import interval

Draws = NDArray[np.float32]
_FLIPS = 10_000


def resampled(
    dataset: SentimentSet, prediction: Floats, truth: Floats | Ints, convention: str, weights: Draws
) -> dict[str, NDArray[np.float64]]:
    """Every figure on every resample.

    Args:
        dataset, prediction, truth, convention: As for `metrics.figures`.
        weights: (R, n) how often each clip is drawn.

    Returns:
        Figure -> (R,), NaN where it is not defined.
    """
    figures = {}
    swapped = convention in ("kuda", "mult")
    for sorting in sortings(dataset, prediction, truth, convention):
        cells, k = sorting.cells(), sorting.classes
        place = (cells[:, None] == np.arange(k * (k + 1))) & (cells != LEFT_OUT)[:, None]
        tables = (weights @ place.astype(np.float32)).astype(np.float64).reshape(-1, k, k + 1)
        figures[sorting.accuracy] = accuracy_of(tables)
        if sorting.f1 is not None:
            figures[sorting.f1] = f1_of(tables, swapped)
        if not dataset.is_score:
            figures["uar"] = recall_of(tables)
    if dataset.is_score:
        p, y = (read_scores(dataset, x, convention).astype(np.float64) for x in (prediction, truth.astype(np.float32)))
        read = ~np.isnan(p)
        p, y, w = p[read], y[read], weights[:, read].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            count = w.sum(1)
            figures["MAE"] = w @ np.abs(p - y) / count
            mp, my = w @ p / count, w @ y / count
            spread = (w @ p**2 / count - mp**2) * (w @ y**2 / count - my**2)
            figures["Corr"] = np.where(
                spread > 0, (w @ (p * y) / count - mp * my) / np.sqrt(np.maximum(spread, 0)), np.nan
            )
    return figures


def draw(n: int, resamples: int, seed: int) -> Draws:
    """How often each of n clips is drawn in each resample, (R, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(np.float32)


class Scored:
    """One system's predictions with every seed, and its figures.

    Args:
        dataset: Which figures.
        seeds: Name of the seed -> (n,) predictions, in one order of clips.
        truth: (n,)
        convention: Of `metrics.CONVENTIONS`.
        weights: (R, n) of `draw`.
    """

    def __init__(
        self, dataset: SentimentSet, seeds: dict[str, Floats], truth: Floats | Ints, convention: str, weights: Draws
    ) -> None:
        self.dataset, self.seeds, self.truth = dataset, seeds, truth
        self.each = {name: figures(dataset, p, truth, convention) for name, p in seeds.items()}
        draws = [resampled(dataset, p, truth, convention, weights) for p in seeds.values()]
        # the interval is of the seeds' mean: clips are drawn, seeds are not
        self.draws = {name: np.mean([draw[name] for draw in draws], axis=0) for name in draws[0]}

    def row(self) -> Row:
        """The figures in JSON: means over seeds by MMSA's names, `_std` (a population's, as MMSA's), `_ci95`, seeds."""
        figures: Row = {"n": len(self.truth), "n_seeds": len(self.seeds)}
        for name, draws in self.draws.items():
            values = [row[name] for row in self.each.values()]
            known = [value for value in values if value is not None]
            whole = len(known) == len(values)
            figures[name] = float(np.mean(known)) if whole else None
            figures[f"{name}_std"] = float(np.std(known)) if whole and len(known) > 1 else None
            figures[f"{name}_ci95"] = interval(draws) if whole else None
        figures["seeds"] = self.each
        every = np.concatenate(list(self.seeds.values()))
        unread = ~np.isfinite(every) if self.dataset.is_score else (every < 0) | (every >= len(self.dataset.labels))
        figures["share_unread"] = float(unread.mean())
        if self.dataset.is_score:
            figures["share_exactly_0"] = float((every == 0).mean())
            figures["share_true_0"] = float((self.truth == 0).mean())
            figures["error_by_score"] = self.error_by_score()
        return figures

    def errors(self) -> NDArray[np.float64]:
        """Each clip's error, mean over seeds, (n,): absolute, an unread one as far as the range is; or 0 and 1."""
        if not self.dataset.is_score:
            return np.mean([p != self.truth for p in self.seeds.values()], axis=0).astype(np.float64)
        far = 2 * self.dataset.bound
        distances = [np.nan_to_num(np.abs(p.astype(np.float64) - self.truth), nan=far) for p in self.seeds.values()]
        return np.mean(distances, axis=0)

    def error_by_score(self) -> list[Row]:
        """Mean absolute error and mean prediction by rounded true score (steps of 1, of 0.5 within ±1)."""
        step = 1.0 if self.dataset.bound > 1 else 0.5
        place = np.round(self.truth / step)
        errors = self.errors()
        every = np.stack(list(self.seeds.values()))
        rows = []
        for value in np.unique(place):
            here = place == value
            rows.append(
                {
                    "score": float(value * step) + 0.0,
                    "n": int(here.sum()),
                    "error": float(errors[here].mean()),
                    "predicted": None if np.isnan(every[:, here]).all() else float(np.nanmean(every[:, here])),
                }
            )
        return rows


def compare(first: Scored, second: Scored, seed: int) -> Row:
    """Paired differences (second - first) with percentile intervals, and a sign-flip test of the clips' errors.

    Returns:
        Figure -> difference and difference_ci95; `error`: mean difference of the errors, and p of a two-sided paired
        permutation test (10,000 random sign flips of the clips' differences).
    """
    differences: Row = {}
    for name, draws in second.draws.items():
        means: list[Any] = [[row[name] for row in side.each.values()] for side in (first, second)]
        known = all(value is not None for side in means for value in side)
        differences[name] = {
            "difference": float(np.mean(means[1]) - np.mean(means[0])) if known else None,
            "difference_ci95": interval(draws - first.draws[name]) if known else None,
        }
    change = second.errors() - first.errors()
    differences["error"] = {"difference": float(change.mean()), "p": sign_flip(change, seed)}
    return differences


def sign_flip(change: NDArray[np.float64], seed: int) -> float:
    """Two-sided p of a paired permutation test: how often random signs give as large a mean as was seen."""
    rng, total = np.random.default_rng(seed), abs(change.sum())
    above = 0
    for _ in range(0, _FLIPS, 1000):
        signs = rng.integers(0, 2, (1000, len(change)), dtype=np.int8) * 2 - 1
        above += int((np.abs(signs.astype(np.float64) @ change) >= total - 1e-12).sum())
    return (above + 1) / (_FLIPS + 1)


def agreeing(names: Sequence[Sequence[str]]) -> list[str]:
    """The clips that all runs have, in the first one's order."""
    shared = set(names[0]).intersection(*names[1:])
    return [name for name in names[0] if name in shared]
