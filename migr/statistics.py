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
