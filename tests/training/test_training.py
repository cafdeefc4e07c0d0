"""Training with TRL's real trainers on the tiny model: the media reach the loss, resume is exact, NaN stops it."""

import json
import math
import shutil
from functools import partial

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback, TrainerState
from trl import GRPOConfig, SFTConfig

from migr.clips.manifest import Clip, read_clips
from migr.clips.media import MediaSettings
from migr.errors import InputError, NonFiniteError
from migr.files.records import read_json, write_json
from migr.omni.inputs import OmniInputs
from migr.omni.load import LANGUAGE_MODEL_LORA, load_processor, load_thinker, media_token_ids
from migr.omni.prompt import question, render_prompt
from migr.planted import clips as planted
from migr.rollout.merging import folded
from migr.text.labels import DFEW
from migr.training.grpo import EpochRepeatSampler, OmniGRPOTrainer
from migr.training.guards import CheckedReward, StopOnNonFiniteGradient
from migr.training.runs import MARKER, CompleteMarker, begin, last_complete, mark
from migr.training.sft import IGNORED, ByLength, OmniSFTTrainer, TargetCollator

COMMON = dict(
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    report_to="none",
    disable_tqdm=True,
    remove_unused_columns=False,
    logging_nan_inf_filter=False,
    logging_steps=1,
    save_steps=1,
    lr_scheduler_type="constant",
)
LORA = partial(LoraConfig, r=4, target_modules=LANGUAGE_MODEL_LORA, task_type="CAUSAL_LM")
PROMPT = question(DFEW)
MEDIA = MediaSettings(max_frames=4, max_pixels=3136)
TARGET = (
    "<think><video>The face shows a broad smile.</video><audio>The voice has a singing tone.</audio>"
    "So the face carries the feeling.</think><answer>happy</answer>"
)


def sft_trainer(model, rows, inputs, clips, out, callbacks=(), **config):
    return OmniSFTTrainer(
        model=load_thinker(model),
        args=SFTConfig(
            output_dir=str(out), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **COMMON | config
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=TargetCollator(inputs, {clip.clip_id: clip for clip in clips}),
        processing_class=inputs.processor,
        peft_config=LORA(),
        callbacks=[CompleteMarker(), StopOnNonFiniteGradient(), *callbacks],
    )


def grpo_trainer(model, adapter, inputs, clips, out, rewards, callbacks=(), suppress=True, **config):
    prompt = [{"role": "user", "content": PROMPT}]
    rows = [{"prompt": prompt, "clip": i, "clip_id": clip.clip_id, "label": clip.label} for i, clip in enumerate(clips)]
    ids = media_token_ids(inputs.processor)
    defaults = dict(per_device_train_batch_size=4, num_generations=4, max_completion_length=16, beta=0.04)
    return OmniGRPOTrainer(
        inputs=inputs,
        clips=clips,
        model=load_thinker(model, adapter=adapter, trainable=adapter is not None),
        args=GRPOConfig(
            output_dir=str(out),
            generation_kwargs={"suppress_tokens": ids} if suppress else {"suppress_tokens": None},
            **COMMON | defaults | config,
        ),
        reward_funcs=[CheckedReward(function.__name__, function) for function in rewards],
        train_dataset=Dataset.from_list(rows),
        processing_class=inputs.processor,
        peft_config=None if adapter else LORA(),
        callbacks=[CompleteMarker(), StopOnNonFiniteGradient(), *callbacks],
    )


def brevity(completions, **_):
    """A reward that differs between any two samples: short ones are better."""
    return [1.0 / (1.0 + len(completion[0]["content"])) for completion in completions]


def weights(model, part=""):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if part in name}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def rows_of(clips, target=TARGET):
    return [{"clip_id": clip.clip_id, "prompt": PROMPT, "target": target} for clip in clips]


def history(folder):
    """What was logged at each step, without the times and without a counter that TRL starts again."""
    log = read_json(folder / "trainer_state.json")["log_history"]
    left_out = ("step_time", "num_tokens", "judge_seconds")
    return [{key: value for key, value in row.items() if key not in left_out} for row in log if "loss" in row]


@pytest.fixture(scope="module")
def clips(planted_run):
    return read_clips(planted_run.clips, split="train")


@pytest.fixture
def fresh_inputs(base_model, planted_run):
    """Inputs that a test may poison."""
    return OmniInputs(load_processor(base_model), MEDIA, planted_run.cache)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """One clip; the same with another face; the same with another voice; the same file again."""
    folder = tmp_path_factory.mktemp("swapped")
    one, other = ({**planted.spec(0, "train", i), "seconds": 1.5} for i in (0, 10))
    faces = [planted.draw_frames(row, np.random.default_rng(i)) for i, row in enumerate((one, other))]
    voices = [planted.synthesise(row, np.random.default_rng(i)) for i, row in enumerate((one, other))]
    made = {}
    for name, face, voice in (("as it is", 0, 0), ("other video", 1, 0), ("other audio", 0, 1), ("again", 0, 0)):
        path = folder / f"{name}.mp4"
        planted.write_clip(path, faces[face], voices[voice])
        made[name] = Clip(name, path, "happy", "train")
    return made


# Media reach the loss


def test_another_video_or_another_audio_alone_changes_the_loss_of_sft(warm_model, omni_inputs, swapped, tmp_path):
    trainer = sft_trainer(warm_model, rows_of(swapped.values()), omni_inputs, swapped.values(), tmp_path)
    losses, seen = {}, {}
    for name, clip in swapped.items():
        batch = trainer.data_collator(rows_of([clip]))
        losses[name] = trainer.compute_loss(trainer.model, dict(batch)).item()
        batch |= trainer._media(batch.pop("clip_id"), batch.pop("media"))
        logits = trainer.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        plain = torch.nn.functional.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], ignore_index=IGNORED)
        assert losses[name] == pytest.approx(plain.item(), abs=1e-5)
        seen[name] = logits[0, :-1].log_softmax(-1)[batch["labels"][0, 1:] != IGNORED]
    assert losses["again"] == losses["as it is"]  # to the last bit, so that any difference below is the media's
    for name in ("other video", "other audio"):  # a mean over the target's tokens may nearly cancel, they may not
        assert losses[name] != losses["as it is"]
        assert (seen[name] - seen["as it is"]).abs().max() > 1e-4


def test_another_video_or_another_audio_alone_changes_the_log_probs_of_grpo(warm_model, omni_inputs, swapped, tmp_path):
    silent = Clip("silent", swapped["as it is"].path, "happy", "train", has_audio=False)
    blind = Clip("blind", swapped["as it is"].path, "happy", "train", has_video=False)
    clips = [*swapped.values(), silent, blind]
    trainer = grpo_trainer(warm_model, None, omni_inputs, clips, tmp_path, [brevity], temperature=0.7)
    target = omni_inputs.processor.tokenizer(TARGET).input_ids
    prompts = []
    for clip in clips:
        text = render_prompt(omni_inputs.processor, PROMPT, clip.has_video, clip.has_audio)
        prompts.append(omni_inputs.prompt_ids(text, omni_inputs.features(clip)))
    width = max(map(len, prompts))
    padding = [width - len(ids) for ids in prompts]
    assert padding[:4] == [0] * 4 and min(padding[4:]) > 0  # the same prompt thrice; the others are padded on the left
    ids = torch.tensor([[0] * pad + prompt + target for pad, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (ids.shape[1] - pad) for pad in padding])
    trainer._rows = list(range(len(clips)))
    with torch.no_grad():
        found, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, len(target), batch_size=4, compute_entropy=True
        )
    assert found.shape == entropy.shape == (6, len(target))
    for row, clip in enumerate(clips):  # against a plain forward of the one clip, without padding
        batch = {"input_ids": torch.tensor([prompts[row] + target]), **omni_inputs.features(clip)}
        with torch.no_grad():
            logits = trainer.model(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits
        log_probs = (logits[0, -len(target) - 1 : -1] / 0.7).log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(target)[:, None])[:, 0]
        torch.testing.assert_close(found[row], expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(entropy[row], -(log_probs.exp() * log_probs).sum(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[3], found[0], atol=1e-5, rtol=0)
    for row in (1, 2):
        assert (found[row] - found[0]).abs().max() > 2e-4


def test_the_gain_of_sampled_tokens_is_what_blanking_the_clip_takes_from_them(warm_model, omni_inputs, clips, tmp_path):
    from migr.clips.media import blanked
    from reward.evidence import EvidenceReward

    trainer = grpo_trainer(
        warm_model, None, omni_inputs, clips[:2], tmp_path, [EvidenceReward()], max_steps=1, logging_steps=1
    )
    tokenizer = omni_inputs.processor.tokenizer
    texts = [TARGET, "<think><audio>é", TARGET]
    completions = [tokenizer(text).input_ids for text in texts]
    trainer._rows = [0, 0, 1]
    rows = trainer._gains([[{"role": "user", "content": PROMPT}]] * 3, completions)
    thinker = load_thinker(warm_model)
    for row, target, number, text in zip(rows, completions, (0, 0, 1), texts, strict=True):
        clip = clips[number]
        assert [text[a:b] for a, b in row["spans"]][:2] == [tokenizer.decode([token]) for token in target[:2]]
        assert row["spans"][-1][1] == len(text) and len(row["gains"]) == len(target)
        prompt = render_prompt(omni_inputs.processor, PROMPT, clip.has_video, clip.has_audio)
        values = []
        for media in (omni_inputs.media(clip), blanked(omni_inputs.media(clip))):
            features = omni_inputs.process(media)
            ids = omni_inputs.prompt_ids(prompt, features) + target
            batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            with torch.no_grad():
                logits = thinker(**batch, **features).logits[0, -len(target) - 1 : -1]
            values.append(logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0])
        torch.testing.assert_close(torch.tensor(row["gains"]), values[0] - values[1], atol=2e-3, rtol=0)
    assert max(abs(gain) for row in rows for gain in row["gains"]) > 0.05
    trainer.train()
    assert 0 <= trainer.state.log_history[0]["rewards/evidence/mean"] <= 1


def test_labels_cover_the_target_and_its_end_and_nothing_else(omni_inputs, clips):
    collator = TargetCollator(omni_inputs, {clip.clip_id: clip for clip in clips})
    rows = [
        *rows_of(clips[:1]),
        *({**row, "modalities": ["audio"]} for row in rows_of(clips[1:2], "<answer>sad</answer>")),
        *({**row, "modalities": []} for row in rows_of(clips[2:3], "words alone")),
    ]
    batch = collator(rows)
    tokenizer = omni_inputs.processor.tokenizer
    for i, row in enumerate(rows):
        labelled = batch["labels"][i] != IGNORED
        assert tokenizer.decode(batch["labels"][i][labelled]) == row["target"] + tokenizer.eos_token
        assert torch.equal(batch["input_ids"][i][labelled], batch["labels"][i][labelled])
        length = int(batch["attention_mask"][i].sum())
        assert labelled[:length].sum() == labelled.sum() and labelled[length - 1]  # the target ends the row
        assert (batch["input_ids"][i][length:] == tokenizer.pad_token_id).all()
    assert batch["video_grid_thw"].shape[0] == 1 and batch["input_features"].shape[0] == 2
    assert batch["clip_id"] == [clip.clip_id for clip in clips[:3]]


# What is trained


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_two_steps_change_the_adapter_and_nothing_else(kind, warm_model, sft_adapter, omni_inputs, clips, tmp_path):
    config = {"max_steps": 2, "learning_rate": 0.1, "save_strategy": "no"}
    if kind == "sft":
        trainer = sft_trainer(warm_model, rows_of(clips[:8]), omni_inputs, clips, tmp_path, **config)
    else:
        trainer = grpo_trainer(warm_model, sft_adapter, omni_inputs, clips[:4], tmp_path, [brevity], **config)
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_" in name and ".default." in name for name in trained)
    assert not [name for name in trained if "tower" in name or "visual" in name]
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and changed <= set(trained)
    assert {name for name in trained if "lora_B" in name} <= changed


# Rewards, reference and log of GRPO


@pytest.fixture(scope="module")
def grpo_arguments(planted_run, training, warm_model, sft_adapter):
    """Two clips a step, two steps an epoch, five steps; each step in two halves."""
    return {
        **training,
        "model": warm_model,
        "adapter": sft_adapter,
        "importance": planted_run.importance,
        "limit": 4,
        "max_steps": 5,
        "save_steps": 1,
        "learning_rate": 2e-3,
        "beta": 0.04,
        "temperature": 0.3,  # hotter, the warm model is seldom right
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 72,
    }


@pytest.fixture(scope="module")
def grpo_run(stage, grpo_arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("grpo")
    stage("grpo", **grpo_arguments, output_dir=out)
    return out


def test_the_reference_of_grpo_is_the_sft_adapter_and_stays_so(grpo_run, sft_adapter):
    start = load_file(sft_adapter / "adapter_model.safetensors")
    for folder in (grpo_run / "checkpoint-1", grpo_run):
        assert same(load_file(folder / "ref" / "adapter_model.safetensors"), start)
        assert not same(load_file(folder / "adapter_model.safetensors"), start)
    divergence = [row["kl"] for row in history(grpo_run)]
    assert divergence[0] == 0.0 and min(divergence[1:]) > 0.0


def test_each_rewards_mean_and_the_sampled_inconsistency_are_logged(grpo_run):
    log = history(grpo_run)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]
    for row in log:
        for name in ("format", "accuracy", "consistency", "grounding"):
            assert 0.0 <= row[f"rewards/{name}/mean"] <= 1.0
    shares = [row["inconsistent_among_correct"] for row in log if "inconsistent_among_correct" in row]
    assert shares and all(0.0 <= share <= 1.0 for share in shares)
    for name in ("accuracy", "grounding"):  # the policy is good enough for this to say something (format: 1 in 40)
        assert sum(row[f"rewards/{name}/mean"] for row in log) > 0.0


CHECKPOINTING = [{}, {"use_reentrant": False}, {"use_reentrant": True}]


def test_report_19_grpo_with_gradient_checkpointing_is_grpo_without(stage, grpo_arguments, tmp_path, monkeypatch):
    layers = []

    def counted(function, *args, **kwargs):
        layers.append(function)
        return checkpoint(function, *args, **kwargs)

    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", counted)
    short = grpo_arguments | {"max_steps": 2, "save_strategy": "no", "gradient_accumulation_steps": 1}
    short |= {"log_completions": "true", "max_completion_length": 32}
    stage("grpo", **short, output_dir=tmp_path / "plain")
    assert not layers
    plain = history(tmp_path / "plain")
    assert all(row["grad_norm"] > 0 for row in plain)
    for number, options in enumerate(CHECKPOINTING):
        out, chosen = tmp_path / f"checkpointed{number}", {"gradient_checkpointing": "true"}
        chosen |= {"gradient_checkpointing_kwargs": json.dumps(options)} if options else {}
        stage("grpo", **short | chosen, output_dir=out)
        assert layers  # it took place
        layers.clear()
        for step in (1, 2):
            assert completions(out, step) == completions(tmp_path / "plain", step)
        assert history(out) == [pytest.approx(row, rel=1e-5) for row in plain]
        ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (out, tmp_path / "plain"))
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight)


def completions(folder, step):
    """The four completions of a step, as TRL logs them."""
    table = pyarrow.parquet.read_table(folder / "completions" / f"completions_{step:05d}.parquet")
    assert table.num_rows == 4
    return table["completion"].to_pylist()


@pytest.fixture(scope="module")
def babbling_model(warm_model, tmp_path_factory):
    """A model that wants to say media tokens: whatever the hidden state, one of their logits is the largest by far."""
    folder = shutil.copytree(warm_model, tmp_path_factory.mktemp("babbling") / "model")
    stored = load_file(folder / "model.safetensors")
    head = stored["thinker.lm_head.weight"]
    direction = torch.randn(head.shape[1], generator=torch.Generator().manual_seed(0))
    for i, token in enumerate(media_token_ids(load_processor(folder))):
        head[token] = direction * (10 if i % 2 else -10)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_sampled_completions_hold_no_media_tokens_and_without_care_they_would(
    stage, training, babbling_model, clips, omni_inputs, tmp_path
):
    loose = grpo_trainer(
        babbling_model, None, omni_inputs, clips[:1], tmp_path / "a", [brevity], suppress=False, max_steps=1
    )
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        loose.train()
    with pytest.raises(InputError, match="rewards that are all alike"):  # noise earns nothing
        stage(
            "grpo",
            **training | {"logging_steps": 1},
            model=babbling_model,
            output_dir=tmp_path / "b",
            rewards=["format"],
            limit=1,
            max_steps=1,
            lora_r=4,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=16,
            save_strategy="no",
        )
    (row,) = history(tmp_path / "b")
    assert row["completions/max_length"] > 0 and math.isfinite(row["loss"])
    assert not (tmp_path / "b" / "done.json").exists()


# Frozen towers

ANY_BASE = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"


def counted(tower, runs):
    """Note of each run of a tower whether it records a gradient."""
    tower.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_epoch_runs_no_tower_and_no_tower_ever_sees_a_gradient(
    warm_model, omni_inputs, clips, tmp_path, workers
):
    """Under gradient checkpointing, which makes the outputs of all input embeddings require gradients."""
    inputs = OmniInputs(omni_inputs.processor, MEDIA, tmp_path / "cache")
    config = {"gradient_checkpointing": True, "num_train_epochs": 3, "per_device_train_batch_size": 2}
    loaded = {"dataloader_num_workers": workers, "save_strategy": "no"}
    trainer = sft_trainer(warm_model, rows_of(clips[:4]), inputs, clips, tmp_path, **config, **loaded)
    runs = {"visual": [], "audio_tower": []}
    for name, passes in runs.items():
        counted(getattr(trainer.towers.thinker, name), passes)
    trainer.train()
    assert runs == {"visual": [False] * 4, "audio_tower": [False] * 4}
    # the next run, and the next stage with the same towers, run none
    for make in (
        lambda: sft_trainer(warm_model, rows_of(clips[:4]), inputs, clips, tmp_path / "next", max_steps=2),
        lambda: grpo_trainer(warm_model, None, inputs, clips[:4], tmp_path / "grpo", [brevity], max_steps=1),
    ):
        trainer = make()
        counted(trainer.towers.thinker.visual, runs["visual"])
        trainer.train()
    assert len(runs["visual"]) == 4


def test_twenty_steps_with_kept_tokens_give_the_losses_and_the_adapter_of_towers_that_run(
    warm_model, omni_inputs, clips, tmp_path
):
    found = []
    for kept in (False, True):
        config = {"max_steps": 20, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "save_strategy": "no"}
        torch.manual_seed(0)
        trainer = sft_trainer(warm_model, rows_of(clips[:6]), omni_inputs, clips, tmp_path / str(kept), **config)
        if not kept:
            trainer.data_collator.tokens = None
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        found.append((torch.tensor(losses), weights(trainer.model, "lora_")))
    (before, plain), (after, tokens) = found
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    for name, weight in plain.items():
        torch.testing.assert_close(tokens[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folding_the_adapter_for_sampling_gives_the_same_tokens_and_the_weights_back(
    warm_model, sft_adapter, omni_inputs, clips, dtype
):
    model = load_thinker(warm_model, adapter=sft_adapter, trainable=True, dtype=dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += 0.02 * torch.randn_like(weight)
    before, learning = weights(model), [name for name, weight in model.named_parameters() if weight.requires_grad]
    prompt = render_prompt(omni_inputs.processor, PROMPT, True, True)
    features = omni_inputs.features(clips[0])
    batch = {"input_ids": torch.tensor([omni_inputs.prompt_ids(prompt, features)]), **features}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    options = {"max_new_tokens": 24, "do_sample": False}
    expected = model.generate(**batch, **options)
    with folded(model):
        assert not torch.equal(weights(model)[ANY_BASE], before[ANY_BASE])
        tokens = model.generate(**batch, **options)
    if dtype == "float32":  # in half precision the copies are rounded
        assert torch.equal(tokens, expected)
    for _ in range(50):
        with folded(model):
            pass
    with pytest.raises(KeyError), folded(model):
        raise KeyError
    assert same(before, weights(model))
    assert learning == [name for name, weight in model.named_parameters() if weight.requires_grad]


def test_rows_of_like_length_share_a_batch_in_an_order_of_their_own_each_epoch():
    lengths = [int(length) for length in torch.normal(500.0, 120.0, (580,), generator=torch.manual_seed(0))]
    epoch = 0
    sampler = ByLength(epoch=lambda: epoch, seed=3, batch_size=32, lengths=lengths)
    first, again = list(sampler), list(sampler)
    epoch = 1
    assert first == again != list(sampler) and sorted(first) == list(range(580))
    batches = [[lengths[i] for i in first[start : start + 8]] for start in range(0, 580, 8)]
    padding = sum(max(batch) * len(batch) - sum(batch) for batch in batches) / sum(map(sum, batches))
    assert padding < 0.05


# Interrupted and resumed


@pytest.fixture(scope="module")
def sft_arguments(planted_run, training, warm_model):
    """Three steps an epoch, seven steps."""
    return {
        **training,
        "model": warm_model,
        "targets": planted_run.targets,
        "limit": 12,
        "max_steps": 7,
        "save_steps": 1,
        "learning_rate": 5e-3,
        "lora_r": 4,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "group_by_length",
    }


@pytest.fixture(scope="module")
def sft_run(stage, sft_arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft")
    stage("sft", **sft_arguments, output_dir=out)
    return out


def resumed(stage, name, arguments, run, step, out):
    """Go on from one checkpoint of a run in another folder."""
    out.mkdir(exist_ok=True)
    shutil.copytree(run / f"checkpoint-{step}", out / f"checkpoint-{step}")
    stage(name, **arguments, output_dir=out)
    return out


@pytest.mark.parametrize(
    "step", [2, 3, 5, 7], ids=["within epoch 0", "at the boundary", "within epoch 1", "at the end"]
)
def test_an_interrupted_sft_run_ends_like_an_uninterrupted_one(stage, sft_arguments, sft_run, step, tmp_path):
    torch.manual_seed(999)  # the state that counts is in the checkpoint
    out = resumed(stage, "sft", sft_arguments, sft_run, step, tmp_path)
    assert not (out / "checkpoint-1").exists() and (out / "checkpoint-7").exists()
    assert history(out) == history(sft_run)
    assert same(*(load_file(folder / "adapter_model.safetensors") for folder in (out, sft_run)))


def test_an_interrupted_run_of_all_weights_ends_like_an_uninterrupted_one(stage, sft_arguments, tmp_path):
    arguments = sft_arguments | {"lora_r": 0, "max_steps": 4, "learning_rate": 1e-3, "limit": 8}
    whole = tmp_path / "whole"
    stage("sft", **arguments, output_dir=whole)
    out = resumed(stage, "sft", arguments, whole, 3, tmp_path / "again")
    assert history(out) == history(whole)
    assert same(*(load_file(folder / "model" / "model.safetensors") for folder in (out, whole)))


@pytest.mark.parametrize("step", [1, 2, 3], ids=["within epoch 0", "at the boundary", "within epoch 1"])
def test_an_interrupted_grpo_run_ends_like_an_uninterrupted_one(stage, grpo_arguments, grpo_run, step, tmp_path):
    torch.manual_seed(999)
    out = resumed(stage, "grpo", grpo_arguments, grpo_run, step, tmp_path)
    assert history(out) == history(grpo_run)
    for name in ("adapter_model.safetensors", "ref/adapter_model.safetensors"):
        assert same(*(load_file(folder / name) for folder in (out, grpo_run)))


def test_every_epoch_has_an_order_of_its_own_that_a_resumed_run_finds_again():
    epoch = 0
    sampler = EpochRepeatSampler(lambda: epoch, data_source=range(8), mini_repeat_count=2, batch_size=4, seed=3)
    first, again = list(sampler), list(sampler)
    epoch = 1
    second = list(sampler)
    assert first == again != second and sorted(first) == sorted(second) == sorted([*range(8)] * 2)
    assert first[::2] == first[1::2]  # one clip's samples stay together


@pytest.mark.parametrize(("least", "steps"), [(1e6, 2), (0.0, 7)], ids=["at the first log entry", "never"])
def test_a_run_ends_once_its_loss_is_low_enough(stage, sft_arguments, tmp_path, least, steps):
    stage("sft", **(sft_arguments | {"stop_loss": least, "logging_steps": 2}), output_dir=tmp_path)
    assert read_json(tmp_path / "done.json")["steps"] == steps


def test_a_half_written_checkpoint_is_passed_over(stage, sft_arguments, sft_run, tmp_path):
    shutil.copytree(sft_run / "checkpoint-5", tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / MARKER).unlink()
    (tmp_path / "checkpoint-5" / "adapter_model.safetensors").write_bytes(b"half")
    out = resumed(stage, "sft", sft_arguments, sft_run, 2, tmp_path)
    assert history(out) == history(sft_run) and (out / "checkpoint-5" / MARKER).exists()
    assert same(*(load_file(folder / "adapter_model.safetensors") for folder in (out, sft_run)))


def test_the_newest_whole_checkpoint_is_the_one_of_the_highest_number(tmp_path):
    assert last_complete(tmp_path) is None
    for step, whole in ((9, True), (10, True), (11, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            mark(tmp_path / f"checkpoint-{step}")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_a_finished_run_is_left_alone_and_another_configuration_is_refused(stage, sft_arguments, sft_run, capsys):
    files = {path: path.stat().st_mtime_ns for path in sft_run.rglob("*")}
    stage("sft", **sft_arguments, output_dir=sft_run)
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"with another learning_rate \(0\.\d+, now 0\.0001\): .*--overwrite"):
        stage("sft", **sft_arguments | {"learning_rate": 1e-4}, output_dir=sft_run)
    assert {path: path.stat().st_mtime_ns for path in sft_run.rglob("*")} == files


def test_what_defines_a_run_and_what_does_not(tmp_path):
    given, out = tmp_path / "clips.jsonl", tmp_path / "run"
    given.write_text("{}\n")
    start = partial(begin, out, inputs=(str(given),))
    assert start({"a": 1}) is None
    (out / "checkpoint-3").mkdir()  # half-written
    assert start({"a": 2}) is None, "without a whole checkpoint there is nothing to lose"
    mark(out / "checkpoint-3")
    assert start({"a": 2, "save_steps": 7, "cache_dir": "x"}) == str(out / "checkpoint-3")
    given.write_text('{"x": 1}\n')
    with pytest.raises(InputError, match=r"with another content of clips\.jsonl \(\w+, now \w+\): .*--output_dir"):
        start({"a": 2})
    given.write_text("{}\n")
    record = read_json(out / "run.json")
    write_json(out / "run.json", record | {"run": record["run"] | {"processes": 2}})
    with pytest.raises(InputError, match=r"with another processes \(2, now 1\), a \(2, now 3\): "):
        start({"a": 3})
    assert start({"a": 2}, overwrite=True) is None and not (out / "checkpoint-3").exists()


# Numbers that are not finite


def assert_stopped_well(trainer, out, step):
    """The weights are finite and those of the last checkpoint, which is whole."""
    now = {name: tensor for name, tensor in weights(trainer.model).items() if ".lora_" in name and ".ref." not in name}
    assert now and all(torch.isfinite(tensor).all() for tensor in now.values())
    checkpoint = last_complete(out)
    assert checkpoint == out / f"checkpoint-{step}" and trainer.state.global_step == step
    stored = load_file(checkpoint / "adapter_model.safetensors")
    assert same({name.replace(".default", ""): tensor for name, tensor in now.items()}, stored)


class At(TrainerCallback):
    """Do something once a step begins."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.action()


def poison(inputs, clip, trainer=None):
    inputs.features(clip)["input_features"].fill_(float("nan"))
    if trainer is not None:  # which has kept what the towers made of the clip
        trainer.towers.features(clip)["audio_tokens"].fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_sft_before_the_update_and_names_the_clip(
    warm_model, fresh_inputs, clips, tmp_path
):
    bad = At(1, lambda: poison(fresh_inputs, clips[0], trainer))
    trainer = sft_trainer(
        warm_model,
        rows_of(clips[:2]),
        fresh_inputs,
        clips,
        tmp_path,
        callbacks=[bad],
        per_device_train_batch_size=2,
        max_steps=5,
        learning_rate=0.01,
    )
    with pytest.raises(NonFiniteError, match=r"the loss is nan at step 1; clips of the batch: .*train-00000"):
        trainer.train()
    assert_stopped_well(trainer, tmp_path, 1)


def test_logits_that_are_not_finite_stop_grpo_while_sampling_and_name_the_clips(
    warm_model, fresh_inputs, clips, tmp_path
):
    bad = At(1, lambda: poison(fresh_inputs, clips[0], trainer))
    trainer = grpo_trainer(warm_model, None, fresh_inputs, clips[:1], tmp_path, [brevity], callbacks=[bad], max_steps=3)
    with pytest.raises(NonFiniteError, match=r"sampling .* at step 1; clips of the batch: train-00000"):
        trainer.train()
    assert_stopped_well(trainer, tmp_path, 1)


def test_a_loss_that_is_not_finite_stops_grpo_before_the_update_and_names_the_clip(
    warm_model, fresh_inputs, clips, tmp_path
):
    trainer = None

    def poisoning(completions, **_):  # called after the sampling, before the loss
        if trainer.state.global_step == 1:
            poison(fresh_inputs, clips[0], trainer)
        return brevity(completions)

    trainer = grpo_trainer(warm_model, None, fresh_inputs, clips[:1], tmp_path, [poisoning], max_steps=3)
    with pytest.raises(NonFiniteError, match=r"the loss is nan at step 1; clips of the batch: train-00000"):
        trainer.train()
    assert_stopped_well(trainer, tmp_path, 1)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_gradient_that_is_not_finite_stops_before_the_update(kind, warm_model, omni_inputs, clips, tmp_path):
    config = {"max_steps": 3, "learning_rate": 0.01}
    if kind == "sft":
        trainer = sft_trainer(warm_model, rows_of(clips[:2]), omni_inputs, clips, tmp_path, **config)
    else:
        trainer = grpo_trainer(warm_model, None, omni_inputs, clips[:1], tmp_path, [brevity], **config)
    parameter = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name and p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * (math.inf if trainer.state.global_step == 1 else 1.0))
    with pytest.raises(NonFiniteError, match=r"the gradient of .*lora_.* is not finite at step 1"):
        trainer.train()
    assert_stopped_well(trainer, tmp_path, 1)


def test_finite_gradients_whose_norm_overflows_pass_the_check():
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.full((1, 2), 3e38), torch.zeros(1)
    check = StopOnNonFiniteGradient().on_pre_optimizer_step
    check(None, TrainerState(), None, model=layer)
    layer.bias.grad[0] = math.nan
    with pytest.raises(NonFiniteError, match="the gradient of bias is not finite at step 0"):
        check(None, TrainerState(), None, model=layer)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1.5, -0.1])
def test_a_reward_outside_zero_to_one_is_named_with_its_clip(value):
    reward = CheckedReward("odd", lambda completions, **_: [0.5, value, None])
    with pytest.raises(NonFiniteError, match=r"the reward odd is .*outside \[0, 1\], for clip b"):
        reward(completions=["x"] * 3, clip_id=["a", "b", "c"])


def test_none_and_both_ends_of_the_range_pass_the_check_and_columns_reach_the_reward():
    seen = {}

    def reward(completions, clip_id, **columns):
        seen.update(columns, clip_id=clip_id)
        return [None, 0.0, 1.0]

    checked = CheckedReward("named", reward)
    assert checked(completions=["x"] * 3, clip_id=["a", "b", "c"], label=["sad"] * 3) == [None, 0.0, 1.0]
    assert checked.__name__ == "named" and seen == {"clip_id": ["a", "b", "c"], "label": ["sad"] * 3}


def test_an_infinite_reward_stops_grpo_before_the_update_and_none_does_not(warm_model, omni_inputs, clips, tmp_path):
    trainer = None

    def odd(completions, **_):
        bad = None if trainer.state.global_step == 0 else math.inf
        return [bad, *brevity(completions[1:])]

    trainer = grpo_trainer(warm_model, None, omni_inputs, clips[:1], tmp_path, [odd], max_steps=3)
    with pytest.raises(NonFiniteError, match=r"the reward odd is inf, outside \[0, 1\], for clip train-00000"):
        trainer.train()
    assert_stopped_well(trainer, tmp_path, 1)
    assert 0.0 < trainer.state.log_history[0]["rewards/odd/mean"] < 1.0
