"""How far the second description of a text follows the first one's emotion, beyond what both owe to the clip. Ours.

The model of a coherent writer: with probability q the second description takes the first one's emotion e1, else its
own, drawn independently of e1 within a stratum (clips of one label, dominant modality and order of writing, where
these are known). Then, with p the shares within a stratum,

    P(e2 = e1) - sum_e p(e1 = e) p(e2 = e)  =  q (1 - sum_e p(e1 = e)^2),

so that q is the quotient of both sides' sums over the strata: the slope of the second's emotion on the first's. It is 0
for independent descriptions and 1 for copies. Where the first always says the same within its stratum, nothing can be
known (the denominator is 0). What both descriptions share because the clip itself is so, beyond label and dominant
modality, is counted as coherence: on real clips the figure is an upper bound.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from migr.files.records import Row
from migr.statistics import Floats, estimate, quotient


def measure(rows: Sequence[Row], resamples: int, seed: int) -> dict[str, Any]:
    """Coherence of texts, with percentile bootstrap intervals over them (95 %).

    Args:
        rows: `label`, `dominant` (or None), `order` (modalities of the first two descriptions) and `emotions` (what a
            judge reads in either; None where it cannot tell, or there is none).
        resamples: Bootstrap resamples.
        seed: Their seed.

    Returns:
        `n` texts and `n_read` with both emotions; `agreement` P(e2 = e1), `expected` if they were independent,
        `coherence` q, each with its interval; the same `by_dominant` and `by_first` modality.
    """
    read = [row for row in rows if None not in row["emotions"]]
    figures = {"n": len(rows), **_coherence(read, resamples, seed), "by_dominant": {}, "by_first": {}}
    for group, of in (("by_dominant", lambda row: row["dominant"]), ("by_first", lambda row: row["order"][0])):
        for modality in sorted({of(row) for row in read if of(row)}):
            figures[group][modality] = _coherence([row for row in read if of(row) == modality], resamples, seed)
    return figures


def _coherence(rows: Sequence[Row], resamples: int, seed: int) -> Row:
    numbers: dict[Hashable, int] = {}
    emotions: dict[str, int] = {}
    cells = np.zeros((len(rows), 3), int)
    for i, row in enumerate(rows):
        place = (row["label"], row["dominant"], *row["order"])
        codes = (emotions.setdefault(emotion, len(emotions)) for emotion in row["emotions"])
        cells[i] = (numbers.setdefault(place, len(numbers)), *codes)
    unique, counts = np.unique(cells, axis=0, return_counts=True)
    n = len(rows)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, resamples) if n else np.zeros((resamples, 0))
    parts = np.zeros((3, 1 + resamples))  # same emotion, expected, and the first one's chance to meet itself
    every = np.vstack([counts, draws]).astype(np.float64)
    for stratum in range(len(numbers)):
        own = unique[:, 0] == stratum
        size = every[:, own].sum(1)
        first, second = (_shares(every[:, own], unique[own, k], len(emotions), size) for k in (1, 2))
        same = every[:, own] @ (unique[own, 1] == unique[own, 2]).astype(np.float64)
        # over pairs of different texts: a text's own two emotions are no independent draws
        others = np.maximum(size - 1, 1)
        parts += [
            same,
            np.where(size > 1, (size**2 * (first * second).sum(1) - same) / others, same),
            np.where(size > 1, (size**2 * (first**2).sum(1) - size) / others, size),
        ]
    whole = every.sum(1)
    q = quotient(parts[0] - parts[1], np.where(whole - parts[2] > 1e-9, whole - parts[2], 0))
    return {
        "n_read": n,
        **estimate("agreement", quotient(parts[0], whole)),
        **estimate("expected", quotient(parts[1], whole)),
        **estimate("coherence", q),
    }


def _shares(counts: Floats, codes: np.ndarray, emotions: int, size: Floats) -> Floats:
    """(resamples, emotions) of a stratum's counts (resamples, cells)."""
    table = np.zeros((len(counts), emotions))
    for cell, code in enumerate(codes):
        table[:, code] += counts[:, cell]
    return table / np.maximum(size, 1)[:, None]
