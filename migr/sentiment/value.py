"""The value head: the fusion networks' own output as a score or as classes (AGFN, EGMF without its language model)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from migr.importance.fit import predicted
from migr.importance.networks.attribution import importance_of
from migr.importance.networks.reading import fusion_loss
from migr.importance.networks.vat import adversarial_loss
from migr.sentiment.encoders import SequenceFusion
from migr.sentiment.generative import Readout


class ValueSentiment(nn.Module):
    """Encoders and a fusion network, learned with L1 (scores) or cross-entropy (classes).

    Args:
        fusion: The network.
        unimodal_weight: λ of `fusion_loss`.
        adversarial_weight: Of virtual adversarial training on the encoded tokens; 0 leaves it out.
        adversarial_radius: Its radius; tokens have a deviation of about 1.
    """

    def __init__(
        self,
        fusion: SequenceFusion,
        unimodal_weight: float = 1.0,
        adversarial_weight: float = 0.0,
        adversarial_radius: float = 0.1,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.unimodal_weight = unimodal_weight
        self.adversarial_weight, self.adversarial_radius = adversarial_weight, adversarial_radius
        self.players = fusion.modalities

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """A batch of `training.Collator`: the loss; outside of training also the predictions."""
        tokens = self.fusion.encode(batch["frames"], batch["lengths"])
        present = self.fusion.visible(batch["lengths"])
        out = self.fusion.fusion(tokens, present)
        loss = fusion_loss(out, batch["target"], self.unimodal_weight, batch.get("own"))
        if not self.training:
            return {"loss": loss, "predictions": predicted(out.logits).float()}
        if self.adversarial_weight:
            extra = adversarial_loss(self.fusion.fusion, tokens, present, self.adversarial_radius)
            loss = loss + self.adversarial_weight * extra
        return {"loss": loss}

    def predict(self, batch: Mapping[str, Any], every: bool = True) -> Readout:
        """What the network says about a batch."""
        out = self.fusion(batch["frames"], batch["lengths"])
        return Readout(predicted(out.logits).float(), out.logits, {}, out)

    def present(self, batch: Mapping[str, Any]) -> Tensor:
        """(n, M) bool: which modalities each clip has."""
        return self.fusion.visible(batch["lengths"])

    def logits_of(self, batch: Mapping[str, Any], visible: Tensor, shuffle: Tensor | None = None) -> Tensor:
        """The score (n, 1) or logits (n, C) where only these modalities (n, M) bool are shown."""
        logits: Tensor = self.fusion(batch["frames"], batch["lengths"], visible).logits
        return logits

    def attribute(self, batch: Mapping[str, Any], target: Tensor) -> tuple[Tensor, Tensor]:
        """Importance and contributions of the modalities for the target, each (n, M)."""
        with torch.no_grad():
            out = self.fusion(batch["frames"], batch["lengths"])
            contributions = self.fusion.fusion.attribute(out, target)
        return importance_of(contributions, out.gate, out.present), contributions
