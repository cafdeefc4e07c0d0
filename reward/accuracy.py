"""Accuracy: the answer is the label."""

from typing import Any

from migr.text.format import parse
from migr.text.labels import LabelSet
from reward.format import text_of
from reward.score import LONGEST


class AccuracyReward:
    """1 where the only answer names the label or a synonym of it, else 0. A class, so that it can be pickled."""

    __name__ = "accuracy"

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels

    def __call__(self, completions: list[Any], label: list[str], **_: Any) -> list[float | None]:
        """One number a completion; `label` is the data set's column."""
        answers = [parse(text_of(completion)[:LONGEST]).answer for completion in completions]
        return [
            float(answer is not None and self.labels.canonical(answer) == truth)
            for answer, truth in zip(answers, label, strict=True)
        ]
