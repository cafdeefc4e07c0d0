"""Build a tiny Qwen2.5-Omni offline: the same files and classes as the real repository, random weights, own tokenizer.

The folder is laid out like Qwen/Qwen2.5-Omni-7B (wrapping config, weights under `thinker.`, no talker), so whatever
loads the one loads the other, transformers and vLLM alike. Sizes are ours; the proportions are the real model's.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from migr.errors import InputError
from migr.omni.export import write_checkpoint

# The special tokens of Qwen2.5-Omni that we meet, by their own names. Text tags such as <think> are plain text there.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
ROLES = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
ENDS: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
# Mirrors the real template: a default system message, media in the order of the content list.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}\n"
)


def build_tiny(
    out: str | Path,
    texts: Iterable[str],
    seed: int = 0,
    *,
    vocabulary: int = 1500,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    key_value_heads: int = 2,
    feed_forward: int = 256,
    max_length: int = 8192,
    tower_hidden: int = 64,
    tower_layers: int = 2,
    tower_heads: int = 4,
    tower_feed_forward: int = 128,
) -> Path:
    """Write a model folder of about 1 M parameters; the same arguments give byte-identical weights.

    Args:
        out: New folder, or one that an earlier call wrote (replaced).
        texts: What the tokenizer's BPE is trained on: give all the texts that the job can produce, or they come out
            many tokens long.
        seed: Seed of the weights.
        vocabulary: Largest number of tokens; fewer where the texts do not yield them.
        hidden, layers, heads, key_value_heads, feed_forward, max_length: Sizes of the language model.
        tower_hidden, tower_layers, tower_heads, tower_feed_forward: Sizes of the video tower and of the audio tower.

    Returns:
        The folder.

    Raises:
        InputError: There is no text, or `vocabulary` is too small for the bytes and the special tokens.
    """
    tokenizer = _tokenizer(texts, vocabulary)
    ids: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    head = hidden // heads
    # As in the real model (16, 24, 24 of 64): a quarter of the rotary frequencies for time, the rest for space.
    time, side = head // 2 - 2 * (3 * head // 16), 3 * head // 16
    ends = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    fields: dict[str, Any] = dict(
        audio_config={
            "dtype": "float32",
            "num_mel_bins": 128,
            "encoder_layers": tower_layers,
            "encoder_attention_heads": tower_heads,
            "encoder_ffn_dim": tower_feed_forward,
            "d_model": tower_hidden,
            "max_source_positions": 1500,
            "n_window": 100,
            "output_dim": hidden,
        },
        vision_config={
            "dtype": "float32",
            "depth": tower_layers,
            "hidden_size": tower_hidden,
            "intermediate_size": tower_feed_forward,
            "num_heads": tower_heads,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [tower_layers - 1],
        },
        text_config={
            "dtype": "float32",
            "vocab_size": len(tokenizer) + -len(tokenizer) % 64,
            "hidden_size": hidden,
            "intermediate_size": feed_forward,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "max_position_embeddings": max_length,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "mrope_section": [time, side, side], "rope_theta": 1e6},
            "bos_token_id": None,
            **ends,
        },
        dtype="float32",
        audio_token_index=ids["<|AUDIO|>"],
        image_token_index=ids["<|IMAGE|>"],
        video_token_index=ids["<|VIDEO|>"],
        audio_start_token_id=ids["<|audio_bos|>"],
        audio_end_token_id=ids["<|audio_eos|>"],
        vision_start_token_id=ids["<|vision_bos|>"],
        vision_end_token_id=ids["<|vision_eos|>"],
        user_token_id=tokenizer.convert_tokens_to_ids("user"),
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5OmniThinkerForConditionalGeneration(Qwen2_5OmniThinkerConfig(**fields)).float()
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2),
        video_processor=Qwen2VLVideoProcessor(patch_size=14, merge_size=2, temporal_patch_size=2),
        feature_extractor=WhisperFeatureExtractor(feature_size=128, sampling_rate=16000, chunk_length=30),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    return write_checkpoint(model, processor, out)


def _tokenizer(texts: Iterable[str], vocabulary: int) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's way of splitting text, so that saving and loading change nothing."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + len(SPECIAL):
        raise InputError(f"vocabulary: {vocabulary} is less than the {len(alphabet) + len(SPECIAL)} bytes and marks")
    seen = False

    def lines() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen = True
            yield text
        # the frame around every text; often enough that each word becomes one token
        yield from [
            "system\nYou are a helpful assistant.",
            "\nuser\n",
            "\nassistant\n",
            "user",
            "system",
            "assistant",
        ] * 100

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(lines(), trainer)
    if not seen:
        raise InputError("texts: the tokenizer needs at least one text")
    state = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in state["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=state["vocab"], merges=merges, extra_special_tokens=ROLES, **ENDS)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer
