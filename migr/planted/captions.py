"""Captions of planted clips, which err as captions do, and all that the benchmark can say."""

import random

from migr.files.records import Row
from migr.omni.prompt import ANSWER_DIRECTLY, DESCRIBE, FORMAT, NAME, question
from migr.planted import clips as planted
from migr.planted import wording
from migr.planted.annotators import APART, Annotator
from migr.text.format import render
from migr.text.labels import DFEW

# Emotions whose captions tell, this often, the signs of the one that they are most easily mistaken for. Ours; the
# pairs are the usual ones of people's judgements. No text that judges are fitted on or measured by errs so.
CAPTION_ERRORS = 0.5
MISTAKEN = {"sad": "neutral", "angry": "disgust", "fear": "surprise"}


def texts() -> list[str]:
    """What the benchmark can say, for the tokenizer: on too little text, samples come out four times as long."""
    prompts = [question(DFEW), ANSWER_DIRECTLY, FORMAT, *DESCRIBE.values(), *NAME.values()] * 200
    rows = [planted.spec(7, split, index) for split in ("train", "test") for index in range(1500)]
    targets = [
        render(r["segments"], r["conclusion"], r["label"], random.Random(i).sample(["video", "audio"], 2))
        for i, r in enumerate(rows)
    ]
    return [*prompts, *targets, "system\nYou are a helpful assistant.", "user\n", "assistant\n"]


def caption(clip: Row, modality: str, emotion: str) -> str:
    """What a captioner says of a modality that shows an emotion, always in the same words."""
    frame = (wording.CLEAR if modality == clip["planted"]["dominant"] else wording.HEDGED)[modality]
    return frame[0][0].format(*(phrases[0][0] for phrases in wording.CUES[modality][emotion]))


def captioned(clip: Row, seed: int, annotator: Annotator = APART, errors: float = CAPTION_ERRORS) -> Row:
    """The reasoning of a clip as it comes from captions; of some emotions they often tell another one's signs.

    Args:
        clip: A planted clip.
        seed: Draws the errors, and what a coherent annotator follows.
        annotator: Who writes; an error in what comes first is followed, too.
        errors: How often an emotion that is easily mistaken is.
    """
    rng = random.Random(f"caption {seed} {clip['clip_id']}")
    emotions = {}
    for modality in ("video", "audio"):
        shown = clip["planted"]["shown"][modality]
        wrong = shown in MISTAKEN and rng.random() < errors
        emotions[modality] = MISTAKEN[shown] if wrong else shown
    emotions = annotator.tells(clip, emotions, seed)
    segments = {modality: caption(clip, modality, emotion) for modality, emotion in emotions.items()}
    conclusion = wording.CONCLUSION[clip["planted"]["dominant"]][0][0]
    return {"clip_id": clip["clip_id"], "segments": segments, "conclusion": conclusion, "by": "captions"}


def story(row: Row, order: list[str]) -> Row:
    """Describe both modalities in one go, in the given order: the task in which a base model learns to be coherent."""
    prompt = " ".join(DESCRIBE[modality] for modality in order)
    return {"prompt": prompt, "target": " ".join(row["segments"][modality] for modality in order)}


def format_task(captions: list[Row], rng: random.Random) -> Row:
    """Put given pieces into the tags, in the given order: what any language model can do.

    The pieces come from different clips, so that nothing about reasoning and answers is learned from them.
    """
    order = rng.sample(["video", "audio"], 2)
    pieces = {modality: rng.choice(captions)["segments"][modality] for modality in order}
    conclusion, answer = rng.choice(captions)["conclusion"], rng.choice(DFEW)
    prompt = FORMAT.format(pieces=" ".join(pieces.values()), conclusion=conclusion, answer=answer)
    return {"prompt": prompt, "target": render(pieces, conclusion, answer, order)}
