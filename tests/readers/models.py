"""Models, adapters, checkpoints, targets, fusion networks, and what a rollout server is asked."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np

from readers.content import (
    DFEW,
    MANIFEST,
    TARGETS,
    document,
    later,
    lines,
    reader,
)

ADAPTER = {
    **{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.0, "bias": "none"},
    **{"task_type": "CAUSAL_LM", "base_model_name_or_path": None, "rank_pattern": {}, "alpha_pattern": {}},
}


def targets(folder):
    from migr.files.records import read_jsonl

    read_clips = later("migr.clips.manifest", "read_clips")
    clips = {clip.clip_id: clip for clip in read_clips(folder / "clips.jsonl", DFEW)}
    rows = read_jsonl(folder / "targets.jsonl", ["clip_id", "prompt", "target"])
    if all(row["clip_id"] in clips for row in rows):
        later("migr.training.sft", "check_targets")(folder / "targets.jsonl", rows, clips)


def adapter(folder):
    later("migr.omni.adapters", "_read_config")(folder, True)


def model(folder):
    later("migr.omni.load", "check_model")(folder)
    list(later("migr.omni.load", "thinker_config")(folder).to_dict())


def resumed(folder):
    later("migr.training.runs", "last_complete")(folder)
    later("migr.training.runs", "begin")(folder, {"a": 1})


def fusion(folder):
    later("migr.importance.store", "load")(folder / "fusion.safetensors")


def fusion_files():
    import tempfile

    from migr.importance.store import build, save

    net = build("dual-gate", dims={"video": 4, "audio": 3}, n_classes=7)
    with tempfile.TemporaryDirectory() as name:
        save(net, Path(name) / "fusion.safetensors", labels=list(DFEW.labels))
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


@cache
def rollout_task():
    import tempfile

    name = Path(tempfile.mkdtemp()) / "tiny"
    processor = later("migr.omni.load", "load_processor")(
        later("migr.omni.tiny", "build_tiny")(name, ["Which emotion? happy or sad."] * 20)
    )
    inputs = later("migr.omni.inputs", "OmniInputs")(processor, later("migr.settings", "MediaSettings")())
    shutil.rmtree(name.parent)
    return later("migr.engine.task", "Task")(inputs, 64, 0.0, 0, 8, 4096)


def rollout_request():
    """Words and tensors of a message that asks for two draws of a clip."""
    task = rollout_task()
    rng = np.random.default_rng(0)
    frames, sound = rng.integers(0, 255, (4, 3, 56, 56), dtype=np.uint8), rng.standard_normal(8000).astype(np.float32)
    features = task.inputs.process(later("migr.clips.media", "Media")(frames, 2.0, sound, 0.5))
    prompt = later("migr.omni.prompt", "render_prompt")(task.inputs.processor, "Which?", True, True)
    ids = task.inputs.prompt_ids(prompt, features)
    words = {"settings": {}, "weights": "a", "prompts": [["m", ids]], "draws": [[0, 1], [0, None]]}
    return words, {f"m/{name}": tensor for name, tensor in features.items()}


def asked(folder):
    words, tensors = later("migr.rollout.protocol", "unpack")((folder / "message").read_bytes())
    list(later("migr.rollout.checking", "read_draws")(rollout_task(), words, tensors))


def worded(folder):
    from migr.files.records import read_json

    words = read_json(folder / "words")
    list(later("migr.rollout.checking", "read_draws")(rollout_task(), words, rollout_request()[1]))


READERS = {
    "trainer's log": reader(
        "trainer_state.json",
        document({"log_history": [{"step": 1, "loss": 0.5, "rewards/format/mean": 0.1}]}),
        "json",
        lambda f: later("migr.training.history", "warnings")(later("migr.training.history", "read_history")(f)),
    ),
    "targets": reader("targets.jsonl", lines(TARGETS), "jsonl", targets, MANIFEST),
    "adapter_config.json": reader("adapter_config.json", document(ADAPTER), "json", adapter),
    "config.json": reader(
        "config.json",
        document(
            {
                "model_type": "qwen2_5_omni",
                "architectures": ["A"],
                "thinker_config": {"text_config": {"hidden_size": 64}, "audio_config": {}},
            }
        ),
        "json",
        model,
    ),
    "training's run.json": reader(
        "run.json", document({"run": {"a": 1, "processes": 1, "distributed": "NO"}, "trainer": {}}), "json", resumed
    ),
    "checkpoint's marker": reader(
        "checkpoint-2/complete", document({"a.bin": [1, 1739517911]}), "json", resumed, {"checkpoint-2/a.bin": b"x"}
    ),
    "rollout message": reader(
        "message", lambda: later("migr.rollout.protocol", "pack")(*rollout_request()), "bytes", asked
    ),
    "rollout words": reader("words", lambda: document(rollout_request()[0]), "json", worded),
    "processor's settings": reader(
        "preprocessor_config.json",
        document({"image_std": [0.5, 0.5, 0.5], "patch_size": 14, "n_fft": 400, "size": {"merge_size": 2}}),
        "json",
        lambda f: later("migr.omni.checks", "check_processor")(str(f)),
    ),
    "fusion.json": reader("fusion.json", lambda: fusion_files()["fusion.json"], "json", fusion, fusion_files),
    "fusion.safetensors": reader(
        "fusion.safetensors", lambda: fusion_files()["fusion.safetensors"], "bytes", fusion, fusion_files
    ),
}
