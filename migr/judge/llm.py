"""A language model as a judge, through the engine that generates: vLLM where it is installed, else transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.judge.base import LONGEST, Judgement, folder_name, read_config
from migr.judge.prompt import filled, prompt_for, read_reply
from migr.settings import EngineSettings
from migr.text.labels import LabelSet


class LlmJudge:
    """Asks a Qwen-Omni model at temperature 0; the reply is constrained to the labels, so it is always one of them.

    The model is loaded with the first text and let go by `close()`. An empty reasoning is a failure. A probability of 1
    for the label named says no more than that it was named.
    """

    at_once = 256

    def __init__(self, folder: Path, labels: LabelSet, engine: EngineSettings = EngineSettings()) -> None:
        kind = str(read_config(folder).get("model_type"))
        if "omni" not in kind:
            raise InputError(
                f"judge llm:{folder}: a {kind} model; the engine runs Qwen-Omni models. Serve any other with "
                f"`vllm serve {folder}` and name it endpoint:http://127.0.0.1:8000/v1#{folder}"
            )
        self.folder, self.labels, self.prompt = folder, labels, prompt_for(labels)
        self.name = f"llm-{folder_name(folder)}"
        self.options = engine.options()
        self._engine: Any = None

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text.

        Raises:
            InputError: The model cannot be loaded.
        """
        from migr.engine import Request, open_engine

        asked = [index for index, text in enumerate(texts) if text.strip()]
        if asked and self._engine is None:
            self._engine = open_engine(self.folder, temperature=0.0, **self.options)
        requests = (Request(str(i), self._chat(texts[i]), choices=self.labels.labels) for i in asked)
        judgements = [Judgement(None, {}, "empty")] * len(texts)
        for generation in self._engine.generate(requests) if asked else ():
            judgements[int(generation.key)] = read_reply(generation.text, self.labels)
        return judgements

    def _chat(self, text: str) -> str:
        """The chat text; a reasoning that does not fit into the model's context is cut."""
        from migr.omni.prompt import render_prompt

        task = self._engine.task
        room = task.max_length - 64 - len(task.tokenizer.encode(self.prompt))
        ids = task.tokenizer.encode(text[:LONGEST], add_special_tokens=False)
        text = text if len(ids) <= room else task.tokenizer.decode(ids[: max(0, room - 64)])
        return render_prompt(task.inputs.processor, filled(self.prompt, text), video=False, audio=False)

    def close(self) -> None:
        """Let go of the model."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
