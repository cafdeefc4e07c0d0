"""Generation: vLLM and transformers give the tokens of the plain model, clip by clip; streams, limits, errors."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from migr.clips.media import Media
from migr.engine import Generation, Request, open_engine
from migr.errors import InputError
from migr.files.records import read_json, write_json
from migr.omni.export import write_checkpoint
from migr.omni.load import load_processor, load_thinker, media_token_ids
from migr.omni.prompt import ANSWER_DIRECTLY, question, render_prompt
from migr.omni.tiny import build_tiny
from migr.settings import EngineSettings

BACKENDS = ("vllm", "transformers")
NEW = 12
TEXTS = [question(["happy", "sad"]), ANSWER_DIRECTLY, "<think>the voice is low</think><answer>sad</answer>"] * 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with larger weights: a fresh one hardly looks at its input and says the same to everything."""
    path = build_tiny(tmp_path_factory.mktemp("model") / "tiny", TEXTS)
    thinker = load_thinker(path)
    with torch.no_grad():
        for name, weight in thinker.named_parameters():
            if weight.ndim > 1:
                weight.mul_(6.0 if name.startswith("model.layers") else 3.0)
    return write_checkpoint(thinker, load_processor(path), path)


@pytest.fixture(scope="module")
def processor(model):
    return load_processor(model)


def media(seed, video=True, audio=True, **changes):
    """A clip of its own size, length and frame rate."""
    rng = np.random.default_rng(seed)
    height, width = [(56, 56), (84, 56), (56, 112), (140, 84)][seed % 4]
    frames = rng.integers(0, 255, (2 * int(rng.integers(1, 6)), 3, height, width), dtype=np.uint8)
    seconds = float(rng.uniform(0.2, 8))
    waveform = rng.standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1
    fields = {
        "frames": frames if video else None,
        "fps": float(rng.uniform(0.4, 5)) if video else None,
        "waveform": waveform if audio else None,
        "duration": seconds,
    }
    return Media(**(fields | changes))


def request(processor, seed, video=True, audio=True, **changes):
    text = render_prompt(processor, question(["happy", "sad"]), video, audio)
    return Request(f"clip{seed}", text, media(seed, video, audio, **changes))


@pytest.fixture(scope="module")
def requests(processor):
    """20 clips with both modalities, then one with video only, one with sound only, and text alone."""
    text = Request("text", render_prompt(processor, "Which emotion?", False, False))
    both = [request(processor, seed) for seed in range(20)]
    return [*both, request(processor, 20, audio=False), request(processor, 21, video=False), text]


@pytest.fixture(scope="module")
def engines(model, tmp_path_factory):
    """Both, on a copy whose own settings for generation would make other answers: they must not decide."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("own") / "model")
    own = {
        "no_repeat_ngram_size": 1,
        "repetition_penalty": 9.0,
        "min_length": 40,
        "temperature": 5.0,
        "do_sample": True,
    }
    write_json(folder / "generation_config.json", {**read_json(folder / "generation_config.json"), **own})
    with (
        open_engine(folder, "vllm", max_new_tokens=NEW, batch_size=8) as vllm,
        open_engine(folder, "transformers", max_new_tokens=NEW, batch_size=5) as transformers,
    ):
        yield {"vllm": vllm, "transformers": transformers}


@pytest.fixture(scope="module")
def plain(model, processor, requests):
    """Token ids by the libraries' own way, one clip at a time: processor call, `generate`, nothing of ours between."""
    thinker = load_thinker(model)
    answers = []
    for item in requests:
        clip, kwargs = item.media, {}
        if clip is not None and clip.frames is not None:
            area = clip.frames.shape[-2] * clip.frames.shape[-1]
            kwargs |= {"videos": [torch.from_numpy(clip.frames)], "fps": clip.fps}
            kwargs |= {"size": {"shortest_edge": area, "longest_edge": area}, "cap_pixels_per_frame": False}
        if clip is not None and clip.waveform is not None:
            kwargs |= {"audio": [clip.waveform]}
        inputs = processor(text=[item.prompt], return_tensors="pt", **kwargs)
        width = inputs["input_ids"].shape[1]
        suppress = media_token_ids(processor)
        out = thinker.generate(**inputs, max_new_tokens=NEW, do_sample=False, suppress_tokens=suppress)
        tokens = out[0, width:].tolist()
        ends = (processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id)  # both end a turn of Qwen2.5-Omni
        answers.append(tuple(tokens[: next((i for i, token in enumerate(tokens) if token in ends), None)]))
    return answers


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_tokens_are_those_of_the_plain_model(engines, requests, plain, backend):
    found = list(engines[backend].generate(requests))
    assert [item.key for item in found] == [item.key for item in requests]
    assert [item.token_ids for item in found] == plain
    assert len(set(plain)) > 15, "the test needs a model whose answer depends on the clip"


@pytest.mark.parametrize("backend", BACKENDS)
def test_media_with_a_name_are_worked_on_once_and_answered_alike(engines, requests, plain, backend):
    """Each clip is asked about twice more, whole and as sound alone, under names of its frames and of its sound."""
    engine, runs = engines[backend], []
    both = [replace(item, media_keys={"video": f"v{i}", "audio": f"a{i}"}) for i, item in enumerate(requests[:6])]
    if backend == "transformers":
        thinker = engine.towers.thinker
        hooks = [
            tower.register_forward_hook(lambda *_: runs.append(1)) for tower in (thinker.visual, thinker.audio_tower)
        ]
    assert [item.token_ids for item in engine.generate([*both, *both])] == plain[:6] * 2
    text = render_prompt(engine.task.inputs.processor, question(["happy", "sad"]), False, True)
    sound = [replace(item, prompt=text, media=replace(item.media, frames=None, fps=None)) for item in both]
    unnamed = [replace(item, media_keys={}) for item in sound]
    named, expected = (engine.generate(items) for items in (sound, unnamed))
    assert [item.token_ids for item in named] == [item.token_ids for item in list(expected)]
    mixed = [both[0], requests[1], replace(both[2], media_keys={"audio": "a2"}), requests[-1]]
    assert [item.token_ids for item in engine.generate(mixed)] == [*plain[:3], plain[-1]]
    changed = both[0].with_media("other", media(5), "video", "audio")
    assert changed.media_keys == {} and both[0].with_media("frames", media(5), "video").media_keys == {"audio": "a0"}
    if backend == "transformers":
        assert (
            len(runs) == 12 + 2 + 3
        )  # once a part; the unnamed sounds in two batches; what has no name in the mixed one
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("backend", BACKENDS)
def test_video_sound_and_frame_rate_all_reach_the_model(engines, processor, backend):
    base, other = media(1), media(5)
    variants = [
        {},
        {"fps": base.fps * 3},
        {"waveform": other.waveform[: len(base.waveform)]},
        {"frames": 255 - base.frames},
    ]
    answers = engines[backend].generate([request(processor, 1, **change) for change in variants])
    assert len({item.token_ids for item in answers}) == len(variants)


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_come_in_order_and_requests_are_read_only_as_needed(engines, requests, backend):
    taken = 0

    def source():
        nonlocal taken
        for item in requests:
            taken += 1
            yield item

    engine = engines[backend]
    for given, (item, answer) in enumerate(zip(requests, engine.generate(source()), strict=True)):
        assert answer.key == item.key
        assert taken - given <= engine.task.batch_size
    assert list(engine.generate([])) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_that_is_left_early_does_not_disturb_the_next(engines, requests, plain, backend):
    stream = engines[backend].generate(requests)
    assert next(stream).token_ids == plain[0]
    stream.close()
    assert [item.token_ids for item in engines[backend].generate(requests[3:6])] == plain[3:6]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_that_cannot_be_used_is_an_input_error_that_names_it(engines, processor, requests, plain, backend):
    prompt = render_prompt(processor, ANSWER_DIRECTLY, True, True)
    bad = {
        r"8192 tokens": Request("bad", prompt + "word " * 9000, media(0)),
        r"<\|AUDIO\|> where": Request("bad", prompt, media(0, audio=False)),
        r"<\|VIDEO\|> where": Request("bad", prompt, None),
        r"too short": Request("bad", prompt, media(0, waveform=np.zeros(80, np.float32))),
        r"": Request("bad", prompt, media(0, waveform=np.zeros(0, np.float32))),
    }
    for message, item in bad.items():
        with pytest.raises(InputError, match=rf"^bad: .*{message}"):
            list(engines[backend].generate([requests[0], item]))
    assert next(iter(engines[backend].generate(requests))).token_ids == plain[0]


def test_report_24_what_is_too_long_names_a_flag_that_every_command_with_an_engine_has(model, processor):
    prompt = render_prompt(processor, ANSWER_DIRECTLY, True, True)
    with (
        open_engine(model, "transformers", max_model_length=64) as engine,
        pytest.raises(InputError, match=r"exceed 64 tokens; .* raise max_model_length"),
    ):
        list(engine.generate([Request("long", prompt + "word " * 60, media(0))]))
    assert "max_model_length" in {field.name for field in fields(EngineSettings)}


@pytest.mark.slow
def test_report_23_a_refusal_for_want_of_memory_names_the_flag(model):
    script = (
        "import sys\nfrom migr.engine import open_engine\nfrom migr.errors import exit_on_input_error\n"
        "with exit_on_input_error():\n    open_engine(sys.argv[1], 'vllm')"
    )
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "100000"}
    run = [sys.executable, "-c", script, str(model)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2, done.stderr
    assert "lower vllm_gpu_memory_utilization" in done.stderr.splitlines()[-1]


def test_an_answer_that_is_cut_is_not_finished_and_its_text_is_its_tokens(engines, processor, requests):
    for engine in engines.values():
        (answer,) = engine.generate(requests[:1])
        assert not answer.finished and len(answer.token_ids) == NEW
        assert answer.text == processor.tokenizer.decode(answer.token_ids, skip_special_tokens=True)


CHOICES = ("angry", "anger", "sad", "sadness", "no emotion at all", "Überraschung", "表情")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_is_exactly_one_of_the_choices(engines, requests, backend):
    mixed = [replace(item, choices=CHOICES if i % 3 else None) for i, item in enumerate(requests)]
    free = {item.key: item for item in engines[backend].generate(requests)}
    for item, answer in zip(mixed, engines[backend].generate(mixed), strict=True):
        if item.choices is None:
            assert answer == free[item.key]
        else:
            assert answer.text in CHOICES and answer.finished
    text = Request("text", requests[-1].prompt, choices=("yes",))
    assert [answer.text for answer in engines[backend].generate([text])] == ["yes"]


def test_both_backends_choose_the_same(engines, model, requests):
    mixed = [replace(item, choices=CHOICES[i % 3 :]) for i, item in enumerate(requests)]
    found = [[answer.text for answer in engine.generate(mixed)] for engine in engines.values()]
    assert found[0] == found[1] and len(set(found[0])) > 2, found
    hot = []
    with open_engine(model, "transformers", temperature=3.0) as engine:
        hot = [answer.text for answer in engine.generate(mixed * 2)]
    assert set(hot) <= set(CHOICES) and hot[: len(mixed)] == hot[len(mixed) :] and len(set(hot)) > 3


def test_choices_that_cannot_be_met_are_input_errors(engines, requests):
    for engine in engines.values():
        for choices in ((), ("sad", "")):
            with pytest.raises(InputError, match="clip0: choices"):
                list(engine.generate([replace(requests[0], choices=choices)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_goes_on_behind_its_given_beginning(engines, processor, requests, plain, backend):
    tokens = [processor.tokenizer.decode(ids[:5]) for ids in plain]
    kept = [i for i, text in enumerate(tokens) if processor.tokenizer(text)["input_ids"] == list(plain[i][:5])]
    assert len(kept) > 3
    given = [replace(requests[i], begins=tokens[i]) for i in kept]
    for i, answer in zip(kept, engines[backend].generate(given), strict=True):
        assert answer.token_ids[: NEW - 5] == plain[i][5:]


def test_both_backends_score_as_the_plain_model_does(engines, model, processor, requests):
    text = "<think><audio>the voice is low</audio>sad</think>"
    given = [replace(item, begins=text if i % 2 else text[:30]) for i, item in enumerate(requests)]
    vllm, transformers = (list(engine.score(given)) for engine in engines.values())
    thinker = load_thinker(model)
    for item, one, other in zip(given, vllm, transformers, strict=True):
        assert one.key == other.key == item.key and one.spans == other.spans
        assert "".join(item.begins[a:b] for a, b in one.spans) == item.begins
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-3)
        clip, kwargs = item.media, {}
        if clip is not None and clip.frames is not None:
            area = clip.frames.shape[-2] * clip.frames.shape[-1]
            kwargs |= {"videos": [torch.from_numpy(clip.frames)], "fps": clip.fps}
            kwargs |= {"size": {"shortest_edge": area, "longest_edge": area}, "cap_pixels_per_frame": False}
        if clip is not None and clip.waveform is not None:
            kwargs |= {"audio": [clip.waveform]}
        inputs = processor(text=[item.prompt + item.begins], return_tensors="pt", **kwargs)
        with torch.no_grad():
            logprobs = thinker(**inputs).logits[0].log_softmax(-1)
        n = len(one.logprobs)
        chosen = logprobs[-n - 1 : -1].gather(1, inputs["input_ids"][0, -n:, None])[:, 0]
        np.testing.assert_allclose(other.logprobs, chosen.numpy(), atol=2e-3)
    assert next(iter(engines["vllm"].score([requests[0]]))).logprobs == ()
    assert next(iter(engines["transformers"].score([requests[0]]))).logprobs == ()


def test_both_backends_agree_on_what_each_token_owes_to_the_clip(engines, requests):
    """Gain: log p behind the clip minus log p behind the blanked clip, as eval/drift.py takes it."""
    begins = "<think>the voice is low</think><answer>sad</answer>"
    pairs = []
    for item in requests[:6]:
        blank = replace(item.media, frames=np.full_like(item.media.frames, 127), waveform=item.media.waveform * 0)
        pairs += [replace(item, begins=begins), replace(item, begins=begins, media=blank)]
    gains = []
    for engine in engines.values():
        values = [np.array(score.logprobs) for score in engine.score(pairs)]
        gains.append(np.concatenate([one - other for one, other in zip(values[::2], values[1::2], strict=True)]))
    assert np.abs(gains[0] - gains[1]).max() < 0.02 and np.abs(gains[0]).max() > 0.2


def test_attention_to_the_clip_is_what_the_plain_model_has(engines, model, processor, requests):
    """In a batch of rows of different lengths; the engine scores as before when it has looked."""
    engine = engines["transformers"]
    begins = ["<think>the voice is low", "sad", "<think>the"]
    given = [replace(item, begins=text) for item, text in zip(requests[:3], begins, strict=True)]
    before = list(engine.score(given))
    looks = list(engine.attend(given))
    assert [item.spans for item in looks] == [score.spans for score in before] and before == list(engine.score(given))
    thinker = load_thinker(model)
    thinker.model.set_attn_implementation("eager")
    media = processor.tokenizer.convert_tokens_to_ids([processor.video_token, processor.audio_token])
    for item, one in zip(given, looks, strict=True):
        ids, features = engine.task.prepare(item)
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        batch |= engine.task.inputs.collate([features])
        with torch.inference_mode():
            weights = torch.stack(thinker(**batch, output_attentions=True).attentions)  # (layers, 1, heads, L, L)
        share = weights[:, 0, ..., torch.isin(batch["input_ids"][0], torch.tensor(media))].sum(-1).mean((0, 1))
        assert one.shares == pytest.approx(share[-len(one.shares) - 1 : -1].tolist(), abs=1e-5)
        assert all(0 < value < 1 for value in one.shares)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_name_in_a_given_beginning_is_plain_text(engines, processor, requests, backend):
    item = replace(requests[0], begins="so <|AUDIO|> and <|im_end|> it is")
    (score,) = engines[backend].score([item])
    assert len(score.logprobs) > 6 and np.isfinite(score.logprobs).all()
    assert list(engines[backend].generate([item]))


@pytest.fixture(scope="module")
def tempted(model, processor, requests, plain, tmp_path_factory):
    """A model that would say a media token at the first step of clip0, and end its answer at the first of clip1."""
    thinker = load_thinker(model)
    first, second = plain[0][0], plain[1][0]
    assert first != second
    head = thinker.lm_head.weight.data
    head[media_token_ids(processor)] = head[first] * 1.5
    head[processor.tokenizer.eos_token_id] = head[second] * 1.2
    return write_checkpoint(thinker, processor, tmp_path_factory.mktemp("tempted") / "model")


@pytest.mark.parametrize("backend", BACKENDS)
def test_media_tokens_never_come_and_the_end_token_ends(tempted, processor, requests, plain, backend):
    with open_engine(tempted, backend, max_new_tokens=2) as engine:
        first, second = engine.generate(requests[:2])
    assert first.token_ids[0] == plain[0][0]
    assert second == Generation("clip1", "", (), finished=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hot_sampling_gives_no_media_token_in_64_answers_and_is_repeatable(tempted, processor, backend):
    items = [replace(request(processor, seed % 4), key=str(seed)) for seed in range(64)]
    with open_engine(tempted, backend, max_new_tokens=24, temperature=2.0, seed=3) as engine:
        answers = list(engine.generate(items))
        assert list(engine.generate(items[:16])) == answers[:16]
    tokens = {token for answer in answers for token in answer.token_ids}
    assert len(tokens) > 100 and len({answer.token_ids for answer in answers}) > 50
    assert not tokens & set(media_token_ids(processor))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_sampled_does_not_depend_on_the_neighbours(model, requests, backend):
    with open_engine(model, backend, max_new_tokens=8, temperature=1.0, batch_size=5, seed=1) as engine:
        whole = list(engine.generate(requests))
        assert list(engine.generate(requests[7:12])) == whole[7:12]
        assert next(iter(engine.generate(requests[9:10]))) == whole[9]


def test_another_seed_gives_other_samples(model, requests):
    answers = []
    for seed in (0, 1):
        with open_engine(model, "transformers", max_new_tokens=8, temperature=1.5, seed=seed) as engine:
            answers.append([item.token_ids for item in engine.generate(requests[:4])])
    assert answers[0] != answers[1]


def test_transformers_sampling_leaves_the_global_random_state_alone(model, requests):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with open_engine(model, "transformers", max_new_tokens=2, temperature=1.0) as engine:
        list(engine.generate(requests[:1]))
    assert torch.equal(torch.rand(2), expected)


def test_an_adapter_runs_in_transformers_and_vllm_asks_for_the_export(model, requests, plain, tmp_path):
    from peft import LoraConfig, get_peft_model

    from migr.omni.export import export
    from migr.omni.load import LANGUAGE_MODEL_LORA

    torch.manual_seed(0)
    adapted = get_peft_model(load_thinker(model), LoraConfig(r=4, target_modules=LANGUAGE_MODEL_LORA))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"stages/export\.py"):
        open_engine(tmp_path / "adapter", "vllm")
    with open_engine(tmp_path / "adapter", "transformers", max_new_tokens=NEW) as engine:
        answers = [item.token_ids for item in engine.generate(requests[:8])]
    assert answers != plain[:8]
    with open_engine(export(tmp_path / "adapter", tmp_path / "whole"), "vllm", max_new_tokens=NEW) as engine:
        assert [item.token_ids for item in engine.generate(requests[:8])] == answers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tgi"}, "engine: 'tgi'"),
        ({"dtype": "int4"}, "dtype: 'int4'"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
        ({"tensor_parallel": 2, "backend": "transformers"}, "tensor_parallel: 2 needs vllm"),
    ],
)
def test_arguments_out_of_range_are_input_errors_before_anything_loads(model, arguments, message):
    with pytest.raises(InputError, match=message):
        open_engine(model, **arguments)


def test_a_folder_that_is_no_model_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="gone: no such folder"):
        open_engine(tmp_path / "gone")


def test_a_script_with_trl_and_vllm_prints_nothing_and_gets_its_threads_back(model):
    code = f"""
import migr.omni, torch
from trl import GRPOTrainer, SFTTrainer
from migr.engine import Request, open_engine
set_threads = torch.set_num_threads
with open_engine({str(model)!r}, max_new_tokens=2) as engine:
    assert type(engine).__name__ == "VllmEngine"
    assert len(list(engine.generate([Request("a", "Which emotion?")]))) == 1
assert torch.set_num_threads is set_threads
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failed_load_leaves_nothing_behind_for_the_next_engine(model, tmp_path):
    from safetensors.torch import load_file, save_file
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = next(broken.glob("*.safetensors"))
    values = load_file(weights)
    name = next(key for key in values if key.endswith("layers.0.mlp.up_proj.weight") and "model.layers" in key)
    values[name][0, 0] = float("inf")
    save_file(values, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="not finite"):
        open_engine(broken, "vllm", max_new_tokens=2)
    assert not model_parallel_is_initialized()
    with open_engine(model, "vllm", max_new_tokens=2) as engine:
        assert len(list(engine.generate([Request("a", "Which emotion?")]))) == 1
