"""The trained weights under the names that vLLM knows: those of the full model, LoRA merged.

LoRA is merged into copies: merged into the trainer's own weights and taken out again, as TRL does, it would round them
a little at each step. In the trainer's process the copies are made of the trainer's weights. A vLLM elsewhere gets the
adapter alone, some tens of megabytes, and makes them of the checkpoint that both have.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from migr.engine.backend import ChecksWeights
from migr.errors import InputError
from migr.omni.checks import check_finite, damaged_weight
from migr.rollout.checkpoint import weight_files
from migr.rollout.protocol import unpack

Gather = Callable[[list[Any]], AbstractContextManager[Any]]
ADAPTER = "default"  # PEFT's name of the adapter that is trained


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`weight + scale * b @ a` in the weight's type: (out, in), of a (rank, in) and b (out, rank)."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def merged_weights(model: Any, gather: Gather) -> Iterator[tuple[str, Tensor]]:
    """The language model's layers that have an adapter, merged, under the names of the full model.

    Layers beside them in the same attention or MLP come too: vLLM fuses them, and takes them together.

    Args:
        model: A PEFT model around a thinker. Its weights are not touched.
        gather: Makes weights whole that are spread over processes (`gather(weights)` is a context). All processes must
            then iterate to the end.
    """
    for path, parent in model.get_base_model().named_modules():
        layers: dict[str, Any] = dict(parent.named_children())
        if not any(isinstance(layer, LoraLayer) for layer in layers.values()):
            continue
        for name, layer in layers.items():
            base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
            if not isinstance(base, nn.Linear):
                continue
            with torch.no_grad(), gather(list(layer.parameters())):
                weight = base.weight.clone()
                if base is not layer:
                    weight = merge(weight, *_factors(layer))
                bias = None if base.bias is None else base.bias.clone()
            yield f"{_full(path)}.{name}.weight", weight
            if bias is not None:
                yield f"{_full(path)}.{name}.bias", bias


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """LoRA folded into copies of the weights, for as long as the context lasts: sampling then costs no adapter.

    The weights themselves are put aside and put back as they were, to the last bit. The copies take as much memory as
    the adapted weights. In half precision they are rounded, as vLLM's are.

    Args:
        model: A PEFT model around a thinker, its weights whole.
    """
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    bases: list[Any] = [layer.get_base_layer() for layer in layers]
    weights = [base.weight.data for base in bases]
    try:
        with torch.no_grad():
            for layer, base, weight in zip(layers, bases, weights, strict=True):
                base.weight.data = merge(weight, *_factors(layer))
        with model.disable_adapter():
            yield
    finally:
        for base, weight in zip(bases, weights, strict=True):
            base.weight.data = weight


def adapter_tensors(model: Any, gather: Gather) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The adapter alone: the scale of each adapted layer, by its name in the full model, and its factors on the CPU.

    Args:
        model: As for `merged_weights`.
        gather: Likewise; all processes must call it.

    Returns:
        {layer: scale}, and {layer + ".a": (rank, in), layer + ".b": (out, rank)}.
    """
    scales: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for path, module in model.get_base_model().named_modules():
        layer: Any = module
        if isinstance(layer, LoraLayer):
            with torch.no_grad(), gather([layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]):
                a, b, scale = _factors(layer)
                tensors |= {f"{_full(path)}.a": a.to("cpu", copy=True), f"{_full(path)}.b": b.to("cpu", copy=True)}
            scales[_full(path)] = float(scale)
    return scales, tensors


def merged_with_stored(
    model: str, scales: Mapping[str, float], tensors: Mapping[str, Tensor], dtype: torch.dtype, device: Any = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """What `merged_weights` gives, made of the checkpoint and `adapter_tensors`.

    Args:
        model: The base model's folder, or its name on the Hugging Face Hub.
        scales: As `adapter_tensors` gives them.
        tensors: Likewise.
        dtype: Type of the base weights in training.
        device: Where the merged weights are made.

    Raises:
        InputError: At once, before any weight is given: the adapter is not one of this model.
    """
    stored = weight_files(model)
    for layer in scales:
        shape = (
            stored[f"{layer}.weight"].get_slice(f"{layer}.weight").get_shape() if f"{layer}.weight" in stored else []
        )
        a, b = (tensors.get(f"{layer}.{side}") for side in "ab")
        if (
            a is None
            or b is None
            or a.ndim != 2
            or b.ndim != 2
            or [len(b), a.shape[1]] != shape
            or len(a) != b.shape[1]
        ):
            raise InputError(f"the adapter does not fit {model} at {layer}")
    check_finite(tensors.items(), "the adapter")
    if wrong := [layer for layer, scale in scales.items() if not math.isfinite(scale)]:
        raise InputError(f"the adapter's scale of {wrong[0]} is not finite")
    parents = {_parent(layer) for layer in scales}

    def merged() -> Iterator[tuple[str, Tensor]]:
        for name in sorted(stored):
            layer, _, kind = name.rpartition(".")
            if _parent(layer) not in parents:
                continue
            weight = stored[name].get_tensor(name).to(device, dtype)
            if kind == "weight" and layer in scales:
                weight = merge(
                    weight, tensors[f"{layer}.a"].to(device), tensors[f"{layer}.b"].to(device), scales[layer]
                )
            yield name, weight

    return merged()


class MergesAdapters(ChecksWeights):
    """What a vLLM worker learns for the rollout server (`worker_extension_cls`); each one merges for its own part."""

    def merge_adapter(self: Any, message: bytes) -> str | None:
        """Reload the layers of an adapter, merged.

        Args:
            message: The scales as words and the factors as tensors of `pack`.

        Returns:
            Name of a merged weight that is not finite, if there is one: finite factors can leave the range of the
            type. It is looked for here, as vLLM keeps weights of a CPU in a form of its own.

        Raises:
            InputError: The adapter is not one of this model; the weights are as before.
        """
        scales, tensors = unpack(message)
        config = self.model_config
        weights = merged_with_stored(config.model, scales, tensors, config.dtype, self.device)
        damaged: list[str] = []

        def watched() -> Iterator[tuple[str, Tensor]]:
            for weight in weights:
                if name := damaged_weight([weight]):
                    damaged.append(name)
                yield weight

        self.reload_weights(weights_iterator=watched())
        return damaged[0] if damaged else None


def _factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]


def _full(path: str) -> str:
    """A thinker's module under its name in the full model."""
    return f"thinker.{path}" if path else "thinker"


def _parent(layer: str) -> str:
    return layer.rpartition(".")[0]
