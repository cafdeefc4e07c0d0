"""Format: exactly one think and one answer block, in order, non-empty, nothing outside."""

from typing import Any

from migr.text.format import parse
from reward.score import LONGEST


def format_reward(completions: list[Any], **_: Any) -> list[float | None]:
    """1 where the response has exactly the format of `migr.text.format`, else 0 (a runaway response too).

    Args:
        completions: Responses as strings or as TRL's message lists.

    Returns:
        One number a completion.
    """
    texts = [text_of(completion) for completion in completions]
    return [float(len(text) <= LONGEST and parse(text).error is None) for text in texts]


def text_of(completion: Any) -> str:
    """A completion's text, whether TRL hands it over as a string or as a list of messages."""
    return completion if isinstance(completion, str) else completion[0]["content"]
