"""The commands as a user meets them: from any folder, with help that teaches, and one clear line for every mistake."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import migr.omni  # noqa: F401  (mends the imports of trl, so it comes first)

# isort: split
import media_files
import pytest
from trl import GRPOConfig, SFTConfig

from migr.cli import read_config
from migr.errors import exit_on_input_error
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.training.arguments import GRPOArguments, SFTArguments, parse

ROOT = Path(__file__).parents[2]
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))


def start(*command, cwd, timeout=180):
    """Run a command from another folder; whatever it started is gone when this returns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"{command} hung for {timeout} s:\n{out}\n{err}")
    return process.returncode, out, err


def flags(**values):
    parts = []
    for key, value in values.items():
        parts += [f"--{key}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    return parts


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "demo").glob("[dgps]*.yaml")), ids=lambda path: path.stem)
def test_every_demo_config_is_read_by_its_stage(path):
    types = [GRPOArguments, GRPOConfig] if path.stem.startswith("grpo") else [SFTArguments, SFTConfig]
    own, config = parse(types, ["--config", str(path), "--max_steps", "3"])
    read = [vars(part) for part in (own, own.media_settings, config)]
    for key, value in read_config(path).items():
        (found,) = [part[key] for part in read if key in part]
        expected = 3 if key == "max_steps" else [] if value == "none" else value
        expected = float(expected) if isinstance(found, float) else expected  # YAML reads 1e-3 as text
        assert found == expected, key


# One line for every mistake


@pytest.fixture
def complaint(stage, capsys):
    """Run a stage that must refuse its input, as its script would; returns the line on stderr."""

    def run(name, **values):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended, exit_on_input_error():
            stage(name, **values)
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, out + err
        return err

    return run


@pytest.fixture
def sft(planted_run, training, base_model, tmp_path):
    return {**training, "model": base_model, "targets": planted_run.targets, "output_dir": tmp_path / "run"}


@pytest.fixture
def grpo(planted_run, training, base_model, tmp_path):
    sizes = {"per_device_train_batch_size": 4, "num_generations": 4, "max_steps": 1}
    given = {"model": base_model, "importance": planted_run.importance, "output_dir": tmp_path / "run"}
    return {**training, **given, **sizes}


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("stages/sft.py", ["--config", "typo.yaml"], "unknown key 'lerning_rate', did you mean 'learning_rate'?"),
        ("stages/grpo.py", ["--lerning_rate", "1"], "unknown flag '--lerning_rate', did you mean 'learning_rate'?"),
        ("stages/targets.py", ["--clips", "nothing.jsonl", "--reasoning", "x", "--order", "video-first", "--out", "y"],
         "nothing.jsonl: no such file"),
        ("eval/consistency.py", ["--predictons", "x"], "--predictons"),
    ],
)  # fmt: skip
def test_a_script_says_in_one_line_what_is_wrong_and_exits_with_2(script, arguments, message, tmp_path):
    (tmp_path / "typo.yaml").write_text("lerning_rate: 1.0e-3\n")
    code, out, err = start(sys.executable, ROOT / script, *arguments, cwd=tmp_path)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: ") and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["typo.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", "invalid float value: 'fast'"),
        ("max_steps: 2.5", "invalid int value: '2.5'"),
        ("- learning_rate", "config.yaml: expected `key: value` lines"),
        ("learning_rate: [1", "config.yaml: while parsing"),
        ("rewards: [format]", "unknown key 'rewards'"),  # GRPO's
        (None, "config.yaml: no such file"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(complaint, sft, tmp_path, text, message):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text + "\n")
    assert message in complaint("sft", **sft, config=path)
    assert not sft["output_dir"].exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": "nothing.jsonl"}, "--clips nothing.jsonl: no such file"),
        ({"targets": "nothing.jsonl"}, "--targets nothing.jsonl: no such file"),
        ({"model": ""}, "--model is missing"),
        ({"model": "nowhere"}, "nowhere: no such folder"),
        ({"model": "."}, "no such folder or model|no Qwen2.5-Omni or Qwen3-Omni model|config.json: no such file"),
        ({"labels": "emotions"}, "labels 'emotions': neither one of dfew, mafw nor a file"),
        ({"labels": "mafw"}, "clip 'train-00000': label 'happy' is not one of anger"),
        ({"dtype": "float99"}, "dtype: 'float99' is not one of"),
        ({"max_frames": 3}, "min_frames, max_frames: need even"),
        ({"learning_rat": 1}, "unknown flag '--learning_rat', did you mean 'learning_rate'"),
        ({"report_too": "none"}, "unknown flag '--report_too', did you mean 'report_to'"),
    ],
)
def test_sft_names_what_is_wrong_with_its_arguments(complaint, sft, changes, message):
    assert re.search(message, complaint("sft", **sft | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ["format", "speling"]}, "unknown reward 'speling'; there are format, accuracy"),
        ({"reward_weights": [1, 1]}, "2 reward_weights for 4 rewards"),
        ({"importance": ""}, "--importance is missing"),
        ({"importance": "nothing.jsonl", "rewards": ["format"]}, "--importance nothing.jsonl: no such file"),
        ({"judge": "oracle"}, "judge 'oracle': none of lexicon, .* and no folder"),
        ({"adapter": "nowhere"}, "--adapter nowhere: no such file or folder"),
        ({"adapter": "."}, "no adapter \\(adapter_config.json is missing\\)"),
        ({"lora_r": 0}, "GRPO trains an adapter"),
        ({"split": "dev"}, "no clip of split 'dev'"),
        ({"limit": 1, "gradient_accumulation_steps": 2}, "1 labelled clips, fewer than the 2 that make one batch"),
        ({"num_iterations": 2}, "num_iterations: 2 cannot be honoured here, it must be 1"),
        ({"steps_per_generation": 2}, "it must equal gradient_accumulation_steps"),
        ({"num_generations": 3}, "num_generations"),
    ],
)
def test_grpo_names_what_is_wrong_with_its_arguments(complaint, grpo, changes, message):
    assert re.search(message, complaint("grpo", **grpo | changes))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("data", {"out": "x", "train": 3}, "--train needs at least 14 clips"),
        ("demo.base", {"data": "nowhere", "out": "x"}, "nowhere/clips.jsonl: no such file"),
        ("demo.judge", {"fit": "nothing.jsonl", "check": "y", "out": "z"}, "nothing.jsonl: no such file"),
        ("export", {"model": "nowhere", "out": "x"}, "nowhere"),
    ],
)
def test_the_other_stages_name_what_is_wrong_too(complaint, name, values, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in complaint(name, **values)
    assert not list(tmp_path.iterdir())


def copy_of(planted_run, folder):
    """The planted clips in another folder, to be spoilt."""
    shutil.copytree(planted_run.clips.parent, folder)
    return folder / "clips.jsonl"


def test_a_wrong_row_of_the_manifest_is_named_and_mending_it_is_enough(complaint, stage, sft, planted_run, tmp_path):
    manifest = copy_of(planted_run, tmp_path / "clips")
    rows = read_jsonl(manifest)
    write_jsonl(manifest, [*rows[:2], {**rows[2], "label": "smug"}, *rows[3:]])
    small = {**sft, "clips": manifest, "limit": 4, "max_steps": 1, "per_device_train_batch_size": 4}
    assert f"{manifest}:3: clip 'train-00002': label 'smug' is not one of happy" in complaint("sft", **small)
    write_jsonl(manifest, rows)
    stage("sft", **small)  # the same output folder: nothing was lost, so nothing is in the way
    assert read_json(small["output_dir"] / "done.json")["steps"] == 1


def test_targets_must_fit_the_clips(complaint, sft, planted_run, tmp_path):
    rows = read_jsonl(planted_run.targets)
    path = tmp_path / "targets.jsonl"
    for spoilt, message in (
        ([], "no targets in it"),
        ([{**rows[0], "clip_id": "stranger"}], "clip stranger is not in"),
        ([{"clip_id": "train-00000", "prompt": "x"}], ":1: missing 'target'"),
    ):
        write_jsonl(path, spoilt)
        assert message in complaint("sft", **sft | {"targets": path})


@pytest.mark.parametrize("name", ["sft", "grpo"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_broken_clip_stops_training_before_it_starts(
    complaint, request, planted_run, tmp_path, monkeypatch, name, cached
):
    manifest = copy_of(planted_run, tmp_path / "clips")
    broken = tmp_path / "clips" / "clips" / "train-00020.mp4"
    if cached:  # its index is whole, so it opens; only decoding shows that the rest is missing
        media_files.clip(broken, faststart=True)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    arguments = request.getfixturevalue(name) | {"clips": manifest, "max_steps": 1}
    del arguments["cache_dir"]
    said = complaint(name, **arguments, **({"cache_dir": tmp_path / "cache"} if cached else {}))
    assert str(broken) in said and ("of 30 frames" in said if cached else "the index (moov) is missing" in said)
    assert not list(arguments["output_dir"].glob("checkpoint-*"))


def test_an_importance_that_lacks_a_clip_is_named(complaint, grpo, planted_run, tmp_path):
    path = tmp_path / "importance.jsonl"
    write_jsonl(path, [row for row in read_jsonl(planted_run.importance) if row["clip_id"] != "train-00009"])
    assert "no importance for clip train-00009" in complaint("grpo", **grpo | {"importance": path})


# accelerate and DeepSpeed


def test_accelerate_launches_a_stage_and_passes_its_complaint_on(planted_run, base_model, tmp_path):
    given = flags(clips=planted_run.clips, model=base_model, cache_dir=planted_run.cache, output_dir=tmp_path / "run")
    sizes = flags(limit=4, max_steps=1, per_device_train_batch_size=4, warmup_steps=0)
    config = ["--config", ROOT / "configs" / "demo" / "sft.yaml"]
    command = [
        ACCELERATE,
        "launch",
        "--cpu",
        "--num_processes",
        "1",
        ROOT / "stages" / "sft.py",
        *config,
        *given,
        *sizes,
    ]
    code, out, err = start(*command, "--targets", planted_run.targets, cwd=tmp_path)
    assert code == 0, out + err
    assert re.search(r"^sft: loss \d+\.\d+, 1 steps", out, re.MULTILINE)
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_size > 10_000
    # accelerate's own status is 1 whatever the script's was; the line and the 2 stand on stderr
    code, out, err = start(*command, "--targets", "nothing.jsonl", cwd=tmp_path)
    assert code == 1 and "error: --targets nothing.jsonl: no such file or folder\n" in err and "exit status 2" in err


needs_compiler = pytest.mark.skipif(
    not shutil.which("c++"), reason="DeepSpeed compiles its shared-memory operator for the CPU"
)


def zero2(script, arguments, cwd):
    """Train on two CPU processes under DeepSpeed ZeRO-2, over gloo."""
    config = ROOT / "configs" / "accelerate" / "zero2_cpu.yaml"
    launcher = [ACCELERATE, "launch", "--config_file", config, "--main_process_port", "0"]
    code, out, err = start(*launcher, ROOT / script, *flags(**arguments), cwd=cwd, timeout=240)
    assert code == 0, out + err
    assert (arguments["output_dir"] / "done.json").exists()


def logged(folder, *keys):
    log = read_json(folder / "trainer_state.json")["log_history"]
    return [[row[key] for key in keys] for row in log if "loss" in row]


@needs_compiler
def test_two_processes_under_zero2_learn_what_one_learns_in_sft(stage, sft, warm_model, tmp_path):
    from safetensors.torch import load_file

    from migr.omni.load import load_thinker

    shared = {**sft, "model": warm_model, "lora_r": 4, "limit": 8, "max_steps": 2, "learning_rate": 1e-3}
    shared |= {"save_steps": 2}
    stage("sft", **shared | {"per_device_train_batch_size": 4, "output_dir": tmp_path / "one"})
    zero2("stages/sft.py", shared | {"per_device_train_batch_size": 2, "output_dir": tmp_path / "two"}, tmp_path)
    assert (tmp_path / "two" / "checkpoint-2" / "global_step2").is_dir()  # DeepSpeed's, so it was there
    found, expected = (logged(tmp_path / name, "loss", "grad_norm") for name in ("two", "one"))
    assert found == [pytest.approx(row, rel=1e-3) for row in expected]
    saved = load_file(tmp_path / "two" / "adapter_model.safetensors")
    model = load_thinker(warm_model, adapter=tmp_path / "two")
    loaded = {name.replace(".default", ""): tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    assert loaded.keys() == saved.keys() and all((loaded[name] == saved[name]).all() for name in saved)
    assert all(tensor.abs().max() > 0 for tensor in saved.values())


@needs_compiler
def test_grpo_under_zero2_trains_and_resumes_exactly(grpo, warm_model, sft_adapter, tmp_path):
    from safetensors.torch import load_file

    shared = {**grpo, "model": warm_model, "adapter": sft_adapter, "limit": 4, "max_steps": 4, "save_steps": 1}
    shared |= {"learning_rate": 2e-3, "beta": 0.04, "temperature": 0.7, "max_completion_length": 72}
    zero2("stages/grpo.py", shared | {"output_dir": tmp_path / "whole"}, tmp_path)
    again = tmp_path / "again"  # two prompts a step, two steps an epoch: within epoch 1
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", again / "checkpoint-3")
    zero2("stages/grpo.py", shared | {"output_dir": again}, tmp_path)
    keys = ("loss", "grad_norm", "kl", "reward", "rewards/grounding/mean")
    assert logged(again, *keys) == logged(tmp_path / "whole", *keys)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "whole", again))
    start_of = load_file(sft_adapter / "adapter_model.safetensors")
    assert one.keys() == other.keys() == start_of.keys() and all((one[name] == other[name]).all() for name in one)
    assert any((one[name] != start_of[name]).any() for name in one)
    reference = load_file(again / "ref" / "adapter_model.safetensors")
    assert all((reference[name] == start_of[name]).all() for name in start_of)
