"""Write a checkpoint in the layout of the real repository, which vLLM and transformers both load.

vLLM knows the full model only: weights under `thinker.` and a config that wraps the thinker's. The talker (speech
output) is left out, and the config says so. Experts, which transformers stacks when it loads, are written one by one.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from migr.clips.record import NAME, read_record
from migr.errors import InputError, as_input_error
from migr.files.claim import LOCK
from migr.files.growing import alone, busy
from migr.files.records import check_writable, read_object, sync, sync_all, write_json
from migr.omni.adapters import check_adapter
from migr.omni.family import QWEN2_5, family_of
from migr.omni.load import HUB_NAME, check_model, load_processor, load_thinker

SHARD = "5GB"


def export(
    model: str | Path, out: str | Path, adapter: str | Path | None = None, beside: Mapping[str, Any] | None = None
) -> Path:
    """Merge an adapter into its base model, where there is one, and write the whole as one checkpoint.

    Args:
        model: A base model, or an adapter folder (its `base_model_name_or_path` is then the base).
        out: New folder, or one that holds an earlier checkpoint (replaced). It appears when it is complete.
        adapter: An adapter folder, when `model` is the base.
        beside: File name -> JSON value, to be written beside the weights.

    Returns:
        The folder.

    Raises:
        InputError: Model or adapter cannot be loaded or do not fit, or `out` is one of them or holds something else.
    """
    if adapter is None and (Path(model) / "adapter_config.json").is_file():
        adapter, model = model, adapter_base(model)
    check_model(model)
    for source in (model, adapter):
        if source is not None and Path(source).resolve() == Path(out).resolve():
            raise InputError(f"{out}: the export would overwrite what it is made from; choose another folder")
    check_writable(_check_free(Path(out)))
    record = read_record(adapter or model)
    thinker = load_thinker(model, adapter=adapter)
    if adapter is not None:
        with as_input_error(f"{adapter}: cannot be merged into {model}"):
            thinker = thinker.merge_and_unload(safe_merge=True)
    if record is not None:
        beside = {NAME: record.as_json(), **(beside or {})}
    return write_checkpoint(thinker, load_processor(model), out, beside)


def adapter_base(adapter: str | Path) -> str:
    """The folder of the base model that an adapter folder names.

    A name on the Hub is looked up among what was fetched before: a file never makes anybody ask the Hub.

    Raises:
        InputError: No adapter there, or it names none that is on this machine.
    """
    config = Path(check_adapter(adapter)) / "adapter_config.json"
    base = read_object(config).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise InputError(f"{config}: base_model_name_or_path is empty; give the base model and the adapter separately")
    if Path(base).is_dir():
        return base
    if not HUB_NAME.fullmatch(base):
        raise InputError(f"{base}: no such folder, which {config} names as its base model")
    with as_input_error(f"{config}: the base model {base} is not on this machine; name it yourself, with --adapter"):
        return snapshot_download(base, local_files_only=True)


def write_checkpoint(model: Any, processor: Any, out: str | Path, beside: Mapping[str, Any] | None = None) -> Path:
    """Write a thinker and its processor as a full checkpoint; `out` appears under its name when all is written.

    Args:
        model: The thinker.
        processor: Its processor.
        out: The folder.
        beside: File name -> JSON value, to be written beside the weights.

    Raises:
        InputError: `out` exists and is no checkpoint.
    """
    out, family = Path(out), family_of(model)
    assert family is not None, type(model)
    with _replacing(out) as folder:
        config = json.loads(model.config.to_json_string())
        write_json(
            folder / "config.json",
            {
                "architectures": [family.architecture],
                "model_type": family.name,
                "enable_audio_output": False,
                "dtype": str(model.dtype).removeprefix("torch."),
                "thinker_config": config,
            },
        )
        # by hand: `save_pretrained` insists on sampling settings that agree, which published ones do not always
        model.generation_config.to_json_file(folder / "generation_config.json")
        weights = {f"thinker.{name}": _own(tensor) for name, tensor in _as_published(model).items()}
        save_torch_state_dict(weights, folder, max_shard_size=SHARD)
        processor.save_pretrained(folder)
        if family is QWEN2_5:  # transformers' whole model reads the talker's voices, even where there is no talker
            torch.save({}, folder / "spk_dict.pt")
        for name, value in (beside or {}).items():
            write_json(folder / name, value)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner may read
    return out


def _as_published(model: Any) -> dict[str, Any]:
    """The thinker's weights under the names that the real repository has behind `thinker.`."""
    loaded_by = model.__dict__.pop("_weight_conversions", None)  # would put the prefix of the files it came from back
    try:
        return revert_weight_conversion(model, model.state_dict())
    finally:
        if loaded_by is not None:
            model._weight_conversions = loaded_by


def _own(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: safetensors refuses a slice of another, such as one of stacked experts."""
    return tensor.contiguous() if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _check_free(out: Path) -> Path:
    """Return the folder, or refuse to replace it if it is no checkpoint."""
    empty = out.is_dir() and all(path.name == LOCK for path in out.iterdir())  # whoever writes here may hold it
    if out.exists() and not (out / "config.json").is_file() and not empty:
        raise InputError(f"{out}: exists and is no model folder; choose another one or remove it")
    return out


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place at the end, if nothing failed."""
    _check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.????????"):  # of an export that was killed, as large as the model
        if (left / ".lock").is_file() and busy([left / ".lock"]) is None:
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        with alone(Path(scratch)):
            yield new
            sync_all(new)
        if out.exists():
            out.rename(old)
        new.rename(out)
    sync(out.parent)
