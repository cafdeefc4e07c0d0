"""The rates of the evaluation, one entry each. A new metric is one entry here.

metrics.json, the table, the page with its glossary, the comparison of runs, the demo's results and the means over folds
take from `RATES` what there is, how it is called and in which order it stands.
"""

from collections.abc import Callable
from dataclasses import dataclass

from eval.figures.codes import (
    JUDGED,
    RIGHT,
    RIGHT_CONSISTENT,
    RIGHT_FAILED,
    RIGHT_INCONSISTENT,
    RIGHT_JUDGED,
    RIGHT_REASONED,
    WRONG_CONSISTENT,
    WRONG_SAME,
    Bools,
    Codes,
)

Choice = Callable[[Codes], Bools]


@dataclass(frozen=True)
class Rate:
    """A share of clips.

    Attributes:
        name: Its key in metrics.json; beside it stand `<name>_ci95` and its denominator `<name>_n`.
        heading: Its name in the table and on the page.
        meaning: What it says, for the page.
        counted: The clips in the numerator, of those in the denominator: (c,) codes -> (c,) bools.
        among: The clips in the denominator.
        column: A shorter heading, where the demo's results show it; "" leaves it out there.
        by_class: The mean over the classes that occur of the rate within each.
    """

    name: str
    heading: str
    meaning: str
    counted: Choice
    among: Choice
    column: str = ""
    by_class: bool = False


def _of(*outcomes: int) -> Choice:
    return lambda codes: codes.among(outcomes)


def _every(codes: Codes) -> Bools:
    return codes.every


RATES = (
    Rate(
        "inconsistent_among_correct",
        "Inconsistent among correct",
        "the headline: right answer, but other reasoning",
        _of(RIGHT_INCONSISTENT),
        _of(*RIGHT_JUDGED),
        "inconsistent, correct",
    ),
    Rate(
        "inconsistent_among_correct_hidden",
        "… emotion words hidden",
        "the headline where the judge does not see words that name an emotion: what the evidence alone says",
        lambda codes: codes.hidden == 2,
        lambda codes: codes.hidden > 0,
        "(words hidden)",
    ),
    Rate(
        "inconsistent_among_all",
        "Inconsistent among all",
        "the same clips as a share of every clip",
        _of(RIGHT_INCONSISTENT),
        _every,
        "(of all)",
    ),
    Rate(
        "inconsistent_among_correct_worst",
        "Worst case",
        "the headline if every failed judgement were inconsistent",
        _of(RIGHT_INCONSISTENT, RIGHT_FAILED),
        _of(*RIGHT_REASONED),
    ),
    Rate("war", "WAR", "accuracy over all clips; an unparseable response is wrong", _of(*RIGHT), _every, "WAR"),
    Rate("uar", "UAR", "mean of the per-class recalls", _of(*RIGHT), _every, "UAR", by_class=True),
    Rate(
        "eea",
        "EEA",
        "the judge reads the label from the reasoning",
        _of(RIGHT_CONSISTENT, WRONG_CONSISTENT),
        _of(*JUDGED),
    ),
    Rate("fcr", "FCR", "answer, label and judge agree", _of(RIGHT_CONSISTENT), _of(*JUDGED)),
    Rate(
        "epc", "EPC", "the judge reads the model's own answer", _of(RIGHT_CONSISTENT, WRONG_SAME), _of(*JUDGED), "EPC"
    ),
    Rate(
        "starts_with_dominant",
        "Starts with the dominant modality",
        "first segment of the reasoning",
        lambda codes: codes.start == 2,
        lambda codes: codes.start > 0,
        "dominant first",
    ),
)
NAMES = tuple(rate.name for rate in RATES)
# Counts of metrics.json and what they are called; a run has those that concern it.
COUNTS = (
    ("n", "Clips"),
    ("n_unparseable", "Unparseable responses"),
    ("n_judge_failed", "Failed judgements"),
    ("n_without_reasoning", "Answers without reasoning"),
    ("n_absent_evidence", "Reasonings with evidence from a modality that the clip lacks"),
    ("n_without_prediction", "Clips without a prediction"),  # of a truth table
    ("n_quarantined", "Quarantined clips"),  # of runs that generated
)
