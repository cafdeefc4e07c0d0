"""Fit the fusion network, and score every clip with a network that did not learn from it.

A unimodal head that has seen a clip is sure of it, whatever the clip shows: its entropy then says nothing about the
modality. So train clips are scored in K folds, and the others by a network fitted on all train clips. Nothing here
knows which modality is dominant; the networks learn from the emotion labels alone.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from migr.errors import InputError
from migr.importance.fusion import DualGateFusion, FusionConfig, fusion_loss
from migr.records import digest, read_json, write_json


@dataclass(frozen=True)
class Features:
    """Pooled features of n clips.

    Attributes:
        clip_ids: n names, for messages.
        values: Modality -> (n, dim) float32; rows of absent modalities hold anything, usually 0.
        present: (n, M) bool in the order of `values`.
    """

    clip_ids: tuple[str, ...]
    values: dict[str, Tensor]
    present: Tensor

    def take(self, index: Tensor) -> "Features":
        """The clips at these positions."""
        names = tuple(self.clip_ids[i] for i in index.tolist())
        return Features(names, {name: rows[index] for name, rows in self.values.items()}, self.present[index])

    def check(self) -> None:
        """Raise InputError for the first clip without a modality, or with a feature that is NaN or infinite."""
        check_present(tuple(self.values), self.clip_ids, self.present)
        for m, (name, rows) in enumerate(self.values.items()):
            bad = self.present[:, m] & ~rows.isfinite().all(1)
            for i in bad.nonzero().flatten().tolist():
                raise InputError(f"clip {self.clip_ids[i]!r}: its {name} features are not finite; check file and model")


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
        seed: Draws weights, batches, dropout and folds.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 2.0
    unimodal_weight: float = 1.0
    modality_dropout: float = 0.2
    seed: int = 0


class Scores(NamedTuple):
    """What a network says about n clips; the M axis follows `Features.values`."""

    target: Tensor  # (n,) the emotion that importance is about: the label, or the prediction where there is none
    importance: Tensor  # (n, M)
    contributions: Tensor  # (n, M) c, in logits
    entropy_gate: Tensor  # (n, M)
    importance_gate: Tensor  # (n, M)
    gate: Tensor  # (n, M)
    logits: Tensor  # (n, C)
    unimodal: Tensor  # (n, M, C) logits
    present: Tensor  # (n, M) bool


class CrossScores(NamedTuple):
    """Scores of all clips, and who gave them."""

    scores: Scores
    fold: Tensor  # (n,) fold that a train clip was left out in; -1: scored by `net`
    models: tuple[str, ...]  # n fingerprints of the scoring networks
    net: DualGateFusion  # fitted on all train clips


def fit(features: Features, target: Tensor, n_classes: int, config: FitConfig, **shape: Any) -> DualGateFusion:
    """Fit one network; deterministic on one machine.

    Args:
        features: Training clips.
        target: (n,) class indices.
        n_classes: Number of emotions in the label set.
        config: How.
        shape: Other fields of `FusionConfig` (`hidden`, `tau`, ...).

    Raises:
        InputError: A clip is unusable, or all have the same label.
    """
    features.check()
    assert len(target) == len(features.clip_ids)
    if len(target.unique()) < 2:
        raise InputError("all training clips have the same label: there is nothing to tell apart")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = DualGateFusion(FusionConfig({m: x.shape[1] for m, x in features.values.items()}, n_classes, **shape))
        net.set_statistics(features.values, features.present)
        steps = config.epochs * math.ceil(len(target) / config.batch_size)
        decayed = [weight for weight in net.parameters() if weight is not net.theta]  # decay would pull alpha to 1/2
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": [net.theta], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
        for _ in range(config.epochs):
            for index in torch.randperm(len(target)).split(config.batch_size):
                batch = features.take(index)
                out = net(batch.values, drop_modalities(batch.present, config.modality_dropout))
                optimizer.zero_grad()
                fusion_loss(out, target[index], config.unimodal_weight).backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def drop_modalities(present: Tensor, rate: float) -> Tensor:
    """Hide one random modality of each clip at this rate; never the last one. `present` and result: (n, M) bool."""
    noise = torch.rand(present.shape).masked_fill(~present, -1.0)
    hidden = torch.nn.functional.one_hot(noise.argmax(1), present.shape[1]).bool()
    hidden &= ((torch.rand(len(present)) < rate) & (present.sum(1) > 1))[:, None]
    return present & ~hidden


@torch.inference_mode()
def score(net: DualGateFusion, features: Features, label: Tensor, batch_size: int = 512) -> Scores:
    """Score clips in batches.

    Args:
        net: A fitted network.
        features: Any clips with its modalities.
        label: (n,) class indices; -1 where unknown (importance is then about the predicted emotion).
        batch_size: Clips at a time.
    """
    features.check()
    parts = []
    for index in torch.arange(len(label)).split(batch_size):
        batch = features.take(index)
        out = net(batch.values, batch.present)
        target = torch.where(label[index] < 0, out.logits.argmax(1), label[index])
        parts.append(
            Scores(
                target=target,
                importance=net.importance(out, target),
                contributions=net.contributions(out, target),
                entropy_gate=out.entropy_gate,
                importance_gate=out.importance_gate,
                gate=out.gate,
                logits=out.logits,
                unimodal=out.unimodal,
                present=out.present,
            )
        )
    return Scores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def cross_score(
    features: Features,
    label: Tensor,
    train: Tensor,
    labels: Sequence[str],
    config: FitConfig,
    folds: int = 5,
    progress: Callable[[range], Any] = lambda x: x,
    **shape: Any,
) -> CrossScores:
    """Score every clip with a network that was not fitted on it.

    Args:
        features: All clips.
        label: (n,) class indices, -1 where unknown.
        train: (n,) bool, clips to learn from; those without a label are only scored.
        labels: Names of the classes.
        config: How to fit.
        folds: Into how many parts the train clips are split, stratified by label.
        progress: Wraps the loop over the `folds` + 1 fits, e.g. in a progress bar.
        shape: Other fields of `FusionConfig`.

    Raises:
        InputError: Too few train clips or classes, a modality without train clips, or an unusable clip.
    """
    features.check()
    learn = (train & (label >= 0)).nonzero().flatten()
    check_labels(label, learn, labels, folds)
    check_present(tuple(features.values), features.clip_ids, features.present, learn)
    fold = torch.full(label.shape, -1)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=config.seed)
    for k, (_, held) in enumerate(splitter.split(learn, label[learn])):
        fold[learn[torch.from_numpy(held)]] = k

    columns: list[Tensor] | None = None
    models = [""] * len(label)
    for k in progress(range(folds + 1)):  # the last fit is on all train clips
        part = learn[fold[learn] != k]
        net = fit(features.take(part), label[part], len(labels), config, **shape)
        held = (fold == (k if k < folds else -1)).nonzero().flatten()
        if not len(held):
            continue
        found = score(net, features.take(held), label[held])
        if columns is None:
            columns = [column.new_zeros((len(label), *column.shape[1:])) for column in found]
        for column, rows in zip(columns, found, strict=True):
            column[held] = rows
        name = fingerprint(net)
        for i in held.tolist():
            models[i] = name
    assert columns is not None
    return CrossScores(Scores(*columns), fold, tuple(models), net)


def check_labels(label: Tensor, learn: Tensor, labels: Sequence[str], folds: int) -> None:
    """Raise InputError where the clips at positions `learn` cannot be split into folds, each with every emotion."""
    if folds < 2:
        raise InputError(f"folds: need at least 2, not {folds}")
    counts = torch.bincount(label[learn], minlength=len(labels)).tolist()
    found = {name: count for name, count in zip(labels, counts, strict=True) if count}
    if len(found) < 2:
        known = f"all {len(learn)} have the label {next(iter(found))!r}" if found else "none has a label"
        raise InputError(f"train clips: {known}; at least two emotions are needed")
    for name, count in found.items():
        if count < folds:
            raise InputError(
                f"label {name!r} has {count} train clips, too few for {folds} folds: add clips or take fewer folds"
            )


def check_present(
    modalities: Sequence[str], clip_ids: Sequence[str], present: Tensor, learn: Tensor | None = None
) -> None:
    """Raise InputError for a clip without a modality, and for a modality that no clip at positions `learn` has."""
    for i in (~present.any(1)).nonzero().flatten().tolist():
        raise InputError(f"clip {clip_ids[i]!r} has no video and no audio to weigh: remove it from the manifest")
    for m, name in enumerate(modalities):
        if learn is not None and present[:, m].any() and not present[learn, m].any():
            clip = clip_ids[int(present[:, m].nonzero()[0, 0])]
            raise InputError(
                f"clip {clip!r} has {name}, but no labelled train clip does, so nothing can be learned about it; "
                f"set has_{name} to false"
            )


def alternatives(scores: Scores) -> dict[str, Tensor]:
    """The dominant modality by the attribution and by simpler means, each (n,) positions on the M axis.

    `unimodal_confidence` is the head with the highest probability of the target; `entropy_gate` picks the head of the
    lowest entropy.
    """
    chosen = scores.target[:, None, None].expand(-1, scores.unimodal.shape[1], 1)
    confidence = scores.unimodal.softmax(-1).gather(2, chosen)[..., 0].masked_fill(~scores.present, -1.0)
    ways = {
        "attribution": scores.importance,
        "gate": scores.gate,
        "entropy_gate": scores.entropy_gate,
        "importance_gate": scores.importance_gate,
        "unimodal_confidence": confidence,
    }
    return {name: weight.argmax(1) for name, weight in ways.items()}


def fingerprint(net: DualGateFusion) -> str:
    """A hash of weights and shape."""
    parts = [tensor.contiguous().numpy().tobytes() for _, tensor in sorted(net.state_dict().items())]
    return digest(asdict(net.config), *parts)


def save(net: DualGateFusion, path: str | Path, **about: Any) -> None:
    """Write `path` (.safetensors) and, beside it, its shape and whatever JSON values `about` holds (.json)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, partial)
    partial.chmod(0o644)
    partial.replace(path)
    write_json(path.with_suffix(".json"), {"config": asdict(net.config), **about})


def load(path: str | Path) -> DualGateFusion:
    """Read a network that `save` wrote.

    Raises:
        InputError: A file is missing, damaged, or the two do not belong together.
    """
    path = Path(path)
    about = read_json(path.with_suffix(".json"))
    try:
        net = DualGateFusion(FusionConfig(**about["config"]))
        net.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        cause = json.dumps(str(error).splitlines()[0])
        raise InputError(f"{path}: no fusion network as {path.with_suffix('.json')} describes it ({cause})") from None
    return net.eval()
