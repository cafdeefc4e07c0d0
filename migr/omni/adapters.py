"""Put a PEFT adapter on a model: plain LoRA that fits exactly, or a refusal that says what does not; check a saved one.

PEFT itself warns of tensors that are missing and says nothing of tensors too many; it searches the target expression
with `re`, which an expression can keep busy for ever, and imports a module that some settings name.
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import regex
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from migr.errors import InputError, as_input_error
from migr.files.records import read_object
from migr.omni.checks import check_finite

# What a configuration may set; every other field of PEFT's must have its default (some name code, some need more than
# the two factors of a layer, and the merging for vLLM knows those alone).
_SETTINGS = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "rank_pattern",
    "alpha_pattern", "init_lora_weights", "task_type", "base_model_name_or_path", "inference_mode", "peft_type",
    "revision", "peft_version", "auto_mapping", "modules_to_save", "use_dora",
}  # fmt: skip
LARGEST_RANK = 4096
SECONDS = 2.0  # for a foreign expression on all names
_OF_TOWERS = re.compile(r"\.(?:audio_tower|visual)\.")


def check_adapter(path: str | Path) -> str:
    """Return the folder's name, or raise InputError if no PEFT adapter is stored there as safetensors."""
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(path) / file).is_file():
            raise InputError(f"{path}: no adapter ({file} is missing)")
    return str(path)


def attach_adapter(model: Any, path: str | Path, trainable: bool, own: Sequence[str]) -> PeftModel:
    """Put the adapter of a folder on a model.

    Args:
        model: The base model.
        path: The adapter's folder.
        trainable: Whether its weights are to be trained.
        own: Target expressions known to be harmless: this project's.

    Raises:
        InputError: No plain LoRA adapter, one whose tensors are not exactly those of this model, in name and shape, one
            with weights that are not finite, one that changes nothing, or one to be trained that adapts the towers.
    """
    folder = check_adapter(path)
    config = _read_config(Path(folder), trainable)
    written = config.target_modules, config.exclude_modules
    names = [name for name, _ in model.named_modules()]
    for key in ("target_modules", "exclude_modules"):
        expression = getattr(config, key)
        if isinstance(expression, str) and expression not in (*own, "all-linear"):
            setattr(config, key, _matching(expression, names, f"{folder}: {key}"))
    try:
        with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
            stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        with warnings.catch_warnings(action="ignore"):  # what it warns of is checked below
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, config=config)
            tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except Exception as error:
        with as_input_error(f"{folder}: the adapter does not fit the model"):
            raise error
    _check_fit(folder, stored, {name: tensor.shape for name, tensor in tensors.items()})
    check_finite(tensors.items(), folder)
    if changes_nothing(tensors):
        raise InputError(f"{folder}: the adapter changes nothing (all its products are zero): it has not been trained")
    if trainable and (names := [name for name in tensors if _OF_TOWERS.search(name)]):
        raise InputError(f"{folder}: adapts the towers ({names[0]}), and the language model's adapter alone is trained")
    config.target_modules, config.exclude_modules = written
    return adapted


def check_saved(folder: str | Path, model: Any, start: str | Path | None = None) -> bool:
    """Read a trained adapter back from the disk: it must be the model's, and finite.

    Args:
        folder: Where it was saved.
        model: The `PeftModel` that was trained; under ZeRO-3 its weights need not be here.
        start: Folder of the adapter that the training began with; None where it began with a new one.

    Returns:
        Whether the training has changed it.

    Raises:
        InputError: It is not there, damaged, empty or another one, has weights that are not finite, or is as new: then
            nobody could load it.
    """
    file = Path(check_adapter(folder)) / "adapter_model.safetensors"
    with as_input_error(f"{file}: the saved adapter cannot be read back"):
        saved = load_file(file)
    trained = {
        name.replace(".default", ""): getattr(weight, "ds_shape", weight.shape)  # ZeRO-3 keeps the whole's shape there
        for name, weight in model.named_parameters()
        if ".lora_" in name and ".default." in name
    }
    _check_fit(folder, {name: tensor.shape for name, tensor in saved.items()}, trained)
    check_finite(saved.items(), folder)
    if changes_nothing(saved):
        raise InputError(
            f"{folder}: the training has changed nothing: all gradients were zero (rewards that are all alike?), or "
            "the learning rate was (fewer steps than warmup_steps?)"
        )
    if start is None:
        return True
    before = load_file(Path(start) / "adapter_model.safetensors")
    return any(not torch.equal(before[name].to(tensor.dtype), tensor) for name, tensor in saved.items())


def changes_nothing(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the products of all factors are zero, as they are before the first step."""
    if any(".lora_A." not in name and ".lora_B." not in name for name in tensors):
        return False  # has more than the two factors of a layer
    layers = [name for name in tensors if ".lora_B." in name]
    return not any(tensors[name].any() and tensors[name.replace(".lora_B.", ".lora_A.")].any() for name in layers)


def _check_fit(folder: str | Path, stored: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    missing, surplus = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or surplus:
        fault = f"{missing[0]} is missing in it" if missing else f"{surplus[0]} is not of the model"
        raise InputError(f"{folder}: the adapter does not fit the model: {fault} ({len(missing) + len(surplus)} such)")
    for name in expected:
        if list(expected[name]) != list(stored[name]):
            needed = list(expected[name])
            raise InputError(f"{folder}: {name} has the shape {list(stored[name])}, the model needs {needed}")


def _read_config(folder: Path, trainable: bool) -> LoraConfig:
    path = folder / "adapter_config.json"
    values = read_object(path, peft_type=str, r=int, lora_alpha=int | float, target_modules=str | list)
    if values["peft_type"] != "LORA":
        raise InputError(f"{path}: an adapter of the kind {values['peft_type']!r}; LoRA alone is loaded")
    if not 1 <= values["r"] <= LARGEST_RANK or not math.isfinite(values["lora_alpha"]):
        raise InputError(f"{path}: r must be from 1 to {LARGEST_RANK} and lora_alpha finite")
    plain = LoraConfig().to_dict()
    for key, value in values.items():
        if key not in _SETTINGS and value not in (plain.get(key), None, False, {}, []):
            if key.startswith("megatron_core"):  # stands there always, and counts with megatron_config alone
                continue
            raise InputError(f"{path}: {key} is set, and plain LoRA alone is loaded")
        if trainable and key in ("use_dora", "modules_to_save") and value:
            raise InputError(f"{path}: {key} is set, and training goes on with plain LoRA alone")
    for key in ("rank_pattern", "alpha_pattern"):  # PEFT reads their keys as expressions
        pattern = values.get(key) or {}
        if not isinstance(pattern, dict) or not all(regex.fullmatch(r"[\w.^]+", name) for name in pattern):
            raise InputError(f"{path}: {key} must map names of modules to numbers")
        if not all(isinstance(number, int | float) and 0 < number <= 2**16 for number in pattern.values()):
            raise InputError(f"{path}: {key} must map names of modules to numbers")
    with as_input_error(f"{path}: no LoRA configuration"):
        return LoraConfig.from_pretrained(str(folder))


def _matching(expression: str, names: Sequence[str], where: str) -> list[str]:
    """The names that an expression matches; one that takes exponential time is refused instead of waited for."""
    left = SECONDS
    with as_input_error(f"{where} {expression[:80]!r} cannot be matched in {SECONDS:g} seconds"):
        pattern = regex.compile(expression)
        matches = []
        for name in names:
            if pattern.fullmatch(name, timeout=left):
                matches.append(name)
    if not matches and where.endswith("target_modules"):
        raise InputError(f"{where} {expression[:80]!r} matches nothing in the model")
    return matches
