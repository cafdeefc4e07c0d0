"""The rows of the page's clip browser: one a clip, gathered from the files of one or several runs; free of torch.

Files are read one line at a time and only the first `CLIPS_SHOWN` clips are kept, so a run of a million clips costs no
more memory than one of twenty thousand.
"""

import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval.figures.tally import read_lacking
from eval.page.stored import read_metrics
from migr.clips.manifest import Clip, read_clips
from migr.errors import InputError
from migr.files.parsing import is_file
from migr.files.records import Row, iter_jsonl
from migr.page import clean
from migr.sources.importance import checked_weights
from migr.text.claims import absent_evidence
from migr.text.format import MODALITIES, Response, parse
from migr.text.labels import LabelSet, label_set

Lacking = Mapping[str, Collection[str]]  # of clips that lack video or sound: clip id -> the modalities that they have

CLIPS_SHOWN = 20_000
LONGEST_REASONING = 20_000  # characters of one response

PLAYABLE = {  # container's ending -> codecs that current browsers play in it
    **{ending: {"h264", "av1", "vp9", "aac", "mp3", "opus", "flac"} for ending in (".mp4", ".m4v", ".mov")},
    ".webm": {"vp8", "vp9", "av1", "opus", "vorbis"},
    ".wav": {"pcm_s16le", "pcm_u8", "pcm_f32le", "pcm_s24le"},
    **{".mp3": {"mp3"}, ".m4a": {"aac"}, ".ogg": {"opus", "vorbis"}, ".flac": {"flac"}},
}

# What can have happened to a clip, in the order of the page.
CELLS = (
    "right_consistent",
    "right_inconsistent",
    "wrong_consistent",
    "wrong_inconsistent",
    "unparseable",
    "right_not_judged",
    "wrong_not_judged",
)


@dataclass(frozen=True)
class Run:
    """One run: its figures, and the files that the clip browser reads. Without `predictions` only figures are shown.

    Attributes:
        name: How the page calls the run.
        metrics: What `measure` gives; the optional keys `judge` ({name, accuracy, n}) and `settings`
            ({name: value}) are printed as well.
        labels: The label set that answers are read with; needed with `predictions`.
        predictions: JSON Lines with `clip_id`, `label`, `response` (and `answer`), or rows like them.
        judgements: JSON Lines with `clip_id` and `emotion`.
        importance: JSON Lines with `clip_id`, `dominant` and `importance`.
        clips: The manifest, so that clips play.
    """

    name: str
    metrics: Mapping[str, Any]
    labels: LabelSet | None = None
    predictions: Path | Iterable[Row] | None = None
    judgements: Path | None = None
    importance: Path | None = None
    clips: Path | None = None


@dataclass
class Rows:
    """What the browser shows.

    Attributes:
        clips: One mapping a clip: `id`, `label`, `dominant`, `importance`, `src` (a relative URL), `audio` (whether the
            clip has sound alone), `transcript`, and `runs`: for each run None or `answer`, `raw` (an answer that is no
            label), `judged`, `cell`, `absent` (modalities that it takes evidence from and the clip lacks) and `parts`,
            a list of [modality or None, text].
        complete: Whether every clip of every run is among them.
    """

    clips: list[Row] = field(default_factory=list)
    complete: bool = True


def collect(runs: Sequence[Run], page: Path, copy_clips: bool = False) -> Rows:
    """Gather the rows for the page that will stand at `page`.

    Args:
        runs: The runs, in the order of the columns. Clips that only some of them have are shown as well.
        page: The HTML file; links to clips are relative to its folder.
        copy_clips: Copy the clips into `<page>_files` beside the page, so that the folder can be moved; what no
            browser plays (MJPEG of frame folders, AVI, MKV, MPEG-4 Part 2) as a small H.264 and AAC file.

    Raises:
        InputError: A file is missing or a row in it is wrong; two runs give a clip different labels.
    """
    table: dict[str, Row] = {}
    collection = Rows()
    lacking: dict[tuple[Path | None, Path | None], Lacking | None] = {}  # by the files that tell: runs share them
    for number, run in enumerate(runs):
        if run.predictions is None:
            continue
        assert run.labels is not None, "predictions are read with a label set"
        files = run.clips, run.importance
        if files not in lacking:
            lacking[files] = read_lacking(*files)
        collection.complete &= _add_predictions(table, run, run.labels, number, len(runs), lacking[files] or {})
        if run.judgements is not None:
            _add_judgements(table, run.judgements, run.labels, number)
    for row in table.values():
        for entry in row["runs"]:
            if entry is not None:
                entry["cell"] = _cell(row["label"], entry["answer"], entry["judged"])
    for run in runs:
        if run.importance is not None and table:
            _add_importance(table, run.importance)
    for path in dict.fromkeys(run.clips for run in runs if run.clips is not None):
        if table:
            _add_media(table, read_clips(path, must_exist=False), page, copy_clips)
    collection.clips = list(table.values())
    return collection


def run_of(folder: Path, labels: str, clips: Path | None = None, importance: Path | None = None, name: str = "") -> Run:
    """A finished evaluation as the page shows it: its folder's files, and those that its settings name.

    Raises:
        InputError: The folder has no metrics.json, or it is not what eval/consistency.py writes.
    """
    metrics = read_metrics(folder)
    settings = metrics["settings"]

    def file(key: str, flag: Path | None = None) -> Path | None:
        known = [folder / f"{key}.jsonl", *([Path(settings[key])] if isinstance(settings.get(key), str) else [])]
        return flag or next((path for path in known if is_file(path)), None)

    return Run(
        name=name or folder.resolve().name,
        metrics=metrics,
        labels=label_set(labels),
        predictions=file("predictions"),
        judgements=file("judgements"),
        importance=file("importance", importance),
        clips=file("clips", clips),
    )


def parts_of(response: Response) -> list[tuple[str | None, str]]:
    """A response as parts (modality or None, text) in the order in which they stand.

    They are the tagged segments, and the sentences outside of tags by the modality that they give evidence from. What
    has no reasoning at all is one part as it stands.
    """
    if response.think is None:
        return [(None, response.text.strip())]
    parts: list[tuple[str | None, str]] = []
    tagged = any(part.tagged for part in response.parts)
    for part in response.parts:
        # beside tags, what stands outside of them is the conclusion
        modality = next(iter(part.modalities), None) if part.tagged or not tagged else None
        if parts and parts[-1][0] == modality and not part.tagged:
            parts[-1] = (modality, f"{parts[-1][1]} {part.text}")
        else:
            parts.append((modality, part.text))
    return parts


def judged_confusion(rows: Rows, number: int, classes: Sequence[str]) -> dict[str, Any] | None:
    """Labels x judgements of one run over the clips of the browser, the last column for those without a judgement."""
    entries = [(row["label"], row["runs"][number]) for row in rows.clips]
    counts = Counter((label, entry["judged"]) for label, entry in entries if entry is not None)
    if not rows.complete or not any(judged for _, judged in counts):
        return None
    table = [[counts[label, judged] for judged in (*classes, None)] for label in classes]
    return {"labels": list(classes), "answers": [*classes, "not judged"], "counts": table}


def transitions(rows: Rows, first: int, second: int) -> list[list[int]]:
    """(7, 7) counts of the clips that both runs have: rows the cell in the first run, columns in the second."""
    both = [(row["runs"][first], row["runs"][second]) for row in rows.clips]
    counts = Counter((one["cell"], other["cell"]) for one, other in both if one is not None and other is not None)
    return [[counts[here, there] for there in CELLS] for here in CELLS]


def _cell(label: str, answer: str | None, judged: str | None) -> str:
    if answer is None:
        return "unparseable"
    reading = "not_judged" if judged is None else "consistent" if judged == label else "inconsistent"
    return f"{'right' if answer == label else 'wrong'}_{reading}"


def _add_predictions(
    table: dict[str, Row], run: Run, labels: LabelSet, number: int, runs: int, lacking: Lacking
) -> bool:
    """Add one run's responses; returns whether all of its clips found room."""
    count = 0
    for where, row in _rows(run.predictions, ("clip_id", "label", "response")):
        if count == len(table) >= CLIPS_SHOWN:  # the rest of a very long file is not read
            return False
        name, label, text = row["clip_id"], row["label"], row["response"]
        if not isinstance(name, str) or not isinstance(label, str) or not isinstance(text, str):
            raise InputError(f"{where}: clip {name!r}: clip_id, label and response must be text")
        label = labels.canonical(label) or label
        if name not in table:
            if len(table) >= CLIPS_SHOWN:
                continue
            table[name] = {"id": clean(name), "label": clean(label), "runs": [None] * runs}
        if table[name]["label"] != clean(label):
            known = table[name]["label"]
            raise InputError(f"{where}: clip {name!r} has label {label!r} here and {known!r} in another run")
        response = parse(text)
        parts, raw = parts_of(response), response.answer
        answer = row.get("answer", response.label(labels) or raw)
        known = labels.canonical(answer) if isinstance(answer, str) else None
        if known is None and raw is None:
            parts = [(None, text)]  # as it stands: one wants to see why there is no answer
        entry: Row = {"answer": known, "judged": None, "cell": "", "parts": _cut(parts)}
        if known is None and isinstance(answer or raw, str):
            entry["raw"] = clean(answer or raw or "", 200)
        if name in lacking and (absent := absent_evidence(response, lacking[name])):
            entry["absent"] = list(absent)
        table[name]["runs"][number] = entry
        count += 1
    return run.metrics["n"] == count


def _add_judgements(table: dict[str, Row], path: Path, labels: LabelSet, number: int) -> None:
    left = sum(clip["runs"][number] is not None for clip in table.values())
    for row in iter_jsonl(path, ("clip_id", "emotion")):
        clip = _clip(table, row)
        entry = clip["runs"][number] if clip else None
        if entry is not None and isinstance(row["emotion"], str):
            entry["judged"] = labels.canonical(row["emotion"])
        if entry is not None and (why := _reason(row)):
            entry["why"] = why
        left -= entry is not None
        if not left:
            break  # the rest of a very long file is about clips that are not shown


def _reason(row: Row) -> str:
    """What a judgement rests on: its evidence, or the judge's reply, or why there is none."""
    evidence = row.get("evidence")
    if isinstance(evidence, list) and evidence:
        return clean(" · ".join(map(str, evidence)), 400)
    reply = row.get("reply") if row["emotion"] is not None else row.get("status")
    return clean(reply, 400) if isinstance(reply, str) else ""


def _clip(table: dict[str, Row], row: Row) -> Row | None:
    return table.get(row["clip_id"]) if isinstance(row["clip_id"], str) else None


def _add_importance(table: dict[str, Row], path: Path) -> None:
    """Add importances to the clips that have none yet: runs on the same clips share them."""
    row = None
    for row in iter_jsonl(path, ("clip_id", "dominant")):
        clip = _clip(table, row)
        if clip is None or "dominant" in clip:
            continue
        where = f"{path}: clip {row['clip_id']!r}"
        weights = checked_weights(row.get("importance", {}), where)
        if row["dominant"] not in MODALITIES:
            raise InputError(f"{where}: dominant {row['dominant']!r} is none of {', '.join(MODALITIES)}")
        clip["dominant"], clip["importance"] = row["dominant"], {m: weights[m] for m in MODALITIES if m in weights}
    if row is None:
        raise InputError(f"{path}: no importances in it")


def _add_media(table: dict[str, Row], clips: Sequence[Clip], page: Path, copy: bool) -> None:
    """Link (or copy) the files of the clips that are shown and not linked yet."""
    folder = page.parent.resolve()
    copies = folder / f"{page.stem}_files"
    for number, clip in enumerate(clips):
        row = table.get(clip.clip_id)
        if row is None or "src" in row:
            continue
        if isinstance(transcript := clip.extra.get("transcript"), str):
            row["transcript"] = clean(transcript)
        row["audio"] = clip.has_audio and not clip.has_video
        path = clip.path
        if not path.is_file():
            row["missing"] = clean(str(path))
            continue
        codecs = [codec for key in ("video_codec", "audio_codec") if isinstance(codec := clip.extra.get(key), str)]
        odd = unplayable(path, codecs)
        if copy and not _is_media(path):
            row["missing"] = clean(f"{path}: neither video nor sound")
            continue
        if copy:
            path, odd = _copied(path, copies / f"{number:06d}{path.suffix}", odd)
        if odd:
            row["odd"] = clean(odd, 40)
        row["src"] = quote(os.path.relpath(path, folder))


def _is_media(path: Path) -> bool:
    """Whether a file is what it is called: a page's folder must not become a way out for other files."""
    from migr.clips.container import MediaError, probe  # with PyAV, which pages that link need not

    try:
        probe(path)
    except (MediaError, InputError, OSError):
        return False
    return True


def unplayable(path: Path, codecs: list[str]) -> str | None:
    """What no browser plays of a file: a codec by name, or the container's ending; None if one does."""
    known = PLAYABLE.get(path.suffix.casefold())
    if known is None:
        return path.suffix.removeprefix(".") or "a file without an ending"
    # PyAV names decoders: libdav1d decodes av1
    names = {"libdav1d": "av1", "mp3float": "mp3", "libopus": "opus", "libvorbis": "vorbis"}
    return next((codec for codec in codecs if names.get(codec, codec) not in known), None)


def _copied(source: Path, target: Path, odd: str | None) -> tuple[Path, str | None]:
    """Copy a clip beside the page, transcoded if no browser plays it; also what no browser plays of the copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if odd:
        from migr.clips.container import MediaError  # with PyAV, which pages without such clips do not need
        from migr.clips.transcode import transcode

        copy = target.with_suffix(".mp4")
        try:
            if not copy.is_file() or copy.stat().st_mtime < source.stat().st_mtime:
                transcode(source, copy)
            return copy, None
        except MediaError:
            pass  # as it is; the page names what it is
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        shutil.copyfile(source, target)
    return target, odd


def _cut(parts: Iterable[tuple[str | None, str]]) -> list[tuple[str | None, str]]:
    """Clean the parts and keep `LONGEST_REASONING` characters in all; says how long the rest was."""
    pieces: list[tuple[str | None, str]] = []
    room = LONGEST_REASONING
    for modality, text in parts:
        if room <= 0:
            pieces.append((None, "…"))
            break
        pieces.append((modality, clean(text, room)))
        room -= len(text)
    return pieces


def _rows(source: Path | Iterable[Row] | None, required: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Rows of a file or of memory, each with what messages call its source."""
    assert source is not None
    if isinstance(source, Path):
        yield from ((str(source), row) for row in iter_jsonl(source, required))
    else:
        yield from (("predictions", row) for row in source)
