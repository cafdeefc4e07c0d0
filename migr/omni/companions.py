"""Let transformers and vLLM import beside a CPU torch, and keep their harmless import messages from the user.

torch's companions (torchvision, torchaudio, torchcodec) come from the package registry as CUDA builds, which raise on a
CPU torch; transformers imports them as soon as they are installed. torchvision's Python code works without its compiled
operators once the schemas of two of them exist; the other two are optional for us, and a None entry in `sys.modules`
makes `importlib.util.find_spec` report them as absent.

It must run before transformers is imported, in every process. vLLM looks at a model's class in a subprocess that
imports transformers before any plug-in can act; a class that is registered itself, not by name, needs no such look.
vLLM calls `install` for that, in each of its processes: it is an entry point of the group `vllm.general_plugins`. Where
everything loads as it is, that changes nothing, in a user's own `vllm serve` neither.
"""

import importlib
import logging
import os
import sys
from typing import Any

import torch

# TRL tells the Hub of each trainer, vLLM its makers of each start; who wants that sets them to 0.
SENDS_NOTHING = ("HF_HUB_DISABLE_TELEMETRY", "VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK")

_kept: list[torch.library.Library] = []  # a library's definitions last as long as the object
_installed = False
_mended = False  # torchvision did not load as it is


def install() -> None:
    """Mend the imports of this process. Later calls do nothing, but for the one that comes from vLLM."""
    global _installed, _mended
    if not _installed:
        _installed = True
        if "vllm" not in sys.modules:  # else it was imported by someone who has set up its messages
            _quiet()
        _mended = _mend()
    if _mended and "vllm.model_executor.models.registry" in sys.modules:
        _register()


def _mend() -> bool:
    for name in ("torchaudio", "torchcodec"):
        if not _loads(name):
            sys.modules[name] = None  # type: ignore[assignment]
    if _loads("torchvision"):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    return True


def _register() -> None:
    from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration
    from vllm.model_executor.models.qwen3_omni_moe_thinker import Qwen3OmniMoeThinkerForConditionalGeneration
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model("Qwen2_5OmniForConditionalGeneration", Qwen2_5OmniThinkerForConditionalGeneration)
    ModelRegistry.register_model("Qwen3OmniMoeForConditionalGeneration", Qwen3OmniMoeThinkerForConditionalGeneration)


def _loads(name: str) -> bool:
    try:
        importlib.import_module(name)
        return True
    except (ImportError, OSError, RuntimeError):
        for key in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[key]
        return False


def _quiet() -> None:
    """Hide messages that a user can do nothing about. Whoever wants them sets the variable."""
    for name in SENDS_NOTHING:
        os.environ.setdefault(name, "1")
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it reads its variable when it is imported
        constants.HF_HUB_DISABLE_TELEMETRY = os.environ["HF_HUB_DISABLE_TELEMETRY"] not in ("0", "false", "no", "off")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning at every fork
    vllm_environment()
    # vLLM reads its variable late; until then "Triton is installed, but ..." would come through
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


def vllm_environment(one_process: bool | None = None) -> None:
    """All that we say to vLLM by its environment, which counts from its import on; a user's own values stay.

    Args:
        one_process: The engine must live in this process, whatever the user says (its weights are handed over here);
            False leaves that to vLLM; None: not known yet, nothing is said about engines.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if one_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if one_process is not None and not torch.cuda.is_available():
        # one process, as quick to start as it can be; CPUs run vLLM in tests and in the demo
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
