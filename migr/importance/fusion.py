"""Dual-gate fusion: weigh the modalities of a clip, name its emotion, and say which modality carried it.

The order of the parts (unimodal reading, cross-modal attention, two gates, one learned balance) follows AGFN
(arXiv 2510.01677), whose formulas are not public. The formulas here are ours:

    u_m = projection of the standardised features x_m            p_m = softmax(unimodal head of u_m)
    h   = u + attention over the clip's present modalities (kept apart by source, see `contributions`)
    e   = softmax_m(-H(p_m) / tau)       entropy gate: a modality that is sure of its reading counts more
    s   = softmax_m(MLP([h]))            importance gate: learned from the label
    g   = alpha e + (1 - alpha) s        alpha = sigmoid(theta), one learned number
    logits = W (sum_m g_m h_m) + b                                    b holds how frequent each emotion is

Absent modalities are masked before every softmax, so that their gates and importances are exactly 0.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FusionConfig:
    """Shape of a `DualGateFusion`.

    Attributes:
        dims: Feature size of every modality, in the order in which gates and importances are laid out.
        n_classes: Number of emotions.
        hidden: Size of u_m and h_m; a multiple of `heads`.
        heads: Attention heads between modalities.
        tau: Temperature of the entropy gate, in nats.
        dropout: Dropout on the features, inside the projection and in the importance gate.
    """

    dims: dict[str, int]
    n_classes: int
    hidden: int = 64
    heads: int = 4
    tau: float = 0.5
    dropout: float = 0.3


class FusionOutput(NamedTuple):
    """What one forward pass says about n clips; M modalities in the order of `FusionConfig.dims`, C emotions."""

    logits: Tensor  # (n, C) of the fused head
    unimodal: Tensor  # (n, M, C) logits of the unimodal heads
    entropy_gate: Tensor  # (n, M) e; like s and g: non-negative, sums to 1, 0 where absent
    importance_gate: Tensor  # (n, M) s
    gate: Tensor  # (n, M) g
    hidden: Tensor  # (n, M, hidden) h
    carried: Tensor  # (n, M, hidden) what the fused vector holds from each modality; they add up to it
    present: Tensor  # (n, M) bool


class DualGateFusion(nn.Module):
    """The fusion network. It takes raw features and standardises them by statistics that are saved with its weights."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(config.dims)
        hidden = config.hidden
        for name, dim in config.dims.items():
            self.register_buffer(f"mean_{name}", torch.zeros(dim))
            self.register_buffer(f"std_{name}", torch.ones(dim))
        drop = config.dropout
        self.project = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Dropout(drop), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(drop), nn.LayerNorm(hidden)
                )
                for name, dim in config.dims.items()
            }
        )
        self.unimodal = nn.ModuleDict({name: nn.Linear(hidden, config.n_classes) for name in config.dims})
        # No biases: what one modality receives is then a plain sum over the modalities it reads.
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.score = nn.Sequential(
            nn.Linear(hidden * len(config.dims), hidden),
            nn.GELU(),
            nn.Dropout(drop),
            nn.Linear(hidden, len(config.dims)),
        )
        self.theta = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(hidden, config.n_classes)

    @property
    def alpha(self) -> float:
        """The learned weight of the entropy gate in the combined gate, between 0 and 1."""
        return torch.sigmoid(self.theta).item()

    @torch.no_grad()
    def set_statistics(self, features: dict[str, Tensor], present: Tensor) -> None:
        """Take the mean and deviation of each feature over those training clips that have its modality."""
        for index, name in enumerate(self.modalities):
            rows = features[name][present[:, index]]
            if len(rows):
                self.get_buffer(f"mean_{name}").copy_(rows.mean(0))
                std = rows.std(0, correction=0)
                self.get_buffer(f"std_{name}").copy_(torch.where(std > 1e-6, std, 1.0))  # 1: a constant feature

    def forward(self, features: dict[str, Tensor], present: Tensor) -> FusionOutput:
        """Fuse n clips.

        Args:
            features: Modality -> (n, dim) raw features. What stands in the rows of absent modalities is never read.
            present: (n, M) bool, which modality a clip has; at least one each.
        """
        assert present.any(1).all(), "a clip with no modality"
        tokens, unimodal = [], []
        for index, name in enumerate(self.modalities):
            x = (features[name] - self.get_buffer(f"mean_{name}")) / self.get_buffer(f"std_{name}")
            here = present[:, index, None]
            u = self.project[name](torch.where(here, x, 0.0))
            tokens.append(torch.where(here, u, 0.0))
            unimodal.append(self.unimodal[name](u))
        u, p = torch.stack(tokens, 1), torch.stack(unimodal, 1)

        messages = self.messages(u, present)
        h = u + messages.sum(2)

        entropy = torch.special.entr(p.softmax(-1)).sum(-1)
        e = masked_softmax(-entropy / self.config.tau, present)
        s = masked_softmax(self.score(h.flatten(1)), present)
        alpha = torch.sigmoid(self.theta)
        g = alpha * e + (1 - alpha) * s
        carried = g[..., None] * u + torch.einsum("nt,ntsd->nsd", g, messages)
        logits = self.head(carried.sum(1))
        return FusionOutput(logits, p, e, s, g, h, carried, present)

    def messages(self, u: Tensor, present: Tensor) -> Tensor:
        """Attention between modalities, kept apart by source: (n, M to, M from, hidden), 0 to and from absent ones."""
        n, m, d = u.shape
        q, k, v = (f(u).view(n, m, self.config.heads, -1) for f in (self.query, self.key, self.value))
        scores = torch.einsum("nthd,nshd->nhts", q, k) / math.sqrt(q.shape[-1])
        weights = masked_softmax(scores, present[:, None, None]) * present[:, None, :, None]
        return self.out(torch.einsum("nhts,nshd->ntshd", weights, v).reshape(n, m, m, d))

    def contributions(self, out: FusionOutput, target: Tensor) -> Tensor:
        """How far each modality lifts the target's logit above the average logit: c, (n, M), signed. Ours.

        c_m = w_y·z_m − mean_k w_k·z_m, where z_m is what the fused vector z = Σ_m g_m h_m holds from m. Without
        attention z_m = g_m h_m. With it, h_m holds messages from other modalities too, and each message is credited to
        the modality that it was read from: a blurred face that is told what the voice says does not carry what the
        voice says. The split is exact: with the bias, c adds up to logit_y − mean_k logit_k.

        Args:
            out: What `forward` returned.
            target: (n,) class indices.
        """
        centred = self.head.weight - self.head.weight.mean(0)
        return torch.einsum("nmd,nd->nm", out.carried, centred[target])

    def importance(self, out: FusionOutput, target: Tensor) -> Tensor:
        """Importance of each modality for the target emotion: (n, M), non-negative, sums to 1, 0 where absent. Ours.

        The share of the positive contributions: relu(c_m) / sum relu(c). Where no modality speaks for the target (the
        network reads another emotion) there is nothing to share, and the combined gate g takes its place: the least
        negative c would name the modality that says least, not the one that carries the emotion.
        """
        positive = self.contributions(out, target).relu() * out.present
        total = positive.sum(1, keepdim=True)
        share = positive / total.clamp_min(torch.finfo(total.dtype).tiny)
        return torch.where(total > 0, share, out.gate)


def masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the last axis among the present entries; the others get exactly 0."""
    return scores.masked_fill(~present, -torch.inf).softmax(-1)


def fusion_loss(out: FusionOutput, target: Tensor, unimodal_weight: float) -> Tensor:
    """Cross-entropy of the fused head + `unimodal_weight` × the mean cross-entropy of the present unimodal heads."""
    fused = F.cross_entropy(out.logits, target)
    each = F.cross_entropy(out.unimodal.transpose(1, 2), target[:, None].expand(out.present.shape), reduction="none")
    return fused + unimodal_weight * each[out.present].mean()
