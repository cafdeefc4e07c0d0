"""Generate with vLLM. Its engine is handed processed inputs, so its own processor never touches a clip.

Checked against vLLM 0.31: `LLMEngine.add_request` takes what its renderer would return (`vllm.inputs.mm_input`).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from transformers import BatchFeature

from migr.engine.backend import Vllm
from migr.engine.task import Generation, Request, Score, Task
from migr.omni.family import QWEN3
from migr.omni.inputs import Features

NEVER = -100.0  # added to a logit; the least that vLLM documents


class VllmEngine(Vllm):
    """Feeds vLLM's engine so that it always has `batch_size` requests at work; see `open_engine`."""

    def __init__(
        self, model: str, dtype: str, task: Task, tensor_parallel: int = 1, one_process: bool = False, **more: Any
    ):
        self.task = task
        if not torch.cuda.is_available():
            more["skip_mm_profiling"] = True
        super().__init__(
            model,
            dtype,
            task.max_length,
            task.batch_size,
            tensor_parallel,
            one_process,
            limit_mm_per_prompt={"video": 1, "audio": 1, "image": 0},
            mm_processor_cache_gb=0,  # every clip comes once
            enable_prefix_caching=True,  # requests about one clip share its prompt
            seed=task.seed,
            **more,
        )
        from vllm import SamplingParams  # here: the environment counts when vLLM is imported
        from vllm.model_executor.models.qwen2_5_omni_thinker import create_qwen2_5_omni_thinker_field_factory
        from vllm.sampling_params import StructuredOutputsParams

        self.sampling, self.structured = SamplingParams, StructuredOutputsParams
        self.fields = create_qwen2_5_omni_thinker_field_factory(task.inputs.processor.video_processor.merge_size)
        self._numbers = itertools.count()

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
