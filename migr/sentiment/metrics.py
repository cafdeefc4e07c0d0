"""The figures of the sentiment field, exactly as MMSA's `metricsTop.py` (thuiar/MMSA 2.2.1) computes them.

All of it in float32, as there: predictions that were read from text hit the thresholds, and `float32(0.1) <= 0.1` is
true where the same number cast to float64 is not. With MMSA's key names:

    MOSI, MOSEI     Has0_acc_2, Has0_F1_score   all clips, positive is >= 0
                    Non0_acc_2, Non0_F1_score   clips whose truth is not 0, positive is > 0
                    Mult_acc_5, Mult_acc_7      both clipped to ±2 or ±3, rounded (halves to even), equal
                    MAE, Corr                   not clipped
    SIMS, SIMS-v2   all of it clipped to ±1; intervals are closed on the right
                    Mult_acc_2, F1_score        positive is > 0; Mult_acc_2_weak: clips with |truth| <= 0.4
                    Mult_acc_3, Mult_acc_5      cut at ±0.1; at ±0.1 and ±0.7
    MELD, CHERMA    acc, weight_F1 (MSE-Adapter's names), uar

A prediction that could not be read (NaN, or no class) is wrong in every accuracy and lowers recall in F1; MAE and Corr
are over those that were read. Other codebases define some of it otherwise; `CONVENTIONS` has them by name.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from migr.sentiment.sets import SentimentSet

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
LEFT_OUT = -1  # a clip that a figure does not count
CONVENTIONS = {
    "mmsa": "as MMSA, Self-MM, ALMT",
    "kuda": "as MMSA, but F1 with its arguments swapped: weighted by the sizes of the predicted classes (KuDA)",
    "mult": "0 is negative and counts (Acc-2 by > 0 on all clips), F1 with its arguments swapped (MulT)",
    "mse": "as MMSA, but an answer that could not be read counts as 0.0 or as the first class (MSE-Adapter)",
}
_BINS = {"2": (0.0,), "3": (-0.1, 0.1), "5": (-0.7, -0.1, 0.1, 0.7)}


@dataclass(frozen=True)
class Sorting:
    """Clips sorted into K classes, by prediction and by truth: what an accuracy and an F1 are made of.

    Attributes:
        predicted: (n,) 0 to K - 1; K where the prediction is no class.
        true: (n,) 0 to K - 1; `LEFT_OUT` where the clip does not count.
        classes: K.
        accuracy, f1: Names of the figures, or None.
    """

    predicted: Ints
    true: Ints
    classes: int
    accuracy: str
    f1: str | None = None

    def cells(self) -> Ints:
        """(n,) place of each clip in the table K x (K + 1), row by row; `LEFT_OUT` where it does not count."""
        return np.where(self.true == LEFT_OUT, LEFT_OUT, self.true * (self.classes + 1) + self.predicted)


def sortings(
    dataset: SentimentSet, prediction: Floats, truth: Floats | Ints, convention: str = "mmsa"
) -> list[Sorting]:
    """Every way in which the set's figures sort its clips.

    Args:
        dataset: Which figures.
        prediction: (n,) float32 scores, NaN where unread; or (n,) class numbers, anything else where unread.
        truth: (n,) float32 scores, or class numbers.
        convention: Of `CONVENTIONS`.
    """
    if not dataset.is_score:
        k = len(dataset.labels)
        known = (prediction >= 0) & (prediction < k)
        codes = np.where(known, prediction, 0 if convention == "mse" else k).astype(np.int64)
        return [Sorting(codes, truth.astype(np.int64), k, "acc", "weight_F1")]
    p, y = read_scores(dataset, prediction, convention), truth.astype(np.float32)
    unread = np.isnan(p)

    def sort(predicted: NDArray, true: NDArray, k: int, accuracy: str, f1: str | None = None) -> Sorting:
        return Sorting(np.where(unread, k, predicted.astype(np.int64)), true.astype(np.int64), k, accuracy, f1)

    if dataset.bound == 1.0:
        p, y = np.clip(p, -1.0, 1.0), np.clip(y, -1.0, 1.0)
        rows = []
        for name, edges in _BINS.items():
            sides = [np.sum([x > np.float32(edge) for edge in edges], axis=0) for x in (p, y)]
            f1 = "F1_score" if name == "2" else None
            rows.append(sort(sides[0], sides[1], len(edges) + 1, f"Mult_acc_{name}", f1))
            if name == "2":
                weak = np.where(np.abs(y) <= np.float32(0.4), sides[1], LEFT_OUT)
                rows.append(sort(sides[0], weak, 2, "Mult_acc_2_weak"))
        return rows
    rows = []
    if convention == "mult":
        rows.append(sort(p > 0, y > 0, 2, "Acc_2", "F1_score"))
    else:
        rows.append(sort(p >= 0, y >= 0, 2, "Has0_acc_2", "Has0_F1_score"))
        rows.append(sort(p > 0, np.where(y == 0, LEFT_OUT, y > 0), 2, "Non0_acc_2", "Non0_F1_score"))
    for bound in (2, 3):
        p_step, y_step = (np.round(np.clip(np.nan_to_num(x), -bound, bound)) + bound for x in (p, y))
        rows.append(sort(p_step, y_step, 2 * bound + 1, f"Mult_acc_{2 * bound + 1}"))
    return rows


def read_scores(dataset: SentimentSet, prediction: Floats, convention: str = "mmsa") -> Floats:
    """Predicted scores in float32, NaN where unread, clipped where the set's figures are."""
    p = prediction.astype(np.float32)
    p = np.where(np.isfinite(p), p, np.float32(0.0 if convention == "mse" else np.nan))
    return np.clip(p, -1.0, 1.0) if dataset.bound == 1.0 else p


def accuracy_of(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Accuracy from confusion tables (..., K true, K + 1 predicted); NaN where there are no clips."""
    k = tables.shape[-2]
    with np.errstate(invalid="ignore"):
        right: NDArray[np.float64] = np.trace(tables[..., :k], axis1=-2, axis2=-1) / tables.sum((-2, -1))
    return right


def f1_of(tables: NDArray[np.float64], swapped: bool = False) -> NDArray[np.float64]:
    """F1 of each class, weighted by how many clips truly have it, or if `swapped` are predicted to.

    Swapping scikit-learn's arguments leaves each class's F1 as it is and changes the weights.
    """
    k = tables.shape[-2]
    right = np.diagonal(tables[..., :k], axis1=-2, axis2=-1)
    true, predicted = tables.sum(-1), tables[..., :k].sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(true + predicted > 0, 2 * right / (true + predicted), 0.0)
        weights = predicted if swapped else true
        result: NDArray[np.float64] = (each * weights).sum(-1) / weights.sum(-1)
    return result


def recall_of(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean recall over the classes that truly occur."""
    true = tables.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = np.diagonal(tables[..., :-1], axis1=-2, axis2=-1) / true
    result: NDArray[np.float64] = np.nanmean(np.where(true > 0, recalls, np.nan), axis=-1)
    return result


def table_of(sorting: Sorting) -> NDArray[np.float64]:
    """The confusion table (K, K + 1); the last column counts predictions that are no class."""
    cells = sorting.cells()
    counts = np.bincount(cells[cells != LEFT_OUT], minlength=sorting.classes * (sorting.classes + 1))
    return counts.reshape(sorting.classes, sorting.classes + 1).astype(np.float64)


def figures(
    dataset: SentimentSet, prediction: Floats, truth: Floats | Ints, convention: str = "mmsa"
) -> dict[str, float | None]:
    """The set's figures over n clips, by MMSA's names, unrounded; None where one is not defined."""
    values: dict[str, float | None] = {}
    swapped = convention in ("kuda", "mult")
    for sorting in sortings(dataset, prediction, truth, convention):
        table = table_of(sorting)
        values[sorting.accuracy] = float(accuracy_of(table))
        if sorting.f1 is not None:
            values[sorting.f1] = float(f1_of(table, swapped))
        if not dataset.is_score:
            values["uar"] = float(recall_of(table))
    if dataset.is_score:
        p, y = read_scores(dataset, prediction, convention), truth.astype(np.float32)
        y = np.clip(y, -1.0, 1.0) if dataset.bound == 1.0 else y
        read = ~np.isnan(p)
        values["MAE"] = float(np.mean(np.absolute(p - y)[read])) if read.any() else None
        varied = read.sum() > 1 and np.ptp(p[read]) > 0 and np.ptp(y[read]) > 0
        values["Corr"] = float(np.corrcoef(p[read], y[read])[0][1]) if varied else None
    return {name: None if value is None or np.isnan(value) else value for name, value in values.items()}


def selection(dataset: SentimentSet) -> tuple[str, bool]:
    """What a run is chosen by on the valid split, and whether more is better: MAE, or weighted F1."""
    return ("MAE", False) if dataset.is_score else ("weight_F1", True)
