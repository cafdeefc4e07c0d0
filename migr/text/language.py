"""Whether a text is in English, the one language that the word lists of this project read. Ours; no model."""

import re
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]+")
# The most frequent words that English shares with few of its neighbours
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """the and of is are was his her he she they it with that this as which there their while but from be to by
        voice face eyes not him at or who has have its into""",
    )
)
_ENOUGH = 8  # words: of fewer the script alone is looked at
_SHARE = 0.08  # of the words of an English text that are among the common ones, at least


def is_english(text: str) -> bool:
    """Whether a text seems to be English; a text without letters is.

    >>> [is_english(text) for text in ("He frowns.", "他皱着眉头。", "Sa voix tremble et ses yeux sont grands.")]
    [True, False, False]
    """
    letters = [character for character in text[:5000] if character.isalpha()]
    if sum(character.isascii() for character in letters) < 0.8 * len(letters):
        return False
    words = _WORD.findall(text[:5000].casefold())
    return len(words) < _ENOUGH or sum(word in _COMMON for word in words) >= _SHARE * len(words)


def share_of_others(texts: Iterable[str], most: int = 1000) -> float:
    """The share of the first `most` texts with letters that are not English; 0 without any."""
    verdicts: list[bool] = []
    for text in texts:
        if any(map(str.isalpha, text)):
            verdicts.append(is_english(text))
        if len(verdicts) >= most:
            break
    return verdicts.count(False) / len(verdicts) if verdicts else 0.0
