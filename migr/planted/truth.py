"""What is true of a planted clip, held against what a response says."""

from pathlib import Path
from typing import Any

from migr.clips.manifest import planted_of
from migr.errors import InputError
from migr.files.records import iter_jsonl
from migr.planted.wording import CUES
from migr.text.format import parse


def cue_emotion(modality: str, text: str) -> str | None:
    """The emotion whose cue phrases of a modality (in the train wording, which is the models') most stand in a text.

    Returns:
        The emotion; of equally many the first; None without any cue.
    """
    phrases = {emotion: [phrase for cue in cues for phrase in cue[0]] for emotion, cues in CUES[modality].items()}
    counts = {emotion: sum(phrase in text for phrase in words) for emotion, words in phrases.items()}
    best = max(counts, key=lambda emotion: counts[emotion])
    return best if counts[best] else None


def segment_truth(predictions: Path, clips: Path) -> dict[str, Any]:
    """How often a segment about the dominant modality speaks of the emotion that this modality shows.

    Only the planted benchmark knows what a modality shows. A segment counts by the majority of its cue phrases (in the
    train wording, which is the models'); a segment without cues is untrue. Ours; it guards against a model that earns
    consistency by inventing evidence for its answer.

    Returns:
        `segment_truth` (a fraction) and `segment_truth_n`, the number of segments; {} if nothing is planted.

    Raises:
        InputError: A file is missing or wrong, or a prediction's clip is not in the manifest.
    """
    planted = {
        row["clip_id"]: planted_of(row, f"{clips}: clip {row['clip_id']!r}") for row in iter_jsonl(clips, ("clip_id",))
    }
    if not any(planted.values()):
        return {}
    true = total = 0
    for row in iter_jsonl(predictions, ("clip_id", "response")):
        truth = planted.get(row["clip_id"])
        if not truth:
            raise InputError(f"{predictions}: clip {row['clip_id']!r} is not among the planted clips of {clips}")
        reasoning, shown = parse(row["response"]).reasoning, truth.get("shown", {})
        for modality, text in reasoning.segments if reasoning else ():
            if modality == truth.get("dominant") and modality in CUES and modality in shown:
                total += 1
                true += cue_emotion(modality, text) == shown[modality]
    return {"segment_truth": true / total if total else None, "segment_truth_n": total}
