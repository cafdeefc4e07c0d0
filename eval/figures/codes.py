"""What became of a clip, as small integers: all that a rate needs to know of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

MISSING = -1  # an answer that is no known label, a failed judgement, no segment, no importance
WITHOUT = -2  # in place of a judgement: the answer came without any reasoning to judge

# What happened to a clip. RIGHT and WRONG speak of the answer, CONSISTENT of judge == label.
UNPARSEABLE, RIGHT_CONSISTENT, RIGHT_INCONSISTENT, RIGHT_FAILED = range(4)
WRONG_CONSISTENT, WRONG_SAME, WRONG_OTHER, WRONG_FAILED = range(4, 8)  # SAME: the judge names the (wrong) answer
RIGHT_WITHOUT, WRONG_WITHOUT = 8, 9  # without reasoning
OUTCOMES = 10
STARTS = 3  # of the reasoning: 0 unknown, 1 with another modality, 2 with the dominant one
HIDDEN = 3  # of a right answer, judged without emotion words: 0 unknown, 1 consistent, 2 inconsistent
SHAPE = (OUTCOMES, STARTS, HIDDEN)

RIGHT_JUDGED = (RIGHT_CONSISTENT, RIGHT_INCONSISTENT)
RIGHT_REASONED = (*RIGHT_JUDGED, RIGHT_FAILED)
RIGHT = (*RIGHT_REASONED, RIGHT_WITHOUT)
JUDGED = (*RIGHT_JUDGED, WRONG_CONSISTENT, WRONG_SAME, WRONG_OTHER)
CELLS = {
    "right_consistent": (RIGHT_CONSISTENT,),
    "right_inconsistent": (RIGHT_INCONSISTENT,),
    "wrong_consistent": (WRONG_CONSISTENT,),
    "wrong_inconsistent": (WRONG_SAME, WRONG_OTHER),
}
# The cell of each outcome by name; clips outside the four cells have names of their own.
CELL_OF = {outcome: name for name, outcomes in CELLS.items() for outcome in outcomes}
CELL_OF |= {UNPARSEABLE: "unparseable"}
CELL_OF |= dict.fromkeys((RIGHT_FAILED, RIGHT_WITHOUT), "right_not_judged")
CELL_OF |= dict.fromkeys((WRONG_FAILED, WRONG_WITHOUT), "wrong_not_judged")


class Codes(NamedTuple):
    """(c,) codes each, of clips or of cells of the joint table."""

    label: Ints
    outcome: Ints
    start: Ints
    hidden: Ints

    def among(self, outcomes: Sequence[int]) -> Bools:
        """(c,) which have one of these outcomes."""
        return np.isin(self.outcome, outcomes)

    @property
    def every(self) -> Bools:
        """(c,) all of them."""
        return np.ones(len(self.label), bool)


def outcome_of(labels: Ints, answers: Ints, judgements: Ints) -> Ints:
    """What happened to each clip: (n,) codes below `OUTCOMES`."""
    unparseable, failed, without = answers == MISSING, judgements == MISSING, judgements == WITHOUT
    right, consistent, same = answers == labels, judgements == labels, judgements == answers
    return np.select(
        [unparseable, right & without, without, right & failed, right & consistent, right, failed, consistent, same],
        [
            UNPARSEABLE,
            RIGHT_WITHOUT,
            WRONG_WITHOUT,
            RIGHT_FAILED,
            RIGHT_CONSISTENT,
            RIGHT_INCONSISTENT,
            WRONG_FAILED,
            WRONG_CONSISTENT,
            WRONG_SAME,
        ],
        default=WRONG_OTHER,
    )


def start_of(first: Ints, dominants: Ints) -> Ints:
    """How each reasoning starts: (n,) codes below `STARTS`."""
    return np.where((first == MISSING) | (dominants == MISSING), 0, 1 + (first == dominants))


def hidden_of(labels: Ints, answers: Ints, hidden: Ints) -> Ints:
    """What the judge read of right answers' reasoning without emotion words: (n,) codes below `HIDDEN`."""
    return np.where((answers != labels) | (hidden < 0), 0, 1 + (hidden != labels))
