"""Supervised fine-tuning on video and audio: the collator, and TRL's SFTTrainer with a finite-loss check."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from migr.clips.manifest import Clip
from migr.files.records import Row
from migr.omni.inputs import OmniInputs
from migr.omni.prompt import render_prompt
from migr.training.guards import check_loss
from migr.training.zero3 import is_zero3, prepare_for_zero3

IGNORED = -100


class TargetCollator:
    """Turn rows of targets.jsonl into a batch: media features, prompt and target ids, labels on the target alone.

    A row has `clip_id`, `prompt` and `target`; `modalities` (default: all that the clip has) says which of the clip's
    media the prompt shows.
    """

    def __init__(self, inputs: OmniInputs, clips: dict[str, Clip]) -> None:
        self.inputs, self.clips = inputs, clips
        self.tokenizer = inputs.processor.tokenizer

    def encode(self, row: Row) -> tuple[dict[str, torch.Tensor], list[int], list[int]]:
        """One row's media features, prompt ids and target ids (closed by the end-of-turn token)."""
        clip = self.clips[row["clip_id"]]
        modalities = row.get("modalities")
        shown = clip.modalities if modalities is None else tuple(modalities)  # an empty list shows text alone
        features = self.inputs.features(clip, shown)
        prompt = render_prompt(self.inputs.processor, row["prompt"], "video" in shown, "audio" in shown)
        target = self.tokenizer(row["target"], add_special_tokens=False).input_ids
        return features, self.inputs.prompt_ids(prompt, features), [*target, self.tokenizer.eos_token_id]

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A right-padded batch: input_ids, attention_mask and labels of shape (B, L), the media, the clip ids."""
        encoded = [self.encode(row) for row in rows]
        length = max(len(prompt) + len(target) for _, prompt, target in encoded)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        for i, (_, prompt, target) in enumerate(encoded):
            end = len(prompt) + len(target)
            ids[i, :end] = torch.tensor([*prompt, *target])
            mask[i, :end] = 1
            labels[i, len(prompt) : end] = torch.tensor(target)
        media = self.inputs.collate([features for features, _, _ in encoded])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            **media,
            "clip_id": [r["clip_id"] for r in rows],
        }


class StopAtLoss(TrainerCallback):
    """End the training once the mean loss between two log entries is below `loss`; None never does."""

    def __init__(self, loss: float | None) -> None:
        self.loss = -math.inf if loss is None else loss

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after it has logged."""
        if state.log_history[-1].get("loss", math.inf) < self.loss:
            control.should_training_stop = True


class OmniSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer; the media reach the loss through `TargetCollator`, the clip ids reach the error messages.

    The fused LM head works because `migr.omni.load` gives the thinker a `base_model` without the head.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if is_zero3(self.args):
            prepare_for_zero3(self.model, self.accelerator.device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-likelihood of the target tokens; stops the run if it is not finite."""
        clips = inputs.pop("clip_id")
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        check_loss(result[0] if return_outputs else result, self.state.global_step, clips)
        return result
