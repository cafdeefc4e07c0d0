"""The table of pooled features that the fusion networks read, and the checks that it and its labels must pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from migr.errors import InputError


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
            finite = torch.cat(
                [part.isfinite().all(1) for part in rows.split(8192)]
            )  # in parts: a copy of all would be large
            bad = self.present[:, m] & ~finite
            for i in bad.nonzero().flatten().tolist():
                raise InputError(f"clip {self.clip_ids[i]!r}: its {name} features are not finite; check file and model")


def is_score(label: Tensor) -> bool:
    """Whether labels are sentiment scores (floating point) and not emotions (integers)."""
    return label.is_floating_point()


def known(label: Tensor) -> Tensor:
    """Which labels are known, (n,) bool: an unknown emotion is -1, an unknown score NaN."""
    return label.isfinite() if is_score(label) else label >= 0


def check_labels(label: Tensor, learn: Tensor, labels: Sequence[str], folds: int) -> None:
    """Raise InputError where the clips at positions `learn` cannot be split into folds, each with every emotion."""
    if folds < 2:
        raise InputError(f"folds: need at least 2, not {folds}")
    if is_score(label):
        if len(learn) < folds:
            raise InputError(f"train clips: {len(learn)} have a score, too few for {folds} folds")
        if len(label[learn].unique()) < 2:
            raise InputError(
                f"train clips: all {len(learn)} have the score {label[learn[0]].item():g}; scores must vary"
            )
        return
    counts = torch.bincount(label[learn], minlength=len(labels)).tolist()
    per_label = {name: count for name, count in zip(labels, counts, strict=True) if count}
    if len(per_label) < 2:
        known_ones = f"all {len(learn)} have the label {next(iter(per_label))!r}" if per_label else "none has a label"
        raise InputError(f"train clips: {known_ones}; at least two emotions are needed")
    for name, count in per_label.items():
        if count < folds:
            raise InputError(
                f"label {name!r} has {count} train clips, too few for {folds} folds: add clips or take fewer folds"
            )


def check_present(
    modalities: Sequence[str], clip_ids: Sequence[str], present: Tensor, learn: Tensor | None = None
) -> None:
    """Raise InputError for a clip without a modality.

    With `learn`, the positions of the clips to learn from, also for a modality that none of them has.
    """
    for i in (~present.any(1)).nonzero().flatten().tolist():
        lacks = " and ".join(f"no {name}" for name in modalities)
        raise InputError(f"clip {clip_ids[i]!r} has {lacks} to weigh: remove it from the manifest")
    for m, name in enumerate(modalities if learn is not None else ()):
        if not present[:, m].any():
            raise InputError(f"no clip has {name}: leave this modality out")
        if not present[learn, m].any():
            clip = clip_ids[int(present[:, m].nonzero()[0, 0])]
            mend = "remove its transcript" if name == "text" else f"set has_{name} to false"
            raise InputError(
                f"clip {clip!r} has {name}, but no labelled train clip does, so nothing can be learned about it; {mend}"
            )


def check_folds(modalities: Sequence[str], present: Tensor, fold: Tensor, learn: Tensor, folds: int) -> None:
    """Raise InputError where all train clips with some modality fall into one fold: its network could not learn it."""
    for m, name in enumerate(modalities):
        for k in range(folds):
            rest = learn[fold[learn] != k]
            if not present[rest, m].any():
                count = int(present[learn, m].sum())
                raise InputError(
                    f"{name}: only {count} train clips have it, all in one of {folds} folds, so that its network "
                    f"cannot learn it: add clips with {name}, or leave it out"
                )
