"""Who writes the descriptions of planted clips: each modality for itself, or a coherent story.

A coherent annotator describes what comes first as it is; the second description then follows the first one's emotion
with probability q, as annotators, captioners and language models do, else it is its own. So what the second modality
shows is lost where the two differ, and putting the text into another order afterwards does not bring it back. With
q = 0 nothing changes, whatever is written first. Ours; `eval/drift.py --targets` measures q in the texts.

Where the first description is true, a model can follow it by looking at what it describes. Only mistakes that nothing
in the clip shows part the two: what follows a mistaken description has followed words.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from migr.errors import InputError
from migr.files.records import Row
from migr.planted.clips import bank_of
from migr.planted.wording import describe
from migr.text.labels import DFEW

WRITTEN = ("video-first", "audio-first", "dominant-first", "least-first", "random")


@dataclass(frozen=True)
class Annotator:
    """How descriptions of a clip come about.

    Attributes:
        coherence: q, the probability with which the second follows the first one's emotion.
        written: Which modality is described first: one of WRITTEN.
        mistakes: How often what is described first is told as another emotion, any of them.

    Raises:
        InputError: A value is out of range.
    """

    coherence: float = 0.0
    written: str = "video-first"
    mistakes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("coherence", "mistakes"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must be a probability, 0 to 1, not {getattr(self, name)}")
        if self.written not in WRITTEN:
            raise InputError(f"written: {self.written!r} is not one of {', '.join(WRITTEN)}")

    def order(self, clip: Row) -> tuple[str, str]:
        """The modalities of a planted clip in the order in which they are described."""
        dominant = clip["planted"]["dominant"]
        least = "audio" if dominant == "video" else "video"
        random_first = random.Random(f"written {clip['clip_id']}").choice(("video", "audio"))
        firsts = {"dominant-first": dominant, "least-first": least, "random": random_first}
        first = firsts.get(self.written, self.written.removesuffix("-first"))
        return (first, "audio" if first == "video" else "video")

    def tells(self, clip: Row, emotions: Mapping[str, str], seed: int) -> dict[str, str]:
        """What is told of each modality, in the order of writing.

        Args:
            clip: A planted clip.
            emotions: Modality -> the emotion that is told where nothing is followed.
            seed: With the clip's id it decides whether the first is followed, and mistaken; the same clips for a
                smaller q, too.
        """
        first, second = self.order(clip)
        follows = random.Random(f"coherence {seed} {clip['clip_id']}").random() < self.coherence
        chance = random.Random(f"mistake {seed} {clip['clip_id']}")
        others = [emotion for emotion in DFEW if emotion != emotions[first]]
        told = chance.choice(others) if chance.random() < self.mistakes else emotions[first]
        return {first: told, second: told if follows else emotions[second]}


APART = Annotator()  # describes each modality for itself


def rewritten(row: Row, annotator: Annotator, seed: int) -> Row:
    """A clip's spec with this annotator's descriptions; those that tell what their modality shows stay as they are."""
    truth = row["planted"]
    segments = dict(row["segments"])
    for modality, emotion in annotator.tells(row, truth["shown"], seed).items():
        if emotion != truth["shown"][modality]:
            rng = random.Random(f"coherent {seed} {row['clip_id']}")
            clear, bank = modality == truth["dominant"], bank_of(row["split"])
            segments[modality] = describe(modality, emotion, clear, bank, rng)
    return {**row, "segments": segments}
