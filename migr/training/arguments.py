"""What the training stages read beside TRL's own configuration."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

import migr.omni  # noqa: F401  (mends the imports of trl and transformers, so it comes first)
from migr.clips.media import MediaSettings
from migr.errors import InputError


@dataclass
class OmniArguments:
    """The model, the clips, how media are read, and what is adapted."""

    model: str = field(default="", metadata={"help": "folder (or name) of a Qwen2.5-Omni or Qwen3-Omni model"})
    clips: str = field(default="", metadata={"help": "clips.jsonl of stages/data.py"})
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
    audio_in_video: bool = field(
        default=False, metadata={"help": "interleave sound and frames in time (Qwen's use_audio_in_video)"}
    )
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
            audio_in_video=self.audio_in_video,
        )

    @property
    def lora_config(self) -> Any:
        """LoRA on the language model alone, as PEFT's `LoraConfig`."""
        from peft import LoraConfig

        from migr.omni.load import LORA

        return LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            **LORA,
            task_type="CAUSAL_LM",
        )

    def card_settings(self, config: Any) -> dict[str, Any]:
        """What the model card says of the settings: ours, and those of the trainer that shape the result."""
        names = ["learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"]
        names += ["gradient_accumulation_steps", "num_generations", "temperature", "beta", "reward_weights", "seed"]
        values = {
            key: value for key, value in vars(self).items() if key not in ("clips", "targets", "cache_dir", "overwrite")
        }
        return values | {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}

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


def parse(types: Sequence[Any], argv: list[str] | None = None, description: str | None = None) -> tuple[Any, ...]:
    """Parse command line and `--config` YAML into dataclasses; the command line wins, an unknown key is an error.

    Args:
        types: Dataclasses, ours first, then TRL's config.
        argv: Arguments; `sys.argv[1:]` if None.
        description: What `--help` says first.

    Raises:
        InputError: A key or flag that no dataclass has, a value of the wrong type, a YAML that cannot be read.
    """
    argv = sys.argv[1:] if argv is None else argv
    # TRL knows `--config FILE` alone, and the first one
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if argv.count("--config") > 1 or argv[-1:] == ["--config"]:
        raise InputError("--config: give the path of one YAML file")
    parser = _parser(types, description)
    try:
        return tuple(parser.parse_args_and_config(argv))
    except InputError:
        raise
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        raise InputError(f"configuration: {' '.join(str(error).split())}") from None


def _parser(types: Sequence[Any], description: str | None) -> Any:
    """TRL's parser, with every mistake as one line, a hint at the key that was meant, and a short usage."""
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message} (--help lists the flags)")

        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # no subparsers, so called once
            found, unknown = super().parse_known_args(args, namespace)
            if flags := [part for part in unknown if part.startswith("-")] or unknown:
                raise InputError(f"unknown flag {flags[0]!r}{self.hint(flags[0])}")
            return found, unknown

        def set_defaults_with_config(self, **config: Any) -> list[str]:
            actions = {action.dest: action for action in self._actions}
            for key, value in config.items():
                if key not in actions:
                    raise InputError(f"--config: unknown key {key!r}{self.hint(key)}")
                if actions[key].nargs == "+" and isinstance(value, str):
                    config[key] = [value]  # `rewards: format` is a list of one
                elif actions[key].type is int and isinstance(value, bool | float):
                    config[key] = str(value)  # argparse checks the type of strings alone
            return super().set_defaults_with_config(**config)

        def hint(self, name: str) -> str:
            known = [action.dest for action in self._actions]
            near = difflib.get_close_matches(name.lstrip("-").partition("=")[0].replace("-", "_"), known, 1)
            return f", did you mean {near[0]!r}?" if near else ""

    parser = Parser(
        list(types),
        description=description,
        usage="%(prog)s [--config YAML] [--field value ...]",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    # `--config` itself is taken out by TRL before argparse sees it; here only for --help
    parser.add_argument("--config", default=argparse.SUPPRESS, help="YAML file with any of these fields")
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass
