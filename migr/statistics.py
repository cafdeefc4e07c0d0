"""Bootstrap intervals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def proportion(successes: int, n: int, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """One plain proportion with its bootstrap interval: `{"accuracy", "accuracy_ci95", "n"}`, None where n is 0."""
    if n == 0:
        return {"accuracy": None, "accuracy_ci95": None, "n": 0}
    draws = np.random.default_rng(seed).binomial(n, successes / n, resamples) / n
    return {"accuracy": successes / n, "accuracy_ci95": interval(draws), "n": n}


def interval(values: Floats) -> list[float] | None:
    """The 2.5th and 97.5th percentile, over the resamples in which the rate exists."""
    values = values[~np.isnan(values)]
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])] if len(values) else None


def resampled_sums(table: Any, resamples: int = 2000, seed: int = 0) -> Floats:
    """Sums of a table's rows: over all of them, then over each bootstrap resample of them.

    Every rate that is made of sums, and every difference of such rates, takes its interval from here; columns of two
    runs side by side make it a paired one.

    Args:
        table: (n, k) a row a clip.
        resamples: Bootstrap resamples.
        seed: Their seed.

    Returns:
        (1 + resamples, k).
    """
    table = np.asarray(table, np.float64)
    n = len(table)
    sums = np.zeros((1 + resamples, table.shape[1]))
    sums[0] = table.sum(0)
    generator = np.random.default_rng(seed)
    step = max(1, 1_000_000 // max(n, 1))
    for start in range(1, 1 + resamples if n else 1, step):
        count = min(step, 1 + resamples - start)
        weights = generator.multinomial(n, np.full(n, 1 / n), count)
        sums[start : start + count] = weights @ table
    return sums


def estimate(name: str, values: Floats) -> dict[str, Any]:
    """A rate and its interval: `{name, name_ci95}`, None where it does not exist.

    Args:
        name: The rate's.
        values: (1 + resamples,) the rate itself, then that of each resample; NaN where it does not exist.
    """
    exists = not np.isnan(values[0])
    return {name: float(values[0]) if exists else None, f"{name}_ci95": interval(values[1:]) if exists else None}


def quotient(parts: Floats, wholes: Floats) -> Floats:
    """Parts over wholes, NaN where a whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(wholes == 0, np.nan, parts / wholes)
