"""Features of clips that never were: what both test files of the fusion networks fit on."""

from dataclasses import replace

import torch

from migr.importance.fit import FitConfig
from migr.importance.table import Features

FAST = FitConfig(epochs=4)


def synthetic(n: int, seed: int, modalities: tuple[str, ...] = ("video", "audio"), size: int = 64):
    """Class prototypes: the dominant modality is clear; the others faint, noisy, half the time of another class."""
    made = torch.Generator().manual_seed(7)
    prototypes = {m: torch.randn(7, size, generator=made) for m in modalities}
    haze = {m: torch.randn(size, generator=made) for m in modalities}
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 7
    dominant = torch.randint(len(modalities), (n,), generator=g)
    values = {}
    for i, m in enumerate(modalities):
        other = (label + torch.randint(1, 7, (n,), generator=g)) % 7
        clear = dominant == i
        shown = torch.where(clear | (torch.rand(n, generator=g) < 0.5), label, other)
        strength = torch.where(clear, 1.0, 0.3 * torch.rand(n, generator=g))[:, None]
        noise = torch.randn(n, size, generator=g) * torch.where(clear, 0.6, 1.0)[:, None]
        values[m] = strength * prototypes[m][shown] + noise + (~clear)[:, None] * 0.5 * haze[m]
    names = tuple(f"clip{i}" for i in range(n))
    return Features(names, values, torch.ones(n, len(modalities), dtype=torch.bool)), label, dominant


def broken(kind: str):
    features, label, _ = synthetic(70, 14)
    values, present = {m: x.clone() for m, x in features.values.items()}, features.present.clone()
    train = torch.arange(70) < 56
    if kind == "nan":
        values["audio"][61, 3] = float("nan")
    elif kind == "infinite":
        values["video"][2, 0] = float("inf")
    elif kind == "rare":
        label = torch.where(label == 6, 0, label)
        label[:2] = 6
    elif kind == "one":
        label = torch.zeros(70, dtype=torch.long)
    elif kind == "none":
        label = torch.full((70,), -1)
    elif kind == "empty":
        present[40] = False
    elif kind == "nowhere":
        present[:, 1] = False
    elif kind == "one fold":
        present[:, 1] = False
        present[3, 1] = True
    else:
        present[:, 1] = ~train
    return replace(features, values=values, present=present), label, train
