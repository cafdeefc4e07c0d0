"""Consistency: the judge reads the model's own answer from the reasoning alone."""

import time
from typing import Any

from migr.judge import Judge
from migr.text.labels import LabelSet
from reward.score import score, text_of


class ConsistencyReward:
    """Accuracy x admissibility x the judge's probability, from the reasoning alone, of the model's own answer.

    Times accuracy, so that being consistently wrong does not pay; times admissibility (0 or 1), so that a cue word, one
    sentence over and over, or evidence from a modality that the clip lacks does not. All of it is ours. None where the
    judge failed on a correct, admissible response. Logs `inconsistent_among_correct` (the headline, on the sampled
    reasoning), `judge_failed` (a share of what it was asked) and `judge_seconds`.

    >>> from migr.judge import LexiconJudge
    >>> from migr.text.labels import label_set
    >>> labels = label_set("dfew")
    >>> reward = ConsistencyReward(labels, LexiconJudge(labels))
    >>> reward(["<think><video>A broad smile lights up.</video></think><answer>happy</answer>"], ["happy"])
    [1.0]
    """

    __name__ = "consistency"

    def __init__(self, labels: LabelSet, judge: Judge) -> None:
        self.labels, self.judge = labels, judge

    def __call__(
        self,
        completions: list[Any],
        label: list[str],
        modalities: list[list[str]] | None = None,
        log_metric: Any = None,
        **_: Any,
    ) -> list[float | None]:
        """(n,) numbers in [0, 1] or None for (n,) completions.

        Args:
            completions: Responses as strings or as TRL's message lists.
            label: The data set's column: canonical labels.
            modalities: The data set's column: what each clip has; without it, every modality may be spoken of.
            log_metric: TRL's callback.
        """
        start = time.perf_counter()
        scores = score([text_of(c) for c in completions], label, self.labels, self.judge, modalities)
        seconds = time.perf_counter() - start
        asked = [(one.judgement, truth) for one, truth in zip(scores, label, strict=True) if one.judgement is not None]
        judged = [judgement.emotion != truth for judgement, truth in asked if judgement.emotion is not None]
        if log_metric is not None:
            log_metric("judge_seconds", seconds)
            if asked:
                log_metric("judge_failed", 1 - len(judged) / len(asked))
            if judged:
                log_metric("inconsistent_among_correct", sum(judged) / len(judged))
        return [one.consistency for one in scores]
