"""What transformers' Trainer needs for both heads: batches, frozen weights left out of files, figures on valid."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction

from migr.errors import InputError
from migr.sentiment.data import Split
from migr.sentiment.generative import Prompts, PromptWriter
from migr.sentiment.metrics import figures, selection
from migr.sentiment.sets import SentimentSet
from migr.training.guards import check_loss
from migr.training.runs import EndsOnce

WEIGHTS = "model.safetensors"


class Positions(Dataset[int]):
    """The positions of a split's clips; the collator fetches what stands there."""

    def __init__(self, split: Split) -> None:
        self.count = len(split)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Collator:
    """Makes a batch of clips' positions: padded frames, lengths, targets, and the prompts where there is a writer.

    Args:
        split: Whose clips.
        dataset: Its labels.
        writer: Writes prompts, for the generative head.
        longer: Frames that a batch is padded by beyond need, for tests.
    """

    def __init__(
        self, split: Split, dataset: SentimentSet, writer: PromptWriter | None = None, longer: int = 0
    ) -> None:
        self.split, self.dataset, self.writer, self.longer = split, dataset, writer, longer

    def __call__(self, index: Sequence[int]) -> dict[str, Any]:
        """`frames` and `lengths` by modality, `target` (n,), `own` (n, M) where modalities have scores, `index`."""
        clips = [self.split.clips[i] for i in index]
        frames, lengths = {}, {}
        for modality, stored in self.split.frames.items():
            own = torch.tensor([clip.lengths[modality] for clip in clips])
            padded = torch.zeros(len(clips), max(int(own.max()), 1) + self.longer, stored.shape[1])
            for row, i in enumerate(index):
                padded[row, : own[row]] = torch.from_numpy(np.array(self.split.clip_frames(i, modality)))
            frames[modality], lengths[modality] = padded, own
        target = torch.tensor([clip.target for clip in clips], dtype=torch.float32)
        batch: dict[str, Any] = {"frames": frames, "lengths": lengths, "index": torch.tensor(index)}
        batch["target"] = target if self.dataset.is_score else target.long()
        if self.dataset.is_score and any(clip.scores for clip in clips):
            rows = [[clip.scores.get(m, clip.target) for m in self.split.frames] for clip in clips]
            batch["own"] = torch.tensor(rows, dtype=torch.float32)
        if self.writer is not None:
            prompts = Prompts.pad([self.writer(clip.transcript) for clip in clips])
            bare = Prompts.pad([self.writer("") for _ in clips], prompts.ids.shape[1])
            batch |= {"prompt_ids": prompts.ids, "prompt_mask": prompts.mask}
            batch |= {"bare_ids": bare.ids, "bare_mask": bare.mask}
        return batch


def trainable(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights that learn and the buffers that are kept; the language model's frozen weights are not among them."""
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    state = model.state_dict()
    return {n: x for n, x in state.items() if n in learned or (n not in frozen and not n.startswith("lm."))}


def save_trainable(model: torch.nn.Module, folder: str | Path) -> None:
    """Write them to `model.safetensors` in a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({name: x.detach().cpu().contiguous() for name, x in trainable(model).items()}, Path(folder) / WEIGHTS)


def load_trainable(model: torch.nn.Module, folder: str | Path) -> None:
    """Read what `save_trainable` wrote into a model of the same shape.

    Raises:
        InputError: The weights are missing or belong to another model.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    state = load_file(path)
    weights = trainable(model)
    other = set(state) ^ set(weights) or {n for n in state if state[n].shape != weights[n].shape}
    if other:
        raise InputError(f"{path}: weights of another model ({min(other)} does not fit)")
    model.load_state_dict(state, strict=False)


class SentimentTrainer(EndsOnce):
    """Trainer over positions of clips: checkpoints hold what learns, valid figures choose, losses must be finite.

    Args:
        collators: Of train and of valid.
        dataset: Whose figures.
        selection_epochs: So many are averaged to choose the last of them: valid splits are small, and the best of many
            noisy figures is mostly a lucky one.
        names: Ids of the train clips, for messages.
        **kwargs: As for Trainer.
    """

    def __init__(
        self,
        *,
        collators: tuple[Collator, Collator],
        dataset: SentimentSet,
        names: Sequence[str],
        selection_epochs: int = 1,
        **kwargs: Any,
    ) -> None:
        self.valid_collator, self.names = collators[1], names
        self.dataset, self.selection_epochs = dataset, selection_epochs
        super().__init__(data_collator=collators[0], compute_metrics=self.figures_of, **kwargs)
        kwargs["model"].register_load_state_dict_post_hook(_miss_frozen)
        self.label_names = ["target"]
        self.can_return_loss = True

    def figures_of(self, output: EvalPrediction) -> dict[str, float]:
        """The set's figures; one that is not defined is left out. With the mean that chooses, over several epochs."""
        predictions = np.asarray(output.predictions, np.float32).reshape(-1)
        values = figures(self.dataset, predictions, np.asarray(output.label_ids).reshape(-1))
        columns = {name: value for name, value in values.items() if value is not None}
        name = selection(self.dataset)[0]
        if self.selection_epochs > 1 and name in columns:
            earlier = [row[f"eval_{name}"] for row in self.state.log_history if f"eval_{name}" in row]
            window = [*earlier[1 - self.selection_epochs :], columns[name]]
            columns[f"{name}_mean{self.selection_epochs}"] = float(np.mean(window))
        return columns

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Called by the trainer: valid clips come from their own split."""
        train, self.data_collator = self.data_collator, self.valid_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Weight decay spares the one-number weights of the gates, which it would pull to a value of its own."""
        spared = {id(weight) for part in model.modules() for weight in getattr(part, "undecayed", ())}
        named = dict(model.named_parameters())
        return [name for name in super().get_decay_parameter_names(model) if id(named.get(name)) not in spared]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own; stops the run if it is not finite, and names the clips."""
        index = inputs["index"].tolist()
        outputs = model(**inputs)
        names = self.names if model.training else [clip.clip_id for clip in self.valid_collator.split.clips]
        check_loss(outputs["loss"], self.state.global_step, [names[i] for i in index])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        save_trainable(self.accelerator.unwrap_model(self.model), folder)
        torch.save(self.args, folder / "training_args.bin")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:  # the trainer asks for this only where the whole model is PEFT's
            engine: Any = self.model_wrapped
            engine.save_checkpoint = partial(type(engine).save_checkpoint, engine, exclude_frozen_parameters=True)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_trainable(self.accelerator.unwrap_model(self.model), str(self.state.best_model_checkpoint))


def _miss_frozen(model: torch.nn.Module, keys: Any) -> None:
    """Weights that do not learn are in no checkpoint; DeepSpeed reads its own strictly."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in frozen]
