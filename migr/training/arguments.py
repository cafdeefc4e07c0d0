"""What the training stages read beside TRL's own configuration."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import migr.omni  # noqa: F401  (mends the imports of trl and transformers, so it comes first)
from migr.errors import InputError
from migr.media import MediaSettings


@dataclass
class OmniArguments:
    """The model, the clips, how media are read, and what is adapted."""

    model: str = field(default="", metadata={"help": "folder (or name) of a Qwen2.5-Omni model"})
    adapter: str | None = field(default=None, metadata={"help": "LoRA adapter to continue from (a folder of sft.py)"})
    clips: str = field(default="", metadata={"help": "clips.jsonl of stages/data.py"})
    split: str = field(default="train", metadata={"help": "split of the clips to train on"})
    labels: str = field(default="dfew", metadata={"help": "dfew, mafw, or a file with one label a line"})
    cache_dir: str | None = field(
        default=None, metadata={"help": "where processed media are kept (shared by all stages)"}
    )
    limit: int | None = field(default=None, metadata={"help": "train on this many rows only, drawn by the seed"})
    fps: float = field(default=2.0, metadata={"help": "frames sampled a second"})
    min_frames: int = field(default=4, metadata={"help": "at least this many frames a clip"})
    max_frames: int = field(default=32, metadata={"help": "at most this many frames a clip"})
    min_pixels: int = field(default=56 * 56, metadata={"help": "frames are enlarged to this many pixels"})
    max_pixels: int = field(default=448 * 448, metadata={"help": "frames are reduced to this many pixels"})
    dtype: str = field(default="auto", metadata={"help": "weights' type: auto, float32, bfloat16"})
    attn_implementation: str | None = field(default=None, metadata={"help": "e.g. sdpa, flash_attention_2"})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank; 0 trains all weights, the towers too"})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale"})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout"})
    overwrite: bool = field(default=False, metadata={"help": "discard a run of another configuration in output_dir"})

    @property
    def media_settings(self) -> MediaSettings:
        """The media settings among these arguments."""
        return MediaSettings(
            fps=self.fps,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def require(self, *names: str) -> None:
        """Check that these arguments are given and, if files or folders, there; fail before any long work."""
        for name in names:
            value = getattr(self, name)
            if not value:
                raise InputError(
                    f"--{name} is missing: give it on the command line or in the YAML (--help explains it)"
                )
            if name in ("clips", "targets", "importance", "adapter") and not Path(value).exists():
                raise InputError(f"--{name} {value}: no such file or folder")


def parse(types: Sequence[Any], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Parse command line and `--config` YAML into dataclasses; the command line wins, an unknown key is an error.

    Args:
        types: Dataclasses, ours first, then TRL's config.
        argv: Arguments; `sys.argv[1:]` if None.

    Raises:
        InputError: A key that no dataclass has, a value of the wrong type, a YAML that cannot be read.
    """
    from trl import TrlParser

    argv = sys.argv[1:] if argv is None else argv
    try:
        return tuple(TrlParser(list(types)).parse_args_and_config(argv, fail_with_unknown_args=True))
    except (ValueError, TypeError, FileNotFoundError, yaml.YAMLError) as error:
        raise InputError(f"configuration: {' '.join(str(error).split())}") from None
