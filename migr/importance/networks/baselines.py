"""Concatenation, the fusion that the gates are compared with."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from migr.importance.networks.attribution import coalitions, shapley
from migr.importance.networks.reading import Reading, entropy_of, masked_softmax


@dataclass(frozen=True)
class ConcatConfig:
    """Shape of a `ConcatFusion`; the fields of `FusionConfig`."""

    dims: dict[str, int]
    n_classes: int
    hidden: int = 64
    tau: float = 0.5
    dropout: float = 0.3


class ConcatOutput(NamedTuple):
    """What one forward pass says about n clips."""

    logits: Tensor  # (n, C)
    unimodal: Tensor  # (n, M, C); (n, M, 2) with one class
    gate: Tensor  # (n, M) of the unimodal heads' entropies: no part of the fusion, half of the importance
    tokens: Tensor  # (n, M, hidden) u
    fused: Tensor  # (n, hidden)
    present: Tensor  # (n, M) bool

    def parts(self) -> dict[str, Tensor]:
        """It weighs nothing."""
        return {}


class ConcatFusion(nn.Module):
    """The projected modalities side by side (0 where absent), one hidden layer, a head; importance by Shapley values.

    It reads the modalities with the same `Reading` as the gated networks and learns with the same losses, so that only
    the way of fusing differs.
    """

    axes: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, config: ConcatConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(config.dims)
        d = config.hidden
        self.reading = Reading(config.dims, config.n_classes, d, config.dropout)
        self.merge = nn.Sequential(nn.Linear(d * len(config.dims), d), nn.GELU(), nn.Dropout(config.dropout))
        self.head = nn.Linear(d, config.n_classes)
        self.undecayed: list[nn.Parameter] = []

    def forward(
        self, features: dict[str, Tensor], present: Tensor, shift: dict[str, Tensor] | None = None
    ) -> ConcatOutput:
        """Fuse n clips; the arguments are those of `Reading.forward`."""
        u, p = self.reading(features, present, shift)
        return self.fuse(u, p, present)

    def fuse(self, u: Tensor, p: Tensor, present: Tensor) -> ConcatOutput:
        """Fuse what `Reading` read: u (n, M, hidden) and p (n, M, C), with these of its modalities (n, M) bool."""
        u = torch.where(present[..., None], u, 0.0)
        fused = self.merge(u.flatten(1))
        gate = masked_softmax(-entropy_of(p, self.config.n_classes) / self.config.tau, present)
        return ConcatOutput(self.head(fused), p, gate, u, fused, present)

    def attribute(self, out: ConcatOutput, target: Tensor) -> Tensor:
        """Shapley value of each modality for the target, (n, M)."""
        values = coalitions(lambda visible: self.fuse(out.tokens, out.unimodal, visible).logits, out.present, target)
        return shapley(values, out.present)
