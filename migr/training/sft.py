"""Supervised fine-tuning on video and audio: the collator, and TRL's SFTTrainer with a finite-loss check."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from migr.clips.manifest import Clip
from migr.errors import InputError
from migr.files.records import Row
from migr.omni.inputs import Features, OmniInputs
from migr.omni.prompt import render_prompt
from migr.omni.thinker import thinker_of
from migr.omni.towers import MEDIA, TOWERS, FrozenTowers, TowerTokens, freeze_unused, learns
from migr.training.guards import check_loss
from migr.training.runs import EndsOnce
from migr.training.zero3 import is_zero3, prepare_for_zero3

IGNORED = -100
SOUND = 25  # tokens a second of Qwen2.5-Omni's audio tower; Qwen3-Omni's gives 13

LONGEST = 100_000  # characters of a prompt or target
MEDIA_TOKEN = re.compile(
    r"<\|(?:AUDIO|VIDEO|IMAGE|audio_\w+|vision_\w+|video_pad|image_pad|audio_pad)\|>", re.IGNORECASE
)


class TargetCollator:
    """Turn rows of targets.jsonl into a batch: media features, prompt and target ids, labels on the target alone.

    A row has `clip_id`, `prompt` and `target`; `modalities` (default: all that the clip has) says which of the clip's
    media the prompt shows.

    Args:
        inputs: Prepares the clips.
        clips: By `clip_id`.
    """

    def __init__(self, inputs: OmniInputs, clips: dict[str, Clip]) -> None:
        self.inputs, self.clips = inputs, clips
        self.tokens: TowerTokens | None = None  # of frozen towers; the trainer sets it
        self.tokenizer = inputs.processor.tokenizer

    def encode(self, row: Row) -> tuple[dict[str, torch.Tensor], list[int], list[int]]:
        """One row's media features, prompt ids and target ids (closed by the end-of-turn token)."""
        clip = self.clips[row["clip_id"]]
        modalities = row.get("modalities")
        names = clip.modalities if modalities is None else tuple(modalities)  # an empty list shows text alone
        features = (self.tokens or self.inputs).features(clip, names)
        prompt = render_prompt(self.inputs.processor, row["prompt"], "video" in names, "audio" in names)
        target = self.tokenizer(row["target"], add_special_tokens=False).input_ids
        return features, self.inputs.prompt_ids(prompt, features), [*target, self.tokenizer.eos_token_id]

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A right-padded batch: input_ids, attention_mask and labels of shape (B, L), the media, the clip ids.

        The media stand in it as the thinker's arguments, or, with `tokens`, under "media" row by row: what has no
        tokens yet gets them where the towers are, which is not here (this may be a worker process).
        """
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
        rows_of_media = [features for features, _, _ in encoded]
        media = {"media": rows_of_media} if self.tokens else self.inputs.collate(rows_of_media)
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


def check_targets(path: str, rows: Sequence[Row], clips: Mapping[str, Clip]) -> None:
    """Check all rows of targets.jsonl before any work: one that cannot be trained on would end a run at its step.

    Raises:
        InputError: A prompt or target is no text, is empty, names a token of media or is absurdly long, or a modality
            is none of the clip's; names the clip.
    """
    for row in rows:
        where = f"{path}: clip {row['clip_id']!r}"
        for key in ("prompt", "target"):
            text = row[key]
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where}: {key} must be a text that is not empty")
            if len(text) > LONGEST:
                raise InputError(f"{where}: a {key} of {len(text)} characters; {LONGEST} are the most")
            if token := MEDIA_TOKEN.search(text):
                raise InputError(f"{where}: {key} names {token[0]}, which stands for media; break it up")
        modalities = row.get("modalities")
        known = clips[row["clip_id"]].modalities
        if modalities is not None and not (isinstance(modalities, list) and all(m in known for m in modalities)):
            raise InputError(f"{where}: modalities must be some of {', '.join(known)}, not {str(modalities)[:80]}")


def row_lengths(rows: Sequence[Row], clips: Mapping[str, Clip], tokenizer: Any) -> list[int]:
    """How many tokens the rows of targets.jsonl have beside those that all have, nearly: target and sound.

    Frames are as many in nearly every clip, and sound is counted by the manifest's `duration`, so that no clip is read.
    """
    targets = tokenizer([row["target"] for row in rows], add_special_tokens=False)["input_ids"]
    seconds = [float(clips[row["clip_id"]].extra.get("duration") or 0.0) for row in rows]
    heard = ["audio" in (row.get("modalities") or clips[row["clip_id"]].modalities) for row in rows]
    return [
        len(ids) + round(SOUND * duration * hears) for ids, duration, hears in zip(targets, seconds, heard, strict=True)
    ]


class ByLength(LengthGroupedSampler):
    """transformers' sampler of rows of like length, with an order that seed and epoch decide: so a resume is exact.

    Args:
        epoch: Says which epoch begins.
        seed: As of the training.
        **kwargs: As for LengthGroupedSampler.
    """

    def __init__(self, epoch: Callable[[], int], seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, generator=torch.Generator())
        self.epoch, self.seed = epoch, seed

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch())
        return super().__iter__()


class OmniSFTTrainer(EndsOnce, SFTTrainer):
    """TRL's SFTTrainer; the media reach the loss through `TargetCollator`, the clip ids reach the error messages.

    Frozen towers run once a clip (`migr.omni.towers`); where they learn, they run in every step.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if is_zero3(self.args):
            prepare_for_zero3(self.model, self.accelerator.device)
        thinker, collator = thinker_of(self.model), kwargs["data_collator"]
        self.clips, self.towers = collator.clips, None
        if learns(thinker):
            freeze_unused(thinker)
        else:
            self.towers = FrozenTowers(thinker, collator.inputs)
            collator.tokens = self.towers.tokens

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(rows)
        return ByLength(
            epoch=lambda: int(self.state.epoch or 0),
            seed=self.args.seed,
            batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths=list(rows[self.args.length_column_name]),
        )

    def _media(self, clips: Sequence[str], rows: Sequence[Features]) -> Features:
        assert self.towers is not None
        keys = [self.towers.inputs.media_key(self.clips[clip]) for clip in clips]
        rows = [self.towers.finish(key, row) for key, row in zip(keys, rows, strict=True)]
        device = self.accelerator.device
        return self.towers.inputs.collate([{name: value.to(device) for name, value in row.items()} for row in rows])

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean negative log-likelihood of the target tokens; stops the run if it is not finite."""
        clips = inputs.pop("clip_id")
        if "media" in inputs:
            inputs |= self._media(clips, inputs.pop("media"))
        idle = self._idle(inputs)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        check_loss(loss, self.state.global_step, clips)
        if idle:
            loss = loss + 0.0 * torch.stack([weight.sum() for weight in idle]).sum()
        return (loss, result[1]) if return_outputs else loss

    def _idle(self, inputs: Features) -> list[Tensor]:
        """Weights of learning towers whose modality this process's batch lacks, where there are other processes.

        They get a gradient of zero: without one, data parallelism stops at the next step.
        """
        if self.towers is not None or self.accelerator.num_processes == 1:
            return []
        thinker = thinker_of(self.model)
        absent = [tower for modality, tower in TOWERS.items() if not inputs.keys() & set(MEDIA[modality])]
        weights = (weight for tower in absent for weight in getattr(thinker, tower).parameters())
        return [weight for weight in weights if weight.requires_grad]
