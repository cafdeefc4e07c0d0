"""Two processes learn what one learns, under DeepSpeed and on two machines, also where a process lacks a modality."""

import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import pytest
import torch
from conftest import ROOT, flags
from launching import ACCELERATE, CONFIGS, DDP, logged, needs_compiler, run, two_processes
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from migr.errors import InputError
from migr.files.records import read_jsonl, write_jsonl
from migr.omni.load import LORA, load_thinker
from migr.training.zero3 import check_mixed, check_zero3, prepare_for_zero3

KINDS = ("both", "silent", "blind", "silent", "blind", "both")  # in pairs, one for each process


@pytest.fixture(scope="module")
def mixed(planted_run):
    """Six clips in an order in which two processes never see the same modalities: manifest, targets."""
    clips, targets = (planted_run.clips.with_name(f"mixed_{name}.jsonl") for name in ("clips", "targets"))
    rows = [row for row in read_jsonl(planted_run.clips) if row["split"] == "train"][: len(KINDS)]
    for row, kind in zip(rows, KINDS, strict=True):
        row |= {"has_video": kind != "blind", "has_audio": kind != "silent"}
    write_jsonl(clips, rows)
    given = {row["clip_id"]: row for row in read_jsonl(planted_run.targets)}
    keys = ("clip_id", "prompt", "target")
    write_jsonl(targets, [{key: given[row["clip_id"]][key] for key in keys} for row in rows])
    return SimpleNamespace(clips=clips, targets=targets)


@pytest.fixture(scope="module")
def sft(training, warm_model, mixed):
    """Three steps of two rows, in the order of the file."""
    own = {"model": warm_model, "clips": mixed.clips, "targets": mixed.targets, "lora_r": 4, "max_steps": 3}
    own |= {"learning_rate": 5e-3, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    return {**training, **own, "save_steps": 3}


@pytest.fixture(scope="module")
def alone(stage, sft, tmp_path_factory):
    """What one process learns."""
    out = tmp_path_factory.mktemp("alone")
    stage("sft", **sft, per_device_train_batch_size=2, output_dir=out)
    return out


def assert_learned_alike(found, expected, steps=3):
    """The same losses, gradients and adapters, up to the order of sums."""
    ours, theirs = (logged(folder, "loss", "grad_norm")[:steps] for folder in (found, expected))
    assert len(ours) == steps and ours == [pytest.approx(row, rel=2e-3, abs=1e-5) for row in theirs]


def assert_reloads(folder, model, start_of=None):
    """The adapter is not empty, has learned, and is loaded as it was saved."""
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = {
        name.replace(".default", ""): tensor
        for name, tensor in load_thinker(model, adapter=folder).state_dict().items()
        if ".lora_" in name
    }
    assert loaded.keys() == saved.keys() and saved
    assert all(tensor.numel() and tensor.abs().max() > 0 for tensor in saved.values())
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    if start_of is not None:
        assert any(not torch.equal(tensor, start_of[name]) for name, tensor in saved.items())
    return saved


@needs_compiler
def test_sft_under_zero3_with_a_modality_missing_on_one_process_learns_what_one_process_learns(
    sft, alone, warm_model, tmp_path
):
    script = [ROOT / "stages" / "sft.py", *flags(**sft, per_device_train_batch_size=1, output_dir=tmp_path / "two")]
    said = run(tmp_path, [*two_processes("zero3_cpu.yaml"), *script])
    assert said.count("memory: about") == 1 and said.count("sft: loss") == 1
    assert_learned_alike(tmp_path / "two", alone)
    saved = assert_reloads(tmp_path / "two", warm_model)
    expected = load_file(alone / "adapter_model.safetensors")
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(saved[name], tensor, atol=2e-3, rtol=2e-2)
    assert (tmp_path / "two" / "checkpoint-3" / "complete").exists()


# Plain data parallelism


def run_both(launcher, folder, runs):
    """Stages one after the other on two processes: name -> (stage, arguments)."""
    plan = {str(folder / name): [stage, *flags(**arguments)] for name, (stage, arguments) in runs.items()}
    return run(folder, [*launcher, Path(__file__).parents[1] / "two_processes.py", json.dumps(plan)])


@pytest.fixture(scope="module")
def all_weights(sft):
    """All weights, with checkpointing: then nothing looks for parameters without a gradient."""
    return {**sft, "lora_r": 0, "learning_rate": 1e-3, "gradient_checkpointing": "true"}


@pytest.fixture(scope="module")
def all_weights_alone(stage, all_weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("all_weights")
    stage("sft", **all_weights, per_device_train_batch_size=2, output_dir=out)
    return out


def assert_same_weights(folder, other):
    """The whole models that two runs wrote are alike, and have learned in the towers too."""
    ours, theirs = (load_file(path / "model" / "model.safetensors") for path in (folder, other))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=2e-3, rtol=2e-2)


@pytest.mark.slow
def test_reports_19_20_25_on_two_processes(
    stage, training, all_weights, all_weights_alone, mixed, planted_run, warm_model, sft_adapter, tmp_path
):
    grpo = {"model": warm_model, "adapter": sft_adapter, "clips": mixed.clips, "importance": planted_run.importance}
    grpo |= {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 32}
    grpo = {**training, **grpo, "learning_rate": 2e-3, "beta": 0.04, "save_strategy": "no"}
    recomputed = {**grpo, "gradient_checkpointing": "true"}
    reentrant = {**recomputed, "gradient_checkpointing_kwargs": json.dumps({"use_reentrant": True})}
    whole = {**all_weights, "per_device_train_batch_size": 1}
    adapted = {**whole, "lora_r": 4, "save_steps": 1}
    run_both(
        DDP,
        tmp_path,
        {
            **{"plain": ("grpo", grpo), "recomputed": ("grpo", recomputed), "reentrant": ("grpo", reentrant)},
            **{"whole": ("sft", whole), "whole_plain": ("sft", {**whole, "gradient_checkpointing": "false"})},
            "adapted": ("sft", adapted),
        },
    )
    # 19: the same losses, gradients, rewards and adapters
    keys = ("loss", "grad_norm", "reward", "kl", "completions/mean_length")
    plain = logged(tmp_path / "plain", *keys)
    assert len(plain) == 2 and all(row[1] > 0 for row in plain)
    for name in ("recomputed", "reentrant"):
        assert logged(tmp_path / name, *keys) == [pytest.approx(row, rel=1e-4, abs=1e-6) for row in plain]
        assert_reloads(tmp_path / name, warm_model)
    # 25: no batch of a process has what the other's has, and they learn what one process learns
    for name in ("whole", "whole_plain"):
        assert_learned_alike(tmp_path / name, all_weights_alone)
        assert_same_weights(tmp_path / name, all_weights_alone)
    # 20: the number of processes is part of a run
    (tmp_path / "adapted" / "done.json").unlink()
    with pytest.raises(InputError, match=r"with another processes \(2, now 1\), .*--overwrite"):
        stage("sft", **adapted, output_dir=tmp_path / "adapted")


@pytest.mark.slow
@needs_compiler
def test_reports_20_25_under_zero2(all_weights, planted_run, stage, tmp_path):
    """Rows that are alike are trained on; of others, see below."""
    alike = {**all_weights, "clips": planted_run.clips, "targets": planted_run.targets}
    stage("sft", **alike, per_device_train_batch_size=2, output_dir=tmp_path / "alone")
    whole = {**alike, "per_device_train_batch_size": 1}
    run_both(two_processes("zero2_cpu.yaml"), tmp_path, {"whole": ("sft", whole)})
    assert_learned_alike(tmp_path / "whole", tmp_path / "alone")
    assert_same_weights(tmp_path / "whole", tmp_path / "alone")
    (tmp_path / "whole" / "done.json").unlink()
    with pytest.raises(InputError, match=r"processes \(2, now 1\)"):
        stage("sft", **whole, output_dir=tmp_path / "whole")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("config", ["zero2_cpu.yaml", "zero3_cpu.yaml"])
def test_grpo_with_a_modality_missing_on_one_process_learns_what_one_process_learns(
    config, mixed, planted_run, warm_model, sft_adapter, tmp_path
):
    script = [Path(__file__).parents[1] / "scaled_grpo.py", warm_model, sft_adapter, mixed.clips, planted_run.cache]
    run(tmp_path, [sys.executable, *script, tmp_path / "one"])
    run(tmp_path, [*two_processes(config), *script, tmp_path / "two"])
    assert_learned_alike(tmp_path / "two", tmp_path / "one", steps=2)  # the third one samples
    (kl, reward) = logged(tmp_path / "two", "kl", "reward")[2]
    assert kl > 0 and 0 < reward <= 1
    before = load_file(sft_adapter / "adapter_model.safetensors")
    assert_reloads(tmp_path / "two", warm_model, start_of=before)
    reference = load_file(tmp_path / "two" / "ref" / "adapter_model.safetensors")
    assert all(torch.equal(reference[name], before[name]) for name in before)


@pytest.mark.slow
@needs_compiler
def test_the_grpo_stage_samples_with_vllm_on_two_processes_under_zero3(
    training, planted_run, mixed, warm_model, sft_adapter, tmp_path
):
    own = {"model": warm_model, "adapter": sft_adapter, "clips": mixed.clips, "importance": planted_run.importance}
    own |= {"use_vllm": "true", "max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4}
    own |= {"max_completion_length": 72, "learning_rate": 0.01, "beta": 0.04, "save_strategy": "no"}
    script = [ROOT / "stages" / "grpo.py", *flags(**{**training, **own, "output_dir": tmp_path / "two"})]
    run(tmp_path, [*two_processes("zero3_cpu.yaml"), *script])
    gaps = logged(tmp_path / "two", "sampling/sampling_logp_difference/mean")
    # also the mass of the media tokens, which vLLM never samples
    assert len(gaps) == 2 and all(0 <= gap < 3e-2 for (gap,) in gaps)
    assert_reloads(tmp_path / "two", warm_model)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("config", "launcher"), [("zero2_cpu.yaml", "standard"), ("zero3_cpu.yaml", "nossh")])
def test_two_machines_learn_what_one_process_learns(config, launcher, sft, alone, warm_model, tmp_path):
    """Two launches that find each other over the loopback network, by accelerate's and by DeepSpeed's own launcher."""
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = ["--num_machines", "2", "--num_processes", "2", "--deepspeed_multinode_launcher", launcher]
    machines += ["--deepspeed_hostfile", str(tmp_path / "hosts")]
    machines += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    script = [ROOT / "stages" / "sft.py", *flags(**sft, per_device_train_batch_size=1, output_dir=tmp_path / "two")]
    command = [ACCELERATE, "launch", "--config_file", CONFIGS / config, *machines, "--machine_rank"]
    run(tmp_path, *([*command, rank, *script] for rank in (0, 1)))
    assert_learned_alike(tmp_path / "two", alone)
    assert_reloads(tmp_path / "two", warm_model)


# Without processes


def test_towers_kept_whole_are_no_part_of_the_model_and_work_as_before(warm_model, omni_inputs, mixed):
    from migr.clips.manifest import read_clips

    model = get_peft_model(load_thinker(warm_model), LoraConfig(r=4, **LORA, task_type="CAUSAL_LM"))
    thinker = model.get_base_model()
    names = [name for name in thinker.state_dict() if name.startswith(("visual.", "audio_tower."))]
    features = omni_inputs.features(read_clips(mixed.clips)[0])
    grid = features["video_grid_thw"]
    with torch.no_grad():
        before = thinker.get_video_features(features["pixel_values_videos"], grid, return_dict=True).pooler_output[0]
        prepare_for_zero3(model, torch.device("cpu"))
        after = thinker.get_video_features(features["pixel_values_videos"], grid, return_dict=True).pooler_output[0]
    assert torch.equal(before, after)
    assert names and not [name for name in model.state_dict() if "visual" in name or "audio_tower" in name]
    assert not [name for name, _ in model.named_modules() if "visual" in name or "audio_tower" in name]
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_training_all_weights_under_zero3_is_refused():
    config = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    with pytest.raises(InputError, match=r"lora_r: 0 .*ddp"):
        check_zero3(config, 0)
    check_zero3(config, 8)
    config.deepspeed_plugin.zero_stage = 2
    check_zero3(config, 0)
    config.deepspeed_plugin = None
    check_zero3(config, 0)


def test_report_25_training_all_weights_under_zero2_on_unlike_rows_is_refused():
    config = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2), world_size=2)
    both, silent = ("video", "audio", "text"), ("video",)
    with pytest.raises(InputError, match=r"some rows have video and others video and audio; use .*ddp\.yaml"):
        check_mixed(config, 0, [both, silent])
    check_mixed(config, 0, [both, ("audio", "video")])
    check_mixed(config, 8, [both, silent])
    config.world_size = 1
    check_mixed(config, 0, [both, silent])
    config.world_size, config.deepspeed_plugin = 2, None
    check_mixed(config, 0, [both, silent])
