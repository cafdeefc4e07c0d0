"""Generate answers for many clips, with vLLM where it is installed, else with transformers. Both give the same text.

Both backends get the very tensors that training sees (`OmniInputs`): vLLM is handed processed inputs, so its own
processor cannot resize frames again, round their rate or pad the sound differently. Neither can sample a media token.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from transformers import GenerationConfig, PreTrainedConfig, Qwen2_5OmniThinkerConfig

from migr.errors import InputError
from migr.media import Media, MediaSettings
from migr.omni.export import adapter_base
from migr.omni.inputs import Features, OmniInputs
from migr.omni.load import DTYPES, check_model, load_processor, load_thinker, media_token_ids

if TYPE_CHECKING:
    from migr.vllm_engine import VllmEngine

BACKENDS = ("auto", "vllm", "transformers")
AT_ONCE = {"vllm": 64, "transformers": 16}  # requests worked on together; what waits or has been taken costs no memory


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        key: Names it in errors and in its `Generation`.
        prompt: Chat text with one unexpanded placeholder a modality (`render_prompt`).
        media: The clip's frames and sound (either may be None), or None for text alone.
    """

    key: str
    prompt: str
    media: Media | None = None


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        key: The request's.
        text: Without special tokens.
        token_ids: As generated, without the token that ended it.
        finished: The model ended it; False if it was cut at `max_new_tokens`.
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    finished: bool


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
) -> "VllmEngine | TransformersEngine":
    """Load a model for generation. Use it in a `with` statement, or call its `close()`.

    Args:
        model: A model folder; for transformers also an adapter, or a thinker alone.
        backend: "vllm", "transformers", or "auto": vLLM where it is installed.
        max_new_tokens: Longest answer in tokens.
        temperature: 0 takes the likeliest token; above, tokens are sampled from the whole vocabulary.
        seed: Seed of sampling. vLLM draws each request by itself, transformers a batch together.
        batch_size: Requests worked on together; 64 with vLLM, 16 with transformers by default.
        dtype: "float32", "bfloat16", or "auto": as stored on a GPU, float32 on a CPU.
        max_length: Longest prompt and answer together in tokens; at most what the model was built for.

    Returns:
        An object with `generate(requests)`, which yields one `Generation` a request, in order, and reads `requests`
        only as fast as it answers them.

    Raises:
        InputError: An argument is out of range, the model cannot be loaded or the backend is not installed.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size), ("max_length", max_length)):
        if value is not None and value < 1:
            raise InputError(f"{name}: must be at least 1, not {value}")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature: must be 0 or more, not {temperature}")
    installed = find_spec("vllm") is not None
    if backend == "vllm" and not installed:
        raise InputError("backend: vllm is not installed (pip install 'migr[cpu]' or 'migr[gpu]'); or use transformers")
    if backend == "auto":
        backend = "vllm" if installed else "transformers"
    if dtype == "auto" and not torch.cuda.is_available():
        dtype = "float32"
    adapter = model if (Path(model) / "adapter_config.json").is_file() else None
    base = check_model(adapter_base(model) if adapter else model)
    text: Any = Qwen2_5OmniThinkerConfig.from_pretrained(base).text_config
    limit = min(max_length, text.max_position_embeddings)
    task = Task(load_processor(base), max_new_tokens, temperature, seed, batch_size or AT_ONCE[backend], limit)
    if backend == "transformers":
        return TransformersEngine(load_thinker(base, dtype=dtype, adapter=adapter), task)
    if adapter or PreTrainedConfig.get_config_dict(base)[0]["model_type"] != "qwen2_5_omni":
        raise InputError(f"{model}: vLLM needs the whole model; run stages/export.py on it, or use transformers")
    from migr.vllm_engine import VllmEngine

    return VllmEngine(base, dtype, task)


class Task:
    """What both backends share: from a request to token ids and features, from answer ids to a `Generation`."""

    def __init__(
        self, processor: Any, max_new_tokens: int, temperature: float, seed: int, batch_size: int, max_length: int
    ):
        self.inputs = OmniInputs(processor, MediaSettings(), None)
        self.tokenizer = processor.tokenizer
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.batch_size, self.max_length = batch_size, max_length
        self.suppressed = media_token_ids(processor)
        # published generation configs do not always name both
        self.ends = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]

    def prepare(self, request: Request) -> tuple[list[int], Features]:
        """Prompt ids with expanded placeholders, and the media's features.

        Raises:
            InputError: The media cannot be processed, do not fit the prompt, or are too long; names the request.
        """
        processor = self.inputs.processor
        try:
            features = self.inputs.process(request.media) if request.media is not None else {}
            ids = self.inputs.prompt_ids(request.prompt, features)
        except (ValueError, IndexError, RuntimeError, TypeError) as error:  # InputError is a ValueError
            raise InputError(f"{request.key}: {error}") from error
        for tensor, token in (("input_features", processor.audio_token), ("video_grid_thw", processor.video_token)):
            if tensor in features and self.tokenizer.convert_tokens_to_ids(token) not in ids:
                raise InputError(f"{request.key}: too short for a single {token} token")
        if len(ids) + self.max_new_tokens > self.max_length:
            raise InputError(
                f"{request.key}: a prompt of {len(ids)} tokens and max_new_tokens = {self.max_new_tokens} exceed "
                f"{self.max_length} tokens; use fewer or smaller frames, or raise max_length if the model allows it"
            )
        return ids, features

    def generation(self, key: str, ids: Iterable[int]) -> Generation:
        """Cut the ids at the token that ended them, decode the rest."""
        kept = tuple(itertools.takewhile(lambda token: token not in self.ends, ids := list(ids)))
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Generation(key, text, kept, finished=len(kept) < len(ids))


class TransformersEngine:
    """Batches through `generate`; see `open_engine`."""

    def __init__(self, model: Any, task: Task):
        self.task = task
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        sampling = {"do_sample": True, "temperature": task.temperature, "top_k": 0, "top_p": 1.0}
        self.config = GenerationConfig(
            max_new_tokens=task.max_new_tokens,
            eos_token_id=task.ends,
            pad_token_id=task.tokenizer.pad_token_id,
            suppress_tokens=task.suppressed,
            repetition_penalty=1.0,  # named, or the model's own stored settings would come through
            **(sampling if task.temperature else {"do_sample": False}),
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
        source = iter(requests)
        for number in itertools.count():
            batch = list(itertools.islice(source, self.task.batch_size))
            if not batch:
                return
            rows = [self.task.prepare(request) for request in batch]
            with torch.random.fork_rng(), torch.inference_mode():
                torch.manual_seed(self.task.seed + number)
                answers = self._answer(rows)
            for request, ids in zip(batch, answers, strict=True):
                yield self.task.generation(request.key, ids)

    def _answer(self, rows: list[tuple[list[int], Features]]) -> list[list[int]]:
        width = max(len(ids) for ids, _ in rows)
        pad = self.task.tokenizer.pad_token_id
        batch = {
            "input_ids": torch.tensor([[pad] * (width - len(ids)) + ids for ids, _ in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows]),
            **self.task.inputs.collate([features for _, features in rows]),
        }
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        return self.model.generate(**batch, generation_config=self.config)[:, width:].tolist()

    def close(self) -> None:
        """Let go of the model."""
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
