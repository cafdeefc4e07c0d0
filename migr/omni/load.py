"""Load the thinker (the part of Qwen2.5-Omni that reads, sees, hears and writes) and its processor."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.utils import logging as transformers_logging

from migr.errors import InputError

# Matches the language model's projections and nothing else: the audio and the video tower have `q_proj` and the like
# too, and a bare list of names would adapt them as well. PEFT matches it against whole module names.
LANGUAGE_MODEL_LORA = r"(?:thinker\.)?model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"

MODEL_TYPES = ("qwen2_5_omni", "qwen2_5_omni_thinker")  # the whole repository; the thinker alone, as a trainer saves it
DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}


def load_processor(path: str | Path) -> Qwen2_5OmniProcessor:
    """Load tokenizer, feature extractors and chat template.

    Args:
        path: A model folder, or a name on the Hugging Face Hub.

    Raises:
        InputError: It is no Qwen2.5-Omni model, or files are missing.
    """
    name = check_model(path)
    try:
        with quiet():
            processor = Qwen2_5OmniProcessor.from_pretrained(name)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: the processor cannot be loaded ({_first_line(error)})") from error
    if not processor.chat_template:
        raise InputError(f"{path}: the processor has no chat template (chat_template.jinja is missing)")
    return processor


def load_thinker(
    path: str | Path,
    dtype: str = "auto",
    adapter: str | Path | None = None,
    trainable: bool = False,
    attn_implementation: str | None = None,
) -> Any:
    """Load the thinker, ready for TRL's trainers.

    Args:
        path: A model folder (the whole repository, or a thinker alone), or a name on the Hugging Face Hub.
        dtype: "auto" (as stored), "float32" or "bfloat16".
        adapter: A folder with a PEFT adapter, put on top.
        trainable: Whether the weights may be trained: the adapter's where there is one, else all.
        attn_implementation: As in transformers; its own choice by default.

    Returns:
        A `Qwen2_5OmniThinkerForConditionalGeneration` in evaluation mode, inside a `PeftModel` if there is an adapter.

    Raises:
        InputError: No Qwen2.5-Omni model, weights that are missing or of another shape, an adapter that does not fit.
    """
    name = check_model(path)
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    thinker: Any = Qwen2_5OmniThinkerForConditionalGeneration
    try:
        with quiet():
            model, report = thinker.from_pretrained(
                name,
                dtype=DTYPES[dtype],
                use_safetensors=True,  # the other format is pickle, which runs code
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"{path}: the model cannot be loaded ({_first_line(error)})") from error
    # transformers fills missing weights with random ones and goes on
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{path}: {len(missing)} weights are missing, for example {missing[0]}")
    prepare_for_trl(model)
    model.requires_grad_(trainable and adapter is None)
    if adapter is None:
        return model
    adapter = check_adapter(adapter)
    try:
        with quiet():
            model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise InputError(f"{adapter}: the adapter does not fit {path} ({_first_line(error)})") from error
    return model.eval()


def prepare_for_trl(model: Any) -> None:
    """Give the thinker the `base_model` that TRL's fused head calls: hidden states for all inputs, without logits.

    TRL (1.16, `add_fused_lm_head`) runs `model.base_model(...)` and projects its `last_hidden_state` in tiles. The
    thinker has no module under its `base_model_prefix` ("thinker"), so `base_model` is the thinker itself, with its
    head. Here a function takes that place (no module: parameters and saved files keep their names). It runs the class's
    own forward, media included, with the head switched to identity for the call, so the "logits" are hidden states.
    """

    def backbone(*args: Any, **kwargs: Any) -> SimpleNamespace:
        head = model.lm_head
        model.lm_head = torch.nn.Identity()
        try:  # not `model(...)`: the trainer has replaced the instance's forward
            outputs = type(model).forward(model, *args, **kwargs)
        finally:
            model.lm_head = head
        return SimpleNamespace(last_hidden_state=outputs.logits, router_logits=getattr(outputs, "router_logits", None))

    setattr(model, model.base_model_prefix, backbone)


def media_token_ids(processor: Qwen2_5OmniProcessor) -> list[int]:
    """Ids of all tokens that stand for media or frame them. Sampling one breaks the next forward pass."""
    tokens = [
        processor.audio_token,
        processor.image_token,
        processor.video_token,
        processor.audio_bos_token,
        processor.audio_eos_token,
        processor.vision_bos_token,
        processor.vision_eos_token,
        "<|vision_pad|>",
    ]
    vocabulary = processor.tokenizer.get_vocab()
    return sorted({vocabulary[token] for token in tokens if token in vocabulary})


def check_model(path: str | Path) -> str:
    """Return the name to load from, or raise InputError if it is no Qwen2.5-Omni model. Reads the config only."""
    name = str(path)
    # a misspelled `runs/base` is no name on the Hub: nobody is asked for it
    if not Path(name).is_dir() and (Path(name).parent.is_dir() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)):
        raise InputError(f"{path}: no such folder")
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{path}: this is an adapter; give its base model, or run stages/export.py first")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no such folder or model ({_first_line(error)})") from error
    if (kind := config.get("model_type")) not in MODEL_TYPES:
        raise InputError(f"{path}: no Qwen2.5-Omni model (config.json: model_type {kind!r}, not {MODEL_TYPES[0]!r})")
    return name


def check_adapter(path: str | Path) -> str:
    """Return the folder's name, or raise InputError if no PEFT adapter is stored there as safetensors."""
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (Path(path) / file).is_file():
            raise InputError(f"{path}: no adapter ({file} is missing)")
    return str(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading reports away: the talker's unused weights fill pages, and we check what matters."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
