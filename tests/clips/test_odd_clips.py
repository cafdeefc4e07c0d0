"""Playable files as people have them: every reader sees the same clip, the true one. Numbers are those of reports."""

from contextlib import nullcontext

import media_files
import numpy as np
import odd_clips
import pytest
from conftest import ROOT

from migr.clips import pictures, timeline
from migr.clips.examine import examine
from migr.clips.manifest import read_clips
from migr.clips.media import BACKENDS, MediaError, MediaSettings, read_media
from migr.errors import InputError
from migr.files.records import read_jsonl

SETTINGS = MediaSettings(fps=4.0)
NOTES = ("rotated", "anamorphic", "variable_rate", "hidden_frames", "audio_start", "video_start", "silent", "reader")


@pytest.fixture(scope="session")
def odd(tmp_path_factory):
    """kind -> the file and what is true of it, made once."""
    folder = tmp_path_factory.mktemp("odd")
    return {kind.__name__: kind(folder / kind.__name__) for kind in odd_clips.KINDS}


@pytest.mark.parametrize("kind", [kind.__name__ for kind in odd_clips.KINDS])
def test_what_is_read_is_what_a_player_shows(odd, kind):
    true = odd[kind]
    media = [read_media(true.path, MediaSettings(fps=4.0, backend=b), audio=true.click is not None) for b in BACKENDS]
    first, second = media
    assert np.array_equal(first.frames, second.frames) and first.fps == second.fps  # whoever decoded them
    assert first.duration == pytest.approx(true.end, abs=0.03 if kind != "webcam" else 0.07)
    count = len(first.frames)
    assert count == 2 * int(min(first.duration * 4 + 1e-6, len(true.times)) / 2)
    assert first.fps == pytest.approx(count / first.duration)
    moments = (np.linspace(0, len(true.times) - 1, count) + 0.5) * true.end / len(true.times)
    due = np.maximum(np.searchsorted(true.times, moments, side="right") - 1, 0)
    for frame, place in zip(first.frames, due, strict=True):  # upright, and the right one: a neighbour at most
        number = odd_clips.number_of(frame, true.width, true.height)
        near = true.numbers[max(0, place - 1) : place + 2]
        assert number in near, (number, near)
    if true.click is not None:
        assert odd_clips.heard(first.waveform) == pytest.approx(true.click, abs=0.002)


@pytest.mark.parametrize("kind", [kind.__name__ for kind in odd_clips.KINDS])
def test_examining_says_what_a_player_shows_and_what_is_odd(odd, kind):
    true = odd[kind]
    facts = examine(true.path, 30.0)
    assert (facts["width"], facts["height"]) == (true.width, true.height)
    assert facts["frames"] == len(true.times)
    media = read_media(true.path, SETTINGS, audio=facts["has_audio"])
    assert facts["duration"] == media.duration and facts["fps"] == pytest.approx(
        facts["frames"] / media.duration, abs=1e-3
    )
    noted = {key: value for key, value in facts.items() if key in NOTES}
    expected = {key: value for key, value in true.notes.items() if key in NOTES}
    assert noted.keys() == expected.keys()
    assert all(noted[key] == pytest.approx(value, abs=0.03) for key, value in expected.items())
    assert facts["has_audio"] == (true.click is not None)


def test_all_kinds_go_through_the_data_stage_and_are_counted(odd, stage, tmp_path, capsys):
    lines = [f"{true.path.relative_to(true.path.parents[1])};sad" for true in odd.values()]
    (tmp_path / "t.csv").write_text("\n".join(["Path;Label", *lines]))
    root = next(iter(odd.values())).path.parents[1]
    stage("data", source="table", table=tmp_path / "t.csv", root=root, out=tmp_path / "out")
    clips = read_clips(tmp_path / "out" / "clips.jsonl")
    assert len(clips) == len(odd) and not read_jsonl(tmp_path / "out" / "excluded.jsonl")
    said = capsys.readouterr().out
    assert "1 anamorphic" in said and "av1" in said and "1 silent" in said and "3 turned" in said


def test_report_17_decord_is_never_asked_for_what_its_index_alone_has(odd, monkeypatch):
    decord = pytest.importorskip("decord")

    def never(self, indices):
        raise AssertionError("decord was asked")

    monkeypatch.setattr(decord.VideoReader, "get_batch", never)
    for kind in ("cut_by_stream_copy", "slightly_cut", "cut_behind_b_frames", "rotated", "changing_sound", "webcam"):
        media = read_media(odd[kind].path, MediaSettings(backend="decord"), audio=False)
        assert len(media.frames) >= 2


def test_report_26_without_decord_it_is_one_line(odd, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    assert read_media(odd["late_sound"].path, MediaSettings()).duration == pytest.approx(4.0)
    with pytest.raises(InputError, match=r"decord is not installed .* take pyav"):
        read_media(odd["late_sound"].path, MediaSettings(backend="decord"))


def test_reading_ends_after_its_limit_and_names_the_clip(odd, monkeypatch):
    monkeypatch.setattr(timeline.Limit.__init__, "__defaults__", (0.0,))
    with pytest.raises(MediaError, match=r"late\.mp4: not read within 0 s") as caught:
        read_media(odd["late_sound"].path, SETTINGS)
    assert caught.value.reason == "timeout"


def test_two_hundred_seconds_of_a_stream_that_is_not_used_are_no_reason_to_refuse(odd):
    true = odd["longer_track"]  # 40 s of a second language
    assert read_media(true.path, MediaSettings(max_seconds=2.5)).duration == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.mp4",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("a.mp4", b"\n<!DOCTYPE html><html><title>Sign in</title>", "a web page, not a video"),
        ("a.mp4", b"PK\x03\x04" + bytes(100), "an archive: unpack it"),
        ("a.mp4", b"Rar!\x1a\x07" + bytes(100) + b"x", "an archive"),
        ("a.mp4", b"path,label\n", "no media file, but text"),
        ("a.mp4", bytes(100_000), "its end is zeros, an unfinished copy"),
    ],
)
def test_what_is_no_clip_is_named_with_the_way_out(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=message) as caught:
        read_media(tmp_path / name, SETTINGS)
    assert caught.value.reason == "unreadable"


def test_a_download_that_reserved_room_and_stopped_is_named(tmp_path):
    content = media_files.clip(tmp_path / "whole.mp4", faststart=True, audio=False).read_bytes()
    for share in (0.5, 0.8):
        there = int(len(content) * share)
        (tmp_path / "part.mp4").write_bytes(content[:there] + bytes(len(content) - there))
        with pytest.raises(MediaError, match="its end is zeros, an unfinished copy") as caught:
            read_media(tmp_path / "part.mp4", SETTINGS, audio=False)
        assert caught.value.reason == "truncated"


@pytest.mark.parametrize("declared", [b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f", b"\x00\x00\x00\x00"])
def test_report_39_a_wav_from_a_pipe_is_as_long_as_its_samples(tmp_path, declared):
    path = tmp_path / "x.wav"
    samples = (8000 * np.sin(np.arange(16_000) / 5)).astype("<i2").tobytes()
    head = (
        b"RIFF"
        + declared
        + b"WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00\x02\x00\x10\x00data"
    )
    path.write_bytes(head + declared + samples)
    assert read_media(path, SETTINGS, video=False).duration == pytest.approx(1.0, abs=0.01)


def test_a_picture_that_grows_within_the_clip_is_resized_like_the_first(tmp_path):
    parts = []
    for number, size in enumerate(((192, 128), (384, 256))):
        writer = odd_clips.Writer(tmp_path / f"{number}.ts", audio=None, size=size)
        for index in range(25):
            writer.show(25 * number + index, 1.08 * number + index / 25, size)
        parts.append(writer.close().read_bytes())
    (tmp_path / "grows.ts").write_bytes(b"".join(parts))
    media = read_media(tmp_path / "grows.ts", SETTINGS, audio=False)
    assert media.duration == pytest.approx(2.0, abs=0.05) and len(media.frames) == 8


def test_a_mirrored_selfie_is_mirrored_back(tmp_path):
    import av

    frame = av.VideoFrame.from_ndarray(odd_clips.picture(5), format="rgb24")
    assert pictures.turned(frame) == [1, 0, 0, 1]
    for matrix, expected in (
        ([1, 0, 0, 1], lambda image: image),
        ([-1, 0, 0, 1], lambda image: image[:, ::-1]),
        ([1, 0, 0, -1], lambda image: image[::-1]),
        ([0, -1, 1, 0], lambda image: np.rot90(image)),
        ([0, 1, -1, 0], lambda image: np.rot90(image, 3)),
        ([0, 1, 1, 0], lambda image: image.transpose(1, 0, 2)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pictures, "turned", lambda frame, matrix=matrix: matrix)
            assert np.array_equal(pictures.upright(frame), expected(odd_clips.picture(5)))


def test_the_documentation_has_a_row_for_each_kind():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for kind in odd_clips.KINDS:
        assert f"| {kind.__name__.replace('_', ' ')} |" in text


def test_what_sft_learns_from_has_the_true_times(odd, omni_inputs):
    from migr.clips.manifest import Clip
    from migr.omni.inputs import OmniInputs
    from migr.training.sft import TargetCollator

    clips = {
        kind: Clip(kind, true.path.resolve(), "sad", "train", has_audio=true.click is not None)
        for kind, true in odd.items()
    }
    collator = TargetCollator(OmniInputs(omni_inputs.processor, MediaSettings(max_pixels=3136)), clips)
    batch = collator([{"clip_id": kind, "prompt": "What?", "target": "<answer>sad</answer>"} for kind in odd])
    seconds = batch["video_second_per_grid"] * batch["video_grid_thw"][:, 0]
    assert seconds.tolist() == pytest.approx([true.end for true in odd.values()], abs=0.08)
    sounds = batch["feature_attention_mask"].sum(1) / 100  # mel frames a second
    waveforms = [read_media(true.path, SETTINGS).waveform for true in odd.values() if true.click is not None]
    assert sounds.tolist() == pytest.approx([len(waveform) / 16_000 for waveform in waveforms], abs=0.02)


def test_every_kind_is_explained_and_asked_about_the_streams_that_it_has(odd, base_model, monkeypatch):
    import migr.engine
    from eval.explain import explain, page
    from migr.omni.prompt import question_about
    from migr.settings import DecodingSettings
    from migr.text.labels import label_set

    labels, prompts = label_set("dfew"), []
    with migr.engine.open_engine(base_model, "transformers", max_new_tokens=1) as engine:
        answer = engine.generate
        monkeypatch.setattr(engine, "generate", lambda requests: prompts.extend(requests) or answer(requests))
        monkeypatch.setattr(migr.engine, "open_engine", lambda *_, **__: nullcontext(engine))  # one for all
        for kind, true in odd.items():
            media = MediaSettings(max_pixels=3136)
            explanation = explain(true.path, base_model, None, labels, media, DecodingSettings(max_new_tokens=1))
            clip, prompt = explanation.clip, prompts[-1].prompt
            assert clip.has_video and clip.has_audio == (true.click is not None), kind
            assert question_about(clip, labels.labels) in prompt
            assert ("<|AUDIO|>" in prompt) == ("<polyline" in page(explanation)) == clip.has_audio
    assert len(prompts) == len(odd)
