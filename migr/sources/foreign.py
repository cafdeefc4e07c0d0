"""Files that other systems write, as rows: which format it is, and one dictionary a clip.

lines           `id|text` a line, as R1-Omni's and ERV's evaluations write; a text may go on over several lines
conversations   a JSON list of {"video": path, "conversations": [..., {"from": "gpt", "value": text}]}
json            {id: text}, {id: {...}}, a list of objects, or {"results": [objects]} (Video-R1)
csv             a header and a row a clip; comma, semicolon, tab or bar; also .xlsx
jsonl           an object a line: predictions.jsonl, results of LLaMA-Factory and ms-swift, other names for the keys
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from migr.errors import InputError
from migr.files.parsing import LARGEST, read_text
from migr.files.records import Row, iter_jsonl
from migr.sources.tables import MEDIA_ENDINGS, read_table

FORMATS = ("auto", "jsonl", "lines", "conversations", "json", "csv")
# Names under which others keep the same things, in order of preference.
ID_KEYS = ("clip_id", "id", "video_name", "video_id", "video", "clip", "name", "path", "file", "videos", "audios")
TEXT_KEYS = (
    *("response", "text", "output", "predict", "completion", "generated_text", "model_output", "reasoning"),
    *("explanation", "prediction"),
)
ANSWER_KEYS = ("answer", "prediction", "predicted", "pred")
LABEL_KEYS = ("label", "labels", "gt", "ground_truth", "solution", "emotion", "truth", "target")
_RESULTS = ("results", "predictions", "outputs", "data")  # in a JSON object of other things: the list of rows
_ID = re.compile(r"[\w./\\-]{1,300}")  # what may stand before the | of a line that begins a record
_HUMAN = ("human", "user", "system", "tool")


class Names(Protocol):
    """Whatever finds a clip under the names that others give it."""

    def of(self, name: str) -> str | None:
        """The clip's id, None if it is not known."""
        ...


def pick(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of these keys that is there and not empty."""
    return next((row[key] for key in keys if row.get(key) not in (None, "", [])), None)


def id_of(row: Mapping[str, Any], where: str) -> str | None:
    """What a row calls its clip, None if it does not say; media lists (`videos`) name it where they have one entry.

    Raises:
        InputError: The id is no text or number, or a list of several files.
    """
    value = pick(row, ID_KEYS)
    if isinstance(value, list):
        if len(value) != 1:
            raise InputError(f"{where}: {len(value)} media files, which of them is the clip? Add an id of its own")
        value = value[0]
    if isinstance(value, Mapping):
        value = pick(value, ID_KEYS)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{where}: the id must be a text or a number, not {value!r:.80}")
    return str(value)


def missing(where: str, what: str, row: Mapping[str, Any], keys: Sequence[str]) -> InputError:
    """The error of a row without id, text or label: the keys that it has, and those that would do."""
    return InputError(
        f"{where}: no {what}; its keys are {', '.join(map(str, row))[:200]}; the {what} may be called {', '.join(keys)}"
    )


def detect(path: Path, truth: bool = False) -> str:
    """The format of a file, told from its first 64 KiB; `truth`: it may be MAFW's `clip label` lines ("words").

    Raises:
        InputError: It is missing, no UTF-8 text, or of none of these formats.
    """
    if path.suffix.casefold() in (".xlsx", ".xlsm"):
        return "csv"
    try:
        with path.open("rb") as file:
            whole = path.stat().st_size <= 1 << 16
            head = file.read(1 << 16).decode("utf-8-sig", errors="strict" if whole else "ignore")
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
        return "jsonl" if isinstance(row, dict) and row.keys() & {*ID_KEYS, *TEXT_KEYS, "messages"} else "json"
    if any(_fits([name.strip().strip('"').casefold() for name in re.split(r"[,;\t|]", line)]) for line in _top(head)):
        return "csv"
    if "|" in first:
        return "lines"
    if truth and len(first.split()) == 2:
        return "words"
    raise InputError(
        f"{path}: the format cannot be told from its first line ({first[:60]!r}); --format is one of "
        f"{', '.join(FORMATS[1:])} (--help describes them)"
    )


def _top(head: str) -> list[str]:
    return head.splitlines()[:5]


def _fits(header: Sequence[str]) -> bool:
    """Whether these column names are those of predictions or of a truth table."""
    return bool({*ID_KEYS} & {*header}) and bool({*TEXT_KEYS, *LABEL_KEYS, *ANSWER_KEYS} & {*header})


def read_rows(path: Path, form: str, names: Names | None) -> Iterator[tuple[str, Row]]:
    """The rows of a file, and how messages name them.

    Args:
        path: The file.
        form: What `detect` says, or one of `FORMATS`.
        names: Tells which texts before a `|` are clips; None takes every one.

    Raises:
        InputError: The file is not of this format; names file and line.
    """
    if form == "jsonl":
        for number, row in enumerate(iter_jsonl(path), 1):
            yield f"{path}: row {number}", _unfolded(f"{path}: row {number}", row)
    elif form == "csv":
        need = f"an id ({', '.join(ID_KEYS[:4])}, …) and a text or a label"
        yield from ((f"{path}:{line}", row) for line, row in read_table(path, _fits, need))
    elif form == "lines":
        yield from _lines(path, names)
    elif form == "words":
        for number, line in enumerate(_open(path), 1):
            if line.strip():
                clip_id, _, label = line.strip().partition(" ")
                yield f"{path}:{number}", {"id": clip_id, "label": label.strip()}
    else:
        yield from _json(path, form)


def _lines(path: Path, names: Names | None) -> Iterator[tuple[str, Row]]:
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


def _json(path: Path, form: str) -> Iterator[tuple[str, Row]]:
    """Values of one JSON document, or of several behind each other (a resumed run of ERV appends a second list)."""
    text, decoder, begin = read_text(path, LARGEST), json.JSONDecoder(), 0
    number = 0
    while begin < len(text.rstrip()):
        try:
            value, begin = decoder.raw_decode(text, len(text) - len(text[begin:].lstrip()))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not valid JSON ({error})") from None
        if isinstance(value, dict):
            value = next((value[key] for key in _RESULTS if isinstance(value.get(key), list)), value)
        if not isinstance(value, dict | list):
            raise InputError(f"{path}: expected objects, found {value!r:.60}")
        pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        for key, item in pairs:
            number += 1
            where = f"{path}: record {number}"
            row = dict(item) if isinstance(item, dict) else {"text": item}
            if key is not None and id_of(row, where) is None:
                row["id"] = key
            if form == "conversations" and "conversations" not in row:
                raise InputError(f"{where}: no conversations in it")
            yield where, _unfolded(where, row)


def _unfolded(where: str, row: Row) -> Row:
    """A row with its model's last turn as `text`, where it comes as a conversation and not in a field of its own."""
    if "conversations" in row:
        turns = row.pop("conversations")
    elif isinstance(row.get("messages"), list) and pick(row, TEXT_KEYS) is None:
        turns = row.pop("messages")
    else:
        return row
    spoken = [
        turn.get("value", turn.get("content"))
        for turn in (turns if isinstance(turns, list) else ())
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) not in _HUMAN
    ]
    if not spoken:
        raise InputError(f"{where}: the conversation has no turn of the model")
    return {**row, "text": spoken[-1]}


def _open(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text ({error})") from None


def bare(name: str) -> str:
    """A file's name without its folders and media suffix."""
    last = PurePosixPath(name.strip().replace("\\", "/"))
    return last.stem if last.suffix[1:].casefold() in MEDIA_ENDINGS else last.name
