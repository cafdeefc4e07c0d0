"""Write a data folder from what a reader found, and the report on it, one clip at a time."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from migr.errors import InputError
from migr.files.records import Row, write_json, write_jsonl
from migr.sentiment.sets import MODALITIES, SentimentSet
from migr.sentiment.source import Frames, SplitSource

SAMPLE = 20_000  # frames of the train split that medians and spreads are taken from
_RELEASE = 1 << 25  # bytes that may be mapped before they are given back
IQR = 1.349  # interquartile range of a standard normal distribution


class ColumnFacts:
    """Extremes and counts of each feature of one modality, over the frames that it is given."""

    def __init__(self, dim: int) -> None:
        self.low, self.high = np.full(dim, math.inf), np.full(dim, -math.inf)
        self.nan, self.above, self.below = (np.zeros(dim, np.int64) for _ in range(3))
        self.frames = 0

    def add(self, frames: NDArray[np.float32]) -> None:
        """Count these frames (L, dim)."""
        self.frames += len(frames)
        finite = np.isfinite(frames)
        if not finite.all():
            self.nan += np.isnan(frames).sum(0)
            self.above += np.isposinf(frames).sum(0)
            self.below += np.isneginf(frames).sum(0)
        self.low = np.minimum(self.low, np.where(finite, frames, math.inf).min(0))
        self.high = np.maximum(self.high, np.where(finite, frames, -math.inf).max(0))

    def rows(self) -> list[Row]:
        """One a feature: min and max of its finite values (null without), NaN, inf, -inf, constant."""
        known = np.isfinite(self.low)
        return [
            {
                "min": float(self.low[i]) if known[i] else None,
                "max": float(self.high[i]) if known[i] else None,
                "nan": int(self.nan[i]),
                "inf": int(self.above[i]),
                "-inf": int(self.below[i]),
                "constant": bool(not known[i] or self.low[i] == self.high[i]),
            }
            for i in range(len(self.low))
        ]


def write_frames(path: Path, frames: Frames, count: int, facts: ColumnFacts) -> tuple[list[int], NDArray[np.float32]]:
    """Write the frames of all clips one behind the other as one array (all frames, dim) of float32.

    What is not finite is written as NaN: the file is the mask of what was missing, and readers make 0 of it behind the
    scaling, which is the median of the train split.

    Returns:
        The lengths of the clips, and an even sample of their frames.
    """
    lengths, sample, mapped = [], [], 0
    take = max(1, SAMPLE // max(count, 1))
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (0, frames.dim)}
        npy.write_array_header_1_0(file, header)
        for i in range(count):
            own = frames.clip(i)
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.ascontiguousarray(own, np.float32)
            mapped += own.nbytes
            if mapped > _RELEASE:
                del own
                frames.release()
                mapped = 0
            lengths.append(len(values))
            if not len(values):
                continue
            facts.add(values)
            values = np.where(np.isfinite(values), values, np.float32(np.nan))
            file.write(values.tobytes())
            if i % max(1, count // SAMPLE) == 0:
                sample.append(values[np.linspace(0, len(values) - 1, min(take, len(values))).astype(int)])
        file.seek(0)
        npy.write_array_header_1_0(file, header | {"shape": (sum(lengths), frames.dim)})
    frames.release()
    return lengths, np.concatenate(sample) if sample else np.empty((0, frames.dim), np.float32)


def scaling(sample: NDArray[np.float32]) -> Row:
    """Robust scaling of each feature: its median, and its interquartile range as a deviation.

    Where more than half of the values are the same the deviation stands in, and 1 where all are.
    """
    if not len(sample):
        return {"median": [0.0] * sample.shape[1], "scale": [1.0] * sample.shape[1]}
    sample = np.where(np.isnan(sample).all(0), 0.0, sample)
    low, median, high = np.nanpercentile(sample, [25, 50, 75], axis=0)
    scale = (high - low) / IQR
    scale = np.where(scale > 1e-6, scale, np.nanstd(sample, axis=0, dtype=np.float64))
    return {"median": median.tolist(), "scale": np.where(scale > 1e-6, scale, 1.0).tolist()}


def grid(scores: list[float]) -> str:
    """What steps scores come in: fifths (of five annotators), thirds, tenths, or how many values there are."""
    for steps, name in ((5, "fifths"), (3, "thirds"), (10, "tenths")):
        if all(abs(score * steps - round(score * steps)) < 1e-3 for score in scores):
            return name
    return f"{len(set(scores))} values"


def checked_labels(splits: dict[str, SplitSource], dataset: SentimentSet) -> None:
    """Raise InputError for the first label that the set does not have."""
    for split, source in splits.items():
        for name, label in zip(source.ids, source.labels, strict=True):
            where = f"{split}: clip {name!r}: label {str(label)[:40]!r}"
            if dataset.is_score:
                if isinstance(label, str) or not abs(label) <= dataset.bound + 1e-4:
                    raise InputError(f"{where}; scores of {dataset.name} lie in ±{dataset.bound:g}: is --set right?")
            elif label not in dataset.labels:
                raise InputError(f"{where}; {dataset.name} has {', '.join(dataset.labels)}")


def unique_ids(source: SplitSource) -> int:
    """Make the second of two equal ids `ID#2` and so on; returns how many there were."""
    counts: Counter[str] = Counter()
    for i, name in enumerate(source.ids):
        counts[name] += 1
        if counts[name] > 1:
            source.ids[i] = f"{name}#{counts[name]}"
    return sum(counts.values()) - len(counts)


def write_data(out: Path, splits: dict[str, SplitSource], dataset: SentimentSet, about: Row, notes: list[str]) -> Row:
    """Write `clips.jsonl`, `<split>/<modality>.npy` and `data.json` into a folder; returns data.json's content.

    Raises:
        InputError: Labels or features that the set or the splits do not allow.
    """
    checked_labels(splits, dataset)
    modalities = [m for m in MODALITIES if m in splits["train"].frames]
    report: Row = {"splits": {}, "columns": {}, "notes": notes}
    scales, rows, lengths = {}, [], {}
    texts: dict[str, set[str]] = {}
    for split, source in splits.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        facts: Row = {"clips": len(source.ids), "published": dataset.counts.get(split)}
        facts["duplicate_ids"] = unique_ids(source)
        for modality in modalities:
            frames, columns = source.frames[modality], ColumnFacts(source.frames[modality].dim)
            path = out / split / f"{modality}.npy"
            lengths[modality], sample = write_frames(path, frames, len(source.ids), columns)
            if split == "train":
                scales[modality] = scaling(sample)
            own = lengths[modality]
            report["columns"].setdefault(modality, {})[split] = columns.rows()
            facts[modality] = {
                "frames": columns.frames,
                "longest": max(own, default=0),
                "empty_clips": sum(length == 0 for length in own),
                "longer_than_stored": frames.longer,
                "not_finite": int((columns.nan + columns.above + columns.below).sum()),
                "constant": sum(row["constant"] for row in columns.rows()),
            }
        if dataset.is_score:
            facts["grid"] = grid([float(label) for label in source.labels])
        else:
            facts["labels"] = dict(Counter(str(label) for label in source.labels))
        report["splits"][split] = facts
        texts[split] = {text for text in source.transcripts if text}
        rows += [
            _row(source, i, split, dataset, {m: lengths[m][i] for m in modalities}) for i in range(len(source.ids))
        ]
    shared = {f"{a} and {b}": len(texts[a] & texts[b]) for a in texts for b in texts if a < b}
    report["texts_in_two_splits"] = shared
    write_jsonl(out / "clips.jsonl", rows)
    dims = {modality: splits["train"].frames[modality].dim for modality in modalities}
    data = {**about, "set": dataset.name, "dims": dims, "scaling": scales, "report": report}
    write_json(out / "data.json", json.loads(json.dumps(data)))
    return data


def _row(source: SplitSource, i: int, split: str, dataset: SentimentSet, lengths: dict[str, int]) -> Row:
    label = source.labels[i]
    row: Row = {"clip_id": source.ids[i], "split": split, "transcript": source.transcripts[i], "lengths": lengths}
    row["score" if dataset.is_score else "label"] = round(label, 6) if isinstance(label, float) else label
    if source.scores:
        row["scores"] = {modality: round(column[i], 6) for modality, column in source.scores.items()}
    return row | (source.rows[i] if source.rows else {})
