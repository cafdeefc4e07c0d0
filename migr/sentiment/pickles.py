"""The pickles of the field, each as `SplitSource`s: MMSA's (and MMSA-FET's, SIMS's), MSE-Adapter's, MulT's."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from migr.errors import InputError
from migr.sentiment.opcodes import read_pickle, release
from migr.sentiment.sets import SPLITS, SentimentSet
from migr.sentiment.source import Frames, SplitSource, padded, trimmed
from migr.sentiment.stored import Array, Damaged

Splits = dict[str, SplitSource]
_COLUMNS = {"text": "text", "video": "vision", "audio": "audio"}
_OWN = {"text": "T", "video": "V", "audio": "A"}


def read_mmsa(path: Path, dataset: SentimentSet) -> tuple[Splits, list[str]]:
    """MMSA's `aligned_50.pkl`, `unaligned_50.pkl`, SIMS, SIMS-v2, and what MMSA-FET writes.

    Lengths: `*_lengths`; where they are missing (aligned files) the mask of `text_bert`, else the frames that are not
    all zeros.

    Returns:
        The splits, and what was passed over.

    Raises:
        InputError: Not this layout; names file, split and column.
    """
    table, keys, data = _table(path)
    mixed = "train_mix" in table
    passed_over = [f"{key} (no split)" for key in keys if key not in SPLITS and key != "train_mix"]
    passed_over += ["train_mix (clips without labels)"] if mixed else []
    splits = {}
    for split, columns in table.items():
        if split not in SPLITS:
            continue
        where = f"{path}: {split}"
        if "regression_labels" not in columns:
            mult = "; it looks like MulT's: --source mult" if "labels" in columns else ""
            raise InputError(f"{where}: no regression_labels{mult}")
        labels: list[float | str] = list(_floats(columns["regression_labels"], f"{where}: regression_labels"))
        count = len(labels)
        texts = _strings(columns["raw_text"], f"{where}: raw_text") if "raw_text" in columns else [None] * count
        ids = _strings(columns["id"], f"{where}: id") if "id" in columns else [f"{split}_{i}" for i in range(count)]
        mask = _mask(columns.get("text_bert"), f"{where}: text_bert")
        frames: dict[str, Frames] = {}
        for modality, column in _COLUMNS.items():
            if column not in columns:
                continue
            place = f"{where}: {column}"
            numbers = _numbers(columns[column], place)
            lengths = columns.get(f"{column}_lengths")
            own = None if lengths is None else [int(n) for n in _floats(lengths, f"{place}_lengths")]
            aligned = own is None and mask is not None and numbers.ndim == 3 and numbers.shape[1] == mask.shape[1]
            if aligned and mask is not None:
                own = [int(n) for n in mask.sum(1)]
            frames[modality] = padded(numbers, own, place, partial(release, data))
        scores = {
            modality: _floats(columns[f"regression_labels_{letter}"], f"{where}: regression_labels_{letter}")
            for modality, letter in _OWN.items()
            if f"regression_labels_{letter}" in columns
        }
        splits[split] = SplitSource(ids, labels, texts, frames, scores)
    return _whole(splits, path), passed_over


def read_mult(path: Path, dataset: SentimentSet) -> tuple[Splits, list[str]]:
    """MulT's `mosi_data.pkl`, `mosei_senti_data_noalign.pkl` and the like: GloVe text, no transcripts, no lengths."""
    table, keys, data = _table(path)
    splits = {}
    for split, columns in table.items():
        if split not in SPLITS:
            continue
        where = f"{path}: {split}"
        if "labels" not in columns:
            raise InputError(f"{where}: no labels; MMSA's layout is --source mmsa")
        numbers = _numbers(columns["labels"], f"{where}: labels")
        if numbers.size != len(numbers):
            raise InputError(f"{where}: labels of the shape {numbers.shape}; scores are read, not IEMOCAP's classes")
        frames = {
            modality: padded(_numbers(columns[c], f"{where}: {c}"), None, f"{where}: {c}", partial(release, data))
            for modality, c in _COLUMNS.items()
            if c in columns
        }
        ids = _mult_ids(columns.get("id"), len(numbers), split, where)
        labels: list[float | str] = [float(score) for score in numbers.reshape(-1)]
        splits[split] = SplitSource(ids, labels, [None] * len(ids), frames)
    return _whole(splits, path), [f"{key} (no split)" for key in keys if key not in SPLITS]


def read_mse(path: Path, dataset: SentimentSet) -> tuple[Splits, list[str]]:
    """MSE-Adapter's `<set>_train.pkl`, `_valid.pkl`, `_test.pkl`: lists of dicts. `path` is one of the three."""
    end = next((split for split in SPLITS if path.stem.endswith(f"_{split}")), None)
    if end is None:
        raise InputError(f"{path}: expected a name that ends in _train.pkl, _valid.pkl or _test.pkl")
    splits: Splits = {}
    for split in SPLITS:
        file = path.with_name(f"{path.stem.removesuffix(end)}{split}{path.suffix}")
        rows, data = read_pickle(file)
        if not isinstance(rows, list):
            raise InputError(f"{file}: expected a list of clips, found {type(rows).__name__}")
        splits[split] = _mse_split(rows, file, split, dataset, partial(release, data) if data is not None else None)
    return splits, []


def _mse_split(
    rows: list[Any], file: Path, split: str, dataset: SentimentSet, free: Callable[[], None] | None
) -> SplitSource:
    source = SplitSource([], [], [])
    names = {"video": ("video", "video_len"), "audio": ("audio", "audio_len")}
    lengths: dict[str, list[int | None]] = {modality: [] for modality in names}
    numbers: dict[str, list[Array]] = {modality: [] for modality in names}
    for i, row in enumerate(rows):
        where = f"{file}: clip {i}"
        features = row.get("features") if isinstance(row, dict) else None
        if not isinstance(features, dict) or "label" not in row:
            raise InputError(f"{where}: expected {{label, features: {{text, audio, video, …}}}}")
        source.ids.append(str(row.get("id", f"{split}_{i}")))
        source.transcripts.append(_text(features.get("text"), where))
        label = row["label"]
        source.labels.append(label if isinstance(label, str) else dataset.labels[_class(label, dataset, where)])
        for modality, (column, length) in names.items():
            if not isinstance(features.get(column), Array):
                raise InputError(f"{where}: no {column} features")
            numbers[modality].append(features[column])
            lengths[modality].append(features.get(length))
    for modality, arrays in numbers.items():
        shapes = {array.shape[1:] for array in arrays if len(array.shape) == 2}
        if len(shapes) != 1 or any(len(array.shape) != 2 for array in arrays):
            raise InputError(f"{file}: {modality} features of several shapes")
        own = lengths[modality]
        longer = sum(n is not None and n > array.shape[0] for n, array in zip(own, arrays, strict=True))

        def clip(i: int, arrays: list[Array] = arrays, own: list[int | None] = own) -> NDArray[Any]:
            frames = _numbers(arrays[i], f"{file}: clip {i}")
            return trimmed(frames) if own[i] is None else frames[: max(int(own[i] or 0), 0)]

        source.frames[modality] = Frames(shapes.pop()[0], clip, longer, free or (lambda: None))
    return source


def _class(label: Any, dataset: SentimentSet, where: str) -> int:
    if type(label) is not int or not 0 <= label < len(dataset.labels):
        raise InputError(f"{where}: label {str(label)[:40]!r}; {dataset.name} has {len(dataset.labels)} classes")
    return label


def _table(path: Path) -> tuple[dict[str, dict[str, Any]], list[str], Any]:
    """The splits of a file, the names of everything at its top, and the mapped file."""
    content, data = read_pickle(path)
    if not isinstance(content, dict):
        hint = "; UniMSE's and MSE-Adapter's are lists (--source mse reads the latter's)"
        raise InputError(f"{path}: expected train, valid and test, found {type(content).__name__}{hint}")
    names = {"dev": "valid"}
    table = {names.get(str(key), str(key)): value for key, value in content.items()}
    splits = {key: value for key, value in table.items() if key in (*SPLITS, "train_mix") and isinstance(value, dict)}
    if missing := [split for split in SPLITS if split not in splits]:
        raise InputError(f"{path}: no split {missing[0]!r}; it has {', '.join(list(table)[:8]) or 'nothing'}")
    return splits, list(table), data


def _whole(splits: Splits, path: Path) -> Splits:
    """The splits, if all of their columns are as long as their labels, and the same features are in all of them."""
    for split, source in splits.items():
        rows = {"id": len(source.ids), "raw_text": len(source.transcripts)}
        rows |= {name: len(column) for name, column in source.scores.items()}
        for name, count in rows.items():
            if count != len(source.labels):
                raise InputError(f"{path}: {split}: {name} has {count} rows, the labels {len(source.labels)}")
        dims = {modality: frames.dim for modality, frames in source.frames.items()}
        first = {modality: frames.dim for modality, frames in splits["train"].frames.items()}
        if dims != first:
            raise InputError(f"{path}: {split} has features {dims}, train has {first}")
    return splits


def _array(column: Array, where: str) -> NDArray[Any]:
    """A stored array; its errors name the place."""
    try:
        return column.numbers()
    except Damaged as error:
        raise InputError(f"{where}: {error}") from None


def _numbers(column: Any, where: str) -> NDArray[Any]:
    """A column as an array of numbers."""
    if isinstance(column, Array) and column.objects() is None:
        numbers = _array(column, where)
        if numbers.dtype.kind in "fiub":
            return numbers
    raise InputError(f"{where}: expected an array of numbers")


def _floats(column: Any, where: str) -> list[float]:
    """A column of one number a clip."""
    values = column
    if isinstance(column, Array):
        values = column.objects() if column.objects() is not None else _numbers(column, where).reshape(-1).tolist()
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise InputError(f"{where}: expected one number a clip")
    return [float(value) for value in values]


def _strings(column: Any, where: str) -> list[Any]:
    """A column of one string a clip."""
    values = column
    if isinstance(column, Array):
        objects = column.objects()
        values = _array(column, where).reshape(-1).tolist() if objects is None else objects
    if not isinstance(values, list):
        raise InputError(f"{where}: expected one string a clip")
    return [_text(value, f"{where}: clip {i}") for i, value in enumerate(values)]


def _text(value: Any, where: str) -> str:
    """A string; Python 2's come as bytes."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str | int):
        raise InputError(f"{where}: expected a text, found {type(value).__name__}")
    return str(value)


def _mask(column: Any, where: str) -> NDArray[Any] | None:
    """The mask (N, L) of `text_bert`, which is (N, 3, L) or, from the first DataPre, (N, L, 3)."""
    if column is None:
        return None
    numbers = _numbers(column, where)
    if numbers.ndim != 3 or 3 not in numbers.shape[1:]:
        raise InputError(f"{where}: shape {numbers.shape}; expected (N, 3, L) or (N, L, 3)")
    rows = numbers[:, 1] if numbers.shape[1] == 3 else None
    if rows is None or (numbers.shape[2] == 3 and not np.isin(rows, (0, 1)).all()):
        rows = numbers[..., 1]
    if not np.isin(rows, (0, 1)).all():
        raise InputError(f"{where}: its second row is no mask of 0 and 1")
    return rows


def _mult_ids(column: Any, count: int, split: str, where: str) -> list[str]:
    """Ids from rows of (video, start, end), or row numbers where there are none."""
    if not isinstance(column, Array):
        return [f"{split}_{i}" for i in range(count)]
    objects = column.objects()
    cells = _array(column, where).reshape(-1).tolist() if objects is None else objects
    if len(cells) % max(count, 1):
        raise InputError(f"{where}: {len(cells)} ids for {count} clips")
    width = len(cells) // max(count, 1)
    texts = [_text(cell, where) if not isinstance(cell, float) else f"{cell:g}" for cell in cells]
    return ["$_$".join(texts[i * width : (i + 1) * width]) for i in range(count)]
