"""Read one clip: frames by Qwen's sampling and resizing rules, 16 kHz mono sound, and errors that name the file.

Frames come from decord (or PyAV, `backend: pyav`; same indices, same pixels). Sound always comes from PyAV: decord's
audio reader loses samples between packets (measured: 16 samples off after 373, for the rest of the clip). What opens
the file and finds it whole or broken is `migr.clips.container`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from migr.clips.container import (
    COMPLETE,
    MIN_AUDIO_SECONDS,
    REASONS,
    SAMPLE_RATE,
    MediaError,
    check_elongation,
    decord_reader,
    facts,
    opened,
    probe,
    scan,
    streams,
    truncated,
)
from migr.settings import BACKENDS, MediaSettings

__all__ = [
    "BACKENDS",
    "FACTOR",
    "MIN_AUDIO_SECONDS",
    "REASONS",
    "SAMPLE_RATE",
    "Media",
    "MediaError",
    "MediaSettings",
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
        waveform: float32 (N,), mono, 16 kHz; None if not asked for.
        duration: Seconds: of the video stream where frames were read, else of the sound.
    """

    frames: np.ndarray | None
    fps: float | None
    waveform: np.ndarray | None
    duration: float


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
    with opened(path) as container:
        packets, waveform = scan(path, container, video, audio, settings.max_seconds)
        if not video:
            assert waveform is not None
            return Media(None, None, waveform, len(waveform) / SAMPLE_RATE)
        fps = facts(container)["fps"]
        read = _frames_decord if settings.backend == "decord" else _frames_pyav
        frames, total = read(path, container, packets, fps, settings)
    bounds = (settings.min_pixels, settings.max_pixels)
    height, width = smart_resize(frames.shape[1], frames.shape[2], *bounds, path, factor)
    seconds = total / fps
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


def _frames_decord(
    path: str | Path, container: Any, packets: int, fps: float, settings: MediaSettings
) -> tuple[np.ndarray, int]:
    """Chosen frames as uint8 (T, h, w, 3), and how many frames the stream has."""
    with decord_reader(path) as reader:
        total = len(reader)
        if total < COMPLETE * packets:
            raise truncated(path, total, packets)
        return reader.get_batch(frame_indices(total, fps, settings, path)).asnumpy(), total


def _frames_pyav(
    path: str | Path, container: Any, packets: int, fps: float, settings: MediaSettings
) -> tuple[np.ndarray, int]:
    """The same by PyAV: all frames are decoded in order (the last is always wanted), the chosen ones converted."""
    picture, _ = streams(container)
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
            raise truncated(path, seen, packets)
        total = seen  # some packets hold no picture: choose again
