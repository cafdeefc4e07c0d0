"""A run's folder: begin or resume it, and know which checkpoints are whole."""

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from migr.errors import InputError
from migr.files.records import digest, read_json, write_environment, write_json

MARKER = "complete"  # written last, after a barrier: a checkpoint without it may be half-written
# What may change between the two parts of an interrupted run without changing what is learned.
_FREE = (
    "output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "save_total_limit", "save_steps",
    "save_strategy", "logging_steps", "logging_strategy", "logging_first_step", "log_level", "log_completions",
    "resume_from_checkpoint", "overwrite", "dataloader_num_workers", "cache_dir", "local_rank", "hub_token",
    "ddp_timeout", "push_to_hub_token", "num_completions_to_print", "trackio_space_id", "project",
    "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
)  # fmt: skip


class CompleteMarker(TrainerCallback):
    """Mark a checkpoint as whole once every rank has written its part."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer on every rank after it has saved."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / MARKER).touch()


def last_complete(output_dir: str | Path) -> Path | None:
    """The newest checkpoint that carries the marker; half-written ones are passed over."""
    whole = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{MARKER}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def begin(output_dir: str | Path, *configs: Any, inputs: tuple[str, ...] = (), overwrite: bool = False) -> str | None:
    """Open the run's folder and say where to go on.

    Args:
        output_dir: The run's folder.
        configs: Dataclasses or dicts that define the run.
        inputs: Files whose content defines the run too.
        overwrite: Discard what another configuration left there.

    Returns:
        None for a fresh start, "done" if this very run is finished, or the checkpoint to resume from.

    Raises:
        InputError: The folder holds a run of another configuration.
    """
    folder = Path(output_dir)
    config = {}
    for part in configs:
        values = part.to_dict() if hasattr(part, "to_dict") else dict(part if isinstance(part, dict) else vars(part))
        config.update({key: value for key, value in values.items() if key not in _FREE})
    config["inputs"] = {name: digest(Path(name).read_bytes()) for name in inputs}
    key = digest({name: str(value) for name, value in config.items()})
    state = PartialState()
    recorded = folder / "run.json"
    other = recorded.exists() and read_json(recorded)["digest"] != key
    # a run that never reached a checkpoint (its input was at fault, say) has nothing to lose
    if other and not overwrite and ((folder / "done.json").exists() or last_complete(folder)):
        raise InputError(
            f"{folder} holds a run of another configuration: give another --output_dir, or --overwrite true"
        )
    state.wait_for_everyone()
    if state.is_main_process and other and overwrite:
        shutil.rmtree(folder)
    if state.is_main_process and (other or not recorded.exists()):
        write_environment(folder)
        write_json(recorded, {"digest": key, "config": {name: str(value) for name, value in config.items()}})
    state.wait_for_everyone()
    if (folder / "done.json").exists():
        return "done"
    checkpoint = last_complete(folder)
    return None if checkpoint is None else str(checkpoint)


def finish(output_dir: str | Path, summary: dict[str, Any]) -> None:
    """Mark the run as finished: a rerun of the same configuration finds it and does nothing."""
    if PartialState().is_main_process:
        write_json(Path(output_dir) / "done.json", {**summary, **_peak()})
    PartialState().wait_for_everyone()


def _peak() -> dict[str, Any]:
    """What this process needed of its GPU at most, in bytes."""
    if not torch.cuda.is_initialized():
        return {}
    peak = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {"gpu": {"name": torch.cuda.get_device_name(), **peak}}
