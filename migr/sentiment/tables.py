"""MELD's and CHERMA's tables, with features of one .npy file a clip where there are any."""

import csv
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from migr.errors import InputError
from migr.files.records import read_json
from migr.sentiment.sets import MODALITIES, SPLITS, SentimentSet
from migr.sentiment.source import Frames, SplitSource, trimmed

_FOLDERS = {"text": "text", "video": "visual", "audio": "audio"}  # as CHERMA's loader (sunjunaimer/LFMIM) names them
_MELD = {"train": "train_sent_emo.csv", "valid": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
_MELD_NEED = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime")
# Ten public projects leave out exactly these two: no moov atom, and no file at all.
BROKEN = {("train", "dia125_utt3"): "its mp4 has no moov atom", ("valid", "dia110_utt7"): "its mp4 does not exist"}
_TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
_CHERMA_NEED = ("audio_file", "video_file", "video_label")


def read_meld(folder: Path, dataset: SentimentSet, features: Path | None) -> tuple[dict[str, SplitSource], list[str]]:
    """MELD's three CSV files, in their present encoding or the former one.

    Files before November 2020, and those inside `MELD.Raw.tar.gz`, hold cp1252's characters as control characters
    (U+0092 for an apostrophe); those are put right and counted. The same clip names come in all splits, so the split is
    part of the id. The two clips whose media are broken are kept: their transcripts are whole.
    """
    splits, notes, mended = {}, [], 0
    for split, name in _MELD.items():
        path = folder / name
        source = SplitSource([], [], [])
        stems = []
        for number, row in _csv_rows(path):
            stem = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
            text, count = mend(row["Utterance"])
            speaker, more = mend(row["Speaker"])
            mended += bool(count or more)
            emotion = row["Emotion"].strip().casefold()
            if emotion not in dataset.labels:
                raise InputError(
                    f"{path}:{number}: Emotion {row['Emotion'][:40]!r}; one of {', '.join(dataset.labels)}"
                )
            start, end = (_seconds(row[key], f"{path}:{number}: {key}") for key in ("StartTime", "EndTime"))
            stems.append(stem)
            source.ids.append(f"{split}/{stem}")
            source.labels.append(emotion)
            source.transcripts.append(text)
            source.rows.append({"speaker": speaker, "sentiment": row["Sentiment"], "duration": round(end - start, 3)})
            if why := BROKEN.get((split, stem)):
                notes.append(f"{split}/{stem}: {why}; its transcript is used")
            if not 0 < end - start <= 60:
                notes.append(f"{split}/{stem}: {end - start:.1f} s by its times")
        if features is not None:
            source.frames = npy_frames(features, split if split != "valid" else "dev", stems, {"video": ""})
        splits[split] = source
    if mended:
        notes.append(f"{mended} rows had cp1252's characters as control characters; they were put right")
    return splits, notes


def read_cherma(folder: Path, dataset: SentimentSet, features: Path | None) -> tuple[dict[str, SplitSource], list[str]]:
    """CHERMA's `train.json`, `dev.json`, `test.json`; the label is `video_label`, transcripts where `text` is given."""
    splits: dict[str, SplitSource] = {}
    for split in SPLITS:
        path = folder / f"{'dev' if split == 'valid' else split}.json"
        rows = read_json(path)
        if not isinstance(rows, list):
            raise InputError(f"{path}: expected a list of clips, found {type(rows).__name__}")
        source, stems = SplitSource([], [], []), []
        for i, row in enumerate(rows):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in _CHERMA_NEED):
                raise InputError(f"{path}: clip {i}: expected {', '.join(_CHERMA_NEED)}")
            stem = Path(row["audio_file"]).stem
            if row["video_label"] not in dataset.labels:
                known = ", ".join(dataset.labels)
                raise InputError(f"{path}: clip {stem!r}: video_label {row['video_label'][:20]!r}; one of {known}")
            stems.append(stem)
            source.ids.append(f"{split}/{stem}")
            source.labels.append(row["video_label"])
            source.transcripts.append(row.get("text"))
            own = {modality: row.get(f"{key}_label") for modality, key in _OWN.items()}
            source.rows.append({"labels": {modality: label for modality, label in own.items() if label}})
        if features is not None:
            source.frames = npy_frames(features, "dev" if split == "valid" else split, stems, {"video": ".mp4"})
        splits[split] = source
    return splits, []


_OWN = {"text": "txt", "video": "visual", "audio": "audio"}


def mend(text: str) -> tuple[str, int]:
    """Text whose characters U+0080 to U+009F are read as cp1252's, and how many there were."""
    count = sum("\x80" <= c <= "\x9f" for c in text)
    if not count:
        return text, 0
    return "".join(c.encode("latin-1").decode("cp1252", "replace") if "\x80" <= c <= "\x9f" else c for c in text), count


def npy_frames(root: Path, split: str, stems: list[str], ends: dict[str, str]) -> dict[str, Frames]:
    """Features of one file a clip, `ROOT/{text,audio,visual}/SPLIT/STEM.npy`, for the folders that are there.

    Raises:
        InputError: No such folder, or a first clip of another shape than (L, D); a missing file is named when reached.
    """
    frames = {}
    for modality in MODALITIES:
        folder = root / _FOLDERS[modality] / split
        if not folder.is_dir() or not stems:
            continue
        paths = [folder / f"{stem}{ends.get(modality, '')}.npy" for stem in stems]
        first = next((path for path in paths if path.is_file()), None)
        if first is None:
            raise InputError(f"{folder}: none of the {len(stems)} clips has a file there, {paths[0].name} for example")
        frames[modality] = Frames(_load(first).shape[1], partial(_clip, paths, _load(first).shape[1]))
    if not frames:
        raise InputError(f"--features {root}: expected {', '.join(_FOLDERS.values())}, each with {split}/<clip>.npy")
    return frames


def _clip(paths: list[Path], dim: int, i: int) -> NDArray[Any]:
    if not paths[i].is_file():
        return np.empty((0, dim), np.float32)  # counted as an empty clip
    frames = _load(paths[i])
    if frames.shape[1] != dim:
        raise InputError(f"{paths[i]}: {frames.shape[1]} features a frame, the first clip has {dim}")
    return trimmed(frames)


def _load(path: Path) -> NDArray[Any]:
    try:
        frames = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: no array that numpy reads without pickle ({error})") from None
    if frames.ndim == 1:
        frames = frames[None]
    if frames.ndim != 2 or frames.dtype.kind not in "fiu":
        raise InputError(f"{path}: shape {frames.shape}, type {frames.dtype}; expected frames x features")
    return frames


def _csv_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in _MELD_NEED if name not in (reader.fieldnames or ())]:
                raise InputError(f"{path}: no column {missing[0]!r}; expected MELD's {path.name}")
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; --file is the folder with {', '.join(_MELD.values())}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 CSV ({error})") from None
    for number, row in rows:
        if any(row[name] is None for name in _MELD_NEED):
            raise InputError(f"{path}:{number}: too few columns")
    return rows


def _seconds(text: str, where: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise InputError(f"{where}: {text[:20]!r}; expected HH:MM:SS,mmm")
    hours, minutes, seconds, rest = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(rest.ljust(3, "0")) / 1000
