"""What a rollout server checks of a draw before vLLM sees it: there, tensors that do not fit end the whole process."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from migr.engine.task import Task
from migr.errors import InputError, as_input_error
from migr.omni.inputs import AUDIO_KEYS, VIDEO_KEYS, Features

LARGEST_GRID = 1 << 20  # patches of a clip


def read_draws(
    task: Task, words: Any, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[list[int], str, Features, int | None]]:
    """The draws that a message asks for: token ids, the name of the media, their features, the seed.

    Raises:
        InputError: It is no such message, or a draw is none (`check_draw`); says what does not fit.
    """
    with as_input_error("the request cannot be used"):
        features: dict[str, Features] = {media: {} for media, _ in words["prompts"]}
        for name, tensor in tensors.items():
            media, _, part = name.partition("/")
            features[media][part] = tensor
        draws = [(*words["prompts"][prompt], seed) for prompt, seed in words["draws"]]
        for media, ids, seed in draws:
            check_draw(task, ids, features[media], seed)
    for media, ids, seed in draws:
        yield ids, media, features[media], seed


def check_draw(task: Task, ids: Any, features: Features, seed: Any) -> None:
    """Refuse a prompt and features that are not those of one clip for this model.

    Raises:
        InputError: Says what does not fit.
    """
    processor, family = task.inputs.processor, task.inputs.family
    if not isinstance(ids, list) or not all(type(token) is int for token in ids) or not ids:
        raise InputError("a prompt must be a list of token ids")
    if len(ids) >= task.max_length or not 0 <= min(ids) <= max(ids) < len(task.tokenizer):
        raise InputError(f"a prompt must have ids below {len(task.tokenizer)}, and fewer than {task.max_length}")
    if seed is not None and not (type(seed) is int and 0 <= seed < 1 << 64):
        raise InputError("a seed must be a whole number of 64 bits")
    if unknown := set(features) - {*VIDEO_KEYS, *AUDIO_KEYS}:
        raise InputError(f"features: {min(unknown)} is none")
    video, audio = (tuple(key in features for key in keys) for keys in (VIDEO_KEYS, AUDIO_KEYS))
    if any(video) != all(video) or any(audio) != all(audio):
        raise InputError("features: some of a modality's tensors are missing")
    tokens = {processor.video_token: 0, processor.audio_token: 0, processor.image_token: 0}
    if any(video):
        tokens[processor.video_token] = _video_tokens(processor.video_processor, features)
    if any(audio):
        frames = _frames(processor.feature_extractor.feature_size, features)
        tokens[processor.audio_token] = family.audio_tokens(frames)
        if tokens[processor.audio_token] < 1:
            raise InputError(f"sound of {frames} frames is too short for a single token")
    for token, count in tokens.items():
        mark = task.tokenizer.convert_tokens_to_ids(token)
        places = [at for at, entry in enumerate(ids) if entry == mark]
        if len(places) != count or (places and places[-1] - places[0] + 1 != count):
            raise InputError(f"the prompt has {len(places)} {token}, the features {count}, which must stand in one row")


def _video_tokens(vision: Any, features: Features) -> int:
    pixels, grid, seconds = (features[key] for key in VIDEO_KEYS)
    if grid.shape != (1, 3) or grid.dtype != torch.int64:
        raise InputError(f"video_grid_thw must be whole numbers of the shape (1, 3), not {tuple(grid.shape)}")
    time, height, width = (int(n) for n in grid[0])
    merge = vision.merge_size
    if min(time, height, width) < 1 or height % merge or width % merge or time * height * width > LARGEST_GRID:
        raise InputError(f"video_grid_thw: {time} x {height} x {width} is no grid of this model")
    size = 3 * vision.temporal_patch_size * vision.patch_size**2
    _check(pixels, (time * height * width, size), "pixel_values_videos")
    _check(seconds, (1,), "video_second_per_grid")
    if not float(seconds) > 0:
        raise InputError("video_second_per_grid must be above 0")
    return time * height * width // merge**2


def _frames(bins: int, features: Features) -> int:
    sound, mask = (features[key] for key in AUDIO_KEYS)
    if sound.ndim != 3 or mask.ndim != 2 or mask.is_floating_point() or not bool((mask == 1).all()):
        raise InputError("input_features must be (1, mel, frames), feature_attention_mask (1, frames) of ones")
    if mask.shape[0] != 1 or not 1 <= mask.shape[1] <= LARGEST_GRID:
        raise InputError(f"feature_attention_mask has the shape {tuple(mask.shape)}")
    _check(sound, (1, bins, mask.shape[1]), "input_features")
    return int(mask.shape[1])


def _check(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise InputError(f"{name} must be numbers of the shape {shape}, not {tensor.dtype} {tuple(tensor.shape)}")
    if not math.isfinite(float(tensor.float().abs().max())):
        raise InputError(f"{name} has values that are not finite")
