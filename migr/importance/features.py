"""Pooled tower features: what the model's own eyes and ears make of a clip, before its language model speaks.

The tokens of each tower (their outputs, as the language model receives them) are pooled over the clip's own length into
mean and standard deviation. The standard deviation tells how much a face moves or a voice varies, and noise from calm.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from migr.clips import Clip
from migr.importance.fit import Features
from migr.omni.inputs import OmniInputs, audio_tokens
from migr.omni.load import check_model, load_thinker
from migr.records import digest

MODALITIES = ("video", "audio")  # a transcript has no tower
POOLING = "mean, std of tower outputs"  # part of the cache key: change it with `pool`


def tower_features(
    clips: Sequence[Clip],
    inputs: OmniInputs,
    model: str | Path,
    cache_dir: str | Path | None = None,
    batch_size: int = 16,
) -> Features:
    """Features of all clips, from the cache if these clips went through these towers before.

    Args:
        clips: The clips.
        inputs: Prepares them; its settings and processor are part of the cache's key.
        model: Model folder, or a name on the Hugging Face Hub.
        cache_dir: Folder for the cache; None computes anew.
        batch_size: Clips a forward pass.

    Returns:
        Modality -> (n, 2 × tower output size) float32, for the modalities that at least one clip has.

    Raises:
        InputError: The model cannot be loaded, a clip cannot be read, or its features are not finite.
    """
    file = None
    if cache_dir is not None:
        file = Path(cache_dir) / "towers" / f"{features_key(clips, inputs, model)}.safetensors"
        if file.is_file():
            try:
                return _table(clips, load_file(file))
            except (SafetensorError, OSError):
                pass  # damaged: computed and written again
    thinker = load_thinker(model)
    if torch.cuda.is_available():  # the language model stays where it is
        thinker.visual.cuda()
        thinker.audio_tower.cuda()
    rows: list[dict[str, Tensor]] = []
    with tqdm(total=len(clips), desc="tower features", unit="clip") as bar:
        for start in range(0, len(clips), batch_size):
            rows += pool(thinker, inputs, clips[start : start + batch_size])
            bar.update(len(rows) - bar.n)
    values = {}
    for name in MODALITIES:
        if size := next((len(row[name]) for row in rows if name in row), 0):
            values[name] = torch.stack([row.get(name, torch.zeros(size)) for row in rows])
    table = _table(clips, values)
    table.check()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(values, partial)
        partial.chmod(0o644)
        partial.replace(file)
    return table


@torch.inference_mode()
def pool(thinker: Any, inputs: OmniInputs, clips: Sequence[Clip]) -> list[dict[str, Tensor]]:
    """Run both towers on a batch and pool each clip's own tokens: modality -> (2 × tower output size,) float32, CPU."""
    batch = inputs.collate([inputs.features(clip) for clip in clips])
    device = thinker.visual.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    tokens: dict[str, list[Tensor]] = {name: [] for name in MODALITIES}
    if "pixel_values_videos" in batch:
        out = thinker.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"], return_dict=True)
        tokens["video"] = list(out.pooler_output)
    if "input_features" in batch:
        mask = batch["feature_attention_mask"]
        out = thinker.get_audio_features(batch["input_features"], mask, return_dict=True)
        tokens["audio"] = list(out.last_hidden_state.split([audio_tokens(n) for n in mask.sum(1).tolist()]))
    queues = {name: iter(parts) for name, parts in tokens.items()}
    return [{name: _mean_std(next(queues[name])) for name in MODALITIES if name in clip.modalities} for clip in clips]


def _mean_std(tokens: Tensor) -> Tensor:
    tokens = tokens.float().cpu()
    return torch.cat([tokens.mean(0), tokens.std(0, correction=0)])


def presence(clips: Sequence[Clip]) -> tuple[tuple[str, ...], Tensor]:
    """The modalities that at least one clip has, and (n, M) bool: which clip has which."""
    names = tuple(name for name in MODALITIES if any(name in clip.modalities for clip in clips))
    return names, torch.tensor([[name in clip.modalities for name in names] for clip in clips]).reshape(len(clips), -1)


def _table(clips: Sequence[Clip], values: dict[str, Tensor]) -> Features:
    names, present = presence(clips)
    return Features(tuple(clip.clip_id for clip in clips), {name: values[name] for name in names}, present)


def features_key(clips: Sequence[Clip], inputs: OmniInputs, model: str | Path) -> str:
    """Hash of all that the features depend on: the clips' content, how they are prepared, and the towers."""
    processor = [
        part.to_json_string() for part in (inputs.processor.video_processor, inputs.processor.feature_extractor)
    ]
    return digest(towers_digest(model), [inputs.media_key(clip) for clip in clips], processor, POOLING)


def towers_digest(model: str | Path) -> str:
    """Hash of the towers' stored weights, not of the language model's. A Hub name stands for itself."""
    name = check_model(model)
    if not Path(name).is_dir():
        return digest(name)
    sha = hashlib.sha256(digest((Path(name) / "config.json").read_bytes()).encode())
    for file in sorted(Path(name).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in sorted(weights.keys()):
                if ".visual." in f".{key}" or ".audio_tower." in f".{key}":
                    sha.update(key.encode())
                    sha.update(weights.get_tensor(key).reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
