"""Open vLLM with what holds for every model here, and close it again. Checked against vLLM 0.31."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from migr.errors import InputError, as_input_error
from migr.omni.checks import check_finite, damaged_weight, stored_weights
from migr.omni.companions import vllm_environment
from migr.omni.load import quiet


class Vllm:
    """A model in vLLM (`llm`), its weights finite. Use it in a `with` statement, or call its `close()`.

    On a CPU it lives in this process, with state of which there is one: close it before another is opened.

    Args:
        model: A folder with safetensors.
        dtype: As for `open_engine`.
        max_length: Longest prompt and answer together in tokens.
        at_once: Requests worked on together.
        tensor_parallel: Number of GPUs that the model is spread over.
        one_process: It must live in this process.
        **options: More of `vllm.LLM`.

    Raises:
        InputError: vLLM cannot load the model, or a weight is not finite.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str,
        max_length: int,
        at_once: int,
        tensor_parallel: int = 1,
        one_process: bool = False,
        **options: Any,
    ) -> None:
        vllm_environment(one_process)
        if not torch.cuda.is_available():
            # a prompt in pieces and a seed of its own crash vLLM 0.31 ("CPU Generator does not use offset")
            options |= {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": max_length}
            # vLLM packs weights on a CPU, where `check_weights` cannot see them again; a GPU need not read them twice
            check_finite(stored_weights(model), model)
        self._set_threads = torch.set_num_threads  # vLLM's CPU worker replaces it
        from vllm import LLM  # here: the environment counts when vLLM is imported

        options.setdefault("worker_extension_cls", f"{ChecksWeights.__module__}.{ChecksWeights.__name__}")
        self.llm: Any = None
        try:
            with (
                quiet(),
                warnings.catch_warnings(action="ignore"),
                _stderr_without(b"NUMA binding"),
                as_input_error(f"{model}: vLLM cannot load it"),
            ):
                self.llm = LLM(
                    model=str(model),
                    dtype=dtype,  # type: ignore[arg-type]  # a name, checked by vLLM
                    load_format="safetensors",  # the other format is pickle, which runs code
                    generation_config="vllm",  # none of the model's own: each request says all
                    trust_remote_code=False,
                    max_model_len=max_length,
                    max_num_seqs=at_once,
                    tensor_parallel_size=tensor_parallel,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
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

    def check_weights(self, model: str | Path) -> None:
        """Raise InputError if a weight is not finite; names it. What it once computes stays in vLLM's cache."""
        if damaged := next(filter(None, self.llm.collective_rpc("damaged_weight")), None):
            raise InputError(f"{model}: the weights of {damaged} are not finite numbers")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
