"""A data folder of `stages/features.py`: its clips, and their frames in padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, model_validator

from migr.errors import InputError
from migr.files.records import Row, iter_jsonl, read_object
from migr.files.shape import Count, Finite, check_shape
from migr.sentiment.sets import MODALITIES, SPLITS, SentimentSet, sentiment_set


class _Record(BaseModel):
    """data.json."""

    set: str
    dims: dict[str, Count]
    scaling: dict[str, dict[str, list[Finite]]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, dim in self.dims.items():
            if any(len(values) != dim for values in self.scaling.get(name, {"": []}).values()):
                raise ValueError(f"scaling of {name}: {dim} numbers are needed")
        return self


class _Clip(BaseModel):
    """A line of clips.jsonl, with a score or a label."""

    split: str
    lengths: dict[str, Count]
    transcript: str | None = None
    scores: dict[str, Finite] = {}
    score: Finite = 0.0
    label: str = ""


@dataclass(frozen=True)
class SentimentClip:
    """One clip.

    Attributes:
        clip_id: Unique within its split.
        transcript: What is said; empty where unknown.
        target: Its score, or the number of its class.
        scores: The score of single modalities (SIMS), by name.
        start: Modality -> place of its first frame among its split's.
        lengths: Modality -> how many frames; 0: the clip does not have it.
    """

    clip_id: str
    transcript: str
    target: float
    scores: dict[str, float]
    start: dict[str, int]
    lengths: dict[str, int]


class Split:
    """The clips of one split, and their frames, mapped from disk."""

    def __init__(self, folder: Path, name: str, clips: Sequence[SentimentClip], dims: dict[str, int]) -> None:
        self.name, self.clips = name, list(clips)
        self.frames: dict[str, NDArray[np.float32]] = {}
        for modality, dim in dims.items():
            path = folder / name / f"{modality}.npy"
            try:
                # a file without any frames cannot be mapped
                empty = not any(clip.lengths[modality] for clip in clips)
                array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{path}: not readable ({error}); run stages/features.py again") from None
            total = sum(clip.lengths[modality] for clip in clips)
            if array.shape != (total, dim) or array.dtype != np.float32:
                raise InputError(f"{path}: shape {array.shape}; clips.jsonl says {(total, dim)}")
            self.frames[modality] = array

    def __len__(self) -> int:
        return len(self.clips)

    def clip_frames(self, index: int, modality: str) -> NDArray[np.float32]:
        """The frames of one clip, (L, dim); NaN where a value was not finite."""
        clip = self.clips[index]
        return self.frames[modality][clip.start[modality] : clip.start[modality] + clip.lengths[modality]]


class SentimentData:
    """A data folder.

    Attributes:
        dataset: Its set.
        about: `data.json`.
        dims: Modality -> features a frame, of the modalities that are used.
        splits: Name -> `Split`.
    """

    def __init__(self, folder: str | Path, modalities: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.about: Row = read_object(self.folder / "data.json")
        check_shape(_Record, self.about, f"{self.folder / 'data.json'}: not written by stages/features.py")
        self.dataset = sentiment_set(self.about["set"])
        stored = self.about["dims"]
        if missing := [name for name in modalities or () if name not in stored]:
            raise InputError(f"{self.folder}: has no {missing[0]} features; it has {', '.join(stored) or 'none'}")
        self.dims = {
            name: int(stored[name]) for name in MODALITIES if name in (modalities or stored) and name in stored
        }
        clips = read_clips(self.folder, self.dataset)
        for clip in (clip for rows in clips.values() for clip in rows):
            if unknown := self.dims.keys() - clip.lengths.keys():
                raise InputError(f"{self.folder / 'clips.jsonl'}: clip {clip.clip_id!r}: no length of {min(unknown)}")
        self.splits = {name: Split(self.folder, name, clips[name], self.dims) for name in SPLITS}


def read_clips(folder: Path, dataset: SentimentSet) -> dict[str, list[SentimentClip]]:
    """The clips of a data folder by split.

    Raises:
        InputError: A line without its keys, or with a label that the set does not have; names file and clip.
    """
    clips: dict[str, list[SentimentClip]] = {name: [] for name in SPLITS}
    key = "score" if dataset.is_score else "label"
    ends: dict[str, dict[str, int]] = {name: {} for name in SPLITS}
    path = folder / "clips.jsonl"
    for row in iter_jsonl(path, ("clip_id", "split", "lengths", key)):
        where = f"{path}: clip {row['clip_id']!r}"
        check_shape(_Clip, row, where)
        if row["split"] not in clips:
            raise InputError(f"{where}: split {row['split']!r}; one of {', '.join(SPLITS)}")
        if not dataset.is_score and row["label"] not in dataset.labels:
            raise InputError(f"{where}: label {row['label']!r}; {dataset.name} has {', '.join(dataset.labels)}")
        end = ends[row["split"]]
        start = {name: end.get(name, 0) for name in row["lengths"]}
        end.update({name: start[name] + length for name, length in row["lengths"].items()})
        target = float(row["score"]) if dataset.is_score else dataset.labels.index(row["label"])
        clip = SentimentClip(
            row["clip_id"], row.get("transcript") or "", target, row.get("scores", {}), start, row["lengths"]
        )
        clips[row["split"]].append(clip)
    return clips
