"""GRPO's sampling by vLLM: media reach it, and the weights that have been trained.

TRL (1.16) hands vLLM images alone, expands their placeholders a second time and names the weights as the thinker does,
which vLLM does not know. Here both modes of TRL do all of it: vLLM in the trainer's own process (`colocate`), or in one
of its own that all training processes ask (`server`).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from migr.clips.manifest import Clip
from migr.engine.task import Task
from migr.errors import InputError, NonFiniteError
from migr.files.records import digest
from migr.omni.inputs import OmniInputs
from migr.omni.load import thinker_config
from migr.rollout.colocate import Colocated
from migr.rollout.merging import ADAPTER
from migr.rollout.remote import Remote
from migr.rollout.sampler import Draw, check_whole

MODES: dict[str, Any] = {"colocate": Colocated, "server": Remote}
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
    if config.vllm_mode not in MODES:
        raise InputError(f"vllm_mode: {config.vllm_mode!r} is not one of {', '.join(MODES)}")
    if config.vllm_mode == "colocate" and find_spec("vllm") is None:
        raise InputError("use_vllm: vllm is not installed (pip install 'migr[cpu]' or 'migr[gpu]')")
    if audio_in_video:
        raise InputError("audio_in_video: vLLM 0.31 places interleaved media otherwise than training; use_vllm: false")
    refused = {
        "vllm_tensor_parallel_size": (
            1,
            "each training process samples with a whole model of its own; a server takes --tensor_parallel",
        ),
        "vllm_enable_sleep_mode": (False, "vLLM keeps its memory; lower vllm_gpu_memory_utilization"),
        "vllm_structured_outputs_regex": (None, "the format is learned from its reward"),
        "vllm_model_impl": ("vllm", "only vLLM's own model takes processed media"),
    }
    for name, (usual, why) in refused.items():
        if getattr(config, name) != usual:
            raise InputError(f"{name}: {getattr(config, name)}: must be {usual} here: {why}")
    check_whole(model)


class Rollouts:
    """Where a trainer's completions come from.

    Args:
        trainer: An `OmniGRPOTrainer`, complete but for this.
        inputs: Features of the clips.

    Raises:
        InputError: The model trains more than LoRA, or vLLM does not take the `generation_kwargs`; of `server` also
            what `Remote` says.
    """

    def __init__(self, trainer: Any, inputs: OmniInputs) -> None:
        learns = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
        known = tuple(f".lora_{side}.{ADAPTER}.weight" for side in "AB")
        if more := [name for name in learns if not name.endswith(known)]:
            raise InputError(f"use_vllm: {more[0]} is trained, but only LoRA reaches vLLM; use_vllm: false")
        args = trainer.args
        config = thinker_config(trainer.thinker.name_or_path).text_config
        limit = min(args.vllm_max_model_length or LONGEST, config.max_position_embeddings)
        rows = args.per_device_train_batch_size * args.steps_per_generation
        self.task = Task(inputs, args.max_completion_length, args.temperature, args.seed, rows, limit)
        self.task.ends = trainer.eos_token_ids
        own = {key: value for key, value in (args.generation_kwargs or {}).items() if key != "suppress_tokens"}
        self.settings = {
            "max_tokens": args.max_completion_length,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k,
            "min_p": args.min_p or 0.0,
            "repetition_penalty": args.repetition_penalty,
            "stop_token_ids": self.task.ends,
            **own,
        }
        self.rank = trainer.accelerator.process_index
        self.vllm = MODES[args.vllm_mode](trainer, self.task, self.settings)

    def sync(self) -> None:
        """Give vLLM the trainer's present weights. All processes must call it."""
        self.vllm.sync()

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
        for ids, clip in zip(prompts, clips, strict=True):
            if len(ids) + self.task.max_new_tokens > self.task.max_length:
                raise InputError(
                    f"{clip.clip_id}: a prompt of {len(ids)} tokens and max_completion_length = "
                    f"{self.task.max_new_tokens} exceed {self.task.max_length} tokens; use fewer or smaller frames, or "
                    "raise vllm_max_model_length if the model allows it"
                )
        inputs, draws = self.task.inputs, []
        for row, (ids, clip) in enumerate(zip(prompts, clips, strict=True)):
            seed = int(digest(self.task.seed, step, self.rank, row), 16) >> 1  # 63 bits
            draw_seed = seed if self.settings["temperature"] else None
            draws.append(Draw(ids, inputs.media_key(clip), inputs.features(clip), draw_seed))
        done = self.vllm.sample(draws, self.settings)
        bad = [clip.clip_id for clip, (_, logprobs) in zip(clips, done, strict=True) if any(v != v for v in logprobs)]
        if bad:
            raise NonFiniteError(f"vLLM met logits that are not finite at step {step}; clips: {', '.join(bad)}")
        return [ids for ids, _ in done], [logprobs for _, logprobs in done]

    def close(self) -> None:
        """Let go of vLLM; a server goes on."""
        self.vllm.close()
