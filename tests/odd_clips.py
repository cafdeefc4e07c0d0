"""Playable files as people have them, each with the truth about it: PyAV alone makes them, after public reports.

Every picture shows its own number (a row of black and white squares, most significant first), so that a test sees
which one was read; the sound is silent but for a click, so that a test hears when it comes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, SQUARE = 8, 16  # squares of 16 pixels, so that lossy codecs keep them
RATE = 48_000


@dataclass(frozen=True)
class Odd:
    """A file and what is true of it.

    Attributes:
        path: The file.
        times: When each picture is shown, in seconds from the clip's zero.
        numbers: What each picture shows.
        end: When the last picture ends.
        click: When the click is heard; None without sound.
        width, height: Upright, in pixels.
        notes: What `examine` must note, beside what every file has.
    """

    path: Path
    times: list[float]
    numbers: list[int]
    end: float
    click: float | None
    width: int = 192
    height: int = 128
    notes: dict = field(default_factory=dict)


def picture(number: int, width: int = 192, height: int = 128) -> np.ndarray:
    image = np.full((height, width, 3), 96, np.uint8)
    image[-32:] = (160, 60, 60)  # so that up is seen
    for bit in range(BITS):
        value = 235 if number >> (BITS - 1 - bit) & 1 else 16
        image[16 : 16 + SQUARE, 16 + bit * SQUARE : 16 + (bit + 1) * SQUARE] = value
    return image


def number_of(frame: np.ndarray, width: int = 192, height: int = 128) -> int:
    """The number that a frame (3, H, W) of any size shows."""
    grey = frame.astype(float).mean(0)
    rows, columns = grey.shape[0] / height, grey.shape[1] / width
    y = int((16 + SQUARE / 2) * rows)
    bits = [grey[y, int((16 + (bit + 0.5) * SQUARE) * columns)] > 120 for bit in range(BITS)]
    return int("".join(str(int(bit)) for bit in bits), 2)


def clicks(seconds: float, at: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    wave = np.zeros((channels, round(seconds * rate)), np.float32)
    start = round(at * rate)
    length = round(0.004 * rate)
    wave[:, start : start + length] = 0.9 * np.sin(2 * np.pi * 2000 * np.arange(length) / rate)
    return wave


def heard(waveform: np.ndarray) -> float:
    """When the click begins in 16 kHz sound."""
    return int(np.flatnonzero(np.abs(waveform) > 0.3 * np.abs(waveform).max())[0]) / 16_000


class Writer:
    """Writes pictures and sound with the stamps that it is given, in milliseconds or finer."""

    def __init__(
        self, path: Path, video: str | None = "libx264", audio: str | None = "aac", size=(192, 128), **options
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.container = path, av.open(str(path), "w", options=options.pop("container", {}))
        self.video = self.audio = None
        rate = options.pop("rate", RATE)
        layout = options.pop("layout", "mono")
        if video:
            self.video = self.container.add_stream(video, rate=options.pop("fps", 25))
            self.video.width, self.video.height = size
            self.video.pix_fmt = options.pop("pix_fmt", "yuv420p")
            self.base = Fraction(1, 25 if path.suffix == ".avi" else 1000)
            self.video.codec_context.time_base = self.base
            presets = {
                "libx264": {"preset": "veryfast", "threads": "1", "crf": "18"},
                "libsvtav1": {"preset": "10", "qp": "20"},
            }
            self.video.options = presets.get(video, {}) | options
        if audio:
            self.audio = self.container.add_stream(audio, rate=rate, layout=layout)

    def show(self, number: int, time: float, size=(192, 128)) -> None:
        frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
        frame.pts, frame.time_base = round(time / self.base), self.base
        for packet in self.video.encode(frame):
            self.container.mux(packet)

    def play(self, wave: np.ndarray, start: float = 0.0, shift: float = 0.0, drop=(), rate: int = RATE, layout="mono"):
        """Encode sound whose packets are moved by `shift` seconds and left out between the times of `drop`."""
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
        for packet in [*self.audio.encode(frame), *self.audio.encode(None)]:
            move = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + move, packet.dts + move
            if not any(low <= float(packet.pts * packet.time_base) < high for low, high in drop):
                self.container.mux(packet)

    def close(self) -> Path:
        if self.video is not None:
            for packet in self.video.encode(None):
                self.container.mux(packet)
        self.container.close()
        return self.path


def even(count: int, fps: float = 25.0, start: float = 0.0) -> list[float]:
    return [start + index / fps for index in range(count)]


def remux(source: Path, path: Path, change: Callable, streams: Callable | None = None) -> Path:
    """Copy the packets of a file; `change(packet)` alters them, and leaves one out by returning False."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        copies = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        if streams:
            streams(copies)
        for packet in old.demux():
            if packet.dts is not None and change(packet) is not False:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)
    return path


def plain(path: Path, count: int = 100, sound: float | None = None, click: float = 2.0, **options) -> Path:
    writer = Writer(path, **options)
    times = even(count)
    for number, time in enumerate(times):
        writer.show(number, time, options.get("size", (192, 128)))
    if writer.audio is not None:
        seconds = sound or count / 25
        writer.play(clicks(seconds, min(click, seconds - 0.1)))
    return writer.close()


# One function a kind; each takes a folder and gives an Odd. The number is that of the report.


def cut_by_stream_copy(folder: Path, hidden: int = 75) -> Odd:
    """1: the packets back to the key frame are there, an edit list hides them."""
    writer = Writer(folder / "whole.mp4", bf="0", g="250")
    for number, time in enumerate(even(100)):
        writer.show(number, time)
    shown = (100 - hidden) / 25
    writer.play(clicks(shown, shown / 2), shift=hidden / 25)

    def back(packet):
        move = round(hidden / 25 / packet.time_base)
        packet.pts, packet.dts = packet.pts - move, packet.dts - move

    path = remux(writer.close(), folder / f"cut{hidden}.mp4", back)
    notes = {"hidden_frames": hidden}
    return Odd(path, even(100 - hidden), list(range(hidden, 100)), shown, shown / 2, notes=notes)


def slightly_cut(folder: Path) -> Odd:
    """1, 17: 8 of 100 hidden; decord's index has frames that never come."""
    return cut_by_stream_copy(folder, 8)


def cut_behind_b_frames(folder: Path) -> Odd:
    """1: cut within a group with B-frames."""
    plain(folder / "b.mp4", audio=None, bf="2", g="250")

    def back(packet):
        move = round(0.2 / packet.time_base)
        packet.pts, packet.dts = packet.pts - move, packet.dts - move

    path = remux(folder / "b.mp4", folder / "cut_b.mp4", back)
    return Odd(path, even(95), list(range(5, 100)), 3.8, None, notes={"hidden_frames": 5})


def late_sound(folder: Path) -> Odd:
    """8: sound from 0.5 s on."""
    writer = Writer(folder / "late.mp4")
    for number, time in enumerate(even(100)):
        writer.show(number, time)
    writer.play(clicks(3.5, 1.5), shift=0.5)
    return Odd(writer.close(), even(100), list(range(100)), 4.0, 2.0, notes={"audio_start": 0.5})


def gap_in_sound(folder: Path, name: str = "gap.mkv") -> Odd:
    """8: packets left out while nobody speaks."""
    writer = Writer(folder / name)
    for number, time in enumerate(even(100)):
        writer.show(number, time)
    writer.play(clicks(4.0, 3.0), drop=[(1.2, 1.8)])
    return Odd(writer.close(), even(100), list(range(100)), 4.0, 3.0)


def gap_in_mp4(folder: Path) -> Odd:
    """8: the same in mp4."""
    return gap_in_sound(folder, "gap.mp4")


def early_sound(folder: Path) -> Odd:
    """8: sound from -0.3 s on, hidden by the edit list."""
    plain(folder / "early0.mp4", click=2.3)

    def back(packet):
        if packet.stream.type == "audio":
            move = round(0.3 / packet.time_base)
            packet.pts, packet.dts = packet.pts - move, packet.dts - move

    return Odd(remux(folder / "early0.mp4", folder / "early.mp4", back), even(100), list(range(100)), 4.0, 2.0)


def late_picture(folder: Path) -> Odd:
    """8: the picture begins 0.6 s behind the sound."""
    writer = Writer(folder / "late_picture.mkv")
    times = even(60, start=0.6)
    for number, time in enumerate(times):
        writer.show(number, time)
    writer.play(clicks(3.0, 2.0))
    return Odd(writer.close(), times, list(range(60)), 3.0, 2.0, notes={"video_start": 0.6})


def av1_mp4(folder: Path, name: str = "av1.mp4") -> Odd:
    """9: a codec that decord does not know."""
    path = plain(folder / name, 50, video="libsvtav1", audio="aac" if name.endswith("mp4") else "libopus", click=1.0)
    # as root this encoder makes its caller a real-time process, whose children then starve the machine
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return Odd(path, even(50), list(range(50)), 2.0, 1.0)


def av1_webm(folder: Path) -> Odd:
    """9: the same in WebM."""
    return av1_mp4(folder, "av1.webm")


def void(content: bytes, *ids: bytes) -> bytes:
    """EBML elements of these ids made Void, as long as they were."""
    content = bytearray(content)
    for element in ids:
        at = content.find(element)
        assert at >= 0, element
        size = content[at + len(element)] & 0x7F
        total = len(element) + 1 + size
        content[at : at + total] = bytes([0xEC, 0x80 | (total - 2)]) + bytes(total - 2)
    return bytes(content)


def webcam(folder: Path) -> Odd:
    """11: WebM of a browser: times in milliseconds as they came, neither rate nor duration."""
    gaps = [0.033, 0.067, 0.12, 0.033, 0.05, 0.09]
    times = [0.0]
    while times[-1] < 2.9:
        times.append(round(times[-1] + gaps[len(times) % len(gaps)], 3))
    writer = Writer(folder / "webcam0.webm", "libvpx", "libopus", deadline="realtime")
    for number, time in enumerate(times):
        writer.show(number, time)
    writer.play(clicks(3.0, 1.5))
    content = void(writer.close().read_bytes(), b"\x23\xe3\x83", b"\x44\x89")
    path = folder / "webcam.webm"
    path.write_bytes(content)
    return Odd(
        path,
        times,
        list(range(len(times))),
        times[-1] + float(np.median(np.diff(times))),
        1.5,
        notes={"variable_rate": True},
    )


def sound_outlasts(folder: Path, name: str = "outlasts.mkv") -> Odd:
    """13: MKV whose sound goes on behind the last picture."""
    return Odd(plain(folder / name, 50, sound=4.0, click=3.0), even(50), list(range(50)), 2.0, 3.0)


def sound_outlasts_mp4(folder: Path) -> Odd:
    """13: the same streams as mp4."""
    return sound_outlasts(folder, "outlasts.mp4")


def longer_track(folder: Path) -> Odd:
    """13: a film cut that keeps a longer second track."""
    plain(folder / "short.mp4", 50, click=1.0)
    writer = Writer(folder / "second.mp4", video=None)
    writer.play(clicks(40.0, 30.0))
    writer.close()
    path = folder / "longer_track.mkv"
    inputs = [str(folder / name) for name in ("short.mp4", "second.mp4")]
    with av.open(inputs[0]) as one, av.open(inputs[1]) as two, av.open(str(path), "w") as new:
        packets = []
        for source in (one, two):
            copies = {stream.index: new.add_stream_from_template(stream) for stream in source.streams}
            packets += [(p.dts * p.time_base, p, copies[p.stream.index]) for p in source.demux() if p.size]
        for _, packet, copy in sorted(packets, key=lambda entry: entry[0]):
            packet.stream = copy
            new.mux(packet)
    return Odd(path, even(50), list(range(50)), 2.0, 1.0)


def digital_silence(folder: Path) -> Odd:
    """14: a sound track of zeros."""
    writer = Writer(folder / "silence.mp4")
    for number, time in enumerate(even(50)):
        writer.show(number, time)
    writer.play(np.zeros((1, 2 * RATE), np.float32))
    return Odd(writer.close(), even(50), list(range(50)), 2.0, None, notes={"silent": True, "has_audio": False})


def variable_rate(folder: Path) -> Odd:
    """16: 60 frames in the first second, then 8 in four."""
    times = [round(index / 60, 3) for index in range(60)] + [1.0 + index / 2 for index in range(8)]
    writer = Writer(folder / "variable.mp4", bf="0")
    for number, time in enumerate(times):
        writer.show(number, time)
    writer.play(clicks(5.0, 3.0))
    return Odd(writer.close(), times, list(range(68)), 4.54, 3.0, notes={"variable_rate": True})


def rotated(folder: Path, degrees: int = 90) -> Odd:
    """A phone held upright: the picture lies on its side, a matrix turns it."""
    turns = degrees // 90
    writer = Writer(folder / f"turned{degrees}.mp4", size=(128, 192) if turns % 2 else (192, 128))
    writer.video.set_display_rotation(degrees)
    for number, time in enumerate(even(50)):
        image = np.ascontiguousarray(np.rot90(picture(number), -turns))
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
        for packet in writer.video.encode(frame):
            writer.container.mux(packet)
    writer.play(clicks(2.0, 1.0))
    return Odd(writer.close(), even(50), list(range(50)), 2.0, 1.0, notes={"rotated": True})


def rotated_back(folder: Path) -> Odd:
    """The phone held the other way."""
    return rotated(folder, 270)


def upside_down(folder: Path) -> Odd:
    """The phone upside down."""
    return rotated(folder, 180)


def anamorphic(folder: Path) -> Odd:
    """DVD and broadcast: stored 144 wide, its pixels 4 : 3, so that 192 are shown."""
    writer = Writer(folder / "anamorphic.mp4", size=(144, 128))
    writer.video.codec_context.sample_aspect_ratio = Fraction(4, 3)
    for number, time in enumerate(even(50)):
        stored = picture(number)[:, (np.arange(144) * 192 + 96) // 144]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
        frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
        for packet in writer.video.encode(frame):
            writer.container.mux(packet)
    writer.play(clicks(2.0, 1.0))
    return Odd(writer.close(), even(50), list(range(50)), 2.0, 1.0, notes={"anamorphic": True})


def changing_sound(folder: Path) -> Odd:
    """Sound that changes from stereo to mono, and its rate, as broadcasts do (MPEG-TS, two AAC streams joined)."""
    path = folder / "changing.ts"
    parts = []
    for number, (rate, layout) in enumerate(((48_000, "stereo"), (44_100, "mono"))):
        writer = Writer(folder / f"part{number}.ts", rate=rate, layout=layout)
        start = 2.08 * number  # the muxer moves the first one by 0.08 s
        for index in range(50):
            writer.show(50 * number + index, start + index / 25)
        wave = clicks(2.0, 1.0, rate, 1 + (layout == "stereo"))
        writer.play(wave * (number == 1), start=start, rate=rate, layout=layout)
        parts.append(writer.close().read_bytes())
    path.write_bytes(b"".join(parts))
    return Odd(path, even(100), list(range(100)), 4.0, 3.0)


def mpeg_ts(folder: Path) -> Odd:
    """A file whose time does not begin at zero."""
    return Odd(plain(folder / "plain.ts", 50, click=1.0), even(50), list(range(50)), 2.0, 1.0)


def old_avi(folder: Path) -> Odd:
    """MPEG-4 Part 2 in AVI, which has no presentation stamps."""
    path = plain(folder / "old.avi", 50, video="mpeg4", audio="pcm_s16le", click=1.0, qscale="3")
    return Odd(path, even(50), list(range(50)), 2.0, 1.0)


def flash(folder: Path) -> Odd:
    """FLV: stamps in milliseconds."""
    return Odd(
        plain(folder / "plain.flv", 50, video="flv", rate=44_100, audio=None), even(50), list(range(50)), 2.0, None
    )


KINDS = [
    *(cut_by_stream_copy, slightly_cut, cut_behind_b_frames, late_sound, gap_in_sound, gap_in_mp4, early_sound),
    *(late_picture, av1_mp4, av1_webm, webcam, sound_outlasts, sound_outlasts_mp4, longer_track, digital_silence),
    *(variable_rate, rotated, rotated_back, upside_down, anamorphic, changing_sound, mpeg_ts, old_avi, flash),
]
