"""Variants of the planted clips, for what the benchmark itself does not measure.

    graded      both modalities show the label, each as clearly as chance will have it (quality 0.1 to 1)
    text        a transcript is the third modality; the clear one is video, audio or text, the other two are degraded
    sentiment   face and voice lie between sad (-3), neutral (0) and happy (3); the label is that score
    noisy       a planted clip, drawn again from the same numbers with one modality degraded further

Identities, splits and rendering are the benchmark's. Transcripts of train clips on the one side and of test clips on
the other are framed in other words, but share the telling ones: a one-million-parameter model has no synonyms.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from migr.files.records import Row, sync, write_jsonl
from migr.machine import process_pool
from migr.planted import clips as planted
from migr.text.labels import DFEW

MANIFEST_KEYS = ("clip_id", "label", "split", "planted", "transcript", "sentiment")

SAID = {
    "happy": ("glad", "delighted", "wonderful", "cheerful", "lucky", "laughing", "thrilled", "a gift"),
    "sad": ("lonely", "crying", "hopeless", "miss her", "grief", "gone for good", "tears", "heavy heart"),
    "neutral": (
        "as usual",
        "routine",
        "nothing special",
        "same as ever",
        "so so",
        "ordinary",
        "as planned",
        "standard",
    ),
    "angry": ("furious", "outrage", "shut up", "how dare", "sick of it", "liar", "unfair", "enough"),
    "surprise": ("unbelievable", "no way", "out of nowhere", "really, truly", "unexpected", "what", "suddenly", "wow"),
    "disgust": ("filthy", "rotten", "vile", "nauseous", "stinks", "slimy", "revolting", "mouldy"),
    "fear": ("terrified", "danger", "help me", "hide", "it follows us", "trembling", "threat", "run"),
}
FILLER = (
    "the bus", "on monday", "a letter", "the table", "by the window", "some bread", "number nine", "the corner shop",
    "a coat", "two chairs", "after lunch", "the second floor", "a pencil", "the garden", "tomorrow", "that street",
)  # fmt: skip
FRAMES = {
    "train": (
        "I mean {0}, {1} and {2}; then {3}, {4}, {5}.",
        "Look, {0}, and {1}. {2}, {3}. And {4}, {5}.",
        "{0}? {1}! {2}... {3}, {4}, it was {5}.",
        "Did I tell you of {0}: {1}, {2}, {3}, all of {4}? {5}.",
        "There was {0}; {1}; and {2}. After that {3}, or {4} - {5}!",
        "So {0}. So {1}. {2}, he said, {3}, and she {4}, {5}.",
    ),
    "test": (
        "Well: {0}. {1}, {2}! Now {3} and {4}, yes, {5}.",
        "You know {0}, {1}, or {2}? {3}, {4}. Just {5}.",
        "As for {0}, {1}; but {2}, {3}! With {4}, {5}?",
    ),
}


def transcript(emotion: str, quality: float, bank: str, rng: random.Random) -> str:
    """Six phrases, each telling of the emotion with probability `quality`, else of nothing."""
    words = [rng.choice(SAID[emotion] if rng.random() < quality else FILLER) for _ in range(6)]
    return rng.choice(FRAMES[bank]).format(*words)


def _clip(kind: str, seed: int, split: str, index: int, rng: random.Random, **facts: Any) -> Row:
    return {
        "clip_id": f"{kind}-{split}-{index:05d}",
        "split": split,
        "seconds": rng.uniform(1.2, 1.6),
        "identity": planted.identity(split, rng),
        "draw": [seed, planted.SPLITS.index(split), index],
        **facts,
    }


def _other(emotion: str, rng: random.Random) -> str:
    """Another emotion, in the benchmark's share of cases."""
    return rng.choice([name for name in DFEW if name != emotion]) if rng.random() < planted.CONFLICT else emotion


def graded(seed: int, split: str, index: int) -> Row:
    """Both modalities show the label; `dominant` is the one of the higher quality."""
    rng = random.Random(f"graded {seed} {split} {index}")
    label = DFEW[index % 7]
    quality = {m: rng.uniform(0.1, 1.0) for m in ("video", "audio")}
    dominant = max(quality, key=lambda m: quality[m])
    truth = {"dominant": dominant, "shown": dict.fromkeys(quality, label), "quality": quality}
    return _clip("graded", seed, split, index, rng, label=label, planted=truth)


def text(seed: int, split: str, index: int) -> Row:
    """One of three modalities is clear; each of the others is degraded and shows, half of the time, another emotion."""
    rng = random.Random(f"text {seed} {split} {index}")
    names = ("video", "audio", "text")
    label, dominant = DFEW[index % 7], names[index // 7 % 3]
    shown = {m: label if m == dominant else _other(label, rng) for m in names}
    quality = {m: rng.uniform(0.85, 1.0) if m == dominant else rng.uniform(0.1, 0.4) for m in names}
    words = transcript(shown["text"], quality["text"], planted.bank_of(split), rng)
    truth = {"dominant": dominant, "shown": shown, "quality": quality}
    return _clip("text", seed, split, index, rng, label=label, planted=truth, transcript=words)


def sentiment(seed: int, split: str, index: int) -> Row:
    """A score drawn evenly from [-3, 3]; the degraded modality shows, half of the time, another score."""
    rng = random.Random(f"sentiment {seed} {split} {index}")
    score, dominant = round(rng.uniform(-planted.LIMIT, planted.LIMIT), 2), ("video", "audio")[index % 2]
    other = "audio" if dominant == "video" else "video"
    second = round(rng.uniform(-planted.LIMIT, planted.LIMIT), 2) if rng.random() < planted.CONFLICT else score
    quality = {dominant: rng.uniform(0.85, 1.0), other: rng.uniform(0.1, 0.4)}
    truth = {"dominant": dominant, "shown": {dominant: score, other: second}, "quality": quality}
    return _clip("sentiment", seed, split, index, rng, label=None, sentiment=score, planted=truth)


KINDS = {"graded": graded, "text": text, "sentiment": sentiment}


def noisy(seed: int, split: str, index: int, modality: str, level: float) -> Row:
    """A planted clip with the quality of one modality multiplied by 1 − level.

    Which modality carries the label can change: `dominant` is the one of the highest quality among those that show it.
    """
    row = planted.spec(seed, split, index)
    truth = row["planted"]
    truth["quality"][modality] *= 1 - level
    carriers = [m for m, emotion in truth["shown"].items() if emotion == row["label"]]
    truth["dominant"] = max(carriers, key=lambda m: truth["quality"][m])
    row["clip_id"] += f"-{modality}-{level:g}"
    return {**row, "draw": [seed, planted.SPLITS.index(split), index]}


def render(job: tuple[Row, str]) -> None:
    """Draw, synthesise and write one clip; one that is there already is kept."""
    row, root = job
    path = Path(root) / "clips" / f"{row['clip_id']}.mp4"
    if path.exists():
        return
    rng = np.random.default_rng(row["draw"])
    partial = path.with_suffix(".partial.mp4")
    planted.write_clip(partial, planted.draw_frames(row, rng), planted.synthesise(row, rng))
    sync(partial)  # as for the benchmark's own clips
    os.replace(partial, path)


def make(root: str | Path, rows: Sequence[Row]) -> Path:
    """Render the clips below `root/clips` on all cores and write `root/clips.jsonl`; returns the manifest."""
    (Path(root) / "clips").mkdir(parents=True, exist_ok=True)
    with process_pool() as pool:
        jobs = [(row, str(root)) for row in rows]
        for _ in tqdm(pool.map(render, jobs, chunksize=16), total=len(jobs), desc="rendering clips", unit="clip"):
            pass
    manifest = Path(root) / "clips.jsonl"
    manifest_rows = ({key: row[key] for key in MANIFEST_KEYS if key in row} for row in rows)
    write_jsonl(manifest, ({**row, "path": f"clips/{row['clip_id']}.mp4"} for row in manifest_rows))
    return manifest
