"""The pictures of a clip at chosen places in its timeline: PyAV decodes them; decord, where it agrees about the file.

decord 0.6 (2021) gives the very same pixels and no longer saves time (docs/benchmarks.md). It knows neither edit lists
nor rotation nor AV1, and can loop for ever when it is asked for a frame that its index has and the file has not. So it
is asked only where its index and the packets' stamps are the same; everything else PyAV reads by itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from migr.clips.container import MediaError, opened, streams
from migr.clips.timeline import Limit, Timeline
from migr.errors import InputError

DECODABLE = 0.5  # share of the packets that must give a picture; some codecs have packets that say "the same again"


def decoded(path: str | Path, container: av.container.InputContainer, limit: Limit) -> Iterator[av.VideoFrame]:
    """The pictures of an open file from its start, in the order in which they are shown.

    A stream that was cut between key frames begins with packets that nothing can decode, and a broadcast that was cut
    anywhere ends in half a packet: they are passed over, as players do. Others are damage.
    """
    try:
        container.seek(0)
    except av.error.FFmpegError:  # MKV without an index
        with opened(path) as again:
            yield from _decoded(again, limit)
    else:
        yield from _decoded(container, limit)


def _decoded(container: av.container.InputContainer, limit: Limit) -> Iterator[av.VideoFrame]:
    picture, _ = streams(container)
    if not picture.codec_context.is_open:
        picture.thread_type, picture.codec_context.thread_count = "NONE", 1
    begun = False
    for packet in container.demux(picture):
        limit.check()
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if begun and not (packet.is_discard or packet.is_corrupt):
                raise
            continue
        begun |= bool(frames) or packet.is_keyframe
        yield from frames


def pictures(
    path: str | Path, container: av.container.InputContainer, timeline: Timeline, places: Sequence[int], limit: Limit
) -> Iterator[av.VideoFrame]:
    """The pictures that are shown at these places of `timeline.times` (ascending), by PyAV.

    Yields:
        They as they are stored; `upright` and `display_size` say how they are shown.

    Raises:
        MediaError: A packet cannot be decoded, or half of them give no picture.
    """
    waiting = iter(places)
    place = next(waiting, None)
    picture: av.VideoFrame | None = None
    count = 0
    for frame in decoded(path, container, limit):
        begin = timeline.when(frame, count)
        count += 1
        while picture is not None and place is not None and begin > timeline.times[place] + 1e-6:
            yield picture
            place = next(waiting, None)
        if place is None:
            return
        picture = frame
    check_decoded(path, count, len(timeline.times))
    while picture is not None and place is not None:
        yield picture
        place = next(waiting, None)


def check_decoded(path: str | Path, count: int, packets: int) -> None:
    """Refuse a stream of which too few packets give a picture."""
    if count < 2:
        raise MediaError(f"{path}: {count} video frame(s), at least 2 are needed", "too_few_frames")
    if count < DECODABLE * packets:
        raise MediaError(f"{path}: only {count} of {packets} pictures could be decoded; copy the file again", "damaged")


def display_size(container: av.container.InputContainer, frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width of a clip as players show it: pixels that are not square are stretched, turned ones turned.

    The width is the stored one times the pixels' aspect ratio, as ffmpeg has it. A ratio that is not told is 1.
    """
    ratio = streams(container)[0].sample_aspect_ratio or 1
    height, width = frame.height, max(1, round(frame.width * ratio))
    return (height, width) if turned(frame)[0] else (width, height)


def turned(frame: av.VideoFrame) -> list[int]:
    """How a frame's display matrix turns it, in quarters: (x, y) goes to (ax + cy, bx + dy); [1, 0, 0, 1] is not."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return [1, 0, 0, 1]
    a, b, _, c, d = (int(value) for value in np.frombuffer(cast(Any, data), np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return [-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1]
    return [0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0]


def upright(frame: av.VideoFrame) -> np.ndarray:
    """A frame as uint8 (h, w, 3), turned and mirrored in quarters as players show it, in the pixels that are stored."""
    picture = frame.to_ndarray(format="rgb24")
    a, b, c, d = turned(frame)
    return picture[::d, ::a] if a else picture.transpose(1, 0, 2)[::b, ::c]


def pictures_by_decord(path: str | Path, timeline: Timeline, places: Sequence[int]) -> np.ndarray | None:
    """The same by decord as uint8 (T, h, w, 3), or None where it cannot, or has other frames than the file.

    Raises:
        InputError: decord is not installed.
    """
    try:
        import decord  # here: there are machines without it
    except ImportError:
        raise InputError(
            "backend: decord is not installed (it has wheels for x86-64 Linux and Windows alone); take pyav"
        ) from None
    if timeline.hidden or not timeline.stamped:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    with suppress(decord.DECORDError, RuntimeError):
        # one thread: data loaders run several processes, and decord's threads have hung in them
        reader = decord.VideoReader(str(Path(path).resolve()), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(timeline.times):
            return None
        begins = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        if np.abs(begins - begins[0] - (timeline.times - timeline.times[0])).max() > 0.002:
            return None
        frames: np.ndarray = reader.get_batch(list(places)).asnumpy()
        return frames
    return None


def plain(container: av.container.InputContainer, frame: av.VideoFrame) -> bool:
    """Whether decord can be right about a file: MP4 or MOV (in others it seeks amiss), one video stream, not turned."""
    mov = container.format.name.startswith("mov")
    return mov and len(container.streams.video) == 1 and turned(frame) == [1, 0, 0, 1]
