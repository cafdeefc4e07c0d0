"""What the training stages read beside TRL's own configuration."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import migr.omni  # noqa: F401  (mends the imports of trl and transformers, so it comes first)
from migr.cli import hint, read_config
from migr.clips.record import ModelRecord
from migr.errors import InputError
from migr.files.fingerprint import file_digest, model_digest
from migr.settings import CacheSettings, LabelSettings, MediaSettings


@dataclass
class OmniArguments(LabelSettings, CacheSettings):
    """The model, the clips, and what is adapted.

    Attributes:
        media_settings: How clips are read; set by `parse`.
        explicit: Names of the fields, TRL's among them, that a flag or the YAML gave; set by `parse`.
    """

    model: str = field(default="", metadata={"help": "folder (or name) of a Qwen2.5-Omni or Qwen3-Omni model"})
    clips: str = field(default="", metadata={"help": "clips.jsonl of stages/data.py"})
    limit: int | None = field(default=None, metadata={"help": "train on this many rows only, drawn by the seed"})
    dtype: str = field(default="auto", metadata={"help": "weights' type: auto, float32, bfloat16"})
    attn_implementation: str | None = field(default=None, metadata={"help": "e.g. sdpa, flash_attention_2"})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank; 0 trains all weights, the towers too"})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale"})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout"})
    overwrite: bool = field(default=False, metadata={"help": "discard a run of another configuration in output_dir"})

    media_settings: MediaSettings = field(default_factory=MediaSettings, init=False)
    explicit: frozenset[str] = field(default_factory=frozenset, init=False)

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
        hidden = ("clips", "targets", "cache_dir", "overwrite", "media_settings", "explicit")
        values = {key: value for key, value in vars(self).items() if key not in hidden}
        values |= asdict(self.media_settings)
        return values | {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}

    def run_config(self) -> dict[str, Any]:
        """What defines the run: values, and the contents of what is read, not the paths."""
        read = ("model", "adapter", "clips", "targets", "importance")
        hidden = (*read, "labels", "cache_dir", "judge_cache", "overwrite", "media_settings", "explicit")
        values = {key: value for key, value in vars(self).items() if key not in hidden}
        for name in read:
            path = Path(getattr(self, name, None) or "")
            if name == "model":
                values[name] = model_digest(path) if (path / "config.json").is_file() else str(path)
            elif getattr(self, name, None):
                values[name] = file_digest(path / "adapter_model.safetensors" if name == "adapter" else path)
        return {**values, "media": asdict(self.media_settings)}

    def inherit_media(self, record: ModelRecord | None) -> None:
        """Read clips as the model, or the adapter, was trained to; say where that was asked for otherwise."""
        if record is None:
            return
        recorded = {name: value for name, value in record.media.items() if name not in self.explicit}
        for name, value in record.media.items():
            if (here := getattr(self.media_settings, name)) != value and name in self.explicit:
                print(f"note: {name} is {here} here and {value} in {record.source}", file=sys.stderr)
        self.media_settings = replace(self.media_settings, **recorded)

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


@dataclass
class SFTArguments(OmniArguments):
    """What SFT reads beside TRL's SFTConfig."""

    targets: str = field(default="", metadata={"help": "targets.jsonl of stages/targets.py"})
    stop_loss: float | None = field(
        default=None, metadata={"help": "end once the mean loss of the last logging_steps is below this"}
    )


@dataclass
class GRPOArguments(OmniArguments):
    """What GRPO reads beside TRL's GRPOConfig."""

    adapter: str | None = field(default=None, metadata={"help": "LoRA adapter to continue from (a folder of sft.py)"})
    split: str = field(default="train", metadata={"help": "split of the clips to train on"})
    importance: str | None = field(default=None, metadata={"help": "importance.jsonl; needed for the grounding reward"})
    judge: str = field(
        default="lexicon",
        metadata={
            "help": "judge of the consistency reward: lexicon, embedded, a folder, llm:DIR or endpoint:URL#MODEL"
        },
    )
    judge_cache: str | None = field(
        default=None, metadata={"help": "file of what a judge said before (of folders, llm and endpoint)"}
    )
    hide_emotion_words: bool = field(
        default=True, metadata={"help": "that judge does not see words that name an emotion: naming it does not pay"}
    )
    allow_blind_judge: bool = field(
        default=False, metadata={"help": "train although the judge cannot name some of the clips' labels"}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["format", "accuracy", "consistency", "grounding"],
        metadata={"help": "rewards, in the order of reward_weights; also dotted paths, such as my_lib.rewards.brevity"},
    )
    reward_parameters: dict | str | None = field(  # type: ignore[type-arg]
        default=None, metadata={"help": "parameters of own rewards: {name: {parameter: value}}"}
    )


def parse(types: Sequence[Any], argv: list[str] | None = None, description: str | None = None) -> tuple[Any, ...]:
    """Parse command line and `--config` YAML into dataclasses; the command line wins, an unknown key is an error.

    Args:
        types: Ours (an `OmniArguments`), then TRL's config.
        argv: Arguments; `sys.argv[1:]` if None.
        description: What `--help` says first.

    Returns:
        One of each type; ours with `media_settings` and `explicit`.

    Raises:
        InputError: A key or flag that no dataclass has, a value of the wrong type, a YAML that cannot be read.
    """
    words = [part for word in (sys.argv[1:] if argv is None else argv) for part in _parted(word)]
    if words.count("--config") > 1 or words[-1:] == ["--config"]:
        raise InputError("--config: give the path of one YAML file (`include: FILE` in it reads another)")
    parser = _parser([types[0], MediaSettings, *types[1:]], description)
    config: dict[str, Any] = {}
    if "--config" in words:
        at = words.index("--config")
        config = read_config(Path(words[at + 1]))
        del words[at : at + 2]
    try:
        parser.set_defaults_with_config(**config)
        own, media, *others = parser.parse_args_into_dataclasses(args=words)
    except InputError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"configuration: {' '.join(str(error).split())}") from None
    flags = (parser.dest(word) for word in words if word.startswith("--"))
    for part in (own, *others):
        check_numbers(part)
    own.media_settings, own.explicit = media, frozenset([*config, *filter(None, flags)])
    return own, *others


def _parted(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--config=") else [word]


# Fields of ours and of TRL's that other values make senseless, and that are found out after minutes: (least, most).
BOUNDS = {
    "learning_rate": (0.0, 1e3), "per_device_train_batch_size": (1, 1 << 20),
    "gradient_accumulation_steps": (1, 1 << 20),
    "num_train_epochs": (0.0, 1e6), "seed": (0, 2**32 - 1), "lora_r": (0, 4096), "lora_alpha": (0, 1 << 20),
    "lora_dropout": (0.0, 1.0), "limit": (1, 1 << 40), "num_generations": (2, 1 << 16), "temperature": (0.0, 1e3),
    "beta": (0.0, 1e6), "weight_decay": (0.0, 1e3), "max_grad_norm": (0.0, 1e12), "max_completion_length": (1, 1 << 20),
}  # fmt: skip


def check_numbers(config: Any) -> None:
    """Raise InputError if a field is beyond its `BOUNDS`, or not a number at all; names it."""
    for name, (least, most) in BOUNDS.items():
        value = getattr(config, name, None)
        if value is not None and not least <= value <= most:  # NaN is neither
            raise InputError(f"--{name}: must be from {least:g} to {most:g}, not {value}")


def _parser(types: Sequence[Any], description: str | None) -> Any:
    """TRL's parser, with every mistake as one line, a hint at the key that was meant, and a short usage."""
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message} (--help lists the flags)")

        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # no subparsers, so called once
            parsed, unknown = super().parse_known_args(args, namespace)
            if flags := [part for part in unknown if part.startswith("-")] or unknown:
                raise InputError(f"unknown flag {flags[0]!r}{hint(flags[0], self.names())}")
            return parsed, unknown

        def set_defaults_with_config(self, **config: Any) -> list[str]:
            actions = {action.dest: action for action in self._actions}
            for key, value in config.items():
                if key not in actions:
                    raise InputError(f"--config: unknown key {key!r}{hint(key, self.names())}")
                if actions[key].nargs == "+" and isinstance(value, str):
                    config[key] = [value]  # `rewards: format` is a list of one
                elif actions[key].type is int and isinstance(value, bool | float):
                    config[key] = str(value)  # argparse checks the type of strings alone
            return super().set_defaults_with_config(**config)

        def names(self) -> list[str]:
            return [action.dest for action in self._actions]

        def dest(self, word: str) -> str | None:
            action = self._option_string_actions.get(word.partition("=")[0])
            return action.dest if action is not None else None

    parser = Parser(
        list(types),
        description=description,
        usage="%(prog)s [--config YAML] [--field value ...]",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    # `--config` itself is taken out before argparse sees it; here only for --help
    parser.add_argument("--config", default=argparse.SUPPRESS, help="YAML file with any of these fields")
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass
