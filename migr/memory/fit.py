"""The rows, accumulation and checkpointing that a GPU runs fastest with, and what a run costs: seconds and disk.

Seconds follow two figures that were measured on one H200 (docs/benchmarks.md, SFT of the 3B size with frozen towers):
a layer costs `LAYER` a pass whatever is in it, and a token costs 2 FLOP a weight and pass at `RATE`. Passes are two
(forward; backward with frozen weights), and a third where checkpointing runs the forward again. The four measured
steps come out within 7 %. Sampling by transformers costs `STEP` a layer and token, whatever the batch. Ours.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from migr.clips.media import SAMPLE_RATE, MediaSettings
from migr.errors import InputError
from migr.memory.estimate import Estimate, count, family_tokens, of_run, seconds_of
from migr.memory.published import configuration, without_weights

LAYER = 3.4e-3  # s a layer and pass
RATE = 240e12  # FLOP/s
STEP = 1.1e-3  # s a layer and sampled token, the adapter folded into the weights
FREE = 0.08  # share of a GPU that is left alone


@dataclass(frozen=True)
class Fit:
    """A way to run a recipe.

    Attributes:
        rows, accumulation: Their product over all GPUs is the recipe's effective batch.
        checkpointing: Whether layers are computed again for the backward pass.
        seconds: Of a step, without sampling, on an H200.
        estimate: Its memory.
    """

    rows: int
    accumulation: int
    checkpointing: bool
    seconds: float
    estimate: Estimate

    def lines(self) -> str:
        """The lines of the YAML."""
        return (
            f"gradient_checkpointing: {str(self.checkpointing).lower()}\n"
            f"per_device_train_batch_size: {self.rows}\n"
            f"gradient_accumulation_steps: {self.accumulation}"
        )


def step_seconds(estimate: Estimate, layers: int, rows: int, checkpointing: bool) -> float:
    """Seconds of one forward and backward pass of so many rows on an H200."""
    passes = 3 if checkpointing else 2
    work = 2 * estimate.counts["multiplied"] * rows * estimate.counts["tokens"]
    return passes * (layers * LAYER + work / RATE)


def fit(args: Any, config: Any, gpu: float, gpus: int, zero: int) -> Fit:
    """The fastest way to run a training that a GPU holds, its effective batch unchanged.

    Args:
        args: `OmniArguments`.
        config: `SFTConfig` or `GRPOConfig`.
        gpu: Bytes of a GPU.
        gpus: Number of processes.
        zero: ZeRO stage.

    Raises:
        InputError: Not even one row (of GRPO: one group) fits.
    """
    layers = configuration(args.model).text_config.num_hidden_layers
    whole = config.per_device_train_batch_size * config.gradient_accumulation_steps
    group = getattr(config, "num_generations", 1)  # the completions of a clip share a pass
    ways = []
    for rows in (rows for rows in range(1, whole + 1) if whole % rows == 0 and rows % group == 0):
        for checkpointing in (False, True):
            changed = _changed(config, rows, whole // rows, checkpointing)
            estimate = of_run(args, changed, gpus=gpus, gpu=gpu, zero=zero)
            if estimate.peak <= (1 - FREE) * gpu:
                seconds = whole // rows * step_seconds(estimate, layers, rows, checkpointing)
                ways.append(Fit(rows, whole // rows, checkpointing, seconds, estimate))
    if not ways:
        raise InputError(
            f"not even {group} row{'s' * (group > 1)} at a time fit into {gpu / 2**30:.0f} GiB: take smaller or fewer "
            "frames, ZeRO-3 on more GPUs, or vLLM as a server"
        )
    return min(ways, key=lambda way: way.seconds)


def _changed(config: Any, rows: int, accumulation: int, checkpointing: bool) -> Any:
    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    if hasattr(config, "num_generations"):
        sizes["steps_per_generation"] = accumulation
    return SimpleNamespace(**vars(config) | sizes | {"gradient_checkpointing": checkpointing})


def hours(args: Any, config: Any, estimate: Estimate, rows: int, gpus: int) -> float:
    """Hours of a run over so many rows (of GRPO: clips) on GPUs like the H200.

    Where vLLM samples, whose time has not been measured, transformers' stands in for it: a bound. The first epoch's
    towers and the rewards are left out: the one is once, the others are the judge's.
    """
    layers = configuration(args.model).text_config.num_hidden_layers
    batch = config.per_device_train_batch_size
    one = config.gradient_accumulation_steps * step_seconds(estimate, layers, batch, config.gradient_checkpointing)
    whole = batch * config.gradient_accumulation_steps * gpus
    if hasattr(config, "num_generations"):
        rows *= config.num_generations
        # the policy's passes, the reference's forward, and the sampling of all completions at once
        one = 1.5 * one + config.max_completion_length * layers * STEP
    steps = config.max_steps if config.max_steps > 0 else -(-rows // whole) * config.num_train_epochs
    return steps * one / 3600


def disk(args: Any, config: Any, clips: int) -> tuple[float, float]:
    """Bytes that a run leaves: in the cache (decoded clips and the towers' tokens), and as checkpoints and result."""
    thinker = without_weights(configuration(args.model))
    total, adapted = count(thinker, args.lora_r)
    trained = adapted if args.lora_r else total
    saved = (config.save_total_limit or 3) * trained * (4 + 8) + trained * 4
    return clips * clip_bytes(thinker.config, args.media_settings, bool(args.lora_r)), float(saved)


def clip_bytes(config: Any, media: MediaSettings, frozen: bool, width: int = 2) -> float:
    """Bytes of a clip at the bounds of the settings in the cache: frames, sound, and tokens where towers are frozen."""
    decoded = media.max_frames * 3 * media.max_pixels + 4 * SAMPLE_RATE * seconds_of(media)
    video, audio = family_tokens(config, media)
    levels = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    return decoded + frozen * width * config.text_config.hidden_size * (levels * video + audio)
