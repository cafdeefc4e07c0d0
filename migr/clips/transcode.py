"""A small copy of a clip that every browser plays: H.264 and AAC in MP4, upright, by the clip's own times."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from migr.clips.container import MAX_FRAMES, SAMPLE_RATE, opened, streams
from migr.clips.pictures import decoded, display_size, upright
from migr.clips.timeline import Limit, Timeline, scan
from migr.files.records import sync

_LONGEST = 480  # pixels of the copy's longer side
_BASE = Fraction(1, 1000)


def transcode(source: Path, target: Path) -> None:
    """Write `source` as a small MP4 with H.264 and AAC (16 kHz mono); the target appears when it is complete.

    Raises:
        MediaError: The source cannot be read.
    """
    limit = Limit(source)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with opened(source) as container, av.open(str(partial), "w", format="mp4") as copy:
            picture, sound = streams(container)
            timeline = scan(source, container, picture is not None, sound is not None, float(MAX_FRAMES), limit)
            voice = copy.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound is not None else None
            if picture is not None:
                _show(source, container, timeline, limit, copy)
            if voice is not None and timeline.waveform is not None:
                _play(timeline.waveform, copy, voice)
        sync(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _show(source: Path, container: Any, timeline: Timeline, limit: Limit, copy: av.container.OutputContainer) -> None:
    stream = None
    before = -1
    for count, frame in enumerate(decoded(source, container, limit)):
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright(frame)), format="rgb24")
        if stream is None:
            height, width = display_size(container, frame)
            scale = min(1.0, _LONGEST / max(height, width))
            rate = Fraction(len(timeline.times) / timeline.duration).limit_denominator(1001)
            stream = copy.add_stream("libx264", rate=rate, options={"crf": "26", "preset": "veryfast"})
            stream.width, stream.height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", _BASE
        image = image.reformat(stream.width, stream.height, "yuv420p")
        before = max(before + 1, round(timeline.when(frame, count) / _BASE))
        image.pts, image.time_base = before, _BASE
        copy.mux(stream.encode(image))
    if stream is not None:
        copy.mux(stream.encode(None))


def _play(waveform: np.ndarray, copy: av.container.OutputContainer, stream: Any) -> None:
    frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    copy.mux(stream.encode(frame))
    copy.mux(stream.encode(None))
