"""What is looked at in a model's folder before a library takes it over, and in its weights after that."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled

from migr.errors import InputError, as_input_error
from migr.files.parsing import parse_json
from migr.files.records import read_object

SLACK = 10_000_000  # weights
LONGEST_HEADER = 100 << 20  # bytes, as in safetensors itself

# In each call that loads: without it, transformers asks on standard input whether to run the code of a folder.
OURS_ALONE = {"trust_remote_code": False}
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# Bounds of what a processor's files set; the published models stay far below.
SANE = {
    "n_fft": 1 << 16, "hop_length": 1 << 16, "feature_size": 4096, "sampling_rate": 1 << 20, "patch_size": 1024,
    "merge_size": 64, "temporal_patch_size": 64,
}  # fmt: skip


def is_local(path: str | Path) -> bool:
    """Whether a model is a folder of this machine: then nobody is asked for anything."""
    return Path(path).is_dir()


def kernels_in(config: Any) -> str | None:
    """The name on the Hub of a kernel that a configuration wants for its attention, at any depth."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if isinstance(value, dict | list):
            if name := kernels_in(value):
                return name
        elif str(key).endswith("attn_implementation") and "/" in str(value):
            return str(value)
    return None


def check_processor(name: str) -> None:
    """Refuse the settings of a folder's processor that would make nonsense of each clip, or take all memory."""
    for file in PROCESSOR_FILES if is_local(name) else ():
        path = Path(name) / file
        if path.is_file():
            _check_numbers(path, read_object(path))


def _check_numbers(path: Path, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _check_numbers(path, value)
        elif key in SANE and not (type(value) is int and 1 <= value <= SANE[key]):
            raise InputError(f"{path}: {key} must be from 1 to {SANE[key]}, not {str(value)[:80]}")
        elif key == "image_std" and not (isinstance(value, list) and all(type(v) is float and v > 0 for v in value)):
            raise InputError(f"{path}: image_std must be numbers above 0, not {str(value)[:80]}")


def check_sizes(folder: str | Path, build: Callable[[], Any]) -> None:
    """Refuse a configuration that describes a model larger than what the weight files hold.

    transformers makes the whole model first and fills what is missing with random numbers: a few changed or absent
    words in config.json can take all memory.

    Args:
        folder: A model folder.
        build: Makes the model; called where tensors have shapes and no content.
    """
    with torch.device("meta"), as_input_error(f"{folder}: config.json describes no model"):
        total = sum(parameter.numel() for parameter in build().parameters())
    stored = sum(math.prod(shape) for path in sorted(Path(folder).glob("*.safetensors")) for shape in shapes(path))
    if total > 1.5 * stored + SLACK:  # a few that are missing are named once it is loaded
        raise InputError(
            f"{folder}: config.json describes a model of {total:,} weights, {stored:,} are there: weights are missing"
        )


def shapes(path: Path) -> Iterator[list[int]]:
    """The shape of each tensor of a safetensors file; InputError if its header is damaged."""
    with as_input_error(f"{path}: the weights cannot be read"), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError("header too large")
        header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        yield from (tensor["shape"] for tensor in header.values())


def check_config(kind: Any, folder: str | Path, where: str) -> None:
    """Refuse a folder whose config.json is none of `kind`, an auto class, or of a larger model than its files hold.

    Raises:
        InputError: As said; begins with `where`, or with the folder.
    """
    with as_input_error(where):
        config = AutoConfig.from_pretrained(folder, local_files_only=is_local(folder), **OURS_ALONE)
    if is_local(folder):
        check_sizes(folder, lambda: kind.from_config(config))


def load_whole(kind: Any, folder: str | Path, where: str, **options: Any) -> Any:
    """Load a model of one of transformers' auto classes from a folder, all its weights there and finite, no code run.

    Raises:
        InputError: It is no such model; begins with `where`.
    """
    safe: dict[str, Any] = {"local_files_only": is_local(folder), **OURS_ALONE}
    if not is_deepspeed_zero3_enabled():
        check_config(kind, folder, where)
    with as_input_error(where):
        model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **safe, **options)
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random ones and goes on
        raise InputError(f"{where}: {len(missing)} weights are missing, for example {missing[0]}")
    check_finite(model.named_parameters(), where)
    return model


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Models that are loaded here stay whole on every process, also where ZeRO-3 spreads the one that is trained."""
    training = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = training


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str | Path) -> None:
    """Raise InputError if a weight is not finite; names it. Such a model gives empty answers, and no error."""
    if name := damaged_weight(tensors):
        raise InputError(f"{where}: the weights of {name} are not finite numbers; the file is damaged")


def stored_weights(
    folder: str | Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a folder's safetensors files, one at a time, of each file in the order of the names.

    Raises:
        InputError: A file is damaged; names it.
    """
    for path in sorted(Path(folder).glob("*.safetensors")):
        with as_input_error(f"{path}: the weights cannot be read"), safe_open(path, framework="pt") as file:
            for name in filter(wanted, sorted(file.keys())):
                yield name, file.get_tensor(name)


def damaged_weight(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first of the tensors that has a value that is NaN or infinite."""
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or tensor.dtype == torch.float4_e2m1fn_x2:  # has no NaN
            continue
        for part in tensor.detach().flatten().split(1 << 24):  # bounds what is needed beside the weights
            if not torch.isfinite(part.half() if part.itemsize == 1 else part).all():  # FP8 must be widened for it
                return name
    return None
