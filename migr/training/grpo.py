"""GRPO on video and audio: TRL's GRPOTrainer, with the media put back wherever it would lose them.

TRL 1.16 carries images only: with video or audio in the prompt its generation would see the media and its loss would
not, without an error. Rows here carry the number of their clip; the methods below look the features up by it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.decoders import DecodeStream
from transformers import GenerationConfig
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from migr.clips.manifest import Clip
from migr.clips.media import blanked
from migr.errors import NonFiniteError
from migr.files.records import Row
from migr.omni.inputs import Features, OmniInputs
from migr.omni.prompt import render_prompt
from migr.omni.thinker import thinker_of
from migr.omni.towers import FrozenTowers
from migr.rollout.merging import folded
from migr.rollout.rollouts import Rollouts
from migr.training.guards import check_loss
from migr.training.runs import EndsOnce
from migr.training.sft import IGNORED
from migr.training.shared_prefix import Packed, pack
from migr.training.zero3 import is_zero3, prepare_for_zero3


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


class OmniGRPOTrainer(EndsOnce, GRPOTrainer):
    """GRPOTrainer for rows with `prompt`, `clip` (a number into `clips`) and `clip_id`.

    Args:
        inputs: Features of clips and expansion of prompts.
        clips: The clips that `clip` counts.
        **kwargs: As for GRPOTrainer. With `use_vllm`, call `close()` when done.
    """

    def __init__(self, *, inputs: OmniInputs, clips: Sequence[Clip], **kwargs: Any) -> None:
        self.omni, self.clips = inputs, clips
        self._rows: list[int] = []  # the clips of the batch that is being worked on, one a row
        args: Any = kwargs["args"]
        vllm, args.use_vllm = args.use_vllm, False  # TRL's own vLLM would take pictures alone
        super().__init__(**kwargs)
        args.use_vllm = self.use_vllm = vllm
        if is_zero3(args):
            prepare_for_zero3(self.model, self.accelerator.device)
        self.thinker = thinker_of(self.model)
        self.thinker.generation_config = GenerationConfig()  # what the run leaves open is not the model's to say
        self.towers = FrozenTowers(self.thinker, inputs)
        # flash attention has no way to say which branch sees what
        self.packs = self.thinker.config.get_text_config()._attn_implementation == "sdpa"
        self.rollouts = Rollouts(self, inputs) if vllm else None
        self._synced = -1  # the step whose weights vLLM has
        self._blank = False  # the clips are looked at with grey frames and silence

    def close(self) -> None:
        """Stop vLLM, where it is used."""
        if self.rollouts is not None:
            self.rollouts.close()

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapters; under ZeRO-3, PEFT (0.21) would put the trained one into the reference's folder too."""
        super().save_model(output_dir, _internal_call)
        model: Any = self.model
        if not is_zero3(self.args) or "ref" not in model.peft_config:
            return
        own = {name: weight for name, weight in model.named_parameters() if ".ref." in name}
        with self._dist.gather_params(list(own.values())):
            if self.is_world_process_zero():
                weights = {name.replace(".ref.", "."): weight.data.cpu().clone() for name, weight in own.items()}
                folder = Path(str(output_dir or self.args.output_dir)) / "ref"
                save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})

    def _tokens(self, clip: Clip) -> Features:
        if self._blank:
            return self.omni.process(blanked(self.omni.media(clip)))
        return self.towers.features(clip)

    def _media(self, rows: Sequence[int]) -> Features:
        media = self.omni.collate([self._tokens(self.clips[row]) for row in rows])
        return {key: value.to(self.accelerator.device) for key, value in media.items()}

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, torch.Tensor]]:
        asked = [(prompt[-1]["content"], row) for prompt, row in zip(prompts, self._rows, strict=True)]
        once: dict[tuple[str, int], list[int]] = {}  # a clip's completions have one prompt
        for content, row in dict.fromkeys(asked):
            clip = self.clips[row]
            text = render_prompt(self.omni.processor, content, clip.has_video, clip.has_audio)
            features = self.omni.features(clip) if self.use_vllm else self._tokens(clip)
            once[content, row] = self.omni.prompt_ids(text, features)
        ids = [list(once[key]) for key in asked]
        if self.use_vllm:
            return ids, None, {}
        order = list(dict.fromkeys(self._rows))
        group = torch.tensor([order.index(row) for row in self._rows])
        return ids, None, {"group": group, **self._media(order)}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = [row["clip"] for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        output["clip"] = torch.tensor(self._rows, device=self.accelerator.device)
        return output

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if self.rollouts is not None:
            step = self.state.global_step
            if step != self._synced:
                self.rollouts.sync()
                self._synced = step
            return self.rollouts.sample(prompt_ids, [self.clips[row] for row in self._rows], step)
        try:
            with nullcontext() if is_zero3(self.args) else folded(self.model):
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        except RuntimeError as error:
            if "nan" not in str(error):
                raise
            raise NonFiniteError(
                f"sampling met logits that are not finite at step {self.state.global_step}; "
                f"clips of the batch: {', '.join(self.clips[row].clip_id for row in self._rows)}"
            ) from error

    def _calculate_rewards(self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, ids: Any) -> Any:
        if any(getattr(reward, "needs_gains", False) for reward in self.reward_funcs):
            gains = self._gains(prompts, ids)
            inputs = [{**row, "gains": own} for row, own in zip(inputs, gains, strict=True)]
        return super()._calculate_rewards(inputs, prompts, completions, ids)

    @torch.no_grad()
    def _gains(self, prompts: list[Any], completions: list[list[int]]) -> list[Row]:
        """What each sampled token owes to the clip: log p behind it minus log p behind the blanked clip, in nats.

        At the temperature of sampling. Two passes over the batch, in which the rows of a clip share its prompt.

        Returns:
            (n,) `spans` of the tokens in the response's text, and `gains`.
        """
        begins, _, _ = self._tokenize_prompts(prompts)
        tokenizer: Any = self.omni.processor.tokenizer
        width, most, pad = max(map(len, begins)), max(map(len, completions)), tokenizer.pad_token_id
        pairs = list(zip(begins, completions, strict=True))
        rows = [[pad] * (width - len(a)) + a + b + [pad] * (most - len(b)) for a, b in pairs]
        masks = [[0] * (width - len(a)) + [1] * (len(a) + len(b)) + [0] * (most - len(b)) for a, b in pairs]
        input_ids, mask = (torch.tensor(values, device=self.accelerator.device) for values in (rows, masks))
        size = self.args.per_device_train_batch_size
        logps = []
        try:
            for self._blank in (False, True):
                logps.append(self._get_per_token_logps_and_entropies(self.model, input_ids, mask, most, size)[0])
        finally:
            self._blank = False
        gains = (logps[0] - logps[1]).tolist()
        rows_of_gains: list[Row] = []
        for ids, own in zip(completions, gains, strict=True):
            stream = DecodeStream(skip_special_tokens=True)  # a piece of text once all its bytes are there
            pieces = (stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids)
            ends = list(accumulate(map(len, pieces), initial=0))
            rows_of_gains.append({"spans": list(pairwise(ends)), "gains": own[: len(ids)]})
        return rows_of_gains

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
        logps: list[torch.Tensor] = []
        entropies: list[torch.Tensor] = []
        aux_losses = []
        step = batch_size or len(input_ids)
        for start in range(0, len(input_ids), step):
            chunk = slice(start, start + step)
            rows = self._rows[chunk]
            packed: Packed | None = None
            with self.accelerator.autocast():
                if self.packs and not compute_aux_loss and len(set(rows)) < len(rows):
                    media = self._media(list(dict.fromkeys(rows)))
                    positions = partial(self.thinker.positions, media=media)
                    packed = pack(input_ids[chunk], attention_mask[chunk], logits_to_keep, rows, positions)
                    ids, mask = packed.input_ids, packed.mask
                    labels: dict[str, Any] = {"shift_labels": packed.shift_labels, "position_ids": packed.position_ids}
                else:
                    media, ids, mask = self._media(rows), input_ids[chunk], attention_mask[chunk]
                    labels = {"labels": ids.masked_fill(mask == 0, IGNORED)}
                    labels["labels"][:, :-logits_to_keep] = IGNORED
                if compute_aux_loss:
                    labels["output_router_logits"] = True
                output = model(input_ids=ids, attention_mask=mask, **labels, **media, fused_lm_head=True)
            for parts, values in ((logps, output.log_probs), (entropies, output.entropy)):
                shape = (len(rows), logits_to_keep)
                parts.append(packed.unpack(values, shape) if packed else values[:, -logits_to_keep:])
            aux_losses.append(output.aux_loss)
        return (
            torch.cat(logps),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(aux_losses).mean() if compute_aux_loss else None,
        )
