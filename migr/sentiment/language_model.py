"""The frozen language model of the generative head: a causal one of transformers, or the one inside a Qwen-Omni."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from migr.errors import InputError, as_input_error
from migr.files.records import read_object
from migr.omni.family import FAMILIES


class OmniLanguageModel(nn.Module):
    """A thinker's language model and head without its towers, by the names that causal models give them."""

    def __init__(self, thinker: Any) -> None:
        super().__init__()
        self.model, self.lm_head, self.config = thinker.model, thinker.lm_head, thinker.model.config
        self.position_axes = 3  # time, height, width

    def get_input_embeddings(self) -> Any:
        """The embedding of token ids."""
        return self.model.get_input_embeddings()


def load_language_model(path: str, dtype: str = "auto", lora_r: int = 16, lora_alpha: int = 32) -> tuple[Any, Any]:
    """A frozen causal language model with LoRA on all of its linear layers, and its tokenizer.

    Args:
        path: Folder of a model that transformers runs without remote code; a name of the Hub where it is reachable.
        dtype: "auto", "float32", "bfloat16".
        lora_r: Rank; 0 leaves the model frozen, as MSE-Adapter does.
        lora_alpha: Scale.

    Raises:
        InputError: No such model, one that needs remote code, or one without `model` and `lm_head`.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from migr.omni.checks import OURS_ALONE, is_local, load_whole

    config = Path(path) / "config.json"
    where = f"--model {path}: no causal language model that runs without remote code"
    kind = str(read_object(config, finite=False).get("model_type")) if config.is_file() else ""
    with as_input_error(where):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=is_local(path), **OURS_ALONE)
    if any(kind.startswith(name) for name in FAMILIES):
        from migr.omni.load import load_thinker

        lm: Any = OmniLanguageModel(load_thinker(path, dtype=dtype, attn_implementation="sdpa"))
    else:
        lm = load_whole(AutoModelForCausalLM, path, where, dtype=dtype, attn_implementation="sdpa")
    if not hasattr(lm, "model") or not hasattr(lm, "lm_head"):
        raise InputError(f"--model {path}: {type(lm).__name__} has no `model` and `lm_head`; Qwen, Llama and GLM-4 do")
    lm.requires_grad_(False)
    if lora_r:
        lora = LoraConfig(r=lora_r, lora_alpha=lora_alpha, target_modules=linear_layers(lm))
        lm = inject_adapter_in_model(lora, lm)
        for weight in lm.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return lm, tokenizer


def linear_layers(lm: Any) -> list[str]:
    """Names of the linear layers of the language model itself, without its head."""
    return [f"model.{name}" for name, part in lm.model.named_modules() if isinstance(part, nn.Linear)]


def embedding_rms(lm: Any) -> float:
    """Root mean square of the model's token embeddings: what pseudo tokens begin at."""
    with torch.no_grad():
        return float(lm.get_input_embeddings().weight.float().square().mean().sqrt())
