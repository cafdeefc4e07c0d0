"""How far to trust a score: calibration, agreement with independent estimates, and what a threshold on margins buys."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from migr.files.records import Row
from migr.importance.fit import Scores, predicted

NONE = -1  # an estimate that has no opinion on a clip
RIGHT_SCORE = 0.5  # a head alone "predicts" a sentiment score that it misses by less than this: the Acc-7 step
THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(10))


def calibration_error(probabilities: Tensor, label: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): Σ_b n_b/n · |accuracy_b − confidence_b| over equal-width bins.

    Args:
        probabilities: (n, C).
        label: (n,) class indices.
        bins: Equal parts of [0, 1].
    """
    confidence, prediction = probabilities.max(1)
    right = (prediction == label).double()
    place = (confidence * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, place, right - confidence.double())
    return float(gap.abs().sum() / len(label))


def temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature T that makes softmax(logits / T) most likely (Guo et al. 2017), between 1/20 and 20."""

    def loss(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / np.exp(log_t), label))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def calibration(fitted: Scores, fitted_label: Tensor, scores: Scores, label: Tensor, names: Sequence[str]) -> Row:
    """Calibration error of the fused head and each unimodal head on labelled clips, as they are and with a temperature.

    Args:
        fitted: K-fold scores of the train clips, on which temperatures are fitted.
        fitted_label: Their labels.
        scores: The clips to measure on.
        label: Their labels, -1 where unknown.
        names: Modalities.

    Returns:
        Head -> {n, ece, temperature, ece_scaled}; a head without clips is left out.
    """
    figures: Row = {}
    for head, name in enumerate(("fused", *names)):
        rows, fitted_rows = label >= 0, fitted_label >= 0
        logits, fitted_logits = scores.logits, fitted.logits
        if head:
            rows, fitted_rows = rows & scores.present[:, head - 1], fitted_rows & fitted.present[:, head - 1]
            logits, fitted_logits = scores.unimodal[:, head - 1], fitted.unimodal[:, head - 1]
        if not rows.any() or not fitted_rows.any():
            continue
        t = temperature(fitted_logits[fitted_rows], fitted_label[fitted_rows])
        figures[name] = {
            "n": int(rows.sum()),
            "ece": calibration_error(logits[rows].softmax(1), label[rows]),
            "temperature": t,
            "ece_scaled": calibration_error((logits[rows] / t).softmax(1), label[rows]),
        }
    return figures


def largest(drop: Tensor) -> Tensor:
    """The modality whose absence costs most, (n,), from (n, M) with NaN where that cannot be said; `NONE` if nowhere.

    A clip with one modality has no opinion, nor has one that loses nothing by any absence.
    """
    filled = drop.nan_to_num(nan=-torch.inf)
    return torch.where(filled.max(1).values > 0, filled.argmax(1), NONE)


def alone(scores: Scores) -> Tensor:
    """The only modality whose own head predicts the target, (n,); `NONE` where none or several do.

    The rule by which AVERE (github.com/ihp-lab/AVERE) sorts DFEW's clips, with heads in place of captions. A clip
    of one modality has no opinion.
    """
    m = scores.present.shape[1]
    if scores.logits.shape[1] == 1:
        right = (scores.unimodal[..., 0] - scores.target[:, None]).abs() < RIGHT_SCORE
    else:
        right = scores.unimodal.argmax(2) == scores.target[:, None]
    right &= scores.present
    single = (right.sum(1) == 1) & (scores.present.sum(1) > 1)
    return torch.where(single, (right * torch.arange(m)).sum(1), NONE)


def agreement(dominant: Tensor, estimate: Tensor, truth: Tensor | None = None) -> Row:
    """How often an independent estimate names the same modality, over the clips where it has an opinion.

    Args:
        dominant: (n,) by importance.
        estimate: (n,) by the other way, `NONE` where it has no opinion.
        truth: (n,) planted, `NONE` where unknown.

    Returns:
        n (clips with an opinion), share (of all clips), agree, kappa (Cohen's, null where one of them is constant), and
        `right`: how often the estimate itself is right, where the truth is known.
    """
    judged = estimate != NONE
    by_importance, by_estimate = dominant[judged], estimate[judged]
    figures: Row = {
        "n": int(judged.sum()),
        "share": float(judged.double().mean()),
        "agree": None,
        "kappa": None,
        "right": None,
    }
    if len(by_importance):
        figures["agree"] = float((by_importance == by_estimate).double().mean())
        if len(by_importance.unique()) > 1 and len(by_estimate.unique()) > 1:
            figures["kappa"] = float(cohen_kappa_score(by_importance.numpy(), by_estimate.numpy()))
        if truth is not None and (both := judged & (truth != NONE)).any():
            figures["right"] = float((estimate == truth)[both].double().mean())
    return figures


def margins(importance: Tensor) -> Tensor:
    """Largest minus second largest importance, (n,)."""
    ordered = importance.sort(1, descending=True).values
    return ordered[:, 0] - ordered[:, 1] if ordered.shape[1] > 1 else ordered[:, 0]


def threshold_effect(importance: Tensor, estimate: Tensor, truth: Tensor | None = None) -> list[Row]:
    """What is left, and how good it is, if clips with a margin under a threshold are called uncertain.

    Returns:
        For each of `THRESHOLDS`: min_margin, kept (share of the clips), agree (with `estimate`, among kept clips where
        it has an opinion) and, with planted truth, right (dominant accuracy among kept clips).
    """
    size, dominant = margins(importance), importance.argmax(1)
    rows = []
    for threshold in THRESHOLDS:
        certain = size >= threshold
        voiced = certain & (estimate != NONE)
        row: Row = {"min_margin": threshold, "kept": float(certain.double().mean()), "agree": None, "right": None}
        if voiced.any():
            row["agree"] = float((dominant == estimate)[voiced].double().mean())
        if truth is not None and (both := certain & (truth != NONE)).any():
            row["right"] = float((dominant == truth)[both].double().mean())
        rows.append(row)
    return rows


def prediction_errors(logits: Tensor, target: Tensor) -> Tensor:
    """ε of each clip, (n,): 1 − p(emotion), or |score − target|."""
    if logits.shape[1] == 1:
        return (predicted(logits) - target).abs()
    return 1 - logits.softmax(1).gather(1, target[:, None])[:, 0]


def pairs(fused: Tensor, error: Tensor, limit: int = 1000) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances ‖z_i − z_j‖ and differences |ε_i − ε_j| of all pairs of the first `limit` clips."""
    z, e = fused[:limit].double(), error[:limit].double()
    upper = torch.triu_indices(len(z), len(z), 1)
    return torch.pdist(z).numpy(), (e[upper[0]] - e[upper[1]]).abs().numpy()


def prediction_space_correlation(fused: Tensor, error: Tensor) -> float | None:
    """Prediction Space Correlation: does where a clip lies in the fused space tell how wrong its prediction is?

    AGFN names it (the correlation between a feature's location and its prediction error) without a formula. Ours:
    Pearson's r, over all pairs of clips, between their distance ‖z_i − z_j‖ in the fused space and the difference of
    their errors |ε_i − ε_j| (a Mantel statistic). 0: errors lie anywhere; near 1: they come from one region.

    Args:
        fused: (n, hidden) fused vectors; the first 1000 are used.
        error: (n,) of `prediction_errors`.

    Returns:
        r, or None where it is undefined: fewer than 3 clips, or all distances or differences the same.
    """
    if len(fused) < 3:
        return None
    distance, difference = pairs(fused, error)
    if np.ptp(distance) == 0 or np.ptp(difference) == 0:
        return None
    return float(np.corrcoef(distance, difference)[0, 1])
