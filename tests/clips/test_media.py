import os
import pickle
import subprocess
import sys

import media_files
import numpy as np
import pytest
import torch

import migr.omni  # noqa: F401  (mends torchvision, which qwen_vl_utils imports)
from migr.clips import container, timeline
from migr.clips.examine import examine
from migr.clips.media import BACKENDS, MediaError, MediaSettings, frame_indices, probe, read_media, smart_resize
from migr.errors import InputError

os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
SETTINGS = MediaSettings()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One of each kind, rendered once."""
    folder = tmp_path_factory.mktemp("media")
    whole = media_files.clip(folder / "ok.mp4")
    front = media_files.clip(folder / "front.mp4", faststart=True)
    nan = np.zeros(16_000)
    nan[100] = np.nan
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.mp4").write_text("this is no film")
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nok.mp4\n#EXT-X-ENDLIST\n")
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile ok.mp4\n")
    return {
        "ok": whole,
        "silent": media_files.clip(folder / "silent.mp4", audio=False),
        "blind": media_files.clip(folder / "blind.mp4", video=False),
        "one": media_files.clip(folder / "one.mp4", frames=1, audio=False),
        "three": media_files.clip(folder / "three.mp4", frames=3, audio=False),
        "blip": media_files.clip(folder / "blip.mp4", audio=0.01),
        "long": media_files.clip(folder / "long.mp4", seconds=4.0, fps=25, size=(120, 200)),
        "mkv": media_files.clip(folder / "ok.mkv"),
        "half": media_files.half(folder / "half.mp4", front),
        "half_mkv": media_files.half(folder / "half.mkv", folder / "ok.mkv"),
        "half_audio": media_files.half(
            folder / "half_audio.mp4", media_files.clip(folder / "f.mp4", video=False, faststart=True)
        ),
        "half_blind": media_files.half(folder / "half_blind.mp4", whole),  # its index was at the end
        "damaged": media_files.damaged(folder / "damaged.mp4", whole),
        "nan": media_files.tone(folder / "nan.mov", nan),
        **{name: folder / f"{name}.mp4" for name in ("empty", "random", "text", "playlist", "list")},
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_clip_gives_even_frames_of_28_multiples_and_16_khz_sound(files, backend):
    media = read_media(files["ok"], MediaSettings(backend=backend))
    count, channels, height, width = media.frames.shape
    assert (count, channels, height % 28, width % 28) == (4, 3, 0, 0) and media.frames.dtype == np.uint8
    assert media.fps == pytest.approx(2.0) and media.duration == pytest.approx(2.0)
    assert media.waveform.dtype == np.float32 and media.waveform.ndim == 1
    assert len(media.waveform) / 16_000 == pytest.approx(2.0, abs=0.05)
    time = np.arange(16_000) / 16_000
    tone = 0.4 * np.sin(2 * np.pi * 220 * time + 3 * np.sin(2 * np.pi * 5 * time))
    error = np.abs(media.waveform[:16_000] - tone)
    assert np.median(error) < 0.01  # in place to the sample, not merely as long


@pytest.mark.parametrize("name", ["ok", "long", "mkv", "three"])
def test_both_backends_give_the_same_frames_and_sound(files, name):
    ours, other = (read_media(files[name], MediaSettings(backend=b), audio=name != "three") for b in BACKENDS)
    assert ours.frames.shape == other.frames.shape and ours.fps == pytest.approx(other.fps)
    difference = np.abs(ours.frames.astype(int) - other.frames.astype(int))
    assert difference.mean() < 0.5 and difference.max() < 12
    if name != "three":
        assert np.array_equal(ours.waveform, other.waveform)


def test_frames_are_those_of_qwen_vl_utils_pixel_for_pixel(files):
    from qwen_vl_utils.vision_process import fetch_video

    bounds = {"fps": 2.0, "min_frames": 4, "max_frames": 32, "min_pixels": 56 * 56, "max_pixels": 112 * 112}
    for name in ("ok", "long", "three"):
        frames, fps = fetch_video({"video": str(files[name]), **bounds}, return_video_sample_fps=True)
        media = read_media(files[name], MediaSettings(max_pixels=112 * 112), audio=False)
        assert np.array_equal(media.frames, frames.to(torch.uint8).numpy())
        assert media.fps == pytest.approx(fps)


def test_sampling_and_resizing_rules_equal_those_of_qwen_vl_utils():
    from qwen_vl_utils import vision_process as qwen

    rng = np.random.default_rng(0)
    for _ in range(300):
        total, video_fps = int(rng.integers(2, 900)), float(rng.choice([12.5, 15, 23.976, 25, 29.97, 60]))
        low = 2 * int(rng.integers(1, 5))
        settings = MediaSettings(fps=float(rng.choice([0.5, 1, 2, 4])), min_frames=low, max_frames=low + 12)
        wanted = {"fps": settings.fps, "min_frames": low, "max_frames": low + 12}
        count = qwen.smart_nframes(wanted, total, video_fps)
        expected = torch.linspace(0, total - 1, count).round().long().tolist()
        assert frame_indices(total, total / video_fps, settings) == expected
        height, width = (int(side) for side in rng.integers(30, 1200, 2))
        low, high = 28 * 28 * int(rng.integers(1, 9)), 28 * 28 * int(rng.integers(60, 400))
        assert smart_resize(height, width, low, high) == qwen.smart_resize(height, width, 28, low, high)


def test_the_rate_of_the_frames_is_the_true_one_where_bounds_change_it(files):
    few = read_media(files["long"], MediaSettings(max_frames=4), audio=False)
    many = read_media(files["long"], MediaSettings(min_frames=20), audio=False)
    assert (len(few.frames), few.fps) == (4, pytest.approx(1.0))
    assert (len(many.frames), many.fps) == (20, pytest.approx(5.0))
    assert len(read_media(files["three"], SETTINGS, audio=False).frames) == 2  # even, not padded


def test_frames_come_from_all_over_the_clip(files):
    frames = read_media(files["long"], SETTINGS, audio=False).frames
    red = frames[:, 0].astype(int) - frames[:, 1]
    columns = [int(np.median(np.flatnonzero((picture > 80).any(0)))) for picture in red]
    indices = frame_indices(100, 4.0, SETTINGS)
    assert indices[0] == 0 and indices[-1] == 99
    scale = frames.shape[3] / 200
    expected = [((4 * index) % 184 + 8) * scale for index in indices]
    assert np.allclose(columns, expected, atol=6)


def test_only_what_is_asked_for_is_read(files):
    assert read_media(files["ok"], SETTINGS, audio=False).waveform is None
    sound = read_media(files["ok"], SETTINGS, video=False)
    assert sound.frames is None and sound.fps is None and sound.duration == pytest.approx(2.0, abs=0.05)
    assert read_media(files["blind"], SETTINGS, video=False).waveform.std() > 0.1
    assert read_media(files["silent"], SETTINGS, audio=False).frames is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("silent", "no_audio", "no audio stream"),
        ("blind", "no_video", "no video stream"),
        ("one", "too_few_frames", "1 video frame"),
        ("blip", "too_short", "s of sound, at least 0.1 s"),
        ("nan", "not_finite", "NaN"),
        ("half", "truncated", "only 14 of 30 frames are there"),
        ("half_mkv", "truncated", r"the file ends at 1\.00 of 2\.0"),
        ("half_audio", "truncated", "only 40 of 88 packets of sound are there"),
        ("half_blind", "unreadable", "index .moov. is missing: an unfinished recording"),
        ("damaged", "damaged", "damaged"),
        ("empty", "empty", "empty"),
        ("random", "unreadable", "no media file"),
        ("text", "unreadable", "no media file"),
        ("playlist", "unreadable", "no media file"),
        ("list", "unreadable", "no media file"),
    ],
)
def test_a_clip_that_cannot_be_used_says_why(files, backend, name, reason, message):
    wanted = {"one": (True, False), "nan": (False, True), "half_audio": (False, True)}.get(name, (True, True))
    with pytest.raises(MediaError, match=message) as caught:
        read_media(files[name], MediaSettings(backend=backend), *wanted)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{files[name]}: ")
    back = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (ours: it must cross from a data loader's worker)
    assert (str(back), back.reason) == (str(caught.value), reason)


def test_packets_without_a_picture_are_no_damage_unless_they_are_most(files, tmp_path):
    few = media_files.skipping(tmp_path / "few.mp4", files["ok"], 3)
    ours, other = (read_media(few, MediaSettings(backend=backend), audio=False) for backend in BACKENDS)
    assert len(ours.frames) == len(other.frames) == 4
    assert ours.fps == pytest.approx(other.fps, rel=0.1)
    assert np.abs(ours.frames[:1].astype(int) - other.frames[:1]).mean() < 0.5
    assert np.abs(ours.frames[-1].astype(int) - other.frames[-1]).mean() < 0.5  # decord shows the last picture again
    many = media_files.skipping(tmp_path / "many.mp4", files["ok"], 20)
    with pytest.raises(MediaError, match="only 11 of 30 pictures"):
        read_media(many, MediaSettings(backend="pyav"), audio=False)


def test_a_clip_longer_than_the_limit_is_refused_and_never_cut(files):
    short = MediaSettings(max_seconds=1.5)
    for wanted in ((True, True), (True, False), (False, True)):
        with pytest.raises(MediaError, match=r"longer than max_seconds = 1\.5") as caught:
            read_media(files["ok"], short, *wanted)
        assert caught.value.reason == "too_long"
    assert len(read_media(files["ok"], MediaSettings(max_seconds=2.0)).waveform) >= 32_000  # the last packet's padding


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.mp4", "file:///etc/passwd", "rtmp://host/x", "/nowhere/a.mp4"])
def test_only_local_files_are_opened(path):
    for read in (probe, lambda path: read_media(path, SETTINGS)):
        with pytest.raises(MediaError) as caught:
            read(path)
        assert caught.value.reason == "missing"


def test_a_folder_is_no_clip(files):
    with pytest.raises(MediaError, match="no such file"):
        probe(files["ok"].parent)


def test_a_name_that_looks_like_a_protocol_is_a_plain_file(files, tmp_path, monkeypatch):
    (tmp_path / "concat:a.mp4").write_bytes(files["ok"].read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(read_media("concat:a.mp4", SETTINGS).frames) == 4


def test_probe_tells_what_the_file_declares(files):
    assert probe(files["ok"]) == {
        "has_video": True,
        "has_audio": True,
        "duration": pytest.approx(2.0, abs=0.03),
        "fps": 15.0,
        "frames": 30,
        "width": 128,
        "height": 96,
        "sample_rate": 44_100,
    }
    blind, silent = probe(files["blind"]), probe(files["silent"])
    assert not blind["has_video"] and blind["frames"] is blind["fps"] is blind["width"] is None
    assert not silent["has_audio"] and silent["sample_rate"] is None
    with pytest.raises(MediaError):
        probe(files["random"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_examining_a_clip_finds_what_reading_it_would_and_measures_the_rest(files, backend):
    whole = examine(files["ok"], 30.0, backend)
    codecs = {"video_codec": "h264", "audio_codec": "aac"}
    assert whole == probe(files["ok"]) | {"duration": pytest.approx(2.0), "frames": 30} | codecs
    assert examine(files["mkv"], 30.0, backend)["frames"] == 30  # not declared: counted
    silent, blind = examine(files["silent"], 30.0, backend), examine(files["blind"], 30.0, backend)
    assert (silent["has_audio"], silent["sample_rate"], silent["frames"]) == (False, None, 30)
    assert (blind["has_video"], blind["frames"]) == (False, None) and blind["duration"] == pytest.approx(2, abs=0.05)
    broken = {"one": "too_few_frames", "blip": "too_short", "nan": "not_finite", "damaged": "damaged", "empty": "empty"}
    broken |= dict.fromkeys(("half", "half_mkv", "half_audio"), "truncated")
    broken |= dict.fromkeys(("half_blind", "random", "text", "playlist", "list"), "unreadable")
    for name, reason in broken.items():
        with pytest.raises(MediaError) as caught:
            examine(files[name], 30.0, backend)
        assert (name, caught.value.reason) == (name, reason)
    with pytest.raises(MediaError, match="longer than max_seconds"):
        examine(files["ok"], 1.0, backend)


def test_files_and_frames_beyond_the_bounds_are_refused_before_they_are_decoded(files, tmp_path, monkeypatch):
    huge = tmp_path / "huge.mp4"
    with huge.open("wb") as file:
        file.truncate(container.MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(MediaError, match="GiB") as caught:
        read_media(huge, SETTINGS)
    assert caught.value.reason == "too_large"
    monkeypatch.setattr(timeline, "MAX_FRAMES", 20)
    with pytest.raises(MediaError, match="more than 20 frames") as caught:
        read_media(files["ok"], SETTINGS)
    assert caught.value.reason == "too_many_frames"
    monkeypatch.setattr(container, "MAX_SOURCE_PIXELS", 100)
    with pytest.raises(MediaError, match="128 x 96 pixels is too large"):
        examine(files["ok"], 30.0)


def test_examining_needs_no_torch():
    code = "import sys, migr.clips.examine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_many_clips_leaves_no_file_open(files):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    read_media(files["ok"], SETTINGS)
    before = open_files()
    for backend in BACKENDS * 5:
        read_media(files["ok"], MediaSettings(backend=backend))
        with pytest.raises(MediaError):
            read_media(files["half"], MediaSettings(backend=backend))
    assert open_files() <= before


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"backend": "opencv"}, "backend"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"min_frames": 3}, "min_frames"),
        ({"min_frames": 40}, "min_frames"),
        ({"max_pixels": 100}, "max_pixels"),
        ({"max_seconds": 0.0}, "max_seconds"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(values, field):
    with pytest.raises(InputError, match=field):
        MediaSettings(**values)
