"""What other systems write becomes predictions.jsonl: convert, then count (`migr.sources.foreign` has the formats).

Ids may be paths: folder and media suffix are dropped, and `00012` is `12` where a truth table says so. Rows without an
id are paired by order, if that is asked for. Labels come from the row or from the truth table, which may have any of
the formats, be a clips.jsonl, or have `00025.mp4 happiness` lines (MAFW); DFEW's tables may name labels by their ids
1 to 7.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.files.records import Row, iter_jsonl, write_jsonl
from migr.sources.foreign import (
    ANSWER_KEYS,
    ID_KEYS,
    LABEL_KEYS,
    TEXT_KEYS,
    bare,
    detect,
    id_of,
    missing,
    pick,
    read_rows,
)
from migr.sources.tables import names_of
from migr.text.format import block, parse, tags
from migr.text.labels import LabelSet


@dataclass(frozen=True)
class Reading:
    """How a file of predictions is read.

    Attributes:
        format: One of `migr.sources.foreign.FORMATS`.
        truth: A table of labels, for files without.
        split: Of a truth table that has splits, the one that `by_order` pairs with.
        by_order: The rows name no clips: the first row is the truth table's first clip, and so on; without a table
            they are numbered from 1.
        count_missing: A clip of the truth table without a prediction counts as one that answered nothing.
    """

    format: str = "auto"
    truth: Path | None = None
    split: str = "test"
    by_order: bool = False
    count_missing: bool = False

    def needed(self, path: Path) -> bool:
        """Whether a file is anything else than a predictions.jsonl with labels of its own."""
        if self.format not in ("auto", "jsonl") or self.truth or self.by_order or detect(path) != "jsonl":
            return True
        return not {"clip_id", "response"} <= set(next(iter_jsonl(path), {"clip_id": "", "response": ""}))


AS_IT_IS = Reading()


@dataclass
class Truth:
    """Labels of clips in the table's order, the split of those that have one, and whether labels were DFEW's ids."""

    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    numbered: bool = False

    def missing(self, ids: set[str]) -> list[str]:
        """The clips that are not among `seen`; of a table with splits, those of the splits that were seen."""
        splits = {self.splits.get(clip_id) for clip_id in ids}
        return [clip_id for clip_id in self.labels if clip_id not in ids and self.splits.get(clip_id) in splits]

    def in_order(self, split: str) -> list[str]:
        """The clips to pair with rows that name none."""
        ids = [clip_id for clip_id in self.labels if self.splits.get(clip_id) == split]
        return ids if self.splits else list(self.labels)


def convert(path: Path, out: Path, labels: LabelSet, reading: Reading = AS_IT_IS) -> Row:
    """Write predictions.jsonl from a file of any known format.

    Args:
        path: The file.
        out: predictions.jsonl; a clip that counts as missing has an empty response and `missing: true`.
        labels: The label set; the truth's labels are written canonically.
        reading: How it is read.

    Returns:
        `format`, `n`, `n_wrapped` (texts without <think>, put into the tags), `numbered` (labels came as DFEW's ids)
        and, with a truth table, `n_without`, the number of its clips that have no prediction.

    Raises:
        InputError: An unknown format, a row without an id or text, a clip without a label or with two different ones,
            rows that do not fit the table's order; names file and clip.
    """
    form = detect(path) if reading.format == "auto" else reading.format
    truth = read_truth(reading.truth, labels) if reading.truth is not None else Truth()
    names = _Names(truth.labels)
    order = truth.in_order(reading.split) if reading.by_order else []
    facts: Row = {"format": form, "n": 0, "n_wrapped": 0, "numbered": truth.numbered}
    ids: set[str] = set()

    def rows() -> Iterator[Row]:
        for number, (where, row) in enumerate(read_rows(path, form, names)):
            if not reading.by_order:
                name = id_of(row, where)
                if name is None:
                    raise _nameless(where, row)
                clip_id = names.of(name) or bare(name)
            elif reading.truth is None:
                clip_id = str(number + 1)
            elif number < len(order):
                clip_id = order[number]
            else:
                raise InputError(
                    f"{path}: more rows than the {len(order)} clips of {reading.truth}: no order pairs them"
                )
            where = f"{path}: clip {clip_id!r}"
            text, answer = _text(where, row)
            own = pick(row, LABEL_KEYS)
            label = canonical(where, own, labels) if own is not None else None
            facts["numbered"] |= own is not None and is_number(own, labels)
            known = truth.labels.get(clip_id)
            if label is None and known is None:
                hint = f"it is not in {reading.truth}" if reading.truth else "--truth FILE names a table of labels"
                raise InputError(f"{where}: no label; {hint}; in the rows it may be called {', '.join(LABEL_KEYS)}")
            if label is not None and known not in (None, label):
                note = "; is the order of the two files the same?" if reading.by_order else ""
                raise InputError(f"{where}: labelled {label} here and {known} in {reading.truth}{note}")
            response = _wrapped(text, answer)
            facts["n"] += 1
            facts["n_wrapped"] += response != text
            ids.add(clip_id)
            yield {"clip_id": clip_id, "label": known or label, "response": response}
        if not facts["n"]:
            raise InputError(f"{path}: no predictions in it")
        if reading.by_order and reading.truth is not None and facts["n"] < len(order):
            raise InputError(
                f"{path}: {facts['n']} rows, and {reading.truth} has {len(order)} clips: pairing by order needs as many"
            )
        if reading.count_missing:
            for clip_id in truth.missing(ids):
                yield {"clip_id": clip_id, "label": truth.labels[clip_id], "response": "", "missing": True}

    write_jsonl(out, rows())
    return {**facts, **({"n_without": len(truth.missing(ids))} if truth.labels else {})}


def _nameless(where: str, row: Row) -> InputError:
    error = missing(where, "id", row, ID_KEYS)
    return InputError(f"{error}; if the rows have the order of --truth FILE, say --by_order")


def read_truth(path: Path, labels: LabelSet) -> Truth:
    """The label of each clip of a table of any known format; rows whose label is null are left out.

    Raises:
        InputError: An unknown format or label, or a clip that has two labels.
    """
    truth = Truth()
    form = detect(path, truth=True)
    for where, row in read_rows(path, form, None):
        name = id_of(row, where)
        if name is None:
            raise missing(where, "id", row, ID_KEYS)
        clip_id = bare(name) if form != "jsonl" else name
        value = pick(row, (*LABEL_KEYS, *TEXT_KEYS))
        if value is None and "label" in row:
            continue
        if value is None:
            raise missing(where, "label", row, LABEL_KEYS)
        label = canonical(f"{path}: clip {clip_id!r}", value, labels)
        truth.numbered |= is_number(value, labels)
        if truth.labels.setdefault(clip_id, label) != label:
            raise InputError(f"{path}: clip {clip_id!r} has two labels, {truth.labels[clip_id]} and {label}")
        if isinstance(row.get("split"), str):
            truth.splits[clip_id] = row["split"]
    if not truth.labels:
        raise InputError(f"{path}: no labels in it")
    return truth


def canonical(where: str, value: Any, labels: LabelSet) -> str:
    """A table's label in our words; `<answer>` around it does not matter, and DFEW's ids 1 to 7 are known.

    Raises:
        InputError: It is none of the label set's.
    """
    text = str(value).strip()
    inner = parse(text).answer or text
    if is_number(inner, labels):
        return labels.labels[int(inner) - 1]
    label = labels.canonical(inner)
    if label is None:
        known = ", ".join(labels.labels)
        ids = "; numbers are read for dfew alone: name the labels" if inner.strip().isdigit() else ""
        raise InputError(f"{where}: label {text[:80]!r} is none of {known} ({labels.name}){ids}")
    return label


def is_number(value: Any, labels: LabelSet) -> bool:
    """Whether a label is one of DFEW's ids 1 to 7. Ids that are counted from 0 look the same but for the 0."""
    return labels.name == "dfew" and str(value).strip() in list("1234567")


class _Names:
    """Find a clip of the truth table under the names that others give it."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.names: dict[str, str | None] = {}
        for clip_id in table:
            for name in names_of(clip_id):
                self.names[name] = None if name in self.names else clip_id  # two clips share it: nobody's name
        self.names.update({clip_id: clip_id for clip_id in table})

    def of(self, name: str) -> str | None:
        """The clip's id, None if no clip, or more than one, has this name."""
        return next((self.names[key] for key in names_of(name) if key in self.names), None)


def _text(where: str, row: Row) -> tuple[str, str | None]:
    """The response, and the answer if it stands in a field of its own."""
    text = pick(row, TEXT_KEYS)
    answer = next((row[k] for k in ANSWER_KEYS if row.get(k) not in (None, "") and row[k] is not text), None)
    if not isinstance(text, str) or not isinstance(answer, str | None):
        if any(row.get(key) == "" for key in TEXT_KEYS) and text is None:
            return "", answer  # it answered nothing
        raise missing(where, "text", row, TEXT_KEYS)
    if any("\ud800" <= character <= "\udfff" for character in text):  # half a character, which UTF-8 cannot hold
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text, answer


def _wrapped(text: str, answer: str | None) -> str:
    """The response with an answer from a field of its own in our format, unless it names one itself."""
    if answer is None or tags("answer")[0] in text:
        return text
    thoughts = text if any(tag in text for tag in tags("think")) else block("think", text)
    return thoughts + block("answer", answer)
