"""The published models' hyper-parameters, for counting and estimating without a download.

Sources: the defaults of transformers 5.17 for 7B and the towers, and the `config.json` files of Qwen/Qwen2.5-Omni-3B,
Qwen/Qwen2.5-Omni-7B and Qwen/Qwen3-Omni-30B-A3B-Instruct as public code quotes them (the library's default width of
the 7B's video tower, 3584, is its output's; the tower itself is 1280 wide). Where there is a model folder, its own
config.json counts.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
from transformers.integrations import deepspeed

from migr.omni.family import FAMILIES, QWEN2_5, QWEN3, family_of
from migr.omni.load import check_model, thinker_config

_VISION_2_5 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14}
_AUDIO = {"encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "d_model": 1280}
_ROPE_2_5 = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
_ROPE_3 = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 1e6}

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2.5-Omni-3B": (
        QWEN2_5.name,
        {
            "audio_config": {**_AUDIO, "output_dim": 2048, "n_window": 100},
            "vision_config": {**_VISION_2_5, "out_hidden_size": 2048},
            "text_config": {
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "rope_parameters": _ROPE_2_5,
            },
        },
    ),
    "Qwen/Qwen2.5-Omni-7B": (
        QWEN2_5.name,
        {
            "audio_config": {**_AUDIO, "output_dim": 3584, "n_window": 100},
            "vision_config": {**_VISION_2_5, "out_hidden_size": 3584},
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "rope_parameters": _ROPE_2_5,
            },
        },
    ),
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": (
        QWEN3.name,
        {
            "audio_config": {**_AUDIO, "output_dim": 2048, "downsample_hidden_size": 480, "n_window": 50},
            "vision_config": {
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "patch_size": 16,
                "out_hidden_size": 2048,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 2048,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "max_position_embeddings": 65536,
                "rope_parameters": _ROPE_3,
            },
            "position_id_per_seconds": 13,
        },
    ),
}


def configuration(model: str | Path) -> Any:
    """The thinker's configuration of a model folder, or of a published model by its name (nothing is fetched).

    Raises:
        InputError: Neither.
    """
    if str(model) not in PUBLISHED:
        return thinker_config(check_model(model))
    family, fields = PUBLISHED[str(model)]
    return FAMILIES[family].config(**copy.deepcopy(fields))


def without_weights(config: Any) -> nn.Module:
    """The thinker of a configuration on the meta device: all its modules and shapes, no memory."""
    family = family_of(config)
    assert family is not None, type(config)
    # under ZeRO-3, transformers would spread the modules over the processes: all would have to be here
    settings = deepspeed._hf_deepspeed_config_weak_ref
    spread = settings and settings()
    deepspeed.unset_hf_deepspeed_config()
    try:
        with torch.device("meta"):
            return family.thinker(config)
    finally:
        if spread is not None:
            deepspeed.set_hf_deepspeed_config(spread)
