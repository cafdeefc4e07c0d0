"""EGMF whole as a network of `migr.importance`: pooled features, a fusion network, pseudo tokens, a language model.

`stages/importance.py --head llm` fits it: whatever is known of a clip comes to the language model through T, as in
`[prefix; T; suffix; task]`; importance is exact Shapley values of the answer's log-probability, or of the score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from migr.importance.networks.attribution import coalitions, shapley
from migr.importance.networks.interface import FusionNet, FusionOutput
from migr.sentiment.answers import AnswerTree
from migr.sentiment.generative import AnswerModel, Prompts, PromptWriter, PseudoTokens
from migr.sentiment.heads import language_parts
from migr.sentiment.sets import SentimentSet
from migr.sentiment.settings import NetworkSettings


class LanguageOutput(NamedTuple):
    """What one forward pass says about n clips; what is not here is the fusion network's."""

    logits: Tensor  # (n, C) log-probabilities of the labels, or (n, 1) the score
    log_answers: Tensor  # (n, A) log p of all answers, end token included
    fusion: FusionOutput
    nearest: Callable[[Tensor], Tensor]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fusion, name)

    def fused_loss(self, target: Tensor) -> Tensor:
        """−log p of the answers closest to the targets (n,), their end tokens among them."""
        return -self.log_answers.gather(1, self.nearest(target)[:, None]).mean()


class LanguageFusion(AnswerModel):
    """The network. The fusion network stays on the CPU, the language model where it was put.

    Args:
        net: Fuses the pooled features.
        lm, pseudo, answers, score, median: As of `AnswerModel`.
        prompt: Token ids of every clip's prompt, `PSEUDO` where the pseudo tokens go.
    """

    def __init__(
        self,
        net: FusionNet,
        lm: Any,
        pseudo: PseudoTokens,
        answers: AnswerTree,
        score: bool,
        prompt: list[int],
        median: bool = True,
    ) -> None:
        super().__init__(lm, pseudo, answers, score, median)
        self.net, self.axes, self.config, self.modalities = net, net.axes, net.config, net.modalities
        self.prompt = Prompts.pad([prompt])

    @property
    def reading(self) -> Any:
        """The fusion network's."""
        return self.net.reading

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """The fusion network's, and all behind it: its weight decay is for a small network among few clips."""
        lora = [weight for weight in self.lm.parameters() if weight.requires_grad]
        return [*self.net.undecayed, *self.pseudo.parameters(), *lora]

    def forward(
        self, features: dict[str, Tensor], present: Tensor, shift: dict[str, Tensor] | None = None
    ) -> LanguageOutput:
        """Fuse n clips and answer; the arguments are those of `Reading.forward`."""
        u, p = self.reading(features, present, shift)
        return self.fuse(u, p, present)

    def fuse(self, u: Tensor, p: Tensor, present: Tensor) -> LanguageOutput:
        """Fuse what `Reading` read, with these of its modalities (n, M) bool, and answer."""
        out = self.net.fuse(u, p, present)
        device = self.lm.get_input_embeddings().weight.device
        ids, mask = (rows.expand(len(u), -1).to(device) for rows in (self.prompt.ids, self.prompt.mask))
        log_answers, _ = self.log_answers(Prompts(ids, mask), self.pseudo(out.fused).to(device))
        log_answers = log_answers.cpu()
        return LanguageOutput(self.logits(log_answers), log_answers, out, self.nearest)

    def attribute(self, out: LanguageOutput, target: Tensor) -> Tensor:
        """Shapley value of each modality for the target, (n, M): 2^M − 1 passes of the language model."""
        values = coalitions(lambda visible: self.fuse(out.tokens, out.unimodal, visible).logits, out.present, target)
        return shapley(values, out.present)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What was learned; the language model's own weights stay in its folder."""
        frozen = {name for name, weight in self.named_parameters() if not weight.requires_grad}
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: x.cpu() for name, x in state.items() if name not in frozen}


@dataclass(frozen=True)
class LanguageHead:
    """Puts a language model behind a fusion network, for `migr.importance.fit.fit`: each fit gets one of its own.

    Attributes:
        model: Folder of a causal language model, or of a Qwen-Omni.
        labels: Emotions; empty for sentiment scores in [-3, 3].
        settings: Pseudo tokens, their form, LoRA, the grid of scores, how they are read.
    """

    model: str
    labels: Sequence[str]
    settings: NetworkSettings

    def __call__(self, net: Any) -> LanguageFusion:
        """The network that answers.

        Raises:
            InputError: The model cannot be used, or its tokenizer cannot write the answers.
        """
        s, dataset = self.settings, SentimentSet("clips", tuple(self.labels), 0.0 if self.labels else 3.0)
        lm, tokenizer, answers, pseudo = language_parts(self.model, s, dataset, net.config.hidden)
        lm.to("cuda" if torch.cuda.is_available() else "cpu")
        prompt = PromptWriter(tokenizer, dataset.prompt, s.pseudo_tokens, transcript=False)("")
        return LanguageFusion(net, lm, pseudo, answers, dataset.is_score, prompt, s.median)
