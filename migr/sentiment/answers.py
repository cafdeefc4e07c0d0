"""The answers that a language model may give: class names or a signed score grid, as one tree of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from migr.errors import InputError
from migr.sentiment.sets import SentimentSet


def answer_texts(dataset: SentimentSet, step: float = 0.1) -> tuple[list[str], list[float]]:
    """The texts of all answers, and what each means: a score, or the number of a class.

    Scores have a sign each (+0.0 too), so that all are equally long, and as many decimals as the step needs.
    """
    if not dataset.is_score:
        return list(dataset.labels), [float(i) for i in range(len(dataset.labels))]
    count = round(dataset.bound / step)
    if step <= 0 or abs(count * step - dataset.bound) > 1e-6:
        raise InputError(f"--grid {step:g}: the bound {dataset.bound:g} of {dataset.name} is no multiple of it")
    decimals = 1 if round(step * 10) == step * 10 else 2
    values = [round(i * step, 6) + 0.0 for i in range(-count, count + 1)]
    return [f"{value:+.{decimals}f}" for value in values], values


@dataclass(frozen=True)
class AnswerTree:
    """All answers as a tree of tokens, each closed by the end token.

    Attributes:
        texts: A answers.
        values: (A,) their scores or class numbers.
        ids: Token ids of each, the end token among them.
        tokens: (K,) token of each node; the end tokens are no nodes of their own.
        parents: (K,) node before it, -1 for the prompt.
        depths: (K,) tokens before it in its answer.
        reach: (K, K) bool, which nodes a node sees: its ancestors and itself.
        steps: (A, D) node whose output predicts each token of an answer, K for the prompt's; -1 behind the answer.
        targets: (A, D) those tokens.
        end: The end token.
    """

    texts: tuple[str, ...]
    values: Tensor
    ids: tuple[tuple[int, ...], ...]
    tokens: Tensor
    parents: Tensor
    depths: Tensor
    reach: Tensor
    steps: Tensor
    targets: Tensor
    end: int

    @classmethod
    def build(cls, texts: Sequence[str], values: Sequence[float], tokenizer: Any) -> "AnswerTree":
        """Of these answers, as this tokenizer writes them.

        Raises:
            InputError: The tokenizer has no end token, or two answers are the same tokens.
        """
        end = tokenizer.eos_token_id
        if end is None:
            raise InputError("the model's tokenizer has no end token (eos_token)")
        ids = [(*tokenizer(text, add_special_tokens=False).input_ids, end) for text in texts]
        if len(set(ids)) < len(ids) or any(len(row) < 2 for row in ids):
            raise InputError("the model's tokenizer cannot tell the answers apart: two of them are the same tokens")
        nodes: dict[tuple[int, ...], int] = {}
        for row in ids:
            for depth in range(1, len(row)):
                nodes.setdefault(row[:depth], len(nodes))
        count, longest = len(nodes), max(map(len, ids))
        parents = torch.tensor([nodes.get(path[:-1], -1) for path in nodes])
        reach = torch.eye(count, dtype=torch.bool)
        for i, parent in enumerate(parents.tolist()):  # a parent stands before its children
            if parent >= 0:
                reach[i] |= reach[parent]
        steps = torch.full((len(ids), longest), -1)
        targets = torch.zeros((len(ids), longest), dtype=torch.long)
        for a, row in enumerate(ids):
            for depth, token in enumerate(row):
                steps[a, depth] = nodes[row[:depth]] if depth else count
                targets[a, depth] = token
        return cls(
            texts=tuple(texts),
            values=torch.tensor(values),
            ids=tuple(ids),
            tokens=torch.tensor([path[-1] for path in nodes]),
            parents=parents,
            depths=torch.tensor([len(path) - 1 for path in nodes]),
            reach=reach,
            steps=steps,
            targets=targets,
            end=end,
        )

    def log_probabilities(self, log_p: Tensor) -> Tensor:
        """log p of every answer (n, A), from the next token's at every node and, last, the prompt, (n, K + 1, V)."""
        steps, targets = self.steps.to(log_p.device), self.targets.to(log_p.device)
        each = log_p[:, steps.clamp_min(0), targets]  # (n, A, D)
        return torch.where(steps >= 0, each, 0.0).sum(-1)

    def constrained(self, log_p: Tensor) -> Tensor:
        """The answer that greedy decoding gives where only answers may be written, (n,) positions."""
        steps, targets = self.steps.to(log_p.device), self.targets.to(log_p.device)
        each = log_p[:, steps.clamp_min(0), targets]
        open_ = torch.ones(each.shape[:2], dtype=torch.bool, device=log_p.device)
        for depth in range(each.shape[2]):
            # among the answers that began alike, those whose next token is the likeliest go on
            here = torch.where(open_ & (steps[:, depth] >= 0), each[:, :, depth], -torch.inf)
            best = here.argmax(1)
            token = targets[best, depth]
            going = here.isfinite().any(1)
            open_ &= ~going[:, None] | ((targets[:, depth] == token[:, None]) & (steps[:, depth] >= 0))
        return open_.float().argmax(1)

    def read(self, ids: Sequence[int]) -> int:
        """Which answer these generated tokens are, up to the first end token; -1 where they are none."""
        row = tuple(ids)
        row = row[: row.index(self.end) + 1] if self.end in row else row
        return self.ids.index(row) if row in self.ids else -1


def expectation(log_p: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and median (n,) of scores under the answers' probabilities (n, A), which are made to sum to 1."""
    p = log_p.double().softmax(1)
    values = values.to(p)
    order = values.argsort()
    median = (p[:, order].cumsum(1) < 0.5).sum(1).clamp_max(len(values) - 1)
    return (p @ values).float(), values[order][median].float()
