"""Generate answers for many clips, with vLLM where it is installed, else with transformers. Both give the same text.

Both backends get the very tensors that training sees (`OmniInputs`): vLLM is handed processed inputs, so its own
processor cannot resize frames again, round their rate or pad the sound differently. Neither can sample a media token.
What is sampled for a request depends on the seed and its key alone, not on its neighbours in a batch.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from migr.errors import InputError
from migr.media import Media, MediaSettings
from migr.omni.export import adapter_base
from migr.omni.inputs import Features, OmniInputs
from migr.omni.load import (
    DTYPES,
    check_model,
    is_whole,
    load_processor,
    load_thinker,
    media_token_ids,
    thinker_config,
)
from migr.records import digest

if TYPE_CHECKING:
    from migr.vllm_engine import VllmEngine

BACKENDS = ("auto", "vllm", "transformers")
AT_ONCE = {"vllm": 64, "transformers": 16}  # requests worked on together; what waits or has been taken costs no memory


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        key: Names it in errors and in its `Generation`; with the seed it decides what is sampled.
        prompt: Chat text with one unexpanded placeholder a modality (`render_prompt`).
        media: The clip's frames and sound (either may be None), or None for text alone.
        choices: The answer is exactly one of these strings, whatever `max_new_tokens` says; None leaves it free.
        begins: A given beginning of the answer: `generate` goes on behind it, `score` scores it.
    """

    key: str
    prompt: str
    media: Media | None = None
    choices: tuple[str, ...] | None = None
    begins: str = ""


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        key: The request's.
        text: Without special tokens, and without the request's `begins`.
        token_ids: As generated, without the token that ended it.
        finished: The model ended it; False if it was cut at `max_new_tokens`.
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True)
class Score:
    """How likely the model finds the given beginning of an answer, token by token.

    Attributes:
        key: The request's.
        logprobs: log p of each token of `begins`, given the prompt, the media and the tokens before it (nats).
        spans: Where each token stands in `begins`: (first character, behind the last).
    """

    key: str
    logprobs: tuple[float, ...]
    spans: tuple[tuple[int, int], ...]


def open_engine(
    model: str | Path,
    backend: str = "auto",
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    dtype: str = "auto",
    max_length: int = 8192,
    tensor_parallel: int = 1,
    audio_in_video: bool = False,
) -> "VllmEngine | TransformersEngine":
    """Load a model for generation. Use it in a `with` statement, or call its `close()`.

    Args:
        model: A model folder; for transformers also an adapter, or a thinker alone.
        backend: "vllm", "transformers", or "auto": vLLM where it is installed.
        max_new_tokens: Longest answer in tokens.
        temperature: 0 takes the likeliest token; above, tokens are sampled from the whole vocabulary.
        seed: Seed of sampling; the backends draw different samples from it.
        batch_size: Requests worked on together; 64 with vLLM, 16 with transformers by default.
        dtype: "float32", "bfloat16", or "auto": as stored on a GPU, float32 on a CPU.
        max_length: Longest prompt and answer together in tokens; at most what the model was built for.
        tensor_parallel: Number of GPUs that vLLM spreads the model over.
        audio_in_video: Sound and frames come interleaved, as in training with it; transformers only.

    Returns:
        An object with `generate(requests)`, which yields one `Generation` a request, and `score(requests)`, which
        yields one `Score`. Both keep the order and read `requests` only as fast as they answer them.

    Raises:
        InputError: An argument is out of range, the model cannot be loaded or the backend is not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    for name, value in (
        ("max_new_tokens", max_new_tokens),
        ("batch_size", batch_size),
        ("max_length", max_length),
        ("tensor_parallel", tensor_parallel),
    ):
        if value is not None and value < 1:
            raise InputError(f"{name}: must be at least 1, not {value}")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature: must be 0 or more, not {temperature}")
    installed = find_spec("vllm") is not None
    if backend == "vllm" and not installed:
        raise InputError("backend: vllm is not installed (pip install 'migr[cpu]' or 'migr[gpu]'); or use transformers")
    if backend == "vllm" and audio_in_video:  # measured: the marks around the media get other positions there
        raise InputError("audio_in_video: vLLM 0.31 places interleaved media otherwise than training; use transformers")
    if backend == "auto":
        backend = "vllm" if installed and not audio_in_video else "transformers"
    if dtype == "auto" and not torch.cuda.is_available():
        dtype = "float32"
    adapter = model if (Path(model) / "adapter_config.json").is_file() else None
    base = check_model(adapter_base(model) if adapter else model)
    limit = min(max_length, thinker_config(base).text_config.max_position_embeddings)
    inputs = OmniInputs(load_processor(base), MediaSettings(audio_in_video=audio_in_video))
    task = Task(inputs, max_new_tokens, temperature, seed, batch_size or AT_ONCE[backend], limit)
    if backend == "transformers":
        if tensor_parallel > 1:
            raise InputError(f"tensor_parallel: {tensor_parallel} needs vllm; transformers runs a model on one device")
        return TransformersEngine(load_thinker(base, dtype=dtype, adapter=adapter), task)
    if adapter or not is_whole(base):
        raise InputError(f"{model}: vLLM needs the whole model; run stages/export.py on it, or use transformers")
    from migr.vllm_engine import VllmEngine

    return VllmEngine(base, dtype, task, tensor_parallel)


class Task:
    """What both backends share: from a request to token ids and features, from answer ids to a `Generation`."""

    def __init__(
        self, inputs: OmniInputs, max_new_tokens: int, temperature: float, seed: int, batch_size: int, max_length: int
    ):
        self.inputs, processor = inputs, inputs.processor
        self.tokenizer = processor.tokenizer
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.batch_size, self.max_length = batch_size, max_length
        self.suppressed = media_token_ids(processor)
        # published generation configs do not always name both
        self.ends = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]

    def prepare(self, request: Request) -> tuple[list[int], Features]:
        """Prompt ids with expanded placeholders, then those of `begins`; and the media's features.

        Raises:
            InputError: The media cannot be processed, do not fit the prompt, or are too long; names the request.
        """
        processor = self.inputs.processor
        if request.choices is not None and not all(request.choices or ("",)):
            raise InputError(f"{request.key}: choices must be one or more strings, none empty, not {request.choices}")
        try:
            features = self.inputs.process(request.media) if request.media is not None else {}
            ids = self.inputs.prompt_ids(request.prompt, features)
        except (ValueError, IndexError, RuntimeError, TypeError) as error:  # InputError is a ValueError
            raise InputError(f"{request.key}: {error}") from error
        for tensor, token in (("input_features", processor.audio_token), ("video_grid_thw", processor.video_token)):
            if tensor in features and self.tokenizer.convert_tokens_to_ids(token) not in ids:
                raise InputError(f"{request.key}: too short for a single {token} token")
        ids += self.begins(request)[0]
        if len(ids) + self.longest(request) > self.max_length:
            raise InputError(
                f"{request.key}: a prompt of {len(ids)} tokens and max_new_tokens = {self.longest(request)} exceed "
                f"{self.max_length} tokens; use fewer or smaller frames, or raise max_length if the model allows it"
            )
        return ids, features

    def begins(self, request: Request) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and character spans of the answer's given beginning; a token's name in it is plain text."""
        if not request.begins:
            return [], []
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "split_special_tokens": True}
        found = self.tokenizer(request.begins, **options)
        return found["input_ids"], [tuple(span) for span in found["offset_mapping"]]

    def longest(self, request: Request) -> int:
        """How many tokens the answer may have: a choice is never cut, and no token is shorter than a byte."""
        if request.choices is None:
            return self.max_new_tokens
        return max(len(choice.encode()) for choice in request.choices) + 1

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """The bytes of each ordinary token (the vocabulary is byte-level BPE)."""
        special = self.tokenizer.get_added_vocab()
        of = {character: byte for byte, character in bytes_to_unicode().items()}
        vocabulary = {i: token for token, i in self.tokenizer.get_vocab().items() if token not in special}
        return {i: bytes(of[c] for c in token) for i, token in vocabulary.items() if all(c in of for c in token)}

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {text: i for i, text in self._bytes.items()}

    def allowed(self, choices: Sequence[str], said: Sequence[int]) -> list[int]:
        """The tokens that may follow `said` so that a choice can still come out, in any spelling into tokens."""
        if any(token in self.ends for token in said):
            return self.ends
        text = b"".join(self._bytes[token] for token in said)
        rests = [choice[len(text) :] for choice in map(str.encode, choices) if choice.startswith(text)]
        pieces = {rest[:length] for rest in rests for length in range(1, len(rest) + 1)}
        return [self._ids[piece] for piece in sorted(pieces) if piece in self._ids] + (
            self.ends if b"" in rests else []
        )

    def draw(self, key: str) -> int:
        """The seed of one request's samples."""
        return int(digest(self.seed, key), 16) >> 1  # 63 bits

    def generation(self, key: str, ids: Iterable[int]) -> Generation:
        """Cut the ids at the token that ended them, decode the rest."""
        kept = tuple(itertools.takewhile(lambda token: token not in self.ends, ids := list(ids)))
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Generation(key, text, kept, finished=len(kept) < len(ids))


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
                kept = self.task.allowed(choices, input_ids[row, self.width :].tolist())
                allowed = scores[row, kept]
                scores[row] = -torch.inf
                scores[row, kept] = allowed
        if not self.task.temperature:
            return scores
        noise = torch.stack([torch.empty_like(scores[0]).exponential_(generator=draw) for draw in self.draws])
        return scores / self.task.temperature - noise.log()


class TransformersEngine:
    """Batches through `generate`; see `open_engine`."""

    def __init__(self, model: Any, task: Task):
        self.task = task
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.config = GenerationConfig(
            eos_token_id=task.ends,
            pad_token_id=task.tokenizer.pad_token_id,
            suppress_tokens=task.suppressed,
            repetition_penalty=1.0,  # named, or the model's own stored settings would come through
            do_sample=False,
        )

    def __enter__(self) -> "TransformersEngine":
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

    def _batches(self, requests: Iterable[Request]) -> Iterator[tuple[list[Request], list[tuple[list[int], Features]]]]:
        source = iter(requests)
        while batch := list(itertools.islice(source, self.task.batch_size)):
            yield batch, [self.task.prepare(request) for request in batch]

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
        return self.model.generate(**batch, generation_config=config, logits_processor=own)[:, width:].tolist()

    @torch.inference_mode()
    def _score(self, rows: list[tuple[list[int], Features]], counts: list[int]) -> list[list[float]]:
        """log p of the last `counts` tokens of each row; the head runs on those alone, not on thousands of others."""
        batch = self._collate(rows)
        thinker: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        hidden = thinker.base_model(**batch, use_cache=False).last_hidden_state  # see `prepare_for_trl`
        values = []
        for states, ids, count in zip(hidden, batch["input_ids"], counts, strict=True):
            logits = thinker.lm_head(states[len(ids) - count - 1 : -1]).float()
            chosen = ids[len(ids) - count :, None]
            values.append(logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist())
        return values

    def close(self) -> None:
        """Let go of the model."""
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
