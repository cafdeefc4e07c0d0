"""Label sets and the words that mean their labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.files.parsing import read_text

# The order of DFEW's label ids 1..7 and of MAFW's 0..10 (notes of the data sets' own split files).
DFEW = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
MAFW = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)

# One family of words per emotion: noun, adjective and close synonyms, as they occur in models' answers, and their
# Chinese names as in the data sets' own annotations.
_FAMILIES = (
    ("happy", "happiness", "joy", "joyful", "cheerful", "delighted", "高兴", "快乐", "开心", "喜悦", "幸福", "高興"),
    ("sad", "sadness", "sorrow", "sorrowful", "unhappy", "悲伤", "难过", "伤心", "悲傷", "難過"),
    ("neutral", "neutrality", "calm", "中性", "中立", "平静", "平靜"),
    ("angry", "anger", "furious", "rage", "愤怒", "生气", "憤怒", "生氣"),
    ("surprise", "surprised", "astonished", "astonishment", "惊讶", "惊奇", "吃惊", "驚訝", "驚奇"),
    ("disgust", "disgusted", "repulsed", "revulsion", "厌恶", "恶心", "反感", "厭惡"),
    ("fear", "fearful", "afraid", "scared", "frightened", "恐惧", "害怕", "恐懼"),
    ("contempt", "contemptuous", "scorn", "scornful", "轻蔑", "蔑视", "鄙视", "輕蔑"),
    ("anxiety", "anxious", "worried", "nervous", "焦虑", "担忧", "紧张", "焦慮"),
    ("helplessness", "helpless", "无助", "無助"),
    ("disappointment", "disappointed", "失望"),
)
# What may stand around a label: `Answer: **sad**.`, `"sad"`, `<b>sad</b>`, `\\boxed{sad}`.
_WRAPPED = re.compile(r"\\(?:boxed|text|textbf|mathrm)\s*\{([^{}]*)\}|<(\w+)>([^<>]*)</\2>")
_PREFIX = re.compile(r"^(?:(?:the )?(?:final )?(?:answer|emotion|label)(?: is)?|答案|情绪|情感)(?:\s*[:：][\s\W]*|是)")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class LabelSet:
    """The labels of a data set, in its own order, and the synonyms that are read as them."""

    name: str
    labels: tuple[str, ...]
    synonyms: dict[str, str] = field(default_factory=dict)

    def canonical(self, text: str) -> str | None:
        """The label that `text` names, or None if it is not exactly one known label or synonym.

        Case, punctuation, quotes and markup around it do not matter, nor does "Answer:" in front. "happy or sad" names
        no label.
        """
        word = text.strip().casefold()
        if word not in self.labels and word not in self.synonyms:
            word = bare_word(word)
        return word if word in self.labels else self.synonyms.get(word)

    def as_record(self) -> dict[str, Any]:
        """As JSON, for `labels_from_record`."""
        return {"name": self.name, "labels": list(self.labels), "synonyms": self.synonyms}

    def index(self, label: str) -> int:
        """The position of a canonical label."""
        return self.labels.index(label)


def bare_word(text: str) -> str:
    """A short answer in small letters, without punctuation, quotes, markup and "Answer:" around it."""
    word = text[:1000].casefold()
    for _ in range(3):  # `\\boxed{\\text{sad}}`
        word = _WRAPPED.sub(lambda match: match[1] or match[3] or "", word)
    for _ in range(2):  # `**Answer:** "sad"`
        word = _PREFIX.sub("", _EDGES.sub("", word))
    return " ".join(word.split()).removesuffix("的")


def _with_synonyms(name: str, labels: Sequence[str]) -> LabelSet:
    synonyms = {}
    for label in labels:
        for family in _FAMILIES:
            if label in family:
                synonyms.update({word: label for word in family if word != label})
    return LabelSet(name, tuple(labels), synonyms)


MOST = 500  # labels of a set: confusion tables are squares of it
SHIPPED = {"dfew": _with_synonyms("dfew", DFEW), "mafw": _with_synonyms("mafw", MAFW)}


def label_set(name: str) -> LabelSet:
    """The label set `dfew`, `mafw`, or one read from a text file.

    A file has one label a line, its synonyms after a colon (`happy: joy, joyful`); lines that start with # are skipped.
    With `extends: dfew` (or mafw) as its first line it adds synonyms and labels to that set: `fear: worried`.

    Raises:
        InputError: Neither a shipped name nor a file; an empty set; a word that stands there twice.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"labels {name!r}: neither one of {', '.join(SHIPPED)} nor a file with one label a line")
    labels: list[str] = []
    synonyms: dict[str, str] = {}
    base: LabelSet | None = None
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip().casefold()
        if not line or line.startswith("#"):
            continue
        label, _, rest = (part.strip() for part in line.partition(":"))
        if label == "extends":
            if labels or rest not in SHIPPED:
                raise InputError(f"{path}:{number}: `extends: dfew` or `extends: mafw` stands in the first line alone")
            base = SHIPPED[rest]
            labels, synonyms = list(base.labels), dict(base.synonyms)
            continue
        known = base.canonical(label) if base else None
        words = [*([] if known else [label]), *(word.strip() for word in rest.split(",") if word.strip())]
        for place, word in enumerate(words):
            if not word or word in labels or word in synonyms:
                raise InputError(f"{path}:{number}: {word!r} is empty or stands there twice")
            if known is None and place == 0:
                labels.append(word)
            else:
                synonyms[word] = known or label
    if len(labels) > MOST:
        raise InputError(f"{path}: {len(labels)} labels; {MOST} are the most that are counted")
    if len(labels) < 2:
        raise InputError(f"{path}: a label set needs at least two labels, one a line")
    same = base is not None and tuple(labels) == base.labels  # then its numbers mean the same, too
    return LabelSet(base.name if base and same else path.stem, tuple(labels), synonyms)


def labels_from_record(record: Any, source: str | Path) -> LabelSet:
    """The label set that `LabelSet.as_record` wrote.

    Raises:
        InputError: It is damaged; names the source.
    """
    names = record.get("labels") if isinstance(record, dict) else None
    words = record.get("synonyms", {}) if isinstance(record, dict) else None
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise InputError(f"{source}: labels must be a list of two or more words, not {names!r}")
    if not isinstance(words, dict) or not all(word in names for word in words.values()):
        raise InputError(f"{source}: synonyms must be {{word: label}}")
    return LabelSet(str(record.get("name", "own")), tuple(names), dict(words))
