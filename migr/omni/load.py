"""Load the thinker (the part of Qwen2.5-Omni or Qwen3-Omni that reads, sees, hears and writes) and its processor."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from migr.errors import InputError
from migr.omni.family import FAMILIES, Family, family_of

# Matches the language model's projections and nothing else: the audio and the video tower have `q_proj` and the like
# too, and a bare list of names would adapt them as well. PEFT matches it against whole module names.
# In Qwen3-Omni it reaches the attention alone: its experts are no modules but stacked weights (128 a layer, 8 used for
# a token), and LoRA on all of them would have more weights than gradients to teach them; its router stays as it is.
LANGUAGE_MODEL_LORA = r"(?:thinker\.)?model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
# For a model with experts, PEFT (0.21) turns that expression into the last parts of the names it found, `q_proj` and so
# on, which the audio tower has as well: so the towers are named as excluded too.
TOWERS = r"(?:.*\.)?(?:audio_tower|visual)\..*"
LORA: dict[str, Any] = {"target_modules": LANGUAGE_MODEL_LORA, "exclude_modules": TOWERS}

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}


def load_processor(path: str | Path) -> Any:
    """Load tokenizer, feature extractors and chat template.

    Args:
        path: A model folder, or a name on the Hugging Face Hub.

    Returns:
        A `Qwen2_5OmniProcessor` or `Qwen3OmniMoeProcessor`.

    Raises:
        InputError: It is no model of a known family, or files are missing.
    """
    name = check_model(path)
    try:
        with quiet():
            processor = model_family(name).processor.from_pretrained(name)
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
        attn_implementation: As in transformers; by default flash attention where it is installed, there is a GPU and
            the weights are not float32, else transformers' own choice.

    Returns:
        The family's `...ThinkerForConditionalGeneration` in evaluation mode, inside a `PeftModel` if there is an
        adapter.

    Raises:
        InputError: No model of a known family, weights that are missing or of another shape, an adapter that does not
            fit.
    """
    name = check_model(path)
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if attn_implementation is None and torch.cuda.is_available() and is_flash_attn_2_available():
        stored = PreTrainedConfig.get_config_dict(name)[0]
        half = str(dtype if dtype != "auto" else stored.get("dtype", stored.get("torch_dtype")))
        attn_implementation = "flash_attention_2" if half.endswith("float16") else None  # it knows half precision only
    options: dict[str, Any] = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with quiet():
            model, report = model_family(name).thinker.from_pretrained(
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
    positions_by_row(model)
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


def positions_by_row(model: Any) -> None:
    """Let the thinker read from the token ids whether a row's sound is interleaved with its video.

    `use_audio_in_video` of transformers' forward is one value for the whole batch: with True, a row that has video but
    no sound gets no positions in time and space, and the rows after it get its media's. Here the marks tell: a vision
    mark directly before an audio mark opens interleaved media. So the prompt alone decides, in training and in
    generation, and the argument need not be passed.
    """
    original = type(model).get_rope_index

    def get_rope_index(
        input_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_audio_in_video: bool = False,
        audio_seqlens: Tensor | None = None,
        second_per_grids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        config = model.config
        opens = input_ids == config.vision_start_token_id
        sounds = input_ids == config.audio_start_token_id
        nested = (opens[:, :-1] & sounds[:, 1:]).any(1).tolist()
        if not any(nested):
            grids = (image_grid_thw, video_grid_thw, attention_mask)
            return original(model, input_ids, *grids, False, audio_seqlens, second_per_grids)
        pictures = (opens[:, :-1] & (input_ids[:, 1:] == config.image_token_id)).sum(1).tolist()
        counts = zip(pictures, opens.sum(1).tolist(), sounds.sum(1).tolist(), strict=True)
        done, rows = [0, 0, 0], []
        for row, (images, marks, audios) in enumerate(counts):
            ends = [start + n for start, n in zip(done, (images, marks - images, audios), strict=True)]
            picture, video, sound = (slice(*bounds) for bounds in zip(done, ends, strict=True))
            rows.append(
                original(
                    model,
                    input_ids[row : row + 1],
                    _part(image_grid_thw, picture),
                    _part(video_grid_thw, video),
                    _part(attention_mask, slice(row, row + 1)),
                    nested[row],
                    _part(audio_seqlens, sound),
                    _part(second_per_grids, video),
                )
            )
            done = ends
        kind = rows[nested.index(True)][0].dtype
        return torch.cat([positions.to(kind) for positions, _ in rows], 1), torch.cat([delta for _, delta in rows])

    model.get_rope_index = get_rope_index


def _part(values: Tensor | None, rows: slice) -> Tensor | None:
    """These rows, or None where there are none."""
    return None if values is None or rows.start == rows.stop else values[rows]


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
    if not Path(name).is_dir() and (Path(name).parent.is_dir() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)):
        raise InputError(f"{path}: no such folder")
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        raise InputError(f"{path}: this is an adapter; give its base model, or run stages/export.py first")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no such folder or model ({_first_line(error)})") from error
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
    family = family_of(PreTrainedConfig.get_config_dict(str(path))[0]["model_type"])
    assert family is not None, path
    return family


def thinker_config(path: str | Path) -> Any:
    """The thinker's configuration of a model that `check_model` accepts."""
    return model_family(path).config.from_pretrained(str(path))


def is_whole(path: str | Path) -> bool:
    """Whether a model is laid out like the real repository, which is what vLLM loads, and not a thinker alone."""
    return PreTrainedConfig.get_config_dict(str(path))[0]["model_type"] in FAMILIES


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
