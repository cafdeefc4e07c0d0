"""Read predictions, judgements and importances into small integer codes, one row a clip; free of torch.

Texts are read one at a time and not kept, nor are the clips' names: of a clip 20 bytes stay, an 8-byte hash of its name
and six small integers. Where a clip has to be named (in an error, in a list) its row is read again from the file.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.figures.codes import MISSING, WITHOUT
from migr.clips.manifest import read_clips
from migr.errors import InputError
from migr.files.records import Row, iter_jsonl
from migr.sources.importance import checked_weights
from migr.text.claims import absent_evidence
from migr.text.format import MODALITIES, parse
from migr.text.labels import LabelSet, bare_word

PREDICTION_KEYS = ("clip_id", "label", "response")
NO_ANSWER = "(no answer)"
_LONGEST_WORD, _MOST_WORDS = 40, 10_000
JUDGEMENT_KEYS = ("clip_id", "judge", "emotion")


def _codes() -> "array[int]":
    return array("h")


def _hashes() -> "array[int]":
    return array("Q")


@dataclass
class Tally:
    """What `measure` needs of each clip, in the order of the predictions; MISSING where there is none."""

    clips: "array[int]" = field(default_factory=_hashes)  # 64-bit hashes of the clip ids
    labels: "array[int]" = field(default_factory=_codes)
    answers: "array[int]" = field(default_factory=_codes)
    first: "array[int]" = field(default_factory=_codes)
    judgements: "array[int]" = field(default_factory=_codes)
    hidden: "array[int]" = field(default_factory=_codes)  # judgements of right answers, emotion words hidden
    dominants: "array[int]" = field(default_factory=_codes)
    unread: Counter[str] = field(default_factory=Counter)  # answers that are no known label, in their own words
    absent_evidence: int | None = None  # reasonings with evidence from a modality that the clip lacks; None: unknown

    def __len__(self) -> int:
        return len(self.clips)

    def rows(self, clips: "array[int]") -> NDArray[np.int64]:
        """(m,) the row of each of these hashes, or MISSING where the tally has no such clip."""
        own, clip_ids = np.asarray(self.clips, np.uint64), np.asarray(clips, np.uint64)
        if not len(own) or not len(clip_ids):
            return np.full(len(clip_ids), MISSING, np.int64)
        order = np.argsort(own, kind="stable")
        place = order[np.searchsorted(own, clip_ids, sorter=order).clip(max=len(own) - 1)]
        return np.where(own[place] == clip_ids, place, MISSING)


@dataclass(frozen=True)
class Dominants:
    """The dominant modality of each clip of importance.jsonl, an index into `MODALITIES`."""

    clips: "array[int]"
    codes: "array[int]"


def read_lacking(clips: Path | None, importance: Path | None) -> dict[str, tuple[str, ...]] | None:
    """The modalities of the clips that lack video or sound, by clip id; None where no file tells.

    Args:
        clips: The manifest, which knows best.
        importance: importance.jsonl, whose weights name the modalities that are there.
    """
    if clips is not None:
        present = ((clip.clip_id, clip.modalities) for clip in read_clips(clips, must_exist=False))
    elif importance is not None:
        weights = ((row["clip_id"], row.get("importance")) for row in iter_jsonl(importance, ("clip_id",)))
        present = ((name, tuple(row)) for name, row in weights if isinstance(row, dict) and row)
    else:
        return None
    return {name: modalities for name, modalities in present if not {"video", "audio"} <= set(modalities)}


def read_predictions(path: Path, labels: LabelSet, lacking: Mapping[str, Collection[str]] | None = None) -> Tally:
    """Read predictions.jsonl; `answer` and `order` are derived from `response` where a row has none.

    Args:
        path: The file.
        labels: The label set.
        lacking: The modalities of the clips that lack video or sound (`read_lacking`).

    Raises:
        InputError: A key is missing, a clip comes twice, has no label or one outside the set; names file and clip.
    """
    tally = Tally(absent_evidence=None if lacking is None else 0)
    index = {label: i for i, label in enumerate(labels.labels)}
    for where, row in _rows(path, PREDICTION_KEYS, tally.clips):
        tally.labels.append(_label(where, "label", row["label"], labels, index))
        if not isinstance(row["response"], str):
            raise InputError(f"{where}: response must be text, not {type(row['response']).__name__}")
        response = None if row.get("answer") and row.get("order") else parse(row["response"])
        answer = row["answer"] if "answer" in row or response is None else response.label(labels)
        if answer is not None and not isinstance(answer, str):
            raise InputError(f"{where}: answer must be a label or null, not {answer!r}")
        known = labels.canonical(answer) if answer is not None else None
        tally.answers.append(index[known] if known is not None else MISSING)
        if known is None:
            _note(tally.unread, answer or " / ".join(response.answers[:3] if response else ()))
        order = row["order"] if "order" in row or response is None else list(response.order)
        if not isinstance(order, list) or any(modality not in MODALITIES for modality in order):
            raise InputError(f"{where}: order must be a list of {', '.join(MODALITIES)}, not {order!r}")
        tally.first.append(MODALITIES.index(order[0]) if order else MISSING)
        tally.judgements.append(MISSING if order or response is None or response.plain else WITHOUT)
        if lacking is not None and (present := lacking.get(row["clip_id"])) is not None:
            tally.absent_evidence = (tally.absent_evidence or 0) + bool(
                absent_evidence(response or parse(row["response"]), present)
            )
    if not len(tally):
        raise InputError(f"{path}: no predictions in it")
    _unique(path, tally.clips)
    tally.dominants.extend([MISSING] * len(tally))
    tally.hidden.extend([MISSING] * len(tally))
    return tally


def read_judgements(path: Path, labels: LabelSet, tally: Tally) -> str:
    """Read judgements.jsonl into the tally; returns the judge's name.

    Clips without a judgement stay MISSING, and those without reasoning WITHOUT, whatever a judge said of nothing.

    Raises:
        InputError: A clip that has no prediction or comes twice, an emotion outside the set, more than one judge.
    """
    index = {label: i for i, label in enumerate(labels.labels)}
    clips, codes, hidden = _hashes(), _codes(), _codes()
    judge = None
    for where, row in _rows(path, JUDGEMENT_KEYS, clips):
        judge = judge or row["judge"]
        if not isinstance(judge, str) or row["judge"] != judge:
            raise InputError(f"{where}: judge {row['judge']!r} beside {judge!r}: a file holds one judge's judgements")
        for key, emotions in (("emotion", codes), ("emotion_hidden", hidden)):
            emotions.append(_label(where, key, row[key], labels, index) if row.get(key) is not None else MISSING)
    rows = tally.rows(clips)
    if (rows == MISSING).any():
        name = clip_at(path, int(np.argmax(rows == MISSING)))
        raise InputError(f"{path}: clip {name!r}: judged, but not among the predictions: is this another run's file?")
    _unique(path, clips)
    column = np.frombuffer(tally.judgements, np.int16)
    column[rows] = np.where(column[rows] == WITHOUT, WITHOUT, codes)
    np.frombuffer(tally.hidden, np.int16)[rows] = hidden
    return judge or "no judgements"


def read_dominants(path: Path) -> Dominants:
    """The dominant modality of each clip, from importance.jsonl.

    Raises:
        InputError: A key is missing, a clip comes twice, a modality or weight is none; or there are no rows.
    """
    dominants = Dominants(_hashes(), _codes())
    for where, row in _rows(path, ("clip_id", "dominant"), dominants.clips):
        if row["dominant"] not in MODALITIES:
            raise InputError(f"{where}: dominant {row['dominant']!r} is none of {', '.join(MODALITIES)}")
        checked_weights(row.get("importance", {}), where)
        dominants.codes.append(MODALITIES.index(row["dominant"]))
    if not dominants.codes:
        raise InputError(f"{path}: no importances in it")
    _unique(path, dominants.clips)
    return dominants


def add_dominants(tally: Tally, dominants: Dominants) -> None:
    """Note each clip's dominant modality; importances of clips outside the predictions do not matter."""
    rows = tally.rows(dominants.clips)
    known = rows != MISSING
    column = np.frombuffer(tally.dominants, np.int16)
    column[:] = MISSING
    column[rows[known]] = np.asarray(dominants.codes)[known]


def clip_at(path: Path, row: int) -> str:
    """The clip id in a row of a file, counted from 0."""
    return next(islice(iter_jsonl(path), row, None))["clip_id"]


def _note(unread: Counter[str], answer: str) -> None:
    """Count an answer that is no known label; so many different ones are kept that memory stays small."""
    word = bare_word(answer)[:_LONGEST_WORD] or NO_ANSWER
    if word in unread or len(unread) < _MOST_WORDS:
        unread[word] += 1


def _rows(path: Path, keys: tuple[str, ...], clips: "array[int]") -> Iterator[tuple[str, Row]]:
    """Rows with how messages name them; the hash of each clip id is added to `clips`."""
    for row in iter_jsonl(path, keys):
        clip_id = row["clip_id"]
        where = f"{path}: clip {clip_id!r}"
        if not isinstance(clip_id, str) or not clip_id:
            raise InputError(f"{where}: clip_id must be a non-empty string")
        clips.append(clip_hash(clip_id))
        yield where, row


def clip_hash(clip_id: str) -> int:
    """64 bits: among a million clips, two share a hash once in 40 million files; `_unique` would say so."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _unique(path: Path, clips: "array[int]") -> None:
    hashes = np.asarray(clips, np.uint64)
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if len(again):
        one, two = (clip_at(path, int(order[i])) for i in (again[0], again[0] + 1))
        raise InputError(
            f"{path}: clip {two!r} " + ("stands there twice" if one == two else f"has the hash of {one!r}")
        )


def _label(where: str, key: str, value: Any, labels: LabelSet, index: dict[str, int]) -> int:
    label = labels.canonical(value) if isinstance(value, str) else None
    if label is None:
        known = ", ".join(labels.labels)
        raise InputError(f"{where}: {key} {value!r} is none of {known} ({labels.name}; --labels names the set)")
    return index[label]
