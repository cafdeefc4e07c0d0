"""Frozen towers run once a clip: their tokens are the same at every step, in every pass, in the next stage and run.

SFT shows each clip once an epoch, GRPO once for each generation in three passes a step (sampling, reference, policy);
importance pools the same tokens, and the evaluation reads them. Kept are the tokens, in main memory and, where there is
a cache folder, on disk: under the media's key and a digest of the towers' weights, so that all stages and runs with the
same towers share them, whatever the language model is. So they are computed alike everywhere: without autocast.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from migr.clips.manifest import Clip
from migr.files.records import atomic_path, digest
from migr.omni.inputs import AUDIO_KEYS, VIDEO_KEYS, Features, OmniInputs

TOWERS = {"video": "visual", "audio": "audio_tower"}  # modality -> the thinker's module
MEDIA = {"video": VIDEO_KEYS, "audio": AUDIO_KEYS}  # modality -> what tokens stand in for, and what they come with
MEMORY = 2**30  # bytes


class TowerTokens:
    """The kept tokens, in memory and on disk. It runs no model, so workers of a data loader can read it.

    Args:
        inputs: Says the clips' keys; its cache folder, where it has one, keeps the tokens too.
        towers: Digest of the towers (`FrozenTowers.digest`).
        memory: Bytes of tokens kept, in main memory; those used least recently go first.
    """

    def __init__(self, inputs: OmniInputs, towers: str, memory: int = MEMORY) -> None:
        self.inputs = inputs
        self.folder = None if inputs.cache_dir is None else inputs.cache_dir / "tokens" / towers
        self._memory: LRUCache[str, Features] = LRUCache(memory, lambda row: sum(t.nbytes for t in row.values()))

    def features(self, clip: Clip, modalities: Iterable[str] | None = None) -> Features:
        """As `OmniInputs.features`, with tokens in place of pixels or sound wherever they are known.

        A modality comes as `video_tokens` (levels, T, hidden) or `audio_tokens` (T, hidden), on the CPU, or as it is.
        """
        features: Features = {}
        names = set(clip.modalities if modalities is None else modalities)
        for modality in (name for name in TOWERS if name in names):
            tokens = self.get(self.inputs.media_key(clip), modality)
            features |= self.inputs.features(clip, [modality]) if tokens is None else tokens
        return features

    def get(self, key: str, modality: str) -> Features | None:
        """What is known of a part of the media with this key (`OmniInputs.media_key`): tokens, and grid or mask."""
        name = f"{key}-{modality}"
        if (tokens := self._memory.get(name)) is not None or self.folder is None:
            return tokens
        try:
            tokens = load_file(self._file(name))
        except (OSError, SafetensorError):
            return None  # not there, or damaged: made and written again
        self._keep(name, tokens)
        return tokens

    def put(self, key: str, modality: str, tokens: Features) -> None:
        """Keep tokens."""
        name = f"{key}-{modality}"
        self._keep(name, tokens)
        if self.folder is not None:
            with atomic_path(self._file(name)) as partial:
                save_file(tokens, partial)

    def _keep(self, name: str, tokens: Features) -> None:
        if sum(tensor.nbytes for tensor in tokens.values()) <= self._memory.maxsize:
            self._memory[name] = tokens

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name[:2] / f"{name}.safetensors"


class FrozenTowers:
    """Makes the tokens of a thinker's towers and keeps them.

    Each clip goes through alone, so that its tokens do not depend on the others in its batch.

    Args:
        thinker: A thinker (without a PEFT wrapper) whose towers are not trained.
        inputs: Prepares the clips.
        memory: As for `TowerTokens`.
    """

    def __init__(self, thinker: Any, inputs: OmniInputs, memory: int = MEMORY) -> None:
        assert not learns(thinker), "the towers learn: their tokens cannot be kept"
        self.inputs, self.thinker, self._memory = inputs, thinker, memory

    @cached_property
    def tokens(self) -> TowerTokens:
        """What is kept; from the first use on, the towers' device and type must stay as they are."""
        return TowerTokens(self.inputs, self.digest, self._memory)

    @property
    def digest(self) -> str:
        """Hash of all that decides tokens beside the clip: weights, shapes, how they are computed, the processor."""
        processor = self.inputs.processor
        facts = [
            self.thinker.config.vision_config.to_json_string(),
            self.thinker.config.audio_config.to_json_string(),
            processor.video_processor.to_json_string(),
            processor.feature_extractor.to_json_string(),
            self.thinker.visual.device.type,
            [getattr(self.thinker, tower).config._attn_implementation for tower in TOWERS.values()],
        ]
        return digest(weights_digest(self.thinker.visual, self.thinker.audio_tower), *facts)

    def features(self, clip: Clip, modalities: Iterable[str] | None = None) -> Features:
        """As `OmniInputs.features`, with tokens in place of pixels and sound, on the CPU."""
        return self.finish(self.inputs.media_key(clip), self.tokens.features(clip, modalities))

    @torch.no_grad()
    def finish(self, key: str | None, features: Features) -> Features:
        """Features on any device, with tokens in place of what is pixels or sound yet; kept under the media's key."""
        new: dict[str, Features] = {}
        if "pixel_values_videos" in features:
            new["video"] = {name: features[name].cpu() for name in ("video_grid_thw", "video_second_per_grid")}
            with _evaluating(self.thinker.visual) as device:
                pixels, grid = (features[name].to(device) for name in ("pixel_values_videos", "video_grid_thw"))
                new["video"]["video_tokens"] = self.thinker.video_tokens_of(pixels, grid).cpu()
        if "input_features" in features:
            new["audio"] = {"feature_attention_mask": features["feature_attention_mask"].cpu()}
            with _evaluating(self.thinker.audio_tower) as device:
                sound, mask = (features[name].to(device) for name in ("input_features", "feature_attention_mask"))
                new["audio"]["audio_tokens"] = self.thinker.audio_tokens_of(sound, mask).cpu()
        for modality, tokens in new.items():
            if key is not None:
                self.tokens.put(key, modality, tokens)
            features = {name: value for name, value in features.items() if name not in MEDIA[modality]} | tokens
        return features


def learns(thinker: Any) -> bool:
    """Whether any weight of the towers is trained."""
    return any(weight.requires_grad for tower in TOWERS.values() for weight in getattr(thinker, tower).parameters())


def freeze_unused(thinker: Any) -> None:
    """Keep weights from training that no forward pass uses: data parallelism would wait for their gradients."""
    if (unused := getattr(thinker.audio_tower, "audio_bos_eos_token", None)) is not None:
        unused.requires_grad_(False)


def weights_digest(*modules: nn.Module) -> str:
    """SHA-256 of the modules' weights, by name and to the last bit."""
    sha = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


@contextmanager
def _evaluating(tower: nn.Module) -> Iterator[torch.device]:
    """The tower in evaluation mode and in its own type, as it would be asked again later, by whatever stage."""
    training, device = tower.training, next(tower.parameters()).device
    tower.eval()  # what is kept must not be drawn by dropout
    try:
        with torch.autocast(device.type, enabled=False):
            yield device
    finally:
        tower.train(training)
