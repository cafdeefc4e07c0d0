"""Consistency: the judge reads the model's own answer from the reasoning alone."""

import time
from collections.abc import Collection
from typing import Any

from migr.errors import InputError
from migr.judge import NO_REPLY, Judge, blind_labels
from migr.text.labels import LabelSet
from reward.score import score, text_of


def refuse_blind_judge(judge: Judge, used: Collection[str], allowed: bool) -> None:
    """Refuse a judge that cannot name labels which the clips have: consistency would be None or wrong for them.

    Args:
        judge: The reward's judge.
        used: The labels of the clips.
        allowed: Only say so.

    Raises:
        InputError: There are such labels, and it is not allowed.
    """
    if not (blind := [label for label in blind_labels(judge) if label in used]):
        return
    fault = f"judge {judge.name} cannot name {', '.join(blind)}: consistency says nothing about clips with these labels"
    if not allowed:
        raise InputError(f"{fault}; take another judge (docs/rewards.md), or say --allow_blind_judge true")
    print(f"note: {fault}")


def require_reply(judge: Judge) -> None:
    """Ask a judge, past its cache, about one sentence: one that is not there is found out before the clips are read.

    Raises:
        InputError: It cannot be loaded, or does not reply.
    """
    while hasattr(judge, "inner"):
        judge = judge.inner
    (judgement,) = judge.judge(["The corners of her mouth go up, and she laughs."])
    if judgement.status.startswith(NO_REPLY):
        raise InputError(f"judge {judge.name}: {judgement.status}")


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
        pairs = [(one.judgement, truth) for one, truth in zip(scores, label, strict=True) if one.judgement is not None]
        judged = [judgement.emotion != truth for judgement, truth in pairs if judgement.emotion is not None]
        if log_metric is not None:
            log_metric("judge_seconds", seconds)
            if pairs:
                log_metric("judge_failed", 1 - len(judged) / len(pairs))
            if judged:
                log_metric("inconsistent_among_correct", sum(judged) / len(judged))
        return [one.consistency for one in scores]
