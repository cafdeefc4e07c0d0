"""How much GPU memory a run needs, estimated from its configuration before it starts.

All formulae are here, in bytes; h is the width of the language model, T the tokens of a row, B the rows of a batch, N
the GPUs. They follow what the libraries keep (transformers 5.17, PEFT 0.21, TRL 1.16), not a rule of thumb; the largest
clip that the settings allow is assumed. `tests/memory/test_memory.py` compares what a layer keeps with what autograd
really saves in layers of the published widths, `eval/bench/memory_check.py` the whole with a GPU's peak. Not in them:
other programs on the GPU.

* weights: parameters x bytes of the type (bf16: 2); ZeRO-3: / N, and the whole again while it generates.
* adapter: LoRA has r (in + out) parameters a projection. Plain training keeps weight, gradient and two Adam moments in
  float32, and a copy of the weight for autocast (18 a parameter). DeepSpeed: bf16 weight (2), gradient and float32
  copy and moments (2 + 12) / N.
  `lora_r: 0`: the same of all parameters.
* activations of the language model: with checkpointing 2 h B T a layer, and one layer's inside while it is computed
  again; without it, every layer's inside. See `_inside`.
* towers: frozen, so nothing is kept, and in training each clip goes through alone; the largest is what one layer
  computes with, see `_towers`.
* head: the fused one works in tiles of 32,768 words x at most 4,096 tokens, on the target alone.
* generation (GRPO without vLLM): key-value cache of prompt and completion for all rows, the logits of their last tokens
  in float32, and the merged copies of the adapted weights; then nothing of training is there but weights and states.
* vLLM in the same process: its share of the GPU.
"""

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from migr.clips.media import MediaSettings
from migr.errors import InputError
from migr.memory.published import configuration, without_weights
from migr.omni.family import Family, family_of
from migr.omni.load import LANGUAGE_MODEL_LORA

GIB = 2**30
CONTEXT = 0.9 * GIB  # the CUDA context, its libraries' kernels and workspaces; what an empty process shows on an H100
SLACK = 0.05  # share of what PyTorch's allocator holds beyond what is in use
QUESTION = 120  # tokens of the system message and the emotion question
TILE = (4096, 32768)  # tokens x words of TRL's fused head


@dataclass(frozen=True)
class Estimate:
    """Bytes a GPU, by what they are for; those of one moment add up to the peak.

    Attributes:
        model: What was counted.
        parts: All parts by name, in bytes.
        moments: Moment (such as "training step") -> names of the parts that are there at the same time.
        counts: `parameters` of the thinker, `trained`, `multiplied` (the weights that a token of the language model is
            multiplied with), `tokens` of a row, `rows` of a batch.
    """

    model: str
    parts: dict[str, float]
    moments: dict[str, tuple[str, ...]]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """The largest moment, with the allocator's slack and the CUDA context."""
        return max(self.total(moment) for moment in self.moments)

    def total(self, moment: str) -> float:
        """Bytes of one moment."""
        names = self.moments[moment]
        reserved = sum(self.parts[name] for name in names if name == "vllm")
        return CONTEXT + reserved + (1 + SLACK) * sum(self.parts[name] for name in names if name != "vllm")

    def line(self, gpu: float | None = None) -> str:
        """One line: the peak, its largest parts, and how it compares with a GPU of so many bytes."""
        moment = max(self.moments, key=self.total)
        names = sorted(self.moments[moment], key=lambda name: -self.parts[name])
        parts = ", ".join(f"{name} {self.parts[name] / GIB:.1f}" for name in names if self.parts[name] > 0.05 * GIB)
        text = f"memory: about {self.peak / GIB:.1f} GiB a GPU at the {moment}" + (f" ({parts})" if parts else "")
        if gpu is not None:
            text += f" of {gpu / GIB:.0f}"
            if self.peak > gpu:
                text += ": too much; take smaller or fewer frames, a smaller batch, checkpointing or ZeRO"
        return text


def estimate(
    model: str | Path | Any,
    stage: str,
    media: MediaSettings,
    *,
    rows: int = 1,
    answer: int = 256,
    seconds: float | None = None,
    lora_r: int = 16,
    dtype: str = "bfloat16",
    checkpointing: bool = True,
    zero: int = 0,
    gpus: int = 1,
    generated: int = 0,
    vllm: float = 0.0,
) -> Estimate:
    """Estimate the memory of a stage on one GPU.

    Args:
        model: Model folder, name of a published model, or a thinker's configuration.
        stage: "sft", "grpo" or "eval".
        media: How clips are sampled.
        rows: Rows of a batch on one GPU.
        answer: Tokens of the target or completion.
        seconds: Length of the longest clip; by default what `max_frames` at `fps` cover.
        lora_r: LoRA rank; 0 trains all weights.
        dtype: Type of the weights: "bfloat16" or "float32".
        checkpointing: Gradient checkpointing.
        zero: DeepSpeed's ZeRO stage; 0 is plain training.
        gpus: Number of GPUs.
        generated: Rows that one GPU generates at once (GRPO without vLLM, evaluation with transformers).
        vllm: Bytes that vLLM takes on this GPU, 0 where it is not in the process.

    Raises:
        InputError: The model is not known.
    """
    named = isinstance(model, str | Path)
    thinker: Any = _thinker(str(model)) if named else without_weights(model)
    config: Any = thinker.config
    text = config.text_config
    total, adapted = count(thinker, lora_r)
    width = 2 if dtype == "bfloat16" else 4
    tokens = prompt_tokens(config, media, seconds) + answer
    sharded = gpus if zero == 3 else 1

    parts = {"weights": width * total / sharded}
    if stage == "eval":
        trained = 0
    else:
        trained = adapted if lora_r else total
        parts["adapter" if lora_r else "training states"] = _states(trained, width, zero, gpus, own=not lora_r)
        inside, outputs = rows * tokens * _inside(text, width), rows * tokens * width * text.hidden_size
        layers = text.num_hidden_layers
        parts["activations"] = outputs * layers + inside if checkpointing else inside * layers
        parts["backward"] = rows * tokens * _backward(text, width)
        head = min(rows * answer, TILE[0]) * min(TILE[1], text.vocab_size) * width
        parts["head"] = head + rows * answer * text.hidden_size * 4
    together = generated if stage == "eval" else 1 if lora_r else rows
    parts["towers"] = max(together, 1) * _towers(config, media, seconds, width)
    if zero == 3:
        largest = max(sum(p.numel() for p in layer.parameters()) for layer in thinker.model.layers)
        parts["gathered layers"] = width * max(2 * largest, thinker.lm_head.weight.numel())
        parts["gathered for generation"] = width * total * (1 - 1 / sharded) if generated else 0.0
    if generated:
        cache = 2 * text.num_hidden_layers * text.num_key_value_heads * _head(text) * width
        parts["key-value cache"] = generated * tokens * cache
        if stage == "grpo" and zero != 3:
            parts["merged weights"] = width * sum(module.weight.numel() for module in _adapted(thinker))
        parts["last logits"] = generated * text.vocab_size * 4
    if vllm:
        parts["vllm"] = vllm

    always = tuple(name for name in ("weights", "adapter", "training states", "vllm") if name in parts)
    moments: dict[str, tuple[str, ...]] = {}
    if stage != "eval":
        step = ("activations", "backward", "head", "gathered layers")
        moments["training step"] = (*always, *(name for name in step if name in parts))
        moments["towers"] = (*always, "towers")
    if generated:
        names = ("gathered for generation", "merged weights", "key-value cache", "last logits")
        moments["generation"] = (*always, *(name for name in names if name in parts))
        moments["towers"] = (*always, *(("gathered for generation",) if zero == 3 else ()), "towers")
    if not moments:
        moments["generation"] = ("vllm",) if vllm else (*always, "towers")
    counts = {"parameters": total, "trained": trained, "multiplied": _multiplied(thinker)}
    counts |= {"tokens": tokens, "rows": rows}
    return Estimate(str(model) if named else config.model_type, parts, moments, counts)


@lru_cache(maxsize=4)
def _thinker(model: str) -> nn.Module:
    return without_weights(configuration(model))


def count(thinker: nn.Module, lora_r: int) -> tuple[int, int]:
    """Parameters of the thinker, and of LoRA of this rank on its language model."""
    total = sum(parameter.numel() for parameter in thinker.parameters())
    return total, sum(lora_r * (module.in_features + module.out_features) for module in _adapted(thinker))


def _adapted(thinker: nn.Module) -> list[nn.Linear]:
    """The projections that LoRA adapts."""
    named = thinker.named_modules()
    return [m for name, m in named if isinstance(m, nn.Linear) and re.fullmatch(LANGUAGE_MODEL_LORA, name)]


def prompt_tokens(config: Any, media: MediaSettings, seconds: float | None = None) -> int:
    """Tokens of the longest prompt that the settings allow: frames, sound, question."""
    return sum(family_tokens(config, media, seconds)) + QUESTION


def family_tokens(config: Any, media: MediaSettings, seconds: float | None = None) -> tuple[int, int]:
    """Tokens of frames and of sound of the largest clip that the settings allow."""
    family = _family(config)
    video = media.max_frames // 2 * (max(media.max_pixels, family.factor**2) // family.factor**2)
    return video, family.audio_tokens(round(100 * seconds_of(media, seconds)))


def _multiplied(thinker: Any) -> int:
    """Weights of the language model's projections that a token meets: of experts, those it goes through."""
    text, total = thinker.config.text_config, sum(p.numel() for p in thinker.model.layers.parameters())
    if experts := getattr(text, "num_experts_per_tok", 0):
        one = 3 * text.hidden_size * text.moe_intermediate_size * text.num_hidden_layers
        total -= (text.num_experts - experts) * one
    return total


def _family(config: Any) -> Family:
    family = family_of(config)
    assert family is not None, type(config)
    return family


def seconds_of(media: MediaSettings, seconds: float | None = None) -> float:
    """Length of the longest clip: as given, else what `max_frames` at `fps` cover."""
    return min(media.max_frames / media.fps, media.max_seconds) if seconds is None else seconds


def _head(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _states(trained: int, width: int, zero: int, gpus: int, own: bool) -> float:
    """Weights (an adapter's; a whole model's stand under `weights`), gradients, float32 copies, Adam moments."""
    if zero:
        return trained * ((0 if own else 2) / (gpus if zero == 3 else 1) + (2 + 12) / gpus)
    return trained * (3 * width if own else 4 + 4 + 8 + 2)  # of whole models all in the weights' own type


def _inside(text: Any, width: int) -> float:
    """Bytes a token that one decoder layer keeps for its backward pass, all of its projections adapted.

    Two norms keep their input in float32 (8 h); each adapted projection keeps its own copy of its input (q, k, v: 3 h;
    o: q's width; gate, up: 2 h; down: the feed-forward width f), the attention q, k, v and its output, the gated unit
    its three factors (3 f). Experts are not adapted: each of a token's k experts keeps three times its width and its
    output; and q and k are normed in float32.
    """
    h, head = text.hidden_size, _head(text)
    q, kv = text.num_attention_heads * head, text.num_key_value_heads * head
    attention = 8 * h + width * (3 * h + q) + width * (2 * q + 2 * kv)
    if experts := getattr(text, "num_experts_per_tok", 0):
        return attention + 4 * (q + kv) + width * experts * (3 * text.moe_intermediate_size + h)
    return attention + width * (2 * h + 4 * text.intermediate_size)


def _backward(text: Any, width: int) -> float:
    """Bytes a token of the gradients that are there together in the layer that is being worked on."""
    if experts := getattr(text, "num_experts_per_tok", 0):
        return width * experts * (3 * text.moe_intermediate_size + text.hidden_size) + 8 * text.hidden_size
    return width * 3 * text.intermediate_size + 8 * text.hidden_size


def _towers(config: Any, media: MediaSettings, seconds: float | None, width: int) -> float:
    """Bytes a clip: the pixels in float32, and what one layer of the larger tower computes with."""
    family, vision, audio = _family(config), config.vision_config, config.audio_config
    patch = vision.patch_size**2 * 3 * vision.temporal_patch_size
    patches = media.max_frames // 2 * (max(media.max_pixels, family.factor**2) // vision.patch_size**2)
    video = patches * (4 * patch + width * (patch + 8 * vision.hidden_size + 3 * vision.intermediate_size))
    frames = 100 * seconds_of(media, seconds)
    sound = frames * (4 * audio.num_mel_bins + width * (8 * audio.d_model + 2 * audio.encoder_ffn_dim) / 2)
    return max(video, sound)


def of_run(
    args: Any, config: Any, gpus: int | None = None, gpu: float | None = None, zero: int | None = None
) -> Estimate:
    """The estimate of a training run from its parsed arguments (`OmniArguments` and TRL's configuration).

    Args:
        args: `OmniArguments`.
        config: `SFTConfig` or `GRPOConfig`.
        gpus: Number of processes; by default this run's.
        gpu: Bytes of a GPU, for vLLM's share; by default this machine's, else 80 GiB.
        zero: ZeRO stage; by default this run's.
    """
    grpo = hasattr(config, "num_generations")
    zero = _zero_stage() if zero is None else zero
    rows = config.per_device_train_batch_size
    vllm = 0.0
    if grpo and config.use_vllm and config.vllm_mode == "colocate":
        vllm = config.vllm_gpu_memory_utilization * (gpu or gpu_bytes() or 80 * GIB)
    dtype = args.dtype if args.dtype != "auto" else "bfloat16"
    return estimate(
        args.model,
        "grpo" if grpo else "sft",
        args.media_settings,
        rows=rows,
        answer=config.max_completion_length if grpo else 256,
        lora_r=args.lora_r,
        dtype=dtype,
        checkpointing=config.gradient_checkpointing,
        zero=zero,
        gpus=gpus or int(os.environ.get("WORLD_SIZE", "1")),
        generated=rows * (config.steps_per_generation or 1) if grpo and not config.use_vllm else 0,
        vllm=vllm,
    )


def announce(args: Any, config: Any) -> None:
    """Print the estimate of a run before it starts, on the first process."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(of_run(args, config).line(gpu_bytes()), flush=True)


def gpu_bytes() -> float | None:
    """Memory of this process's GPU, None where there is none."""
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _zero_stage() -> int:
    """ZeRO stage of this process, as accelerate's launcher hands it on."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true":
        return 0
    try:
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    except ValueError:
        raise InputError("ACCELERATE_DEEPSPEED_ZERO_STAGE: must be 0, 1, 2 or 3") from None
