"""What several commands let you set, declared once: a field here is a flag and a YAML key of each of them.

A field's `help` is what `--help` says. `migr.cli.Parser.add_settings` makes the flags.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from migr.errors import InputError

BACKENDS = ("pyav", "decord")
MIN_AUDIO_SECONDS = 0.1  # shorter sound gives no audio token at all, without an error
ENGINES = ("auto", "vllm", "transformers")
DTYPES = ("auto", "float32", "bfloat16")


def setting(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field with what `--help` says of it; `more` goes to argparse, such as `choices`."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class MediaSettings:
    """How clips are read. Defaults follow qwen_vl_utils (2 frames a second, at least 4), with smaller frames.

    Attributes:
        fps: Frames wanted per second of clip time; `min_frames` and `max_frames` bound the count.
        min_pixels, max_pixels: Bounds of height x width after resizing.
        max_seconds: A longer clip is an error, never cut (0.1 s more of sound passes: codecs fill their last packet).
        backend: "pyav", or "decord", which takes no less time and reads fewer files: what it cannot, PyAV does.
        audio_in_video: The model gets sound and frames interleaved in time (Qwen's `use_audio_in_video`), where a clip
            has both; else the frames, then the sound. Reading is the same.

    Raises:
        InputError: A value is out of range; names the field.
    """

    fps: float = setting(2.0, "frames sampled a second of clip time")
    min_frames: int = setting(4, "at least this many frames a clip, even")
    max_frames: int = setting(32, "at most this many frames a clip, even")
    min_pixels: int = setting(56 * 56, "frames are enlarged to this many pixels (height x width)")
    max_pixels: int = setting(448 * 448, "frames are reduced to this many pixels (height x width)")
    max_seconds: float = setting(30.0, "a longer clip cannot be used")
    backend: str = setting("pyav", f"the video reader: {' or '.join(BACKENDS)}")
    audio_in_video: bool = setting(False, "interleave sound and frames in time (Qwen's use_audio_in_video)")

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"backend: {self.backend!r} is not one of {', '.join(BACKENDS)}")
        if not 0 < self.fps < math.inf:
            raise InputError(f"fps: must be a positive number, not {self.fps}")
        if not MIN_AUDIO_SECONDS < self.max_seconds < math.inf:
            raise InputError(f"max_seconds: must be more than {MIN_AUDIO_SECONDS}, not {self.max_seconds}")
        if not 2 <= self.min_frames <= self.max_frames or self.min_frames % 2 or self.max_frames % 2:
            raise InputError(f"min_frames, max_frames: need even 2 <= {self.min_frames} <= {self.max_frames}")
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise InputError(f"min_pixels, max_pixels: need 1 <= {self.min_pixels} <= {self.max_pixels}")


@dataclass
class LabelSettings:
    """Which emotions there are."""

    labels: str | None = setting(
        None, "dfew, mafw, or a file with one label a line (default: those of the clips or the model, else dfew)"
    )


@dataclass
class CacheSettings:
    """Where decoded clips are kept."""

    cache_dir: Path | None = setting(None, "folder of decoded clips, shared by all stages")


@dataclass
class OutputSettings:
    """What happens to an output that is there"""

    overwrite: bool = setting(False, "discard what another run has left in --out")


@dataclass(frozen=True)
class EngineSettings:
    """What generates: vLLM or transformers.

    Raises:
        InputError: A value is out of range; names the field.
    """

    engine: str = setting("auto", f"{', '.join(ENGINES)}; auto: vllm where it is installed", choices=ENGINES)
    dtype: str = setting("auto", f"type of the weights: {', '.join(DTYPES)}", choices=DTYPES)
    batch_size: int | None = setting(None, "requests worked on together (default: 64 with vllm, 16 with transformers)")
    tensor_parallel: int = setting(1, "GPUs that vllm spreads one model over")
    vllm_gpu_memory_utilization: float = setting(0.9, "share of a GPU's memory that vllm takes, 0 to 1")
    max_model_length: int = setting(8192, "longest prompt and answer together, in tokens")

    def __post_init__(self) -> None:
        for name, known in (("engine", ENGINES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(known)}")
        for name in ("batch_size", "tensor_parallel", "max_model_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            share = self.vllm_gpu_memory_utilization
            raise InputError(f"vllm_gpu_memory_utilization: must be above 0 and at most 1, not {share}")

    def resolved(self, audio_in_video: bool = False) -> Self:
        """The same with `auto` made the engine that will run, so that a run's record says which it was."""
        vllm = find_spec("vllm") is not None and not audio_in_video
        return replace(self, engine="vllm" if vllm else "transformers") if self.engine == "auto" else self

    def options(self) -> dict[str, Any]:
        """As keyword arguments of `open_engine`."""
        values = asdict(self)
        return {"backend": values.pop("engine"), **values}


@dataclass(frozen=True)
class DecodingSettings:
    """How answers are drawn.

    Raises:
        InputError: A value is out of range; names the field.
    """

    max_new_tokens: int = setting(256, "longest answer, in tokens")
    temperature: float = setting(0.0, "0 takes the likeliest token; above, tokens are sampled")
    seed: int = setting(0, "seed of sampling")

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: must be at least 1, not {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature: must be 0 or more, not {self.temperature}")
