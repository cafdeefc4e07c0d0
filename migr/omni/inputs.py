"""From clips to the thinker's arguments: decode once, run Qwen's processors, expand placeholders, build batches.

Decoding is slow and its result small (uint8 frames, 16 kHz sound): that is what the disk cache keeps. The processors'
float outputs are four times as large and take a millisecond: the last ones used are kept in memory only.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from migr.clips.manifest import Clip
from migr.clips.media import SAMPLE_RATE, Media, read_media
from migr.errors import InputError
from migr.files.records import atomic_path, digest
from migr.omni.family import QWEN2_5, family_of
from migr.settings import MediaSettings

VIDEO_KEYS = ("pixel_values_videos", "video_grid_thw", "video_second_per_grid")
AUDIO_KEYS = ("input_features", "feature_attention_mask")
SECONDS_PER_CHUNK = 2.0  # the processors' default; matters for interleaved sound only

READING = 2  # version of the rules by which clips are read; what another one has decoded is not used

Features = dict[str, Tensor]


class OmniInputs:
    """Prepares clips for one processor and one way of sampling.

    Args:
        processor: A `Qwen2_5OmniProcessor` or `Qwen3OmniMoeProcessor`.
        settings: How clips are sampled, and whether sound is interleaved with video (`audio_in_video`).
        cache_dir: Folder of the decoded clips, shared by any number of processes; None decodes every time.
        memory: Bytes of processor outputs kept in this process.

    Raises:
        InputError: The processor cuts pictures or samples sound in another way than `migr.clips.media` prepares them.
    """

    def __init__(
        self, processor: Any, settings: MediaSettings, cache_dir: str | Path | None = None, memory: int = 2**30
    ):
        vision, sound = processor.video_processor, processor.feature_extractor
        family = family_of(processor)
        if family is None:
            raise InputError(f"{type(processor).__name__}: not the processor of a known model family")
        self.family = family
        side = vision.patch_size * vision.merge_size
        if (side, vision.temporal_patch_size, sound.sampling_rate) != (family.factor, 2, SAMPLE_RATE):
            raise InputError(
                f"the processor wants sides of {side} pixels, {vision.temporal_patch_size} frames a patch and "
                f"{sound.sampling_rate} Hz; {family.title} has {family.factor}, 2 and {SAMPLE_RATE}: another model?"
            )
        self.processor = processor
        if settings.min_pixels < family.factor**2:
            raise InputError(
                f"min_pixels, max_pixels: need {family.factor**2} <= {settings.min_pixels} <= {settings.max_pixels}"
            )
        self.settings = settings
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        # what decoded media depend on; the usual grid goes without saying
        self._settings = {**asdict(settings), "reading": READING}
        del self._settings["audio_in_video"]
        if family is not QWEN2_5:
            self._settings["factor"] = family.factor
        self._memory = memory
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._kept_bytes = 0

    def media_key(self, clip: Clip) -> str:
        """Name of the clip's decoded media: its content, the settings and the streams that are used."""
        return digest(_content(clip.path), self._settings, clip.has_video, clip.has_audio)

    def media_keys(self, clip: Clip) -> dict[str, str]:
        """Modality -> name of its part of `media`."""
        return dict.fromkeys((name for name in ("video", "audio") if name in clip.modalities), self.media_key(clip))

    def media(self, clip: Clip) -> Media:
        """Frames and sound of a clip (those of `has_video` and `has_audio`), from the cache if they are there.

        Raises:
            MediaError: The file cannot be used.
        """
        if self.cache_dir is None:
            return _read(clip, self.settings, self.family.factor)
        key = self.media_key(clip)
        file = self.cache_dir / key[:2] / f"{key}.safetensors"
        if file.is_file():
            try:
                return _unpack(load_file(file))
            except (SafetensorError, KeyError, OSError):
                pass  # damaged: decode and write it again
        media = _read(clip, self.settings, self.family.factor)
        _write(file, media)
        return media

    def features(self, clip: Clip, modalities: Iterable[str] | None = None) -> Features:
        """The processors' outputs for one clip, equal to those of Qwen's processor (shared: do not write).

        Args:
            clip: The clip.
            modalities: Keep only these of the clip's ("video", "audio"; "text" has no features); None keeps all.

        Returns:
            Video: `pixel_values_videos` f32 (patches, 1176; Qwen3-Omni 1536), `video_grid_thw` i64 (1, 3),
            `video_second_per_grid` f32 (1,), the seconds of clip time that a temporal patch spans. Audio:
            `input_features` f32 (1, mel, frames), trimmed to the frames of true sound, `feature_attention_mask` i64
            (1, frames).
        """
        names = set(clip.modalities if modalities is None else modalities)
        assert names <= {"video", "audio", "text"}, names
        key = self.media_key(clip)
        full = self._kept.get(key)
        if full is None:
            full = self._keep(key, self.process(self.media(clip)))
        self._kept.move_to_end(key)
        keys = (VIDEO_KEYS if "video" in names else ()) + (AUDIO_KEYS if "audio" in names else ())
        return {name: full[name] for name in keys if name in full}

    def process(self, media: Media) -> Features:
        """Run the processors on decoded media; see `features`."""
        features: Features = {}
        if media.frames is not None:
            assert media.fps is not None
            out = self.processor.video_processor(
                videos=[torch.from_numpy(media.frames)],
                do_resize=False,  # done; the processor's own minimum of 128 x 28 x 28 pixels would enlarge small frames
                do_sample_frames=False,
                cap_pixels_per_frame=False,
                return_tensors="pt",
            )
            features["pixel_values_videos"] = out["pixel_values_videos"]
            features["video_grid_thw"] = out["video_grid_thw"]
            second = self.processor.video_processor.temporal_patch_size / media.fps
            features["video_second_per_grid"] = torch.tensor([second], dtype=torch.float32)
        if media.waveform is not None:
            extractor = self.processor.feature_extractor
            # One window of zeros behind the sound gives the true frames the very values that padding to the extractor's
            # 30 or 300 s gives (without any, the last ones are off by 0.04), ten times faster; nothing is ever cut.
            hop = extractor.hop_length
            length = -(-(len(media.waveform) + extractor.n_fft) // hop) * hop if self.family.pads_sound else None
            out = extractor(
                media.waveform,
                sampling_rate=SAMPLE_RATE,
                padding="max_length" if self.family.pads_sound else True,
                max_length=length,
                truncation=False,
                return_attention_mask=True,
                return_tensors="pt",
            )
            frames = int(out["attention_mask"].sum())
            features["input_features"] = out["input_features"][:, :, :frames].contiguous()
            features["feature_attention_mask"] = torch.ones(1, frames, dtype=torch.long)
        return features

    def expand(self, prompt: str, features: Features) -> str:
        """Repeat each placeholder as often as the clip has tokens for it, by the processor's own rule.

        With `audio_in_video` and both media, sound and video come interleaved; the thinker sees it by the marks.

        Raises:
            InputError: The prompt's placeholders are not those of the features.
        """
        processor = self.processor
        video, audio = "video_grid_thw" in features, "feature_attention_mask" in features
        for token, needed in ((processor.video_token, video), (processor.audio_token, audio)):
            if (count := prompt.count(token)) != needed:
                raise InputError(f"the prompt has {count} {token} where the clip has {needed:d}: {prompt[:200]!r}")
        apart = f"{processor.vision_bos_token}{processor.video_token}{processor.vision_eos_token}"
        sound = f"{processor.audio_bos_token}{processor.audio_token}{processor.audio_eos_token}"
        together = self.settings.audio_in_video and video and audio
        if together:  # the processor writes the marks of the sound inside those of the video itself
            if apart + sound not in prompt:
                raise InputError(f"the prompt must have the sound right behind the video: {prompt[:200]!r}")
            prompt = prompt.replace(apart + sound, apart)
        grids = list(features.get("video_grid_thw", ()))
        lengths = [self.family.audio_tokens(int(mask.sum())) for mask in features.get("feature_attention_mask", ())]
        (expanded,) = processor.replace_multimodal_special_tokens(
            [prompt],
            iter(lengths),
            iter(()),
            iter(grids),
            video_second_per_grid=(float(second) for second in features.get("video_second_per_grid", ())),
            use_audio_in_video=together,
            position_id_per_seconds=self.family.positions_per_second,
            seconds_per_chunk=SECONDS_PER_CHUNK,
        )
        return expanded

    def prompt_ids(self, prompt: str, features: Features) -> list[int]:
        """Token ids of the expanded prompt."""
        return self.processor.tokenizer(self.expand(prompt, features))["input_ids"]

    def collate(self, features: Sequence[Features]) -> Features:
        """Media arguments of the thinker's forward for a batch, in row order; rows without video or audio are allowed.

        Video patches and grids are concatenated; sound is padded to the longest of the batch: `input_features`
        (rows with sound, mel, frames). A modality that no row has is absent. Tokens (`FrozenTowers.features`) in place
        of pixels and sound are concatenated: `video_tokens` (levels, T, hidden), `audio_tokens` (T, hidden).
        """
        batch: Features = {}
        for key in (*VIDEO_KEYS, "audio_tokens"):
            if values := [row[key] for row in features if key in row]:
                batch[key] = torch.cat(values)
        if values := [row["video_tokens"] for row in features if "video_tokens" in row]:
            batch["video_tokens"] = torch.cat(values, dim=1)
        for key in AUDIO_KEYS:
            if values := [row[key] for row in features if key in row]:
                batch[key] = padded(values)
        return batch

    def _keep(self, key: str, features: Features) -> Features:
        self._kept[key] = features
        self._kept_bytes += _bytes(features)
        while self._kept_bytes > self._memory and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= _bytes(oldest)
        return features


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of sound, or their masks, as one batch: zeros behind, up to the longest."""
    longest = max(row.shape[-1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[-1])) for row in rows])


def _bytes(features: Features) -> int:
    return sum(tensor.nbytes for tensor in features.values())


def _read(clip: Clip, settings: MediaSettings, factor: int) -> Media:
    if not (clip.has_video or clip.has_audio):
        return Media(None, None, None, 0.0)  # a transcript alone
    return read_media(clip.path, settings, clip.has_video, clip.has_audio, factor)


def _content(path: Path) -> str:
    """SHA-256 of a file, computed once a process as long as its time and size stay."""
    try:
        facts = path.stat()
    except OSError:
        raise InputError(f"{path}: no such file") from None
    return _hash(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=200_000)
def _hash(path: Path, mtime: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(file: Path, media: Media) -> None:
    """Write a cache file that appears whole or not at all, whoever else writes the same."""
    arrays = {"clock": np.array([media.fps or 0.0, media.duration], np.float64)}
    if media.frames is not None:
        arrays["frames"] = media.frames
    if media.waveform is not None:
        arrays["waveform"] = media.waveform
    with atomic_path(file) as partial:
        save_file(arrays, partial)


def _unpack(arrays: dict[str, np.ndarray]) -> Media:
    fps, duration = arrays["clock"].tolist()
    return Media(arrays.get("frames"), fps or None, arrays.get("waveform"), duration)
