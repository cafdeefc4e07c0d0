"""GRPO's sampling by a vLLM in the trainer's own process (`vllm_mode: colocate`)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from migr.engine.task import Task
from migr.rollout.merging import merged_weights
from migr.rollout.sampler import Draw, Drawn, Sampler


class Colocated(Sampler):
    """vLLM beside a trainer; one for each training process.

    Args:
        trainer: An `OmniGRPOTrainer`, complete but for this.
        task: As for `Sampler`.
        settings: Sampling parameters.

    Raises:
        InputError: vLLM does not take the settings.
    """

    def __init__(self, trainer: Any, task: Task, settings: Mapping[str, Any]) -> None:
        self.model, self.gather = trainer.model, trainer._dist.gather_params
        self.alone = "RANK" not in os.environ  # else a launcher has made a process group
        # vLLM joins it, in a group of one
        options = {} if self.alone else {"distributed_executor_backend": "external_launcher"}
        base, dtype = trainer.thinker.name_or_path, str(trainer.thinker.dtype).removeprefix("torch.")
        super().__init__(base, dtype, task, trainer.args.vllm_gpu_memory_utilization, **options)
        self.parameters(settings)
        trainer.accelerator.wait_for_everyone()

    def sync(self) -> None:
        """Give vLLM the trainer's present weights. All processes must call it."""
        weights = merged_weights(self.model, self.gather)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.reloaded()

    def sample(self, draws: Sequence[Draw], settings: Mapping[str, Any]) -> list[Drawn]:
        """Draw each completion, in order."""
        parameters = self.parameters(settings)
        names = [self.begin(draw, parameters) for draw in draws]
        done: dict[str, Drawn] = {}
        while self.busy:
            done |= self.ended()
        return [done[name] for name in names]

    def close(self) -> None:
        """Stop vLLM and give its memory back.

        With several processes it stays until they end: it would take the training's process group with it.
        """
        if self.alone:
            super().close()
