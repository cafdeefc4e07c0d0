"""Reasoning written anew by a language model, from what is known of each modality, and checked before it is believed.

The model is given the evidence of each modality and the order, never the label or the clip. What it writes is refused
unless it has the evidence's modalities in that order (`form`), every sentence of a segment says what the source of that
very segment says (`invented`), the conclusion brings no new sign of an emotion, and a judge who reads the whole names
the clip's label (`label`). English; the checks are ours, and go by words: they see an invented sign, not a bent one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from migr.errors import InputError
from migr.files.growing import Growing
from migr.files.records import Row, read_jsonl
from migr.judge import CUE_WORDS, Judge, close
from migr.text.format import block, parse
from migr.text.labels import LabelSet
from migr.text.sentences import split

REFUSALS = {
    "no reply": "the model gave no whole reply",
    "form": "not the modalities of the evidence, once each and in order",
    "invented": "a statement without its source",
    "label": "a judge reads another emotion than the label, or none",
}
MOST_NEW = 1 / 3  # of a sentence's telling words may be the writer's own, if none is a sign of an emotion
_WORD = re.compile(r"[a-z']+")
_ENDINGS = ("ingly", "edly", "ing", "ed", "ly", "es", "s", "e")
_NAMES = {"video": "what is seen", "audio": "how it sounds", "text": "what is said"}
QUESTION = """Below are notes about one person in a short clip, a line for each source. Write them up as one short
explanation. Begin with {first}, then go on with {rest}. Say only what the notes say: no other sign, no guess, and do
not name an emotion. Write each source between its own tags, then one closing sentence that says which evidence is
clearer:
{form}

Notes:
{notes}"""


@dataclass(frozen=True)
class Evidence:
    """What a clip's reasoning is to be written from.

    Attributes:
        clip_id: The clip.
        label: What a judge must read in it.
        segments: Modality -> text, in the order in which it is to be written.
        conclusion: The source's own; its words may be used.
    """

    clip_id: str
    label: str
    segments: Mapping[str, str]
    conclusion: str

    def question(self) -> str:
        """What the language model is asked. Chat markup such as <|im_end|> in the notes is broken up."""
        order = list(self.segments)
        notes = (f"{modality}: {' '.join(text.split())}" for modality, text in self.segments.items())
        values = {
            "first": _NAMES[order[0]],
            "rest": " and ".join(_NAMES[modality] for modality in order[1:]) or "nothing else",
            "form": "".join(block(modality, "…") for modality in order) + " …",
            "notes": "\n".join(notes).replace("<|", "< |").replace("|>", "| >"),
        }
        text = QUESTION
        before, _, after = text.partition("{notes}")  # what stands in the notes is no place of ours
        for name in ("first", "rest", "form"):
            before = before.replace(f"{{{name}}}", values[name])
        return before + values["notes"] + after


def rewrite_into(file: Path, evidence: Sequence[Evidence], writer: Any, judge: Judge, labels: LabelSet) -> list[Row]:
    """`rewrite`, clip by clip into a file that an interrupted run goes on with; lets go of writer and judge.

    Raises:
        InputError: The file was written by another writer.
    """
    try:
        with Growing(file) as out:
            rows = {row["clip_id"]: row for row in read_jsonl(file, ("clip_id", "by"))}
            if other := {row["by"] for row in rows.values()} - {writer.name}:
                raise InputError(
                    f"{file}: written by {other.pop()}, now {writer.name}: delete it, or give another --out"
                )
            todo = [item for item in evidence if item.clip_id not in rows]
            texts = rewrite(todo, writer, judge, labels)
            for row in tqdm(texts, "rewriting", len(evidence), initial=len(evidence) - len(todo), unit="clip"):
                rows[row["clip_id"]] = row
                out.append(row)
    finally:
        writer.close()
        close(judge)
    return [rows[item.clip_id] for item in evidence]


def rewrite(evidence: Sequence[Evidence], writer: Any, judge: Judge, labels: LabelSet) -> Iterator[Row]:
    """Write and check; a row a clip, in order.

    Args:
        evidence: Of the clips.
        writer: Of `migr.judge.writer.open_writer`.
        judge: Reads what was written, without its tags.
        labels: Emotions.

    Returns:
        `clip_id`, `by`, and `segments` with `conclusion`, or `refused` (of REFUSALS) with `detail` and the `reply`.
    """
    source = iter(evidence)
    while batch := list(islice(source, writer.at_once)):
        replies = writer.write([item.question() for item in batch])
        formed = [_formed(item, text, status, labels) for item, (text, status) in zip(batch, replies, strict=True)]
        texts = {row["text"]: None for row in formed if "text" in row}
        read = dict(zip(texts, judge.judge(list(texts)), strict=True)) if texts else {}
        for item, row in zip(batch, formed, strict=True):
            text = row.pop("text", None)
            emotion = read[text].emotion if text is not None else None
            if text is not None and emotion != item.label:
                detail = f"read as {emotion or 'none'}, labelled {item.label}"
                row = {"refused": "label", "detail": detail, "reply": row["reply"]}
            if "refused" not in row:
                del row["reply"]
            yield {"clip_id": item.clip_id, "by": writer.name, **row}


def _formed(item: Evidence, reply: str, status: str, labels: LabelSet) -> Row:
    """Segments and conclusion of a reply with the `text` that a judge is to read; or why it is refused."""

    def refused(reason: str, detail: str) -> Row:
        return {"refused": reason, "detail": detail, "reply": reply[:2000]}

    if status != "ok":
        return refused("no reply", status)
    response = parse(block("think", reply) + block("answer", "x"))
    if response.error or response.reasoning is None:
        return refused("form", response.error or "empty")
    written = dict(response.reasoning.segments)
    if list(written) != list(item.segments):
        return refused("form", f"{', '.join(written) or 'no segment'}, not {', '.join(item.segments)}")
    if not response.reasoning.conclusion:
        return refused("form", "no closing sentence")
    for modality, text in written.items():
        for sentence in split(text):
            if (new := unsupported(sentence, item.segments[modality], labels)) is not None:
                return refused("invented", f"{modality}: {new}")
    every = " ".join((*item.segments.values(), item.conclusion))
    if own := signs(response.reasoning.conclusion, labels) - signs(every, labels):
        return refused("invented", f"conclusion: {', '.join(sorted(own))}")
    segments = {modality: text.strip() for modality, text in written.items()}
    return {"segments": segments, "conclusion": response.reasoning.conclusion, "text": response.plain, "reply": reply}


def unsupported(sentence: str, source: str, labels: LabelSet) -> str | None:
    """The words of a sentence that its source lacks, if they are too many or a sign; None where it is supported.

    >>> from migr.text.labels import label_set
    >>> unsupported("She frowns, with tight lips.", "A deep frown and tight lips.", label_set("dfew"))
    >>> unsupported("She frowns and weeps.", "A deep frown and tight lips.", label_set("dfew"))
    'weeps'
    """
    known = {_stem(word) for word in _WORD.findall(source.casefold())}
    telling = [word for word in _WORD.findall(sentence.casefold()) if word not in _idle()]
    new = [word for word in telling if _stem(word) not in known]
    telling_signs = signs(sentence, labels)
    if not telling:
        return None  # connects, and says nothing
    if any(word in telling_signs for word in new) or len(new) > MOST_NEW * len(telling):
        return ", ".join(dict.fromkeys(new))
    return None


def signs(text: str, labels: LabelSet) -> set[str]:
    """The words of a text that show or name an emotion, by the lexicon's cues and the labels' synonyms."""
    known = {word for words in CUE_WORDS.values() for word in words.split()} | {*labels.labels, *labels.synonyms}
    return {word for word in _WORD.findall(text.casefold()) if word in known}


@cache
def _idle() -> frozenset[str]:
    """Words that say nothing by themselves: scikit-learn's list for English."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def _stem(word: str) -> str:
    """A word without its ending, so that "frowns" and "a frown" meet."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
