"""A language model as a judge: Qwen-Omni through the engine that generates, any other causal LM as text alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.judge.base import LONGEST, Judgement, folder_name, read_config
from migr.judge.prompt import filled, prompt_for, read_reply
from migr.settings import EngineSettings
from migr.text.labels import LabelSet

_REPLY = 1024  # tokens: room for a model that thinks first; others end behind the label


class LlmJudge:
    """Asks a language model at temperature 0. The model is loaded with the first text and let go by `close()`.

    A Qwen-Omni model's reply is constrained to the labels, so it is always one of them. Any other model (a folder with
    safetensors that transformers or vLLM can run) replies freely, thoughts first if it likes; a reply that is cut or
    names no label is asked for once more, with twice the room and without thoughts where the model can do without, and
    is then a failure. So is an empty reasoning. A probability of 1 for the label named says no more than that.
    """

    at_once = 256

    def __init__(self, folder: Path, labels: LabelSet, engine: EngineSettings = EngineSettings()) -> None:
        if not (folder / "config.json").is_file():
            raise InputError(f"judge llm:{folder}: no model folder (config.json is missing)")
        config = read_config(folder)
        architectures = [str(name) for name in config.get("architectures") or []]
        self.omni = "omni" in str(config.get("model_type"))
        if not self.omni and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
            raise InputError(
                f"judge llm:{folder}: {', '.join(architectures) or 'a model without architectures'} is no causal "
                "language model (…ForCausalLM) and no Qwen-Omni model; serve it with `vllm serve` and name it "
                f"endpoint:http://127.0.0.1:8000/v1#{folder}"
            )
        self.folder, self.labels, self.prompt = folder, labels, prompt_for(labels)
        self.name = f"llm-{folder_name(folder)}"
        self.engine = engine
        self._model: Any = None

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text.

        Raises:
            InputError: The model cannot be loaded.
        """
        indices = [index for index, text in enumerate(texts) if text.strip()]
        judgements = [Judgement(None, {}, "empty")] * len(texts)
        if not indices:
            return judgements
        if self._model is None:
            self._model = self._open()
        answers = self._omni([texts[i] for i in indices]) if self.omni else self._text([texts[i] for i in indices])
        for index, judgement in zip(indices, answers, strict=True):
            judgements[index] = judgement
        return judgements

    def close(self) -> None:
        """Let go of the model."""
        if self._model is not None:
            self._model.close()
            self._model = None

    def _open(self) -> Any:
        from migr.engine import open_engine
        from migr.judge.text_model import TextModel
        from migr.omni.checks import outside_zero3

        with outside_zero3():
            if self.omni:
                return open_engine(self.folder, temperature=0.0, **self.engine.options())
            return TextModel(self.folder, self.engine)

    def _omni(self, texts: Sequence[str]) -> list[Judgement]:
        from migr.engine import Request
        from migr.omni.prompt import render_prompt

        task = self._model.task
        questions = (self._question(text, task.tokenizer, task.max_length - 64) for text in texts)
        requests = (
            Request(str(i), render_prompt(task.inputs.processor, question, False, False), choices=self.labels.labels)
            for i, question in enumerate(questions)
        )
        return [read_reply(generation.text, self.labels) for generation in self._model.generate(requests)]

    def _text(self, texts: Sequence[str]) -> list[Judgement]:
        judgements = [Judgement(None, {}, "empty")] * len(texts)
        pending = list(range(len(texts)))
        for attempt in (1, 2):
            longest = min(attempt * _REPLY, self._model.longest // 2)
            room = self._model.longest - longest - 64
            questions = [self._question(texts[i], self._model.tokenizer, room) for i in pending]
            prompts = [self._model.prompt(question, think=attempt == 1) for question in questions]
            replies = self._model.replies(prompts, longest) if prompts else []
            for i, (reply, finished) in zip(pending, replies, strict=True):
                judgements[i] = read_reply(reply, self.labels, finished)
            pending = [i for i in pending if judgements[i].emotion is None]
        return judgements

    def _question(self, text: str, tokenizer: Any, room: int) -> str:
        """The question about a reasoning, which is cut where it would not fit into the model's context."""
        room -= len(tokenizer.encode(self.prompt))
        ids = tokenizer.encode(text[:LONGEST], add_special_tokens=False)
        text = text[:LONGEST] if len(ids) <= room else tokenizer.decode(ids[: max(0, room - 64)])
        return filled(self.prompt, text)
