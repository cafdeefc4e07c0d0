"""GRPO on video and audio: TRL's GRPOTrainer, with the media put back wherever it would lose them.

TRL 1.16 carries images only: with video or audio in the prompt its generation would see the media and its loss would
not, without an error. Rows here carry the number of their clip; the methods below look the features up by it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from migr.clips import Clip
from migr.omni.inputs import OmniInputs
from migr.omni.prompt import render_prompt
from migr.training.guards import NonFiniteError, check_loss
from migr.training.sft import IGNORED


class EpochRepeatSampler(RepeatSampler):
    """TRL's sampler with an order that the epoch decides: else a run resumed past epoch 0 replays epoch 0's order.

    It asks for the epoch itself: accelerate's `set_epoch` gets lost on a resumed run of several processes.

    Args:
        epoch: Says which epoch begins.
        **kwargs: As for RepeatSampler.
    """

    def __init__(self, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + self.epoch())
        return super().__iter__()


class OmniGRPOTrainer(GRPOTrainer):
    """GRPOTrainer for rows with `prompt`, `clip` (a number into `clips`) and `clip_id`.

    Args:
        inputs: Features of clips and expansion of prompts.
        clips: The clips that `clip` counts.
        **kwargs: As for GRPOTrainer.
    """

    def __init__(self, *, inputs: OmniInputs, clips: Sequence[Clip], **kwargs: Any) -> None:
        self.omni, self.clips = inputs, clips
        self._rows: list[int] = []  # the clips of the batch that is being worked on, one a row
        super().__init__(**kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        args: Any = self.args
        source: Any = dataset if dataset is not None else self.train_dataset
        return EpochRepeatSampler(
            epoch=lambda: int(self.state.epoch or 0),
            data_source=source,
            mini_repeat_count=args.num_generations,
            batch_size=args.generation_batch_size // args.num_generations,
            repeat_count=self.num_iterations * args.steps_per_generation,
            shuffle=bool(self.shuffle_dataset),
            seed=args.seed,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (Path(resume_from_checkpoint) / "ref").is_dir():
            # transformers restores the adapters in sub-folders alone, not the trained one beside the reference
            trained: Any = model or self.model
            trained.load_adapter(resume_from_checkpoint, "default", is_trainable=True)

    def _media(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        media = self.omni.collate([self.omni.features(self.clips[row]) for row in rows])
        return {key: value.to(self.accelerator.device) for key, value in media.items()}

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, torch.Tensor]]:
        ids = []
        for prompt, row in zip(prompts, self._rows, strict=True):
            clip = self.clips[row]
            text = render_prompt(self.omni.processor, prompt[-1]["content"], clip.has_video, clip.has_audio)
            ids.append(self.omni.prompt_ids(text, self.omni.features(clip)))
        return ids, None, self._media(self._rows)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = [row["clip"] for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        output["clip"] = torch.tensor(self._rows, device=self.accelerator.device)
        return output

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._generate_single_turn(*args, **kwargs)
        except RuntimeError as error:
            if "nan" not in str(error):
                raise
            raise NonFiniteError(
                f"sampling met logits that are not finite at step {self.state.global_step}; "
                f"clips of the batch: {', '.join(self.clips[row].clip_id for row in self._rows)}"
            ) from error

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._rows = inputs["clip"].tolist()
        loss = super()._compute_loss(model, inputs)
        check_loss(loss, self.state.global_step, [self.clips[row].clip_id for row in self._rows])
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        assert len(self._rows) == len(input_ids), "the rows' clips were not set for this batch"
        logps, entropies, aux_losses = [], [], []
        step = batch_size or len(input_ids)
        for start in range(0, len(input_ids), step):
            chunk = slice(start, start + step)
            labels = input_ids[chunk].masked_fill(attention_mask[chunk] == 0, IGNORED)
            labels[:, :-logits_to_keep] = IGNORED
            batch: dict[str, Any] = {
                "input_ids": input_ids[chunk],
                "attention_mask": attention_mask[chunk],
                "labels": labels,
            }
            if compute_aux_loss:
                batch["output_router_logits"] = True
            with self.accelerator.autocast():
                output = model(**batch, **self._media(self._rows[chunk]), fused_lm_head=True)
            logps.append(output.log_probs[:, -logits_to_keep:])
            entropies.append(output.entropy[:, -logits_to_keep:])
            aux_losses.append(output.aux_loss)
        return (
            torch.cat(logps),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(aux_losses).mean() if compute_aux_loss else None,
        )
