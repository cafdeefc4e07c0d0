"""Language models that write: the same that judge, asked for a text instead of a label, at temperature 0."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.files.fingerprint import model_digest
from migr.judge.base import read_config
from migr.settings import EngineSettings
from migr.text.format import tags

Reply = tuple[str, str]  # the text without thoughts, and "ok" or what is wrong with it


class Writer:
    """Writes texts with a model folder: Qwen-Omni, or any causal language model in safetensors.

    The model is loaded with the first question and let go by `close()`.
    """

    at_once = 256

    def __init__(self, folder: Path, engine: EngineSettings, longest: int) -> None:
        if not (folder / "config.json").is_file():
            raise InputError(f"rewriter {folder}: no model folder (config.json is missing), and no endpoint:URL#MODEL")
        self.folder, self.engine, self.longest = folder, engine, longest
        self.omni = "omni" in str(read_config(folder).get("model_type"))
        self.name = f"{folder.resolve().name}-{model_digest(folder)[:8]}"
        self._model: Any = None

    def write(self, questions: Sequence[str]) -> list[Reply]:
        """A reply to each question, in order.

        Raises:
            InputError: The model cannot be loaded.
        """
        if self._model is None:
            self._model = self._open()
        replies = self._omni(questions) if self.omni else self._text(questions)
        return [_reply(text, "ok" if finished else "cut") for text, finished in replies]

    def _open(self) -> Any:
        if self.omni:
            from migr.engine import open_engine

            return open_engine(self.folder, max_new_tokens=self.longest, **self.engine.options())
        from migr.judge.text_model import TextModel

        return TextModel(self.folder, self.engine)

    def _omni(self, questions: Sequence[str]) -> list[tuple[str, bool]]:
        from migr.engine import Request
        from migr.omni.prompt import render_prompt

        processor = self._model.task.inputs.processor
        prompts = (render_prompt(processor, question, False, False) for question in questions)
        requests = (Request(f"text {number}", prompt) for number, prompt in enumerate(prompts))
        return [(generation.text, generation.finished) for generation in self._model.generate(requests)]

    def _text(self, questions: Sequence[str]) -> list[tuple[str, bool]]:
        prompts = [self._model.prompt(question, think=False) for question in questions]
        room = self._model.longest - self.longest
        fits = [len(self._model.tokenizer(prompt)["input_ids"]) <= room for prompt in prompts]
        replies = iter(self._model.replies([p for p, here in zip(prompts, fits, strict=True) if here], self.longest))
        return [next(replies) if here else ("", False) for here in fits]

    def close(self) -> None:
        """Let go of the model."""
        if self._model is not None:
            self._model.close()
            self._model = None


class EndpointWriter:
    """Writes texts with a model behind an OpenAI-compatible URL."""

    def __init__(self, address: str) -> None:
        from migr.judge.endpoint import Endpoint

        self.endpoint = Endpoint(address)
        self.name, self.at_once = self.endpoint.name, self.endpoint.at_once

    def write(self, questions: Sequence[str]) -> list[Reply]:
        """A reply to each question, in order.

        Raises:
            InputError: The key, the model or the URL is wrong, or request after request fails.
        """
        return [_reply(answer.reply or "", answer.status) for answer in self.endpoint.ask(questions)]

    def close(self) -> None:
        """There is nothing to let go of."""


def open_writer(name: str, engine: EngineSettings, longest: int = 512) -> Writer | EndpointWriter:
    """A writer by its name: a model folder, or `endpoint:URL#MODEL`.

    Args:
        name: Which.
        engine: What runs a folder.
        longest: Longest reply of a folder's model, in tokens.

    Raises:
        InputError: No such folder, or an address that cannot be used.
    """
    kind, _, rest = name.partition(":")
    return EndpointWriter(rest) if kind == "endpoint" else Writer(Path(name), engine, longest)


def _reply(text: str, status: str) -> Reply:
    """Without thoughts."""
    opening, closing = tags("think")
    _, closed, rest = text.rpartition(closing)
    thinking = not closed and opening in text
    return ("", "cut") if thinking else (rest.strip(), status)
