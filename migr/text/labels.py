"""Label sets and the words that mean their labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migr.errors import InputError

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

# One family of words per emotion: noun, adjective and close synonyms, as they occur in models' answers.
_FAMILIES = (
    ("happy", "happiness", "joy", "joyful", "cheerful", "delighted"),
    ("sad", "sadness", "sorrow", "sorrowful", "unhappy"),
    ("neutral", "neutrality", "calm"),
    ("angry", "anger", "furious", "rage"),
    ("surprise", "surprised", "astonished", "astonishment"),
    ("disgust", "disgusted", "repulsed", "revulsion"),
    ("fear", "fearful", "afraid", "scared", "frightened"),
    ("contempt", "contemptuous", "scorn", "scornful"),
    ("anxiety", "anxious", "worried", "nervous"),
    ("helplessness", "helpless"),
    ("disappointment", "disappointed"),
)


@dataclass(frozen=True)
class LabelSet:
    """The labels of a data set, in its own order, and the synonyms that are read as them."""

    name: str
    labels: tuple[str, ...]
    synonyms: dict[str, str] = field(default_factory=dict)

    def canonical(self, text: str) -> str | None:
        """The label that `text` names, or None if it is not exactly one known label or synonym.

        Case, surrounding space and a closing full stop do not matter. "happy or sad" names no label.
        """
        word = text.strip().strip(".!\"'*").strip().casefold()
        return word if word in self.labels else self.synonyms.get(word)

    def index(self, label: str) -> int:
        """The position of a canonical label."""
        return self.labels.index(label)


def _with_synonyms(name: str, labels: Sequence[str]) -> LabelSet:
    synonyms = {}
    for label in labels:
        for family in _FAMILIES:
            if label in family:
                synonyms.update({word: label for word in family if word != label})
    return LabelSet(name, tuple(labels), synonyms)


_SHIPPED = {"dfew": _with_synonyms("dfew", DFEW), "mafw": _with_synonyms("mafw", MAFW)}


def label_set(name: str) -> LabelSet:
    """The label set `dfew`, `mafw`, or one read from a text file.

    A file has one label a line, its synonyms after a colon (`happy: joy, joyful`); lines that start with # are skipped.

    Raises:
        InputError: Neither a shipped name nor a file; an empty set; a word that stands there twice.
    """
    if name in _SHIPPED:
        return _SHIPPED[name]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"labels {name!r}: neither one of {', '.join(_SHIPPED)} nor a file with one label a line")
    labels: list[str] = []
    synonyms: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip().casefold()
        if not line or line.startswith("#"):
            continue
        label, _, rest = (part.strip() for part in line.partition(":"))
        words = [label, *(word.strip() for word in rest.split(",") if word.strip())]
        for word in words:
            if not word or word in labels or word in synonyms:
                raise InputError(f"{path}:{number}: {word!r} is empty or stands there twice")
        labels.append(label)
        synonyms.update(dict.fromkeys(words[1:], label))
    if len(labels) < 2:
        raise InputError(f"{path}: a label set needs at least two labels, one a line")
    return LabelSet(path.stem, tuple(labels), synonyms)
