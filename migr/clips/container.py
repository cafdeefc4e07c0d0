"""Open a media file safely, and say what a file is that cannot be opened.

PyAV opens local files of known containers only. What is in a file, and when, is `migr.clips.timeline`; nothing here or
there needs torch: the processes that examine a data set's clips start in a fifth of a second.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av

from migr.errors import InputError

SAMPLE_RATE = 16000  # Hz; what the audio tower was trained on
MAX_SOURCE_PIXELS = 7680 * 4320  # a frame larger than 8K is refused before it is decoded
MAX_ELONGATION = 200  # longer side : shorter side; the limit of qwen_vl_utils
MAX_FRAMES = 100_000
MAX_BYTES = 2 * 2**30
READ_SECONDS = 300.0  # one clip may take this long, in whatever command

# Containers that hold their own media. Playlists (hls, concat) point at other files or hosts: not among them.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,asf,wav,mp3,flac,ogg,aac"
_TAIL = 4096  # bytes at the end of a file; all zero where a download reserved room and did not finish

# Why a clip cannot be used, in one word.
REASONS = {
    "missing": "there is no such file",
    "empty": "the file has no bytes",
    "unreadable": "no media file, or one whose index is missing (an interrupted copy)",
    "unknown_codec": "PyAV has no decoder for the picture or the sound",
    "damaged": "opens, but cannot be decoded",
    "truncated": "more than a tenth of what the file declares is not in it",
    "no_video": "no video stream",
    "no_audio": "no audio stream",
    "too_few_frames": "fewer than 2 frames",
    "too_many_frames": "more than 100,000 frames",
    "too_large": "a picture above 8K or longer than 200 : 1, or a file above 2 GiB",
    "too_short": "less than 0.1 s of sound",
    "too_long": "longer than max_seconds",
    "not_finite": "the sound has NaN or infinite samples",
    "no_memory": "decoding needs more memory than there is, or than a probe may take",
    "timeout": "no answer in time",
}


class MediaError(InputError):
    """A clip that cannot be used. The message names file and cause; `reason` is one word of `REASONS`."""

    def __init__(self, message: str, reason: str = "unreadable"):
        assert reason in REASONS
        super().__init__(message)
        self.reason = reason


def probe(path: str | Path) -> dict[str, Any]:
    """Read what a file declares about itself, without decoding.

    Returns:
        `has_video`, `has_audio`, `duration` (s), `fps`, `frames`, `width`, `height`, `sample_rate` (Hz); None where the
        stream is absent or the container does not say. Headers lie: `migr.clips.examine` measures.

    Raises:
        MediaError: The file is missing or no media file.
    """
    with opened(path) as container:
        return facts(path, container)


@contextmanager
def opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    """Open a local media file; whatever PyAV raises, here or inside, becomes a MediaError."""
    if "://" in str(path):
        raise MediaError(f"{path}: only local files are read, not URLs", "missing")
    file = Path(path).resolve()  # absolute, so that no part of the name can be taken for a protocol
    if not file.is_file():
        raise MediaError(f"{path}: no such file", "missing")
    size = file.stat().st_size
    if not size:
        raise MediaError(f"{path}: the file is empty", "empty")
    if size > MAX_BYTES:
        raise MediaError(f"{path}: {size / 2**30:.1f} GiB, at most {MAX_BYTES / 2**30:.0f} are read", "too_large")
    reason = "unreadable"
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        with av.open(str(file), options=options) as container:
            reason = "damaged"
            yield container
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError(f"{path}: not enough memory to decode it", "no_memory") from error
    except (av.error.DecoderNotFoundError, NotImplementedError) as error:
        raise MediaError(f"{path}: {unknown_codec(str(error))}", "unknown_codec") from error
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        what = _what_it_is(file, reason == "damaged")
        raise MediaError(f"{path}: {what} ({cause})", reason) from error


def unknown_codec(name: str) -> str:
    """What to say of a codec without a decoder."""
    return f"PyAV has no decoder for it ({name}); transcode the file to H.264 and AAC"


def _what_it_is(file: Path, opens: bool) -> str:
    """What a file is that cannot be read, from its first and last bytes, and the way out."""
    with file.open("rb") as stream:
        start = stream.read(512)
        stream.seek(max(0, file.stat().st_size - _TAIL))
        finished = any(stream.read(_TAIL))
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, not a video: the download got a login or error page; download it again"
    if start.startswith((b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!", b"\x1f\x8b")):
        return f"{_archive(file)}, not a video"
    if not finished:
        return "its end is zeros, an unfinished copy or download; copy it again"
    if opens:
        return "damaged; copy the file again"
    if start[4:8] == b"ftyp":
        return "the index (moov) is missing: an unfinished recording or copy; copy it again"
    if text and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return "no media file, but text"
    return "no media file, or its index is missing"


def _archive(file: Path) -> str:
    with suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        if any(entry.flag_bits & 1 for entry in archive.infolist()):
            return "an archive with a password: unpack it with the password that the data set's authors give"
    return "an archive: unpack it"


def streams(container: av.container.InputContainer) -> tuple[Any, Any]:
    """First video stream that is no cover picture, and first audio stream (each None if absent)."""
    pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    sounds = container.streams.audio
    return (pictures[0] if pictures else None), (sounds[0] if sounds else None)


def facts(path: str | Path, container: av.container.InputContainer) -> dict[str, Any]:
    """What an open file declares; see `probe`."""
    picture, sound = streams(container)
    for stream in (picture, sound):
        if stream is not None and stream.codec_context is None:
            raise MediaError(f"{path}: {unknown_codec(stream.type)}", "unknown_codec")
    rate = picture and (picture.average_rate or picture.guessed_rate)
    return {
        "has_video": picture is not None,
        "has_audio": sound is not None,
        "duration": container.duration / av.time_base if container.duration else None,
        "fps": float(rate) if rate else None,
        "frames": (picture.frames or None) if picture else None,
        "width": picture.codec_context.width if picture else None,
        "height": picture.codec_context.height if picture else None,
        "sample_rate": sound.codec_context.sample_rate if sound else None,
    }


def check_picture(path: str | Path, width: int, height: int) -> None:
    """Refuse a picture without a size, above 8K or too elongated."""
    if not width or not height:
        raise MediaError(f"{path}: the size of the picture cannot be told", "damaged")
    if width * height > MAX_SOURCE_PIXELS:
        raise MediaError(f"{path}: {width} x {height} pixels is too large", "too_large")
    check_elongation(path, height, width)


def check_elongation(path: str | Path, height: int, width: int) -> None:
    """Refuse a picture that qwen_vl_utils cannot resize."""
    if max(height, width) / min(height, width) > MAX_ELONGATION:
        raise MediaError(f"{path}: a {width} x {height} picture is too elongated (more than 200 : 1)", "too_large")


def check_length(path: str | Path, seconds: float, max_seconds: float) -> None:
    """Refuse a stream that is longer than `max_seconds`."""
    if not math.isfinite(seconds) or seconds > max_seconds:
        raise MediaError(
            f"{path}: {seconds:.2f} s is longer than max_seconds = {max_seconds:g}; cut the clip or raise it",
            "too_long",
        )
