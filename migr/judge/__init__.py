"""Judges: they read a reasoning alone, never the answer or the clip, and name the emotion that it conveys.

`open_judge` takes one of these names:

    lexicon              cue words (embedded; the rewards' judge)
    embedded             a small sentence encoder, fitted on texts of ours (offline, on a CPU; the extra `judge`)
    DIR                  a folder of stages/demo/judge.py (embedded: fitted on labelled texts), or any Hugging Face
                         text-classification model, such as one of GoEmotions' 28 emotions
    llm:DIR              a language model: Qwen-Omni, or any causal LM in safetensors, through vLLM or transformers
    endpoint:URL#MODEL   a model behind an OpenAI-compatible URL, such as `vllm serve` or a paid service

No two share anything but the text that they read. A judge that cannot tell says so: failure is a status, never a label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from migr.errors import InputError
from migr.judge.base import (
    LONGEST,
    NO_REPLY,
    Judge,
    Judgement,
    blind_labels,
    close,
    is_fast,
    judgement_row,
    prompt_of,
    read_config,
    reads_english_alone,
    usage_of,
)
from migr.judge.embedded import EmbeddedJudge
from migr.judge.fitted import ClassifierJudge, fit_classifier, open_fitted
from migr.judge.lexicon import CUE_WORDS, LexiconJudge
from migr.settings import EngineSettings
from migr.text.labels import LabelSet

__all__ = [
    "CUE_WORDS",
    "JUDGES",
    "LONGEST",
    "NO_REPLY",
    "ClassifierJudge",
    "EmbeddedJudge",
    "Judge",
    "Judgement",
    "LexiconJudge",
    "Options",
    "blind_labels",
    "close",
    "fit_classifier",
    "judgement_row",
    "open_judge",
    "prompt_of",
    "reads_english_alone",
    "usage_of",
]


def open_judge(
    name: str | Path,
    labels: LabelSet,
    *,
    hide_emotion_words: bool = False,
    cache: str | Path | None = None,
    prices: tuple[float, float] | None = None,
    engine: EngineSettings = EngineSettings(),
) -> Judge:
    """Open a judge by its name (see the module's text). A model is loaded when the first text is judged.

    Args:
        name: `lexicon`, `embedded`, a folder, `llm:DIR` or `endpoint:URL#MODEL`.
        labels: What it may name.
        hide_emotion_words: The judge does not see words that name an emotion (`migr.judge.hidden`).
        cache: File of judgements already made, for judges that load a model or are paid; None asks again.
        prices: Of an endpoint: money per million prompt and completion tokens, to add the cost up.
        engine: What runs `llm:DIR`.

    Raises:
        InputError: No such judge, one for other labels, or one that cannot be used as it is configured.
    """
    judge = _open(str(name), labels, Options(prices, engine))
    if cache is not None and not is_fast(judge):
        from migr.judge.cache import CachedJudge

        judge = CachedJudge(judge, Path(cache))
    if hide_emotion_words:
        from migr.judge.hidden import HidingJudge

        judge = HidingJudge(judge, labels)
    return judge


@dataclass(frozen=True)
class Options:
    """What a judge may be opened with beside its name and its labels: see `open_judge`."""

    prices: tuple[float, float] | None = None
    engine: EngineSettings = EngineSettings()


def _llm(folder: str, labels: LabelSet, options: Options) -> Judge:
    from migr.judge.llm import LlmJudge

    return LlmJudge(Path(folder), labels, options.engine)


def _endpoint(address: str, labels: LabelSet, options: Options) -> Judge:
    from migr.judge.endpoint import EndpointJudge

    return EndpointJudge(address, labels, options.prices)


# Name, or its beginning up to the colon -> what makes the judge of the rest of the name, the labels and the options.
# Any other name is a folder.
JUDGES: dict[str, Callable[[str, LabelSet, Options], Judge]] = {
    "lexicon": lambda _, labels, __: LexiconJudge(labels),
    "embedded": lambda _, labels, __: EmbeddedJudge(labels),
    "llm:": _llm,
    "endpoint:": _endpoint,
}


def _open(name: str, labels: LabelSet, options: Options) -> Judge:
    kind, colon, rest = name.partition(":")
    if kind + colon in JUDGES:
        return JUDGES[kind + colon](rest, labels, options)
    folder = Path(name)
    if (folder / "judge.json").is_file():
        return open_fitted(folder, labels)
    if not (folder / "config.json").is_file():
        known = [f"{key}…" if key.endswith(":") else key for key in JUDGES]
        raise InputError(
            f"judge {name!r}: none of {', '.join(known)}, and no folder with a fitted judge (judge.json) or a text "
            "classifier (config.json)"
        )
    if "SequenceClassification" not in str(read_config(folder).get("architectures")):
        raise InputError(f"judge {name!r}: the model is no text classifier; to ask a language model, say llm:{name}")
    from migr.judge.huggingface import HuggingFaceJudge

    return HuggingFaceJudge(folder, labels)
