"""The model side: import fix, tiny model, loading, LoRA's reach, TRL's fused head, prompts, export."""

import json
import re

import migr.omni  # mends the imports of the libraries below, so it comes first

# isort: split
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from migr.clips.media import Media, MediaSettings
from migr.errors import InputError
from migr.omni.export import export, write_checkpoint
from migr.omni.inputs import OmniInputs
from migr.omni.load import LANGUAGE_MODEL_LORA, LORA, load_processor, load_thinker, media_token_ids
from migr.omni.prompt import ANSWER_DIRECTLY, DESCRIBE, question, render_prompt
from migr.omni.tiny import SPECIAL, build_tiny

LABELS = ("happy", "sad", "angry")
TARGETS = [
    f"<think><audio>the voice is {word} and low</audio><video>the face is {word}</video>So {word}.</think>"
    f"<answer>{label}</answer>"
    for word, label in zip(("bright", "trembling", "loud"), LABELS, strict=True)
]
TEXTS = [question(LABELS), *DESCRIBE.values(), ANSWER_DIRECTLY, *TARGETS] * 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("model") / "tiny", TEXTS)


@pytest.fixture(scope="module")
def processor(tiny):
    return load_processor(tiny)


def media(seed, frames=4, seconds=1.5, fps=2.0, video=True, audio=True):
    rng = np.random.default_rng(seed)
    return Media(
        rng.integers(0, 255, (frames, 3, 56, 56), dtype=np.uint8) if video else None,
        fps if video else None,
        rng.standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1 if audio else None,
        seconds,
    )


def batch(processor, *clips):
    """Prompt plus target of each clip, left-padded, with its media; labels cover the target."""
    inputs = OmniInputs(processor, MediaSettings(), None)
    rows, features = [], []
    for number, clip in enumerate(clips):
        features.append(inputs.process(clip))
        prompt = render_prompt(processor, ANSWER_DIRECTLY, clip.frames is not None, clip.waveform is not None)
        ids = inputs.prompt_ids(prompt, features[-1])
        target = processor.tokenizer(TARGETS[number % 3] + "<|im_end|>").input_ids
        rows.append((ids + target, len(target)))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in rows])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows])
    labels = input_ids.clone()
    for row, (_, target) in enumerate(rows):
        labels[row, : width - target] = -100
    return {"input_ids": input_ids, "attention_mask": mask, **inputs.collate(features)}, labels


def logits_of(model, inputs):
    return model(**inputs).logits


def test_the_vllm_plugin_entry_point_is_install():
    from importlib.metadata import entry_points

    (point,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "migr"]
    assert point.load() is migr.omni.companions.install


def test_the_tiny_model_has_the_layout_of_the_real_repository(tiny):
    config = json.loads((tiny / "config.json").read_text())
    assert config["model_type"] == "qwen2_5_omni" and config["enable_audio_output"] is False
    assert config["architectures"] == ["Qwen2_5OmniForConditionalGeneration"]
    assert config["thinker_config"]["text_config"]["rope_parameters"]["mrope_section"] == [4, 6, 6]
    weights = load_file(tiny / "model.safetensors")
    assert all(name.startswith("thinker.") for name in weights)
    assert 0.5e6 < sum(tensor.numel() for tensor in weights.values()) < 2e6


def test_loading_finds_every_weight_and_changes_none(tiny):
    stored = load_file(tiny / "model.safetensors")
    loaded = load_thinker(tiny).state_dict()
    assert {f"thinker.{name}" for name in loaded} == set(stored)
    assert all(torch.equal(stored[f"thinker.{name}"], tensor) for name, tensor in loaded.items())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny, tmp_path):
    same, other = build_tiny(tmp_path / "same", TEXTS), build_tiny(tmp_path / "other", TEXTS, seed=1)
    for file in tiny.iterdir():
        assert file.read_bytes() == (same / file.name).read_bytes(), file.name
    assert (tiny / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (tiny / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_building_a_tiny_model_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_tiny(tmp_path / "tiny", TEXTS)
    assert torch.equal(torch.rand(3), expected)


def test_other_sizes_load_too(tmp_path):
    path = build_tiny(tmp_path / "small", TEXTS, hidden=64, heads=2, key_value_heads=1, layers=2, vocabulary=400)
    model, processor = load_thinker(path), load_processor(path)
    inputs, _ = batch(processor, media(0))
    assert torch.isfinite(logits_of(model, inputs)).all()
    assert len(processor.tokenizer) == 400


def test_a_vocabulary_below_the_byte_alphabet_and_missing_texts_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="vocabulary: 100"):
        build_tiny(tmp_path / "a", TEXTS, vocabulary=100)
    with pytest.raises(InputError, match="texts"):
        build_tiny(tmp_path / "b", [])
    assert not list(tmp_path.iterdir())


def test_text_tags_are_plain_text_and_media_marks_are_special(processor, tiny):
    tokenizer = processor.tokenizer
    for text in [*TARGETS, question(LABELS), "unseen: ünïcode \n tabs\t 123"]:
        ids = tokenizer(text).input_ids
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert AutoTokenizer.from_pretrained(tiny)(text).input_ids == ids
    for token in SPECIAL:
        assert tokenizer(f"a{token}b").input_ids[1] == tokenizer.convert_tokens_to_ids(token)
        assert tokenizer.decode(tokenizer(token).input_ids, skip_special_tokens=True) == ""
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_text_that_the_tokenizer_has_seen_costs_about_one_token_a_word(processor):
    text = question(LABELS)
    assert len(processor.tokenizer(text).input_ids) <= len(re.findall(r"\w+|[^\w\s]+", text)) + 5


def test_media_token_ids_are_all_marks_around_and_inside_media(processor):
    names = set(processor.tokenizer.convert_ids_to_tokens(media_token_ids(processor)))
    assert names == set(SPECIAL) - {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


@pytest.mark.parametrize("video", [True, False])
@pytest.mark.parametrize("audio", [True, False])
def test_a_prompt_holds_one_placeholder_a_modality_in_order_and_the_default_system_message(processor, video, audio):
    text = render_prompt(processor, question(LABELS), video, audio)
    marks = "<|vision_bos|><|VIDEO|><|vision_eos|>" * video + "<|audio_bos|><|AUDIO|><|audio_eos|>" * audio
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + marks)
    assert text.count("<|VIDEO|>") == video and text.count("<|AUDIO|>") == audio
    assert text.endswith(question(LABELS) + "<|im_end|>\n<|im_start|>assistant\n")


def test_the_question_names_the_labels_and_the_format_in_few_words():
    assert "happy, sad, angry" in question(LABELS)
    assert all(f"<{tag}></{tag}>" in question(LABELS) for tag in ("think", "video", "audio", "answer"))
    assert len(question(LABELS).split()) < 45


# --- loading ---


def test_a_missing_weight_is_an_input_error(tiny, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny / "model.safetensors")
    del weights["thinker.model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing.*model\.layers\.1\.mlp\.up_proj"):
        load_thinker(broken)


def test_what_is_no_model_is_an_input_error_that_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    for load in (load_thinker, load_processor):
        with pytest.raises(InputError, match=r"nowhere/at/all: no such folder"):
            load(tmp_path / "nowhere/at/all")
        with pytest.raises(InputError, match="empty"):
            load(tmp_path / "empty")
        with pytest.raises(InputError, match=r"no Qwen2\.5-Omni or Qwen3-Omni model.*llama"):
            load(other)


def test_a_misspelled_relative_folder_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^runs/bsae: no such folder$"):
        load_thinker("runs/bsae")


def test_a_wrong_dtype_and_a_folder_without_an_adapter_are_input_errors(tiny, tmp_path):
    with pytest.raises(InputError, match="dtype: 'int8'"):
        load_thinker(tiny, dtype="int8")
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        load_thinker(tiny, adapter=tmp_path)


def test_weights_are_trainable_only_when_asked(tiny):
    assert load_thinker(tiny, dtype="bfloat16").dtype == torch.bfloat16
    assert not any(p.requires_grad for p in load_thinker(tiny).parameters())
    assert all(p.requires_grad for p in load_thinker(tiny, trainable=True).parameters())


def test_a_thinker_saved_alone_loads_like_the_whole(tiny, tmp_path, processor):
    model = load_thinker(tiny)
    model.save_pretrained(tmp_path / "alone")
    again = load_thinker(tmp_path / "alone")
    inputs, _ = batch(processor, media(0))
    assert torch.equal(logits_of(model, inputs), logits_of(again, inputs))


def test_weights_of_the_talker_are_ignored(tiny, tmp_path, processor):
    full = tmp_path / "full"
    full.mkdir()
    for file in tiny.iterdir():
        (full / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny / "model.safetensors") | {"talker.model.norm.weight": torch.ones(8)}
    save_file(weights, full / "model.safetensors", metadata={"format": "pt"})
    out = export(full, tmp_path / "out")
    assert not any(name.startswith("talker") for name in load_file(out / "model.safetensors"))
    inputs, _ = batch(processor, media(0))
    assert torch.equal(logits_of(load_thinker(full), inputs), logits_of(load_thinker(out), inputs))


# --- LoRA ---


def lora(model, dropout=0.0):
    return get_peft_model(model, LoraConfig(r=4, lora_dropout=dropout, **LORA))


def test_lora_adapts_every_projection_of_the_language_model_and_nothing_of_the_towers(tiny):
    model = lora(load_thinker(tiny))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    layers = model.base_model.model.model.layers
    assert len(adapted) == 7 * len(layers)
    assert all(name.startswith("base_model.model.model.layers.") for name in adapted)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not any("audio_tower" in name or "visual" in name for name in trained)


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("model.layers.0.self_attn.q_proj", True),
        ("model.layers.27.mlp.down_proj", True),
        ("thinker.model.layers.3.self_attn.o_proj", True),  # Qwen3-Omni has the same names
        ("audio_tower.layers.0.self_attn.q_proj", False),
        ("thinker.audio_tower.layers.0.self_attn.v_proj", False),
        ("visual.blocks.0.attn.q_proj", False),
        ("visual.blocks.0.mlp.gate_proj", False),
        ("talker.model.layers.0.self_attn.q_proj", False),
        ("model.layers.0.mlp.experts.3.gate_proj", False),
        ("lm_head", False),
    ],
)
def test_the_lora_pattern_matches_whole_module_names(name, matches):
    assert bool(re.fullmatch(LANGUAGE_MODEL_LORA, name)) is matches


# --- TRL's fused head ---

CLIPS = (media(1), media(2, frames=6, seconds=2.3, fps=3.0), media(3, audio=False), media(4, video=False))


@pytest.mark.parametrize("adapted", [False, True])
def test_the_fused_head_gives_the_log_probabilities_and_gradients_of_the_plain_logits(tiny, processor, adapted):
    inputs, labels = batch(processor, *CLIPS)
    model = load_thinker(tiny, trainable=True)
    add_fused_lm_head(model)
    if adapted:
        torch.manual_seed(0)
        model = lora(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    mask = labels[:, 1:] != -100

    logits = logits_of(model, inputs)[:, :-1]
    plain = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * mask
    (-plain.sum() / mask.sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    fused = model(**inputs, labels=labels, fused_lm_head=True)
    fused.loss.backward()
    torch.testing.assert_close(fused.log_probs, plain, atol=1e-5, rtol=1e-4)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-3, msg=name)
    if not adapted:
        assert {"lm_head.weight", "visual.patch_embed.proj.weight", "audio_tower.conv1.weight"} <= found.keys()


def test_the_fused_head_sees_the_video_and_the_sound(tiny, processor):
    model = load_thinker(tiny)
    add_fused_lm_head(model)
    inputs, labels = batch(processor, media(1))
    before = model(**inputs, labels=labels, fused_lm_head=True).log_probs
    for key in ("pixel_values_videos", "input_features"):
        changed = inputs | {key: inputs[key].flip(-1)}
        assert not torch.allclose(model(**changed, labels=labels, fused_lm_head=True).log_probs, before, atol=1e-4)


def test_no_logits_of_the_whole_vocabulary_are_made_by_the_backbone(tiny, processor):
    model = load_thinker(tiny)
    inputs, _ = batch(processor, media(1))
    hidden = model.base_model(**inputs).last_hidden_state
    assert hidden.shape == (*inputs["input_ids"].shape, model.config.text_config.hidden_size)
    torch.testing.assert_close(model.lm_head(hidden), logits_of(model, inputs))


def test_what_else_touches_base_model_still_works(tiny, processor, tmp_path):
    inputs, labels = batch(processor, media(1), media(2))
    model = load_thinker(tiny)
    names = {name for name, _ in model.named_parameters()}
    assert not any("backbone" in name or name.startswith("thinker") for name in names)
    assert model.to(torch.float64).dtype == torch.float64
    model = model.to(torch.float32)
    assert model.get_decoder() is model.model and model.get_input_embeddings() is model.model.embed_tokens
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    adapted = lora(load_thinker(tiny))
    assert torch.equal(adapted.generate(**inputs, max_new_tokens=3, do_sample=False), generated)
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    add_fused_lm_head(adapted.get_base_model())
    adapted(**inputs, labels=labels, fused_lm_head=True).loss.backward()
    gradients = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    model.save_pretrained(tmp_path / "saved")
    assert {name for name, _ in load_thinker(tmp_path / "saved").named_parameters()} == names


# --- export ---


def contents(folder, weights=True):
    """Bytes of the files; the tokenizer's config is left out, where loading leaves traces."""
    skip = {"tokenizer_config.json"} | ({"model.safetensors"} if not weights else set())
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in skip}


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter with weights that matter, saved as a trainer saves it."""
    torch.manual_seed(0)
    model = lora(load_thinker(tiny))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_an_exported_adapter_answers_like_base_and_adapter(tiny, adapter, processor, tmp_path):
    out = export(adapter, tmp_path / "merged")
    inputs, _ = batch(processor, *CLIPS)
    expected = logits_of(load_thinker(tiny, adapter=adapter), inputs)
    torch.testing.assert_close(logits_of(load_thinker(out), inputs), expected, atol=1e-5, rtol=1e-4)
    assert (logits_of(load_thinker(tiny), inputs) - expected).abs().max() > 0.01
    # everything but the weights is as in the base
    assert contents(out, weights=False) == contents(tiny, weights=False)
    again = export(tiny, tmp_path / "again", adapter=adapter)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_report_35_an_export_is_loaded_by_transformers_as_the_whole_model_without_a_talker(tiny, adapter, tmp_path):
    from transformers import Qwen2_5OmniForConditionalGeneration

    out = export(adapter, tmp_path / "merged")
    whole = Qwen2_5OmniForConditionalGeneration.from_pretrained(out)
    assert not whole.has_talker
    expected = load_thinker(out).state_dict()
    weights = whole.thinker.state_dict()
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)


def test_exporting_a_base_model_reproduces_it(tiny, tmp_path):
    out = export(tiny, tmp_path / "copy")
    assert contents(out) == contents(tiny)
    assert load_processor(out).tokenizer.get_vocab() == load_processor(tiny).tokenizer.get_vocab()


def test_an_adapter_is_loaded_frozen_or_trainable(tiny, adapter):
    frozen, trained = load_thinker(tiny, adapter=adapter), load_thinker(tiny, adapter=adapter, trainable=True)
    assert isinstance(frozen, PeftModel) and not any(p.requires_grad for p in frozen.parameters())
    names = [name for name, p in trained.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)


def test_large_weights_are_sharded_and_load_again(tiny, tmp_path, processor, monkeypatch):
    monkeypatch.setattr("migr.omni.export.SHARD", "1MB")
    out = export(tiny, tmp_path / "sharded")
    assert (out / "model.safetensors.index.json").is_file() and len(list(out.glob("*.safetensors"))) > 3
    inputs, _ = batch(processor, media(0))
    assert torch.equal(logits_of(load_thinker(out), inputs), logits_of(load_thinker(tiny), inputs))


def test_a_failed_export_leaves_nothing_and_keeps_the_earlier_one(tiny, tmp_path, processor):
    out = export(tiny, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()

    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError("no space left")

    model = load_thinker(tiny)
    model.lm_head.weight.data.zero_()
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(model, FullDisk(), out)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write_checkpoint(model, processor, out)
    assert (out / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export_refuses_to_overwrite_its_source_or_a_folder_that_is_no_model(tiny, adapter, tmp_path):
    with pytest.raises(InputError, match="overwrite"):
        export(tiny, tiny)
    with pytest.raises(InputError, match="overwrite"):
        export(adapter, adapter)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no model folder"):
        export(tiny, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_adapter_without_its_base_is_an_input_error_that_names_it(adapter, tmp_path):
    lost = tmp_path / "lost"
    lost.mkdir()
    for file in adapter.iterdir():
        (lost / file.name).write_bytes(file.read_bytes())
    config = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(InputError, match="/gone/base: no such folder"):
        export(lost, tmp_path / "out")
    (lost / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(InputError, match="base_model_name_or_path is empty"):
        export(lost, tmp_path / "out")


def test_a_template_that_opens_the_thoughts_does_not_open_them_twice(processor):
    class Thinking:
        tokenizer = processor.tokenizer
        chat_template = processor.chat_template + "<think>\n"

    plain = render_prompt(processor, "Which?", True, True)
    assert render_prompt(Thinking(), "Which?", True, True) == plain
