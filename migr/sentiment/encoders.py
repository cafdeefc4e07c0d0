"""Frame sequences in front of the fusion networks: standardise, encode, pool into tokens; padding is never read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from migr.importance.networks.reading import masked_softmax
from migr.importance.store import build
from migr.sentiment.settings import ENCODERS, FUSIONS

CLIP = 10.0  # deviations; OpenFace and COVAREP have values millions of deviations away


@dataclass(frozen=True)
class SequenceConfig:
    """Shape of a `SequenceFusion`.

    Attributes:
        dims: Features a frame of every modality, in the order in which gates and importances are laid out.
        n_classes: Number of emotions; 1 for a sentiment score.
        fusion: Of `FUSIONS`.
        encoder: Of `ENCODERS`.
        hidden: Size of a token.
        tokens: Tokens a modality; dual gate and concatenation fuse one.
        dropout: In encoders and fusion.
    """

    dims: dict[str, int]
    n_classes: int
    fusion: str = "dual-gate"
    encoder: str = "attention"
    hidden: int = 64
    tokens: int = 4
    dropout: float = 0.2


class FrameEncoder(nn.Module):
    """The frames of one modality as a few tokens.

    Features are scaled by the train split's median and interquartile range (saved with the weights), kept within ±10
    deviations, and those that were not finite are 0, the median. "attention": a layer a frame; "bilstm": a
    bidirectional LSTM, as the field uses. Then learned queries pool the clip's own frames into T tokens.

    Args:
        dim: Features a frame.
        hidden: Size of a token, even.
        tokens: T.
        kind: Of `ENCODERS`.
        dropout: On the encoded frames.
    """

    def __init__(self, dim: int, hidden: int, tokens: int, kind: str, dropout: float) -> None:
        super().__init__()
        assert kind in ENCODERS, kind
        self.register_buffer("median", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.enter = nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.lstm = nn.LSTM(hidden, hidden // 2, batch_first=True, bidirectional=True) if kind == "bilstm" else None
        self.dropout = nn.Dropout(dropout)
        self.queries = nn.Parameter(0.02 * torch.randn(tokens, hidden))  # begins close to the mean of the frames
        self.leave = nn.LayerNorm(hidden)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Frames (n, L, dim) of these lengths (n,), at least 1 each -> tokens (n, T, hidden)."""
        x = (frames - self.get_buffer("median")) / self.get_buffer("scale")
        x = self.enter(x.nan_to_num(nan=0.0).clamp(-CLIP, CLIP))
        if self.lstm is not None:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            x, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=frames.shape[1])
        x = self.dropout(x)
        own = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
        weights = masked_softmax(torch.einsum("th,nlh->ntl", self.queries, x), own[:, None])
        return self.leave(torch.einsum("ntl,nlh->nth", weights, x))


class SequenceFusion(nn.Module):
    """Encoders of every modality in front of a fusion network of `migr.importance`, which gets their tokens."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(config.dims)
        kind = FUSIONS[config.fusion]
        self.tokens = config.tokens if kind == "experts" else 1
        self.encoders = nn.ModuleDict(
            {
                name: FrameEncoder(dim, config.hidden, self.tokens, config.encoder, config.dropout)
                for name, dim in config.dims.items()
            }
        )
        shape: dict[str, Any] = {"sequences": True} if kind == "experts" else {}
        self.fusion = build(
            kind,
            dims=dict.fromkeys(config.dims, config.hidden),
            n_classes=config.n_classes,
            hidden=config.hidden,
            dropout=config.dropout,
            **shape,
        )
        self.fusion.reading.drop_behind_norm()

    def set_scaling(self, scaling: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Take median and scale of each feature from `data.json`."""
        for name, encoder in self.encoders.items():
            for part in ("median", "scale"):
                encoder.get_buffer(part).copy_(torch.tensor(scaling[name][part]))

    def encode(self, frames: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the fusion network gets: modality -> (n, hidden), or (n, T, hidden) for experts."""
        encoded = {}
        for name, encoder in self.encoders.items():
            tokens = encoder(frames[name], lengths[name].clamp_min(1))
            encoded[name] = tokens if self.config.fusion == "experts" else tokens[:, 0]
        return encoded

    def forward(
        self, frames: Mapping[str, Tensor], lengths: Mapping[str, Tensor], present: Tensor | None = None
    ) -> Any:
        """The fusion network's output for n clips.

        Args:
            frames: Modality -> (n, L, dim), NaN where a value was not finite; what is behind a length is never read.
            lengths: Modality -> (n,); 0 where a clip does not have it.
            present: (n, M) bool, modalities to look at; those of length 0 never are.
        """
        return self.fusion(self.encode(frames, lengths), self.visible(lengths, present))

    def visible(self, lengths: Mapping[str, Tensor], present: Tensor | None = None) -> Tensor:
        """(n, M) bool: the modalities that each clip has. A clip without any counts as one of zeros in the first."""
        mask = torch.stack([lengths[name] > 0 for name in self.modalities], 1)
        mask = mask if present is None else mask & present
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return torch.where(mask.any(1, keepdim=True), mask, first)

    def shape(self) -> dict[str, Any]:
        """The fields of its configuration."""
        return asdict(self.config)
