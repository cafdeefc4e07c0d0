"""Expert-guided fusion: one anchor modality asks the others, three experts work on the answer, a gate weighs them.

The parts follow EGMF (arXiv 2601.07565) as far as its text is public: cross-modal attention with text as query,
self-attention, pooling, three bottleneck experts, a two-step gate, a residual. What is not public is ours: every
modality is cut into a few tokens (pooled features have no sequence), the form of each layer, and a learned β.

    H_m     = tokens of modality m (T × d)                     anchor: text, else video, else audio
    Z_cross = CrossAttn(Q = H_anchor, K = V = the other present modalities' tokens) + H_anchor
    Z_self  = SelfAttn(Z_cross) + Z_cross                      f = mean of its tokens
    E_1     = bottleneck 1:8, Mish   (fine-grained local)      E_2 = 1:4, GELU (semantic correlation)
    E_3     = bottleneck 1:2, Swish  (global context)
    w       = sigmoid(Gate(f))                                 alpha = softmax(MLP([f; w]))
    f'      = sum_k alpha_k E_k(f) + beta f                    logits = W f' + b

The logits do not split by modality, so importance is read off by exact Shapley values over which modalities are shown
(`attribution.py`).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from migr.importance.networks.attribution import coalitions, shapley
from migr.importance.networks.reading import Reading, entropy_of, masked_softmax

EXPERTS = ("local", "semantic", "global")
RATIOS = (8, 4, 2)
ANCHORS = ("text", "video", "audio")  # the first that a clip has asks the others


@dataclass(frozen=True)
class ExpertConfig:
    """Shape of an `ExpertFusion`.

    Attributes:
        dims: Feature size of every modality, in the order in which importances are laid out.
        n_classes: Number of emotions; 1 for a sentiment score.
        hidden: Size of a token; a multiple of `heads` and of 8.
        tokens: Tokens a modality.
        heads: Heads of both attentions.
        tau: Temperature of the entropy gate of the unimodal heads, in nats.
        dropout: Dropout on the features, behind the projection and in the experts.
        sequences: Features come as tokens (n, T, dim), so that none are cut from pooled ones.
    """

    dims: dict[str, int]
    n_classes: int
    hidden: int = 64
    tokens: int = 4
    heads: int = 4
    tau: float = 0.5
    dropout: float = 0.3
    sequences: bool = False


class ExpertOutput(NamedTuple):
    """What one forward pass says about n clips."""

    logits: Tensor  # (n, C) of the fused head
    unimodal: Tensor  # (n, M, C) logits of the unimodal heads; (n, M, 2) with one class
    entropy_gate: Tensor  # (n, M) softmax(-H / tau) of the unimodal heads: not part of the fusion
    experts: Tensor  # (n, 3) alpha
    tokens: Tensor  # (n, M, hidden) u
    fused: Tensor  # (n, hidden) f'
    present: Tensor  # (n, M) bool

    @property
    def gate(self) -> Tensor:
        """Stands in for importance where no modality speaks for the target."""
        return self.entropy_gate

    def parts(self) -> dict[str, Tensor]:
        """The weights by name: (n, M) over modalities, (n, 3) over experts."""
        return {"entropy_gate": self.entropy_gate, "experts": self.experts}


class ExpertFusion(nn.Module):
    """The network."""

    axes: ClassVar[dict[str, tuple[str, ...]]] = {"experts": EXPERTS}

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(config.dims)
        d, drop = config.hidden, config.dropout
        self.reading = Reading(config.dims, config.n_classes, d, drop)
        cut = () if config.sequences else config.dims
        self.split = nn.ModuleDict({name: nn.Linear(d, d * config.tokens) for name in cut})
        self.cross = nn.MultiheadAttention(d, config.heads, batch_first=True)
        self.within = nn.MultiheadAttention(d, config.heads, batch_first=True)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d // ratio), act(), nn.Dropout(drop), nn.Linear(d // ratio, d))
            for ratio, act in zip(RATIOS, (nn.Mish, nn.GELU, nn.SiLU), strict=True)
        )
        k = len(EXPERTS)
        self.gate = nn.Linear(d, k)
        self.mix = nn.Sequential(nn.Linear(d + k, d // 2), nn.GELU(), nn.Linear(d // 2, k))
        self.beta = nn.Parameter(torch.ones(1))  # not without a dimension, which DeepSpeed cannot spread
        self.head = nn.Linear(d, config.n_classes)
        self.order = [i for name in ANCHORS for i, m in enumerate(config.dims) if m == name]
        assert len(self.order) == len(config.dims), f"modalities are among {ANCHORS}, not {tuple(config.dims)}"
        # False leaves an expert out, for ablations
        self.register_buffer("shown", torch.ones(k, dtype=torch.bool), persistent=False)

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Weights that weight decay must leave alone: the residual's would fade."""
        return [self.beta]

    def forward(
        self, features: dict[str, Tensor], present: Tensor, shift: dict[str, Tensor] | None = None
    ) -> ExpertOutput:
        """Fuse n clips; the arguments are those of `Reading.forward`."""
        u, p = self.reading(features, present, shift)
        return self.fuse(u, p, present)

    def fuse(self, u: Tensor, p: Tensor, present: Tensor) -> ExpertOutput:
        """Fuse what `Reading` read: u (n, M, hidden), or (n, M, T, hidden), and p (n, M, C), with these modalities."""
        n, count, d = *u.shape[:2], u.shape[-1]
        if self.config.sequences:
            tokens, size = u, u.shape[2]
        else:
            size = self.config.tokens
            tokens = torch.stack([self.split[m](u[:, i]).view(n, size, d) for i, m in enumerate(self.modalities)], 1)

        anchor = torch.zeros(n, dtype=torch.long, device=u.device)
        for index in reversed(self.order):  # the first in the order has the last word
            anchor = torch.where(present[:, index], index, anchor)
        query = tokens[torch.arange(n, device=u.device), anchor]
        others = present & (anchor[:, None] != torch.arange(count, device=u.device))
        accompanied = others.any(1)
        # a clip without other modalities attends to nothing: all keys open, the answer thrown away
        hidden = ~torch.where(accompanied[:, None], others, True).repeat_interleave(size, 1)
        keys = tokens.flatten(1, 2)
        answer, _ = self.cross(query, keys, keys, key_padding_mask=hidden, need_weights=False)
        crossed = query + answer * accompanied[:, None, None]
        within, _ = self.within(crossed, crossed, crossed, need_weights=False)
        f = (crossed + within).mean(1)

        w = torch.sigmoid(self.gate(f))
        alpha = masked_softmax(self.mix(torch.cat([f, w], 1)), self.get_buffer("shown"))
        worked = torch.stack([expert(f) for expert in self.experts], 1)
        fused = (alpha[..., None] * worked).sum(1) + self.beta * f
        entropy_gate = masked_softmax(-entropy_of(p, self.config.n_classes) / self.config.tau, present)
        return ExpertOutput(self.head(fused), p, entropy_gate, alpha, u, fused, present)

    def attribute(self, out: ExpertOutput, target: Tensor) -> Tensor:
        """Shapley value of each modality for the target (`attribution.shapley`), (n, M): add up to its evidence."""
        values = coalitions(lambda visible: self.fuse(out.tokens, out.unimodal, visible).logits, out.present, target)
        return shapley(values, out.present)


def collapse(weights: Tensor, names: tuple[str, ...]) -> str | None:
    """Say how a gate has stopped choosing, or None where it chooses. Thresholds ours.

    Args:
        weights: (n, K) non-negative, summing to 1 over K.
        names: What the K are called.

    Returns:
        A sentence if one of them has more than 0.95 of the weight on average, if all weights lie within 0.02 of 1/K on
        average, or if they hardly differ between clips (standard deviation under 0.01).
    """
    if weights.shape[1] < 2:
        return None
    mean = weights.mean(0)
    best = int(mean.argmax())
    if mean[best] > 0.95:
        return f"one takes all: {names[best]} has {mean[best]:.0%} of the weight"
    if (weights - 1 / weights.shape[1]).abs().mean() < 0.02:
        return f"uniform: every one of {', '.join(names)} has about 1/{weights.shape[1]} on every clip"
    if len(weights) > 1 and weights.std(0).max() < 0.01:
        return "constant: " + ", ".join(f"{n} {w:.2f}" for n, w in zip(names, mean.tolist(), strict=True))
    return None
