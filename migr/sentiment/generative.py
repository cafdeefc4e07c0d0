"""EGMF's generative head (arXiv 2601.07565): the fused vector as pseudo tokens in a frozen language model's prompt.

    T = Repeat(Linear(f), n)          input = [prefix; T; transcript; suffix; task]          LoRA on the language model

Class names and scores are written by the same head. What the paper leaves open is ours: the transcript stands behind T
as in MSE-Adapter (or not: `transcript`), answers are closed by the end token, pseudo tokens begin at the size of the
model's own embeddings. Its rivals: "affine", MSE-Adapter's a_j W z + b_j, n scaled copies of one vector; "free", n
vectors. Prompts are padded on the left, with the true positions and masks, so that neither padding nor the other clips
of a batch change an answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from migr.importance.networks.attribution import coalitions, importance_of, shapley
from migr.importance.networks.reading import fusion_loss
from migr.sentiment.answers import AnswerTree, expectation
from migr.sentiment.encoders import SequenceFusion
from migr.sentiment.settings import FORMS

PSEUDO = -1  # stands for a pseudo token among prompt ids


class PseudoTokens(nn.Module):
    """A fused vector (n, hidden) as `count` embeddings (n, count, size) of about the root mean square `rms`."""

    def __init__(self, hidden: int, size: int, count: int, form: str, rms: float) -> None:
        super().__init__()
        assert form in FORMS, form
        self.count, self.form, self.rms = count, form, rms
        self.normalise = nn.LayerNorm(hidden)
        self.linear = nn.Linear(hidden, size * (count if form == "free" else 1))
        if form == "affine":
            self.slope = nn.Parameter(1 + 0.1 * torch.randn(count, 1))
            self.offset = nn.Parameter(torch.zeros(count, 1))

    def forward(self, fused: Tensor) -> Tensor:
        """(n, hidden) -> (n, count, size)."""
        tokens = self.linear(self.normalise(fused))
        if self.form == "free":
            tokens = tokens.view(len(fused), self.count, -1)
        else:
            tokens = tokens[:, None].expand(-1, self.count, -1)
        if self.form == "affine":
            tokens = self.slope * tokens + self.offset
        return tokens * self.rms


@dataclass(frozen=True)
class Prompts:
    """Token ids of n prompts, padded on the left; `PSEUDO` where pseudo tokens go."""

    ids: Tensor  # (n, L)
    mask: Tensor  # (n, L) bool

    @classmethod
    def pad(cls, rows: list[list[int]], length: int = 0) -> "Prompts":
        """Of rows of ids, to at least this length."""
        length = max(length, *map(len, rows))
        ids, mask = (
            torch.zeros((len(rows), length), dtype=torch.long),
            torch.zeros((len(rows), length), dtype=torch.bool),
        )
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = True
        return cls(ids, mask)


class PromptWriter:
    """Writes the prompt of a clip as token ids.

    Args:
        tokenizer: The language model's.
        prompt: What surrounds the clip (`sets.Prompt`).
        count: Pseudo tokens.
        transcript: Whether the transcript stands behind them.
        longest: Tokens of a transcript at most; further ones are cut.
    """

    def __init__(self, tokenizer: Any, prompt: Any, count: int, transcript: bool, longest: int = 256) -> None:
        begin = tokenizer(prompt.prefix).input_ids
        if begin and begin[-1] == tokenizer.eos_token_id:
            begin = begin[:-1]
        self.begin = [*begin, *[PSEUDO] * count]
        self.end = tokenizer(prompt.suffix + prompt.task, add_special_tokens=False).input_ids
        self.tokenizer, self.transcript, self.longest = tokenizer, transcript, longest

    def __call__(self, transcript: str) -> list[int]:
        """The prompt of a clip that says this."""
        own: list[int] = []
        if self.transcript and transcript:
            own = self.tokenizer(transcript, add_special_tokens=False).input_ids[: self.longest]
        return [*self.begin, *own, *self.end]


class Readout(NamedTuple):
    """What a head says about n clips."""

    prediction: Tensor  # (n,) score, or class number
    logits: Tensor  # (n, 1) the score, or (n, C)
    readings: dict[str, Tensor]  # further readings by name, each (n,); NaN, or -1 for classes, where unread
    fusion: Any  # the fusion network's output
    log_p: Tensor | None = None  # (n, A) of the answers


class AnswerModel(nn.Module):
    """A frozen causal language model that answers behind pseudo tokens.

    Args:
        lm: Of transformers, with a `model` and an `lm_head`, frozen but for its LoRA weights.
        pseudo: The projection.
        answers: All answers.
        score: Whether they are scores.
        median: Read scores as the median of the answers' distribution (which minimises MAE), else as the mean.
    """

    def __init__(self, lm: Any, pseudo: PseudoTokens, answers: AnswerTree, score: bool, median: bool = True) -> None:
        super().__init__()
        self.lm, self.pseudo, self.answers, self.score, self.median = lm, pseudo, answers, score, median

    def embed(self, ids: Tensor) -> Tensor:
        """The language model's embeddings of token ids."""
        embedded: Tensor = self.lm.get_input_embeddings()(ids)
        return embedded

    def prompt_embeddings(self, prompts: Prompts, pseudo: Tensor) -> Tensor:
        """(n, L, size): embeddings of the prompts, pseudo tokens (n, count, size) in their places."""
        slots = prompts.ids == PSEUDO
        embedded = self.embed(prompts.ids.masked_fill(slots, 0))
        return embedded.masked_scatter(slots[..., None], pseudo.to(embedded.dtype))

    def run(self, embedded: Tensor, mask: Tensor, positions: Tensor, keep: int, past: Any = None) -> tuple[Tensor, Any]:
        """Logits (n, keep, V) in float32 of the last `keep` places, and the key-value cache if `past` is not None."""
        if axes := getattr(self.lm, "position_axes", 0):
            positions = positions.expand(axes, *positions.shape)
        out = self.lm.model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past,
            use_cache=past is not None,
        )
        logits = self.lm.lm_head(out.last_hidden_state[:, -keep:])
        return logits.float(), out.past_key_values if past is not None else None

    def loss(self, prompts: Prompts, pseudo: Tensor, answer: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens and their end token, and of nothing else.

        Args:
            prompts: Of n clips.
            pseudo: (n, count, size)
            answer: (n,) positions among the answers.
        """
        targets = self.answers.targets.to(answer.device)[answer]
        known = (self.answers.steps >= 0).to(answer.device)[answer]
        embedded = torch.cat([self.prompt_embeddings(prompts, pseudo), self.embed(targets[:, :-1])], 1)
        # the last token of an answer is not fed; what is behind shorter answers is masked
        mask = torch.cat([prompts.mask, known[:, 1:]], 1)
        logits, _ = self.run(embedded, mask.long(), positions_of(mask), targets.shape[1])
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return (each * known).sum() / known.sum()

    def log_answers(self, prompts: Prompts, pseudo: Tensor) -> tuple[Tensor, Tensor]:
        """log p of all answers (n, A) in one pass, and the tree's next-token log-probabilities (n, K + 1, V).

        The nodes of the answer tree stand behind the prompt; each sees the prompt, its ancestors and itself.
        """
        tree, (n, length) = self.answers, prompts.ids.shape
        count = len(tree.tokens)
        nodes = self.embed(tree.tokens.to(prompts.ids.device))[None].expand(n, -1, -1)
        embedded = torch.cat([self.prompt_embeddings(prompts, pseudo), nodes], 1)
        attends = torch.zeros((n, length + count, length + count), dtype=torch.bool, device=embedded.device)
        attends[:, :length, :length] = torch.ones(length, length, dtype=torch.bool, device=embedded.device).tril()
        attends[:, length:, :length] = True
        attends[:, length:, length:] = tree.reach.to(embedded.device)
        attends[:, :, :length] &= prompts.mask[:, None]
        attends |= torch.eye(length + count, dtype=torch.bool, device=embedded.device)  # a pad sees itself, not nothing
        mask = torch.zeros(attends.shape, dtype=embedded.dtype, device=embedded.device)
        mask = mask.masked_fill(~attends, torch.finfo(embedded.dtype).min)[:, None]
        depths = prompts.mask.sum(1, keepdim=True) + tree.depths.to(embedded.device)
        positions = torch.cat([positions_of(prompts.mask), depths], 1)
        logits, _ = self.run(embedded, mask, positions, count + 1)
        log_p = logits.roll(-1, 1).log_softmax(-1)  # the prompt's last place comes first; it is node K
        return tree.log_probabilities(log_p), log_p

    @torch.no_grad()
    def greedy(self, prompts: Prompts, pseudo: Tensor) -> list[list[int]]:
        """Greedy decoding as published: each clip's tokens, free to be no answer; one more than the longest has."""
        from transformers import DynamicCache

        embedded, mask = self.prompt_embeddings(prompts, pseudo), prompts.mask
        past: Any = DynamicCache(config=self.lm.config)
        positions, rows = positions_of(mask), []
        for _ in range(self.answers.steps.shape[1] + 1):
            logits, past = self.run(embedded, mask.long(), positions, 1, past)
            token = logits[:, -1].argmax(-1)
            rows.append(token)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            positions = positions[:, -1:] + 1
            embedded = self.embed(token[:, None])
        return torch.stack(rows, 1).tolist()

    def nearest(self, target: Tensor) -> Tensor:
        """The answer closest to each target, (n,) positions."""
        return (self.answers.values.to(target.device) - target[:, None]).abs().argmin(1)

    def logits(self, log_answers: Tensor) -> Tensor:
        """What log p of all answers (n, A) says: the score (n, 1), or log-probabilities (n, C)."""
        if not self.score:
            return log_answers.log_softmax(1)
        mean, median = expectation(log_answers, self.answers.values)
        return (median if self.median else mean)[:, None]

    def read(self, prompts: Prompts, pseudo: Tensor, fusion: Any, every: bool = True) -> Readout:
        """All readings of n clips: expected, constrained and, with `every`, greedy."""
        log_answers, log_p = self.log_answers(prompts, pseudo)
        values = self.answers.values.to(log_p.device)
        readings = {}
        if every:
            choices = [self.answers.read(row) for row in self.greedy(prompts, pseudo)]
            unread = torch.nan if self.score else -1.0
            readings["greedy"] = torch.tensor([float(self.answers.values[i]) if i >= 0 else unread for i in choices])
            readings["constrained"] = values[self.answers.constrained(log_p)]
        logits = self.logits(log_answers)
        prediction = logits[:, 0] if self.score else logits.argmax(1).float()
        return Readout(prediction, logits, readings, fusion, log_answers)


class GenerativeSentiment(AnswerModel):
    """Fusion network of frame sequences, pseudo tokens, language model.

    Args:
        lm, pseudo, answers, score, median: As of `AnswerModel`.
        fusion: Encoders and fusion network.
        transcript: Whether prompts have it.
        auxiliary_weight: Of the fusion network's own loss beside the language model's; the paper has none.
    """

    def __init__(
        self,
        lm: Any,
        fusion: SequenceFusion,
        pseudo: PseudoTokens,
        answers: AnswerTree,
        score: bool,
        median: bool = True,
        transcript: bool = True,
        auxiliary_weight: float = 0.0,
    ) -> None:
        super().__init__(lm, pseudo, answers, score, median)
        self.fusion, self.auxiliary_weight = fusion, auxiliary_weight
        self.players = fusion.modalities  # whose importance is asked for; "text" stands for the transcript too
        if "text" not in self.players and transcript:
            self.players = ("text", *self.players)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """A batch of `training.Collator`: the loss; outside of training also the predictions."""
        out, pseudo = self.tokens_of(batch, None)
        prompts = Prompts(batch["prompt_ids"], batch["prompt_mask"])
        answer = self.nearest(batch["target"])
        extra = torch.zeros((), device=pseudo.device)
        if self.auxiliary_weight:
            extra = self.auxiliary_weight * fusion_loss(out, batch["target"], 1.0, batch.get("own"))
        if self.training:
            return {"loss": self.loss(prompts, pseudo, answer) + extra}
        readout = self.read(prompts, pseudo, out, every=False)
        assert readout.log_p is not None
        loss = -readout.log_p.gather(1, answer[:, None]).mean()
        return {"loss": loss + extra, "predictions": readout.prediction}

    def predict(self, batch: Mapping[str, Any], every: bool = True) -> Readout:
        """All readings of a batch."""
        out, pseudo = self.tokens_of(batch, None)
        return self.read(Prompts(batch["prompt_ids"], batch["prompt_mask"]), pseudo, out, every)

    def present(self, batch: Mapping[str, Any]) -> Tensor:
        """(n, P) bool: which of `players` each clip has."""
        visible = self.fusion.visible(batch["lengths"])
        if self.players == self.fusion.modalities:
            return visible
        return torch.cat([(batch["prompt_ids"] != batch["bare_ids"]).any(1, keepdim=True), visible], 1)

    def logits_of(self, batch: Mapping[str, Any], visible: Tensor, shuffle: Tensor | None = None) -> Tensor:
        """The score (n, 1) or log-probabilities (n, C) where only these `players` (n, P) bool are shown.

        Args:
            batch: Of `training.Collator`.
            visible: Where "text" is hidden, so is the transcript.
            shuffle: (n,) permutation: every clip gets another one's pseudo tokens.
        """
        own = visible[:, len(self.players) - len(self.fusion.modalities) :]
        out, pseudo = self.tokens_of(batch, own)
        # fused from nothing: no pseudo tokens that say something
        pseudo = torch.where(own.any(1)[:, None, None], pseudo, 0.0)
        pseudo = pseudo if shuffle is None else pseudo[shuffle]
        spoken = visible[:, self.players.index("text"), None] if "text" in self.players else torch.ones_like(own[:, :1])
        ids = torch.where(spoken, batch["prompt_ids"], batch["bare_ids"])
        mask = torch.where(spoken, batch["prompt_mask"], batch["bare_mask"])
        return self.read(Prompts(ids, mask), pseudo, out, every=False).logits

    def attribute(self, batch: Mapping[str, Any], target: Tensor) -> tuple[Tensor, Tensor]:
        """Importance and contributions of `players` for the target, each (n, P): Shapley values, 2^P - 1 passes."""
        present = self.present(batch)
        values = coalitions(lambda visible: self.logits_of(batch, visible), present, target)
        contributions = shapley(values, present)
        equal = present / present.sum(1, keepdim=True)
        return importance_of(contributions, equal, present), contributions

    def tokens_of(self, batch: Mapping[str, Any], present: Tensor | None) -> tuple[Any, Tensor]:
        """The fusion network's output and the pseudo tokens of a batch."""
        out = self.fusion(batch["frames"], batch["lengths"], present)
        return out, self.pseudo(out.fused)


def positions_of(mask: Tensor) -> Tensor:
    """Positions (n, L) of the tokens of left-padded rows: the first real one is 0."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)
