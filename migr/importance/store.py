"""The kinds of fusion network, and their files: weights as safetensors, shape and facts as JSON beside them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from migr.errors import InputError, as_input_error
from migr.files.records import atomic_path, digest, read_object, write_json
from migr.importance.networks.baselines import ConcatConfig, ConcatFusion
from migr.importance.networks.dual_gate import DualGateFusion, FusionConfig
from migr.importance.networks.experts import ExpertConfig, ExpertFusion
from migr.importance.networks.interface import FusionNet

NETWORKS: dict[str, tuple[Any, Any]] = {
    "dual-gate": (DualGateFusion, FusionConfig),
    "experts": (ExpertFusion, ExpertConfig),
    "concatenation": (ConcatFusion, ConcatConfig),
}


def build(fusion: str, **shape: Any) -> FusionNet:
    """A new network of this kind, with random weights."""
    kind, config = NETWORKS[fusion]
    net: FusionNet = kind(config(**shape))
    return net


def kind_of(net: FusionNet) -> str:
    """The name of its kind in `NETWORKS`."""
    return next(name for name, (kind, _) in NETWORKS.items() if isinstance(net, kind))


def fingerprint(net: FusionNet) -> str:
    """A hash of weights and shape."""
    items = sorted(net.state_dict().items())
    return digest(asdict(net.config), *(tensor.contiguous().numpy().tobytes() for _, tensor in items))


def save(net: FusionNet, path: str | Path, **about: Any) -> None:
    """Write `path` (.safetensors) and, beside it, its kind, its shape and the JSON values of `about` (.json)."""
    path = Path(path)
    with atomic_path(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, partial)
    write_json(path.with_suffix(".json"), {"fusion": kind_of(net), "config": asdict(net.config), **about})


def load(path: str | Path) -> FusionNet:
    """Read a network that `save` wrote.

    Raises:
        InputError: A file is missing, damaged, or the two do not belong together.
    """
    path = Path(path)
    about = read_object(path.with_suffix(".json"), fusion=str, config=dict)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with as_input_error(f"{path}: no fusion network as {path.with_suffix('.json')} describes it"):
        weights = load_file(path)
        if damaged := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise ValueError(f"the weights of {damaged[0]} are not finite numbers")
        with torch.device("meta"):  # shapes alone: an absurd size takes no memory
            build(about["fusion"], **about["config"]).load_state_dict(weights, assign=True)  # type: ignore[attr-defined]
        net = build(about["fusion"], **about["config"])
        net.load_state_dict(weights)  # type: ignore[attr-defined]
    net.eval()
    return net
