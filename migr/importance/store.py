"""The kinds of fusion network, and their files: weights as safetensors, shape and facts as JSON beside them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from migr.errors import InputError
from migr.files.records import digest, read_json, write_json
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, partial)
    partial.chmod(0o644)
    partial.replace(path)
    write_json(path.with_suffix(".json"), {"fusion": kind_of(net), "config": asdict(net.config), **about})


def load(path: str | Path) -> FusionNet:
    """Read a network that `save` wrote.

    Raises:
        InputError: A file is missing, damaged, or the two do not belong together.
    """
    path = Path(path)
    about = read_json(path.with_suffix(".json"))
    try:
        net = build(about["fusion"], **about["config"])
        net.load_state_dict(load_file(path))  # type: ignore[attr-defined]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        cause = json.dumps((str(error).splitlines() or [""])[0])
        raise InputError(f"{path}: no fusion network as {path.with_suffix('.json')} describes it ({cause})") from None
    net.eval()
    return net
