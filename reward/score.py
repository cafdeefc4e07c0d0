"""Score one response against its clip: the reading behind every reward.

Each reward is a number in [0, 1] for any string, or None where it cannot be judged. The evaluation takes responses
apart with the same function (`migr.text.format.parse`) and shows its judge the same text: what is paid is what is
counted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migr.judge import Judge, Judgement
from migr.text.claims import absent_evidence, is_statement, own_share
from migr.text.format import LONGEST, Response, parse
from migr.text.labels import LabelSet
from migr.text.language import is_english


@dataclass(frozen=True)
class Score:
    """One response's parts and what they were read from.

    Attributes:
        response: The response, taken apart.
        correct: Whether its answer is the label and stands where an answer belongs (`is_correct`).
        admissible: Whether its reasoning is evidence that may support an answer (`is_admissible`).
        judgement: What the judge read from the reasoning alone; None where nobody asked it (the answer is not correct).
        consistency: The reward in [0, 1]; None where the judge failed.
    """

    response: Response
    correct: bool
    admissible: bool
    judgement: Judgement | None
    consistency: float | None


def text_of(completion: Any) -> str:
    """A completion's text, whether TRL hands it over as a string or as a list of messages."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def is_correct(response: Response, label: str, labels: LabelSet) -> bool:
    """Whether the answer is the label. An answer among the thoughts, or of a runaway response, is none."""
    if response.hides_answer or len(response.text) > LONGEST:
        return False
    return response.label(labels) == label


def is_admissible(response: Response, present: Collection[str] | None) -> bool:
    """Whether a reasoning may support an answer: statements, and from no modality that the clip lacks.

    Args:
        response: The parsed response.
        present: The clip's modalities; None where they are unknown: then every modality may be spoken of.
    """
    segments = [part for part in response.parts if part.tagged and part.modalities != ("text",)]
    if not is_statement(response.plain) or not all(is_statement(part.text) for part in segments):
        return False
    return present is None or not absent_evidence(response, present)


def score(
    texts: Sequence[str],
    truths: Sequence[str],
    labels: LabelSet,
    judge: Judge,
    present: Sequence[Collection[str] | None] | None = None,
) -> list[Score]:
    """Take responses apart, compare their answers with the labels, and let the judge read the correct ones, at once.

    Args:
        texts: (n,) responses.
        truths: (n,) canonical labels of their clips.
        labels: The label set.
        judge: Reads `Response.plain` of each correct response; equal texts once.
        present: (n,) the clips' modalities.
    """
    responses = [parse(text) for text in texts]
    correct = [is_correct(response, truth, labels) for response, truth in zip(responses, truths, strict=True)]
    readable = list(dict.fromkeys(r.plain for r, right in zip(responses, correct, strict=True) if right and r.plain))
    judgements = dict(zip(readable, judge.judge(readable) if readable else [], strict=True))
    scores = []
    for i, (response, right) in enumerate(zip(responses, correct, strict=True)):
        admissible = is_admissible(response, present[i] if present is not None else None)
        judgement = judgements.get(response.plain) if right else None
        consistency: float | None = 0.0
        if admissible and judgement is not None:
            chances = judgement.probabilities
            consistency = min(1.0, max(0.0, chances.get(truths[i], 0.0))) if chances else None
        scores.append(Score(response, right, admissible, judgement, consistency))
    return scores


def grounding(
    response: Response, importance: Mapping[str, float], present: Collection[str] | None = None
) -> float | None:
    """Half for starting with the dominant modality, half for how far the segments speak of their own modality.

    A segment of a modality that the clip lacks, or one that is no statement, is worth nothing, and no start either.

    Args:
        response: The parsed response.
        importance: Modality -> weight. A tie at the top means that no order is better: that half is then given.
        present: The clip's modalities; None takes those of `importance`.

    Returns:
        A number in [0, 1]; 0 without segments, None without importances, or where the text is not English.
    """
    if not importance:
        return None
    present = importance if present is None else present
    segments = [part for part in response.parts if part.tagged]
    if not segments:
        return 0.0
    if not is_english(response.plain):
        return None
    shares = [
        own_share(part)
        if part.modalities[0] in present and (part.modalities == ("text",) or is_statement(part.text))
        else 0.0
        for part in segments
    ]
    starts = shares[0] > 0 and importance.get(segments[0].modalities[0], 0.0) >= max(importance.values())
    return 0.5 * starts + 0.5 * sum(shares) / len(shares)
