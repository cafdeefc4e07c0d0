"""Pooled features: what the model's own eyes and ears make of a clip, and its language model of the transcript.

The tokens of each tower (their outputs, as the language model receives them) are pooled over the clip's own length into
mean and standard deviation. The standard deviation tells how much a face moves or a voice varies, and noise from calm.
A transcript has no tower: its tokens go through the language model alone, without prompt or media, and are pooled as
they enter it (the words as such) and as they leave its last layer (the words in context).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from migr.clips.manifest import Clip
from migr.errors import InputError
from migr.files.records import atomic_path, digest
from migr.importance.table import Features
from migr.omni.checks import stored_weights
from migr.omni.inputs import OmniInputs
from migr.omni.load import check_model, load_thinker
from migr.omni.towers import TOWERS, FrozenTowers

MODALITIES = ("video", "audio", "text")
POOLING = "mean, std of tower outputs, a clip alone"  # part of the cache key: change it with `pool`
TEXT_POOLING = "mean, std of token embeddings and of last hidden states"  # likewise, with `pool_text`


def tower_features(
    clips: Sequence[Clip],
    inputs: OmniInputs,
    model: str | Path,
    cache_dir: str | Path | None = None,
    batch_size: int = 16,
    modalities: Sequence[str] = MODALITIES,
) -> Features:
    """Features of all clips, from the cache if these clips went through this model before.

    Args:
        clips: The clips.
        inputs: Prepares them; its settings and processor are part of the cache's key.
        model: Model folder, or a name on the Hugging Face Hub.
        cache_dir: Folder for the cache; None computes anew.
        batch_size: Transcripts a forward pass; the towers take a clip at a time, so that its tokens serve all stages.
        modalities: The ones to read, of `MODALITIES`.

    Returns:
        Modality -> (n, 2 × size of the tower's output; text 4 × the hidden size) float32, for those that a clip has.

    Raises:
        InputError: The model cannot be loaded, a clip or transcript cannot be read, or features are not finite.
    """
    names, present = presence(clips, modalities)
    folder = None if cache_dir is None else Path(cache_dir) / "towers"
    parts: list[tuple[str, tuple[str, ...]]] = []
    if any(name in TOWERS for name in names):
        parts.append((towers_key(clips, inputs, model), tuple(TOWERS)))
    if "text" in names:
        parts.append((text_key(clips, inputs, model), ("text",)))
    thinker = None
    values: dict[str, Tensor] = {}
    for key, keys in parts:
        file = None if folder is None else folder / f"{key}.safetensors"
        if file is not None and (known := _read(file)) is not None:
            values |= known
            continue
        thinker = thinker or load_thinker(model)
        features = _compute(thinker, inputs, clips, batch_size, keys)
        _checked(clips, features)
        values |= features
        if file is not None:
            with atomic_path(file) as partial:
                save_file(features, partial)
    return Features(tuple(clip.clip_id for clip in clips), {name: values[name] for name in names}, present)


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(file)
    except (SafetensorError, OSError):
        return None  # missing, or damaged: computed and written again


def _compute(
    thinker: Any, inputs: OmniInputs, clips: Sequence[Clip], batch_size: int, keys: Sequence[str]
) -> dict[str, Tensor]:
    text = "text" in keys
    if torch.cuda.is_available():  # only what is run; the rest stays where it is
        for part in (thinker.model,) if text else (thinker.visual, thinker.audio_tower):
            part.cuda()
    towers = FrozenTowers(thinker, inputs)
    rows: list[dict[str, Tensor]] = []
    with tqdm(total=len(clips), desc="text features" if text else "tower features", unit="clip") as bar:
        for start in range(0, len(clips), batch_size):
            batch = clips[start : start + batch_size]
            rows += pool_text(thinker, inputs, batch) if text else [pool(towers, clip) for clip in batch]
            bar.update(len(rows) - bar.n)
    values = {}
    for name in keys:
        if size := next((len(row[name]) for row in rows if name in row), 0):
            values[name] = torch.stack([row.get(name, torch.zeros(size)) for row in rows])
    return values


def _checked(clips: Sequence[Clip], values: dict[str, Tensor]) -> None:
    """Raise InputError for a clip whose features are not finite; rows of absent modalities are zero."""
    Features(
        tuple(clip.clip_id for clip in clips), values, torch.ones(len(clips), len(values), dtype=torch.bool)
    ).check()


def pool(towers: FrozenTowers, clip: Clip) -> dict[str, Tensor]:
    """Pool the tokens of a clip: modality -> (2 × tower output size,) float32, on the CPU."""
    features = towers.features(clip)
    tokens = {"video": features.get("video_tokens", [None])[0], "audio": features.get("audio_tokens")}
    return {name: _mean_std(values) for name, values in tokens.items() if values is not None}


@torch.inference_mode()
def pool_text(thinker: Any, inputs: OmniInputs, clips: Sequence[Clip]) -> list[dict[str, Tensor]]:
    """Run the language model on a batch of transcripts, pool what enters and leaves it: "text" -> (4 × hidden,).

    Raises:
        InputError: A transcript is no text, blank, or longer than the model reads.
    """
    tokenizer, model = inputs.processor.tokenizer, thinker.model
    longest = model.config.max_position_embeddings
    spoken = {i: tokenizer(transcript_of(c))["input_ids"] for i, c in enumerate(clips) if "text" in c.modalities}
    for i, ids in spoken.items():
        if len(ids) > longest:
            raise InputError(f"clip {clips[i].clip_id!r}: its transcript has {len(ids)} tokens, more than {longest}")
    rows: list[dict[str, Tensor]] = [{} for _ in clips]
    if spoken:
        width = max(len(ids) for ids in spoken.values())
        padded = torch.full((len(spoken), width), tokenizer.pad_token_id)
        mask = torch.zeros((len(spoken), width), dtype=torch.long)
        for row, ids in enumerate(spoken.values()):
            padded[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        device = model.embed_tokens.weight.device
        words = model.embed_tokens(padded.to(device))
        states = model(inputs_embeds=words, attention_mask=mask.to(device)).last_hidden_state
        for (i, ids), word, state in zip(spoken.items(), words, states, strict=True):
            rows[i] = {"text": torch.cat([_mean_std(word[: len(ids)]), _mean_std(state[: len(ids)])])}
    return rows


def transcript_of(clip: Clip) -> str:
    """The clip's transcript, or InputError where it is no text or blank."""
    transcript = clip.extra.get("transcript")
    if not isinstance(transcript, str) or not transcript.strip():
        raise InputError(f"clip {clip.clip_id!r}: transcript must be a text, or absent, not {transcript!r}")
    return transcript


def _mean_std(tokens: Tensor) -> Tensor:
    tokens = tokens.float().cpu()
    return torch.cat([tokens.mean(0), tokens.std(0, correction=0)])


def presence(clips: Sequence[Clip], modalities: Sequence[str] = MODALITIES) -> tuple[tuple[str, ...], Tensor]:
    """Those of `modalities` that at least one clip has, and (n, M) bool: which clip has which.

    Raises:
        InputError: There is none.
    """
    names = tuple(m for m in MODALITIES if m in modalities and any(m in clip.modalities for clip in clips))
    if not names:
        raise InputError(f"no clip has {' or '.join(modalities)}, so there is nothing to weigh")
    return names, torch.tensor([[name in clip.modalities for name in names] for clip in clips]).reshape(len(clips), -1)


def features_key(
    clips: Sequence[Clip], inputs: OmniInputs, model: str | Path, modalities: Sequence[str] = MODALITIES
) -> str:
    """Hash of all that the features depend on."""
    names, _ = presence(clips, modalities)
    keys = [towers_key(clips, inputs, model)] if any(name in TOWERS for name in names) else []
    keys += [text_key(clips, inputs, model)] if "text" in names else []
    return keys[0] if len(keys) == 1 else digest(keys)


def towers_key(clips: Sequence[Clip], inputs: OmniInputs, model: str | Path) -> str:
    """Hash of the clips' content, how they are prepared, and the towers."""
    processor = [
        part.to_json_string() for part in (inputs.processor.video_processor, inputs.processor.feature_extractor)
    ]
    return digest(towers_digest(model), [inputs.media_key(clip) for clip in clips], processor, POOLING)


def text_key(clips: Sequence[Clip], inputs: OmniInputs, model: str | Path) -> str:
    """Hash of the transcripts and the language model: its configuration, and names, sizes and times of its files."""
    name = check_model(model)
    facts: list[Any] = [name]
    if Path(name).is_dir():
        files = [(file.name, file.stat()) for file in sorted(Path(name).glob("*.safetensors"))]
        facts = [(Path(name) / "config.json").read_text(encoding="utf-8")]
        facts += [[file, stat.st_size, stat.st_mtime_ns] for file, stat in files]
    transcripts = [transcript_of(clip) if "text" in clip.modalities else None for clip in clips]
    return digest(facts, transcripts, TEXT_POOLING)


def towers_digest(model: str | Path) -> str:
    """Hash of the towers' stored weights, not of the language model's. A Hub name stands for itself."""
    name = check_model(model)
    if not Path(name).is_dir():
        return digest(name)
    sha = hashlib.sha256(digest((Path(name) / "config.json").read_bytes()).encode())
    for key, tensor in stored_weights(name, lambda key: ".visual." in f".{key}" or ".audio_tower." in f".{key}"):
        sha.update(key.encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
