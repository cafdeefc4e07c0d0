"""Any causal language model in safetensors, asked in text: through vLLM where it is installed, else transformers."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from migr.engine.backend import Vllm
from migr.errors import InputError
from migr.files.records import read_object
from migr.judge.base import read_config
from migr.omni.checks import check_config, load_whole
from migr.omni.companions import vllm_environment
from migr.omni.load import quiet
from migr.omni.templates import render
from migr.settings import EngineSettings
from migr.text.format import tags

_AT_ONCE = 16


class TextModel:
    """Answers prompts greedily; both backends give the same text. No code of the model's folder runs."""

    def __init__(self, folder: Path, engine: EngineSettings) -> None:
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **options)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"judge llm:{folder}: no tokenizer that transformers can load ({_line(error)})") from None
        longest = engine.max_model_length
        self.longest = min(longest, int(read_config(folder).get("max_position_embeddings") or longest))
        self.at_once = engine.batch_size or _AT_ONCE
        self.ends = _ends(folder, self.tokenizer)
        installed = find_spec("vllm") is not None
        if engine.engine == "vllm" and not installed:
            raise InputError("vllm is not installed (pip install 'migr[cpu]' or 'migr[gpu]'); or use transformers")
        self.vllm = engine.engine == "vllm" or (engine.engine == "auto" and installed)
        gpu = torch.cuda.is_available()
        dtype: Any = "float32" if engine.dtype == "auto" and not gpu else engine.dtype
        self.model: Any = None
        try:
            if self.vllm:
                check_config(AutoModelForCausalLM, folder, str(folder))
                if not gpu:
                    _register(read_config(folder).get("architectures") or [])
                share: dict[str, Any] = {"gpu_memory_utilization": engine.vllm_gpu_memory_utilization} if gpu else {}
                at_once = 4 * self.at_once
                self.model = Vllm(folder, dtype, self.longest, at_once, engine.tensor_parallel, **share)
            else:
                with quiet():
                    model = load_whole(AutoModelForCausalLM, folder, str(folder), dtype=dtype)
                self.model = model.to(torch.device("cuda" if gpu else "cpu")).eval()  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"judge llm:{folder}: cannot be loaded as a language model ({_line(error)})") from None

    def prompt(self, question: str, think: bool) -> str:
        """The chat text of a question, without a template the question itself; `think`: where a model can choose."""
        if not self.tokenizer.chat_template:
            return f"{question}\n"
        return render(self.tokenizer, self.tokenizer.chat_template, question, enable_thinking=think)

    def replies(self, prompts: Sequence[str], longest: int) -> list[tuple[str, bool]]:
        """Each prompt's reply, thoughts that the prompt opens included, and whether the model ended it itself."""
        ids = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        tokens = self._vllm(ids, longest) if self.vllm else self._transformers(ids, longest)
        opening = tags("think")[0]
        opened = [opening if prompt.rstrip().endswith(opening) else "" for prompt in prompts]
        texts = [self.tokenizer.decode(reply, skip_special_tokens=True) for reply, _ in tokens]
        return [(f"{a}{b}", finished) for a, b, (_, finished) in zip(opened, texts, tokens, strict=True)]

    def _vllm(self, ids: list[list[int]], longest: int) -> list[tuple[list[int], bool]]:
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=longest, detokenize=False, stop_token_ids=self.ends)
        outputs = self.model.llm.generate([{"prompt_token_ids": row} for row in ids], parameters, use_tqdm=False)
        firsts = [output.outputs[0] for output in outputs]
        return [(list(first.token_ids), first.finish_reason == "stop") for first in firsts]

    @torch.inference_mode()
    def _transformers(self, ids: list[list[int]], longest: int) -> list[tuple[list[int], bool]]:
        ends, pad = self.ends, self.ends[0]
        config = GenerationConfig(
            max_new_tokens=longest,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # named, or the model's own stored settings would come through
            eos_token_id=ends,
            pad_token_id=pad,
        )
        replies: list[tuple[list[int], bool]] = []
        for begin in range(0, len(ids), self.at_once):
            rows = ids[begin : begin + self.at_once]
            width = max(map(len, rows))
            batch = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
            # each process of a training has texts of its own, and may have none
            own: dict[str, Any] = {"generation_config": config, "synced_gpus": False}
            written = self.model.generate(input_ids=batch, attention_mask=mask, **own)[:, width:]
            for row in written.tolist():
                end = next((place for place, token in enumerate(row) if token in ends), None)
                replies.append((row[:end], end is not None))
        return replies

    def close(self) -> None:
        """Let go of the model."""
        if self.vllm:
            self.model.close()
        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _register(architectures: Sequence[str]) -> None:
    """Give vLLM the model's class: it would look at it in a subprocess, where the imports are not mended."""
    vllm_environment(False)
    from vllm.model_executor.models.registry import ModelRegistry  # here: the environment counts at its import

    for name in architectures:
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _ends(folder: Path, tokenizer: Any) -> list[int]:
    """The tokens that end a reply: of generation_config.json and the tokenizer's own."""
    stored = read_object(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ids = stored.get("eos_token_id") if isinstance(stored, dict) else None
    ids = [*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id]
    ends = list(dict.fromkeys(token for token in ids if isinstance(token, int)))
    if not ends:
        raise InputError(f"judge llm:{folder}: neither generation_config.json nor the tokenizer says what ends a reply")
    return ends


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
