"""Score one response against its clip: the one function behind every reward.

Each reward is a number in [0, 1] for any string, or None where it cannot be judged. The evaluation reads responses
with the same parser and the same judges (`migr.text.format`, `migr.judge`), so reward and metric cannot drift apart.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from migr.judge import Judge
from migr.text.format import Response, parse, plain
from migr.text.labels import LabelSet

LONGEST = 20_000  # characters of a response that are scored

# Words that speak of one modality. Ours; from descriptions of faces and voices in general.
_WORDS = {
    "video": """
        face facial picture image eye eyes brow brows eyebrow eyebrows eyelids lids gaze stare mouth lip lips jaw
        nose cheek cheeks smile frown look looks see seen visible whites expression posture gesture""",
    "audio": """
        voice sound sounds tone pitch volume loudness pace rhythm words syllables pauses speech speaks speaking
        gasp cry shout whisper drawl stammer bursts heard hear audible intonation""",
    "text": "says said transcript wording line lines sentence phrase subtitle",
}  # fmt: skip
_MODALITY = {word: modality for modality, words in _WORDS.items() for word in words.split()}
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Score:
    """One response's parts and what they were read from."""

    response: Response
    answer: str | None  # canonical label, or None: no single known answer
    correct: bool
    judged: str | None  # the emotion that the judge reads from the reasoning alone
    consistency: float | None  # the judge's probability of the answer; None where the judge failed


def read(text: str, label: str, labels: LabelSet, judge: Judge) -> Score:
    """Parse a response, compare its answer with the label, and let the judge read its reasoning."""
    response = parse(text[:LONGEST])
    answer = labels.canonical(response.answer) if response.answer else None
    judgement = judge.judge([plain(response)])[0]
    agreement = None
    if answer is not None and judgement.probabilities:
        agreement = min(1.0, max(0.0, judgement.probabilities.get(answer, 0.0)))
    return Score(response, answer, answer == label, judgement.emotion, agreement)


def grounding(response: Response, importance: Mapping[str, float]) -> float | None:
    """Half for starting with the dominant modality, half for the share of segments that speak of their own modality.

    Args:
        response: The parsed response.
        importance: Modality -> weight. A tie at the top means that no order is better: that half is then given.

    Returns:
        A number in [0, 1]; 0 without segments, None without importances.
    """
    if not importance:
        return None
    segments = response.reasoning.segments if response.reasoning else ()
    if not segments:
        return 0.0
    starts = importance.get(segments[0][0], 0.0) >= max(importance.values())
    return 0.5 * starts + 0.5 * sum(speaks_of(text) == modality for modality, text in segments) / len(segments)


def speaks_of(text: str) -> str | None:
    """The modality that most words of a text speak of; None without such words or with a tie."""
    counts: dict[str, int] = {}
    for word in _WORD.findall(text.casefold()):
        if word in _MODALITY:
            counts[_MODALITY[word]] = counts.get(_MODALITY[word], 0) + 1
    best = [modality for modality, count in counts.items() if count == max(counts.values())]
    return best[0] if len(best) == 1 else None
