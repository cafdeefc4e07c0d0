"""Virtual adversarial training (Miyato et al. 2018, arXiv 1704.03976), on the standardised features.

    LDS(x)  = D(f(x), f(x + r_adv))          added to the loss, averaged over the batch
    r_adv   = argmax_{‖r‖ <= ε} D(f(x), f(x + r)), by one power iteration: r_adv = ε g/‖g‖, g = ∇_r D at r = ξ d

D is the divergence KL(p(x) ‖ p(x + r)) for emotions, the squared difference of the scores for sentiment (the
divergence of two Gaussians of variance 1/2). d is a random unit vector; ‖r‖ runs over all present modalities of a clip
together, and ε = radius × √(number of its features), so that `radius` is the root mean square change of a feature in
standard deviations. f(x) is a constant for the gradient. AGFN uses this loss on unpublished settings.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

XI = 1e-2  # root mean square length of the probing step, in standard deviations


def divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """D of each clip, (n,), from logits (n, C) or scores (n, 1)."""
    if clean.shape[1] == 1:
        return (moved - clean)[:, 0] ** 2
    return F.kl_div(moved.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="none").sum(1)


def adversarial_loss(net: Any, features: dict[str, Tensor], present: Tensor, radius: float, steps: int = 1) -> Tensor:
    """Mean LDS of a batch. Dropout is off in both passes: otherwise D is not 0 at r = 0 and g points nowhere.

    Args:
        net: A fusion network in training mode (it is left so).
        features: Modality -> (n, dim), or (n, T, dim).
        present: (n, M) bool.
        radius: Root mean square change of a feature, in standard deviations.
        steps: Power iterations.
    """
    net.eval()
    try:
        with torch.no_grad():
            clean = net(features, present).logits
        r = _scaled({name: torch.randn_like(x) for name, x in features.items()}, present, XI)
        for _ in range(steps):
            r = {name: x.requires_grad_() for name, x in r.items()}
            distance = divergence(clean, net(features, present, r).logits).sum()
            gradient = torch.autograd.grad(distance, list(r.values()))
            r = _scaled(dict(zip(r, gradient, strict=True)), present, XI)
        adversarial = {name: x.detach() * (radius / XI) for name, x in r.items()}
        return divergence(clean, net(features, present, adversarial).logits).mean()
    finally:
        net.train()


def _scaled(r: dict[str, Tensor], present: Tensor, size: float) -> dict[str, Tensor]:
    """Each clip's r over its present modalities, brought to the root mean square `size`; 0 stays 0."""
    masked = {name: x.flatten(1) * present[:, m, None] for m, (name, x) in enumerate(r.items())}
    count = sum(x.shape[1] * present[:, m] for m, x in enumerate(masked.values()))
    squares = torch.stack([x.square().sum(1) for x in masked.values()]).sum(0)
    factor = size * (count / squares.clamp_min(torch.finfo(squares.dtype).tiny)).sqrt()
    scaled = {name: torch.where(squares[:, None] > 0, x * factor[:, None], 0.0) for name, x in masked.items()}
    return {name: x.view_as(r[name]) for name, x in scaled.items()}
