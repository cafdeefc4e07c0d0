"""Small real media files for the tests, rendered by PyAV: whole ones and every kind of broken one."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def clip(
    path: Path,
    seconds: float = 2.0,
    fps: int = 15,
    size: tuple[int, int] = (96, 128),
    video: bool = True,
    audio: bool | float = True,
    rate: int = 44_100,
    pitch: float = 220.0,
    seed: int = 0,
    frames: int | None = None,
    faststart: bool = False,
) -> Path:
    """An H.264 + AAC file: a bright square that moves over a seeded background, and a tone with vibrato.

    Args:
        size: Height and width in pixels.
        audio: False for none, True for as long as the video, a number for that many seconds.
        frames: Number of frames, instead of `seconds * fps`.
        faststart: Put the index in front, so that a file cut in half still opens.
    """
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        streams = []
        if video:
            picture = container.add_stream("libx264", rate=fps)
            picture.height, picture.width = size
            picture.pix_fmt = "yuv420p"
            picture.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
            count = frames if frames is not None else round(seconds * fps)
            streams.append((picture, _pictures(count, size, rng)))
        if audio is not False:
            sound = container.add_stream("aac", rate=rate, layout="mono")
            length = seconds if audio is True else float(audio)
            streams.append((sound, _sounds(length, rate, pitch)))
        for stream, raw in streams:
            for frame in raw:
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def _pictures(count, size, rng):
    """Frames whose square's place tells their index, so that a wrong index shows in the pixels."""
    height, width = size
    background = np.kron(rng.integers(40, 120, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    background = np.pad(background, ((0, height % 8), (0, width % 8), (0, 0)), mode="edge")
    for index in range(count):
        image = background.copy()
        left = (4 * index) % (width - 16)
        image[height // 4 : height // 4 + 16, left : left + 16] = (240, 60, 60)
        yield av.VideoFrame.from_ndarray(image, format="rgb24")


def _sounds(seconds, rate, pitch):
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * pitch * time + 3 * np.sin(2 * np.pi * 5 * time))
    yield from _audio_frames(wave.astype(np.float32), rate)


def _audio_frames(wave, rate, format="fltp"):
    frame = av.AudioFrame.from_ndarray(wave[None, :], format=format, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    yield frame


def half(path: Path, source: Path, share: float = 0.5) -> Path:
    """The first half of a file, as an interrupted copy leaves it."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def tone(path: Path, wave: np.ndarray, rate: int = 16_000) -> Path:
    """A QuickTime file with the exact float samples of `wave` (which may be NaN) and no video."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout="mono")
        for frame in _audio_frames(wave.astype(np.float32), rate, "flt"):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damaged(path: Path, source: Path) -> Path:
    """The same file with two video packets of its middle wiped out."""
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    content = bytearray(source.read_bytes())
    for start, size in packets[len(packets) // 2 :][:2]:
        content[start : start + size] = bytes(size)
    path.write_bytes(content)
    return path


def skipping(path: Path, source: Path, skipped: int) -> Path:
    """An MPEG-4 Part 2 file of `source`'s pictures whose last packets say "not coded": packets without a picture."""
    with av.open(str(source)) as container:
        pictures = [frame.to_image() for frame in container.decode(container.streams.video[0])]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=15)
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, "yuv420p"
        packets = [p for picture in pictures for p in stream.encode(av.VideoFrame.from_image(picture))]
        packets += stream.encode(None)
        for index, packet in enumerate(packets):
            if index >= len(packets) - skipped:
                # a P picture at time increment 14 (4 bits at 15 a second), not coded
                empty = av.Packet(bytes([0, 0, 1, 0xB6, 0x5E, 0xBF]))
                empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
                empty.duration, empty.stream = packet.duration, stream
                packet = empty
            container.mux(packet)
    return path


def bad(folder: Path) -> dict[str, tuple[Path | None, str]]:
    """A dozen files that cannot be used: name -> (the file, or None for one that is missing; the reason)."""
    folder.mkdir(parents=True, exist_ok=True)
    front = clip(folder / "front.mp4", faststart=True)
    whole = clip(folder / "whole.mp4")
    nan = np.zeros(16_000)
    nan[100] = np.nan
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.mp4").write_text("this is no film")
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nwhole.mp4\n#EXT-X-ENDLIST\n")
    return {
        "missing": (None, "missing"),
        "empty": (folder / "empty.mp4", "empty"),
        "random": (folder / "random.mp4", "unreadable"),
        "text": (folder / "text.mp4", "unreadable"),
        "playlist": (folder / "playlist.mp4", "unreadable"),
        "half": (half(folder / "half.mp4", front), "truncated"),
        "half without its index": (half(folder / "half_blind.mp4", whole), "unreadable"),
        "damaged": (damaged(folder / "damaged.mp4", whole), "damaged"),
        "one frame": (clip(folder / "one.mp4", frames=1, audio=False), "too_few_frames"),
        "no video": (clip(folder / "blind.mp4", video=False), "no_video"),
        "a blip of sound": (clip(folder / "blip.mp4", audio=0.01), "too_short"),
        "NaN in the sound": (tone(folder / "nan.mov", nan), "not_finite"),
        "40 seconds": (clip(folder / "long.mp4", seconds=40, fps=2, size=(32, 48), audio=False), "too_long"),
    }


def dfew(root: Path, clips: list[tuple[Path | None, str, str]], fold: int = 1) -> dict[str, int]:
    """A DFEW tree of (file, label, split), with hard links, some flat and some below part_*; label -> how many."""
    labels = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
    tables = {split: root / "EmoLabel_DataSplit" / f"{split}(single-labeled)" for split in ("train", "test")}
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for number, (file, label, split) in enumerate(clips, 1):
        rows[split].append(f"{number},{labels.index(label) + 1}")
        if file is not None:
            place = root / "Clip" / "original" / ("" if number % 3 else f"part_{number % 2 + 1}")
            place.mkdir(parents=True, exist_ok=True)
            os.link(file.resolve(), place / f"{number}.mp4")
    for split, table in tables.items():
        table.mkdir(parents=True, exist_ok=True)
        (table / f"set_{fold}.csv").write_text("\n".join(["video_name,label", *rows[split]]) + "\n")
    return {split: len(found) for split, found in rows.items()}


def mafw(root: Path, clips: list[tuple[Path | None, str, str]], fold: int = 1) -> None:
    """A MAFW tree of (file, label, split), with hard links."""
    media, folder = root / "data" / "clips", root / "Train & Test Set" / "single" / "no_caption" / f"set_{fold}"
    media.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        lines = [f"{n:05d}.mp4 {label}\n" for n, (_, label, part) in enumerate(clips, 1) if part == split]
        (folder / f"{split}.txt").write_text("".join(lines))
    for number, (file, _, _) in enumerate(clips, 1):
        if file is not None:
            os.link(file.resolve(), media / f"{number:05d}.mp4")
