"""A base model's files: the folder, the weights by name, and a digest by which two machines see that theirs agree."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open

from migr.files.fingerprint import sampled
from migr.files.records import digest


def model_folder(model: str) -> Path:
    """The folder with the weights of a model that `check_model` accepts."""
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))


@lru_cache(1)
def weight_files(model: str) -> dict[str, Any]:
    """The open safetensors file of each weight, by its name; `get_tensor` and `get_slice` read it."""
    files = [safe_open(file, "pt") for file in sorted(model_folder(model).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118  (a file is no mapping)


def base_digest(model: str) -> str:
    """Hash of a base model, the same for every copy: names and times of the files do not count.

    Configuration and tokenizer go in whole, of the weights what `sampled` reads.
    """
    folder = model_folder(model)
    parts: list[Any] = [file.read_bytes() for name in ("config.json", "tokenizer.json") for file in folder.glob(name)]
    return digest(*parts, *(part for path in sorted(folder.glob("*.safetensors")) for part in sampled(path)))
