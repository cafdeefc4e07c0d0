"""What several test files share, built once and only if asked for: planted clips and a model trained on them."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from migr.files.records import read_jsonl, write_jsonl

ROOT = Path(__file__).parents[1]

# How training reads media here: four frames of 56 x 56 pixels, so that a step takes a tenth of a second.
MEDIA = {"max_frames": 4, "max_pixels": 3136}
TRAINING = {
    **MEDIA,
    "dtype": "float32",
    "use_cpu": "true",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "report_to": "none",
    "disable_tqdm": "true",
    "logging_steps": 1,
    "seed": 0,
}


@dataclass(frozen=True)
class Planted:
    """28 train, 7 validation and 7 test clips, and the files that the first stages make of them."""

    folder: Path
    clips: Path
    reasoning: Path
    importance: Path  # made from the planted truth
    targets: Path  # dominant-first
    cache: Path


def flags(**values: Any) -> list[str]:
    """`key=value` as `--key value`; a list gives several values."""
    parts = []
    for key, value in values.items():
        parts += [f"--{key}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    return parts


def run_stage(name: str, **values: Any) -> None:
    """Run the main function of `stages/NAME.py` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *flags(**values)])
        importlib.import_module(f"stages.{name}").main()


@pytest.fixture(scope="session")
def stage() -> Callable[..., None]:
    """`stage("sft", model=..., max_steps=2)` runs that stage in this process."""
    return run_stage


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    sizes = flags(source="planted", out=folder / "clips", train=28, val=7, test=7)
    # in a process of its own: it forks, which is not safe beside torch's threads
    subprocess.run([sys.executable, ROOT / "stages" / "data.py", *sizes], check=True, capture_output=True, timeout=300)
    clips = folder / "clips" / "clips.jsonl"
    files = Planted(
        folder=folder,
        clips=clips,
        reasoning=clips.with_name("reasoning.jsonl"),
        importance=folder / "importance.jsonl",
        targets=folder / "targets.jsonl",
        cache=folder / "cache",
    )
    write_jsonl(files.importance, [importance_row(row) for row in read_jsonl(clips)])
    given = {"clips": clips, "reasoning": files.reasoning, "importance": files.importance}
    run_stage("targets", **given, order="dominant-first", out=files.targets)
    return files


def importance_row(clip: dict[str, Any]) -> dict[str, Any]:
    """The row of importance.jsonl that a perfect importance stage would write for a planted clip."""
    dominant = clip["planted"]["dominant"]
    weights = {modality: 0.8 if modality == dominant else 0.2 for modality in ("video", "audio")}
    return {"clip_id": clip["clip_id"], "importance": weights, "dominant": dominant, "margin": 0.6}


@pytest.fixture(scope="session")
def training(planted_run) -> dict[str, Any]:
    """The arguments that the training stages share."""
    return {**TRAINING, "clips": planted_run.clips, "cache_dir": planted_run.cache}


@pytest.fixture(scope="session")
def base_model(planted_run, tmp_path_factory) -> Path:
    """The tiny model with random weights."""
    out = tmp_path_factory.mktemp("base")
    run_stage("demo.base", data=planted_run.clips.parent, out=out)
    return out


@pytest.fixture(scope="session")
def warm_model(planted_run, training, base_model, tmp_path_factory) -> Path:
    """The tiny model with half of the train clips learned by heart: it answers in the format, and sometimes rightly."""
    out = tmp_path_factory.mktemp("warm")
    run_stage(
        "sft",
        **training | {"logging_steps": 20},
        model=base_model,
        targets=planted_run.targets,
        output_dir=out,
        lora_r=0,
        limit=14,
        max_steps=80,
        learning_rate=4e-3,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        per_device_train_batch_size=7,
        save_strategy="no",
    )
    return out / "model"


@pytest.fixture(scope="session")
def sft_adapter(planted_run, training, warm_model, tmp_path_factory) -> Path:
    """A LoRA adapter on the warm model, two steps old."""
    out = tmp_path_factory.mktemp("adapter")
    run_stage(
        "sft",
        **training,
        model=warm_model,
        targets=planted_run.targets,
        output_dir=out,
        lora_r=4,
        max_steps=2,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        save_strategy="no",
    )
    return out


@pytest.fixture(scope="session")
def omni_inputs(planted_run, base_model):
    """Features of the planted clips, as the training stages prepare them."""
    from migr.clips.media import MediaSettings
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import load_processor

    return OmniInputs(load_processor(base_model), MediaSettings(**MEDIA), planted_run.cache)
