"""Accuracy: the answer is the label."""

from typing import Any

from migr.text.format import parse
from migr.text.labels import LabelSet
from reward.score import is_correct, text_of


class AccuracyReward:
    """1 where the only answer names the label or a synonym of it, else 0; 0 also for an answer among the thoughts.

    >>> from migr.text.labels import label_set
    >>> reward = AccuracyReward(label_set("dfew"))
    >>> texts = ["<think>He smiles.</think><answer>joy</answer>", "<think><answer>happy</answer></think>"]
    >>> reward(texts, label=["happy", "happy"])
    [1.0, 0.0]
    """

    __name__ = "accuracy"

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels

    def __call__(self, completions: list[Any], label: list[str], **_: Any) -> list[float | None]:
        """(n,) numbers in {0, 1} for (n,) completions; `label` is the data set's column."""
        responses = (parse(text_of(completion)) for completion in completions)
        return [float(is_correct(*pair, self.labels)) for pair in zip(responses, label, strict=True)]
