"""Build a tiny Qwen2.5-Omni or Qwen3-Omni offline: files and classes of the real ones, random weights, own tokenizer.

The folder is laid out like Qwen/Qwen2.5-Omni-7B (wrapping config, weights under `thinker.`, no talker), so whatever
loads the one loads the other, transformers and vLLM alike. Sizes are ours; the proportions are the real model's.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Tokenizer, WhisperFeatureExtractor
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from migr.errors import InputError
from migr.omni.export import write_checkpoint
from migr.omni.family import FAMILIES, QWEN2_5, QWEN3, Family
from migr.text.format import tags

# The marks of each family by their roles.
ROLES = {
    QWEN2_5.name: {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    },
    QWEN3.name: {
        "image_token": "<|image_pad|>",
        "audio_token": "<|audio_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    },
}
_ORDER = ("audio_token", "audio_bos_token", "audio_eos_token", "vision_bos_token", "vision_eos_token")


def special_tokens(family: Family) -> tuple[str, ...]:
    """The special tokens of a family that we meet, by their own names."""
    role = ROLES[family.name]
    marks = [role[name] for name in _ORDER]
    pads = ["<|vision_pad|>", role["image_token"], role["video_token"]]
    return ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks, *pads)


# Text tags such as <think> are plain text in Qwen2.5-Omni. In Qwen3-Omni these two are tokens, and not special ones.
TEXT_TOKENS = {QWEN2_5.name: (), QWEN3.name: tags("think")}
SPECIAL = special_tokens(QWEN2_5)
ENDS: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_END_IDS = ("eos_token_id", "pad_token_id")
# Mirrors the real template: media in the order of the content list, and Qwen2.5-Omni's default system message.
_DEFAULT_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
)


def _template(family: Family) -> str:
    role = ROLES[family.name]
    image, video, audio = (
        f"{role[f'{mark}_bos_token']}{role[f'{kind}_token']}{role[f'{mark}_eos_token']}"
        for kind, mark in (("image", "vision"), ("video", "vision"), ("audio", "audio"))
    )
    return (
        "{% for message in messages %}"
        + (_DEFAULT_SYSTEM if family is QWEN2_5 else "")
        + "<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
        "{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'image' %}" + image + "{% elif content['type'] == 'audio' %}" + audio + ""
        "{% elif content['type'] == 'video' %}" + video + ""
        "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% endif %}" + ("\n" if family is QWEN2_5 else "")
    )


def build_tiny(
    out: str | Path,
    texts: Iterable[str],
    seed: int = 0,
    *,
    family: str = QWEN2_5.name,
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
        family: "qwen2_5_omni" or "qwen3_omni_moe".
        vocabulary: Largest number of tokens; fewer where the texts do not yield them.
        hidden, layers, heads, key_value_heads, feed_forward, max_length: Sizes of the language model.
        tower_hidden, tower_layers, tower_heads, tower_feed_forward: Sizes of the video tower and of the audio tower.

    Returns:
        The folder.

    Raises:
        InputError: There is no text, or `vocabulary` is too small for the bytes and the special tokens.
    """
    kind = FAMILIES[family]
    tokenizer = _tokenizer(texts, vocabulary, kind)
    role = ROLES[family]
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in role.items()}
    head = hidden // heads
    tower = {"dtype": "float32"}
    ends = {name: tokenizer.convert_tokens_to_ids(ENDS[name.removesuffix("_id")]) for name in _END_IDS}
    audio: dict[str, Any] = {
        **tower,
        "num_mel_bins": 128,
        "encoder_layers": tower_layers,
        "encoder_attention_heads": tower_heads,
        "encoder_ffn_dim": tower_feed_forward,
        "d_model": tower_hidden,
        "max_source_positions": 1500,
        "n_window": 100,
        "output_dim": hidden,
    }
    vision: dict[str, Any] = {
        **tower,
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
    }
    # As in the real model (16, 24, 24 of 64): a quarter of the rotary frequencies for time, the rest for space.
    time, side = head // 2 - 2 * (3 * head // 16), 3 * head // 16
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": [time, side, side], "rope_theta": 1e6}
    text: dict[str, Any] = {
        "dtype": "float32",
        "vocab_size": len(tokenizer) + -len(tokenizer) % 64,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": max_length,
        "tie_word_embeddings": False,
        "rope_parameters": rope,
        "bos_token_id": None,
        **ends,
    }
    names = "index"
    if kind is QWEN3:
        names = "id"
        audio |= {"n_window": 50, "n_window_infer": 800, "downsample_hidden_size": 16}
        vision |= {"patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [0]}
        vision |= {
            "image_size": 768,
            "apply_vit_abs_pos_embed": True,
        }  # transformers' class has them not, vLLM wants them
        del vision["window_size"], vision["fullatt_block_indexes"]
        side = 5 * head // 32  # as there (24, 20, 20 of 64), and the frequencies of time and space take turns
        rope |= {"mrope_section": [head // 2 - 2 * side, side, side], "mrope_interleaved": True}
        text |= {
            "head_dim": head,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": feed_forward // 4,
        }
    fields: dict[str, Any] = {
        "audio_config": audio,
        "vision_config": vision,
        "text_config": text,
        "dtype": "float32",
        f"audio_token_{names}": ids["audio_token"],
        f"image_token_{names}": ids["image_token"],
        f"video_token_{names}": ids["video_token"],
        "audio_start_token_id": ids["audio_bos_token"],
        "audio_end_token_id": ids["audio_eos_token"],
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
        "position_id_per_seconds": kind.positions_per_second,
        "user_token_id": tokenizer.convert_tokens_to_ids("user"),
        **ends,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.thinker(kind.config(**fields)).float()
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    patches: dict[str, Any] = {"patch_size": vision["patch_size"], "merge_size": 2, "temporal_patch_size": 2}
    processor = kind.processor(
        image_processor=Qwen2VLImageProcessor(**patches),
        video_processor=Qwen2VLVideoProcessor(**patches),
        feature_extractor=WhisperFeatureExtractor(feature_size=128, sampling_rate=16000, chunk_length=30),
        tokenizer=tokenizer,
        chat_template=_template(kind),
    )
    return write_checkpoint(model, processor, out)


def _tokenizer(texts: Iterable[str], vocabulary: int, family: Family) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen2's way of splitting text, so that saving and loading change nothing."""
    alphabet, special, plain = pre_tokenizers.ByteLevel.alphabet(), special_tokens(family), TEXT_TOKENS[family.name]
    if vocabulary < (least := len(alphabet) + len(special) + len(plain)):
        raise InputError(f"vocabulary: {vocabulary} is less than the {least} bytes and marks")
    any_line = False

    def lines() -> Iterator[str]:
        nonlocal any_line
        for text in texts:
            any_line = True
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
        vocab_size=vocabulary, special_tokens=[*special, *plain], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(lines(), trainer)
    if not any_line:
        raise InputError("texts: the tokenizer needs at least one text")
    state = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in state["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=state["vocab"], merges=merges, extra_special_tokens=ROLES[family.name], **ENDS)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer
