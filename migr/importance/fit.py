"""Fit a fusion network, and score every clip with a network that did not learn from it.

A unimodal head that has seen a clip is sure of it, whatever the clip shows: its entropy then says nothing about the
modality. So train clips are scored in K folds, and the others by a network fitted on all train clips. Nothing here
knows which modality is dominant; the networks learn from the labels alone. Labels are emotions (int64, -1 where
unknown) or sentiment scores (float32, NaN where unknown).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor

from migr.errors import InputError
from migr.importance.networks.attribution import importance_of
from migr.importance.networks.interface import FusionNet, FusionOutput
from migr.importance.networks.reading import fusion_loss, log_likelihood
from migr.importance.networks.vat import adversarial_loss
from migr.importance.store import build, fingerprint
from migr.importance.table import Features, check_folds, check_labels, check_present, is_score, known

Head = Callable[[FusionNet], Any]  # what is behind: a `FusionNet` too


@dataclass(frozen=True)
class FitConfig:
    """How a network is fitted: AdamW, one learning-rate cycle over a fixed number of epochs.

    Attributes:
        epochs, batch_size: As usual.
        learning_rate: The peak of the cycle.
        weight_decay: Large, because there are more weights than clips. Of the values tried on validation clips of the
            planted benchmark, 1 to 3 did equally well.
        unimodal_weight: λ of `fusion_loss`.
        modality_dropout: How often one modality of a training clip that has several is left out, so that each one
            learns to speak for itself and clips without it are no surprise.
        adversarial_weight: Weight of the virtual adversarial loss (`vat.py`); 0 leaves it out.
        adversarial_radius: Its radius, in standard deviations of a feature.
        seed: Draws weights, batches, dropout and folds.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 2.0
    unimodal_weight: float = 1.0
    modality_dropout: float = 0.2
    adversarial_weight: float = 0.0
    adversarial_radius: float = 0.1
    seed: int = 0


class Scores(NamedTuple):
    """What a network says about n clips; the M axis follows `Features.values`."""

    target: Tensor  # (n,) emotion or score that importance is about: the label, or the prediction where there is none
    importance: Tensor  # (n, M)
    contributions: Tensor  # (n, M) signed, in logits (or points of the score)
    drop: Tensor  # (n, M) `support` lost when m is left out; NaN where m is absent or the only one
    gate: Tensor  # (n, M) combined gate, or what stands in for it
    logits: Tensor  # (n, C)
    unimodal: Tensor  # (n, M, C) logits; (n, M, 2) for scores
    fused: Tensor  # (n, hidden) the fused vector
    present: Tensor  # (n, M) bool
    parts: dict[str, Tensor]  # the network's own weights by name, (n, M) over modalities or (n, K) over experts

    def take(self, index: Tensor) -> "Scores":
        """The clips at these positions."""
        return Scores._make([*(x[index] for x in self[:-1]), {name: x[index] for name, x in self.parts.items()}])

    @property
    def prediction(self) -> Tensor:
        """(n,) predicted emotion (int64) or score (float32)."""
        return predicted(self.logits)


class CrossScores(NamedTuple):
    """Scores of all clips, and who gave them."""

    scores: Scores
    fold: Tensor  # (n,) fold that a train clip was left out in; -1: scored by `net`
    models: tuple[str, ...]  # n fingerprints of the scoring networks
    net: FusionNet  # fitted on all train clips


def predicted(logits: Tensor) -> Tensor:
    """Emotion (n,) int64 from logits (n, C), or score (n,) float32 from (n, 1)."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)


def support(logits: Tensor, target: Tensor) -> Tensor:
    """How well an output fits the target, (n,): log p(emotion), or −|score − target|."""
    if is_score(target):
        return -(logits[:, 0] - target).abs()
    return logits.log_softmax(1).gather(1, target[:, None])[:, 0]


def fit(
    features: Features,
    target: Tensor,
    n_classes: int,
    config: FitConfig,
    fusion: str = "dual-gate",
    head: Head | None = None,
    **shape: Any,
) -> FusionNet:
    """Fit one network; deterministic on one machine.

    Args:
        features: Training clips.
        target: (n,) class indices, or scores.
        n_classes: Number of emotions in the label set; 1 for scores.
        config: How.
        fusion: Kind of network, a key of `store.NETWORKS`.
        head: Puts a head of its own behind the network.
        shape: Other fields of its configuration (`hidden`, `tau`, ...).

    Raises:
        InputError: A clip is unusable, or all have the same label.
    """
    features.check()
    check_present(tuple(features.values), features.clip_ids, features.present, torch.arange(len(target)))
    assert len(target) == len(features.clip_ids) and is_score(target) == (n_classes == 1)
    if len(target.unique()) < 2:
        raise InputError("all training clips have the same label: there is nothing to tell apart")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = build(fusion, dims={m: x.shape[1] for m, x in features.values.items()}, n_classes=n_classes, **shape)
        net = net if head is None else head(net)
        net.reading.set_statistics(features.values, features.present)
        steps = config.epochs * math.ceil(len(target) / config.batch_size)
        spared = {id(weight) for weight in net.undecayed}
        groups: list[dict[str, Any]] = [{"params": [w for w in net.parameters() if id(w) not in spared]}]
        if spared:
            groups.append({"params": net.undecayed, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
        for _ in range(config.epochs):
            for index in torch.randperm(len(target)).split(config.batch_size):
                batch = features.take(index)
                present = drop_modalities(batch.present, config.modality_dropout)
                loss = fusion_loss(net(batch.values, present), target[index], config.unimodal_weight)
                if config.adversarial_weight:
                    extra = adversarial_loss(net, batch.values, present, config.adversarial_radius)
                    loss = loss + config.adversarial_weight * extra
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    net.eval()
    return net


def drop_modalities(present: Tensor, rate: float) -> Tensor:
    """Hide one random modality of each clip at this rate; never the last one. `present` and result: (n, M) bool."""
    noise = torch.rand(present.shape).masked_fill(~present, -1.0)
    hidden = torch.nn.functional.one_hot(noise.argmax(1), present.shape[1]).bool()
    hidden &= ((torch.rand(len(present)) < rate) & (present.sum(1) > 1))[:, None]
    return present & ~hidden


@torch.inference_mode()
def score(net: FusionNet, features: Features, label: Tensor, batch_size: int = 512) -> Scores:
    """Score clips in batches; time and memory are linear in them.

    Args:
        net: A fitted network.
        features: Any clips with its modalities.
        label: (n,) class indices, -1 where unknown, or scores, NaN where unknown (importance is then about the
            predicted emotion or score).
        batch_size: Clips at a time.
    """
    features.check()
    parts = []
    for index in torch.arange(len(label)).split(batch_size):
        batch = features.take(index)
        out = net(batch.values, batch.present)
        target = torch.where(known(label[index]), label[index], predicted(out.logits))
        contributions = net.attribute(out, target)
        parts.append(
            Scores(
                target=target,
                importance=importance_of(contributions, out.gate, out.present),
                contributions=contributions,
                drop=leave_one_out(net, out, target),
                gate=out.gate,
                logits=out.logits,
                unimodal=out.unimodal,
                fused=out.fused,
                present=out.present,
                parts=out.parts(),
            )
        )
    return joined(parts)


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of several sets of clips, one behind the other."""
    columns = [torch.cat(column) for column in zip(*(part[:-1] for part in parts), strict=True)]
    return Scores._make([*columns, {name: torch.cat([part.parts[name] for part in parts]) for name in parts[0].parts}])


def leave_one_out(net: FusionNet, out: FusionOutput, target: Tensor) -> Tensor:
    """What each modality's absence costs: support from all − support without m, (n, M); NaN as in `Scores.drop`."""
    columns = []
    for m in range(out.present.shape[1]):
        rest = out.present.clone()
        rest[:, m] = False
        matters = out.present[:, m] & rest.any(1)
        visible = torch.where(matters[:, None], rest, out.present)
        without = net.fuse(out.tokens, out.unimodal, visible).logits
        columns.append(torch.where(matters, support(out.logits, target) - support(without, target), torch.nan))
    return torch.stack(columns, 1)


def cross_score(
    features: Features,
    label: Tensor,
    train: Tensor,
    labels: Sequence[str],
    config: FitConfig,
    folds: int = 5,
    progress: Callable[[range], Any] = lambda x: x,
    fusion: str = "dual-gate",
    head: Head | None = None,
    **shape: Any,
) -> CrossScores:
    """Score every clip with a network that was not fitted on it.

    Args:
        features: All clips.
        label: (n,) class indices, -1 where unknown; or scores, NaN where unknown.
        train: (n,) bool, clips to learn from; those without a label are only scored.
        labels: Names of the classes; for scores one name, which is not used.
        config: How to fit.
        folds: Into how many parts the train clips are split, stratified by emotion.
        progress: Wraps the loop over the `folds` + 1 fits, e.g. in a progress bar.
        fusion: Kind of network.
        head: Puts a head of its own behind each.
        shape: Other fields of its configuration.

    Raises:
        InputError: Too few train clips or classes, a modality that some fold cannot learn, or an unusable clip.
    """
    features.check()
    learn = (train & known(label)).nonzero().flatten()
    check_labels(label, learn, labels, folds)
    check_present(tuple(features.values), features.clip_ids, features.present, learn)
    fold = torch.full(label.shape, -1)
    split = KFold if is_score(label) else StratifiedKFold
    splitter = split(folds, shuffle=True, random_state=config.seed)
    for k, (_, validation) in enumerate(splitter.split(learn, label[learn])):
        fold[learn[torch.from_numpy(validation)]] = k
    check_folds(tuple(features.values), features.present, fold, learn, folds)

    places: list[Tensor] = []
    parts: list[Scores] = []
    models = [""] * len(label)
    for k in progress(range(folds + 1)):  # the last fit is on all train clips
        part = learn[fold[learn] != k]
        classes = 1 if is_score(label) else len(labels)
        net = fit(features.take(part), label[part], classes, config, fusion, head, **shape)
        validation = (fold == (k if k < folds else -1)).nonzero().flatten()
        if not len(validation):
            continue
        places.append(validation)
        parts.append(score(net, features.take(validation), label[validation]))
        name = fingerprint(net)
        for i in validation.tolist():
            models[i] = name
    return CrossScores(joined(parts).take(torch.cat(places).argsort()), fold, tuple(models), net)


def alternatives(scores: Scores) -> dict[str, Tensor]:
    """The dominant modality by the attribution and by simpler means, each (n,) positions on the M axis.

    `unimodal_confidence` is the head with the highest probability of the target; `entropy_gate` picks the head of the
    lowest entropy.
    """
    confidence = log_likelihood(scores.unimodal, scores.target).masked_fill(~scores.present, -torch.inf)
    ways = {"attribution": scores.importance}
    if "gate" in scores.parts:
        ways["gate"] = scores.gate
    ways |= {name: scores.parts[name] for name in ("entropy_gate", "importance_gate") if name in scores.parts}
    ways["unimodal_confidence"] = confidence
    return {name: weight.argmax(1) for name, weight in ways.items()}
