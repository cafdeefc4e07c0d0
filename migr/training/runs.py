"""A run's folder: begin or resume it, and know which checkpoints are whole."""

import json
import re
import sys
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from migr.errors import InputError, as_input_error, printable
from migr.files.claim import clear, differences, hold, refuse_other
from migr.files.fingerprint import file_digest
from migr.files.records import read_object, sync_all, write_environment, write_json

MARKER = "complete"  # written last, after a barrier: a checkpoint without it may be half-written
# What may change between the two parts of an interrupted run without changing what is learned.
_FREE = (
    "output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "save_total_limit", "save_steps",
    "save_strategy", "logging_steps", "logging_strategy", "logging_first_step", "log_level", "log_completions",
    "overwrite", "dataloader_num_workers", "cache_dir", "judge_cache", "local_rank", "hub_token",
    "ddp_timeout", "push_to_hub_token", "num_completions_to_print", "trackio_space_id", "project",
    "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
)  # fmt: skip


class CompleteMarker(TrainerCallback):
    """Mark a checkpoint as whole once every rank has written its part."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer on every rank after it has saved."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if PartialState().is_local_main_process:
            sync_all(checkpoint)  # before the marker: a power cut must not leave the marker alone
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            mark(checkpoint)


class EndsOnce(Trainer):
    """A trainer that is at its end where it goes on from the checkpoint of its last step.

    transformers asks only behind a step whether that was the last one, and would make another. What a checkpoint holds
    that is no state of a training, such as a pickle with code in it (which torch refuses), is an InputError.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        """Train, from a checkpoint on where one is named; of its state, transformers believes whatever is there."""
        if isinstance(resume_from_checkpoint, str):
            with _readable(resume_from_checkpoint):
                TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        return super().train(resume_from_checkpoint, *args, **options)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with _readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        saved: Any = self.state.stateful_callbacks
        if saved.get("TrainerControl", {}).get("args", {}).get("should_training_stop"):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **options)


def _readable(checkpoint: str | None) -> AbstractContextManager[None]:
    return as_input_error(f"{checkpoint} holds no state of a training; delete it to go on from the one before it")


def mark(checkpoint: Path) -> None:
    """Write the marker of a checkpoint that is whole: the size and sum of each of its files."""
    write_json(checkpoint / MARKER, {str(path.relative_to(checkpoint)): _sum(path) for path in _files(checkpoint)})


def last_complete(output_dir: str | Path) -> Path | None:
    """The newest checkpoint whose files are those that its marker names; the others are passed over, damaged ones with
    a note.
    """
    numbered = re.compile(r"checkpoint-(\d{1,12})")
    folders = {int(match[1]): path for path in Path(output_dir).glob("*") if (match := numbered.fullmatch(path.name))}
    for _, folder in sorted(folders.items(), reverse=True):
        if (folder / MARKER).is_file():
            fault = _fault(folder)
            if fault is None:
                return folder
            if PartialState().is_main_process:
                print(printable(f"note: {folder} is damaged ({fault}); it is passed over"), file=sys.stderr)
    return None


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that carries a marker."""
    try:
        sums = read_object(checkpoint / MARKER)
    except InputError as error:
        return str(error)
    if missing := sorted(sums.keys() - {str(path.relative_to(checkpoint)) for path in _files(checkpoint)}):
        return f"{missing[0]} is missing"
    return next((f"{name} is not as it was" for name in sums if _sum(checkpoint / name) != sums[name]), None)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)


def _sum(path: Path) -> list[int]:
    """A file's size and CRC-32: it notices what an accident changes, as fast as a disk reads."""
    total = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            total = zlib.crc32(part, total)
    return [path.stat().st_size, total]


def begin(output_dir: str | Path, *configs: Any, inputs: tuple[str, ...] = (), overwrite: bool = False) -> str | None:
    """Open the run's folder for this process and say where to go on.

    Args:
        output_dir: The run's folder.
        configs: What defines the run: dicts, TRL's configuration, or dataclasses (whose `run_config` says it).
        inputs: Files whose content defines the run too.
        overwrite: Discard what another configuration left there.

    Returns:
        None for a fresh start, "done" if this very run is finished, or the checkpoint to resume from.

    Raises:
        InputError: The folder holds a run of another configuration (names what differs), or another process is at it.
    """
    folder, state = Path(output_dir), PartialState()
    own: dict[str, Any] = {"processes": state.num_processes, "distributed": state.distributed_type.value}
    trainer: dict[str, Any] = {}
    for part in configs:
        if isinstance(part, TrainingArguments):
            trainer |= part.to_dict()
        else:
            own |= part.run_config() if hasattr(part, "run_config") else dict(part)
    own |= {f"content of {Path(name).name}": file_digest(Path(name)) for name in inputs}
    own, trainer = ({key: _plain(value) for key, value in part.items() if key not in _FREE} for part in (own, trainer))
    recorded = folder / "run.json"
    old = read_object(recorded, run=dict, trainer=dict) if recorded.exists() else None
    if state.is_main_process:
        hold(folder)
    changed = [] if old is None else differences(old["run"], own)
    if old is not None:  # fields that another version of the library has, or lacks, say nothing
        before = {key: value for key, value in old["trainer"].items() if key in trainer}
        changed += differences(before, {key: trainer[key] for key in before})
    # a run that never reached a checkpoint (its input was at fault, say) has nothing to lose
    if changed and not overwrite and ((folder / "done.json").exists() or last_complete(folder)):
        refuse_other(folder, changed, "--output_dir")
    state.wait_for_everyone()
    if state.is_main_process and changed and overwrite:
        clear(folder)
    if state.is_main_process and (changed or old is None):
        write_environment(folder)
        write_json(recorded, {"run": own, "trainer": trainer})
    state.wait_for_everyone()
    if (folder / "done.json").exists():
        return "done"
    checkpoint = last_complete(folder)
    if checkpoint is None:
        return None
    if state.is_main_process:
        print(f"going on from step {checkpoint.name.rpartition('-')[2]} of {folder}", flush=True)
    return str(checkpoint)


def _plain(value: Any) -> Any:
    """A value as JSON will read it back; a file by its content, so that its path does not matter."""
    if isinstance(value, str) and value.endswith((".json", ".yaml")) and Path(value).is_file():
        return file_digest(Path(value))
    return json.loads(json.dumps(value, default=str))


def finish(output_dir: str | Path, summary: dict[str, Any]) -> None:
    """Mark the run as finished: a rerun of the same configuration finds it and does nothing."""
    if PartialState().is_main_process:
        sync_all(Path(output_dir))
        write_json(Path(output_dir) / "done.json", {**summary, **_peak()})
    PartialState().wait_for_everyone()


def _peak() -> dict[str, Any]:
    """What this process needed of its GPU at most, in bytes."""
    if not torch.cuda.is_initialized():
        return {}
    peak = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {"gpu": {"name": torch.cuda.get_device_name(), **peak}}
