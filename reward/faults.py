"""Why a target would not earn full rewards, if the model wrote it: what `stages/targets.py` tells its user."""

from collections.abc import Collection, Mapping

from migr.text.claims import absent_evidence, is_statement, own_share
from migr.text.format import Response
from migr.text.language import is_english

# Reason -> what the targets do. The judge's part of consistency is not among them: no judge is asked here.
FAULTS = {
    "format": "are not in the rewards' format",
    "language": "are not in English, which the grounding reward reads alone",
    "start": "do not start with the dominant modality",
    "absent": "take evidence from a modality that the clip lacks",
    "statement": "have a segment that is no statement (fewer than three different words, or the same again and again)",
    "own": "have a segment with sentences that speak of another modality, or of none that is known",
}


def faults_of(response: Response, importance: Mapping[str, float], present: Collection[str]) -> dict[str, str]:
    """What keeps a response from full format, admissibility and grounding: reason of `FAULTS` -> where.

    Args:
        response: The parsed target.
        importance: Modality -> weight; empty where the clip has none, or no certain one: grounding is None then.
        present: The clip's modalities.
    """
    faults: dict[str, str] = {}
    if response.error:
        faults["format"] = response.error
    if not is_english(response.plain):
        return faults | {"language": response.plain[:80]}
    segments = [part for part in response.parts if part.tagged]
    if absent := absent_evidence(response, present):
        faults["absent"] = ", ".join(absent)
    if importance and (not segments or importance.get(segments[0].modalities[0], 0.0) < max(importance.values())):
        faults["start"] = segments[0].modalities[0] if segments else "no segments"
    for part in segments:
        if part.modalities != ("text",) and not is_statement(part.text):
            faults.setdefault("statement", f"{part.modalities[0]}: {part.text[:200]}")
        elif own_share(part) < 1.0:
            faults.setdefault("own", f"{part.modalities[0]}: {part.text[:200]}")
    if not is_statement(response.plain):
        faults.setdefault("statement", response.plain[:200])
    return faults
