"""The clip record and the manifest `clips.jsonl`: safe paths, checked rows, errors that name line and clip."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migr.errors import InputError
from migr.files.parsing import is_file
from migr.files.records import Row, numbered_jsonl, read_json

if TYPE_CHECKING:
    from migr.text.labels import LabelSet

_OWN_KEYS = ("clip_id", "path", "label", "split", "has_video", "has_audio")


@dataclass(frozen=True)
class Clip:
    """One clip of a data set.

    Attributes:
        clip_id: Its name; unique in the manifest.
        path: Absolute path of the media file, inside the manifest's root.
        label: Canonical emotion, or None if unknown.
        split: "train", "test" or what the data set calls its parts.
        has_video, has_audio: Which streams are to be used.
        extra: All other keys of the row (`duration`, `transcript`, ...), unchanged.
    """

    clip_id: str
    path: Path
    label: str | None
    split: str
    has_video: bool = True
    has_audio: bool = True
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are present: of "video", "audio" and (with a transcript) "text"."""
        present = {"video": self.has_video, "audio": self.has_audio, "text": bool(self.extra.get("transcript"))}
        return tuple(name for name, here in present.items() if here)


def read_clips(
    path: str | Path,
    labels: "LabelSet | None" = None,
    split: str | None = None,
    root: str | Path | None = None,
    must_exist: bool = True,
) -> list[Clip]:
    """Read a manifest; every row is checked, also those of other splits.

    Args:
        path: A JSON Lines file with `clip_id`, `path` (relative to the root), `label` and `split`.
        labels: Labels outside this set are refused; without it any label passes.
        split: Return only the clips of this split.
        root: The folder that the paths are relative to; if None, the `root` that a data.json beside the manifest
            records (stages/data.py writes it for a data set that lies elsewhere), else the manifest's own folder.
        must_exist: Whether every media file must be there.

    Raises:
        InputError: A row is wrong, a path leaves the root, a file is missing or no clip remains; names line and clip.
    """
    path = Path(path)
    base = (Path(root) if root is not None else recorded_root(path)).resolve()
    if not base.is_dir():
        raise InputError(f"{base}: no such folder (the root of the clips in {path})")
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    for number, row in numbered_jsonl(path, ("clip_id", "path", "label", "split")):
        name = row["clip_id"]
        where = f"{path}:{number}: clip {name!r}"
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: clip_id must be a non-empty string")
        if name in lines:
            raise InputError(f"{where}: the same clip_id stands in line {lines[name]}")
        lines[name] = number
        clips.append(_clip(where, row, base, labels, must_exist))
    if not clips:
        raise InputError(f"{path}: no clips in it")
    selection = [clip for clip in clips if split in (None, clip.split)]
    if not selection:
        raise InputError(f"{path}: no clip of split {split!r}; there are {sorted({clip.split for clip in clips})}")
    return selection


def recorded_root(manifest: str | Path) -> Path:
    """The folder that a manifest's paths are relative to: `root` in the data.json beside it, else its own folder.

    Raises:
        InputError: data.json is damaged, or its root is no folder.
    """
    folder = Path(manifest).parent
    record = folder / "data.json"
    facts = read_json(record) if record.is_file() else {}
    root = facts.get("root") if isinstance(facts, dict) else None
    if root is None:
        return folder
    if not isinstance(root, str) or not root or "\0" in root:
        raise InputError(f"{record}: root must be the path of a folder, not {root!r}")
    if not os.path.isdir(folder / root):  # Path.is_dir raises where a name is too long
        raise InputError(f"{record}: root {root} is no folder; if the data set has moved, write its new place there")
    return folder / root


def _clip(where: str, row: Row, base: Path, labels: "LabelSet | None", must_exist: bool) -> Clip:
    label, split = row["label"], row["split"]
    if label is not None and not isinstance(label, str):
        raise InputError(f"{where}: label must be a string or null, not {label!r}")
    if labels is not None and label is not None and label not in labels.labels:
        raise InputError(f"{where}: label {label!r} is not one of {', '.join(labels.labels)} ({labels.name})")
    if not isinstance(split, str) or not split:
        raise InputError(f"{where}: split must be a non-empty string, not {split!r}")
    flags = {key: row.get(key, True) for key in ("has_video", "has_audio")}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{where}: {key} must be true or false, not {value!r}")
    file = safe_path(row["path"], base, where)
    if must_exist and not is_file(file):
        raise InputError(f"{where}: {file} is missing")
    planted_of(row, where)
    extra = {key: value for key, value in row.items() if key not in _OWN_KEYS}
    clip = Clip(row["clip_id"], file, label, split, **flags, extra=extra)
    if not clip.modalities:
        raise InputError(f"{where}: neither video nor audio nor transcript, nothing to reason about")
    return clip


def planted_of(row: Row, where: str) -> Row:
    """What a manifest's row says was planted in its clip: any of `dominant`, `shown` and `quality`; {} if nothing was.

    Raises:
        InputError: It has another shape; begins with `where`.
    """
    planted = {} if row.get("planted") is None else row["planted"]
    if not isinstance(planted, dict) or not isinstance(planted.get("dominant", ""), str):
        raise InputError(f"{where}: planted must be an object whose dominant is the name of a modality")
    for key, kinds, what in (("shown", str | float | int, "emotions"), ("quality", float | int, "numbers")):
        values = planted.get(key, {})
        if not isinstance(values, dict) or not all(isinstance(value, kinds) for value in values.values()):
            raise InputError(f"{where}: planted.{key} must give {what} by modality")
    return planted


def safe_path(value: Any, base: Path, where: str) -> Path:
    """Resolve a manifest's relative path under `base` (itself resolved).

    Raises:
        InputError: Absolute, with `..`, a URL, or a symbolic link that leads out of `base`.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise InputError(f"{where}: path must be a non-empty string, not {value!r}")
    if "://" in value:
        raise InputError(f"{where}: path {value!r} is a URL; only local files are read")
    relative = Path(value)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{where}: path {value!r} must be relative to {base}, without '..'")
    try:
        file = (base / relative).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InputError(f"{where}: path {value!r} cannot be resolved ({error})") from None
    if not file.is_relative_to(base):
        raise InputError(f"{where}: path {value!r} leads out of {base}, to {file}; copy the file or set another root")
    return file
