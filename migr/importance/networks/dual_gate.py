"""Dual-gate fusion: weigh the modalities of a clip, name its emotion, and say which modality carried it.

The order of the parts (unimodal reading, cross-modal attention, two gates, one learned balance) follows AGFN
(arXiv 2510.01677), whose formulas are not public. The formulas here are ours:

    u_m = projection of the standardised features x_m            p_m = softmax(unimodal head of u_m)
    h   = u + attention over the clip's present modalities (kept apart by source, see `attribute`)
    e   = softmax_m(-H(p_m) / tau)       entropy gate: a modality that is sure of its reading counts more
    s   = softmax_m(MLP([h]))            importance gate: learned from the label
    g   = alpha e + (1 - alpha) s        alpha = sigmoid(theta), one learned number
    logits = W (sum_m g_m h_m) + b                                    b holds how frequent each emotion is

Absent modalities are masked before every softmax, so that their gates and importances are exactly 0. With one class the
network gives a sentiment score instead of logits (`reading.Reading` says what H is then).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from migr.importance.networks.attribution import side
from migr.importance.networks.reading import Reading, entropy_of, masked_softmax

GATES = ("both", "entropy", "importance", "equal")


@dataclass(frozen=True)
class FusionConfig:
    """Shape of a `DualGateFusion`.

    Attributes:
        dims: Feature size of every modality, in the order in which gates and importances are laid out.
        n_classes: Number of emotions; 1 for a sentiment score.
        hidden: Size of u_m and h_m; a multiple of `heads`.
        heads: Attention heads between modalities.
        tau: Temperature of the entropy gate, in nats.
        dropout: Dropout on the features, inside the projection and in the importance gate.
        gates: Of `GATES`: both, or for comparison one alone, or equal weights (g_m = 1 / number of present ones).
    """

    dims: dict[str, int]
    n_classes: int
    hidden: int = 64
    heads: int = 4
    tau: float = 0.5
    dropout: float = 0.3
    gates: str = "both"


class FusionOutput(NamedTuple):
    """What one forward pass says about n clips; M modalities in the order of `FusionConfig.dims`, C emotions."""

    logits: Tensor  # (n, C) of the fused head
    unimodal: Tensor  # (n, M, C) logits of the unimodal heads; (n, M, 2) with one class
    entropy_gate: Tensor  # (n, M) e; like s and g: non-negative, sums to 1, 0 where absent
    importance_gate: Tensor  # (n, M) s
    gate: Tensor  # (n, M) g
    tokens: Tensor  # (n, M, hidden) u
    hidden: Tensor  # (n, M, hidden) h
    carried: Tensor  # (n, M, hidden) what the fused vector holds from each modality; they add up to it
    present: Tensor  # (n, M) bool

    @property
    def fused(self) -> Tensor:
        """(n, hidden) the fused vector."""
        return self.carried.sum(1)

    def parts(self) -> dict[str, Tensor]:
        """The gates by name, each (n, M)."""
        return {"entropy_gate": self.entropy_gate, "importance_gate": self.importance_gate, "gate": self.gate}


class DualGateFusion(nn.Module):
    """The fusion network. It takes raw features and standardises them by statistics that are saved with its weights."""

    axes: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        assert config.gates in GATES, config.gates
        self.config = config
        self.modalities = tuple(config.dims)
        hidden = config.hidden
        self.reading = Reading(config.dims, config.n_classes, hidden, config.dropout)
        # No biases: what one modality receives is then a plain sum over the modalities it reads.
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.score = nn.Sequential(
            nn.Linear(hidden * len(config.dims), hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, len(config.dims)),
        )
        self.theta = nn.Parameter(torch.zeros(1))  # not without a dimension, which DeepSpeed cannot spread
        self.head = nn.Linear(hidden, config.n_classes)

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Weights that weight decay must leave alone: it would pull alpha to 1/2."""
        return [self.theta]

    @property
    def alpha(self) -> float:
        """The learned weight of the entropy gate in the combined gate, between 0 and 1."""
        return torch.sigmoid(self.theta).item()

    def forward(
        self, features: dict[str, Tensor], present: Tensor, shift: dict[str, Tensor] | None = None
    ) -> FusionOutput:
        """Fuse n clips; the arguments are those of `Reading.forward`."""
        u, p = self.reading(features, present, shift)
        return self.fuse(u, p, present)

    def fuse(self, u: Tensor, p: Tensor, present: Tensor) -> FusionOutput:
        """Fuse what `Reading` read: u (n, M, hidden) and p (n, M, C), with these of its modalities (n, M) bool."""
        u = torch.where(present[..., None], u, 0.0)
        messages = self.messages(u, present)
        h = u + messages.sum(2)

        e = masked_softmax(-entropy_of(p, self.config.n_classes) / self.config.tau, present)
        s = masked_softmax(self.score(h.flatten(1)), present)
        g = self.combine(e, s, present)
        carried = g[..., None] * u + torch.einsum("nt,ntsd->nsd", g, messages)
        logits = self.head(carried.sum(1))
        return FusionOutput(logits, p, e, s, g, u, h, carried, present)

    def combine(self, e: Tensor, s: Tensor, present: Tensor) -> Tensor:
        """g from the two gates, as `FusionConfig.gates` says."""
        if self.config.gates == "both":
            alpha = torch.sigmoid(self.theta)
            return alpha * e + (1 - alpha) * s
        equal = present / present.sum(1, keepdim=True)
        return {"entropy": e, "importance": s, "equal": equal}[self.config.gates]

    def messages(self, u: Tensor, present: Tensor) -> Tensor:
        """Attention between modalities, kept apart by source: (n, M to, M from, hidden), 0 to and from absent ones."""
        n, m, d = u.shape
        q, k, v = (f(u).view(n, m, self.config.heads, -1) for f in (self.query, self.key, self.value))
        scores = torch.einsum("nthd,nshd->nhts", q, k) / math.sqrt(q.shape[-1])
        weights = masked_softmax(scores, present[:, None, None]) * present[:, None, :, None]
        return self.out(torch.einsum("nhts,nshd->ntshd", weights, v).reshape(n, m, m, d))

    def attribute(self, out: FusionOutput, target: Tensor) -> Tensor:
        """How far each modality lifts the target's logit above the average logit: c, (n, M), signed. Ours.

        c_m = w_y·z_m − mean_k w_k·z_m, where z_m is what the fused vector z = Σ_m g_m h_m holds from m. Without
        attention z_m = g_m h_m. With it, h_m holds messages from other modalities too, and each message is credited to
        the modality that it was read from: a blurred face that is told what the voice says does not carry what the
        voice says. The split is exact: with the bias, c adds up to logit_y − mean_k logit_k. For a sentiment score
        c_m = sign(y) w·z_m: how far m moves the score to the target's side of neutral.

        Args:
            out: What `forward` returned.
            target: (n,) class indices, or scores.
        """
        if self.config.n_classes == 1:
            return out.carried @ self.head.weight[0] * side(target)[:, None]
        centred = self.head.weight - self.head.weight.mean(0)
        return torch.einsum("nmd,nd->nm", out.carried, centred[target])
