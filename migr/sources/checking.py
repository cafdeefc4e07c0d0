"""Which of the clips that a source names can be used, and why not the others; what has been found is kept.

Results stand in `probes.jsonl`, one line a clip, written as they come, by path, size and time of change: an interrupted
run goes on, and a later one examines only what has changed. Folds can share the file.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from migr.clips.manifest import safe_path
from migr.errors import InputError
from migr.files.growing import Growing
from migr.files.records import Row, digest, iter_jsonl
from migr.sources import frames, probing
from migr.sources.listed import Listed

# Every word that excluded.jsonl can give as reason.
REASONS = probing.REASONS | {"outside_root": "the path, or a link on it, leads out of the data set's folder"}
AGAIN = ("timeout", "crashed", "no_memory")  # may be the machine's fault: not kept, tried again in the next run
_NOTES = {
    "silent": "silent (digital silence: has_audio is false)",
    "audio_start": "late sound",
    "video_start": "late picture",
    "variable_rate": "variable rate",
    "rotated": "turned",
    "anamorphic": "anamorphic (pixels that are not square)",
    "hidden_frames": "hidden frames (cut by stream copy)",
    "reader": "read by pyav, not decord",
}
_RATES = 8
MEMORY = 3 * 2**30  # bytes that examining one clip may take
VERSION = 3  # of the examination; results of another version are made anew


@dataclass(frozen=True)
class Examined:
    """What is known of a source's clips.

    Attributes:
        source: The clips.
        probes: The results that are kept.
        places: Clip id -> where its results stand: absolute path, size and time of change.
        unkept: Clip id, or absolute path, -> why it cannot be used; for what is not kept.
        examined: How many clips this run has examined.
        seconds: How long it took.
    """

    source: Listed
    probes: "Probes"
    places: dict[str, tuple[str, list[int]]]
    unkept: dict[str, Row]
    examined: int
    seconds: float

    def results(self) -> Iterator[Row]:
        """For each clip of the source `{"facts": ...}` (see `container.examine`) or `{"reason", "detail"}`."""
        for row in self.source.rows:
            key, stamp = self.places.get(row["clip_id"], ("", []))
            result = self.unkept.get(row["clip_id"]) or self.unkept.get(key) or self.probes.find(key, stamp)
            assert result is not None
            yield result


def examine_listed(source: Listed, cache: Path, settings: Row, workers: int, timeout: float) -> Examined:
    """Examine the clips of a source that have changed since they were examined last.

    Args:
        source: The clips.
        cache: Folder of `probes.jsonl`, and of the videos that are made of folders of pictures.
        settings: `max_seconds`, `backend` and, for pictures, `rate`; see `migr.sources.probing.answer`.
        workers: Clips examined at a time.
        timeout: Seconds that one may take.

    Raises:
        InputError: probes.jsonl is damaged, or no process can be started.
    """
    probes = Probes(cache / "probes.jsonl", settings)
    unkept: dict[str, Row] = {}
    places: dict[str, tuple[str, list[int]]] = {}
    jobs: dict[str, Row] = {}
    for row in tqdm(source.rows, desc="looking for clips", unit="clip", leave=False, disable=None):
        clip_id = row["clip_id"]
        path, problem = locate(row, source.root, source.frames)
        if path is None:
            unkept[clip_id] = problem
            continue
        key, target = str(path), (frames_root(cache, settings) / f"{clip_id}.mp4").absolute()
        try:
            places[clip_id] = key, stamp(path, source.frames)
        except OSError as error:
            unkept[clip_id] = {"reason": "unreadable", "detail": str(error)}
            continue
        if probes.find(*places[clip_id]) is None or (source.frames and not target.is_file()):
            jobs[key] = {"path": key, "stamp": places[clip_id][1]} | ({"target": str(target)} if source.frames else {})
    start = time.monotonic()
    if jobs:
        results = probes.run(jobs, workers, timeout)
        for key, result in tqdm(results, desc="examining clips", total=len(jobs), unit="clip"):
            if result.get("reason") in AGAIN:
                unkept[key] = result
    return Examined(source, probes, places, unkept, len(jobs), time.monotonic() - start)


def kinds_of(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How many of the clips that can be used are of which kind, the most frequent first.

    Returns:
        "video" and "sound" (codec -> clips, "none" without), "frames/s" (rate -> clips, the eight most frequent) and
        "notes" (what `migr.clips.examine` notes beside; absent where it notes nothing).
    """
    rates = Counter(f"{row['fps']:g}" for row in rows if row["fps"])
    kinds = {
        "video": Counter(row.get("video_codec", "none") for row in rows),
        "sound": Counter("silent" if row.get("silent") else row.get("audio_codec", "none") for row in rows),
        "frames/s": Counter(dict(rates.most_common(_RATES))),
        "notes": Counter(note for row in rows for key, note in _NOTES.items() if key in row),
    }
    if others := sum(rates.values()) - sum(kinds["frames/s"].values()):
        kinds["frames/s"]["other"] = others
    return {what: dict(counts.most_common()) for what, counts in kinds.items() if counts}


def frames_root(cache: Path, settings: Row) -> Path:
    """Where videos made of folders of pictures stand; another rate makes others."""
    return cache / f"frames_{settings['rate']}"


class Probes:
    """The results of earlier and of this run, in a JSON Lines file that grows by one line a clip.

    Args:
        path: The file; what an interruption or a power cut damaged is done again.
        settings: What results depend on beside the clip (a part of each job); results of others are not used.
    """

    def __init__(self, path: Path, settings: Row):
        self.path, self.settings = path, settings
        self.by = digest(settings, VERSION)
        self.known: dict[str, tuple[list[int], str]] = {}  # key -> stamp, result as JSON: a fifth of a dict's memory
        with Growing(path, "key"):  # takes away what an interruption or a power cut left of a row
            pass
        for row in iter_jsonl(path, ("key", "stamp", "by", "result")):
            if row["by"] == self.by and isinstance(row["result"], dict):
                self.known[row["key"]] = row["stamp"], json.dumps(row["result"])

    def find(self, key: str, stamp: list[int]) -> Row | None:
        """The result for a clip whose size and time of change are still `stamp`, or None."""
        entry = self.known.get(key)
        return json.loads(entry[1]) if entry is not None and entry[0] == stamp else None

    def run(self, jobs: dict[str, Row], workers: int, timeout: float) -> Iterator[tuple[str, Row]]:
        """Examine the clips of `jobs` (key -> job with `stamp`); writes each result down as it comes, and yields it."""
        work = ({**job, **self.settings, "key": key} for key, job in jobs.items())
        with self.path.open("a", encoding="utf-8") as file:  # several data sets may share it
            for job, result in probing.examine_all(work, workers, timeout, MEMORY):
                if result.get("reason") not in AGAIN:
                    row = {"key": job["key"], "stamp": job["stamp"], "by": self.by, "result": result}
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    self.known[job["key"]] = job["stamp"], json.dumps(result)
                yield job["key"], result


def stamp(path: Path, folder: bool = False) -> list[int]:
    """Size (bytes) and time of change (ns) of a file; of a folder, the sum and the latest of its pictures.

    Raises:
        OSError: There is no such thing.
    """
    if not folder:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    found_all = [entry.stat(follow_symlinks=False) for entry in frames.pictures(path)]
    return [sum(s.st_size for s in found_all), max((s.st_mtime_ns for s in found_all), default=0), len(found_all)]


def locate(row: Row, root: Path, folder: bool) -> tuple[Path | None, Row]:
    """Where a clip lies, or why it cannot be looked at; nothing is opened.

    Returns:
        Absolute path and {}, or None and `{"reason": "outside_root" or "missing", "detail": ...}`.
    """
    try:
        path = safe_path(row["path"], root, row["clip_id"])
    except InputError as error:
        return None, {"reason": "outside_root", "detail": str(error).removeprefix(f"{row['clip_id']}: ")}
    there = os.path.isdir(path) if folder else os.path.isfile(path)  # also of a path that no file can have
    return (path, {}) if there else (None, {"reason": "missing", "detail": f"{path}: no such file or folder"})
