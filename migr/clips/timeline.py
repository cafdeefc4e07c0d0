"""When each picture of a clip is shown and each sample of its sound heard: one truth about time for every reader.

Times come from the packets' presentation stamps, never from a header's rate or count: cuts by stream copy hide frames
behind an edit list, browsers write WebM without a rate, phones record at a variable one, sound begins late or has gaps.
Zero is the first moment that the used streams show or play (an edit list's start, where there is one).
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np

from migr.clips.container import (
    MAX_FRAMES,
    READ_SECONDS,
    SAMPLE_RATE,
    MediaError,
    check_length,
    check_picture,
    facts,
    streams,
)
from migr.settings import MIN_AUDIO_SECONDS

COMPLETE = 0.9  # share of what is declared that must be there
_JUMP = 0.01  # s between two blocks of sound; less is the rounding of stamps (1 ms in MKV and FLV)
_DRIFT = 0.04  # s that sound may run away from its stamps before it is put back
_JITTER = 0.05  # s that the stamps of a constant rate may be off, and at most half a frame
_AGAIN = "an unfinished copy, copy it again"
_FROM_ZERO = ("mov", "matroska")  # containers whose players hide what lies before zero
_DECLARING = ("matroska", "avi", "flv", "asf", "wav", "flac")  # containers whose duration is written, not guessed


@dataclass(frozen=True)
class Timeline:
    """Times in seconds from the clip's zero.

    Attributes:
        times: float64 (frames,), ascending: when each picture begins; empty where video is not used.
        end: When the last picture ends.
        declared_rate: The frame rate that the header gives, if any.
        zero: The clip's zero in the stamps of the file.
        stamped: Whether pictures come with stamps of their own; else they are counted.
        hidden: Number of video packets behind an edit list.
        waveform: float32 (N,), 16 kHz mono, silent where there is no sound; None where audio is not used.
        sound_start: When the sound begins.
    """

    times: np.ndarray
    end: float
    declared_rate: float | None
    zero: float
    stamped: bool
    hidden: int
    waveform: np.ndarray | None
    sound_start: float

    @cached_property
    def regular(self) -> bool:
        """Whether the pictures are evenly spaced, the last one too."""
        total, times = len(self.times), self.times - self.times[0]
        step = times[-1] / max(1, total - 1)
        off = np.abs(times - step * np.arange(total)).max()
        return bool(off <= min(_JITTER, step / 2) and self.end - self.times[-1] <= step + max(step, _JITTER))

    @property
    def constant(self) -> bool:
        """Whether frame numbers are as good as times: evenly spaced pictures from zero on."""
        return self.regular and self.times[0] <= _JITTER

    @cached_property
    def duration(self) -> float:
        """Seconds from zero to the end of the last picture, by the declared rate where that is true."""
        rate, total = self.declared_rate, len(self.times)
        if self.constant and rate and abs(total / rate - self.end) <= max(0.5 / rate, _JITTER):
            return total / rate  # stamps in milliseconds would make 1.999 s of 2 s
        return self.end

    def when(self, frame: Any, count: int) -> float:
        """When a decoded frame, the `count`-th, begins."""
        if self.stamped and frame.pts is not None:
            return float(frame.pts * frame.time_base) - self.zero
        return float(self.times[min(count, len(self.times) - 1)])


class Limit:
    """The time that reading one clip may take. What it names can be left out; a run that waits for ever cannot."""

    def __init__(self, path: str | Path, seconds: float = READ_SECONDS):
        self.path, self.seconds, self.until = path, seconds, time.monotonic() + seconds

    def check(self) -> None:
        """Raise a MediaError once the time is over."""
        if time.monotonic() > self.until:
            raise MediaError(f"{self.path}: not read within {self.seconds:g} s; transcode or leave out", "timeout")


def scan(
    path: str | Path, container: av.container.InputContainer, video: bool, audio: bool, max_seconds: float, limit: Limit
) -> Timeline:
    """Go through an open file once: the stamps of all pictures (nothing of them is decoded), and the sound.

    Raises:
        MediaError: No such stream, too large, incomplete, too short, too long, NaN samples.
    """
    declared = facts(path, container)
    for needed, kind in ((video, "video"), (audio, "audio")):
        if needed and not declared[f"has_{kind}"]:
            raise MediaError(f"{path}: no {kind} stream (set has_{kind} to false for this clip)", f"no_{kind}")
    if video:
        check_picture(path, declared["width"], declared["height"])
    picture, stream = streams(container)
    stamps = _Stamps()
    sound = _Sound(path, max_seconds)
    file_end, last = 0.0, None
    for packet in container.demux():
        limit.check()
        if packet.pts is not None or packet.dts is not None:
            stamp: int = packet.pts if packet.pts is not None else packet.dts or 0
            file_end = max(file_end, float((stamp + (packet.duration or 0)) * packet.time_base))
        if audio and packet.stream.index == stream.index:
            sound.add(packet)
        elif video and packet.stream.index == picture.index and packet.size:
            stamps.add(path, packet, max_seconds)
            last = packet
    if last is not None and not picture.codec_context.name.startswith("raw") and not any(bytes(last)):
        raise MediaError(f"{path}: its end is zeros, {_AGAIN}", "truncated")  # some decoders say nothing of zeros
    _check_whole(path, container, picture if video else None, stream if audio else None, file_end, stamps)
    runs = sound.runs() if audio else []
    zero = stamps.start if video else runs[0][0] if runs else 0.0
    if runs and runs[0][0] < zero - _JITTER:  # what a codec puts in front of its sound is nothing that one must hear
        zero = runs[0][0]
    if container.format.name.startswith(_FROM_ZERO):
        zero = max(zero, 0.0)
    waveform, sound_start = _placed(runs, zero) if audio else (None, 0.0)
    if waveform is not None:
        _check_sound(path, waveform, sound, max_seconds)
    times, end = stamps.times(zero, declared["fps"]) if video else (np.zeros(0), 0.0)
    if video:
        check_length(path, end, max_seconds)
    return Timeline(times, end, declared["fps"], zero, stamps.stamped, stamps.hidden, waveform, sound_start)


class _Stamps:
    """The presentation stamps of a video stream's packets, in the stream's own units."""

    def __init__(self) -> None:
        self.packets: list[tuple[int, int]] = []  # stamp, duration
        self.base: Any = None
        self.hidden = 0
        self.stamped = True

    def add(self, path: str | Path, packet: Any, max_seconds: float) -> None:
        if packet.is_discard:
            self.hidden += 1
            return
        self.base = packet.time_base
        stamp = packet.pts if packet.pts is not None else packet.dts
        self.stamped &= packet.pts is not None
        if stamp is None:  # raw streams: each picture follows the one before
            stamp = self.packets[-1][0] + self.packets[-1][1] if self.packets else 0
        self.packets.append((stamp, packet.duration or 0))
        if len(self.packets) > MAX_FRAMES:
            raise MediaError(f"{path}: more than {MAX_FRAMES} frames", "too_many_frames")
        seconds = float((stamp - self.packets[0][0]) * self.base)
        check_length(path, seconds - 1.0, max_seconds)  # what goes on for hours is not read to its end

    @property
    def start(self) -> float:
        return float(min(self.packets)[0] * self.base) if self.packets else 0.0

    def times(self, zero: float, rate: float | None) -> tuple[np.ndarray, float]:
        """When the pictures begin, and when the last one ends; in seconds from `zero`."""
        packets = sorted(self.packets)
        if rate and len({stamp for stamp, _ in packets}) <= len(packets) // 2:  # no stamps to speak of
            self.stamped = False
            return np.arange(len(packets)) / rate, len(packets) / rate
        stamps = np.array([stamp for stamp, _ in packets], np.float64)
        usual = float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.0
        last, duration = packets[-1]
        end = float((last + duration) * self.base) if duration else float(self.base) * (last + usual)
        return stamps * float(self.base) - zero, end - zero


class _Sound:
    """Decodes sound to 16 kHz mono, in runs that are without a gap."""

    def __init__(self, path: str | Path, max_seconds: float):
        self.path, self.max_seconds = path, max_seconds
        self.done: list[tuple[float, list[np.ndarray]]] = []  # start (s, stamps of the file), blocks
        self.form: tuple[str, str, int] | None = None
        self.resampler: Any = None
        self.start, self.seconds, self.ahead = 0.0, 0.0, 0.0  # of the run; how far its stamps are ahead of its samples
        self.lost = 0.0  # s of packets that could not be decoded

    def add(self, packet: Any) -> None:
        try:
            frames = packet.decode()
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):  # too many of these are found by their length
            self.lost += float((packet.duration or 0) * packet.time_base)
            return
        for frame in frames:
            self._add(frame)

    def _add(self, frame: Any) -> None:
        expected = self.start + self.seconds
        begin = float(frame.pts * frame.time_base) if frame.pts is not None else expected
        length = frame.samples / frame.sample_rate
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        ahead = begin - expected  # a lost packet is a jump from block to block; a slow clock a drift, which may grow
        jump = min(_DRIFT, max(_JUMP, length / 2))
        if form != self.form or abs(ahead - self.ahead) > jump or abs(ahead) > _DRIFT:
            self._flush()
            self.resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            self.form, self.start, self.seconds, ahead = form, begin, 0.0, 0.0
            self.done.append((begin, []))
        self.ahead = ahead
        self.done[-1][1].extend(block.to_ndarray()[0] for block in self.resampler.resample(frame))
        self.seconds += length
        seconds = self.start + self.seconds - self.done[0][0]
        check_length(self.path, seconds - 1.0, self.max_seconds)  # hours of undeclared sound are not decoded

    def _flush(self) -> None:
        if self.resampler is not None:
            self.done[-1][1].extend(block.to_ndarray()[0] for block in self.resampler.resample(None))

    def runs(self) -> list[tuple[float, np.ndarray]]:
        """(start in seconds by the stamps of the file, samples) of each run that has any."""
        self._flush()
        self.resampler = None
        return [(start, np.concatenate(blocks)) for start, blocks in self.done if blocks]


def _placed(runs: list[tuple[float, np.ndarray]], zero: float) -> tuple[np.ndarray, float]:
    """Sound at its place from `zero` on, and when it begins: silence in front and in gaps, cut before zero."""
    places = [(round((start - zero) * SAMPLE_RATE), samples) for start, samples in runs]
    whole = np.zeros(max([0, *(at + len(samples) for at, samples in places)]), np.float32)
    for at, samples in places:
        whole[max(at, 0) : max(at + len(samples), 0)] = samples[max(-at, 0) :]
    return whole, max(0.0, min((at for at, _ in places), default=0) / SAMPLE_RATE)


def _check_whole(path: str | Path, container: Any, picture: Any, sound: Any, file_end: float, stamps: _Stamps) -> None:
    """Refuse a file that declares more than is there: an interrupted copy opens without an error."""
    name, size = container.format.name, Path(path).stat().st_size
    if name.startswith("mov"):  # the index says where each packet lies
        for stream, kind in ((picture, "frames"), (sound, "packets of sound")):
            entries = list(stream.index_entries) if stream is not None else []
            if not entries or entries[-1].pos + entries[-1].size <= size:
                continue
            there = sum(entry.pos + entry.size <= size for entry in entries)
            if there < COMPLETE * len(entries):
                raise MediaError(f"{path}: only {there} of {len(entries)} {kind} are there; {_AGAIN}", "truncated")
    elif name.startswith(_DECLARING) and container.duration:
        # of all streams: where only the longest is cut off, the others are whole
        declared, start = container.duration / av.time_base, (container.start_time or 0) / av.time_base
        if file_end - start < COMPLETE * declared - 0.5:
            raise MediaError(
                f"{path}: the file ends at {file_end - start:.2f} of {declared:.2f} s; {_AGAIN}", "truncated"
            )
    if picture is not None and not stamps.packets:
        raise MediaError(f"{path}: the video stream has no pictures", "too_few_frames")


def _check_sound(path: str | Path, waveform: np.ndarray, sound: _Sound, max_seconds: float) -> None:
    heard = sum(len(block) for _, blocks in sound.done for block in blocks) / SAMPLE_RATE
    if heard < COMPLETE * (heard + sound.lost):
        raise MediaError(
            f"{path}: only {heard:.2f} of {heard + sound.lost:.2f} s of sound could be decoded; copy the file again",
            "damaged",
        )
    if heard < MIN_AUDIO_SECONDS:
        raise MediaError(f"{path}: {heard:.3f} s of sound, at least {MIN_AUDIO_SECONDS} s are needed", "too_short")
    check_length(path, len(waveform) / SAMPLE_RATE - 0.1, max_seconds)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path}: the sound has NaN or infinite samples", "not_finite")
