"""What the importance stage reports: one line a clip, and figures for each split."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from migr.clips.manifest import Clip
from migr.errors import InputError
from migr.files.records import Row
from migr.importance import trust
from migr.importance.fit import CrossScores, Scores, alternatives
from migr.importance.networks.experts import collapse
from migr.importance.table import is_score, known

LIMIT = 3.0  # of sentiment scores (CMU-MOSI's scale)


def sentiment_of(clip: Clip) -> float:
    """The clip's `sentiment`, NaN if it has none.

    Raises:
        InputError: It is no number in [-3, 3].
    """
    value = clip.extra.get("sentiment")
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LIMIT <= value <= LIMIT:
        raise InputError(f"clip {clip.clip_id!r}: sentiment must be a number in [-3, 3] or null, not {value!r}")
    return float(value)


def row_of(
    clip: Clip, i: int, result: CrossScores, modalities: Sequence[str], labels: Sequence[str], min_margin: float = 0.0
) -> Row:
    """The line of `importance.jsonl` for the clip at position i.

    `fold` is null where the final network scored it. `certain` stands there only with a `min_margin`: false says that
    the two largest importances are too close to start from one of them.
    """

    def weights(values: Tensor, names: Sequence[str]) -> dict[str, float]:
        return {name: round(value, 6) for name, value in zip(names, values[i].tolist(), strict=True)}

    scores, fold = result.scores, int(result.fold[i])
    target: Any = scores.target[i].item()
    ordered = scores.importance[i].sort(descending=True).values.tolist()
    margin = ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)
    row: Row = {
        "clip_id": clip.clip_id,
        "importance": weights(scores.importance, modalities),
        "dominant": modalities[int(scores.importance[i].argmax())],
        "margin": round(margin, 6),
        "target": round(target, 4) if is_score(scores.target) else labels[target],
    }
    if min_margin:
        row["certain"] = margin >= min_margin
    for name, values in scores.parts.items():
        row[name] = weights(values, result.net.axes.get(name, modalities))
    return {**row, "fold": fold if fold >= 0 else None, "model": result.models[i]}


def check_row(clip: Clip, i: int, scores: Scores, modalities: Sequence[str], mllm: Tensor | None) -> Row:
    """The line of `checks.jsonl`: what the independent estimates say of the clip at position i."""

    def drops(values: Tensor) -> dict[str, float]:
        pairs = zip(modalities, values.tolist(), strict=True)
        return {name: round(value, 4) for name, value in pairs if not math.isnan(value)}

    only = int(trust.alone(scores.take(torch.tensor([i])))[0])
    row = {
        "clip_id": clip.clip_id,
        "dominant": modalities[int(scores.importance[i].argmax())],
        "leave_one_out": drops(scores.drop[i]),
        "alone": None if only == trust.NONE else modalities[only],
    }
    return row if mllm is None else {**row, "mllm": drops(mllm)}


def planted_truth(clip: Clip) -> str | None:
    """The modality that was planted as dominant, where the manifest says so; read to measure, never to fit."""
    return (clip.extra.get("planted") or {}).get("dominant")


def truth_of(clips: Sequence[Clip], modalities: Sequence[str]) -> Tensor:
    """(n,) position of the planted dominant modality, `trust.NONE` where unknown or not among `modalities`."""
    named = [planted_truth(clip) for clip in clips]
    return torch.tensor([modalities.index(m) if m in modalities else trust.NONE for m in named])


def quality_correlation(clips: Sequence[Clip], importance: Tensor, modalities: Sequence[str]) -> float | None:
    """Spearman's ρ between differences of importance and of planted quality, over clips and pairs of modalities.

    None where clips have no planted quality, or nothing varies.
    """
    ours, planted = [], []
    for clip, weights in zip(clips, importance.tolist(), strict=True):
        quality = (clip.extra.get("planted") or {}).get("quality", {})
        pairs = [(m, k) for k, m in enumerate(modalities) if m in quality and m in clip.modalities]
        for a, (first, i) in enumerate(pairs):
            for second, j in pairs[a + 1 :]:
                ours.append(weights[i] - weights[j])
                planted.append(quality[first] - quality[second])
    if len(set(ours)) < 2 or len(set(planted)) < 2:
        return None
    return float(spearmanr(ours, planted)[0])


def measure(
    clips: Sequence[Clip],
    label: Tensor,
    scores: Scores,
    modalities: Sequence[str],
    score_figures: Callable[[Tensor, Tensor], Row],
) -> Row:
    """Figures of one split; `dominant_accuracy` and `quality_spearman` only where the clips were planted.

    Args:
        clips: The split's clips.
        label: Their labels.
        scores: Their scores.
        modalities: Names on the M axis.
        score_figures: The figures of predicted against true sentiment scores, each (n,).
    """
    have = known(label)
    share = torch.bincount(scores.importance.argmax(1), minlength=len(modalities)) / len(clips)
    measured: Row = {
        "n": len(clips),
        "label_accuracy": None,
        "dominant": dict(zip(modalities, share.tolist(), strict=True)),
        "dominant_accuracy": None,
        "quality_spearman": quality_correlation(clips, scores.importance, modalities),
    }
    if have.any() and is_score(label):
        measured["sentiment"] = {"fused": score_figures(scores.prediction[have], label[have])}
        for m, name in enumerate(modalities):
            rows = have & scores.present[:, m]
            alone = score_figures(scores.unimodal[rows, m, 0], label[rows]) if rows.any() else None
            measured["sentiment"][name] = alone
    elif have.any():
        measured["label_accuracy"] = {"fused": (scores.prediction == label)[have].float().mean().item()}
        for m, name in enumerate(modalities):
            rows = have & scores.present[:, m]
            right = (scores.unimodal[:, m].argmax(1) == label)[rows].float().mean().item() if rows.any() else None
            measured["label_accuracy"][name] = right
    truth = [planted_truth(clip) for clip in clips]
    n = len(truth) - truth.count(None)
    if n:
        measured["dominant_accuracy"] = {"majority": max(truth.count(name) for name in modalities) / n}
        for way, choice in alternatives(scores).items():
            right = sum(modalities[m] == name for m, name in zip(choice.tolist(), truth, strict=True))
            measured["dominant_accuracy"][way] = right / n
    return measured


def trust_of(
    clips: Sequence[Clip],
    label: Tensor,
    scores: Scores,
    fitted: Scores,
    fitted_label: Tensor,
    modalities: Sequence[str],
    mllm: Tensor,
    axes: Mapping[str, tuple[str, ...]],
) -> Row:
    """How far the scores of one split can be trusted.

    Args:
        clips: The split's clips.
        label: Their labels.
        scores: Their scores.
        fitted: K-fold scores of the train clips (temperatures are fitted on them).
        fitted_label: Their labels.
        modalities: Names on the M axis.
        mllm: (n, M) of `mllm.answer_drops`, NaN for clips that were not asked about.
        axes: `FusionNet.axes` of the network that gave the scores.
    """
    truth, dominant = truth_of(clips, modalities), scores.importance.argmax(1)
    one_out = trust.largest(scores.drop)
    estimates = {"leave-one-out (network)": one_out, "right alone (one head)": trust.alone(scores)}
    queried = ~mllm.isnan().all(1)
    if queried.any():
        estimates["leave-one-out (MLLM)"] = trust.largest(mllm)
    have = known(label)
    error = trust.prediction_errors(scores.logits[have], scores.target[have])
    figures: Row = {
        "agreement": {name: trust.agreement(dominant, other, truth) for name, other in estimates.items()},
        "calibration": {} if is_score(label) else trust.calibration(fitted, fitted_label, scores, label, modalities),
        "thresholds": trust.threshold_effect(scores.importance, one_out, truth),
        "prediction_space_correlation": trust.prediction_space_correlation(scores.fused[have], error),
        "collapse": {},
    }
    several = scores.present.sum(1) > 1
    for name, weights in scores.parts.items():
        if several.any() and (message := collapse(weights[several], axes.get(name, tuple(modalities)))):
            figures["collapse"][name] = message
    return {**figures, "mllm_asked": int(queried.sum())}
