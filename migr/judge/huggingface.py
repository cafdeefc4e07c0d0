"""Any Hugging Face text-classification model as a judge, with a map from its labels to ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migr.errors import InputError, as_input_error
from migr.files.records import digest, read_object
from migr.judge.base import LONGEST, Judgement, folder_name, read_config
from migr.text.labels import LabelSet

# GoEmotions' 28 labels (Demszky et al., 2020) -> DFEW's 7: the authors' own grouping by Ekman's emotions.
GOEMOTIONS = {
    **dict.fromkeys(("anger", "annoyance", "disapproval"), "anger"),
    "disgust": "disgust",
    **dict.fromkeys(("fear", "nervousness"), "fear"),
    **dict.fromkeys(("admiration", "amusement", "approval", "caring", "desire", "excitement"), "happiness"),
    **dict.fromkeys(("gratitude", "joy", "love", "optimism", "pride", "relief"), "happiness"),
    **dict.fromkeys(("disappointment", "embarrassment", "grief", "remorse", "sadness"), "sadness"),
    **dict.fromkeys(("confusion", "curiosity", "realization", "surprise"), "surprise"),
    "neutral": "neutral",
}
# What MAFW's further four take from those groups: the correspondence that ERV (arXiv 2510.23506) uses for its reward.
GOEMOTIONS_MAFW = {
    "disapproval": "contempt",
    "nervousness": "anxiety",
    "grief": "helplessness",
    "disappointment": "disappointment",
}
AT_ONCE = 32  # windows of text in one forward pass
_SHOWN = 3  # of the model's own labels, in a judgement's reply


class HuggingFaceJudge:
    """Names the emotion of the highest probability, summed (exclusive labels) or taken at most (independent ones).

    Independent labels, as in GoEmotions, have a sigmoid each: of a group the largest counts, so that a group of twelve
    has no advantage over a group of one. What is longer than the model reads at once is read in windows, and their
    probabilities are averaged. Probabilities are normalised over our labels; labels without a counterpart are left out.
    The `reply` of a judgement is the model's own likeliest labels.
    """

    at_once = 256

    def __init__(self, folder: Path, labels: LabelSet) -> None:
        config = read_config(folder)
        with as_input_error(f"judge {folder}: config.json: id2label must be {{number: label}}"):
            names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
        mapping = read_object(folder / "label_map.json") if (folder / "label_map.json").is_file() else None
        self.folder, self.labels = folder, labels
        self.names = [names[i] for i in sorted(names)]
        self.map = label_map(folder, self.names, labels, mapping)
        self.blind = tuple(label for label in labels.labels if label not in self.map)
        several = config.get("problem_type") == "multi_label_classification"
        self.independent = several or {name.casefold() for name in names.values()} == set(GOEMOTIONS)
        self.name = f"{folder_name(folder)}-{digest(self.map, self.independent)[:4]}"
        self._model: Any = None

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text; an empty one is a failure.

        Raises:
            InputError: The model cannot be loaded.
        """
        indices = [index for index, text in enumerate(texts) if text.strip()]
        judgements = [Judgement(None, {}, "empty")] * len(texts)
        rows = self._probabilities([texts[index][:LONGEST] for index in indices]) if indices else []
        for index, row in zip(indices, rows, strict=True):
            sums: dict[str, float] = {}
            for label, p in zip(self.map, row, strict=True):
                if label is not None:
                    sums[label] = max(sums.get(label, 0.0), p) if self.independent else sums.get(label, 0.0) + p
            total = sum(sums.values())
            chances = {label: sums[label] / total for label in self.labels.labels if label in sums} if total else {}
            best = [label for label, p in chances.items() if p == max(chances.values())]
            first = sorted(zip(row, self.names, strict=True), reverse=True)[:_SHOWN]
            reply = ", ".join(f"{name} {p:.2f}" for p, name in first)
            single = len(best) == 1
            judgements[index] = Judgement(best[0] if single else None, chances, "ok" if single else "tie", reply)
        return judgements

    def _probabilities(self, texts: list[str]) -> list[list[float]]:
        """One row of the model's own probabilities a text."""
        import torch

        if self._model is None:
            self._load()
        limit = min(self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", 512))
        # RoBERTa counts its positions from behind the padding index
        if limit < 8:
            raise InputError(f"judge {self.folder}: reads {limit} tokens at most; see its tokenizer_config.json")
        limit -= self._model.config.pad_token_id + 1 if "roberta" in self._model.config.model_type else 0
        options = {"truncation": True, "max_length": limit, "stride": limit // 4, "return_overflowing_tokens": True}
        windows = self._tokenizer(texts, **options)
        of = windows.pop("overflow_to_sample_mapping")
        sums = [[0.0] * len(self.map) for _ in texts]
        order = sorted(range(len(of)), key=lambda window: len(windows["input_ids"][window]))
        for begin in range(0, len(order), AT_ONCE):
            numbers = order[begin : begin + AT_ONCE]
            batch = {name: [values[window] for window in numbers] for name, values in windows.items()}
            tensors = self._tokenizer.pad(batch, return_tensors="pt").to(self._model.device)
            with torch.inference_mode():
                logits = self._model(**tensors).logits.float()
            chances = logits.sigmoid() if self.independent else logits.softmax(-1)
            for window, row in zip(numbers, chances.tolist(), strict=True):
                sums[of[window]] = [a + b for a, b in zip(sums[of[window]], row, strict=True)]
        return [[value / of.count(index) for value in row] for index, row in enumerate(sums)]

    def _load(self) -> None:
        import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

        # isort: split
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from migr.omni.checks import load_whole, outside_zero3
        from migr.omni.load import quiet

        where = f"judge {self.folder}: cannot be loaded as a text classifier"
        with quiet(), outside_zero3():
            with as_input_error(where):
                options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, **options)
            model = load_whole(AutoModelForSequenceClassification, self.folder, where)
        self._model = model.float().to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


def label_map(
    folder: Path, names: Sequence[str], labels: LabelSet, mapping: Mapping[str, str | None] | None
) -> list[str | None]:
    """Our label, or None, for each of a model's labels.

    From the folder's label_map.json if it has one, from `GOEMOTIONS` if these are its 28, else by the words themselves.

    Raises:
        InputError: label_map.json does not fit, or fewer than two of our labels are reached.
    """
    where = f"judge {folder}"
    if mapping is not None:
        unknown = sorted(set(mapping) - set(names))
        wrong = sorted({str(v) for v in mapping.values() if v is not None} - set(labels.labels))
        if unknown or wrong:
            fault = f"{unknown[0]!r} is no label of the model" if unknown else f"{wrong[0]!r} is not in {labels.name}"
            raise InputError(f"{folder / 'label_map.json'}: {fault}")
        targets = [mapping.get(name) for name in names]
    elif {name.casefold() for name in names} == set(GOEMOTIONS):
        families = [
            (GOEMOTIONS_MAFW.get(name.casefold()), GOEMOTIONS[name.casefold()]) for name in names
        ]  # the finer one where the label set has it
        targets = [next(filter(None, (labels.canonical(word) for word in pair if word)), None) for pair in families]
    else:
        targets = [labels.canonical(name) for name in names]
    if len(set(targets) - {None}) < 2:
        raise InputError(
            f"{where}: its labels ({', '.join(names[:8])}{', …' if len(names) > 8 else ''}) do not name those of "
            f"{labels.name}; put a label_map.json beside config.json: {{model's label: one of ours or null}}"
        )
    return targets
