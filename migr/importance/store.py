"""The kinds of fusion network, and their files: weights as safetensors, shape and facts as JSON beside them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from migr.errors import InputError
from migr.files.records import Row, digest, read_json, write_json
from migr.importance.networks.baselines import ConcatConfig, ConcatFusion
from migr.importance.networks.dual_gate import DualGateFusion, FusionConfig
from migr.importance.networks.experts import ExpertConfig, ExpertFusion

Net = DualGateFusion | ExpertFusion | ConcatFusion
NETS: dict[str, tuple[Any, Any]] = {
    "dual-gate": (DualGateFusion, FusionConfig),
    "experts": (ExpertFusion, ExpertConfig),
    "concatenation": (ConcatFusion, ConcatConfig),
}


def build(fusion: str, **shape: Any) -> Any:
    """A new network of this kind, with random weights."""
    kind, config = NETS[fusion]
    return kind(config(**shape))


def kind_of(net: Net) -> str:
    """The name of its kind in `NETS`."""
    return next(name for name, (kind, _) in NETS.items() if isinstance(net, kind))


def shape_of(net: Net) -> Row:
    """The fields of its configuration; `gates` only where it is not both, as in files of version 0.1."""
    return {key: value for key, value in asdict(net.config).items() if (key, value) != ("gates", "both")}


def fingerprint(net: Net) -> str:
    """A hash of weights and shape."""
    # sorted without the prefix, so that a network has the hash that version 0.1 gave it
    items = sorted(net.state_dict().items(), key=lambda item: item[0].removeprefix("reading."))
    return digest(shape_of(net), *(tensor.contiguous().numpy().tobytes() for _, tensor in items))


def save(net: Net, path: str | Path, **about: Any) -> None:
    """Write `path` (.safetensors) and, beside it, its kind, its shape and the JSON values of `about` (.json)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, partial)
    partial.chmod(0o644)
    partial.replace(path)
    write_json(path.with_suffix(".json"), {"fusion": kind_of(net), "config": shape_of(net), **about})


def load(path: str | Path) -> Any:
    """Read a network that `save` wrote.

    Raises:
        InputError: A file is missing, damaged, or the two do not belong together.
    """
    path = Path(path)
    about = read_json(path.with_suffix(".json"))
    try:
        net = build(about["fusion"], **about["config"])
        net.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        cause = json.dumps((str(error).splitlines() or [""])[0])
        raise InputError(f"{path}: no fusion network as {path.with_suffix('.json')} describes it ({cause})") from None
    return net.eval()
