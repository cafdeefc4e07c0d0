"""A base model's files: the folder, the weights by name, and a digest by which two machines see that theirs agree."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open

from migr.files.records import digest

PAGE, PAGES = 4096, 256  # a digest reads so many bytes at so many places of a file: 1 MiB of each


def model_folder(model: str) -> Path:
    """The folder with the weights of a model that `check_model` accepts."""
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))


@lru_cache(1)
def stored_weights(model: str) -> dict[str, Any]:
    """The open safetensors file of each weight; `get_tensor` and `get_slice` read it."""
    files = [safe_open(file, "pt") for file in sorted(model_folder(model).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118  (a file is no mapping)


def base_digest(model: str) -> str:
    """Hash of a base model, the same for every copy: names and times of the files do not count.

    Configuration and tokenizer go in whole. Of each file of weights go in its size, the names and shapes, and pages
    spread over it, not all of it: tens of gigabytes would take minutes, and a model that was trained further differs in
    nearly every page.
    """
    folder = model_folder(model)
    parts: list[Any] = [file.read_bytes() for name in ("config.json", "tokenizer.json") for file in folder.glob(name)]
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            parts += [size, file.read(header)]
            for start in range(0, size, max(PAGE, size // PAGES)):
                file.seek(start)
                parts.append(file.read(PAGE))
    return digest(*parts)
