"""What every fusion network does first: standardise each modality's features, project them, read them alone."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Reading(nn.Module):
    """Standardisation (by statistics saved with the weights), one projection and one unimodal head a modality.

    With C >= 2 classes the head gives C logits. With one (a sentiment score) it gives two numbers, the location μ and
    the log-scale log b of a Laplace distribution: maximum likelihood under it is the L1 loss weighed by how sure the
    head is, and its entropy 1 + log 2b takes the place of a class distribution's in the entropy gate. Ours.

    Args:
        dims: Feature size of every modality.
        n_classes: Number of emotions; 1 for a sentiment score.
        hidden: Size of a projected modality.
        dropout: Dropout on the features and behind the projection.
    """

    def __init__(self, dims: dict[str, int], n_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.modalities = tuple(dims)
        for name, dim in dims.items():
            self.register_buffer(f"mean_{name}", torch.zeros(dim))
            self.register_buffer(f"std_{name}", torch.ones(dim))
        self.project = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Dropout(dropout), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(hidden)
                )
                for name, dim in dims.items()
            }
        )
        size = n_classes if n_classes > 1 else 2
        self.unimodal = nn.ModuleDict({name: nn.Linear(hidden, size) for name in dims})

    def drop_behind_norm(self) -> None:
        """Move each projection's dropout behind its normalisation, before anything is learned.

        In front, its noise is part of what the norm divides by while the network learns and no longer afterwards, so
        that all tokens, and scores with them, come out too large ("variance shift", arXiv 1801.05134). Not the order
        of networks that are stored.
        """
        for layers in self.project.values():
            assert isinstance(layers, nn.Sequential)
            layers[3], layers[4] = layers[4], layers[3]

    @torch.no_grad()
    def set_statistics(self, features: dict[str, Tensor], present: Tensor) -> None:
        """Take the mean and deviation of each feature over those training clips that have its modality."""
        for index, name in enumerate(self.modalities):
            rows = features[name][present[:, index]]
            if len(rows):
                self.get_buffer(f"mean_{name}").copy_(rows.mean(0))
                std = rows.std(0, correction=0)
                self.get_buffer(f"std_{name}").copy_(torch.where(std > 1e-6, std, 1.0))  # 1: a constant feature

    def forward(
        self, features: dict[str, Tensor], present: Tensor, shift: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Project and read n clips.

        Args:
            features: Modality -> (n, dim) raw features, or (n, T, dim) of T tokens. What stands in the rows of absent
                modalities is never read.
            present: (n, M) bool, which modality a clip has; at least one each.
            shift: Modality -> as `features`, added to the standardised features of present modalities.

        Returns:
            u of shape (n, M, hidden), or (n, M, T, hidden), 0 where absent, and the unimodal heads' outputs (n, M, C),
            or (n, M, 2); the heads read the mean of the tokens.
        """
        assert present.any(1).all(), "a clip with no modality"
        tokens, unimodal = [], []
        for index, name in enumerate(self.modalities):
            x = (features[name] - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"std_{name}")
            if shift is not None:
                x = x + shift[name]
            mask = present[:, index].view(-1, *[1] * (x.dim() - 1))
            u = self.project[name](torch.where(mask, x, 0.0))
            tokens.append(torch.where(mask, u, 0.0))
            unimodal.append(self.unimodal[name](u if u.dim() == 2 else u.mean(1)))
        return torch.stack(tokens, 1), torch.stack(unimodal, 1)


def entropy_of(unimodal: Tensor, n_classes: int) -> Tensor:
    """Entropy in nats of what each unimodal head says: (n, M, C) or (n, M, 2) -> (n, M). A Laplace's is 1 + log 2b."""
    if n_classes > 1:
        return torch.special.entr(unimodal.softmax(-1)).sum(-1)
    return 1 + math.log(2) + log_scale(unimodal)


def log_scale(unimodal: Tensor) -> Tensor:
    """log b of the heads' Laplace distributions, kept within e^±3 of 1: sure heads must not run away."""
    return 3 * torch.tanh(unimodal[..., 1] / 3)


def masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the last axis among the present entries; the others get exactly 0."""
    return scores.masked_fill(~present, -torch.inf).softmax(-1)


def fusion_loss(out: Any, target: Tensor, unimodal_weight: float, own: Tensor | None = None) -> Tensor:
    """The fused head's loss + `unimodal_weight` × the mean loss of the present unimodal heads, of any network's output.

    Emotions (integer `target`): cross-entropy for all. Sentiment scores (floating point): L1 for the fused head,
    Laplace likelihood |y − μ| / b + log b for the unimodal heads. An output with a `fused_loss` says what the fused
    head's is. `own` (n, M): labels of the modalities themselves, where a data set has them; else the heads learn the
    clip's.
    """
    if hasattr(out, "fused_loss"):
        fused = out.fused_loss(target)
    elif target.is_floating_point():
        fused = F.l1_loss(out.logits[:, 0], target)
    else:
        fused = F.cross_entropy(out.logits, target)
    each = log_likelihood(out.unimodal, target if own is None else own)
    return fused - unimodal_weight * each[out.present].mean()


def log_likelihood(unimodal: Tensor, target: Tensor) -> Tensor:
    """log p(target) by every unimodal head, (n, M); for scores the Laplace log-density, less its constant log 2.

    `target` is (n,), or (n, M) with one for each head.
    """
    each = target if target.dim() == 2 else target[:, None].expand(unimodal.shape[:2])
    if target.is_floating_point():
        spread = log_scale(unimodal)
        return -(unimodal[..., 0] - each).abs() / spread.exp() - spread
    return -F.cross_entropy(unimodal.transpose(1, 2), each, reduction="none")
