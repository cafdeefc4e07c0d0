"""Power cuts in the midst of whole commands: the same command again ends in the same result.

What a cut may take is decided by what the command had handed to the disk (`tests/power.py`), not by us.
"""

import json
import shutil

import pytest
from power import DAMAGES, Commands, damage, small_disk
from safetensors.numpy import load_file

from migr.files.records import read_json, read_jsonl, write_jsonl
from tests.conftest import flags

TRAINERS = ("migr.omni", "trl", "peft", "migr.training.grpo", "migr.training.sft")
LIBRARIES = {"sft": TRAINERS, "grpo": TRAINERS, "planted": (), "table": ()}
MOMENTS = (0.15, 0.4, 0.6, 0.85, None)  # shares of what a whole run writes; None: just after it has ended
QUICK = (("planted", "empty"), ("planted", "zero-filled"), ("consistency", "cut"))
CASES = [
    pytest.param(name, kind, MOMENTS[(i + 2 * j) % 5], marks=() if (name, kind) in QUICK else pytest.mark.slow)
    for i, name in enumerate(("planted", "table", "describe", "sft", "grpo", "consistency", "grounding"))
    for j, kind in enumerate(DAMAGES)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(name, words, until)`: those that make clips fork again, which is not safe beside torch's threads."""
    with Commands(tmp_path_factory.mktemp("light")) as light, Commands(tmp_path_factory.mktemp("heavy")) as heavy:

        def run(name, module, words, until=None):
            libraries = LIBRARIES.get(name, ("migr.omni", "migr.engine.transformers"))
            return (heavy if libraries else light).run(module, *words, until=until, libraries=libraries)

        yield run


@pytest.fixture(scope="module")
def clips(planted_run):
    """Eight clips of the test split."""
    rows = [row | {"split": "test"} for row in read_jsonl(planted_run.clips)[:8]]
    path = planted_run.clips.with_name("eight.jsonl")
    write_jsonl(path, rows)
    return path


@pytest.fixture(scope="module")
def predictions(planted_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "predictions.jsonl"
    rows = read_jsonl(planted_run.targets)[:8]
    write_jsonl(path, ({"clip_id": r["clip_id"], "label": r["label"], "response": r["target"]} for r in rows))
    return path


@pytest.fixture(scope="module")
def given(request, planted_run, training, clips, predictions):
    """`given(name, folder)`: the module of a command, and its words; what it writes stands in the folder."""
    media = {"max_frames": 4, "max_pixels": 3136, "engine": "transformers", "batch_size": 4}
    sizes = {"lora_r": 4, "per_device_train_batch_size": 4, "save_steps": 1}

    def words(name, folder):
        cache = {"cache_dir": folder / "cache"}
        if name == "planted":
            return "stages.data", flags(source="planted", out=folder, train=14, val=0, test=2)
        if name == "table":
            root, table = planted_run.clips.parent, {"table": planted_run.clips, "workers": 2}
            return "stages.data", flags(source="table", **table, root=root, out=folder / "out")
        if name == "sft":
            small = {**training, **sizes, **cache, "limit": 8, "max_steps": 5, "learning_rate": 5e-3}
            small |= {"model": request.getfixturevalue("base_model"), "targets": planted_run.targets}
            return "stages.sft", flags(**small, output_dir=folder / "out")
        if name == "grpo":
            small = {**training, **sizes, **cache, "limit": 4, "max_steps": 4, "learning_rate": 2e-3}
            small |= {"gradient_accumulation_steps": 2, "num_generations": 4, "max_completion_length": 72}
            small |= {"model": request.getfixturevalue("warm_model"), "importance": planted_run.importance}
            small |= {"adapter": request.getfixturevalue("sft_adapter"), "temperature": 0.3}
            return "stages.grpo", flags(**small, output_dir=folder / "out")
        asked = {**media, **cache, "clips": clips, "model": request.getfixturevalue("base_model")}
        if name == "describe":
            words = flags(**asked, split="test", max_new_tokens=16, out=folder / "out" / "reasoning.jsonl")
            return "stages.describe", words
        if name == "grounding":
            return "eval.grounding", flags(**asked, predictions=predictions, resamples=20, out=folder / "out")
        words = flags(**asked, judge="lexicon", max_new_tokens=16, resamples=20, out=folder / "out")
        return "eval.consistency", words

    return words


def result(name, folder):
    """What a command is run for, to the last bit; without times."""
    out = folder / "out"
    if name == "planted":
        names = [path for path in folder.rglob("*") if path.suffix in (".mp4", ".jsonl")]
        return {path.name: path.read_bytes() for path in names}
    if name in ("sft", "grpo"):
        steps = [row for row in read_json(out / "trainer_state.json")["log_history"] if "loss" in row]
        times = ("step_time", "num_tokens", "judge_seconds")
        weights = {key: array.tobytes() for key, array in load_file(out / "adapter_model.safetensors").items()}
        return weights, [{key: value for key, value in row.items() if key not in times} for row in steps]
    files = {
        "table": ("clips.jsonl", "excluded.jsonl", "data.json"),
        "describe": ("reasoning.jsonl",),
        "grounding": ("grounding.jsonl", "grounding.json"),
        "consistency": ("predictions.jsonl", "judgements.jsonl", "metrics.json"),
    }
    return {file: (out / file).read_bytes() for file in files[name]}


@pytest.fixture(scope="module")
def whole(given, run, tmp_path_factory):
    """`whole(name)`: what an undisturbed run ends in, how many writes it makes and how many kilobytes it leaves."""
    known = {}

    def once(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            status, text, events = run(name, *given(name, folder))
            assert status == 0, text
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024
            known[name] = result(name, folder), len(events), size
        return known[name]

    return once


@pytest.mark.parametrize(("name", "kind", "moment"), CASES)
def test_a_command_ends_as_it_would_have_whatever_a_power_cut_took(name, kind, moment, given, whole, run, tmp_path):
    expected, writes, _ = whole(name)
    folder = tmp_path / "run"
    until = None if moment is None else max(1, round(moment * writes))
    status, text, events = run(name, *given(name, folder), until)
    assert status == (0 if until is None else -9), text
    names = damage(folder, events, kind)
    print(f"{name}, {kind} after {len(events)} of {writes} writes: {json.dumps(names)}")
    status, text, _ = run(name, *given(name, folder))
    assert status == 0, text[-3000:]
    assert result(name, folder) == expected
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "grpo", "describe"])
def test_a_command_says_that_the_disk_is_full_in_one_line_and_goes_on_with_room(name, given, whole, run, tmp_path):
    expected, _, size = whole(name)
    disk = tmp_path / "disk"
    with small_disk(disk, 64) as resize:
        for share in (0.1, 0.4, 0.7, 0.9):
            resize(int(share * size))
            status, text, _ = run(name, *given(name, disk / "run"))
            errors = [line for line in text.splitlines() if line.startswith("error")]
            assert (status, len(errors)) == (2, 1) and "Traceback" not in text, text[-3000:]
            assert "No space left on device" in errors[0] and "make room" in errors[0], errors
        resize(4 * size)
        status, text, _ = run(name, *given(name, disk / "run"))
        assert status == 0, text[-3000:]
        assert result(name, disk / "run") == expected
