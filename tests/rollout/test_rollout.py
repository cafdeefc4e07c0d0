"""GRPO's sampling by vLLM: it answers as the trainer's model does, after every sync, whatever media a clip has."""

import copy
import math
import shutil
from dataclasses import replace

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import pytest
import torch
from rollout_trainer import greedy_of_trainer, greedy_of_vllm, make_trainer, prompts_of
from safetensors import safe_open
from trl import GRPOConfig

from migr.clips.manifest import read_clips
from migr.errors import InputError
from migr.files.records import read_json
from migr.omni.load import load_thinker, media_token_ids
from migr.rollout.merging import adapter_tensors, merged_weights, merged_with_stored
from migr.rollout.rollouts import check_vllm

# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vllm_mode": "servr"}, "vllm_mode: 'servr' is not one of colocate, server"),
        ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size: 2: must be 1"),
        ({"vllm_enable_sleep_mode": True}, "lower vllm_gpu_memory_utilization"),
        ({"vllm_structured_outputs_regex": ".*"}, "vllm_structured_outputs_regex"),
    ],
)
def test_what_vllm_cannot_do_here_is_refused_in_one_sentence(changes, said, warm_model, tmp_path):
    config = GRPOConfig(output_dir=str(tmp_path), use_vllm=True, use_cpu=True, bf16=False)
    check_vllm(config, str(warm_model), False)  # as it is by default
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(InputError, match=said):
        check_vllm(config, str(warm_model), False)
    config.use_vllm = False
    check_vllm(config, str(warm_model), False)


def test_interleaved_media_and_a_thinker_alone_are_refused(warm_model, tmp_path):
    config = GRPOConfig(output_dir=str(tmp_path), use_vllm=True, use_cpu=True, bf16=False)
    with pytest.raises(InputError, match="audio_in_video"):
        check_vllm(config, str(warm_model), True)
    load_thinker(warm_model).save_pretrained(tmp_path / "alone")
    with pytest.raises(InputError, match=r"stages/export\.py"):
        check_vllm(config, str(tmp_path / "alone"), False)


# The weights that vLLM gets


def test_merged_weights_are_those_of_peft_under_the_names_of_the_checkpoint(warm_model, sft_adapter):
    model = load_thinker(warm_model, adapter=sft_adapter, trainable=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = dict(merged_weights(model, lambda _: torch.no_grad()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    merged = model.merge_and_unload().state_dict()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, merged[name.removeprefix("thinker.")], atol=1e-6, rtol=0)
    names = {name for name in merged if ".self_attn." in name or ".mlp." in name}
    assert {f"thinker.{name}" for name in names if name.startswith("model.layers.")} == found.keys()
    with safe_open(warm_model / "model.safetensors", "pt") as stored:
        assert found.keys() <= set(stored.keys())


def test_a_server_makes_the_same_weights_of_the_adapter_and_the_checkpoint(warm_model, sft_adapter):
    model = load_thinker(warm_model, adapter=sft_adapter, trainable=True)
    scales, tensors = adapter_tensors(model, lambda _: torch.no_grad())
    assert sum(tensor.nbytes for tensor in tensors.values()) < 0.1 * sum(w.nbytes for w in model.parameters())
    made = dict(merged_with_stored(str(warm_model), scales, tensors, torch.float32))
    expected = dict(merged_weights(model, lambda _: torch.no_grad()))
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_an_adapter_of_another_model_is_refused_before_any_weight_is_given(warm_model, sft_adapter):
    model = load_thinker(warm_model, adapter=sft_adapter)
    scales, tensors = adapter_tensors(model, lambda _: torch.no_grad())
    layer = next(iter(scales))
    other = {**tensors, f"{layer}.a": tensors[f"{layer}.a"][:, 1:]}
    with pytest.raises(InputError, match=f"does not fit .* at {layer}"):
        merged_with_stored(str(warm_model), scales, other, torch.float32)
    with pytest.raises(InputError, match=r"at thinker\.model\.layers\.99"):
        merged_with_stored(str(warm_model), {"thinker.model.layers.99.self_attn.q_proj": 1.0}, tensors, torch.float32)


# The stage; before the trainer below, as one process holds one vLLM


@pytest.mark.slow
def test_the_stage_trains_with_vllm_and_resumes_exactly(
    stage, training, planted_run, warm_model, sft_adapter, tmp_path
):

    shared = {**training, "model": warm_model, "adapter": sft_adapter, "importance": planted_run.importance}
    shared |= {"limit": 4, "max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4}
    shared |= {"max_completion_length": 48, "use_vllm": "true", "learning_rate": 2e-3, "temperature": 0.7, "beta": 0.04}
    stage("grpo", **shared, output_dir=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    stage("grpo", **shared, output_dir=tmp_path / "again")
    logs = [
        [row for row in read_json(tmp_path / name / "trainer_state.json")["log_history"] if "loss" in row]
        for name in ("whole", "again")
    ]
    assert [row["step"] for row in logs[0]] == [1, 2, 3]
    for key in ("loss", "grad_norm", "kl", "reward", "sampling/sampling_logp_difference/mean"):
        assert [row[key] for row in logs[0]] == pytest.approx([row[key] for row in logs[1]], abs=1e-6), key


# The trainer with vLLM


@pytest.fixture(scope="module")
def clips(planted_run):
    """Clips with picture and sound, then without one of them."""
    both = read_clips(planted_run.clips, split="train")[:4]
    return [
        *both,
        replace(both[0], clip_id="silent", has_audio=False),
        replace(both[1], clip_id="blind", has_video=False),
    ]


@pytest.fixture(scope="module")
def trainer(warm_model, sft_adapter, omni_inputs, clips, tmp_path_factory):
    made = make_trainer(warm_model, sft_adapter, omni_inputs, clips, tmp_path_factory.mktemp("vllm"), max_steps=3)
    yield made
    made.close()


def test_after_each_sync_vllm_answers_as_the_trainers_model_and_training_goes_on(trainer, clips):
    trainer.rollouts.sync()
    first = greedy_of_trainer(trainer, clips)
    assert greedy_of_vllm(trainer, clips) == first
    assert len({tuple(answer) for answer in first}) > 2  # the media decide, else this would show little
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}

    trainer.train()

    changed = [n for n, p in trainer.model.named_parameters() if n in frozen and not torch.equal(frozen[n], p)]
    assert not changed, "the sync has left a trace in the trainer's own weights"
    log = [row for row in trainer.state.log_history if "loss" in row]
    assert len(log) == 3
    for row in log:
        assert math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        # the gap between the two programs; it also covers the mass of the media tokens, which vLLM never samples
        gap = {name: row[f"sampling/sampling_logp_difference/{name}"] for name in ("mean", "max")}
        assert 0.0 <= gap["mean"] <= gap["max"] < 3e-2
        assert 0.5 < row["sampling/importance_sampling_ratio/mean"] < 1.1  # of whole completions: the gap times 24

    second = greedy_of_trainer(trainer, clips)
    assert second != first, "the steps were too small to show anything"
    assert greedy_of_vllm(trainer, clips) != second, "vLLM has not got these weights yet"
    trainer.rollouts.sync()
    assert greedy_of_vllm(trainer, clips) == second


def test_samples_depend_on_the_step_and_the_row_and_are_drawn_again_alike(trainer, clips):
    rows = [clips[0]] * 3 + [clips[-1]]
    prompts = prompts_of(trainer.omni, rows)
    media = set(media_token_ids(trainer.omni.processor))
    first, logprobs = trainer.rollouts.sample(prompts, rows, step=7)
    assert trainer.rollouts.sample(prompts, rows, step=7) == (first, logprobs)
    assert trainer.rollouts.sample(prompts, rows, step=8)[0] != first
    assert len({tuple(ids) for ids in first[:3]}) > 1
    assert all(len(ids) == len(values) and max(values) <= 0.0 for ids, values in zip(first, logprobs, strict=True))
    assert not media & {token for ids in first for token in ids}


def test_a_prompt_that_is_too_long_is_named_with_its_clip(trainer, clips, monkeypatch):
    task = copy.copy(trainer.rollouts.task)
    task.max_length = 40
    monkeypatch.setattr(trainer.rollouts, "task", task)
    with pytest.raises(InputError, match=rf"{clips[1].clip_id}: a prompt of .* vllm_max_model_length"):
        trainer.rollouts.sample(prompts_of(trainer.omni, clips[1:2]), clips[1:2], step=0)
