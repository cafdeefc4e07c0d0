"""Generate with vLLM. Its engine is handed processed inputs, so its own processor never touches a clip.

Checked against vLLM 0.31: `LLMEngine.add_request` takes what its renderer would return (`vllm.inputs.mm_input`).
"""

import itertools
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from transformers import BatchFeature

from migr.engine.task import Generation, Request, Score, Task
from migr.errors import InputError, as_input_error
from migr.omni.checks import check_finite, damaged_weight, stored_weights
from migr.omni.companions import vllm_environment
from migr.omni.family import QWEN3
from migr.omni.inputs import Features
from migr.omni.load import quiet

NEVER = -100.0  # added to a logit; the least that vLLM documents


class VllmEngine:
    """Feeds vLLM's engine so that it always has `batch_size` requests at work; see `open_engine`.

    On a CPU it lives in this process, with state of which there is one: close it before another is opened.
    """

    def __init__(
        self, model: str, dtype: str, task: Task, tensor_parallel: int = 1, one_process: bool = False, **more: Any
    ):
        vllm_environment(one_process)
        options: dict[str, Any] = {"dtype": dtype, "tensor_parallel_size": tensor_parallel, **more}
        if not torch.cuda.is_available():
            options |= {"enforce_eager": True, "skip_mm_profiling": True}
            # a prompt in pieces and a seed of its own crash vLLM 0.31 ("CPU Generator does not use offset")
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": task.max_length}
            # vLLM packs weights on a CPU, where `check_weights` cannot see them again; a GPU need not read them twice
            check_finite(stored_weights(model), model)
        self._set_threads = torch.set_num_threads  # vLLM's CPU worker replaces it
        from vllm import LLM, SamplingParams  # here: the environment counts when vLLM is imported
        from vllm.model_executor.models.qwen2_5_omni_thinker import create_qwen2_5_omni_thinker_field_factory
        from vllm.sampling_params import StructuredOutputsParams

        self.task = task
        self.sampling, self.structured = SamplingParams, StructuredOutputsParams
        self.fields = create_qwen2_5_omni_thinker_field_factory(task.inputs.processor.video_processor.merge_size)
        options.setdefault("worker_extension_cls", "migr.engine.vllm.ChecksWeights")
        self.llm: Any = None
        try:
            with (
                quiet(),
                warnings.catch_warnings(action="ignore"),
                _stderr_without(b"NUMA binding"),
                as_input_error(f"{model}: vLLM cannot load it"),
            ):
                self.llm = LLM(
                    model=model,
                    load_format="safetensors",  # the other format is pickle, which runs code
                    generation_config="vllm",  # none of the model's own: `_parameters` says all
                    trust_remote_code=False,
                    max_model_len=task.max_length,
                    max_num_seqs=task.batch_size,
                    limit_mm_per_prompt={"video": 1, "audio": 1, "image": 0},
                    mm_processor_cache_gb=0,  # every clip comes once
                    enable_prefix_caching=True,  # requests about one clip share its prompt
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    seed=task.seed,
                    **options,
                )
            self.check_weights(model)
        except InputError as error:
            self.close()
            if "memory" not in str(error).lower():
                raise
            raise InputError(f"{error}; lower vllm_gpu_memory_utilization or max_model_length") from error
        except BaseException:
            self.close()  # what a failed load leaves in this process would break the next engine
            raise
        self._numbers = itertools.count()

    def check_weights(self, model: str) -> None:
        """Raise InputError if a weight is not finite; names it. What it once computes stays in vLLM's cache."""
        if damaged := next(filter(None, self.llm.collective_rpc("damaged_weight")), None):
            raise InputError(f"{model}: the weights of {damaged} are not finite numbers")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Answer the requests in order; a finished one waits for those before it. See `open_engine`.

        Raises:
            InputError: A request cannot be used; names it.
        """
        for request, output in self._outputs(requests, self._parameters):
            yield self.task.generation(request.key, output.outputs[0].token_ids)

    def score(self, requests: Iterable[Request]) -> Iterator[Score]:
        """Score the given beginnings in order; see `open_engine`.

        Raises:
            InputError: A request cannot be used; names it.
        """
        once = self.sampling(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        for request, output in self._outputs(requests, lambda _: once):
            ids, spans = self.task.begins(request)
            rows = output.prompt_logprobs[len(output.prompt_logprobs) - len(ids) :]
            logprobs = (row[token].logprob for row, token in zip(rows, ids, strict=True))
            yield Score(request.key, tuple(logprobs), tuple(spans))

    def _outputs(
        self, requests: Iterable[Request], parameters: Callable[[Request], Any]
    ) -> Iterator[tuple[Request, Any]]:
        """vLLM's output of each request, in order."""
        engine: Any = self.llm.llm_engine
        assert not engine.has_unfinished_requests(), "one generate() at a time"
        source, begun, yielded = enumerate(requests), 0, 0
        working: dict[str, tuple[int, Request]] = {}
        done: dict[int, tuple[Request, Any]] = {}
        try:
            while True:
                for index, request in itertools.islice(source, self.task.batch_size - (begun - yielded)):
                    name = str(next(self._numbers))
                    engine.add_request(name, self._input(name, request), parameters(request))
                    working[name] = index, replace(request, media=None)  # its frames are not needed any more
                    begun += 1
                if begun == yielded:
                    return
                while yielded not in done:
                    for output in engine.step():
                        if output.finished:
                            index, request = working.pop(output.request_id)
                            done[index] = request, output
                yield done.pop(yielded)
                yielded += 1
        finally:
            engine.abort_request(list(working))

    def _input(self, name: str, request: Request) -> Any:
        ids, features = self.task.prepare(request)
        return self.processed({m: request.media_keys.get(m, name) for m in ("video", "audio")}, ids, features)

    def processed(self, names: Mapping[str, str], ids: list[int], features: Features) -> Any:
        """A processed input, which vLLM's engine takes as it is; media with the same name share the towers' tokens."""
        from vllm.inputs import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalKwargsItems

        if not features:
            return tokens_input(ids)
        tensors: dict[str, torch.Tensor] = {}
        marks: dict[str, int] = {}
        if "pixel_values_videos" in features:
            marks["video"] = self.task.tokenizer.convert_tokens_to_ids(self.task.inputs.processor.video_token)
            tensors |= {
                "pixel_values_videos": features["pixel_values_videos"],
                "video_grid_thw": features["video_grid_thw"],
                "second_per_grid_ts": features["video_second_per_grid"],
                "use_audio_in_video": torch.tensor(False),
            }
        if "input_features" in features:
            marks["audio"] = self.task.tokenizer.convert_tokens_to_ids(self.task.inputs.processor.audio_token)
            tensors |= {
                "input_audio_features": features["input_features"][0],
                "feature_attention_mask": features["feature_attention_mask"],
                "audio_feature_lengths": features["feature_attention_mask"].sum(-1),
            }
        return mm_input(
            ids,
            MultiModalKwargsItems.from_hf_inputs(BatchFeature(tensors), self.fields(tensors)),
            {modality: [f"{names[modality]}-{modality}"] for modality in marks},
            {modality: [self._range(ids, mark)] for modality, mark in marks.items()},
        )

    def _range(self, ids: list[int], mark: int) -> Any:
        """Where the tokens of a modality stand.

        For Qwen3-Omni, vLLM computes rotary positions as if the range took in the marks before and behind the tokens,
        though its own processor leaves them out: each position would then be that of the token before.
        """
        from vllm.multimodal.inputs import PlaceholderRange

        start, count = ids.index(mark), ids.count(mark)
        if self.task.inputs.family is not QWEN3:
            return PlaceholderRange(start, count)
        own = torch.ones(count + 2, dtype=torch.bool)
        own[[0, -1]] = False
        return PlaceholderRange(start - 1, count + 2, is_embed=own)

    def _parameters(self, request: Request) -> Any:
        choices = request.choices
        return self.sampling(
            max_tokens=self.task.longest(request),
            temperature=self.task.temperature,
            seed=self.task.draw(request.key) if self.task.temperature else None,
            logit_bias=dict.fromkeys(self.task.suppressed, NEVER),
            stop_token_ids=self.task.ends,
            detokenize=False,
            structured_outputs=None if choices is None else self.structured(choice=list(choices)),
        )

    def close(self) -> None:
        """Stop vLLM and give its memory back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        cleanup_dist_env_and_memory()
        torch.set_num_threads = self._set_threads


class ChecksWeights:
    """What a vLLM worker learns (`worker_extension_cls`)."""

    def damaged_weight(self: Any) -> str | None:
        """Name of a weight with a value that is not finite."""
        return damaged_weight(self.get_model().named_parameters())


@contextmanager
def _stderr_without(phrase: bytes) -> Iterator[None]:
    """Hold standard error back, and write it at the end without the lines that have `phrase`.

    For a message that vLLM's C++ code prints past Python's logging on a CPU, whatever VLLM_CPU_OMP_THREADS_BIND says
    (tried with 0.31: `nobind` does not end it).
    """
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            os.write(2, b"".join(line for line in file if phrase not in line))
