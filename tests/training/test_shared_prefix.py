"""Sharing a prompt among its completions, and running frozen towers once, change the work and not the numbers."""

import random
import time
from functools import partial

import pytest
import torch

from migr.clips.manifest import read_clips
from migr.engine import Request, open_engine
from migr.importance.features import tower_features
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_thinker
from migr.omni.prompt import question, render_prompt
from migr.omni.towers import FrozenTowers
from migr.text.labels import DFEW
from migr.training.shared_prefix import pack


@pytest.fixture(scope="module")
def thinker(base_model):
    return load_thinker(base_model, dtype="float32", trainable=True)


@pytest.fixture(scope="module")
def clips(planted_run):
    return read_clips(planted_run.clips)


def batch(inputs, clips, lengths, seed=0):
    """Left-padded prompts of the clips, random completions of these lengths padded on the right, as TRL builds them."""
    rng = random.Random(seed)
    tokenizer = inputs.processor.tokenizer
    words = tokenizer("calm eyes and a low falling pitch, so the voice carries the feeling").input_ids
    text = render_prompt(inputs.processor, question(DFEW), True, True)
    prompts = [inputs.prompt_ids(text, inputs.features(clip)) for clip in clips]
    width, longest = max(map(len, prompts)), max(lengths)
    ids = torch.full((len(clips), width + longest), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        row = [*prompt, *rng.choices(words, k=length)]
        start = width - len(prompt)
        ids[i, start : start + len(row)], mask[i, start : start + len(row)] = torch.tensor(row), 1
    return ids, mask, longest


def plain(thinker, media, ids, mask, longest):
    logits = thinker(input_ids=ids, attention_mask=mask, **media).logits[:, -longest - 1 : -1]
    logps = logits.log_softmax(-1).gather(2, ids[:, -longest:, None]).squeeze(2)
    return logps * mask[:, -longest:]


def shared(thinker, media, ids, mask, longest, rows):
    packed = pack(ids, mask, longest, rows, partial(thinker.positions, media=media))
    logits = thinker(
        input_ids=packed.input_ids, attention_mask=packed.mask, position_ids=packed.position_ids, **media
    ).logits
    logps = logits.log_softmax(-1).gather(2, packed.shift_labels.clamp(min=0)[:, :, None]).squeeze(2)
    return packed, packed.unpack(logps, (len(ids), longest))


def test_shared_prompts_give_the_log_probs_and_gradients_of_rows_of_their_own(thinker, omni_inputs, clips):
    rows = [4, 1, 1, 4, 4, 2]  # in any order, a group of one among them
    ids, mask, longest = batch(omni_inputs, [clips[row] for row in rows], [5, 9, 1, 12, 3, 7])
    found = {}
    for name in ("plain", "shared"):
        thinker.zero_grad()
        if name == "plain":
            media = omni_inputs.collate([omni_inputs.features(clips[row]) for row in rows])
            logps = plain(thinker, media, ids, mask, longest)
        else:
            media = omni_inputs.collate([omni_inputs.features(clips[row]) for row in (4, 1, 2)])
            packed, logps = shared(thinker, media, ids, mask, longest, rows)
            assert packed.input_ids.shape[0] == 3
            assert packed.input_ids.numel() < 0.7 * ids.numel()
        weights = torch.linspace(-1, 1, logps.numel()).reshape(logps.shape)
        (weights * logps).sum().backward()
        gradient = torch.cat([weight.grad.flatten() for weight in thinker.model.layers.parameters()])
        found[name] = logps.detach(), gradient.clone()
    torch.testing.assert_close(found["shared"][0], found["plain"][0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found["shared"][1], found["plain"][1], atol=1e-3, rtol=1e-3)


def test_a_branch_sees_its_own_prompt_and_no_other_branch(thinker, omni_inputs, clips):
    rows = [0, 0, 1]
    media = omni_inputs.collate([omni_inputs.features(clips[row]) for row in (0, 1)])
    ids, mask, longest = batch(omni_inputs, [clips[row] for row in rows], [6, 6, 6])
    other = ids.clone()
    other[0, -6:] = ids[0, -6:].flip(0)
    with torch.no_grad():
        _, before = shared(thinker, media, ids, mask, longest, rows)
        _, after = shared(thinker, media, other, mask, longest, rows)
    assert not torch.equal(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:], atol=1e-6, rtol=0)


def test_frozen_towers_run_once_a_clip_and_give_the_same_logits(base_model, omni_inputs, clips, tmp_path):
    thinker = load_thinker(base_model, dtype="float32")
    chosen = [clips[i] for i in (3, 3, 5, 3)]
    ids, mask, longest = batch(omni_inputs, chosen, [4, 4, 4, 4])
    runs = []
    tower = thinker.visual.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        expected = plain(thinker, omni_inputs.collate([omni_inputs.features(c) for c in chosen]), ids, mask, longest)
        runs.clear()
        towers = FrozenTowers(thinker, replaced(omni_inputs, tmp_path))
        logps = []
        for _ in range(2):
            media = omni_inputs.collate([towers.features(clip) for clip in chosen])
            assert "pixel_values_videos" not in media and "input_features" not in media
            logps.append(plain(thinker, media, ids, mask, longest))
    tower.remove()
    torch.testing.assert_close(logps[0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logps[0], logps[1])
    assert len(runs) == 2  # two clips, though shown eight times


def replaced(inputs, folder):
    """Inputs of the same clips with a cache folder of their own."""
    return OmniInputs(inputs.processor, inputs.settings, folder)


def test_another_process_finds_the_tokens_on_disk_and_other_towers_do_not(base_model, omni_inputs, clips, tmp_path):
    inputs = replaced(omni_inputs, tmp_path)
    first, second, other = (load_thinker(base_model, dtype="float32") for _ in range(3))
    tokens = FrozenTowers(first, inputs).features(clips[0])
    with torch.no_grad():
        other.visual.merger.ln_q.weight += 1e-3
    runs = []
    for thinker in (second, other):
        thinker.visual.register_forward_hook(lambda *_: runs.append(1))
    again = FrozenTowers(second, replaced(omni_inputs, tmp_path)).features(clips[0])
    assert not runs and again.keys() == tokens.keys()
    assert all(torch.equal(again[name], tokens[name]) for name in tokens)
    differ = FrozenTowers(other, replaced(omni_inputs, tmp_path)).features(clips[0])
    assert runs and not torch.equal(differ["video_tokens"], tokens["video_tokens"])
    for file in (tmp_path / "tokens").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-7])  # damaged: made and written again
    once_more = FrozenTowers(second, replaced(omni_inputs, tmp_path)).features(clips[0])
    assert len(runs) == 2 and all(torch.equal(once_more[name], tokens[name]) for name in tokens)


def test_one_pass_of_the_towers_serves_importance_training_and_evaluation(base_model, omni_inputs, clips, tmp_path):
    inputs, chosen = replaced(omni_inputs, tmp_path), clips[:3]
    pooled = tower_features(chosen, inputs, base_model).values
    runs = []
    with open_engine(base_model, "transformers", max_new_tokens=2, cache_dir=tmp_path) as engine:
        for tower in (engine.towers.thinker.visual, engine.towers.thinker.audio_tower):
            tower.register_forward_hook(lambda *_: runs.append(1))
        prompt = render_prompt(inputs.processor, "?", True, True)
        requests = [Request(c.clip_id, prompt, inputs.media(c), inputs.media_keys(c)) for c in chosen]
        assert len(list(engine.generate(requests))) == 3 and not runs
    rows = [FrozenTowers(engine.towers.thinker, inputs).features(clip) for clip in chosen]
    assert not runs
    for row, mean in zip(rows, pooled["video"], strict=True):
        torch.testing.assert_close(mean[: len(mean) // 2], row["video_tokens"][0].float().mean(0))


def test_tokens_are_the_same_under_autocast_and_without(base_model, omni_inputs, clips):
    inputs = OmniInputs(omni_inputs.processor, omni_inputs.settings)
    towers = FrozenTowers(load_thinker(base_model, dtype="bfloat16"), inputs, memory=1)  # computed anew each time
    alone = towers.features(clips[0])
    with torch.autocast("cpu", torch.bfloat16):
        within = towers.features(clips[0])
        digest = towers.digest
    assert digest == towers.digest and alone["video_tokens"].dtype == torch.bfloat16
    assert all(torch.equal(within[name], alone[name]) for name in alone)


def test_kept_tokens_stay_within_the_memory_given(base_model, omni_inputs, clips):
    inputs = OmniInputs(omni_inputs.processor, omni_inputs.settings)
    towers = FrozenTowers(load_thinker(base_model, dtype="float32"), inputs, memory=1)
    first = towers.features(clips[0])
    assert towers.tokens.get(inputs.media_key(clips[0]), "video") is None
    assert torch.equal(first["video_tokens"], towers.features(clips[0])["video_tokens"])


def test_learning_towers_are_refused(thinker, omni_inputs):
    with pytest.raises(AssertionError, match="learn"):
        FrozenTowers(thinker, omni_inputs)


def samples(thinker, omni_inputs, clips, rows, new, together, **options):
    """Sample behind each row's prompt, with a prompt of its own or with one for all rows of a clip."""
    ids, mask, longest = batch(omni_inputs, [clips[row] for row in rows], [1] * len(rows))
    shown = list(dict.fromkeys(rows)) if together else rows
    kwargs = omni_inputs.collate([omni_inputs.features(clips[row]) for row in shown])
    if together:
        kwargs["group"] = torch.tensor([shown.index(row) for row in rows])
    torch.manual_seed(0)
    kwargs |= {"input_ids": ids[:, :-longest], "attention_mask": mask[:, :-longest]}
    return thinker.generate(**kwargs, max_new_tokens=new, min_new_tokens=new, **options)[:, -new:]


@pytest.mark.parametrize("sampled", [False, True])
def test_completions_behind_a_shared_prompt_are_those_behind_a_prompt_of_their_own(
    thinker, omni_inputs, clips, sampled
):
    rows = [4, 1, 1, 4, 4, 2]
    options = {"do_sample": sampled, "temperature": 0.5 if sampled else None}
    apart, together = (samples(thinker, omni_inputs, clips, rows, 12, both, **options) for both in (False, True))
    assert torch.equal(apart, together)
    assert len({tuple(row) for row in apart.tolist()}) >= (6 if sampled else 2)


@pytest.mark.slow
def test_how_much_one_prefill_saves(thinker, omni_inputs, clips, capsys):
    """Eight clips with eight completions of 60 tokens each: seconds of sampling, for docs/benchmarks.md."""
    rows = [i for i in range(8) for _ in range(8)]
    seconds = {}
    for together in (False, True) * 3:
        start = time.perf_counter()
        found = samples(thinker, omni_inputs, clips, rows, 60, together, do_sample=True, temperature=0.6)
        seconds[together] = min(seconds.get(together, 1e9), time.perf_counter() - start)
    with capsys.disabled():
        print(f"\napart {seconds[False]:.2f} s, shared {seconds[True]:.2f} s")
    assert found.shape == (64, 60)


@pytest.mark.slow
def test_how_much_sharing_saves(thinker, omni_inputs, clips, capsys):
    """Eight clips with eight completions each: seconds of a forward and backward pass, for docs/benchmarks.md."""
    rows = [i for i in range(8) for _ in range(8)]
    ids, mask, longest = batch(omni_inputs, [clips[row] for row in rows], random.Random(0).choices(range(30, 80), k=64))
    seconds = {}
    for name in ("apart", "shared") * 3:
        thinker.zero_grad()
        start = time.perf_counter()
        if name == "apart":
            media = omni_inputs.collate([omni_inputs.features(clips[row]) for row in rows])
            logps = plain(thinker, media, ids, mask, longest)
        else:
            media = omni_inputs.collate([omni_inputs.features(clip) for clip in clips[:8]])
            _, logps = shared(thinker, media, ids, mask, longest, rows)
        logps.sum().backward()
        seconds[name] = min(seconds.get(name, 1e9), time.perf_counter() - start)
    with capsys.disabled():
        print(f"\napart {seconds['apart']:.2f} s, shared {seconds['shared']:.2f} s")
    assert torch.isfinite(logps).all()
