"""The planted benchmark: clips made here, whose emotion, and the modality that carries it, are known by construction.

Each clip is a real mp4 (H.264 + AAC) of a cartoon face and a voice-like sound. One modality, the dominant one, shows
the label clearly. The other is degraded (blur, low contrast, pixel noise; noise and muffling) and shows, half of the
time, another emotion. Everything is drawn from `(seed, split, index)`: the same seed gives the same clips.

Train clips on the one side and validation and test clips on the other share no identity (bands of face colours and of
voice pitch) and no wording (`wording.py`). The process was fixed on validation clips before any test clip was looked
at; it is ours, and it models one thing only: evidence that lies in one modality, beside another that misleads.
"""

import os
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.signal import butter, lfilter, sosfilt
from tqdm import tqdm

from migr.files.records import Row, sync
from migr.machine import process_pool
from migr.planted.wording import conclude, describe
from migr.text.labels import DFEW

LIMIT = 3.0  # of sentiment scores, as on CMU-MOSI
SIZE, RATE, SAMPLE_RATE = 112, 6, 16000  # pixels, frames per second, samples per second
SPLITS = ("train", "val", "test")
CONFLICT = 0.5  # how often the degraded modality shows another emotion
VERSION = 1  # of the generating process; clips of another version are made anew

# Brow offsets (inner, outer, asymmetry), eye opening, mouth (curve, opening, width, skew): wording.FACE, drawn.
_FACE = {
    "happy": dict(inner=-0.1, outer=-0.2, uneven=0.0, eye=0.5, curve=1.0, open=0.25, width=1.1, skew=0.0),
    "sad": dict(inner=-1.0, outer=0.6, uneven=0.0, eye=0.4, curve=-1.0, open=0.0, width=0.8, skew=0.0),
    "neutral": dict(inner=0.0, outer=0.0, uneven=0.0, eye=0.75, curve=0.0, open=0.0, width=0.85, skew=0.0),
    "angry": dict(inner=1.1, outer=-0.7, uneven=0.0, eye=0.5, curve=-0.2, open=0.0, width=0.5, skew=0.0),
    "surprise": dict(inner=-1.3, outer=-1.2, uneven=0.0, eye=1.3, curve=0.0, open=1.0, width=0.45, skew=0.0),
    "disgust": dict(inner=0.5, outer=0.2, uneven=1.0, eye=0.3, curve=-0.3, open=0.1, width=0.8, skew=1.0),
    "fear": dict(inner=-1.2, outer=-0.3, uneven=0.0, eye=1.15, curve=-0.2, open=0.3, width=1.35, skew=0.0),
}
# wording.VOICE, synthesised: pitch (semitones), loudness, syllables a second and their duty, timbre.
_VOICE_KEYS = ("shift", "melody", "fall", "jump", "loud", "rate", "duty", "harsh", "breath", "creak", "shake")
_VOICE = {
    "happy": (5, 4.0, 0, 0, 0.6, 4.5, 0.6, 0.0, 0.05, 0.0, 0.0),
    "sad": (-4, 0.5, 6, 0, 0.3, 1.5, 0.8, 0.0, 0.2, 0.0, 0.0),
    "neutral": (0, 0.3, 0, 0, 0.45, 3.0, 0.7, 0.0, 0.05, 0.0, 0.0),
    "angry": (2, 1.0, 0, 0, 1.0, 5.0, 0.4, 1.0, 0.1, 0.0, 0.0),
    "surprise": (0, 0.3, 0, 11, 0.7, 1.2, 0.85, 0.0, 0.1, 0.0, 0.0),
    "disgust": (-7, 0.8, 2, 0, 0.5, 2.2, 0.9, 0.2, 0.05, 1.0, 0.0),
    "fear": (9, 0.5, 0, 0, 0.35, 6.5, 0.5, 0.0, 0.7, 0.0, 1.0),
}


def identity(split: str, rng: random.Random) -> dict[str, Any]:
    """A person: hues (degrees) and pitch (Hz) from interleaved bands, one half for train clips, one for the others."""

    def band(low: float, width: float, count: int) -> float:
        start = low + width * (2 * rng.randrange(count) + (split != "train"))
        return rng.uniform(start, start + width)

    return {"skin": band(14, 1.5, 9), "backdrop": band(90, 10, 7), "light": rng.uniform(0.55, 0.8),
            "pitch": band(95, 8, 8), "tract": rng.uniform(0.9, 1.15), "x": rng.uniform(-3, 3),
            "y": rng.uniform(-3, 3), "scale": rng.uniform(1.02, 1.14)}  # fmt: skip


def bank_of(split: str) -> str:
    """The wording of a split's descriptions: one of `wording.BANKS`."""
    return "train" if split == "train" else "test"


def spec(seed: int, split: str, index: int) -> Row:
    """Everything about one clip except its pixels and samples. Labels and dominant modalities are balanced."""
    rng = random.Random(f"planted {seed} {split} {index}")
    label, dominant = DFEW[index % 7], ("video", "audio")[index // 7 % 2]
    other = "audio" if dominant == "video" else "video"
    shown = {dominant: label, other: rng.choice([x for x in DFEW if x != label]) if rng.random() < CONFLICT else label}
    quality = {dominant: rng.uniform(0.85, 1.0), other: rng.uniform(0.1, 0.4)}
    bank = bank_of(split)
    segments = {m: describe(m, shown[m], m == dominant, bank, rng) for m in ("video", "audio")}
    return {
        "clip_id": f"{split}-{index:05d}",
        "label": label,
        "split": split,
        "seconds": rng.uniform(1.2, 1.6),
        "planted": {"dominant": dominant, "shown": shown, "quality": quality},
        "identity": identity(split, rng),
        "segments": segments,
        "conclusion": conclude(dominant, bank, rng),
    }


def face_of(shown: str | float) -> dict[str, float]:
    """What a face that shows an emotion looks like, or one that shows a score: between neutral and sad or happy."""
    if isinstance(shown, str):
        return _FACE[shown]
    rest, full, share = _FACE["neutral"], _FACE["happy" if shown > 0 else "sad"], abs(shown) / LIMIT
    return {key: rest[key] + share * (full[key] - rest[key]) for key in rest}


def voice_of(shown: str | float) -> dict[str, float]:
    """What a voice that shows an emotion, or a score, sounds like."""
    if isinstance(shown, str):
        return dict(zip(_VOICE_KEYS, _VOICE[shown], strict=True))
    rest, full, share = voice_of("neutral"), voice_of("happy" if shown > 0 else "sad"), abs(shown) / LIMIT
    return {key: rest[key] + share * (full[key] - rest[key]) for key in rest}


def _hsl(hue: float, saturation: float, light: float) -> str:
    return f"hsl({hue:.0f},{100 * saturation:.0f}%,{100 * light:.0f}%)"


def draw_frames(row: Row, rng: np.random.Generator) -> np.ndarray:
    """The face of one clip as uint8 frames of shape (T, 112, 112, 3), degraded as planted."""
    who, quality = row["identity"], row["planted"]["quality"]["video"]
    target, rest = face_of(row["planted"]["shown"]["video"]), face_of("neutral")
    count = round(row["seconds"] * RATE)
    strength = rng.uniform(0.85, 1.1)
    wobble = rng.normal(0, 0.06, size=len(target))
    frames = []
    for t in range(count):
        onset = strength * min(1.0, 0.5 + t / (0.25 * count))
        p = {k: rest[k] + onset * (target[k] - rest[k]) + w for (k, w) in zip(target, wobble, strict=True)}
        s, scale = 2, 2 * who["scale"]  # drawn at twice the size, then reduced: smooth edges
        canvas = Image.new("RGB", (SIZE * s, SIZE * s), _hsl(who["backdrop"], 0.3, 0.55))
        pen = ImageDraw.Draw(canvas)
        cx, cy = (SIZE / 2 + who["x"]) * s + rng.normal(0, 0.8), (SIZE / 2 + who["y"]) * s + rng.normal(0, 0.8)

        def at(x: float, y: float, cx: float = cx, cy: float = cy, scale: float = scale) -> tuple[float, float]:
            return cx + x * scale, cy + y * scale

        ink, width = _hsl(who["skin"], 0.5, 0.12), round(4.4 * scale)
        pen.ellipse([at(-40, -48), at(40, 48)], fill=_hsl(who["skin"], 0.5, who["light"]))
        for side in (-1, 1):
            uneven = p["uneven"] * 6 * side
            pen.line(
                [at(side * 7, -20 + 6 * p["inner"] + uneven), at(side * 27, -20 + 6 * p["outer"] + uneven)], ink, width
            )
            half = max(1.2, 8 * p["eye"])
            pen.ellipse(
                [at(side * 17 - 9, -6 - half), at(side * 17 + 9, -6 + half)], fill="white", outline=ink, width=3
            )
            pupil, dart = min(4.0, half), (4 * np.sin(2.4 * t) if target["width"] > 1.2 else 0)
            pen.ellipse([at(side * 17 + dart - pupil, -6 - pupil), at(side * 17 + dart + pupil, -6 + pupil)], fill=ink)
        reach, curve, gap = 18 * p["width"], 9 * p["curve"], 11 * max(0.0, p["open"])
        xs = np.linspace(-1, 1, 13)
        middle = 25 + curve * (0.5 - xs**2) + 7 * p["skew"] * xs
        upper = [at(reach * x, y - gap * (1 - x * x) ** 0.5) for x, y in zip(xs, middle, strict=True)]
        lower = [at(reach * x, y + gap * (1 - x * x) ** 0.5) for x, y in zip(xs, middle, strict=True)]
        if gap > 1:
            pen.polygon(upper + lower[::-1], fill=_hsl(0, 0.5, 0.25))
        pen.line(upper, ink, width)
        pen.line(lower, ink, width)
        if p["skew"] > 0.5:
            for y in (4, 9, 14):
                pen.line([at(-6, y), at(6, y - 3)], ink, round(1.6 * scale))
        image = canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        image = image.filter(ImageFilter.GaussianBlur(9 * (1 - quality) ** 1.5))
        pixels = np.asarray(image, dtype=np.float32)
        contrast = 0.25 + 0.75 * quality
        pixels = 127 + contrast * (pixels - 127) + 40 * (1 - quality) * rng.standard_normal(pixels.shape, np.float32)
        frames.append(pixels.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def synthesise(row: Row, rng: np.random.Generator) -> np.ndarray:
    """The voice of one clip as float32 samples at 16 kHz: a pulse source, syllables, three formants, then the noise."""
    who, quality = row["identity"], row["planted"]["quality"]["audio"]
    v = voice_of(row["planted"]["shown"]["audio"])
    n = round(row["seconds"] * SAMPLE_RATE)
    u = np.arange(n) / n
    seconds = u * row["seconds"]
    semitones = v["shift"] + v["melody"] * np.sin(2 * np.pi * 1.7 * seconds + rng.uniform(0, 6)) - v["fall"] * u
    semitones += v["jump"] / (1 + np.exp(-30 * (u - rng.uniform(0.4, 0.55)))) + v["shake"] * 1.5 * np.sin(
        2 * np.pi * 8 * seconds
    )
    f0 = who["pitch"] * 2 ** (semitones / 12) * (1 + 0.01 * rng.normal())
    phase = np.cumsum(f0 / SAMPLE_RATE)
    source = 2 * (phase % 1) - 1
    if v["creak"]:  # every second pulse is weak: the subharmonic of a creaky voice
        source *= 1 - 0.8 * v["creak"] * ((phase // 1) % 2)
    if v["harsh"]:
        source = np.tanh(4 * v["harsh"] * (source + 0.5 * np.sin(np.pi * phase)))
    source = (1 - v["breath"]) * source + v["breath"] * rng.normal(0, 0.5, n)
    beat = (v["rate"] * (1 + 0.08 * rng.normal()) * seconds + rng.uniform()) % 1
    envelope = np.clip(np.minimum(beat, v["duty"] - beat) * 14, 0, 1) * v["loud"]
    if v["jump"]:
        envelope *= 0.4 + 0.9 * u
    if v["shake"]:
        envelope *= 1 + 0.5 * np.sin(2 * np.pi * 8 * seconds)
    voice = source * envelope
    out = np.zeros(n)
    for centre, breadth, gain in ((650, 90, 1.0), (1250, 110, 0.6), (2600, 160, 0.35)):
        r, theta = np.exp(-np.pi * breadth / SAMPLE_RATE), 2 * np.pi * centre * who["tract"] / SAMPLE_RATE
        out += gain * (1 - r) * lfilter([1.0], [1.0, -2 * r * np.cos(theta), r * r], voice)
    out += 0.02 * voice
    out *= 0.3 * v["loud"] / (np.sqrt(np.mean(out**2)) + 1e-9)
    if quality < 0.6:
        out = sosfilt(butter(2, 2500, fs=SAMPLE_RATE, output="sos"), out)
    level = np.sqrt(np.mean(out**2)) * 10 ** (-snr(quality) / 20)
    out = out + sosfilt(butter(1, 3500, fs=SAMPLE_RATE, output="sos"), rng.normal(0, 1, n)) * level
    return (0.5 * out / max(1.0, np.abs(out).max())).astype(np.float32)


def snr(quality: float) -> float:
    """The voice's signal-to-noise ratio in dB: 30 at quality 1, -9 at 0.1."""
    return 30 * quality - 12 * (1 - quality) if quality < 0.6 else 30 * quality


def write_clip(path: Path, frames: np.ndarray, waveform: np.ndarray) -> None:
    """Encode frames (T, H, W, 3) and samples (N,) as an mp4 with H.264 and AAC."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "20", "preset": "ultrafast", "threads": "1"})
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        for start in range(0, len(waveform), 1024):
            sound = av.AudioFrame.from_ndarray(waveform[None, start : start + 1024], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def render(job: tuple[int, str, int, str]) -> Row:
    """Draw, synthesise and write one clip; returns its spec. Skips a clip that is there already."""
    seed, split, index, root = job
    row = spec(seed, split, index)
    path = Path(root) / "clips" / f"{row['clip_id']}.mp4"
    if not path.exists():
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        partial = path.with_suffix(".partial.mp4")
        write_clip(partial, draw_frames(row, rng), synthesise(row, rng))
        sync(partial)  # a power cut must not leave the name without the content: it would be skipped
        os.replace(partial, path)
    return row


def make(root: str | Path, seed: int, sizes: dict[str, int]) -> Iterator[Row]:
    """Render `sizes[split]` clips a split below `root/clips` on all cores; yields the specs in order."""
    (Path(root) / "clips").mkdir(parents=True, exist_ok=True)
    jobs = [(seed, split, index, str(root)) for split in SPLITS for index in range(sizes.get(split, 0))]
    with process_pool() as pool:
        yield from tqdm(pool.map(render, jobs, chunksize=16), total=len(jobs), desc="rendering clips", unit="clip")
    sync(Path(root) / "clips")
