"""Stop before a non-finite number reaches the weights, and name the clips that it came from."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from migr.errors import NonFiniteError


def check_loss(loss: torch.Tensor, step: int, clips: Sequence[str]) -> None:
    """Raise `NonFiniteError` if the loss is NaN or infinite; names the step and the clips of the batch."""
    if not torch.isfinite(loss.detach()).all():
        raise NonFiniteError(f"the loss is {loss.item()} at step {step}; clips of the batch: {', '.join(clips)}")


class StopOnNonFiniteGradient(TrainerCallback):
    """Check the gradients after clipping and before the update (under DeepSpeed only the loss can be checked)."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by the trainer right before `optimizer.step`."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        # one number for all: a look at each of hundreds would make a GPU wait for each
        if torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            return
        for name, parameter in model.named_parameters():  # the norm of finite gradients may overflow
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                raise NonFiniteError(f"the gradient of {name} is not finite at step {state.global_step}")


class CheckedReward:
    """A reward function whose every value is None or a number in [0, 1]; anything else stops the run.

    An infinite reward would silence its whole group, and a NaN looks like None to TRL, so both must be caught here.
    """

    def __init__(self, name: str, reward: Callable[..., list[float | None]]) -> None:
        self.reward = reward
        self.needs_gains = getattr(reward, "needs_gains", False)
        self.__name__ = name  # what TRL logs it as: rewards/<name>/mean

    def __call__(self, completions: list[Any], clip_id: list[str], **columns: Any) -> list[float | None]:
        """Call the reward and check what it returns; `clip_id` is the data set's column."""
        values = self.reward(completions=completions, clip_id=clip_id, **columns)
        for value, clip in zip(values, clip_id, strict=True):
            if value is not None and not (math.isfinite(value) and 0.0 <= value <= 1.0):
                raise NonFiniteError(f"the reward {self.__name__} is {value}, outside [0, 1], for clip {clip}")
        return values
