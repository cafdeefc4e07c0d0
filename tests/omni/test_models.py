"""Both model families: the whole repository's layout, Qwen3-Omni's inputs, interleaved sound, the real sizes."""

import json
import math
import re

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths
from trl.trainer.utils import add_fused_lm_head

from migr.clips.media import Media, MediaSettings
from migr.engine import Request, open_engine
from migr.errors import InputError
from migr.memory.published import PUBLISHED, configuration, without_weights
from migr.omni.checks import damaged_weight
from migr.omni.export import export
from migr.omni.family import FAMILIES, QWEN2_5, QWEN3, family_of
from migr.omni.inputs import OmniInputs
from migr.omni.load import LORA, load_processor, load_thinker, media_token_ids
from migr.omni.prompt import render_prompt
from migr.omni.thinker import OmniThinker
from migr.omni.tiny import ROLES, build_tiny

TEXTS = ["Which emotion? happy or sad. <think><video>the face smiles</video></think><answer>happy</answer>"] * 20
NAMES = list(FAMILIES)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: build_tiny(folder / name, TEXTS, family=name) for name in NAMES}


@pytest.fixture(scope="module")
def processors(models):
    return {name: load_processor(path) for name, path in models.items()}


def media(seed, name, frames=4, seconds=2.0, video=True, audio=True, rows=2):
    """A clip whose frames are two a second: whole seconds, so that positions are whole numbers."""
    rng = np.random.default_rng(seed)
    side = FAMILIES[name].factor
    return Media(
        rng.integers(0, 255, (frames, 3, rows * side, 2 * side), dtype=np.uint8) if video else None,
        2.0 if video else None,
        rng.standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1 if audio else None,
        seconds,
    )


def batch_of(processor, clips, together=False, target=""):
    """Left-padded prompts with their media."""
    inputs = OmniInputs(processor, MediaSettings(audio_in_video=together))
    features = [inputs.process(clip) for clip in clips]
    rows = []
    for clip, row in zip(clips, features, strict=True):
        prompt = render_prompt(processor, "Which emotion?", clip.frames is not None, clip.waveform is not None)
        rows.append(inputs.prompt_ids(prompt, row) + processor.tokenizer(target).input_ids)
    width, pad = max(map(len, rows)), processor.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, **inputs.collate(features)}


# --- the whole repository's layout ---


def whole_repository(thinker_folder, name, out):
    """Put a tiny talker and vocoder around a tiny thinker, and save all of it as transformers saves the real one."""
    config = json.loads((thinker_folder / "config.json").read_text())["thinker_config"]
    text = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "hidden_size": 32}
    if name == QWEN2_5.name:
        talker = {**text, "vocab_size": 64, "intermediate_size": 32, "embedding_size": 128, "head_dim": 16}
        talker |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}}
        dit = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ff_mult": 1, "head_dim": 16}
        dit |= {"emb_dim": 32, "enc_emb_dim": 16, "enc_dim": 16, "enc_channels": [16, 16, 16, 16, 48], "num_embeds": 64}
        vocoder = {"upsample_initial_channel": 64, "mel_dim": 80}
        token2wav = {"dit_config": dit, "bigvgan_config": vocoder}
        full = Qwen2_5OmniConfig(thinker_config=config, talker_config=talker, token2wav_config=token2wav)
        model = Qwen2_5OmniForConditionalGeneration(full)
    else:
        experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
        rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 1e6}
        speaker = {
            **text,
            **experts,
            "intermediate_size": 32,
            "vocab_size": 64,
            "head_dim": 16,
            "rope_parameters": rope,
        }
        speaker |= {"shared_expert_intermediate_size": 16}
        code = {**text, "intermediate_size": 32, "vocab_size": 64, "head_dim": 16, "num_code_groups": 4}
        talker = {"text_config": speaker, "code_predictor_config": code, "thinker_hidden_size": 128}
        talker |= {"num_code_groups": 4, "spatial_merge_size": 2, "seconds_per_chunk": 2}
        wave = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
        wave |= {"num_hidden_layers": 1, "codebook_size": 64, "num_quantizers": 4, "decoder_dim": 64}
        full = Qwen3OmniMoeConfig(thinker_config=config, talker_config=talker, code2wav_config=wave)
        model = Qwen3OmniMoeForConditionalGeneration(full)
    model.thinker.load_state_dict(load_thinker(thinker_folder).state_dict())
    model.save_pretrained(out)
    load_processor(thinker_folder).save_pretrained(out)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_thinker_is_loaded_alone_from_the_whole_repository(models, processors, name, tmp_path):
    full = whole_repository(models[name], name, tmp_path / "full")
    stored = load_file(full / "model.safetensors")
    assert {key.split(".")[0] for key in stored} >= {"thinker", "talker"} and len(
        {k.split(".")[0] for k in stored}
    ) == 3
    batch = batch_of(processors[name], [media(0, name)])
    expected = load_thinker(models[name])(**batch).logits
    assert torch.equal(load_thinker(full)(**batch).logits, expected)
    assert not any("talker" in key for key, _ in load_thinker(full).named_parameters())
    exported = load_file(export(full, tmp_path / "out") / "model.safetensors")
    assert exported.keys() == {key for key in stored if key.startswith("thinker.")}
    assert all(torch.equal(tensor, stored[key]) for key, tensor in exported.items())


def test_experts_are_stored_one_by_one_as_in_the_real_repository(models):
    weights = load_file(models[QWEN3.name] / "model.safetensors")
    assert "thinker.model.layers.0.mlp.experts.7.gate_proj.weight" in weights
    assert not any("gate_up_proj" in key for key in weights)
    config = json.loads((models[QWEN3.name] / "config.json").read_text())
    assert config["model_type"] == "qwen3_omni_moe"
    assert config["architectures"] == ["Qwen3OmniMoeForConditionalGeneration"]


@pytest.mark.parametrize(
    "config", [{"model_type": "HumanOmni_qwen2"}, {"model_type": "qwen2_5_omni", "auto_map": {"AutoModel": "x.Y"}}]
)
def test_a_model_with_code_of_its_own_is_refused_and_told_how_to_be_evaluated(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"never run here.*eval/consistency\.py --predictions"):
        load_thinker(tmp_path)


# --- Qwen3-Omni's inputs ---


def test_the_number_of_sound_tokens_is_the_librarys():
    for frames in range(1, 1200):
        assert QWEN3.audio_tokens(frames) == _get_feat_extract_output_lengths(torch.tensor(frames)).item(), frames


@pytest.mark.parametrize("samples", [1600, 1601, 16_000, 16_080, 31_999, 100_001])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_features_and_prompts_are_what_qwens_processor_gives(processors, name, together, samples):
    processor, family = processors[name], FAMILIES[name]
    clip = media(1, name, seconds=samples / 16_000)
    inputs = OmniInputs(processor, MediaSettings(audio_in_video=together))
    prompt = render_prompt(processor, "Which emotion?", True, True)
    role = ROLES[name]
    sound = role["audio_bos_token"] + role["audio_token"] + role["audio_eos_token"]
    whole = processor(
        text=prompt.replace(sound, "") if together else prompt,
        audio=[clip.waveform],
        videos=[torch.from_numpy(clip.frames)],
        fps=clip.fps,
        use_audio_in_video=together,
        size={"shortest_edge": family.factor**2, "longest_edge": 200 * family.factor**2},
        cap_pixels_per_frame=False,
        return_tensors="pt",
    )
    features = inputs.process(clip)
    assert inputs.prompt_ids(prompt, features) == whole["input_ids"][0].tolist()
    assert torch.equal(features["pixel_values_videos"], whole["pixel_values_videos"])
    frames = int(whole["feature_attention_mask"].sum())
    assert features["input_features"].shape[-1] == frames
    assert torch.allclose(features["input_features"], whole["input_features"][:, :, :frames], atol=1e-5)


def test_frames_of_qwen3_omni_are_read_on_its_grid(processors, planted_run, tmp_path):
    from migr.clips.manifest import read_clips

    clip = read_clips(planted_run.clips)[0]
    settings = MediaSettings(max_frames=4, min_pixels=32 * 32, max_pixels=96 * 96)
    frames = {name: OmniInputs(processors[name], settings, tmp_path).media(clip).frames for name in NAMES}
    assert [side % 28 for side in frames[QWEN2_5.name].shape[2:]] == [0, 0]
    assert [side % 32 for side in frames[QWEN3.name].shape[2:]] == [0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_kept_of_frozen_towers_give_the_logits_of_pixels_and_sound(models, processors, planted_run, name):
    from dataclasses import replace

    from migr.clips.manifest import read_clips
    from migr.omni.towers import FrozenTowers

    one, two = read_clips(planted_run.clips)[:2]
    clips = [one, replace(two, has_audio=False), replace(two, has_video=False), one]
    inputs = OmniInputs(processors[name], MediaSettings(max_frames=4, max_pixels=96 * 96))
    batch = batch_of(processors[name], [inputs.media(clip) for clip in clips])
    thinker = load_thinker(models[name])
    with torch.no_grad():
        expected = thinker(**batch).logits
        towers = FrozenTowers(thinker, inputs)
        tokens = inputs.collate([towers.features(clip) for clip in clips])
        found = thinker(**{key: batch[key] for key in ("input_ids", "attention_mask")}, **tokens).logits
    seen = batch["attention_mask"].bool()
    torch.testing.assert_close(found[seen], expected[seen], atol=1e-5, rtol=1e-5)


def test_a_processor_of_neither_family_is_refused(processors):
    other = type("OtherProcessor", (), {"video_processor": None, "feature_extractor": None})
    with pytest.raises(InputError, match="OtherProcessor: not the processor of a known model family"):
        OmniInputs(other(), MediaSettings())
    assert family_of("qwen3_omni_moe_thinker") is QWEN3 and family_of("llama") is None


def test_tags_are_text_in_qwen3_omni_though_two_of_them_are_tokens(processors):
    processor = processors[QWEN3.name]
    ids = processor.tokenizer(TEXTS[0]).input_ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[0]
    assert processor.tokenizer.convert_tokens_to_ids("<think>") in ids
    marks = set(processor.tokenizer.convert_ids_to_tokens(media_token_ids(processor)))
    assert marks == {*ROLES[QWEN3.name].values(), "<|vision_pad|>"}


# --- batches, heads, generation ---


def clips_of(name):
    """Both media, sound alone, picture alone, both again of another length and size."""
    return [
        media(1, name),
        media(2, name, video=False, seconds=1.3),
        media(3, name, audio=False, frames=6, seconds=3.0),
        media(4, name, frames=8, seconds=4.2, rows=3),
    ]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_with_missing_modalities_gives_each_row_what_it_gets_alone(models, processors, name, together):
    thinker, clips = load_thinker(models[name]), clips_of(name)
    with torch.inference_mode():
        whole = thinker(**batch_of(processors[name], clips, together)).logits
        for row, clip in enumerate(clips):
            alone = thinker(**batch_of(processors[name], [clip], together)).logits[0]
            torch.testing.assert_close(whole[row, -len(alone) :], alone, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_interleaved_media_get_the_positions_that_transformers_gives_with_its_argument(models, processors, name):
    thinker = load_thinker(models[name])
    batch = batch_of(processors[name], [media(5, name, frames=8, seconds=4.0)], together=True)
    lengths = batch["feature_attention_mask"].sum(1)
    given = (batch["input_ids"], None, batch["video_grid_thw"], batch["attention_mask"])
    second = batch["video_second_per_grid"]
    expected, delta = super(OmniThinker, thinker).get_rope_index(*given, True, lengths, second)
    found, found_delta = thinker.get_rope_index(*given, False, lengths, second)  # the marks tell, not the argument
    assert torch.equal(found, expected) and torch.equal(found_delta, delta)
    apart, _ = thinker.get_rope_index(
        *(batch_of(processors[name], [media(5, name, frames=8, seconds=4.0)])[key] for key in ("input_ids",)),
        *given[1:3],
        torch.ones_like(batch["attention_mask"]),
        False,
        lengths,
        second,
    )
    assert not torch.equal(apart, found)


@pytest.mark.parametrize("name", NAMES)
def test_a_thinker_gives_to_the_last_bit_what_the_class_of_transformers_gives(models, processors, name, tmp_path):
    thinker = load_thinker(models[name])
    _, base = type(thinker).__bases__
    plain = base.from_pretrained(models[name]).eval()
    batch = batch_of(processors[name], clips_of(name))
    with torch.inference_mode():
        assert torch.equal(thinker(**batch).logits, plain(**batch).logits)
        options = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": media_token_ids(processors[name])}
        assert torch.equal(thinker.generate(**batch, **options), plain.generate(**batch, **options))
    for model, folder in ((thinker, tmp_path / "ours"), (plain, tmp_path / "theirs")):
        model.save_pretrained(folder)
    for file in (tmp_path / "theirs").iterdir():
        assert file.read_bytes() == (tmp_path / "ours" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_towers_see_no_gradient_and_trained_ones_do(models, processors, name, checkpointing):
    """Counted: the towers' own forward passes that record a gradient; under checkpointing they would run twice."""
    for trainable in (False, True):
        thinker = load_thinker(models[name], trainable=trainable).train()
        thinker.model.layers.requires_grad_(True)
        if checkpointing:
            thinker.gradient_checkpointing_enable({"use_reentrant": False})
            thinker.enable_input_require_grads()
        recorded = []
        for block in (thinker.visual.blocks[0], thinker.audio_tower.layers[0]):
            block.register_forward_pre_hook(lambda *_, runs=recorded: runs.append(torch.is_grad_enabled()))
        batch = batch_of(processors[name], clips_of(name))
        thinker(**batch, labels=batch["input_ids"]).loss.backward()
        assert any(recorded) is trainable
        assert len(recorded) == (4 if checkpointing and trainable else 2)
        grads = [weight.grad for tower in (thinker.visual, thinker.audio_tower) for weight in tower.parameters()]
        assert any(grad is not None for grad in grads) is trainable


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_generation_is_the_forward_pass_repeated(models, processors, name, together):
    """Token by token from the whole sequence, without a cache: so generation and training see one model."""
    thinker, clips = load_thinker(models[name]), clips_of(name)
    batch = batch_of(processors[name], clips, together)
    marks = media_token_ids(processors[name])
    options = {"do_sample": False, "eos_token_id": None, "suppress_tokens": marks}
    with torch.inference_mode():
        width = batch["input_ids"].shape[1]
        fast = thinker.generate(**batch, max_new_tokens=5, **options)[:, width:]
        for _ in range(5):
            logits = thinker(**batch).logits[:, -1]
            logits[:, marks] = -torch.inf
            last = logits.argmax(-1, keepdim=True)
            batch["input_ids"] = torch.cat([batch["input_ids"], last], 1)
            batch["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    assert torch.equal(fast, batch["input_ids"][:, width:])


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_head_gives_the_log_probabilities_and_gradients_of_the_plain_logits(models, processors, name):
    clips = clips_of(name)
    batch = batch_of(processors[name], clips, target=TEXTS[0])
    labels = batch["input_ids"].clone()
    labels[:, :-10] = -100
    model = load_thinker(models[name], trainable=True)
    add_fused_lm_head(model)
    logits = model(**batch).logits[:, :-1]
    mask = labels[:, 1:] != -100
    plain = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * mask
    (-plain.sum() / mask.sum()).backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fused = model(**batch, labels=labels, fused_lm_head=True)
    fused.loss.backward()
    torch.testing.assert_close(fused.log_probs, plain, atol=1e-4, rtol=1e-3)
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-5, rtol=1e-2, msg=key)
    towers = {"audio_tower", "visual", "model", "lm_head"}
    assert {key.split(".")[0] for key in found} == towers


def test_vllm_answers_like_transformers_with_a_tiny_qwen3_omni(models, processors):
    pytest.importorskip("vllm")
    name = QWEN3.name
    requests = [
        Request(str(i), render_prompt(processors[name], "Which emotion?", *has), clip)
        for i, clip in enumerate(clips_of(name))
        for has in [(clip.frames is not None, clip.waveform is not None)]
    ]
    answers = {}
    for backend in ("transformers", "vllm"):
        with open_engine(models[name], backend, max_new_tokens=12, dtype="float32", max_model_length=1024) as engine:
            answers[backend] = [generation.token_ids for generation in engine.generate(requests)]
    assert answers["vllm"] == answers["transformers"]


def test_interleaved_media_and_vllm_are_refused_together(models):
    with pytest.raises(InputError, match="audio_in_video: vLLM"):
        open_engine(models[QWEN2_5.name], "vllm", audio_in_video=True)
    with open_engine(models[QWEN2_5.name], "auto", audio_in_video=True) as engine:
        assert type(engine).__name__ == "TransformersEngine"


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_trained_on_interleaved_media_saved_loaded_and_merged(
    models, processors, name, training, planted_run, stage, tmp_path
):
    run = {**training, "clips": planted_run.clips, "model": models[name], "targets": planted_run.targets, "limit": 4}
    run |= {"audio_in_video": "true", "max_steps": 1, "learning_rate": 0.1, "lora_r": 4, "save_strategy": "no"}
    stage("sft", **run, output_dir=tmp_path / "sft", per_device_train_batch_size=2)
    kept = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    assert kept and all(".model.layers." in key for key in kept)
    assert any(tensor.abs().sum() > 0 for key, tensor in kept.items() if "lora_B" in key)
    batch = batch_of(processors[name], clips_of(name), together=True)
    with torch.inference_mode():
        adapted = load_thinker(models[name], adapter=tmp_path / "sft")(**batch).logits
        merged = load_thinker(export(tmp_path / "sft", tmp_path / "merged"))(**batch).logits
        plain = load_thinker(models[name])(**batch).logits
    torch.testing.assert_close(merged, adapted, atol=1e-3, rtol=1e-3)
    assert (plain - adapted).abs().max() > 1e-3


# --- the real sizes, without weights ---

# thinker, language model, video tower, audio tower: parameters in millions
SIZES = {
    "Qwen/Qwen2.5-Omni-3B": (4703, 3398, 668, 637),
    "Qwen/Qwen2.5-Omni-7B": (8931, 7616, 676, 639),
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": (31719, 30532, 539, 648),
}


@pytest.fixture(scope="module")
def real():
    return {name: without_weights(configuration(name)) for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_real_sizes(real, name):
    def millions(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6)

    model = real[name]
    language = millions(model.model) + millions(model.lm_head)
    found = (millions(model), language, millions(model.visual), millions(model.audio_tower))
    assert found == pytest.approx(SIZES[name], abs=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_lora_adapts_the_real_language_models_and_nothing_else(real, name):
    model = get_peft_model(real[name], LoraConfig(r=16, **LORA), low_cpu_mem_usage=True)
    try:
        adapted = {key.split(".lora_A")[0] for key, _ in model.named_parameters() if ".lora_A" in key}
        layers = model.base_model.model.config.text_config.num_hidden_layers
        each = 7 if "Qwen2.5" in name else 4  # attention alone beside experts
        assert len(adapted) == each * layers
        assert all(
            re.fullmatch(r"base_model\.model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj", k) for k in adapted
        )
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        share = trained / sum(p.numel() for p in model.parameters())
        assert trained == SHARE[name][0] and share == pytest.approx(SHARE[name][1], rel=0.02)
    finally:
        model.unload()


SHARE = {
    "Qwen/Qwen2.5-Omni-3B": (29_933_568, 0.0063),
    "Qwen/Qwen2.5-Omni-7B": (40_370_176, 0.0045),
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": (13_369_344, 0.00042),
}


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float16", "float32"])
def test_a_weight_that_is_not_finite_is_named_whatever_its_format(name):
    weights = torch.zeros(3, 5).to(getattr(torch, name))
    whole = ("packed", torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))  # a format without NaN
    assert damaged_weight([("a", weights), whole, ("ids", torch.arange(3))]) is None
    broken = torch.full((2,), math.nan).to(weights.dtype)
    assert damaged_weight([("a", weights), ("b", broken)]) == "b"
