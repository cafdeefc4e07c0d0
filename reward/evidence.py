"""Evidence: the clip makes the words of the segments likelier. Optional: in none of the recipes."""

import math
from typing import Any

from migr.files.records import Row
from migr.text.format import parse
from migr.text.spans import touching
from reward.score import text_of


class EvidenceReward:
    """Mean over the tokens of the segments of max(0, 1 - p(token | blanked clip) / p(token | clip)).

    A token that is as likely behind grey frames and silence follows from the words before it, and earns nothing; one
    that the clip alone makes likely earns 1. Ours. 0 without tagged segments; None where nobody measured the gains.
    Logs `evidence_gain`, the mean gain of these tokens in nats.
    """

    __name__ = "evidence"
    needs_gains = True  # asks the trainer for the column `gains`

    def __call__(
        self, completions: list[Any], gains: list[Row | None] | None = None, log_metric: Any = None, **_: Any
    ) -> list[float | None]:
        """(n,) numbers in [0, 1] or None for (n,) completions.

        Args:
            completions: Responses as strings or as TRL's message lists.
            gains: `spans` (first character, behind the last) and `gains` (nats) of each response's tokens, as the
                trainer measures them on the policy that it trains.
            log_metric: TRL's callback.

        >>> text = "<think><video>A frown.</video>So.</think><answer>angry</answer>"
        >>> spans = [(0, 14), (14, 22), (22, 40), (40, 63)]
        >>> [value] = EvidenceReward()([text], [{"spans": spans, "gains": [0.0, 0.6931, 5.0, 5.0]}])
        >>> round(value, 3)
        0.5
        """
        values: list[float | None] = []
        nats: list[float] = []
        for completion, measured in zip(completions, gains or [None] * len(completions), strict=True):
            if measured is None:
                values.append(None)
                continue
            parts = [(part.start, part.end) for part in parse(text_of(completion)).parts if part.tagged]
            own = [measured["gains"][token] for token, _ in touching(measured["spans"], parts)]
            nats += own
            values.append(sum(-math.expm1(-max(0.0, gain)) for gain in own) / len(own) if own else 0.0)
        if log_metric is not None and nats:
            log_metric("evidence_gain", sum(nats) / len(nats))
        return values
