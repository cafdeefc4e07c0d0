"""GRPO's sampling by vLLM, in the trainer's own process: media reach it, and the weights that have been trained.

TRL (1.16) hands vLLM images alone, expands their placeholders a second time and names the weights as the thinker does,
which vLLM does not know. Here vLLM gets the very tensors that the trainer's forward gets, behind prompts expanded once
(`VllmEngine`), and weights under the names of the full model. LoRA is merged into copies: merged into the trainer's own
weights and taken out again, as TRL does, it would round them a little at each step.

vLLM runs the towers once for all samples of a clip in a step: the clip's content is the name of its tokens.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from migr.clips import Clip
from migr.engine import Task
from migr.errors import InputError
from migr.omni.inputs import OmniInputs
from migr.omni.load import is_whole, thinker_config
from migr.records import digest
from migr.training.guards import NonFiniteError
from migr.vllm_engine import NEVER, VllmEngine

Gather = Callable[[list[Any]], AbstractContextManager[Any]]

LONGEST = 8192  # tokens of prompt and completion, unless the configuration names another limit


def check_vllm(config: Any, model: str, audio_in_video: bool) -> None:
    """Refuse, before anything is read, what sampling by vLLM cannot do here.

    Args:
        config: TRL's GRPOConfig.
        model: The base model, as `check_model` accepts it.
        audio_in_video: Whether sound and frames are interleaved.

    Raises:
        InputError: One of the settings, with the way out.
    """
    if not config.use_vllm:
        return
    if find_spec("vllm") is None:
        raise InputError("use_vllm: vllm is not installed (pip install 'migr[cpu]' or 'migr[gpu]')")
    if config.vllm_mode != "colocate":
        raise InputError(
            f"vllm_mode: {config.vllm_mode}: TRL's client sends a vLLM server pictures alone, so it would neither see "
            "nor hear the clips; use vllm_mode: colocate (one vLLM in each training process)"
        )
    if audio_in_video:
        raise InputError("audio_in_video: vLLM 0.31 places interleaved media otherwise than training; use_vllm: false")
    refused = {
        "vllm_tensor_parallel_size": (1, "each training process samples with a whole model of its own"),
        "vllm_enable_sleep_mode": (False, "vLLM keeps its memory; lower vllm_gpu_memory_utilization"),
        "vllm_structured_outputs_regex": (None, "the format is learned from its reward"),
        "vllm_model_impl": ("vllm", "only vLLM's own model takes processed media"),
    }
    for name, (usual, why) in refused.items():
        if getattr(config, name) != usual:
            raise InputError(f"{name}: {getattr(config, name)}: must be {usual} here: {why}")
    if not is_whole(model):
        raise InputError(f"{model}: vLLM needs the whole model; run stages/export.py on it, or use_vllm: false")


def merged_weights(model: Any, gather: Gather) -> Iterator[tuple[str, Tensor]]:
    """The language model's layers that have an adapter, merged, under the names of the full model.

    Layers beside them in the same attention or MLP come too: vLLM fuses them, and takes them together.

    Args:
        model: A PEFT model around a thinker. Its weights are not touched.
        gather: Makes weights whole that are spread over processes (`gather(weights)` is a context). All processes must
            then iterate to the end.
    """
    for path, parent in model.get_base_model().named_modules():
        layers: dict[str, Any] = dict(parent.named_children())
        if not any(isinstance(layer, LoraLayer) for layer in layers.values()):
            continue
        for name, layer in layers.items():
            base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
            if not isinstance(base, nn.Linear):
                continue
            with torch.no_grad(), gather(list(layer.parameters())):
                weight = base.weight.clone()
                if base is not layer:
                    weight = (weight.float() + cast(Any, layer).get_delta_weight("default").float()).to(weight.dtype)
                bias = None if base.bias is None else base.bias.clone()
            yield f"thinker.{path}.{name}.weight", weight
            if bias is not None:
                yield f"thinker.{path}.{name}.bias", bias


class Rollouts(VllmEngine):
    """vLLM beside a trainer; one for each training process.

    Args:
        trainer: An `OmniGRPOTrainer`, complete but for this.
        inputs: Features of the clips.

    Raises:
        InputError: The model trains more than LoRA, or vLLM does not take the `generation_kwargs`.
    """

    def __init__(self, trainer: Any, inputs: OmniInputs) -> None:
        self.model, self.gather = trainer.model, trainer._dist.gather_params
        learns = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
        if more := [name for name in learns if ".lora_A." not in name and ".lora_B." not in name]:
            raise InputError(f"use_vllm: {more[0]} is trained, but only LoRA reaches vLLM; use_vllm: false")
        args, base = trainer.args, trainer.thinker.name_or_path
        self.rank = trainer.accelerator.process_index
        limit = min(args.vllm_max_model_length or LONGEST, thinker_config(base).text_config.max_position_embeddings)
        rows = args.per_device_train_batch_size * args.steps_per_generation
        task = Task(inputs, args.max_completion_length, args.temperature, args.seed, rows, limit)
        task.ends = trainer.eos_token_ids
        own = {key: value for key, value in (args.generation_kwargs or {}).items() if key != "suppress_tokens"}
        options: dict[str, Any] = {"logprobs_mode": "processed_logprobs"}  # of what was sampled from
        if torch.cuda.is_available():
            options["gpu_memory_utilization"] = args.vllm_gpu_memory_utilization
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in this process
        self.alone = "RANK" not in os.environ  # else a launcher has made a process group
        if not self.alone:  # vLLM joins it, in a group of one
            options["distributed_executor_backend"] = "external_launcher"
        super().__init__(base, str(trainer.thinker.dtype).removeprefix("torch."), task, **options)
        try:
            self.usual = self.sampling(
                **{
                    "max_tokens": task.max_new_tokens,
                    "temperature": args.temperature,
                    "top_p": args.top_p,
                    "top_k": args.top_k,
                    "min_p": args.min_p or 0.0,
                    "repetition_penalty": args.repetition_penalty,
                    "logprobs": 0,  # the sampled token's alone
                    "logit_bias": dict.fromkeys(task.suppressed, NEVER),
                    "stop_token_ids": task.ends,
                    "detokenize": False,
                    **own,
                }
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"generation_kwargs: vLLM does not take them ({error})") from error
        trainer.accelerator.wait_for_everyone()

    def sync(self) -> None:
        """Give vLLM the trainer's present weights. All processes must call it."""
        weights = merged_weights(self.model, self.gather)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        # that has emptied the worker's store of the towers' tokens; the scheduler must know
        self.llm.llm_engine.reset_encoder_cache()

    def sample(
        self, prompts: Sequence[list[int]], clips: Sequence[Clip], step: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Answer each prompt once.

        What is sampled depends on the seed, the step, the process and the row: a resumed run samples the same.

        Args:
            prompts: Token ids with expanded placeholders.
            clips: The clip of each prompt.
            step: The trainer's step.

        Returns:
            The completions' token ids, with the one that ended them, and the log-probability of each token under the
            distribution that it was drawn from.

        Raises:
            InputError: A prompt is too long; names the clip.
            NonFiniteError: The model's logits are not finite; names the clips.
        """
        engine: Any = self.llm.llm_engine
        rows: dict[str, int] = {}
        done: dict[int, Any] = {}
        for ids, clip in zip(prompts, clips, strict=True):
            if len(ids) + self.task.max_new_tokens > self.task.max_length:
                raise InputError(
                    f"{clip.clip_id}: a prompt of {len(ids)} tokens and max_completion_length = "
                    f"{self.task.max_new_tokens} exceed {self.task.max_length} tokens; use fewer or smaller frames, or "
                    "raise vllm_max_model_length if the model allows it"
                )
        for row, (ids, clip) in enumerate(zip(prompts, clips, strict=True)):
            inputs = self.processed(self.task.inputs.media_key(clip), ids, self.task.inputs.features(clip))
            sampling = self.usual.clone()
            if sampling.temperature:
                sampling.seed = int(digest(self.task.seed, step, self.rank, row), 16) >> 1  # 63 bits
            rows[name := str(next(self._numbers))] = row
            engine.add_request(name, inputs, sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    done[rows[output.request_id]] = output.outputs[0]
        completions = [list(done[row].token_ids) for row in range(len(prompts))]
        logprobs = [
            [found[token].logprob for found, token in zip(done[row].logprobs, ids, strict=True)]
            for row, ids in enumerate(completions)
        ]
        bad = [clip.clip_id for clip, values in zip(clips, logprobs, strict=True) if any(v != v for v in values)]
        if bad:
            raise NonFiniteError(f"vLLM met logits that are not finite at step {step}; clips: {', '.join(bad)}")
        return completions, logprobs

    def close(self) -> None:
        """Stop vLLM and give its memory back.

        With several processes it stays until they end: it would take the training's process group with it.
        """
        if self.alone:
            super().close()
