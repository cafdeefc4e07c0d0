"""Read what other systems write, and write it down as predictions.jsonl: convert, then count.

    lines           `id|text` a line, as R1-Omni's and ERV's evaluations write; a text may go on over several lines
    conversations   a JSON list of {"video": path, "conversations": [..., {"from": "gpt", "value": text}]}
    json            {id: text}, {id: {...}} or a list of objects
    csv             a header and a row a clip; comma, semicolon or tab
    jsonl           an object a line (predictions.jsonl itself, or other names for its keys)

The format is told from the content. Ids may be paths: folder and media suffix are dropped, and `00012` is `12` where a
truth table says so. Labels come from the row or from the truth table, which may have any of these formats, be a
clips.jsonl, or have `00025.mp4 happiness` lines (MAFW); DFEW's tables may name labels by their ids 1 to 7.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from migr.errors import InputError
from migr.files.records import Row, iter_jsonl, write_jsonl
from migr.text.labels import LabelSet

FORMATS = ("auto", "jsonl", "lines", "conversations", "json", "csv")
# Names under which others keep the same things, in order of preference.
ID_KEYS = ("clip_id", "id", "video_name", "video_id", "video", "clip", "name", "path", "file")
TEXT_KEYS = ("response", "text", "output", "completion", "generated_text", "reasoning", "explanation", "prediction")
ANSWER_KEYS = ("answer", "prediction", "predicted", "pred")
LABEL_KEYS = ("label", "gt", "ground_truth", "emotion", "truth", "target")
_MEDIA = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".wav", ".mp3", ".flac", ".m4a")
_ID = re.compile(r"[\w./\\-]{1,300}")  # what may stand before the | of a line that begins a record
_LONGEST_FIELD = 1 << 30


def needs_conversion(path: Path, form: str, truth: Path | None) -> bool:
    """Whether a file is anything else than a predictions.jsonl with labels of its own."""
    if form not in ("auto", "jsonl") or truth is not None or detect(path) != "jsonl":
        return True
    return not {"clip_id", "response"} <= set(next(iter_jsonl(path), {"clip_id": "", "response": ""}))


def convert(path: Path, out: Path, labels: LabelSet, form: str = "auto", truth: Path | None = None) -> Row:
    """Write predictions.jsonl from a file of any known format.

    Args:
        path: The file.
        out: predictions.jsonl.
        labels: The label set; the truth's labels are written canonically.
        form: One of `FORMATS`.
        truth: A table of labels, for files without; the clips that it has beyond the predictions are only counted.

    Returns:
        `format`, `n`, `n_wrapped` (texts without <think>, put into the tags) and, with a truth table, `n_without`, the
        number of its clips that have no prediction.

    Raises:
        InputError: An unknown format, a clip without a label or with two different ones; names file and clip.
    """
    form = detect(path) if form == "auto" else form
    table = read_truth(truth, labels) if truth is not None else {}
    names = _Names(table)
    facts: Row = {"format": form, "n": 0, "n_wrapped": 0}
    seen: set[str] = set()

    def rows() -> Iterator[Row]:
        for where, row in _records(path, form, names):
            found = _pick(row, ID_KEYS)
            if not isinstance(found, str | int) or isinstance(found, bool):
                raise InputError(f"{where}: no id; it may be called {', '.join(ID_KEYS)}")
            clip_id = names.of(str(found)) or _bare(str(found))
            where = f"{path}: clip {clip_id!r}"
            text, answer = _text(where, row)
            own = _pick(row, LABEL_KEYS)
            label = canonical(where, own, labels) if own is not None else None
            known = table.get(clip_id)
            if label is None and known is None:
                hint = f"it is not in {truth}" if truth else "--truth FILE names a table of labels"
                raise InputError(f"{where}: no label; {hint}")
            if label is not None and known not in (None, label):
                raise InputError(f"{where}: labelled {label} here and {known} in {truth}")
            response = _wrapped(text, answer)
            facts["n"] += 1
            facts["n_wrapped"] += response != text
            if table:
                seen.add(clip_id)
            yield {"clip_id": clip_id, "label": known or label, "response": response}

    write_jsonl(out, rows())
    return {**facts, **({"n_without": len(table.keys() - seen)} if table else {})}


def read_truth(path: Path, labels: LabelSet) -> dict[str, str]:
    """Clip id -> canonical label, from a table of any known format; rows whose label is null are left out.

    Raises:
        InputError: An unknown format or label, or a clip that has two labels.
    """
    table: dict[str, str] = {}
    form = detect(path, truth=True)
    for where, row in _records(path, form, None):
        found = _pick(row, ID_KEYS)
        if not isinstance(found, str | int):
            raise InputError(f"{where}: no id; it may be called {', '.join(ID_KEYS)}")
        clip_id = _bare(str(found)) if form != "jsonl" else str(found)
        value = _pick(row, (*LABEL_KEYS, *TEXT_KEYS))
        if value is None and "label" in row:
            continue
        label = canonical(f"{path}: clip {clip_id!r}", value, labels)
        if table.setdefault(clip_id, label) != label:
            raise InputError(f"{path}: clip {clip_id!r} has two labels, {table[clip_id]} and {label}")
    if not table:
        raise InputError(f"{path}: no labels in it")
    return table


def canonical(where: str, value: Any, labels: LabelSet) -> str:
    """A table's label in our words; `<answer>` around it does not matter, and DFEW's ids 1 to 7 are known.

    Raises:
        InputError: It is none of the label set's.
    """
    text = str(value).strip()
    inner = text.partition("<answer>")[2].partition("</answer>")[0] if "<answer>" in text else text
    if labels.name == "dfew" and inner.strip() in list("1234567"):
        return labels.labels[int(inner) - 1]
    label = labels.canonical(inner)
    if label is None:
        known = ", ".join(labels.labels)
        ids = "; numbers are read for dfew alone: name the labels" if inner.strip().isdigit() else ""
        raise InputError(f"{where}: label {text[:80]!r} is none of {known} ({labels.name}){ids}")
    return label


def detect(path: Path, truth: bool = False) -> str:
    """The format of a file, told from its first 64 KiB.

    Raises:
        InputError: It is missing, no UTF-8 text, or of none of these formats.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16).decode(
                "utf-8-sig", errors="strict" if path.stat().st_size <= 1 << 16 else "ignore"
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    first = next((line.strip() for line in head.splitlines() if line.strip()), "")
    if not first:
        return "jsonl"  # its reader says that it is empty
    if first[0] in "[{":
        try:
            row = json.loads(first)
        except (ValueError, RecursionError):  # the first line of an indented document, or a broken line
            return "jsonl" if path.suffix == ".jsonl" and first[0] == "{" else "json"
        return "jsonl" if isinstance(row, dict) and any(key in row for key in ID_KEYS) else "json"
    header = {name.strip().strip('"').casefold() for name in re.split(r"[,;\t]", first)}
    if header & set(ID_KEYS) and header & {*TEXT_KEYS, *LABEL_KEYS, *ANSWER_KEYS}:
        return "csv"
    if "|" in first:
        return "lines"
    if truth and len(first.split()) == 2:
        return "words"
    raise InputError(
        f"{path}: the format cannot be told from its first line ({first[:60]!r}); --format is one of "
        f"{', '.join(FORMATS[1:])} (--help describes them)"
    )


class _Names:
    """Find a clip of the truth table under the names that others give it."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.names: dict[str, str | None] = {}
        for clip_id in table:
            for name in {_bare(clip_id), _bare(clip_id).lstrip("0")}:
                self.names[name] = None if name in self.names else clip_id  # two clips share it: nobody's name
        self.names.update({clip_id: clip_id for clip_id in table})

    def of(self, name: str) -> str | None:
        name = name.strip()
        return next(
            (self.names[key] for key in (name, _bare(name), _bare(name).lstrip("0")) if key in self.names), None
        )


def _records(path: Path, form: str, names: _Names | None) -> Iterator[tuple[str, Row]]:
    """Objects of a file and how messages name them."""
    if form == "jsonl":
        for number, row in enumerate(iter_jsonl(path), 1):
            yield f"{path}: row {number}", row
    elif form == "csv":
        yield from _csv(path)
    elif form == "lines":
        yield from _lines(path, names)
    elif form == "words":
        for number, line in enumerate(_open(path), 1):
            if line.strip():
                clip_id, _, label = line.strip().partition(" ")
                yield f"{path}:{number}", {"id": clip_id, "label": label.strip()}
    else:
        yield from _json(path, form)


def _lines(path: Path, names: _Names | None) -> Iterator[tuple[str, Row]]:
    """`id|text` records; a line that does not begin with an id and a | belongs to the text before it."""
    clip_id, text, start = "", [""], 0
    for number, line in enumerate(_open(path), 1):
        prefix, bar, rest = line.rstrip("\r\n").partition("|")
        known = bool(bar) and (names is None or names.of(prefix) is not None)
        if known or (bar and _ID.fullmatch(prefix.strip())):
            if clip_id:
                yield f"{path}:{start}", {"id": clip_id, "text": "\n".join(text)}
            clip_id, text, start = prefix.strip(), [rest], number
        elif clip_id:
            text.append(line.rstrip("\r\n"))
        elif line.strip():
            raise InputError(f"{path}:{number}: expected id|text, found {line.strip()[:60]!r}")
    if clip_id:
        yield f"{path}:{start}", {"id": clip_id, "text": "\n".join(text)}


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        file.seek(0)
        try:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            reader.fieldnames = [name.strip().casefold() for name in reader.fieldnames or []]
            for row in reader:
                if None in row or None in row.values():
                    fault = "more" if None in row else "fewer"
                    raise InputError(f"{path}:{reader.line_num}: {fault} fields than the header's {len(row) - 1}")
                yield f"{path}:{reader.line_num}", {key: value for key, value in row.items() if value != ""}
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a CSV table ({error})") from None


def _json(path: Path, form: str) -> Iterator[tuple[str, Row]]:
    """Values of one JSON document, or of several behind each other (a resumed run of ERV appends a second list)."""
    text, decoder, begin = path.read_text(encoding="utf-8-sig"), json.JSONDecoder(), 0
    number = 0
    while begin < len(text.rstrip()):
        try:
            value, begin = decoder.raw_decode(text, len(text) - len(text[begin:].lstrip()))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not valid JSON ({error})") from None
        pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        for key, item in pairs:
            number += 1
            row = dict(item) if isinstance(item, dict) else {"text": item}
            if key is not None:
                row.setdefault("id", key)
            turns = row.pop("conversations", None)
            if turns is not None:
                row["text"] = _last_turn(f"{path}: record {number}", turns)
            elif form == "conversations":
                raise InputError(f"{path}: record {number}: no conversations in it")
            yield f"{path}: record {number}", row


def _last_turn(where: str, turns: Any) -> Any:
    """What the model said: the last turn that is not the human's."""
    said = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    texts = [
        t.get("value", t.get("content"))
        for t in said
        if t.get("from", t.get("role")) not in ("human", "user", "system")
    ]
    if not texts:
        raise InputError(f"{where}: the conversation has no turn of the model")
    return texts[-1]


def _open(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text ({error})") from None


def _pick(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _text(where: str, row: Mapping[str, Any]) -> tuple[str, str | None]:
    """The response, and the answer if it stands in a field of its own."""
    text = _pick(row, TEXT_KEYS)
    answer = next((row[k] for k in ANSWER_KEYS if row.get(k) is not None and row[k] is not text), None)
    if not isinstance(text, str) or not isinstance(answer, str | None):
        raise InputError(f"{where}: no text; it may be called {', '.join(TEXT_KEYS)}")
    if any("\ud800" <= character <= "\udfff" for character in text):  # half a character, which UTF-8 cannot hold
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text, answer


def _wrapped(text: str, answer: str | None) -> str:
    """The response in our format: what stands around the answer is the reasoning, unless <think> says so itself."""
    if answer is None and "<answer>" in text and "<think>" not in text:
        before, _, rest = text.partition("<answer>")
        inner, closed, after = rest.partition("</answer>")
        if closed and "<answer>" not in after:
            return f"<think>{before.strip()} {after.strip()}</think><answer>{inner}</answer>"
    if answer is None or "<answer>" in text:
        return text
    return (
        f"{text}<answer>{answer}</answer>" if "<think>" in text else f"<think>{text}</think><answer>{answer}</answer>"
    )


def _bare(name: str) -> str:
    """A file's name without its folders and media suffix."""
    last = PurePosixPath(name.strip().replace("\\", "/")).name
    return last[: -len(PurePosixPath(last).suffix)] if PurePosixPath(last).suffix.casefold() in _MEDIA else last
