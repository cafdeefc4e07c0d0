"""What a reader of feature files hands on: one split's clips, with their frames fetched one clip at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from migr.errors import InputError


@dataclass
class Frames:
    """The frame sequences of one modality.

    Attributes:
        dim: Numbers a frame.
        clip: Position of a clip -> its own frames without padding, (L, dim), of any number type; L may be 0.
        longer: How many clips say that they are longer than what is stored of them (they were cut when padded).
        release: Gives back the memory that looking at them has mapped.
    """

    dim: int
    clip: Callable[[int], NDArray[Any]]
    longer: int = 0
    release: Callable[[], None] = lambda: None


@dataclass
class SplitSource:
    """One split as its file has it; all columns are as long as `ids`."""

    ids: list[str]
    labels: list[float | str]
    transcripts: list[str | None]
    frames: dict[str, Frames] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)  # a modality's own labels (SIMS)
    rows: list[dict[str, Any]] = field(default_factory=list)  # further columns of clips.jsonl, or none


def padded(numbers: NDArray[Any], lengths: Sequence[int] | None, where: str, release: Callable[[], None]) -> Frames:
    """Frames from one padded array (N, L, D).

    Args:
        numbers: Mapped or in memory.
        lengths: Frames of each clip; None: those between the first and the last one that is not all zeros.
        where: File and column, for messages.
        release: As in `Frames`.

    Raises:
        InputError: Not three axes, or a negative length.
    """
    if numbers.ndim != 3:
        raise InputError(f"{where}: {numbers.ndim} axes; expected clips x frames x features")
    if lengths is None:
        return Frames(numbers.shape[2], lambda i: trimmed(numbers[i]), 0, release)
    if len(lengths) != len(numbers):
        raise InputError(f"{where}: {len(lengths)} lengths for {len(numbers)} clips")
    if lengths and min(lengths) < 0:
        raise InputError(f"{where}: a length of {min(lengths)}")
    longer = sum(length > numbers.shape[1] for length in lengths)

    def clip(i: int) -> NDArray[Any]:
        frames = numbers[i, : lengths[i]]
        return frames if frames.any() else frames[:0]  # all zeros: no face was found, say

    return Frames(numbers.shape[2], clip, longer, release)


def trimmed(frames: NDArray[Any]) -> NDArray[Any]:
    """Frames without those that are all zeros before the first and behind the last other one."""
    places = np.flatnonzero(frames.any(1))
    return frames[places[0] : places[-1] + 1] if len(places) else frames[:0]
