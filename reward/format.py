"""Format: exactly one think and one answer block, in order, non-empty, nothing outside."""

from typing import Any

from migr.text.format import parse
from reward.score import text_of


def format_reward(completions: list[Any], **_: Any) -> list[float | None]:
    """1 where the response has exactly the format of `migr.text.format`, else 0 (a runaway response too).

    Args:
        completions: (n,) responses, as strings or as TRL's message lists.

    Returns:
        (n,) numbers in [0, 1].

    >>> format_reward(["<think>He smiles.</think><answer>happy</answer>", "He smiles. happy"])
    [1.0, 0.0]
    """
    return [float(parse(text_of(completion)).error is None) for completion in completions]
