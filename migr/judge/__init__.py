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

from pathlib import Path

from migr.errors import InputError
from migr.judge.base import (
    LONGEST,
    NO_REPLY,
    Judge,
    Judgement,
    blind_labels,
    close,
    judgement_row,
    prompt_of,
    read_config,
    usage_of,
)
from migr.judge.embedded import EmbeddedJudge
from migr.judge.fitted import ClassifierJudge, fit_classifier, open_fitted
from migr.judge.lexicon import CUE_WORDS, LexiconJudge
from migr.settings import EngineSettings
from migr.text.labels import LabelSet

__all__ = [
    "CUE_WORDS",
    "LONGEST",
    "NO_REPLY",
    "ClassifierJudge",
    "EmbeddedJudge",
    "Judge",
    "Judgement",
    "LexiconJudge",
    "blind_labels",
    "close",
    "fit_classifier",
    "judgement_row",
    "open_judge",
    "prompt_of",
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
    judge = _open(str(name), labels, prices, engine)
    if cache is not None and not isinstance(
        judge, LexiconJudge | ClassifierJudge | EmbeddedJudge
    ):  # those answer faster than a file
        from migr.judge.cache import CachedJudge

        judge = CachedJudge(judge, Path(cache))
    if hide_emotion_words:
        from migr.judge.hidden import HidingJudge

        judge = HidingJudge(judge, labels)
    return judge


def _open(name: str, labels: LabelSet, prices: tuple[float, float] | None, engine: EngineSettings) -> Judge:
    if name == "lexicon":
        return LexiconJudge(labels)
    if name == "embedded":
        return EmbeddedJudge(labels)
    kind, _, rest = name.partition(":")
    if kind == "endpoint":
        from migr.judge.endpoint import EndpointJudge

        return EndpointJudge(rest, labels, prices)
    if kind == "llm":
        from migr.judge.llm import LlmJudge

        return LlmJudge(Path(rest), labels, engine)
    folder = Path(name)
    if (folder / "judge.json").is_file():
        return open_fitted(folder, labels)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"judge {name!r}: neither 'lexicon' nor 'embedded' nor a folder with a fitted judge (judge.json) or a text "
            "classifier (config.json), nor llm:DIR or endpoint:URL#MODEL"
        )
    if "SequenceClassification" not in str(read_config(folder).get("architectures")):
        raise InputError(f"judge {name!r}: the model is no text classifier; to ask a language model, say llm:{name}")
    from migr.judge.huggingface import HuggingFaceJudge

    return HuggingFaceJudge(folder, labels)
