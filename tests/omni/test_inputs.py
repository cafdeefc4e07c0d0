import os
from concurrent.futures import ThreadPoolExecutor

import media_files
import numpy as np
import pytest
import torch

from migr.clips.manifest import Clip
from migr.clips.media import Media, MediaError, MediaSettings
from migr.errors import InputError
from migr.omni.inputs import AUDIO_KEYS, VIDEO_KEYS, OmniInputs, _unpack, _write, load_file
from migr.omni.load import load_processor, load_thinker
from migr.omni.prompt import render_prompt
from migr.omni.tiny import build_tiny

SETTINGS = MediaSettings(max_pixels=112 * 112)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"), ["happy or sad? the face smiles, the voice trembles"] * 20)


@pytest.fixture(scope="module")
def processor(model):
    return load_processor(model)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Both, sound only, picture only, and both again with other lengths and sizes."""
    folder = tmp_path_factory.mktemp("clips")
    made = {
        "both": media_files.clip(folder / "both.mp4", seconds=2.0),
        "sound": media_files.clip(folder / "sound.mp4", seconds=1.3, video=False, pitch=330),
        "picture": media_files.clip(folder / "picture.mp4", seconds=3.0, audio=False, seed=1),
        "longer": media_files.clip(folder / "longer.mp4", seconds=3.7, fps=25, size=(64, 64), pitch=150, seed=2),
    }
    return {
        name: Clip(name, file, None, "train", has_video=name != "sound", has_audio=name != "picture")
        for name, file in made.items()
    }


@pytest.fixture
def inputs(processor, tmp_path):
    return OmniInputs(processor, SETTINGS, tmp_path / "cache")


def prompt_of(processor, clip, text="happy or sad?"):
    return render_prompt(processor, text, "video" in clip.modalities, "audio" in clip.modalities)


@pytest.mark.parametrize("name", ["both", "sound", "picture", "longer"])
def test_features_and_prompt_are_exactly_what_qwens_processor_gives(inputs, processor, clips, name):
    clip, media = clips[name], inputs.media(clips[name])
    arguments = {}
    if media.frames is not None:
        size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}  # bounds within which nothing is resized again
        arguments |= {"videos": [torch.from_numpy(media.frames)], "fps": media.fps, "size": size}
        arguments |= {"cap_pixels_per_frame": False}
    if media.waveform is not None:
        arguments |= {"audio": [media.waveform]}
    prompt = prompt_of(processor, clip)
    whole = processor(text=prompt, return_tensors="pt", **arguments)
    features = inputs.features(clip)
    assert inputs.prompt_ids(prompt, features) == whole["input_ids"][0].tolist()
    if media.frames is not None:
        assert torch.equal(features["pixel_values_videos"], whole["pixel_values_videos"])
        assert torch.equal(features["video_grid_thw"], whole["video_grid_thw"])
        assert torch.allclose(features["video_second_per_grid"], torch.as_tensor(whole["video_second_per_grid"]))
    if media.waveform is not None:
        frames = int(whole["feature_attention_mask"].sum())
        assert features["input_features"].shape == (1, 128, frames)
        assert torch.allclose(features["input_features"], whole["input_features"][:, :, :frames], atol=1e-5)
        assert features["feature_attention_mask"].tolist() == [[1] * frames]


@pytest.mark.parametrize("samples", [1600, 1601, 16_079, 16_080, 16_081, 32_000, 479_500])
def test_sound_of_any_length_has_the_values_that_padding_to_30_seconds_gives(inputs, processor, samples):
    wave = 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    whole = processor(text="<|AUDIO|>", audio=[wave], return_tensors="pt")
    frames = int(whole["feature_attention_mask"].sum())
    features = inputs.process(Media(None, None, wave, samples / 16_000))
    assert features["input_features"].shape[-1] == frames == -(-samples // 160)
    assert torch.allclose(features["input_features"], whole["input_features"][:, :, :frames], atol=1e-5)
    assert len(inputs.prompt_ids("<|AUDIO|>", features)) == whole["input_ids"].shape[1] > 1


def test_seconds_per_grid_follow_the_true_rate_of_the_frames(processor, clips, tmp_path):
    for settings in (MediaSettings(fps=4.0), MediaSettings(max_frames=4), MediaSettings(min_frames=12)):
        inputs = OmniInputs(processor, settings, tmp_path)
        frames = len(inputs.media(clips["longer"]).frames)
        second = inputs.features(clips["longer"])["video_second_per_grid"]
        assert second.shape == (1,) and second.dtype == torch.float32
        assert second.item() * frames / 2 == pytest.approx(92 / 25, rel=1e-5)  # the patches span the whole clip


def test_sound_beyond_the_extractors_window_is_not_cut(processor, tmp_path):
    clip = Clip("x", media_files.clip(tmp_path / "x.mp4", seconds=31.0, video=False), None, "train", has_video=False)
    assert processor.feature_extractor.chunk_length == 30
    features = OmniInputs(processor, MediaSettings(max_seconds=40.0)).features(clip)
    assert features["input_features"].shape[-1] == pytest.approx(3100, abs=5)
    with pytest.raises(MediaError, match="longer than max_seconds"):
        OmniInputs(processor, SETTINGS).features(clip)


def test_a_batch_with_missing_modalities_gives_the_logits_of_its_rows_alone(inputs, processor, clips, model):
    thinker = load_thinker(model, dtype="float32").eval()
    rows = [inputs.features(clip) for clip in clips.values()]
    ids = [inputs.prompt_ids(prompt_of(processor, clip), row) for clip, row in zip(clips.values(), rows, strict=True)]
    rows.append({})  # and one with neither
    ids.append(inputs.prompt_ids(render_prompt(processor, "happy or sad?", False, False), {}))
    longest = max(map(len, ids))
    pad = processor.tokenizer.pad_token_id
    padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    with torch.no_grad():
        batch = thinker(input_ids=padded, attention_mask=mask, **inputs.collate(rows)).logits
        for index, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
            one = torch.tensor([tokens])
            alone = thinker(input_ids=one, attention_mask=torch.ones_like(one), **inputs.collate([row])).logits
            assert torch.allclose(batch[index, -len(tokens) :], alone[0], atol=1e-4), index
        other = inputs.collate([*rows[:3], {**rows[3], "input_features": rows[3]["input_features"] + 1}])
        changed = thinker(input_ids=padded[:4], attention_mask=mask[:4], **other).logits
        assert torch.allclose(changed[:3, -1], batch[:3, -1], atol=1e-4)  # each row hears its own sound,
        assert not torch.allclose(changed[3, -1], batch[3, -1], atol=1e-4)  # and hears it


def test_collate_keeps_row_order_and_pads_sound_to_the_longest(inputs, clips):
    rows = [inputs.features(clips[name]) for name in ("longer", "picture", "sound", "both")]
    batch = inputs.collate(rows)
    assert torch.equal(batch["video_grid_thw"], torch.cat([rows[i]["video_grid_thw"] for i in (0, 1, 3)]))
    assert batch["pixel_values_videos"].shape[0] == int(batch["video_grid_thw"].prod(1).sum())
    lengths = [rows[i]["input_features"].shape[-1] for i in (0, 2, 3)]
    assert batch["feature_attention_mask"].sum(1).tolist() == lengths
    assert batch["input_features"].shape == (3, 128, max(lengths))
    assert torch.equal(batch["input_features"][1, :, : lengths[1]], rows[2]["input_features"][0])
    assert inputs.collate([{}, {}]) == {}
    assert set(inputs.collate([rows[1]])) == set(VIDEO_KEYS)


def test_a_modality_can_be_left_out(inputs, processor, clips):
    both = inputs.features(clips["both"])
    heard = inputs.features(clips["both"], ["audio"])
    assert set(heard) == set(AUDIO_KEYS)
    assert torch.equal(heard["input_features"], both["input_features"])
    assert inputs.features(clips["sound"], ["video"]) == {}
    assert inputs.features(clips["both"], []) == {}
    tokens = inputs.prompt_ids(render_prompt(processor, "happy?", False, True), heard)
    assert tokens.count(processor.tokenizer.convert_tokens_to_ids(processor.video_token)) == 0


def test_a_prompt_whose_placeholders_do_not_fit_the_clip_is_refused(inputs, processor, clips):
    features = inputs.features(clips["both"])
    for prompt in (
        render_prompt(processor, "happy?", True, False),
        render_prompt(processor, "they said <|AUDIO|>", True, True),
    ):
        with pytest.raises(InputError, match=r"<\|AUDIO\|> where the clip has 1"):
            inputs.expand(prompt, features)


def test_a_second_read_comes_from_the_cache_and_a_changed_file_does_not(processor, tmp_path):
    file = media_files.clip(tmp_path / "a.mp4")
    clip, cache = Clip("a", file, None, "train"), tmp_path / "cache"
    first = OmniInputs(processor, SETTINGS, cache).media(clip)
    facts = file.stat()
    file.write_bytes(b"\0" * facts.st_size)  # no decoder could read this
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    again = OmniInputs(processor, SETTINGS, cache)
    second = again.media(clip)
    assert np.array_equal(first.frames, second.frames) and np.array_equal(first.waveform, second.waveform)
    assert (first.fps, first.duration) == (second.fps, second.duration)
    assert set(again.features(clip)) == {*VIDEO_KEYS, *AUDIO_KEYS}
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))
    with pytest.raises(MediaError, match="its end is zeros"):
        again.media(clip)


def test_the_cache_knows_settings_and_content_but_not_names(processor, clips, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clips["both"].path.read_bytes())
    inputs, clip = OmniInputs(processor, SETTINGS, tmp_path / "cache"), clips["both"]
    same = Clip("other", copy, "sad", "test")
    blind = Clip("both", clip.path, None, "train", has_video=False)
    finer = OmniInputs(processor, MediaSettings(fps=4.0), tmp_path / "cache")
    assert inputs.media_key(same) == inputs.media_key(clip)
    assert len({inputs.media_key(clip), inputs.media_key(blind), finer.media_key(clip)}) == 3
    assert inputs.media(blind).frames is None
    assert len(finer.media(clip).frames) == 2 * len(inputs.media(clip).frames)


def test_a_damaged_cache_file_is_made_again(inputs, clips):
    whole = inputs.media(clips["both"])
    (file,) = inputs.cache_dir.rglob("*.safetensors")
    content = file.read_bytes()
    for broken in (b"", content[: len(content) // 2], b"\xff" * 100):
        file.write_bytes(broken)
        assert np.array_equal(inputs.media(clips["both"]).frames, whole.frames)
        assert file.read_bytes() == content


def test_many_writers_and_readers_never_meet_half_a_file(inputs, clips, tmp_path):
    media, file = inputs.media(clips["both"]), tmp_path / "one" / "x.safetensors"
    _write(file, media)

    def work(_):
        for _ in range(20):
            _write(file, media)
            assert np.array_equal(_unpack(load_file(file)).frames, media.frames)
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert os.listdir(file.parent) == ["x.safetensors"]  # no temporary file is left behind


def test_memory_holds_the_last_features_within_its_bound(processor, clips, tmp_path):
    inputs = OmniInputs(processor, SETTINGS, tmp_path, memory=700_000)
    first = inputs.features(clips["both"])
    assert inputs.features(clips["both"])["input_features"] is first["input_features"]
    for clip in clips.values():
        inputs.features(clip)
    assert 0 < inputs._kept_bytes <= 700_000
    assert inputs._kept_bytes == sum(t.nbytes for row in inputs._kept.values() for t in row.values())
    again = inputs.features(clips["both"])
    assert again["input_features"] is not first["input_features"]
    assert torch.equal(again["input_features"], first["input_features"])


def test_a_transcript_alone_has_no_features(inputs, clips):
    clip = Clip("t", clips["both"].path, None, "train", False, False, {"transcript": "well"})
    assert inputs.features(clip) == {}


def test_a_processor_of_another_family_is_refused(model):
    other = load_processor(model)
    other.video_processor.patch_size = 16
    with pytest.raises(InputError, match="sides of 32 pixels"):
        OmniInputs(other, SETTINGS)
