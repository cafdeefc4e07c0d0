"""What trainer and rollout server send each other: safetensors, with the words as JSON in its header. No pickle."""

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from migr.errors import InputError
from migr.files.parsing import parse_json

PROTOCOL = 1  # raised when the messages change
LARGEST = 2**32  # bytes of a message, and of all that a server works on at a time
KIND = "application/x-migr"  # content type: one that a page in a browser cannot send elsewhere without asking first


def pack(words: Any, tensors: dict[str, Tensor]) -> bytes:
    """One message of JSON values and tensors."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"words": json.dumps(words)})


def unpack(message: bytes) -> tuple[Any, dict[str, Tensor]]:
    """Words and tensors of `pack`.

    Raises:
        InputError: It is no such message.
    """
    try:
        header = parse_json(message[8 : 8 + int.from_bytes(message[:8], "little")])
        return parse_json(header["__metadata__"]["words"]), load(message)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"not a message of migr ({type(error).__name__})") from error
