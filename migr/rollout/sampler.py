"""vLLM that draws completions for GRPO: each from its own seed, each token with its log-probability.

vLLM gets the very tensors that the trainer's forward gets, behind prompts expanded once (`VllmEngine`). All samples of
a clip share one pass of the towers and of the prompt: the clip's content is the name of its tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from migr.engine.task import Task
from migr.engine.vllm import NEVER, VllmEngine
from migr.errors import InputError
from migr.omni.inputs import Features
from migr.omni.load import is_whole

Drawn = tuple[list[int], list[float]]  # token ids, with the one that ended them, and the log-probability of each


@dataclass(frozen=True)
class Draw:
    """One completion that is wanted.

    Attributes:
        ids: The prompt, its placeholders expanded.
        media: Name of the clip's media (`OmniInputs.media_key`).
        features: The clip's features.
        seed: Decides what is drawn; None at temperature 0.
    """

    ids: list[int]
    media: str
    features: Features
    seed: int | None


def check_whole(model: str) -> None:
    """Refuse a thinker alone: vLLM knows the full model only."""
    if not is_whole(model):
        raise InputError(f"{model}: vLLM needs the whole model; run stages/export.py on it")


class Sampler(VllmEngine):
    """vLLM with the log-probabilities of what it sampled from.

    Args:
        model: The base model, whole.
        dtype: As for `open_engine`.
        task: Names the processor, the longest sequence and how many are worked on together.
        memory: Share of the GPU's memory that vLLM takes.
        options: More of vLLM's own options.
    """

    def __init__(self, model: str, dtype: str, task: Task, memory: float, **options: Any) -> None:
        if torch.cuda.is_available():
            options["gpu_memory_utilization"] = memory
        # weights are handed over in this process
        super().__init__(model, dtype, task, one_process=True, logprobs_mode="processed_logprobs", **options)
        from vllm.exceptions import VLLMClientError

        self.refusals = (VLLMClientError, TypeError, ValueError, AttributeError)  # how vLLM says no to a request

    def parameters(self, settings: Mapping[str, Any]) -> Any:
        """vLLM's SamplingParams.

        Args:
            settings: Their names and values. Media tokens are suppressed whatever stands there.

        Raises:
            InputError: vLLM does not take them.
        """
        never = dict.fromkeys(self.task.suppressed, NEVER)
        try:
            bias = {int(token): float(value) for token, value in (settings.get("logit_bias") or {}).items()} | never
            # log-probabilities of the sampled token alone
            return self.sampling(**{**settings, "n": 1, "logprobs": 0, "logit_bias": bias, "detokenize": False})
        except self.refusals as error:
            raise InputError(f"generation_kwargs: vLLM does not take them ({error})") from error

    @property
    def busy(self) -> bool:
        """Whether draws are begun that have not ended."""
        return self.llm.llm_engine.has_unfinished_requests()

    def begin(self, draw: Draw, parameters: Any) -> str:
        """Hand a draw to vLLM.

        Returns:
            Its name.

        Raises:
            One of `refusals`: vLLM does not take it.
        """
        parameters = parameters.clone()
        parameters.seed = draw.seed
        engine: Any = self.llm.llm_engine
        names = dict.fromkeys(("video", "audio"), draw.media)
        engine.add_request(name := str(next(self._numbers)), self.processed(names, draw.ids, draw.features), parameters)
        return name

    def ended(self) -> dict[str, Drawn]:
        """Go one step on; what has ended by it, by name."""
        outputs = {}
        engine: Any = self.llm.llm_engine
        for output in engine.step():
            if output.finished:
                answer = output.outputs[0]
                ids = list(answer.token_ids)
                logprobs = [row[token].logprob for row, token in zip(answer.logprobs, ids, strict=True)]
                outputs[output.request_id] = ids, logprobs
        return outputs

    def reloaded(self) -> None:
        """To be called after the workers' weights have changed: that has emptied their store of the towers' tokens, and
        the scheduler must know; what it keeps of prompts is of the weights before.
        """
        self.llm.llm_engine.reset_encoder_cache()
        self.llm.llm_engine.reset_prefix_cache()
