"""Copies that browsers play, and which clips need one."""

from pathlib import Path

import media_files
import numpy as np
import odd_clips
import pytest

from eval.page.browser import unplayable
from migr.clips.examine import examine
from migr.clips.media import MediaError, MediaSettings, read_media
from migr.clips.transcode import transcode


@pytest.mark.parametrize("kind", ["late_sound", "variable_rate", "rotated", "old_avi", "webcam", "late_picture"])
def test_a_copy_shows_and_plays_at_the_same_times(tmp_path, kind):
    true = getattr(odd_clips, kind)(tmp_path)
    transcode(true.path, tmp_path / "copy.mp4")
    facts = examine(tmp_path / "copy.mp4", 30.0)
    assert (facts["video_codec"], facts["audio_codec"]) == ("h264", "aac")
    assert (facts["width"], facts["height"], facts["frames"]) == (true.width, true.height, len(true.times))
    media = read_media(tmp_path / "copy.mp4", MediaSettings())
    assert odd_clips.heard(media.waveform) == pytest.approx(true.click, abs=0.03)
    first = read_media(true.path, MediaSettings())
    numbers = [[odd_clips.number_of(frame) for frame in read.frames] for read in (first, media)]
    assert np.abs(np.subtract(*numbers)).max() <= 1
    assert not list(tmp_path.glob("*.partial"))


def test_sound_alone_and_large_pictures_are_copied_small(tmp_path):
    media_files.clip(tmp_path / "sound.mkv", video=False)
    transcode(tmp_path / "sound.mkv", tmp_path / "sound.mp4")
    assert examine(tmp_path / "sound.mp4", 30.0)["audio_codec"] == "aac"
    media_files.clip(tmp_path / "large.mkv", seconds=0.4, size=(702, 1282), audio=False)
    transcode(tmp_path / "large.mkv", tmp_path / "large.mp4")
    facts = examine(tmp_path / "large.mp4", 30.0)
    assert (facts["width"], facts["height"]) == (480, 262)


def test_what_cannot_be_read_leaves_no_copy(tmp_path):
    (tmp_path / "x.avi").write_bytes(b"no film")
    with pytest.raises(MediaError):
        transcode(tmp_path / "x.avi", tmp_path / "x.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["x.avi"]


@pytest.mark.parametrize(
    ("name", "codecs", "what"),
    [
        ("a.mp4", ["h264", "aac"], None),
        ("a.MP4", ["libdav1d", "libopus"], None),
        ("a.mp4", ["mjpeg"], "mjpeg"),
        ("a.mp4", ["mpeg4", "aac"], "mpeg4"),
        ("a.mp4", ["h264", "ac3"], "ac3"),
        ("a.webm", ["vp8", "opus"], None),
        ("a.avi", ["h264"], "avi"),
        ("a.mkv", [], "mkv"),
        ("a.wav", [], None),
        ("a", [], "a file without an ending"),
    ],
)
def test_what_no_browser_plays_is_known_by_container_and_codec(name, codecs, what):
    assert unplayable(Path(name), codecs) == what
