"""Read one clip: frames by Qwen's sampling and resizing rules, 16 kHz mono sound, and errors that name the file.

`migr.clips.container` opens the file, `timeline` says what is when in it, `pictures` decodes what is chosen here.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from migr.clips.container import (
    REASONS,
    SAMPLE_RATE,
    MediaError,
    check_elongation,
    opened,
    probe,
)
from migr.clips.pictures import decoded, display_size, pictures, pictures_by_decord, plain, upright
from migr.clips.timeline import Limit, Timeline, scan
from migr.settings import BACKENDS, MIN_AUDIO_SECONDS, MediaSettings

__all__ = [
    "BACKENDS",
    "FACTOR",
    "MIN_AUDIO_SECONDS",
    "REASONS",
    "SAMPLE_RATE",
    "Media",
    "MediaError",
    "MediaSettings",
    "blanked",
    "frame_indices",
    "probe",
    "read_media",
    "resize",
    "smart_resize",
]

FACTOR = 28  # pixels: patch 14 x spatial merge 2 (Qwen2.5-Omni)


@dataclass(frozen=True)
class Media:
    """What was read from one clip.

    Attributes:
        frames: uint8 (T, 3, H, W), RGB, T even, H and W multiples of 28; None if not asked for.
        fps: True rate of `frames` in frames per second of clip time (T / clip seconds); None without frames.
        waveform: float32 (N,), mono, 16 kHz, from the clip's zero on (silent until the sound begins, and in gaps); None
            if not asked for.
        duration: Seconds from the clip's zero to the end of the last picture, or without frames of the sound.
    """

    frames: np.ndarray | None
    fps: float | None
    waveform: np.ndarray | None
    duration: float


def blanked(media: Media, modalities: Collection[str] = ("video", "audio")) -> Media:
    """The clip with mid-grey frames and silence in place of these modalities, as long as before."""
    if media.frames is not None and "video" in modalities:
        media = replace(media, frames=np.full_like(media.frames, 127))
    if media.waveform is not None and "audio" in modalities:
        media = replace(media, waveform=np.zeros_like(media.waveform))
    return media


def read_media(
    path: str | Path, settings: MediaSettings, video: bool = True, audio: bool = True, factor: int = FACTOR
) -> Media:
    """Read the frames and the sound of one local file.

    Args:
        path: The file.
        settings: Sampling rate and bounds.
        video: Whether frames are wanted; then the file must have a video stream.
        audio: Whether sound is wanted; then the file must have an audio stream.
        factor: Sides of frames are multiples of this many pixels; what the model's family wants.

    Raises:
        MediaError: Missing, unreadable, incomplete, too short, too long, too few frames, no such stream, NaN samples.
    """
    assert video or audio, "nothing asked for"
    limit = Limit(path)
    with opened(path) as container:
        timeline = scan(path, container, video, audio, settings.max_seconds, limit)
        if not video:
            assert timeline.waveform is not None
            return Media(None, None, timeline.waveform, len(timeline.waveform) / SAMPLE_RATE)
        places = frame_places(timeline, settings, path)
        frames: Iterable[np.ndarray] | None = None
        first = next(decoded(path, container, limit), None) if settings.backend == "decord" else None
        if first is not None and plain(container, first):
            frames = pictures_by_decord(path, timeline, places)
        if frames is None:
            images = pictures(path, container, timeline, places, limit)
            first = next(images)
            frames = map(upright, chain([first], images))
        assert first is not None, "pictures() gives one or raises"
        resized = resize(frames, display_size(container, first), settings, factor, path)
    return Media(resized, len(resized) / timeline.duration, timeline.waveform, timeline.duration)


def frame_places(timeline: Timeline, settings: MediaSettings, path: str | Path = "") -> list[int]:
    """Choose which pictures to read: an even count, evenly spaced in time.

    At a constant rate these are the numbers of `frame_indices`. Else each is the picture that is shown half a mean
    frame after the moment at which the rule would have it, and one that is shown for long comes several times.
    """
    total, end = len(timeline.times), timeline.duration
    if timeline.constant or total < 2:
        return frame_indices(total, end, settings, path)
    count = _even_count(total, end, settings, path)
    moments = (np.linspace(0, total - 1, count) + 0.5) * end / total
    return np.maximum(np.searchsorted(timeline.times, moments, side="right") - 1, 0).tolist()


def _even_count(total: int, seconds: float, settings: MediaSettings, path: str | Path) -> int:
    frames = min(max(seconds * settings.fps, settings.min_frames), settings.max_frames, total)
    count = math.floor(frames / 2) * 2
    if count < 2:
        raise MediaError(f"{path}: {total} video frame(s), at least 2 are needed", "too_few_frames")
    return count


def frame_indices(total: int, seconds: float, settings: MediaSettings, path: str | Path = "") -> list[int]:
    """Choose which of `total` frames at a constant rate to read: evenly spaced from the first to the last.

    `smart_nframes` and the `linspace` of qwen_vl_utils 0.0.14 (vision_process.py), with our error.
    """
    count = _even_count(total, seconds, settings, path)
    return torch.linspace(0, total - 1, count).round().long().tolist()


def smart_resize(
    height: int, width: int, min_pixels: int, max_pixels: int, path: str | Path = "", factor: int = FACTOR
) -> tuple[int, int]:
    """Nearest size with sides that are multiples of `factor` and an area within the bounds (qwen_vl_utils' rule)."""
    check_elongation(path, height, width)
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return rows, columns


def resize(
    frames: Iterable[np.ndarray],
    size_shown: tuple[int, int],
    settings: MediaSettings,
    factor: int = FACTOR,
    path: str | Path = "",
) -> np.ndarray:
    """Resize uint8 (h, w, 3) frames to (T, 3, height, width), as the height and width of `shown` demand.

    Bicubic, antialiased, rounded; the rule of qwen_vl_utils. One at a time: all of them at full size would not fit.
    """
    resized: list[np.ndarray] = []
    size = smart_resize(*size_shown, settings.min_pixels, settings.max_pixels, path, factor)
    for frame in frames:
        picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        if picture.shape[-2:] != size:
            picture = torch.nn.functional.interpolate(
                picture.float(), size, mode="bicubic", align_corners=False, antialias=True
            )
            picture = picture.clamp(0, 255).round().to(torch.uint8)
        resized.append(picture[0].numpy())
    return np.stack(resized)
