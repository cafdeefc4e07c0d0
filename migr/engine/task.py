"""What is asked of an engine, what it answers, and the way from the one to the other that all engines share."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, Self

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from transformers.convert_slow_tokenizer import bytes_to_unicode

from migr.clips.media import Media
from migr.errors import InputError
from migr.files.records import digest
from migr.omni.inputs import Features, OmniInputs
from migr.omni.load import media_token_ids


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        key: Names it in errors and in its `Generation`; with the seed it decides what is sampled.
        prompt: Chat text with one unexpanded placeholder a modality (`render_prompt`).
        media: The clip's frames and sound (either may be None), or None for text alone.
        media_keys: Modality -> name of the very frames or sound that `media` holds (`OmniInputs.media_key`); what an
            engine makes of them it then makes once. Media without a name are worked on anew.
        choices: The answer is exactly one of these strings, whatever `max_new_tokens` says; None leaves it free.
        begins: A given beginning of the answer: `generate` goes on behind it, `score` scores it.
    """

    key: str
    prompt: str
    media: Media | None = None
    media_keys: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] | None = None
    begins: str = ""

    def with_media(self, key: str, media: Media, *changed: str) -> "Request":
        """The same question about other frames or sound: those of the modalities `changed`."""
        names = {modality: name for modality, name in self.media_keys.items() if modality not in changed}
        return replace(self, key=key, media=media, media_keys=names)


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


@dataclass(frozen=True)
class Attention:
    """How much the model looks at the clip while it writes the given beginning of an answer, token by token.

    Attributes:
        key: The request's.
        shares: Share of the attention, over all layers and heads, that goes to media tokens where each token of
            `begins` is predicted.
        spans: As of a `Score`.
    """

    key: str
    shares: tuple[float, ...]
    spans: tuple[tuple[int, int], ...]


class Engine(Protocol):
    """Answers requests in order; used in a `with` statement, or closed by `close`."""

    task: "Task"

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """One answer a request, in order; reads `requests` only as fast as it answers them."""
        ...

    def score(self, requests: Iterable[Request]) -> Iterator[Score]:
        """log p of each request's `begins`, in order."""
        ...

    def close(self) -> None:
        """Let go of the model and its memory."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


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

    def process(self, request: Request) -> Features:
        """The processors' outputs for the request's media."""
        return self.inputs.process(request.media) if request.media is not None else {}

    def prepare(
        self, request: Request, process: Callable[[Request], Features] | None = None
    ) -> tuple[list[int], Features]:
        """Prompt ids with expanded placeholders, then those of `begins`; and the media's features.

        Args:
            request: The request.
            process: What makes features of its media, if not the method of that name.

        Raises:
            InputError: The media cannot be processed, do not fit the prompt, or are too long; names the request.
        """
        processor = self.inputs.processor
        if request.choices is not None and not all(request.choices or ("",)):
            raise InputError(f"{request.key}: choices must be one or more strings, none empty, not {request.choices}")
        try:
            features = (process or self.process)(request)
            ids = self.inputs.prompt_ids(request.prompt, features)
        except (ValueError, IndexError, RuntimeError, TypeError) as error:  # InputError is a ValueError
            raise InputError(f"{request.key}: {error}") from error
        marks = {"feature_attention_mask": processor.audio_token, "video_grid_thw": processor.video_token}
        for tensor, token in marks.items():
            if tensor in features and self.tokenizer.convert_tokens_to_ids(token) not in ids:
                raise InputError(f"{request.key}: too short for a single {token} token")
        ids += self.begins(request)[0]
        if len(ids) + self.longest(request) > self.max_length:
            raise InputError(
                f"{request.key}: a prompt of {len(ids)} tokens and max_new_tokens = {self.longest(request)} exceed "
                f"{self.max_length} tokens; use fewer or smaller frames, or raise max_model_length, if the model "
                "allows it"
            )
        return ids, features

    def begins(self, request: Request) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and character spans of the answer's given beginning; a token's name in it is plain text."""
        if not request.begins:
            return [], []
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "split_special_tokens": True}
        encoding = self.tokenizer(request.begins, **options)
        return encoding["input_ids"], [tuple(span) for span in encoding["offset_mapping"]]

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

    def allowed(self, choices: Sequence[str], prefix: Sequence[int]) -> list[int]:
        """The tokens that may follow `prefix` so that a choice can still come out, in any spelling into tokens."""
        if any(token in self.ends for token in prefix):
            return self.ends
        text = b"".join(self._bytes[token] for token in prefix)
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
        tokens = tuple(itertools.takewhile(lambda token: token not in self.ends, ids := list(ids)))
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Generation(key, text, tokens, finished=len(tokens) < len(ids))
