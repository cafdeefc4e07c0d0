"""What a reasoning claims as evidence: is it a statement, about which modality, and does the clip have that one?

Rewards pay for it and the evaluation counts it, with the functions of this file. All of it is ours; time is linear.
"""

import re
from collections.abc import Collection
from itertools import pairwise

from migr.text.format import Part, Response
from migr.text.sentences import modalities_of, split

FEWEST_WORDS = 3  # distinct ones: "shouting" or "a voice, a voice" is a cue, not a statement
DISTINCT = 2 / 3  # of the pairs of neighbouring words, at least: a sentence said twice has 0.6, prose 0.9 and more
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W\d_]+)*")
# "There is no sound", "the face cannot be seen": says that a modality is missing, and claims nothing from it
_THINGS = (
    r"(?:sounds?|audio|voices?|speech|soundtrack|music|video|pictures?|images?|frames?|faces?|person|subtitles?"
    r"|transcripts?|words)"
)
_DENIES = re.compile(
    rf"\b(?:no|not any|without(?: any)?|lacks?|lacking|missing)\s+(?:\w+\s+){{0,2}}{_THINGS}\b"
    rf"|\b{_THINGS}\b[^.;]{{0,40}}\b(?:is|are|was|were|has been)\s+"
    r"(?:not|absent|missing|unavailable|silent|muted?|inaudible|invisible)\b"
    rf"|\b{_THINGS}\b[^.;]{{0,20}}\b(?:cannot|can't|can not|could not|couldn't) be\b"
    r"|\bcannot (?:see|hear)\b|\bcan't (?:see|hear)\b|\b(?:is|are) (?:silent|muted?|without sound)\b",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of a text in lower case; of Chinese and Japanese the characters."""
    return _WORD.findall(text.casefold())


def is_statement(text: str) -> bool:
    """Whether a text says something: `FEWEST_WORDS` different words, and not the same ones over and over.

    >>> is_statement("The voice is harsh."), is_statement("harsh"), is_statement("A harsh voice. A harsh voice.")
    (True, False, False)
    """
    known = words(text)
    pairs = list(pairwise(known))
    return len(set(known)) >= FEWEST_WORDS and len(set(pairs)) >= DISTINCT * len(pairs)


def own_share(part: Part) -> float:
    """The share of a tagged segment's sentences with evidence that speak of the segment's own modality; 0 without any.

    What stands in `<text>` may be the words themselves, which speak of anything.
    """
    own = part.modalities[0]
    spoken = [modalities_of(sentence) for sentence in split(part.text)]
    if own == "text":
        return sum(not names or own in names for names in spoken) / len(spoken) if spoken else 0.0
    spoken = [names for names in spoken if names]
    return sum(own in names for names in spoken) / len(spoken) if spoken else 0.0


def absent_evidence(response: Response, present: Collection[str]) -> tuple[str, ...]:
    """The modalities that a reasoning takes evidence from although its clip does not have them.

    A tagged segment claims its own modality, and another one where a sentence of it speaks of that alone; an untagged
    sentence claims what it speaks of. A sentence that says that something is not there claims nothing. Words can be
    heard: `text` is absent only from a clip with neither transcript nor sound.

    Args:
        response: The parsed response.
        present: The clip's modalities (`migr.clips.manifest.Clip.modalities`).
    """
    heard = {*present, *(("text",) if "audio" in present else ())}
    if heard >= {"video", "audio", "text"}:
        return ()
    claimed: list[str] = []
    for part in response.parts:
        if part.tagged:
            sentences = [sentence for sentence in split(part.text) if not _DENIES.search(sentence)]
            claimed += part.modalities if sentences else ()
            claimed += [names[0] for sentence in sentences if len(names := modalities_of(sentence)) == 1]
        elif not _DENIES.search(part.text):
            claimed += part.modalities
    return tuple(dict.fromkeys(modality for modality in claimed if modality not in heard))
