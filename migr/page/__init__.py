"""HTML pages of one look. They open from disk and fetch nothing; all that comes from data is escaped and cleaned."""

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from migr.errors import InputError

LONGEST_SHOWN = 2000  # characters of a text from data
_HERE = Path(__file__).parent
_IMAGES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
# Control characters but tab and line feed, lone surrogates, and the marks that reverse the direction of what follows.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def clean(text: str, longest: int = LONGEST_SHOWN) -> str:
    """Make text from data harmless to print: no control, lone surrogate or direction marks, and not endless."""
    if len(text) > longest:
        text = f"{text[:longest]} … ({len(text):,} characters)"
    return _HARMFUL.sub("\ufffd", text)


@cache
def environment(*folders: Path) -> Environment:
    """Templates of these folders, compiled once; each extends `base.html.j2` and fills its blocks."""
    loader = FileSystemLoader([*folders, _HERE])
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "finalize": _finalize}
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **options)
    templates.globals["look"] = Markup((_HERE / "style.css").read_text(encoding="utf-8"))  # noqa: S704  (our own file)
    return templates


def data_uri(path: str | Path) -> Markup:
    """An image as a data URI.

    Raises:
        InputError: There is no such image, or it is of another kind.
    """
    path = Path(path)
    if path.suffix.lower() not in _IMAGES or not path.is_file():
        raise InputError(f"{path}: no such image (the page embeds {', '.join(_IMAGES)})")
    return image_uri(path.read_bytes(), _IMAGES[path.suffix.lower()])


def image_uri(content: bytes, kind: str = "image/png") -> Markup:
    """The bytes of an image as a data URI."""
    # Markup: base64 needs no escaping, and it must not be shortened.
    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")  # noqa: S704


def _finalize(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
