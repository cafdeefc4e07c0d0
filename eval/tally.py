"""Read predictions, judgements and importances into small integer codes, one row a clip; free of torch.

Texts are read one at a time and not kept: a million predictions need their ids and five small integers each.
"""

import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.metrics import MISSING
from migr.emotions import LabelSet
from migr.errors import InputError
from migr.reasoning import MODALITIES, Response, parse, plain
from migr.records import Row, iter_jsonl
from reward.score import LONGEST, speaks_of

PREDICTION_KEYS = ("clip_id", "label", "response")
JUDGEMENT_KEYS = ("clip_id", "judge", "emotion")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")


def _codes() -> "array[int]":
    return array("h")


@dataclass
class Tally:
    """What `eval.metrics.measure` needs of each clip, in the order of the predictions; MISSING where there is none."""

    ids: dict[str, int] = field(default_factory=dict)  # clip_id -> row
    labels: "array[int]" = field(default_factory=_codes)
    answers: "array[int]" = field(default_factory=_codes)
    first: "array[int]" = field(default_factory=_codes)
    judgements: "array[int]" = field(default_factory=_codes)
    dominants: "array[int]" = field(default_factory=_codes)


def order_of(response: Response) -> list[str]:
    """The modalities of a reasoning in the order in which it comes to them.

    They are the tagged segments. Where there are none (other systems' output) each sentence counts for the modality
    that its words speak of, or for none.
    """
    if response.reasoning is None:
        return []
    if response.reasoning.segments:
        return list(response.reasoning.order)
    sentences = _SENTENCE.split(response.reasoning.conclusion[:LONGEST])
    spoken = [modality for modality in map(speaks_of, sentences) if modality is not None]
    return list(dict.fromkeys(spoken))


def answer_of(response: Response, labels: LabelSet) -> str | None:
    """The one known label that the response answers, or None. The rest of the format does not matter here."""
    return labels.canonical(response.answer) if response.answer else None


def read_predictions(path: Path, labels: LabelSet) -> Tally:
    """Read predictions.jsonl; `answer` and `order` are derived from `response` where a row has none.

    Raises:
        InputError: A key is missing, a clip comes twice, has no label or one outside the set; names file and clip.
    """
    tally = Tally()
    index = {label: i for i, label in enumerate(labels.labels)}
    for row in iter_jsonl(path, PREDICTION_KEYS):
        where = _new_clip(path, row, tally.ids)
        tally.labels.append(_label(where, "label", row["label"], labels, index))
        if not isinstance(row["response"], str):
            raise InputError(f"{where}: response must be text, not {type(row['response']).__name__}")
        response = parse(row["response"]) if not ("answer" in row and "order" in row) else None
        answer = row["answer"] if "answer" in row else response and answer_of(response, labels)
        if answer is not None and not isinstance(answer, str):
            raise InputError(f"{where}: answer must be a label or null, not {answer!r}")
        known = labels.canonical(answer) if answer is not None else None
        tally.answers.append(index[known] if known is not None else MISSING)
        order = row["order"] if "order" in row else response and order_of(response)
        if not isinstance(order, list) or any(modality not in MODALITIES for modality in order):
            raise InputError(f"{where}: order must be a list of {', '.join(MODALITIES)}, not {order!r}")
        tally.first.append(MODALITIES.index(order[0]) if order else MISSING)
    if not tally.ids:
        raise InputError(f"{path}: no predictions in it")
    tally.judgements.extend([MISSING] * len(tally.ids))
    tally.dominants.extend([MISSING] * len(tally.ids))
    return tally


def read_judgements(path: Path, labels: LabelSet, tally: Tally) -> str:
    """Read judgements.jsonl into the tally; returns the judge's name. Clips without a judgement stay MISSING.

    Raises:
        InputError: A clip that has no prediction or comes twice, an emotion outside the set, more than one judge.
    """
    index = {label: i for i, label in enumerate(labels.labels)}
    seen: dict[str, int] = {}
    judge = None
    for row in iter_jsonl(path, JUDGEMENT_KEYS):
        where = _new_clip(path, row, seen)
        if row["clip_id"] not in tally.ids:
            raise InputError(f"{where}: judged, but not among the predictions: is this another run's file?")
        judge = judge or row["judge"]
        if not isinstance(judge, str) or row["judge"] != judge:
            raise InputError(f"{where}: judge {row['judge']!r} beside {judge!r}: a file holds one judge's judgements")
        if row["emotion"] is not None:
            tally.judgements[tally.ids[row["clip_id"]]] = _label(where, "emotion", row["emotion"], labels, index)
    return judge or "no judgements"


def read_dominants(path: Path) -> dict[str, int]:
    """Clip id -> index of its dominant modality, from importance.jsonl.

    Raises:
        InputError: A key is missing, a clip comes twice, or the modality is unknown.
    """
    dominants: dict[str, int] = {}
    for row in iter_jsonl(path, ("clip_id", "dominant")):
        where = _new_clip(path, row, dominants)
        if row["dominant"] not in MODALITIES:
            raise InputError(f"{where}: dominant {row['dominant']!r} is none of {', '.join(MODALITIES)}")
        dominants[row["clip_id"]] = MODALITIES.index(row["dominant"])
    return dominants


def add_dominants(tally: Tally, dominants: dict[str, int]) -> None:
    """Note each clip's dominant modality; importances of clips outside the predictions do not matter."""
    for clip_id, row in tally.ids.items():
        tally.dominants[row] = dominants.get(clip_id, MISSING)


def examples(path: Path, tally: Tally, labels: LabelSet, limit: int = 30) -> list[dict[str, Any]]:
    """The first clips whose answer is right and whose judgement is another emotion, as `eval.report` shows them."""
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(iter_jsonl(path, PREDICTION_KEYS)):
        label, judged, dominant = tally.labels[i], tally.judgements[i], tally.dominants[i]
        if tally.answers[i] != label or judged in (MISSING, label):
            continue
        response = parse(row["response"])
        reasoning = response.reasoning
        tagged: list[tuple[str | None, str]] = [*reasoning.segments] if reasoning and reasoning.segments else []
        rest = reasoning.conclusion if reasoning and tagged else plain(response) or row["response"]
        rows.append(
            {
                "clip_id": row["clip_id"],
                "label": labels.labels[label],
                "answer": labels.labels[label],
                "judged": labels.labels[judged],
                "dominant": None if dominant == MISSING else MODALITIES[dominant],
                "segments": [*tagged, (None, rest)],
            }
        )
        if len(rows) == limit:
            break
    return rows


def _new_clip(path: Path, row: Row, seen: dict[str, int]) -> str:
    """Check a row's clip_id and add it to `seen`; returns how messages name the row."""
    clip_id = row["clip_id"]
    where = f"{path}: clip {clip_id!r}"
    if not isinstance(clip_id, str) or not clip_id:
        raise InputError(f"{where}: clip_id must be a non-empty string")
    if clip_id in seen:
        raise InputError(f"{where} stands there twice")
    seen[clip_id] = len(seen)
    return where


def _label(where: str, key: str, value: Any, labels: LabelSet, index: dict[str, int]) -> int:
    label = labels.canonical(value) if isinstance(value, str) else None
    if label is None:
        known = ", ".join(labels.labels)
        raise InputError(f"{where}: {key} {value!r} is none of {known} ({labels.name}; --labels names the set)")
    return index[label]
