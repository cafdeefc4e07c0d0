"""Rewards for GRPO. `REWARDS` names them; each is one file."""

from typing import Any

from migr.errors import InputError
from migr.judge import Judge
from migr.text.labels import LabelSet
from reward.accuracy import AccuracyReward
from reward.consistency import ConsistencyReward
from reward.format import format_reward
from reward.grounding import grounding_reward

REWARDS = ("format", "accuracy", "consistency", "grounding")


def make_rewards(names: list[str], labels: LabelSet, judge: Judge) -> list[Any]:
    """The reward functions of these names, in this order, in the form that TRL's GRPOTrainer takes.

    Raises:
        InputError: An unknown name.
    """
    made = {
        "format": format_reward,
        "accuracy": AccuracyReward(labels),
        "consistency": ConsistencyReward(labels, judge),
        "grounding": grounding_reward,
    }
    if unknown := [name for name in names if name not in made]:
        raise InputError(f"unknown reward {unknown[0]!r}; there are {', '.join(REWARDS)}")
    return [made[name] for name in names]
