"""The memory estimate against what autograd really keeps, and what it says about a configuration."""

# isort: split
import importlib
import subprocess
import sys

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model

from migr.clips.manifest import read_clips
from migr.clips.media import MediaSettings, read_media
from migr.errors import InputError
from migr.files.records import read_json
from migr.memory.estimate import CONTEXT, GIB, _inside, estimate, prompt_tokens
from migr.memory.published import PUBLISHED, configuration, without_weights
from migr.omni.inputs import OmniInputs
from migr.omni.load import LORA, load_processor, load_thinker
from migr.omni.prompt import question, render_prompt
from migr.training.arguments import OmniArguments, SFTArguments, parse

MEDIA = MediaSettings(max_frames=16, max_pixels=100352)
NAMES = list(PUBLISHED)


def kept(name, layers, checkpointing, tokens):
    """Bytes that autograd saves beside the weights, in layers of the published widths (few experts)."""
    config = configuration(name)
    text = config.text_config
    text.num_hidden_layers, text.vocab_size, text.layer_types = layers, 64, ["full_attention"] * layers
    if hasattr(text, "num_experts"):
        text.num_experts = 8  # that many are used for a token; more would only cost memory here
    config.audio_config.encoder_layers = config.vision_config.depth = 1
    if hasattr(config.vision_config, "deepstack_visual_indexes"):
        config.vision_config.deepstack_visual_indexes = [0]
    thinker = without_weights(config).to(torch.bfloat16).requires_grad_(False)
    thinker = get_peft_model(thinker, LoraConfig(r=16, **LORA), low_cpu_mem_usage=True)
    decoder = thinker.base_model.model.model
    for key, parameter in decoder.named_parameters():
        if "lora_" in key:
            parameter.data = parameter.data.float()
    decoder.to_empty(device="cpu")
    for parameter in decoder.parameters():
        parameter.data.zero_()
    if checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    decoder.train()
    weights = {p.untyped_storage()._cdata for p in decoder.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    embedded = torch.zeros(1, tokens, text.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    positions = torch.arange(tokens).view(1, 1, -1).expand(3, 1, -1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        decoder(inputs_embeds=embedded, position_ids=positions, use_cache=False)
    return sum(size for size, _ in found.values()), text


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])  # a dense model, one with experts
def test_a_layer_keeps_what_the_formula_says(name):
    few, text = kept(name, 1, False, 16)
    many, _ = kept(name, 1, False, 48)
    outside = 3 * 4 * text.hidden_size  # a token's: what embedding and last norm keep in float32 and bf16
    assert (many - few) / 32 - _inside(text, 2) == pytest.approx(0, abs=0.05 * _inside(text, 2) + outside)
    one, two = kept(name, 1, True, 16)[0], kept(name, 2, True, 16)[0]
    assert two - one == 16 * 2 * text.hidden_size  # with checkpointing the layer's input alone, in bf16


def test_the_longest_prompt_is_that_of_a_clip_at_the_bounds(base_model):
    import numpy as np

    from migr.clips.media import Media

    processor, media = load_processor(base_model), MediaSettings(fps=2.0, max_frames=8, max_pixels=112 * 112)
    config = load_thinker(base_model).config
    inputs = OmniInputs(processor, media)
    wave = np.zeros(4 * 16000, np.float32)
    clip = Media(np.zeros((8, 3, 112, 112), np.uint8), 2.0, wave, 4.0)
    prompt = render_prompt(processor, question(["happy", "sad"]), True, True)
    tokens = len(inputs.prompt_ids(prompt, inputs.process(clip)))
    assert tokens <= prompt_tokens(config, media) <= tokens + 100


def test_the_parts_follow_the_settings():
    name = "Qwen/Qwen2.5-Omni-3B"
    plain = estimate(name, "sft", MEDIA, rows=4)
    assert plain.parts["weights"] == 2 * plain.counts["parameters"]
    assert plain.parts["adapter"] == 18 * plain.counts["trained"]
    assert estimate(name, "sft", MEDIA, rows=8).parts["activations"] == 2 * plain.parts["activations"]
    assert estimate(name, "sft", MEDIA, rows=4, checkpointing=False).peak > 2 * plain.peak
    assert estimate(name, "sft", MEDIA, rows=4, lora_r=64).parts["adapter"] == 4 * plain.parts["adapter"]
    whole = estimate(name, "sft", MEDIA, rows=4, lora_r=0)
    assert whole.counts["trained"] == whole.counts["parameters"] and whole.peak > 4 * plain.parts["weights"]
    second = estimate(name, "sft", MEDIA, rows=4, zero=2, gpus=8)
    assert second.parts["weights"] == plain.parts["weights"] and second.parts["adapter"] < plain.parts["adapter"]
    third = estimate(name, "sft", MEDIA, rows=4, zero=3, gpus=8)
    assert third.parts["weights"] == plain.parts["weights"] / 8
    generating = estimate(name, "grpo", MEDIA, rows=8, answer=512, zero=3, gpus=8, generated=8)
    together = generating.parts["gathered for generation"] + generating.parts["weights"]
    assert together == plain.parts["weights"]  # the whole model again
    shared = estimate(name, "grpo", MEDIA, rows=8, answer=512, vllm=24 * GIB)
    assert "key-value cache" not in shared.parts and shared.peak > 24 * GIB + shared.parts["weights"] + CONTEXT


def test_the_key_value_cache_is_that_of_a_real_generation(base_model):
    from transformers import DynamicCache

    thinker = load_thinker(base_model)
    found = estimate(base_model, "grpo", MEDIA, answer=10, dtype="float32", generated=3)
    cache = DynamicCache(config=thinker.config.text_config)
    ids = torch.ones(3, 20, dtype=torch.long)
    with torch.inference_mode():
        thinker(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert found.parts["key-value cache"] == stored / 20 * found.counts["tokens"]


def test_a_run_that_does_not_fit_is_told_so():
    found = estimate("Qwen/Qwen2.5-Omni-7B", "sft", MEDIA, rows=4)
    assert "too much; take smaller or fewer frames" in found.line(16 * GIB)
    assert "too much" not in found.line(80 * GIB) and found.line(80 * GIB).startswith("memory: about ")


def test_the_stages_hook_reads_the_arguments_of_a_run(base_model, capsys):
    from trl import GRPOConfig

    from migr.memory.estimate import announce, of_run

    flags = ["--model", str(base_model), "--output_dir", "out", "--use_cpu", "true", "--dtype", "float32"]
    flags += ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "32"]
    args, config = parse([OmniArguments, GRPOConfig], flags)
    found = of_run(args, config)
    assert found.counts["rows"] == 8 and "last logits" in found.parts
    announce(args, config)
    assert capsys.readouterr().out.startswith("memory: about ")


def test_the_command_shows_every_shipped_configuration():
    command = [sys.executable, ROOT / "stages" / "memory.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    for folder in ("3b_24gb", "7b_80gb", "7b_8x80gb", "30b_2nodes"):
        for kind in ("sft", "grpo", "eval"):
            assert f"{folder}/{kind}.yaml" in done.stdout
    assert "too much" not in done.stdout  # every recipe fits its own machine


def in_this_process(kind, argv, out):
    """Runs a stage without a process of its own, which would import everything again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{kind}.py", *argv])
        importlib.import_module(f"stages.{kind}").main()
    assert "gpu" not in read_json(out / "done.json")


def test_the_fastest_batch_fits_and_keeps_the_effective_one():
    from trl import SFTConfig

    from migr.memory.fit import fit, hours

    flags = ["--model", "Qwen/Qwen2.5-Omni-3B", "--output_dir", "out", "--use_cpu", "true", "--max_frames", "8"]
    flags += ["--max_pixels", "50176", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "32"]
    args, config = parse([SFTArguments, SFTConfig], flags)
    small, large = (fit(args, config, gib * GIB, 1, 0) for gib in (24, 80))
    assert small.checkpointing and not large.checkpointing  # memory asks for it, or not
    assert small.rows * small.accumulation == large.rows * large.accumulation == 32
    assert small.estimate.peak < 24 * GIB < large.estimate.peak < 80 * GIB
    assert large.seconds < small.seconds
    assert f"per_device_train_batch_size: {large.rows}" in large.lines()
    assert hours(args, config, small.estimate, 580, 1) > 5 * small.seconds * 580 / 32 * 3 / 3600  # a row at a time
    with pytest.raises(InputError, match="not even 1 row"):
        fit(args, config, 8 * GIB, 1, 0)


def test_the_check_against_a_gpu_runs_tiny_on_a_cpu_and_claims_no_peak(monkeypatch, tmp_path, capsys):
    from eval.bench import memory_check

    monkeypatch.setattr(memory_check, "apart", lambda function, *args: function(*args))  # spares the imports
    monkeypatch.setattr(memory_check, "measure", in_this_process)
    monkeypatch.setattr(sys, "argv", ["memory_check.py", "--tiny", "--out", str(tmp_path)])
    memory_check.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row[0] for row in rows] == ["tiny, SFT", "tiny, GRPO"]
    for row in rows:
        assert row[4:8] == ["not measured (no GPU)", "–", "–", "CPU"] and float(row[8].replace(",", "")) > 0
        batch, estimated = map(int, row[1].split(" x "))
        assert batch in (2, 4) and 0.7 * estimated < int(row[2]) <= estimated
    for kind in ("sft", "grpo"):
        assert read_json(tmp_path / kind / "done.json")["steps"] == 2
    clip = read_clips(tmp_path / "clips.jsonl")[0]
    frames = read_media(clip.path, MediaSettings(max_frames=4, max_pixels=3136)).frames
    assert frames.shape == (4, 3, 56, 56)  # as large as the settings allow


def test_the_check_without_a_gpu_is_refused(monkeypatch, tmp_path):
    from eval.bench import memory_check

    monkeypatch.setattr("migr.memory.estimate.gpu_bytes", lambda: None)
    monkeypatch.setattr(sys, "argv", ["memory_check.py", "--out", str(tmp_path / "out")])
    with pytest.raises(InputError, match=r"no GPU here, .*--tiny"):
        memory_check.main()
    assert not (tmp_path / "out").exists()
