"""Load the thinker (the part of Qwen2.5-Omni or Qwen3-Omni that reads, sees, hears and writes) and its processor."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from migr.errors import InputError, as_input_error
from migr.files.records import read_object
from migr.omni.adapters import attach_adapter
from migr.omni.checks import OURS_ALONE, check_finite, check_processor, check_sizes, is_local, kernels_in
from migr.omni.family import FAMILIES, Family, family_of
from migr.omni.prompt import render_prompt

# Matches the language model's projections and nothing else: the audio and the video tower have `q_proj` and the like
# too, and a bare list of names would adapt them as well. PEFT matches it against whole module names.
# In Qwen3-Omni it reaches the attention alone: its experts are no modules but stacked weights (128 a layer, 8 used for
# a token), and LoRA on all of them would have more weights than gradients to teach them; its router stays as it is.
LANGUAGE_MODEL_LORA = r"(?:thinker\.)?model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
# For a model with experts, PEFT (0.21) turns that expression into the last parts of the names it found, `q_proj` and so
# on, which the audio tower has as well: so the towers are named as excluded too.
TOWERS = r"(?:.*\.)?(?:audio_tower|visual)\..*"
LORA: dict[str, Any] = {"target_modules": LANGUAGE_MODEL_LORA, "exclude_modules": TOWERS}

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}


def load_processor(path: str | Path) -> Any:
    """Load tokenizer, feature extractors and chat template.

    Args:
        path: A model folder, or a name on the Hugging Face Hub.

    Returns:
        A `Qwen2_5OmniProcessor` or `Qwen3OmniMoeProcessor`.

    Raises:
        InputError: It is no model of a known family, files are missing, or its chat template cannot be used.
    """
    name = check_model(path)
    check_processor(name)
    with quiet(), as_input_error(f"{path}: the processor cannot be loaded"):
        processor = model_family(name).processor.from_pretrained(name, **OURS_ALONE, local_files_only=is_local(name))
    if not processor.chat_template:
        raise InputError(f"{path}: the processor has no chat template (chat_template.jinja is missing)")
    render_prompt(processor, "Which emotion?", True, True)  # one that cannot be used shows here, before any work
    return processor


def load_thinker(
    path: str | Path,
    dtype: str = "auto",
    adapter: str | Path | None = None,
    trainable: bool = False,
    attn_implementation: str | None = None,
) -> Any:
    """Load the thinker.

    Args:
        path: A model folder (the whole repository, or a thinker alone), or a name on the Hugging Face Hub.
        dtype: "auto" (as stored), "float32" or "bfloat16".
        adapter: A folder with a PEFT adapter, put on top.
        trainable: Whether the weights may be trained: the adapter's where there is one, else all.
        attn_implementation: As in transformers; by default flash attention where it is installed, there is a GPU and
            the weights are not float32, else transformers' own choice.

    Returns:
        The family's thinker (`migr.omni.thinker`) in evaluation mode, inside a `PeftModel` if there is an
        adapter.

    Raises:
        InputError: No model of a known family, weights that are missing or of another shape, an adapter that does not
            fit.
    """
    name = check_model(path)
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if attn_implementation is None and torch.cuda.is_available() and is_flash_attn_2_available():
        stored = PreTrainedConfig.get_config_dict(name, local_files_only=is_local(name))[0]
        half = str(dtype if dtype != "auto" else stored.get("dtype", stored.get("torch_dtype")))
        attn_implementation = "flash_attention_2" if half.endswith("float16") else None  # it knows half precision only
    check_model_size(name)
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with quiet(), as_input_error(f"{path}: the model cannot be loaded"):
        model, report = model_family(name).thinker.from_pretrained(
            name,
            dtype=DTYPES[dtype],
            use_safetensors=True,  # the other format is pickle, which runs code
            output_loading_info=True,
            local_files_only=is_local(name),
            **OURS_ALONE,
            **options,
        )
    # transformers fills missing weights with random ones and goes on
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{path}: {len(missing)} weights are missing, for example {missing[0]}")
    check_finite(model.named_parameters(), path)
    model.requires_grad_(trainable and adapter is None)
    if adapter is None:
        return model
    with quiet():
        model = attach_adapter(model, adapter, trainable, own=(LANGUAGE_MODEL_LORA, TOWERS))
    return model.eval()


def media_token_ids(processor: Any) -> list[int]:
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
    """Return the name to load from, or raise InputError if it is no model of a known family. Reads the config only."""
    name = str(path)
    # a misspelled `runs/base` is no name on the Hub: nobody is asked for it
    if not Path(name).is_dir() and (Path(name).parent.is_dir() or not HUB_NAME.fullmatch(name)):
        raise InputError(f"{path}: no such folder")
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{path}: this is an adapter; give its base model, or run stages/export.py first")
    if is_local(name):
        stored = read_object(Path(name) / "config.json", finite=False)
        if kernels := kernels_in(stored):
            raise InputError(f"{path}: config.json names code for attention ({kernels}), which is never fetched or run")
    with as_input_error(f"{path}: no such folder or model"):
        config, _ = PreTrainedConfig.get_config_dict(name, local_files_only=is_local(name))
    if config.get("auto_map") or family_of(str(config.get("model_type"))) is None:
        known = " or ".join(family.title for family in FAMILIES.values())
        raise InputError(
            f"{path}: no {known} model (config.json: model_type {config.get('model_type')!r}). Other models, such as "
            "HumanOmni, bring code of their own, and code that comes with a model is never run here; let their own "
            "scripts write the responses, then evaluate those: eval/consistency.py --predictions FILE"
        )
    return name


def model_family(path: str | Path) -> Family:
    """The family of a model that `check_model` accepts."""
    family = family_of(PreTrainedConfig.get_config_dict(str(path), local_files_only=is_local(path))[0]["model_type"])
    assert family is not None, path
    return family


def thinker_config(path: str | Path) -> Any:
    """The thinker's configuration of a model that `check_model` accepts."""
    with as_input_error(f"{path}: the model's configuration cannot be used"):
        return model_family(path).config.from_pretrained(str(path), local_files_only=is_local(path))


def check_model_size(name: str) -> None:
    """Refuse a folder whose configuration describes more weights than are there (`check_sizes`)."""
    if is_local(name) and not is_deepspeed_zero3_enabled():  # there, its modules would be spread over the processes
        with quiet():
            check_sizes(name, lambda: model_family(name).thinker(thinker_config(name)))


def is_whole(path: str | Path) -> bool:
    """Whether a model is laid out like the real repository, which is what vLLM loads, and not a thinker alone."""
    return PreTrainedConfig.get_config_dict(str(path), local_files_only=is_local(path))[0]["model_type"] in FAMILIES


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
