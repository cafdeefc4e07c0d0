"""What files and model folders contain, as short hashes."""

import hashlib
from pathlib import Path

from migr.errors import InputError
from migr.files.records import digest


def model_digest(model: Path) -> str:
    """Hash of a model folder: its configurations' content, its weight files' names, sizes and times.

    Raises:
        InputError: The folder has no config.json.
    """
    if not (model / "config.json").is_file():
        raise InputError(f"--model {model}: no model folder (config.json is missing); stages/export.py writes one")
    configs = [path.read_bytes() for path in sorted(model.glob("*config.json"))]
    weights = [(path.name, path.stat()) for path in sorted(model.glob("*.safetensors"))]
    return digest(*configs, [(name, facts.st_size, facts.st_mtime_ns) for name, facts in weights])


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
