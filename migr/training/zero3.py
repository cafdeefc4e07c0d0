"""What LoRA on a thinker needs under DeepSpeed's ZeRO-3, which spreads every weight over the processes.

A weight is gathered by all processes when its module runs, so all must run the same modules in the same order. A clip
without sound, or without a picture, breaks that: one process runs the audio tower, the other does not, and both wait
for ever. The towers are frozen, small beside the language model (0.7 of 8.9 billion parameters each in the 7B model)
and run often, so here each process keeps them whole, out of ZeRO-3's sight. Then a process runs them, or not, as its
own clips ask.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from migr.errors import InputError
from migr.omni.towers import TOWERS


def is_zero3(config: Any) -> bool:
    """Whether this run's weights are spread over the processes.

    Args:
        config: TRL's configuration, or any `TrainingArguments`.
    """
    plugin = config.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def check_zero3(config: Any, lora_r: int) -> None:
    """Refuse what ZeRO-3 would do wrongly.

    Raises:
        InputError: All weights are to be trained: then the towers cannot be kept whole.
    """
    if is_zero3(config) and not lora_r:
        raise InputError(
            "lora_r: 0 trains the towers too, and under ZeRO-3 a batch that lacks a modality on one process would hang "
            "the others; use configs/accelerate/ddp.yaml, or a --lora_r above 0"
        )


def check_mixed(config: Any, lora_r: int, modalities: Iterable[Iterable[str]]) -> None:
    """Refuse to train the towers under ZeRO-1 or ZeRO-2 on rows of unlike modalities.

    DeepSpeed adds up the processes' gradients in the order in which they come, which is another one where a tower does
    not run: measured, other sums than one process has, and no error. Plain data parallelism knows each by its name.

    Args:
        config: TRL's configuration.
        lora_r: 0 trains all weights.
        shown: The modalities of each row.

    Raises:
        InputError: The rows are not alike.
    """
    if lora_r or config.deepspeed_plugin is None or config.world_size == 1:
        return
    kinds = {" and ".join(name for name in TOWERS if name in row) or "text alone" for row in map(set, modalities)}
    if len(kinds) > 1:
        raise InputError(
            f"lora_r: 0 trains the towers too, and DeepSpeed adds up the wrong gradients where some rows have "
            f"{sorted(kinds)[0]} and others {sorted(kinds)[-1]}; use configs/accelerate/ddp.yaml, or a --lora_r above 0"
        )


def prepare_for_zero3(model: Any, device: torch.device) -> None:
    """Keep the towers whole on every process, and give the adapter the type of the weights beside it.

    Call it on all processes, before DeepSpeed wraps the model. The towers are no longer among the model's modules
    afterwards (nor its parameters, nor its saved weights), but work as before.

    Args:
        model: A PEFT model around a thinker.
        device: Where this process computes.
    """
    thinker = model.get_base_model()
    for name in TOWERS.values():
        tower = getattr(thinker, name)
        for module in tower.modules():
            for key, weight in _whole(module).items():
                assert not weight.requires_grad, f"{name}: {key} learns"
                module._parameters[key] = weight
        del thinker._modules[name]
        thinker.__dict__[name] = tower.to(device).eval()  # found as an attribute, but no part of the model
    # gathered together, weights of two types fail in DeepSpeed; PEFT loads adapters in float32
    kind = next(weight.dtype for weight in thinker.parameters() if not weight.requires_grad)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(kind)


def _whole(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own parameters, gathered if they were spread while they were loaded."""
    own = {key: weight for key, weight in module._parameters.items() if weight is not None}
    spread = [weight for weight in own.values() if hasattr(weight, "ds_id")]
    if not spread:
        return own
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread):
        return {key: nn.Parameter(weight.data.clone(), weight.requires_grad) for key, weight in own.items()}
