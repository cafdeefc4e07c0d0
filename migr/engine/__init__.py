"""Generate answers for many clips, with vLLM where it is installed, else with transformers. Both give the same text.

Both backends get the very tensors that training sees (`OmniInputs`): vLLM is handed processed inputs, so its own
processor cannot resize frames again, round their rate or pad the sound differently. Neither can sample a media token.
What is sampled for a request depends on the seed and its key alone, not on its neighbours in a batch.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from migr.engine.task import Engine, Generation, Request, Score, Task
from migr.engine.transformers import TransformersEngine
from migr.errors import InputError
from migr.omni.export import adapter_base
from migr.omni.inputs import OmniInputs
from migr.omni.load import check_model, check_model_size, is_whole, load_processor, load_thinker, thinker_config
from migr.settings import DecodingSettings, EngineSettings, MediaSettings

__all__ = ["AT_ONCE", "Engine", "Generation", "Request", "Score", "open_engine"]

AT_ONCE = {"vllm": 64, "transformers": 16}  # requests worked on together; what waits or has been taken costs no memory


def open_engine(
    model: str | Path,
    backend: str = "auto",
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    dtype: str = "auto",
    max_model_length: int = 8192,
    tensor_parallel: int = 1,
    vllm_gpu_memory_utilization: float = 0.9,
    audio_in_video: bool = False,
    cache_dir: str | Path | None = None,
) -> Engine:
    """Load a model for generation. Use it in a `with` statement, or call its `close()`.

    Args:
        model: A model folder; for transformers also an adapter, or a thinker alone.
        backend: "vllm", "transformers", or "auto": vLLM where it is installed.
        max_new_tokens: Longest answer in tokens.
        temperature: 0 takes the likeliest token; above, tokens are sampled from the whole vocabulary.
        seed: Seed of sampling; the backends draw different samples from it.
        batch_size: Requests worked on together; 64 with vLLM, 16 with transformers by default.
        dtype: "float32", "bfloat16", or "auto": as stored on a GPU, float32 on a CPU.
        max_model_length: Longest prompt and answer together in tokens; at most what the model was built for.
        tensor_parallel: Number of GPUs that vLLM spreads the model over.
        vllm_gpu_memory_utilization: Share of a GPU's memory that vLLM takes, 0 to 1.
        audio_in_video: Sound and frames come interleaved, as in training with it; transformers only.
        cache_dir: Folder where transformers keeps the towers' tokens of media that have a key (`migr.omni.towers`), and
            finds those of other stages; None keeps them in memory.

    Returns:
        An object with `generate(requests)`, which yields one `Generation` a request, and `score(requests)`, which
        yields one `Score`. Both keep the order and read `requests` only as fast as they answer them.

    Raises:
        InputError: An argument is out of range, the model cannot be loaded or the backend is not installed.
    """
    EngineSettings(  # checks the ranges
        engine=backend,
        dtype=dtype,
        batch_size=batch_size,
        tensor_parallel=tensor_parallel,
        vllm_gpu_memory_utilization=vllm_gpu_memory_utilization,
        max_model_length=max_model_length,
    )
    DecodingSettings(max_new_tokens, temperature, seed)
    installed = find_spec("vllm") is not None
    if backend == "vllm" and not installed:
        raise InputError("engine: vllm is not installed (pip install 'migr[cpu]' or 'migr[gpu]'); or use transformers")
    if backend == "vllm" and audio_in_video:  # measured: the marks around the media get other positions there
        raise InputError("audio_in_video: vLLM 0.31 places interleaved media otherwise than training; use transformers")
    if backend == "auto":
        backend = "vllm" if installed and not audio_in_video else "transformers"
    if dtype == "auto" and not torch.cuda.is_available():
        dtype = "float32"
    adapter = model if (Path(model) / "adapter_config.json").is_file() else None
    base = check_model(adapter_base(model) if adapter else model)
    limit = min(max_model_length, thinker_config(base).text_config.max_position_embeddings)
    inputs = OmniInputs(load_processor(base), MediaSettings(audio_in_video=audio_in_video), cache_dir)
    task = Task(inputs, max_new_tokens, temperature, seed, batch_size or AT_ONCE[backend], limit)
    if backend == "transformers":
        if tensor_parallel > 1:
            raise InputError(f"tensor_parallel: {tensor_parallel} needs vllm; transformers runs a model on one device")
        return TransformersEngine(load_thinker(base, dtype=dtype, adapter=adapter), task)
    if adapter or not is_whole(base):
        raise InputError(f"{model}: vLLM needs the whole model; run stages/export.py on it, or use transformers")
    check_model_size(base)
    from migr.engine.vllm import VllmEngine  # vLLM is imported where it is used alone

    return VllmEngine(base, dtype, task, tensor_parallel, gpu_memory_utilization=vllm_gpu_memory_utilization)
