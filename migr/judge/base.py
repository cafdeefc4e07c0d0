"""What every judge takes and gives, and how it is written down."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from migr.errors import InputError
from migr.files.fingerprint import settings_files
from migr.files.records import Row, digest, read_object

LONGEST = 20_000  # characters of a reasoning that a judge reads; the rest of a runaway text is ignored
NO_REPLY = "no reply"  # begins the status of a failure that another attempt may mend
_SAMPLE = 1 << 20  # bytes


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one text: `emotion` is None unless `status` is "ok".

    What it rests on is the `evidence`, words or sentences of the text, or the `reply`: what a language model wrote, or
    the labels of its own that a classifier found likeliest.
    """

    emotion: str | None
    probabilities: dict[str, float]
    status: str = "ok"
    reply: str | None = None
    evidence: tuple[str, ...] = ()


class Judge(Protocol):
    """Anything with a name that judges texts.

    The name stands for everything that the judgement depends on besides the text and the prompt. A judge that asks a
    language model also has its `prompt`; one that holds a model has `close()`; one that is paid has its `usage`; one
    that cannot name some of its labels has them as `blind`; one that answers sooner than a file of judgements is
    `fast`; one that reads no other language is `english`.
    """

    name: str

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text, in order."""
        ...


def prompt_of(judge: Judge) -> str:
    """The question that a judge puts to its language model, "" if it has none."""
    return getattr(judge, "prompt", "")


def usage_of(judge: Judge) -> Row | None:
    """What a judge has asked and used so far (requests, tokens, cost), None if it is not counted."""
    return getattr(judge, "usage", None)


def blind_labels(judge: Judge) -> tuple[str, ...]:
    """The labels of its set that a judge cannot name, whatever a text says."""
    return getattr(judge, "blind", ())


def is_fast(judge: Judge) -> bool:
    """Whether a judge answers sooner than a file of what it said before."""
    return getattr(judge, "fast", False)


def reads_english_alone(judge: Judge) -> bool:
    """Whether a judge says nothing of use about texts in other languages."""
    return getattr(judge, "english", False)


def close(judge: Judge) -> None:
    """Let go of the model that a judge holds, if it holds one; it is loaded again when it is needed again."""
    if hasattr(judge, "close"):
        judge.close()


class Around:
    """What a judge that stands around another, `inner`, takes from it as it is."""

    inner: Judge

    @property
    def prompt(self) -> str:
        """The other judge's."""
        return prompt_of(self.inner)

    @property
    def usage(self) -> Row | None:
        """The other judge's."""
        return usage_of(self.inner)

    @property
    def blind(self) -> tuple[str, ...]:
        """The other judge's."""
        return blind_labels(self.inner)

    @property
    def english(self) -> bool:
        """The other judge's."""
        return reads_english_alone(self.inner)

    def close(self) -> None:
        """Close the other judge."""
        close(self.inner)


def judgement_row(clip_id: str, judge: Judge, judgement: Judgement) -> Row:
    """The row of judgements.jsonl. The prompt stands there by its hash; its text is kept once, in run.json."""
    row: Row = {
        "clip_id": clip_id,
        "judge": judge.name,
        "emotion": judgement.emotion,
        "status": judgement.status,
        "probabilities": {label: round(p, 4) for label, p in judgement.probabilities.items()},
    }
    if judgement.evidence:
        row["evidence"] = list(judgement.evidence)
    if judgement.reply is not None:
        row["reply"] = judgement.reply
    return {**row, "prompt": digest(prompt_of(judge))} if prompt_of(judge) else row


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
        InputError: There is none, or it is no JSON object.
    """
    return read_object(folder / "config.json", finite=False)


def folder_name(folder: Path) -> str:
    """A model folder's name and a hash of what is in it, so that two models never share judgements.

    Of the weights, the header (names, types and shapes of the tensors) and three samples of 1 MiB are hashed: seconds
    even for a model of 100 GB, and no training leaves all of them as they were.

    Raises:
        InputError: The folder has no weights as safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no *.safetensors in it (weights as pickles are not loaded: they can run code)")
    sha = hashlib.sha256()
    for path in settings_files(folder):
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            sha.update(path.name.encode() + file.read(min(header, size)))
            for start in (file.tell(), size // 2, max(0, size - _SAMPLE)):
                file.seek(start)
                sha.update(file.read(_SAMPLE))
    return f"{folder.resolve().name}-{sha.hexdigest()[:8]}"
