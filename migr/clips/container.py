"""Open a media file safely, and find out what is really in it: streams, frames, sound, and what is broken.

PyAV opens local files of known containers only. A half-copied file opens without an error, so the packets that are
really there are counted and compared with what the file declares. Nothing here needs torch: the processes that examine
a data set's clips start in a fifth of a second.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from migr.errors import InputError
from migr.settings import MIN_AUDIO_SECONDS

SAMPLE_RATE = 16000  # Hz; what the audio tower was trained on
MAX_SOURCE_PIXELS = 7680 * 4320  # a frame larger than 8K is refused before it is decoded
MAX_ELONGATION = 200  # longer side : shorter side; the limit of qwen_vl_utils
MAX_FRAMES = 100_000
MAX_BYTES = 2 * 2**30
COMPLETE = 0.9  # share of the declared frames or seconds that must be there

# Containers that hold their own media. Playlists (hls, concat) point at other files or hosts: not among them.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,asf,wav,mp3,flac,ogg,aac"

# Why a clip cannot be used, in one word.
REASONS = {
    "missing": "there is no such file",
    "empty": "the file has no bytes",
    "unreadable": "no media file, or one whose index is missing (an interrupted copy)",
    "damaged": "opens, but cannot be decoded",
    "truncated": "less than 90 % of the declared frames or seconds are there",
    "no_video": "no video stream",
    "no_audio": "no audio stream",
    "too_few_frames": "fewer than 2 frames",
    "too_many_frames": "more than 100,000 frames",
    "too_large": "a picture above 8K or longer than 200 : 1, or a file above 2 GiB",
    "too_short": "less than 0.1 s of sound",
    "too_long": "longer than max_seconds",
    "not_finite": "the sound has NaN or infinite samples",
    "no_memory": "decoding needs more memory than there is, or than a probe may take",
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
        stream is absent or the container does not say.

    Raises:
        MediaError: The file is missing or no media file.
    """
    with opened(path) as container:
        return facts(container)


def examine(path: str | Path, max_seconds: float, backend: str = "decord") -> dict[str, Any]:
    """Read a file from end to end, as training will: all packets, all sound, every frame decoded once.

    Args:
        path: The file.
        max_seconds: A longer clip is an error.
        backend: The reader that training uses; with "decord", decord must open the file too, and read both its ends.

    Returns:
        As `probe`, but `frames` (those that decode) and `duration` (s; `Media.duration`) are measured.

    Raises:
        MediaError: The file cannot be used, with its reason.
    """
    with opened(path) as container:
        found = facts(container)
        video, audio = found["has_video"], found["has_audio"]
        if not video and not audio:
            raise MediaError(f"{path}: neither a video nor an audio stream", "no_video")
        packets, waveform = scan(path, container, video, audio, max_seconds)
        if not video:
            assert waveform is not None
            return found | {"duration": len(waveform) / SAMPLE_RATE}
        picture, _ = streams(container)
        picture.thread_type, picture.codec_context.thread_count = "NONE", 1
        container.seek(0)
        total = sum(1 for _ in container.decode(picture))
        if total < COMPLETE * packets:
            raise truncated(path, total, packets)
        if total < 2:
            raise MediaError(f"{path}: {total} video frame(s), at least 2 are needed", "too_few_frames")
    if backend == "decord":
        with decord_reader(path) as reader:
            if len(reader) < COMPLETE * packets:
                raise truncated(path, len(reader), packets)
            reader.get_batch([0, len(reader) - 1])
    return found | {"frames": total, "duration": total / found["fps"]}


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
    reason, what = "unreadable", "no media file, or its index is missing"
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        with av.open(str(file), options=options) as container:
            reason, what = "damaged", "damaged; copy the file again"
            yield container
    except MediaError:
        raise
    except MemoryError as error:
        raise MediaError(f"{path}: not enough memory to decode it", "no_memory") from error
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{path}: {what} ({cause})", reason) from error


def streams(container: av.container.InputContainer) -> tuple[Any, Any]:
    """First video stream that is no cover picture, and first audio stream (each None if absent)."""
    pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    sounds = container.streams.audio
    return (pictures[0] if pictures else None), (sounds[0] if sounds else None)


def facts(container: av.container.InputContainer) -> dict[str, Any]:
    """What an open file declares; see `probe`."""
    picture, sound = streams(container)
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


def scan(
    path: str | Path, container: av.container.InputContainer, video: bool, audio: bool, max_seconds: float
) -> tuple[int, np.ndarray | None]:
    """Check an open file against every bound, going through it once.

    Returns:
        Number of video packets that are there; the sound as float32 (N,), 16 kHz mono, or None if not asked for.

    Raises:
        MediaError: No such stream, too large, incomplete, too short, too long, NaN samples.
    """
    found = facts(container)
    for wanted, kind in ((video, "video"), (audio, "audio")):
        if wanted and not found[f"has_{kind}"]:
            raise MediaError(f"{path}: no {kind} stream (set has_{kind} to false for this clip)", f"no_{kind}")
    if video:
        _check_picture(path, found["width"], found["height"])
    _check_length(path, found["duration"] or 0.0, max_seconds)
    packets, waveform = _packets(path, container, video, audio, max_seconds)
    if waveform is not None:
        _check_waveform(path, waveform, container, max_seconds)
    if video and not found["fps"]:
        raise MediaError(f"{path}: the video stream has no frame rate", "damaged")
    if video:
        _check_length(path, packets / found["fps"], max_seconds)
    return packets, waveform


def _packets(
    path: str | Path, container: Any, video: bool, audio: bool, max_seconds: float
) -> tuple[int, np.ndarray | None]:
    """Go through the file once: count the video frames that are there, decode the sound to 16 kHz mono."""
    picture, sound = streams(container)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    count, last, samples = 0, 0.0, 0
    blocks: list[np.ndarray] = []
    for packet in container.demux([s for s in (picture if video else None, sound if audio else None) if s]):
        if packet.stream.type == "audio":
            try:
                sounds = packet.decode()
            except av.error.InvalidDataError:  # one damaged packet; too many are found by the length
                continue
            for frame in sounds:
                blocks += (more := [block.to_ndarray()[0] for block in resampler.resample(frame)])
                samples += sum(map(len, more))
            _check_length(path, samples / SAMPLE_RATE - 1.0, max_seconds)  # hours of undeclared sound: not decoded
        elif packet.size and not packet.is_corrupt and not packet.is_discard:
            count += 1
            last = max(last, float((packet.pts or 0) * packet.time_base))
            if count > MAX_FRAMES:
                raise MediaError(f"{path}: more than {MAX_FRAMES} frames", "too_many_frames")
    if video:
        if picture.frames and count < COMPLETE * picture.frames:
            raise truncated(path, count, picture.frames)
        declared = container.duration / av.time_base if container.duration else 0.0
        if not picture.frames and last < COMPLETE * declared - 0.5:
            raise MediaError(f"{path}: the video ends at {last:.2f} of {declared:.2f} s", "truncated")
    if not audio:
        return count, None
    if blocks:
        blocks += [block.to_ndarray()[0] for block in resampler.resample(None)]
    return count, np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def truncated(path: str | Path, found: int, declared: int) -> MediaError:
    """The error for frames that are declared and not there."""
    return MediaError(f"{path}: only {found} of {declared} frames could be decoded; copy the file again", "truncated")


def _check_picture(path: str | Path, width: int, height: int) -> None:
    if not width or not height:
        raise MediaError(f"{path}: the size of the picture cannot be told", "damaged")
    if width * height > MAX_SOURCE_PIXELS:
        raise MediaError(f"{path}: {width} x {height} pixels is too large", "too_large")
    check_elongation(path, height, width)


def check_elongation(path: str | Path, height: int, width: int) -> None:
    """Refuse a picture that qwen_vl_utils cannot resize."""
    if max(height, width) / min(height, width) > MAX_ELONGATION:
        raise MediaError(f"{path}: a {width} x {height} picture is too elongated (more than 200 : 1)", "too_large")


def _check_length(path: str | Path, seconds: float, max_seconds: float) -> None:
    if not math.isfinite(seconds) or seconds > max_seconds:
        raise MediaError(
            f"{path}: {seconds:.2f} s is longer than max_seconds = {max_seconds:g}; cut the clip or raise it",
            "too_long",
        )


def _check_waveform(path: str | Path, waveform: np.ndarray, container: Any, max_seconds: float) -> None:
    seconds, (_, sound) = len(waveform) / SAMPLE_RATE, streams(container)
    declared = float(sound.duration * sound.time_base) if sound.duration else 0.0
    if declared >= MIN_AUDIO_SECONDS and seconds < COMPLETE * declared:
        raise MediaError(f"{path}: only {seconds:.2f} of {declared:.2f} s of sound could be decoded", "truncated")
    if seconds < MIN_AUDIO_SECONDS:
        raise MediaError(f"{path}: {seconds:.3f} s of sound, at least {MIN_AUDIO_SECONDS} s are needed", "too_short")
    _check_length(path, seconds - 0.1, max_seconds)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path}: the sound has NaN or infinite samples", "not_finite")


@contextmanager
def decord_reader(path: str | Path) -> Iterator[Any]:
    """A `decord.VideoReader`; what decord raises, here or inside, becomes a MediaError."""
    import decord  # here, so that a machine without it can use PyAV

    decord.logging.set_level(decord.logging.QUIET)
    try:
        # one thread: data loaders run several processes, and decord's threads have hung in them
        yield decord.VideoReader(str(Path(path).resolve()), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(f"{path}: the video is damaged, decord cannot decode it; copy it again", "damaged") from error
