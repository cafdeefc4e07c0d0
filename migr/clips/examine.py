"""Read a file from end to end, as training will, and say what is in it; free of torch."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from migr.clips.container import SAMPLE_RATE, MediaError, check_elongation, facts, opened, streams
from migr.clips.pictures import check_decoded, decoded, display_size, pictures_by_decord, plain, turned
from migr.clips.timeline import Limit, scan

SILENCE = 2**-15  # peak below which sound is digital silence: one step of 16 bits
LATE = 0.1  # s; sound that begins later is noted


def examine(path: str | Path, max_seconds: float, backend: str = "pyav") -> dict[str, Any]:
    """All packets, all sound, every frame decoded once.

    Args:
        path: The file.
        max_seconds: A longer clip is an error.
        backend: The reader that training uses.

    Returns:
        As `container.probe`, but measured: `frames` (pictures with a time of their own), `duration` (s;
        `Media.duration`), `fps` (frames a second of clip time), `width` and `height` as shown. Also `video_codec`,
        `audio_codec` and, only where it is so: `rotated`, `anamorphic` (pixels that are not square),
        `variable_rate`, `hidden_frames` (behind an edit list),
        `audio_start`, `video_start` (s; more than 0.1 s behind the clip's zero), `silent` (digital silence:
        `has_audio` is then false), `reader` ("pyav" where decord was asked for and cannot read the file).

    Raises:
        MediaError: The file cannot be used, with its reason.
    """
    limit = Limit(path)
    with opened(path) as container:
        result = facts(path, container)
        picture, sound = streams(container)
        video, audio = picture is not None, sound is not None
        if not video and not audio:
            raise MediaError(f"{path}: neither a video nor an audio stream", "no_video")
        timeline = scan(path, container, video, audio, max_seconds, limit)
        if timeline.waveform is not None:
            result["audio_codec"] = sound.codec_context.name
            if np.abs(timeline.waveform).max() < SILENCE:
                result |= {"silent": True, "has_audio": False}
            elif timeline.sound_start > LATE:
                result["audio_start"] = round(timeline.sound_start, 3)
        if not video and result.get("silent"):
            raise MediaError(f"{path}: digital silence and no picture", "no_audio")
        if not video:
            assert timeline.waveform is not None
            return result | {"duration": len(timeline.waveform) / SAMPLE_RATE}
        first, count = None, 0
        for frame in decoded(path, container, limit):
            first, count = first or frame, count + 1
        check_decoded(path, count, len(timeline.times))
        assert first is not None
        result["height"], result["width"] = display_size(container, first)
        check_elongation(path, result["height"], result["width"])
        result["video_codec"] = picture.codec_context.name
        if turned(first) != [1, 0, 0, 1]:
            result["rotated"] = True
        if first.width * first.height != result["width"] * result["height"]:
            result["anamorphic"] = True
        if not timeline.regular:
            result["variable_rate"] = True
        if timeline.times[0] > LATE:
            result["video_start"] = round(float(timeline.times[0]), 3)
        if timeline.hidden:
            result["hidden_frames"] = timeline.hidden
        ends = [0, len(timeline.times) - 1]
        if backend == "decord" and not (
            plain(container, first) and pictures_by_decord(path, timeline, ends) is not None
        ):
            result["reader"] = "pyav"
    rate, declared = len(timeline.times) / timeline.duration, timeline.declared_rate
    true = timeline.constant and declared is not None and math.isclose(rate, declared)
    fps = declared if true else round(rate, 3)
    return result | {"frames": len(timeline.times), "duration": timeline.duration, "fps": fps}
