"""The two model families, and all that differs between them: classes, picture grid, tokens of sound, marks.

The thinker (the part that reads, sees, hears and writes) is loaded alone from the whole repository's files, where
its weights stand under `thinker.`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
)

from migr.omni.thinker import Qwen2_5OmniThinker, Qwen3OmniMoeThinker


@dataclass(frozen=True)
class Family:
    """What the code must know about a model family.

    Attributes:
        name: `model_type` in the config.json of the whole repository; with `_thinker` behind it, of a thinker alone.
        title: Its name in messages.
        architecture: Class name of the whole model, by which vLLM finds its own.
        thinker: Our extension of transformers' class (`migr.omni.thinker`).
        config, processor: The classes of transformers.
        factor: Sides of frames are multiples of this many pixels (patch size x spatial merge).
        positions_per_second: Rotary time positions a second of clip time (the processor's default).
        audio_tokens: Mel frames (100 a second) -> tokens of sound; the processor's formula.
        pads_sound: The processor pads sound with zeros to the extractor's window (else it takes it as it is).
    """

    name: str
    title: str
    architecture: str
    thinker: Any
    config: Any
    processor: Any
    factor: int
    positions_per_second: float
    audio_tokens: Callable[[int], int]
    pads_sound: bool


def _audio_tokens_2_5(frames: int) -> int:
    """Two convolutions of the tower, each halving: 25 tokens a second."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _audio_tokens_3(frames: int) -> int:
    """Chunks of 100 frames, each through three halving convolutions to 13 tokens: 13 tokens a second."""
    rest = (frames % 100 - 1) // 2 + 1
    return ((rest - 1) // 2 + 1 - 1) // 2 + 1 + frames // 100 * 13


QWEN2_5 = Family(
    name="qwen2_5_omni",
    title="Qwen2.5-Omni",
    architecture="Qwen2_5OmniForConditionalGeneration",
    thinker=Qwen2_5OmniThinker,
    config=Qwen2_5OmniThinkerConfig,
    processor=Qwen2_5OmniProcessor,
    factor=28,
    positions_per_second=25,
    audio_tokens=_audio_tokens_2_5,
    pads_sound=True,
)
QWEN3 = Family(
    name="qwen3_omni_moe",
    title="Qwen3-Omni",
    architecture="Qwen3OmniMoeForConditionalGeneration",
    thinker=Qwen3OmniMoeThinker,
    config=Qwen3OmniMoeThinkerConfig,
    processor=Qwen3OmniMoeProcessor,
    factor=32,
    positions_per_second=13,
    audio_tokens=_audio_tokens_3,
    pads_sound=False,
)
FAMILIES = {family.name: family for family in (QWEN2_5, QWEN3)}


def family_of(item: Any) -> Family | None:
    """The family of a `model_type`, a processor, a thinker or its configuration; None if it is of another one."""
    if isinstance(item, str):
        return FAMILIES.get(item.removesuffix("_thinker"))
    kinds = ((family, (family.processor, family.thinker, family.config)) for family in FAMILIES.values())
    return next((family for family, classes in kinds if isinstance(item, classes)), None)
