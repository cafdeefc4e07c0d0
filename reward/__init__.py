r"""Rewards for GRPO; each is one file, and one line in `REWARDS`.

The total reward of a response, with the recipes' weights, is

    R = 0.25 format + accuracy + consistency + 0.25 grounding          (each in [0, 1]; None counts as nothing)

    format       1 if the response is exactly <think>…</think><answer>…</answer>, else 0
    accuracy     A = 1 if the answer is the label, else 0; an answer among the thoughts is none
    consistency  A x E x P_judge(answer | reasoning); E = 1 if the reasoning is statements about what the clip has
    grounding    1/2 [it starts with the dominant modality] + 1/2 (share of what the segments say of their own modality)

One more is optional, and in none of the recipes:

    evidence     mean over the segments' tokens of max(0, 1 - p(token | blanked clip) / p(token | clip))

docs/rewards.md has the formulas, what None means, what each exploit earns, and how to add a reward.
"""

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from migr.errors import InputError
from migr.judge import Judge
from migr.text.labels import LabelSet
from reward.accuracy import AccuracyReward
from reward.consistency import ConsistencyReward
from reward.evidence import EvidenceReward
from reward.format import format_reward
from reward.grounding import grounding_reward


class Reward(Protocol):
    """What TRL's GRPOTrainer calls on each batch of sampled responses."""

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        """Score (n,) completions.

        Args:
            completions: Responses, each a string or a list of messages (`reward.score.text_of` takes both).
            **columns: The data set's columns, (n,) each: `clip_id`, `label`, `importance`, `modalities`; and TRL's
                `log_metric(name, value)`, among others.

        Returns:
            (n,) numbers in [0, 1], or None where a response cannot be judged.
        """
        ...


# Name -> a function, or a class that is made with those of `labels`, `judge` and its parameters that it asks for.
REWARDS: dict[str, Any] = {
    "format": format_reward,
    "accuracy": AccuracyReward,
    "consistency": ConsistencyReward,
    "grounding": grounding_reward,
    "evidence": EvidenceReward,
}


def read_parameters(value: Any) -> dict[str, dict[str, Any]]:
    """`reward_parameters` as YAML or the command line (JSON) give them: name -> parameter -> value.

    Raises:
        InputError: They are something else.
    """
    try:
        table = json.loads(value) if isinstance(value, str) else value or {}
    except ValueError:
        table = None
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise InputError(f"reward_parameters: expected {{reward: {{parameter: value}}}}, not {value!r}")
    return table


def make_rewards(
    names: Sequence[str], labels: LabelSet, judge: Judge, parameters: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Reward]:
    """The rewards of these names, in this order, in the form that TRL's GRPOTrainer takes.

    Args:
        names: Of `REWARDS`, or dotted paths of one's own (`my_lib.rewards.brevity`): a function with the arguments of
            `Reward`, or a class whose instances have them.
        labels: The label set, for classes whose constructor has an argument `labels`.
        judge: The judge, likewise.
        parameters: Name -> further arguments of the constructor, or of the function.

    Raises:
        InputError: An unknown name, a module that cannot be imported, parameters that do not fit.
    """
    parameters = parameters or {}
    if unused := sorted(set(parameters) - set(names)):
        raise InputError(f"reward_parameters: {unused[0]!r} is none of the rewards {', '.join(names)}")
    return [_make(name, {"labels": labels, "judge": judge}, dict(parameters.get(name) or {})) for name in names]


def _make(name: str, offered: dict[str, Any], parameters: dict[str, Any]) -> Reward:
    target: Any = REWARDS[name] if name in REWARDS else _imported(name)
    known = inspect.signature(target).parameters
    if unknown := sorted(set(parameters) - set(known)):
        raise InputError(f"reward_parameters: {name} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    if not isinstance(target, type):
        return partial(target, **parameters) if parameters else target
    make: Any = target
    try:
        reward: Reward = make(**{key: value for key, value in offered.items() if key in known}, **parameters)
    except TypeError as error:
        raise InputError(f"reward {name}: {error}; its parameters stand under reward_parameters") from None
    return reward


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise InputError(f"unknown reward {name!r}; there are {', '.join(REWARDS)}, or a dotted path of your own")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"reward {name!r}: {error} (is its folder on PYTHONPATH, or installed?)") from None
    if not callable(target):
        raise InputError(f"reward {name!r} is no function and no class")
    return target
