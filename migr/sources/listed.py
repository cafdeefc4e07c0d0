"""What every source gives: the clips that a data set names, before any of them is opened."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from migr.errors import InputError
from migr.files.records import Row
from migr.text.labels import LabelSet

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Listed:
    """The clips that a source names.

    Attributes:
        root: Absolute folder that the paths are relative to.
        labels: The label set of the data set.
        rows: One row a clip: `clip_id`, `path`, `label`, `split`, and what else the source says of it.
        frames: Whether the paths are folders of pictures.
        published: Number of clips that the published split has, by split; empty where nothing is published.
    """

    root: Path
    labels: LabelSet
    rows: list[Row]
    frames: bool = False
    published: dict[str, int] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """How many clips each split names."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row["split"]] = counts.get(row["split"], 0) + 1
        return counts


def need(path: Path, what: str) -> Path:
    """The path itself if it is there.

    Raises:
        InputError: It is not; says what should stand there.
    """
    if not path.exists():
        raise InputError(f"{path}: not there; {what}")
    return path


def is_number(name: str) -> bool:
    """Whether a clip's name is a number, of no more digits than a name has."""
    return name.isascii() and name.isdigit() and len(name) <= 255


def files_by_number(folder: Path, suffix: str) -> dict[int, str]:
    """Files named by a number (`7.mp4`, `00007.mp4`), in the folder or in folders below it: number -> relative path.

    Raises:
        InputError: Two files have the same number.
    """
    files: dict[int, str] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, dot, end = name.rpartition(".")
            if dot and end.casefold() == suffix and is_number(stem):
                path = Path(place, name).relative_to(folder).as_posix()
                if int(stem) in files:
                    raise InputError(f"{folder}: {files[int(stem)]} and {path} are the same clip; remove one of them")
                files[int(stem)] = path
    return files


def once(where: str, clip_id: str, places: dict[str, str]) -> None:
    """Note where a clip is named.

    Raises:
        InputError: It was named before.
    """
    if clip_id in places:
        raise InputError(
            f"{where}: clip {clip_id} is named twice, first in {places[clip_id]} (a column clip_id tells apart what "
            "differs in its ending or folder only)"
        )
    places[clip_id] = where
