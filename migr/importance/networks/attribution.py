"""Exact Shapley values over modalities, for networks whose logits do not split into parts of their own."""

from collections.abc import Callable
from itertools import combinations
from math import factorial

import torch
from torch import Tensor


def evidence(logits: Tensor, target: Tensor) -> Tensor:
    """How far a network speaks for the target, (n,): what contributions add up to. Ours.

    Emotions (n, C >= 2): logit_y − mean_k logit_k. Scores (n, 1): how far the score lies on the target's side of 0,
    sign(y) × score; 0 is the neutral sentiment.
    """
    if logits.shape[1] == 1:
        return logits[:, 0] * side(target)
    return logits.gather(1, target[:, None])[:, 0] - logits.mean(1)


def side(score: Tensor) -> Tensor:
    """+1 for scores of 0 and above, -1 below."""
    return torch.where(score < 0, -1.0, 1.0)


def coalitions(logits_of: Callable[[Tensor], Tensor], present: Tensor, target: Tensor) -> dict[int, Tensor]:
    """The evidence for the target from every subset of the modalities: bit mask -> (n,); 0 for nothing at all.

    Args:
        logits_of: Runs the network on the clips with these modalities, (n, M) bool -> (n, C).
        present: (n, M) bool; absent modalities are in no subset.
        target: (n,)
    """
    count = present.shape[1]
    values = {0: torch.zeros(len(present), device=present.device)}
    for mask in range(1, 1 << count):
        visible = present & torch.tensor([bool(mask >> m & 1) for m in range(count)], device=present.device)
        empty = ~visible.any(1)
        value = evidence(logits_of(torch.where(empty[:, None], present, visible)), target)
        values[mask] = torch.where(empty, 0.0, value)
    return values


def shapley(values: dict[int, Tensor], present: Tensor) -> Tensor:
    """Shapley value of each modality, (n, M); they add up to the evidence from all, absent ones get exactly 0.

    φ_m = Σ_{S ∌ m} |S|! (M − |S| − 1)! / M! · (v(S ∪ m) − v(S)) (Shapley 1953): 2^M − 1 forward passes, exact, and
    cheap for the three modalities that there are.
    """
    count = present.shape[1]
    columns = []
    for m in range(count):
        rest = [k for k in range(count) if k != m]
        total = torch.zeros(len(present), device=present.device)
        for size in range(count):
            weight = factorial(size) * factorial(count - size - 1) / factorial(count)
            for coalition in combinations(rest, size):
                mask = sum(1 << k for k in coalition)
                total = total + weight * (values[mask | 1 << m] - values[mask])
        columns.append(total)
    return torch.stack(columns, 1) * present


def importance_of(contributions: Tensor, gate: Tensor, present: Tensor) -> Tensor:
    """Importance: where the evidence for the target came from, and what the network listens to, (n, M). Ours.

    The mean of each modality's share of the positive contributions and of its `gate` (n, M); both sum to 1 and are 0
    where absent. The share alone is exactly 1 on every clip whose other modality speaks against the target, however
    clear that one is. Where no modality speaks for the target (the network reads another emotion) there is nothing to
    share, and the gate stands alone: the least negative contribution would name the modality that says least.
    """
    positive = contributions.relu() * present
    total = positive.sum(1, keepdim=True)
    share = positive / total.clamp_min(torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, (share + gate) / 2, gate)
