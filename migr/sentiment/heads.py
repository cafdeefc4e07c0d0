"""Build a head with its fusion network, as the settings say."""

from typing import Any

from migr.errors import InputError
from migr.sentiment.answers import AnswerTree, answer_texts
from migr.sentiment.data import SentimentData
from migr.sentiment.encoders import SequenceConfig, SequenceFusion
from migr.sentiment.generative import GenerativeSentiment, PromptWriter, PseudoTokens
from migr.sentiment.language_model import embedding_rms, load_language_model
from migr.sentiment.sets import SentimentSet
from migr.sentiment.settings import NetworkSettings
from migr.sentiment.value import ValueSentiment


def language_parts(
    model: str, s: NetworkSettings, dataset: SentimentSet, hidden: int
) -> tuple[Any, Any, AnswerTree, PseudoTokens]:
    """What a head needs of a language model: the model with LoRA, its tokenizer, all answers, the pseudo tokens.

    Args:
        model: Folder of the language model.
        s: Rank, grid of scores, number and form of the pseudo tokens.
        dataset: What can be answered.
        hidden: Size of the fused vector.

    Raises:
        InputError: The language model cannot be used, or its tokenizer cannot write the answers.
    """
    lm, tokenizer = load_language_model(model, s.dtype, s.lora_r, s.lora_alpha)
    answers = AnswerTree.build(*answer_texts(dataset, s.grid), tokenizer)
    size = lm.get_input_embeddings().weight.shape[1]
    return lm, tokenizer, answers, PseudoTokens(hidden, size, s.pseudo_tokens, s.form, embedding_rms(lm))


def build_head(settings: NetworkSettings, data: SentimentData, checkpointing: bool = False) -> tuple[Any, Any]:
    """A `ValueSentiment` and None, or a `GenerativeSentiment` and the writer of its prompts.

    Raises:
        InputError: The language model cannot be used, or its tokenizer cannot write the answers.
    """
    dataset, s = data.dataset, settings
    shape = SequenceConfig(data.dims, len(dataset.labels) or 1, s.fusion, s.encoder, s.hidden, s.tokens, s.dropout)
    fusion = SequenceFusion(shape)
    fusion.set_scaling(data.about["scaling"])
    if s.head == "value":
        return ValueSentiment(fusion, s.unimodal_weight, s.adversarial_weight, s.adversarial_radius), None
    lm, tokenizer, answers, pseudo = language_parts(s.model, s, dataset, s.hidden)
    if checkpointing:
        if not hasattr(lm, "gradient_checkpointing_enable"):
            raise InputError("--gradient_checkpointing: not for the language model inside a Qwen-Omni")
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    model = GenerativeSentiment(
        lm, fusion, pseudo, answers, dataset.is_score, s.median, s.transcript, s.auxiliary_weight
    )
    return model, PromptWriter(tokenizer, dataset.prompt, s.pseudo_tokens, s.transcript)
