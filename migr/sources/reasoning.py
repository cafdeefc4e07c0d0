"""Reasoning that others wrote, read into rows of reasoning.jsonl: conversations, captions, plain tables.

A row names its clip as its source does (a path, a file name, a number); `match` finds the clips that are meant.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from migr.clips.manifest import Clip
from migr.errors import InputError
from migr.files.records import Row, iter_jsonl, numbered_jsonl, read_json
from migr.sources.tables import MEDIA_ENDINGS, check_name, names_of, read_table
from migr.text.format import MODALITIES, block, parse, tags

# column names, in the order in which they are looked for
_IDS = ("clip_id", "name", "clip", "video", "file", "filename", "file_name", "video_name", "id", "path")
_CAPTIONS = ("english", "caption", "description", "descriptive_text", "text", "en")
_FREE = ("text", "reasoning", "english", "reason", "explanation")
_COLUMNS = {"video": "video", "audio": "audio", "text": "transcript"}  # modality -> column
_SHOWN = 5  # names in a message


def read_reasoning(path: str | Path, form: str = "auto") -> list[Row]:
    """Read one file of reasoning.

    Args:
        path: JSON, JSONL, CSV, TSV, XLSX or TXT.
        form: One of FORMATS; "auto" goes by the file's ending and its first entry, and never guesses captions.

    Returns:
        Rows with `clip_id` (as the file names it), either `segments` {modality: text} (with a `conclusion`, if there
        is one) or `text`, and `answer` where the file has one. Other keys of JSONL rows are kept.

    Raises:
        InputError: The file is not of the format, or an entry lacks something; names file and line or entry.
    """
    path = Path(path)
    if form not in FORMATS:
        raise InputError(f"--reasoning_format {form!r} is not one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix.casefold() == ".xls":
        raise InputError(f"{path}: an old spreadsheet; save it as .xlsx, CSV or TSV (UTF-8) first")
    if form == "auto":
        kinds = {".csv": "table", ".tsv": "table", ".xlsx": "table", ".txt": "table", ".json": "conversations"}
        form = kinds.get(path.suffix.casefold(), "segments")
        if form == "segments" and "conversations" in next(iter_jsonl(path), {}):
            form = "conversations"
    rows = list(_READERS[form](path))
    if not rows:
        raise InputError(f"{path}: no reasoning in it")
    return rows


def _rows(path: Path) -> Iterator[Row]:
    """Our own format: `clip_id` and `segments` or `text`."""
    for number, row in numbered_jsonl(path):
        if "clip_id" not in row or not ("segments" in row or "text" in row):
            missing = "'clip_id'" if "clip_id" not in row else "'segments' or 'text'"
            raise InputError(f"{path}:{number}: missing {missing}")
        yield row


def _conversations(path: Path) -> Iterator[Row]:
    """LLaVA style: `video` and `conversations`, the last answer with `<think>` and `<answer>` (EMER, R1-Omni, ERV)."""
    entries = read_json(path) if path.suffix.casefold() == ".json" else list(iter_jsonl(path))
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of entries with 'conversations', found {type(entries).__name__}")
    for number, entry in enumerate(entries, 1):
        where = f"{path}: entry {number}"
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list):
            raise InputError(f"{where}: no list 'conversations'")
        name = next((entry[key] for key in ("clip_id", "video", "audio", "id", "path") if entry.get(key)), None)
        if not isinstance(name, str | int):
            raise InputError(f"{where}: names no clip ('video', 'audio' or 'id'), found {name!r}")
        contents = [
            str(turn.get("value", turn.get("content", "")))
            for turn in turns
            if isinstance(turn, dict) and turn.get("from", turn.get("role")) in ("gpt", "assistant")
        ]
        reasoned = [text for text in contents if tags("think")[0] in text]
        if not reasoned:
            raise InputError(f"{where} ({name}): no answer with {block('think', '…')}; is this a file of bare labels?")
        response = parse(reasoned[-1])
        if response.reasoning is None or not response.think or tags("think")[1] not in reasoned[-1]:
            raise InputError(f"{where} ({name}): the think block is empty or not closed")
        row: Row = {"clip_id": str(name)}
        if response.reasoning.segments:
            if response.error:
                raise InputError(f"{where} ({name}): {response.error}")
            row |= {"segments": dict(response.reasoning.segments), "conclusion": response.reasoning.conclusion}
        else:
            row["text"] = response.think
        yield row | ({"answer": response.answer} if response.answer else {})


def _captions(path: Path) -> Iterator[Row]:
    """Captions of what is seen (MAFW): a table with a header, or lines of a clip and its caption."""
    if path.suffix.casefold() == ".txt":
        for number, line in _lines(path):
            name, _, caption = line.strip().partition("\t") if "\t" in line else line.strip().partition(" ")
            if not caption.strip():
                raise InputError(f"{path}:{number}: expected a clip, a tab or space, and its caption: {line.strip()!r}")
            yield {"clip_id": name, "segments": {"video": caption.strip()}, "by": "caption"}
        return
    for number, row in _table_rows(path, _CAPTIONS):
        clip, text = _one_of(row, _IDS), _one_of(row, _CAPTIONS)
        if clip is None or text is None:
            need = f"a clip ({', '.join(_IDS)})" if clip is None else f"a caption ({', '.join(_CAPTIONS)})"
            raise InputError(f"{path}:{number}: no column for {need}, or it is empty; columns: {', '.join(row)}")
        yield {"clip_id": clip, "segments": {"video": text}, "by": "caption"}


def _table(path: Path) -> Iterator[Row]:
    """A plain table: a clip, and either columns `video`, `audio`, `transcript` (and `conclusion`) or one free text."""
    texts = (*_COLUMNS.values(), *_FREE)
    entries = numbered_jsonl(path) if path.suffix.casefold() == ".jsonl" else _table_rows(path, texts)
    for number, row in entries:
        name, video = _one_of(row, [key for key in _IDS if key != "video"]), _one_of(row, ["video"])
        if name is None and video is not None and video.casefold().endswith(MEDIA_ENDINGS):  # a file, no description
            name, row = video, {key: value for key, value in row.items() if str(key).strip().casefold() != "video"}
        if name is None:
            raise InputError(f"{path}:{number}: no clip ({', '.join(_IDS)}); columns: {', '.join(row)}")
        segments = {modality: text for modality, key in _COLUMNS.items() if (text := _one_of(row, [key]))}
        free = _one_of(row, _FREE)
        entry: Row = {"clip_id": name}
        if segments:
            entry |= {"segments": segments, "conclusion": _one_of(row, ["conclusion"]) or ""}
        elif free:
            entry["text"] = free
        else:
            raise InputError(
                f"{path}:{number}: clip {name}: no text; it needs a column of {', '.join(_COLUMNS.values())} or one of "
                f"{', '.join(_FREE)}; columns: {', '.join(row)}"
            )
        answer = _one_of(row, ["answer", "emotion", "label"])
        yield entry | ({"answer": answer} if answer else {})


def _one_of(row: Row, keys: Iterable[str]) -> str | None:
    """The first of these columns that holds something, as text; the case of column names does not matter."""
    named = {str(key).strip().casefold(): value for key, value in row.items()}
    return next((text for key in keys if (text := str(named.get(key) or "").strip())), None)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None


def _table_rows(path: Path, texts: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Rows of a table with a column for the clip and another one for a text."""

    def fits(names: Sequence[str]) -> bool:
        return any(clip in names and not set(names).isdisjoint({*texts} - {clip}) for clip in _IDS)

    need = f"a column for the clip ({', '.join(_IDS)}) and one for a text ({', '.join(texts)})"
    for number, row in read_table(path, fits, need):
        check_name(f"{path}:{number}", _one_of(row, _IDS) or "")
        yield number, row


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "segments": _rows,
    "conversations": _conversations,
    "captions": _captions,
    "table": _table,
}
FORMATS = ("auto", *_READERS)


def match(path: str | Path, rows: Sequence[Row], clips: Sequence[Clip]) -> dict[str, Row]:
    """Find each row's clip: by its id, by its file name without suffix, by its number without leading zeros.

    Returns:
        clip_id -> row. Rows of clips that are not asked for are passed over.

    Raises:
        InputError: Two rows mean one clip, one row may mean two clips, or no row fits any clip.
    """
    known: dict[str, set[str]] = {}
    exact = {clip.clip_id for clip in clips}
    for clip in clips:
        for name in [*names_of(clip.clip_id), *names_of(clip.path.name)]:
            known.setdefault(name, set()).add(clip.clip_id)
    matches: dict[str, Row] = {}
    for row in rows:
        name = str(row["clip_id"])
        meant: set[str] = {name} if name in exact else set()
        meant = meant or next((known[key] for key in names_of(name) if key in known), set())
        if len(meant) > 1:
            raise InputError(
                f"{path}: {name!r} may be each of {', '.join(sorted(meant)[:_SHOWN])}: name the clip in full"
            )
        for clip_id in meant:
            if clip_id in matches:
                other = (
                    f" (as {matches[clip_id]['clip_id']!r} and {name!r})" if matches[clip_id]["clip_id"] != name else ""
                )
                raise InputError(f"{path}: {clip_id!r} stands there twice{other}")
            matches[clip_id] = row
    if not matches:
        names, ours = ([str(name) for name in names] for names in ((r["clip_id"] for r in rows), sorted(exact)))
        raise InputError(
            f"{path}: none of its {len(rows)} names fits a clip: it has {', '.join(names[:_SHOWN])}, the clips are "
            f"{', '.join(ours[:_SHOWN])}"
        )
    return matches


def merge(files: Sequence[tuple[str | Path, dict[str, Row]]]) -> dict[str, Row]:
    """Put the files' rows together: a clip's segments may come from several files, a modality from one only.

    Raises:
        InputError: Two files give one clip the same modality, a conclusion each, or a free text beside something else.
    """
    merged: dict[str, Row] = {}
    for path, rows in files:
        for clip_id, row in rows.items():
            if clip_id not in merged:
                merged[clip_id] = row
                continue
            old = merged[clip_id]
            both = [part for part in (old.get("segments"), row.get("segments")) if isinstance(part, dict)]
            if len(both) < 2 or both[0].keys() & both[1].keys():
                raise InputError(f"{path}: clip {clip_id}: another file says something of the same modality")
            if old.get("conclusion") and row.get("conclusion"):
                raise InputError(f"{path}: clip {clip_id}: another file has a conclusion too")
            segments = {m: text for m in MODALITIES for part in both if (text := part.get(m)) is not None}
            conclusion = old.get("conclusion") or row.get("conclusion") or ""
            merged[clip_id] = {**row, **old, "segments": segments, "conclusion": conclusion}
            if others := {**old.get("names_other", {}), **row.get("names_other", {})}:
                merged[clip_id]["names_other"] = others
    return merged


def check(row: Row, where: str) -> None:
    """Segments must be {modality: text}, a free text and a conclusion text.

    Raises:
        InputError: They are not; begins with `where`.
    """
    segments = row.get("segments", {})
    texts = segments.values() if isinstance(segments, dict) else [None]
    if not all(isinstance(text, str) for text in (*texts, row.get("conclusion", ""))):
        raise InputError(f"{where}: segments must be {{modality: text}}, conclusion a text")
    if "segments" not in row and not (isinstance(row["text"], str) and row["text"].strip()):
        raise InputError(f"{where}: text must be a text, and not empty")


def told(names: Sequence[str], total: int) -> str:
    """`clip b`, or `clips a, b, c and 4 more (7 of 9)`."""
    if len(names) == 1:
        return f"clip {names[0]}"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"clips {', '.join(names[:_SHOWN])}{more} ({len(names)} of {total})"
