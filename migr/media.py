"""Read one clip: frames by Qwen's sampling and resizing rules, 16 kHz mono sound, and errors that name the file.

Frames come from decord (or PyAV, `backend: pyav`; same indices, same pixels). Sound always comes from PyAV: decord's
audio reader loses samples between packets (measured: 16 samples off after 373, for the rest of the clip). Before
anything is decoded, PyAV opens the file with local files and known containers allowed only, and counts the packets that
are really there: a half-copied file opens without an error, so what is present is compared with what is declared.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from migr.errors import InputError

SAMPLE_RATE = 16000  # Hz; what the audio tower was trained on
FACTOR = 28  # pixels: patch 14 x spatial merge 2
MIN_AUDIO_SECONDS = 0.1  # shorter sound gives no audio token at all, without an error
MAX_SOURCE_PIXELS = 7680 * 4320  # a frame larger than 8K is refused before it is decoded
COMPLETE = 0.9  # share of the declared frames or seconds that must be there
BACKENDS = ("decord", "pyav")

# Containers that hold their own media. Playlists (hls, concat) point at other files or hosts: not among them.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,asf,wav,mp3,flac,ogg,aac"

REASONS = {"missing", "unreadable", "truncated", "no_video", "no_audio", "too_few_frames"}
REASONS |= {"too_large", "too_short", "too_long", "not_finite"}


class MediaError(InputError):
    """A clip that cannot be used. The message names file and cause; `reason` is one word of `REASONS`."""

    def __init__(self, message: str, reason: str = "unreadable"):
        assert reason in REASONS
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class MediaSettings:
    """How a clip is sampled. Defaults follow qwen_vl_utils (2 frames a second, at least 4), with smaller frames.

    Attributes:
        fps: Frames wanted per second of clip time; `min_frames` and `max_frames` bound the count.
        min_pixels, max_pixels: Bounds of height x width after resizing.
        max_seconds: A longer clip is an error, never cut (0.1 s more of sound passes: codecs fill their last packet).
        backend: "decord" or "pyav".

    Raises:
        InputError: A value is out of range; names the field.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 32
    min_pixels: int = 56 * 56
    max_pixels: int = 448 * 448
    max_seconds: float = 30.0
    backend: str = "decord"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"backend: {self.backend!r} is not one of {', '.join(BACKENDS)}")
        if not 0 < self.fps < math.inf:
            raise InputError(f"fps: must be a positive number, not {self.fps}")
        if not MIN_AUDIO_SECONDS < self.max_seconds < math.inf:
            raise InputError(f"max_seconds: must be more than {MIN_AUDIO_SECONDS}, not {self.max_seconds}")
        if not 2 <= self.min_frames <= self.max_frames or self.min_frames % 2 or self.max_frames % 2:
            raise InputError(f"min_frames, max_frames: need even 2 <= {self.min_frames} <= {self.max_frames}")
        if not FACTOR * FACTOR <= self.min_pixels <= self.max_pixels:
            raise InputError(
                f"min_pixels, max_pixels: need {FACTOR * FACTOR} <= {self.min_pixels} <= {self.max_pixels}"
            )


@dataclass(frozen=True)
class Media:
    """What was read from one clip.

    Attributes:
        frames: uint8 (T, 3, H, W), RGB, T even, H and W multiples of 28; None if not asked for.
        fps: True rate of `frames` in frames per second of clip time (T / clip seconds); None without frames.
        waveform: float32 (N,), mono, 16 kHz; None if not asked for.
        duration: Seconds: of the video stream where frames were read, else of the sound.
    """

    frames: np.ndarray | None
    fps: float | None
    waveform: np.ndarray | None
    duration: float


def probe(path: str | Path) -> dict[str, Any]:
    """Read what a file declares about itself, without decoding.

    Returns:
        `has_video`, `has_audio`, `duration` (s), `fps`, `frames`, `width`, `height`, `sample_rate` (Hz); None where the
        stream is absent or the container does not say.

    Raises:
        MediaError: The file is missing or no media file.
    """
    with _opened(path) as container:
        return _facts(container)


def read_media(path: str | Path, settings: MediaSettings, video: bool = True, audio: bool = True) -> Media:
    """Read the frames and the sound of one local file.

    Args:
        path: The file.
        settings: Sampling rate and bounds.
        video: Whether frames are wanted; then the file must have a video stream.
        audio: Whether sound is wanted; then the file must have an audio stream.

    Raises:
        MediaError: Missing, unreadable, incomplete, too short, too long, too few frames, no such stream, NaN samples.
    """
    assert video or audio, "nothing asked for"
    with _opened(path) as container:
        facts = _facts(container)
        for wanted, kind in ((video, "video"), (audio, "audio")):
            if wanted and not facts[f"has_{kind}"]:
                raise MediaError(f"{path}: no {kind} stream (set has_{kind} to false for this clip)", f"no_{kind}")
        if video and facts["width"] * facts["height"] > MAX_SOURCE_PIXELS:
            raise MediaError(f"{path}: {facts['width']} x {facts['height']} pixels is too large", "too_large")
        _check_length(path, facts["duration"] or 0.0, settings)
        packets, waveform = _scan(path, container, video, audio)
        if waveform is not None:
            _check_waveform(path, waveform, container, settings)
        if not video:
            assert waveform is not None
            return Media(None, None, waveform, len(waveform) / SAMPLE_RATE)
        if not facts["fps"]:
            raise MediaError(f"{path}: the video stream has no frame rate")
        _check_length(path, packets / facts["fps"], settings)
        read = _frames_decord if settings.backend == "decord" else _frames_pyav
        frames, total = read(path, container, packets, facts["fps"], settings)
    height, width = smart_resize(frames.shape[1], frames.shape[2], settings.min_pixels, settings.max_pixels, path)
    seconds = total / facts["fps"]
    return Media(resize(frames, height, width), len(frames) / seconds, waveform, seconds)


def frame_indices(total: int, video_fps: float, settings: MediaSettings, path: str | Path = "") -> list[int]:
    """Choose which frames to read: an even count, evenly spaced from the first to the last.

    `smart_nframes` and the `linspace` of qwen_vl_utils 0.0.14 (vision_process.py), with our error.
    """
    wanted = min(max(total / video_fps * settings.fps, settings.min_frames), settings.max_frames, total)
    count = math.floor(wanted / 2) * 2
    if count < 2:
        raise MediaError(f"{path}: {total} video frame(s), at least 2 are needed", "too_few_frames")
    return torch.linspace(0, total - 1, count).round().long().tolist()


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int, path: str | Path = "") -> tuple[int, int]:
    """Nearest size with sides that are multiples of 28 and an area within the bounds (the rule of qwen_vl_utils)."""
    if max(height, width) / min(height, width) > 200:
        raise MediaError(f"{path}: a {width} x {height} picture is too elongated (more than 200 : 1)", "too_large")
    rows, columns = (max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width))
    if rows * columns > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (max(FACTOR, math.floor(side / scale / FACTOR) * FACTOR) for side in (height, width))
    elif rows * columns < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / FACTOR) * FACTOR for side in (height, width))
    return rows, columns


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (T, h, w, 3) to (T, 3, height, width): bicubic, antialiased, rounded; the rule of qwen_vl_utils."""
    resized = np.empty((len(frames), 3, height, width), np.uint8)
    for index, frame in enumerate(frames):  # one at a time: float copies of all frames at full size would not fit
        picture = torch.from_numpy(frame).permute(2, 0, 1)[None]
        if picture.shape[-2:] != (height, width):
            picture = torch.nn.functional.interpolate(
                picture.float(), (height, width), mode="bicubic", align_corners=False, antialias=True
            )
            picture = picture.clamp(0, 255).round().to(torch.uint8)
        resized[index] = picture[0].numpy()
    return resized


@contextmanager
def _opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    """Open a local media file; whatever PyAV or decord raise inside becomes a MediaError."""
    if "://" in str(path):
        raise MediaError(f"{path}: only local files are read, not URLs", "missing")
    file = Path(path).resolve()  # absolute, so that no part of the name can be taken for a protocol
    if not file.is_file():
        raise MediaError(f"{path}: no such file", "missing")
    if file.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        with av.open(str(file), options=options) as container:
            yield container
    except MediaError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{path}: damaged, or no media file ({cause})") from error


def _streams(container: av.container.InputContainer) -> tuple[Any, Any]:
    """First video stream that is no cover picture, and first audio stream (each None if absent)."""
    pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    sounds = container.streams.audio
    return (pictures[0] if pictures else None), (sounds[0] if sounds else None)


def _facts(container: av.container.InputContainer) -> dict[str, Any]:
    picture, sound = _streams(container)
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


def _scan(path: str | Path, container: Any, video: bool, audio: bool) -> tuple[int, np.ndarray | None]:
    """Go through the file once: count the video frames that are there, decode the sound to 16 kHz mono."""
    picture, sound = _streams(container)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    count, last, blocks = 0, 0.0, []
    for packet in container.demux([s for s in (picture if video else None, sound if audio else None) if s]):
        if packet.stream.type == "audio":
            try:
                sounds = packet.decode()
            except av.error.InvalidDataError:  # one damaged packet; too many are found by the length
                continue
            for frame in sounds:
                blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        elif packet.size and not packet.is_corrupt and not packet.is_discard:
            count += 1
            last = max(last, float((packet.pts or 0) * packet.time_base))
    if video:
        if picture.frames and count < COMPLETE * picture.frames:
            raise _truncated(path, count, picture.frames)
        declared = container.duration / av.time_base if container.duration else 0.0
        if not picture.frames and last < COMPLETE * declared - 0.5:
            raise MediaError(f"{path}: the video ends at {last:.2f} of {declared:.2f} s", "truncated")
    if not audio:
        return count, None
    if blocks:
        blocks += [block.to_ndarray()[0] for block in resampler.resample(None)]
    return count, np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _truncated(path: str | Path, found: int, declared: int) -> MediaError:
    return MediaError(f"{path}: only {found} of {declared} frames could be decoded; copy the file again", "truncated")


def _check_length(path: str | Path, seconds: float, settings: MediaSettings) -> None:
    if seconds > settings.max_seconds:
        raise MediaError(
            f"{path}: {seconds:.2f} s is longer than max_seconds = {settings.max_seconds:g}; cut the clip or raise it",
            "too_long",
        )


def _check_waveform(path: str | Path, waveform: np.ndarray, container: Any, settings: MediaSettings) -> None:
    seconds, (_, sound) = len(waveform) / SAMPLE_RATE, _streams(container)
    declared = float(sound.duration * sound.time_base) if sound.duration else 0.0
    if declared >= MIN_AUDIO_SECONDS and seconds < COMPLETE * declared:
        raise MediaError(f"{path}: only {seconds:.2f} of {declared:.2f} s of sound could be decoded", "truncated")
    if seconds < MIN_AUDIO_SECONDS:
        raise MediaError(f"{path}: {seconds:.3f} s of sound, at least {MIN_AUDIO_SECONDS} s are needed", "too_short")
    _check_length(path, seconds - 0.1, settings)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path}: the sound has NaN or infinite samples", "not_finite")


def _frames_decord(
    path: str | Path, container: Any, packets: int, fps: float, settings: MediaSettings
) -> tuple[np.ndarray, int]:
    """Chosen frames as uint8 (T, h, w, 3), and how many frames the stream has."""
    import decord  # here, so that a machine without it can use PyAV

    decord.logging.set_level(decord.logging.QUIET)
    try:
        # one thread: data loaders run several processes, and decord's threads have hung in them
        reader = decord.VideoReader(str(Path(path).resolve()), ctx=decord.cpu(0), num_threads=1)
        total = len(reader)
        if total < COMPLETE * packets:
            raise _truncated(path, total, packets)
        return reader.get_batch(frame_indices(total, fps, settings, path)).asnumpy(), total
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(f"{path}: the video is damaged, decord cannot decode it; copy the file again") from error


def _frames_pyav(
    path: str | Path, container: Any, packets: int, fps: float, settings: MediaSettings
) -> tuple[np.ndarray, int]:
    """The same by PyAV: all frames are decoded in order (the last is always wanted), the chosen ones converted."""
    picture, _ = _streams(container)
    picture.thread_type, picture.codec_context.thread_count = "NONE", 1
    total = packets
    while True:
        container.seek(0)
        indices = frame_indices(total, fps, settings, path)
        wanted, chosen, seen = set(indices), [], 0
        for frame in container.decode(picture):
            if seen in wanted:
                chosen.append(frame.to_ndarray(format="rgb24"))
            seen += 1
        if len(chosen) == len(indices):
            return np.stack(chosen), total
        if seen < COMPLETE * packets:
            raise _truncated(path, seen, packets)
        total = seen  # some packets hold no picture: choose again
