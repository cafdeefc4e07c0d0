"""Stretches of a text, as (first character, behind the last)."""

from collections.abc import Sequence

Span = tuple[int, int]


def touching(tokens: Sequence[Span], spans: Sequence[Span]) -> list[tuple[int, int]]:
    """(token, span) for each token that touches one of the spans: the first that it touches.

    Args:
        tokens: Where the tokens stand, in order.
        spans: Stretches in order that do not overlap.

    >>> touching([(0, 3), (3, 5), (5, 9)], [(1, 4), (8, 9)])
    [(0, 0), (1, 0), (2, 1)]
    """
    pairs, place = [], 0
    for token, (start, end) in enumerate(tokens):
        while place < len(spans) and spans[place][1] <= start:
            place += 1
        if place < len(spans) and spans[place][0] < end:
            pairs.append((token, place))
    return pairs
