"""Consistency: the judge reads the model's own answer from the reasoning alone."""

from typing import Any

from migr.judge import Judge
from migr.text.labels import LabelSet
from reward.format import text_of
from reward.score import read


class ConsistencyReward:
    """The judge's probability, from the reasoning alone, of the model's own answer, times accuracy.

    Times accuracy, so that being consistently wrong does not pay (ours). None where the judge failed on a correct
    answer. Also logs how often correct answers are inconsistent: the headline metric, on the sampled reasoning.
    """

    __name__ = "consistency"

    def __init__(self, labels: LabelSet, judge: Judge) -> None:
        self.labels, self.judge = labels, judge

    def __call__(
        self, completions: list[Any], label: list[str], log_metric: Any = None, **_: Any
    ) -> list[float | None]:
        """One number a completion; `label` is the data set's column, `log_metric` TRL's callback."""
        pairs = zip(completions, label, strict=True)
        scores = [read(text_of(completion), truth, self.labels, self.judge) for completion, truth in pairs]
        judged = [score.judged != score.answer for score in scores if score.correct and score.judged is not None]
        if log_metric is not None and judged:
            log_metric("inconsistent_among_correct", sum(judged) / len(judged))
        return [score.consistency if score.correct else 0.0 for score in scores]
