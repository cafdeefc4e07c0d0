"""Generate and score with transformers, a batch at a time."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from transformers import GenerationConfig, LogitsProcessor

from migr.engine.task import Attention, Generation, Request, Score, Task
from migr.omni.inputs import Features
from migr.omni.thinker import thinker_of
from migr.omni.towers import MEDIA, FrozenTowers


class _PerRow(LogitsProcessor):
    """Choices and sampling, row by row; works beside `do_sample=False`.

    The largest of logits / temperature + Gumbel noise is a sample of their softmax (the Gumbel-max trick), and the
    noise of a row comes from its own generator.
    """

    def __init__(self, task: Task, requests: Sequence[Request], width: int, device: Any):
        self.task, self.width = task, width
        self.choices = [request.choices for request in requests]
        self.draws = [torch.Generator(device).manual_seed(task.draw(request.key)) for request in requests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) as `generate` has them for the next token, after the suppressed tokens."""
        for row, choices in enumerate(self.choices):
            if choices is not None:
                tokens = self.task.allowed(choices, input_ids[row, self.width :].tolist())
                allowed = scores[row, tokens]
                scores[row] = -torch.inf
                scores[row, tokens] = allowed
        if not self.task.temperature:
            return scores
        noise = torch.stack([torch.empty_like(scores[0]).exponential_(generator=draw) for draw in self.draws])
        return scores / self.task.temperature - noise.log()


class TransformersEngine:
    """Batches through `generate`; see `open_engine`."""

    def __init__(self, model: Any, task: Task):
        self.task = task
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.towers = FrozenTowers(thinker_of(self.model), task.inputs)
        # what this one leaves open, `generate` takes from the model's own: beams, biases, bans of n-grams
        self.model.generation_config = GenerationConfig()
        self.config = GenerationConfig(
            eos_token_id=task.ends,
            pad_token_id=task.tokenizer.pad_token_id,
            suppress_tokens=task.suppressed,
            do_sample=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Answer the requests in order, one batch at a time; see `open_engine`.

        Raises:
            InputError: A request cannot be used; names it.
        """
        for batch, rows in self._batches(requests):
            for request, ids in zip(batch, self._answer(batch, rows), strict=True):
                yield self.task.generation(request.key, ids[: self.task.longest(request)])

    def score(self, requests: Iterable[Request]) -> Iterator[Score]:
        """Score the given beginnings in order, one batch at a time; see `open_engine`.

        Raises:
            InputError: A request cannot be used; names it.
        """
        for batch, rows in self._batches(requests):
            begins = [self.task.begins(request) for request in batch]
            logprobs = self._score(rows, [len(ids) for ids, _ in begins])
            for request, (_, spans), values in zip(batch, begins, logprobs, strict=True):
                yield Score(request.key, tuple(values), tuple(spans))

    def attend(self, requests: Iterable[Request]) -> Iterator[Attention]:
        """Where the model looks while it would write the given beginnings, in order; vLLM cannot tell.

        Raises:
            InputError: A request cannot be used; names it.
        """
        text_model = thinker_of(self.model).model
        implementation = text_model.config._attn_implementation
        text_model.set_attn_implementation("eager")  # the others do not keep the weights
        try:
            for batch, rows in self._batches(requests):
                begins = [self.task.begins(request) for request in batch]
                shares = self._attend(rows, [len(ids) for ids, _ in begins])
                for request, (_, spans), values in zip(batch, begins, shares, strict=True):
                    yield Attention(request.key, tuple(values), tuple(spans))
        finally:
            text_model.set_attn_implementation(implementation)

    def _batches(self, requests: Iterable[Request]) -> Iterator[tuple[list[Request], list[tuple[list[int], Features]]]]:
        source = iter(requests)
        while batch := list(itertools.islice(source, self.task.batch_size)):
            named = any(request.media_keys for request in batch)  # a batch is of tokens throughout, or has none
            yield batch, [self.task.prepare(request, self._tokens if named else None) for request in batch]

    @torch.inference_mode()
    def _tokens(self, request: Request) -> Features:
        """The media's tokens; of those that have a name, the towers make them once."""
        if request.media is None:
            return {}
        parts = {"video": request.media.frames, "audio": request.media.waveform}
        keys = {modality: request.media_keys.get(modality) for modality, part in parts.items() if part is not None}
        tokens = {modality: key and self.towers.tokens.get(key, modality) for modality, key in keys.items()}
        raw = {} if all(tokens.values()) else self.task.process(request)
        features: Features = {}
        for modality, key in keys.items():
            features |= self.towers.finish(key, tokens[modality] or {name: raw[name] for name in MEDIA[modality]})
        return features

    def _collate(self, rows: list[tuple[list[int], Features]]) -> dict[str, torch.Tensor]:
        width = max(len(ids) for ids, _ in rows)
        pad = self.task.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([[pad] * (width - len(ids)) + ids for ids, _ in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows]),
            **self.task.inputs.collate([features for _, features in rows]),
        }
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    @torch.inference_mode()
    def _answer(self, requests: list[Request], rows: list[tuple[list[int], Features]]) -> list[list[int]]:
        batch = self._collate(rows)
        width = batch["input_ids"].shape[1]
        own = [_PerRow(self.task, requests, width, self.model.device)]
        config = copy.copy(self.config)
        config.max_new_tokens = max(map(self.task.longest, requests))
        # a judge in a training: each process has texts of its own, and may have none
        ids = self.model.generate(**batch, generation_config=config, logits_processor=own, synced_gpus=False)
        return ids[:, width:].tolist()

    @torch.inference_mode()
    def _score(self, rows: list[tuple[list[int], Features]], counts: list[int]) -> list[list[float]]:
        """log p of the last `counts` tokens of each row; the head runs on those alone, not on thousands of others."""
        batch = self._collate(rows)
        thinker = thinker_of(self.model)
        hidden = thinker.backbone(**batch, use_cache=False).last_hidden_state
        values = []
        for states, ids, count in zip(hidden, batch["input_ids"], counts, strict=True):
            logits = thinker.lm_head(states[len(ids) - count - 1 : -1]).float()
            targets = ids[len(ids) - count :, None]
            values.append(logits.log_softmax(-1).gather(1, targets)[:, 0].tolist())
        return values

    @torch.inference_mode()
    def _attend(self, rows: list[tuple[list[int], Features]], counts: list[int]) -> list[list[float]]:
        """Share of the attention to media where the last `counts` tokens of each row are predicted.

        A layer's weights (B, heads, L, L) are summed up as soon as it has them: one layer's are in memory at a time.
        """
        batch = self._collate(rows)
        processor = self.task.inputs.processor
        tokens = self.task.tokenizer.convert_tokens_to_ids([processor.video_token, processor.audio_token])
        media = torch.isin(batch["input_ids"], torch.tensor(tokens, device=self.model.device)).float()
        most = max(counts)
        total = torch.zeros(len(rows), most)

        def add(_: Any, __: Any, output: Any) -> None:
            weights = output[1][:, :, -most - 1 : -1].float()
            total.add_((weights @ media[:, None, :, None])[..., 0].mean(1).cpu())

        thinker = thinker_of(self.model)
        hooks = [layer.self_attn.register_forward_hook(add) for layer in thinker.model.layers]
        try:
            thinker.backbone(**batch, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        shares = total / len(hooks)
        return [row[most - count :].tolist() for row, count in zip(shares, counts, strict=True)]

    def close(self) -> None:
        """Let go of the model."""
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
