"""What files and model folders contain, as short hashes."""

import hashlib
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.files.records import digest

PAGE, PAGES = 4096, 256  # a digest reads so many bytes at so many places of a file: 1 MiB of each


# Beside the weights: configurations, vocabularies, the chat template, the index of the weight files.
SETTINGS = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja")


def settings_files(model: Path) -> list[Path]:
    """All files of a model folder that a library may read beside the weights, in order."""
    return sorted({path for pattern in SETTINGS for path in model.glob(pattern) if path.is_file()})


def model_digest(model: Path) -> str:
    """Hash of all that a library reads in a model folder, the same for every copy: files whole, weights as `sampled`.

    Raises:
        InputError: The folder has no config.json.
    """
    if not (model / "config.json").is_file():
        raise InputError(f"--model {model}: no model folder (config.json is missing); stages/export.py writes one")
    settings = [part for path in settings_files(model) for part in (path.name, path.read_bytes())]
    weights = [part for path in sorted(model.glob("*.safetensors")) for part in sampled(path)]
    return digest(*settings, *weights)


def sampled(path: Path) -> list[Any]:
    """A safetensors file's size, the names and shapes in it, and pages spread over it.

    Not all of it: tens of gigabytes would take minutes, and a model that was trained further differs in nearly every
    page.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        parts: list[Any] = [size, file.read(min(size, int.from_bytes(file.read(8), "little")))]
        for start in range(0, size, max(PAGE, size // PAGES)):
            file.seek(start)
            parts.append(file.read(PAGE))
    return parts


def file_digest(path: Path) -> str:
    """Hash of a file's content.

    Raises:
        InputError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        raise InputError(f"{path}: no such file") from None
