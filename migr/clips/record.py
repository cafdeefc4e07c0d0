"""What a model's folder says of how it was made: `migr.json`, beside the weights of a checkpoint and of an export.

How clips were sampled, the labels, the prompt and the judge of the rewards belong to a model: read otherwise, it
answers worse without a word. So they travel with it, and the commands that use a model take them from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.files.records import read_json, write_json
from migr.settings import MediaSettings
from migr.text.labels import LabelSet, label_set, labels_from_record

NAME = "migr.json"


@dataclass(frozen=True)
class ModelRecord:
    """How a model was trained.

    Attributes:
        media: How its clips were read.
        labels: What it may answer.
        prompt: The question, as it is about a clip with video and sound; None if there were several.
        reward_judge: Name of the judge that its rewards came from; None without one.
        source: The file that says so; None if it is not written yet.
    """

    media: dict[str, Any]
    labels: LabelSet
    prompt: str | None = None
    reward_judge: str | None = None
    source: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The content of `migr.json`."""
        labels = self.labels.as_record()
        return {"media": self.media, "labels": labels, "prompt": self.prompt, "reward_judge": self.reward_judge}

    def write(self, folder: str | Path) -> None:
        """Write `migr.json` into a model's folder."""
        write_json(Path(folder) / NAME, self.as_json())


def read_record(model: str | Path) -> ModelRecord | None:
    """What the folder of a model, or that of the run whose checkpoint it is, says of itself; None if nothing does.

    Raises:
        InputError: The file is damaged.
    """
    folder = Path(model)
    for file in (folder / NAME, *([folder.parent / NAME] if folder.name.startswith("checkpoint-") else [])):
        if file.is_file():
            return _read(file)
    return None


def _read(file: Path) -> ModelRecord:
    values = read_json(file)
    media = values.get("media") if isinstance(values, dict) else None
    if not isinstance(media, dict):
        raise InputError(f"{file}: no record of a model (`media` is missing)")
    kinds = {field.name: type(field.default) for field in fields(MediaSettings)}
    for name, value in media.items():
        if name in kinds and type(value) not in (kinds[name], *((int,) if kinds[name] is float else ())):
            raise InputError(f"{file}: media: {name} must be {kinds[name].__name__}, not {value!r}")
    for name in ("prompt", "reward_judge"):
        if not isinstance(values.get(name), str | None):
            raise InputError(f"{file}: {name} must be text, not {values[name]!r}")
    labels = labels_from_record(values.get("labels"), file)
    known = {name: value for name, value in media.items() if name in kinds}
    return ModelRecord(known, labels, values.get("prompt"), values.get("reward_judge"), file)


def find_labels(name: str | None, *beside: str | Path | None, model: ModelRecord | None = None) -> LabelSet:
    """The label set that was asked for by name; else the one that is recorded; else DFEW's.

    Args:
        name: What `--labels` says.
        beside: Files beside which data.json or run.json may record labels: clips.jsonl, predictions.jsonl.
        model: The model's record, asked last.

    Raises:
        InputError: No such label set, or a damaged record.
    """
    if name is not None:
        return label_set(name)
    for path in beside:
        for file in (Path(path).parent / record for record in ("data.json", "run.json")) if path else ():
            values = read_json(file) if file.is_file() else None
            record = values.get("label_set") if isinstance(values, Mapping) else None
            if record is not None:
                return labels_from_record(record, file)
    return model.labels if model is not None else label_set("dfew")
