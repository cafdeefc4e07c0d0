"""What a fusion network is: the contract of everything in this folder, for n clips, M modalities and C emotions.

A network of your own is one file here and one line in `migr.importance.store.NETWORKS` (docs/extending.md).
"""

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from migr.importance.networks.reading import Reading


class FusionOutput(Protocol):
    """What one forward pass says."""

    @property
    def logits(self) -> Tensor:
        """(n, C) of the fused head; (n, 1) for a sentiment score."""
        ...

    @property
    def unimodal(self) -> Tensor:
        """(n, M, C) logits of the unimodal heads; (n, M, 2) for a score (`Reading`)."""
        ...

    @property
    def gate(self) -> Tensor:
        """(n, M) weights of the modalities, or what stands in for them: not negative, sum to 1, 0 where absent."""
        ...

    @property
    def tokens(self) -> Tensor:
        """(n, M, hidden) of `Reading`, so that `fuse` can be asked again with other modalities."""
        ...

    @property
    def fused(self) -> Tensor:
        """(n, hidden) the fused vector."""
        ...

    @property
    def present(self) -> Tensor:
        """(n, M) bool."""
        ...

    def parts(self) -> dict[str, Tensor]:
        """The network's own weights by name, (n, M) over modalities, or (n, K) over what `FusionNet.axes` names."""
        ...


class FusionNet(Protocol):
    """An `nn.Module` that fuses modalities. It takes raw features; `reading` standardises them."""

    axes: ClassVar[dict[str, tuple[str, ...]]]  # of `parts`: what the K are called, where they are no modalities
    config: Any  # a dataclass with `dims` {modality: feature size} and `n_classes` (1 for a sentiment score)
    modalities: tuple[str, ...]  # in the order of the M axis
    reading: Reading

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Weights that weight decay must leave alone."""
        ...

    def __call__(
        self, features: dict[str, Tensor], present: Tensor, shift: dict[str, Tensor] | None = None
    ) -> FusionOutput:
        """Read and fuse n clips; the arguments are those of `Reading.forward`."""
        ...

    def fuse(self, u: Tensor, p: Tensor, present: Tensor) -> FusionOutput:
        """Fuse what `Reading` read: u (n, M, hidden) and p (n, M, C), with these of its modalities (n, M) bool."""
        ...

    def attribute(self, out: Any, target: Tensor) -> Tensor:
        """(n, M) signed: how far each modality speaks for the target, (n,) class indices or scores."""
        ...

    def eval(self) -> Any:
        """As of `nn.Module`; so are `parameters` and `state_dict`."""
        ...

    def parameters(self) -> Any:
        """As of `nn.Module`."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """As of `nn.Module`."""
        ...
