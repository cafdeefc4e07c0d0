"""Frozen towers run once a clip: their tokens are the same at every step, for every generation, in every pass."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from migr.clips.manifest import Clip
from migr.omni.inputs import Features, OmniInputs, padded


class FrozenTowers:
    """Lets a thinker take its towers' tokens in place of pixels and sound (which it still takes), and keeps the tokens.

    GRPO shows each clip to the model once for each generation, in three passes a step (sampling, reference, policy).
    Each clip goes through alone, so that its tokens do not depend on the others in its batch.

    Args:
        thinker: A thinker (without a PEFT wrapper) whose towers are not trained.
        inputs: Prepares the clips.
        memory: Bytes of tokens kept, in main memory; those used least recently go first.
    """

    def __init__(self, thinker: Any, inputs: OmniInputs, memory: int = 2**30) -> None:
        trained = [
            name
            for tower in ("visual", "audio_tower")
            for name, weight in getattr(thinker, tower).named_parameters()
            if weight.requires_grad
        ]
        assert not trained, f"{trained[0]} learns: its tokens cannot be kept"
        self.inputs, self.thinker = inputs, thinker
        self._video, self._audio = thinker.get_video_features, thinker.get_audio_features
        self._kept: LRUCache[str, Features] = LRUCache(memory, lambda tokens: sum(t.nbytes for t in tokens.values()))
        thinker.get_video_features, thinker.get_audio_features = self._video_of, self._audio_of

    def _video_of(self, given: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Pixels are (patches, values); tokens have three axes, and behind the first level come Qwen3-Omni's others."""
        if given.ndim != 3:
            return self._video(given, *args, **kwargs)
        return SimpleNamespace(pooler_output=(given[0],), deepstack_features=list(given[1:]))

    def _audio_of(self, given: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Sound is (clips, mel, frames); tokens have two axes."""
        return SimpleNamespace(last_hidden_state=given) if given.ndim == 2 else self._audio(given, *args, **kwargs)

    @torch.no_grad()
    def tokens(self, clip: Clip) -> Features:
        """The towers' tokens for one clip, on the CPU: `video` (levels, T, hidden), `audio` (T, hidden), if there.

        Qwen2.5-Omni has one level of video tokens. Qwen3-Omni adds those of inner layers of the tower (DeepStack),
        which the first layers of its language model take.
        """
        key = self.inputs.media_key(clip)
        if (kept := self._kept.get(key)) is not None:
            return kept
        batch = {name: value.to(self.thinker.device) for name, value in self.inputs.features(clip).items()}
        tokens: dict[str, Tensor] = {}
        if "pixel_values_videos" in batch:
            grid = batch["video_grid_thw"]
            seen = self._video(batch["pixel_values_videos"], grid, return_dict=True)
            tokens["video"] = torch.stack([*seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())])
        if "input_features" in batch:
            mask = batch["feature_attention_mask"]
            tokens["audio"] = self._audio(batch["input_features"], mask, return_dict=True).last_hidden_state
        tokens = {name: value.cpu() for name, value in tokens.items()}
        if sum(value.nbytes for value in tokens.values()) <= self._kept.maxsize:
            self._kept[key] = tokens
        return tokens

    def collate(self, clips: Sequence[Clip]) -> Features:
        """As `OmniInputs.collate` for these clips, with tokens: video (levels, T, hidden), audio (T, hidden)."""
        batch: Features = {}
        features = [self.inputs.features(clip) for clip in clips]
        tokens = [self.tokens(clip) for clip in clips]
        if any("video" in row for row in tokens):
            batch["pixel_values_videos"] = torch.cat([row["video"] for row in tokens if "video" in row], dim=1)
            for key in ("video_grid_thw", "video_second_per_grid"):
                batch[key] = torch.cat([row[key] for row in features if key in row])
        if any("audio" in row for row in tokens):
            batch["input_features"] = torch.cat([row["audio"] for row in tokens if "audio" in row])
            masks = [row["feature_attention_mask"] for row in features if "feature_attention_mask" in row]
            batch["feature_attention_mask"] = padded(masks)
        return batch
