"""Assigned sentences put into segments by importance: nothing dropped, nothing invented, connectives that no longer fit
taken off. Ours."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from migr.text.sentences import MARKER, QUOTE, concludes

# Words at a sentence's beginning that lean on the sentence before it; the second group also without a comma.
_CONNECTIVE = re.compile(
    r"(?:(?:in addition(?: to (?:this|that|these|the above))?|besides(?: this| that)?|what's more|what is more|however"
    r"|still|similarly|at the same time|on the (?:other|one) hand|by contrast|in contrast|on the contrary|conversely"
    r"|instead|first of all|(?:first|second|third|fourth|last)(?:ly)?|finally|next|then|after that|as a result"
    r"|for (?:example|instance)"
    r"|as (?:mentioned|noted|stated|described|said|seen) (?:above|earlier|before|previously)),\s+"
    r"|(?:and|but|yet|also|additionally|moreover|furthermore|nevertheless|nonetheless|likewise|meanwhile|subsequently"
    r"|afterwards|therefore|thus|hence|consequently|accordingly)(?:,\s+|\s+))",
    re.I,
)
# "But for him", "Yet to come", "Also known as": not connectives
_NOT_ONE = re.compile(r"(?:so (?:on|forth|far)|far|for|known|called|because|to|if|as|when|of|from|\w+ing)\b", re.I)
_ABOVE = re.compile(r",? ?\bas (?:mentioned|noted|stated|described|said|seen) (?:above|earlier|before|previously)\b,?")
_REFERS = re.compile(r"(?:this|that|these|those|such|it|which)\b", re.I)


@dataclass(frozen=True)
class Arranged:
    """Segments and conclusion of a free text, ready for `migr.text.format.render`.

    Attributes:
        segments: Modality -> its sentences, in the order in which the segments are to stand.
        conclusion: What is of no modality and closes the text.
        repairs: (before, after) of each sentence whose connective or list number was taken off.
    """

    segments: dict[str, str]
    conclusion: str
    repairs: tuple[tuple[str, str], ...]


def arrange(sentences: Sequence[tuple[str, Sequence[str]]], order: Sequence[str], rank: Sequence[str] = ()) -> Arranged:
    """Group assigned sentences into segments; every sentence comes exactly once.

    A sentence about several modalities stays whole and goes with the one that comes first in `rank`. One about none
    stays behind the sentence that it follows, unless it concludes, or nothing but such sentences follow: those are the
    conclusion, in their own order. Connectives that lean on a sentence which no longer stands before are taken off.

    Args:
        sentences: (sentence, modalities) in the order of the text.
        order: Modalities in the order in which their segments are to stand.
        rank: Modalities from the most important on; `order` if empty.
    """
    rank = rank or order
    closing = len(sentences)
    while closing and not sentences[closing - 1][1]:
        closing -= 1
    # "This may be …" behind the last piece of evidence speaks of it, as long as something else is left to conclude
    while (
        0 < closing < len(sentences) - 1
        and _REFERS.match(sentences[closing][0])
        and not concludes(sentences[closing][0])
    ):
        closing += 1
    places: dict[str, list[int]] = {modality: [] for modality in (*order, "")}
    last = ""
    for i, (sentence, modalities) in enumerate(sentences):
        if modalities:
            last = min(modalities, key=rank.index)
        elif i >= closing or concludes(sentence):
            places[""].append(i)
            continue
        places[last].append(i)
    texts = [MARKER.sub("", sentence, count=1) if MARKER.match(sentence) else sentence for sentence, _ in sentences]
    before = -1
    for place in (*order, ""):
        for i in places[place]:
            if before != i - 1:
                texts[i] = repaired(texts[i], first=before < 0, conclusion=place == "")
            before = i
    parts = {place: " ".join(texts[i] for i in indices) for place, indices in places.items() if indices}
    conclusion = parts.pop("", "")
    changes = ((old, new) for (old, _), new in zip(sentences, texts, strict=True) if old != new)
    return Arranged(parts, conclusion, tuple(changes))


def repaired(sentence: str, first: bool = False, conclusion: bool = False) -> str:
    """The sentence without the connectives at its beginning, and without "as mentioned above".

    Args:
        sentence: One that no longer stands behind the sentence that it stood behind.
        first: It opens the text: "also" in its middle goes too.
        conclusion: It is part of the conclusion, where "Therefore," and its like still fit.
    """
    text = sentence
    while match := _CONNECTIVE.match(text):
        rest = text[match.end() :]
        if (conclusion and concludes(text)) or not any(map(str.isalnum, rest)):
            break
        if "," not in match.group() and _NOT_ONE.match(rest):
            break
        text = rest
    if not QUOTE.search(text):
        text = _ABOVE.sub("", text)
        if first and "but also" not in text:
            text = re.sub(r"(?<=\w) also (?=\w)", " ", text, count=1)
    return text[:1].upper() + text[1:] if text != sentence else text
