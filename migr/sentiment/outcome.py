"""What a fitted head says about a split: predictions, importance, weights of gates and experts, and warnings."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from migr.files.records import Row, atomic, write_jsonl
from migr.importance.networks.experts import EXPERTS, collapse
from migr.importance.trust import prediction_errors, prediction_space_correlation
from migr.sentiment.metrics import figures, selection
from migr.sentiment.sets import SentimentSet
from migr.sentiment.training import Collator

IGNORED = 0.01  # a part whose absence changes the chosen figure by less than this share is not used
ALMOST_ALL = 0.95


def batches(collator: Collator, batch_size: int, device: Any) -> Iterator[dict[str, Any]]:
    """A split in order."""
    for part in torch.arange(len(collator.split)).split(batch_size):
        batch = collator(part.tolist())
        yield {key: moved(value, device) for key, value in batch.items()}


def moved(value: Any, device: Any) -> Any:
    """A tensor, or a dict of them, on a device."""
    return {k: x.to(device) for k, x in value.items()} if isinstance(value, dict) else value.to(device)


class Outcome:
    """Everything that one pass over a split gives."""

    def __init__(self, model: Any, collator: Collator, batch_size: int, importance: bool = True) -> None:
        self.dataset, self.split = collator.dataset, collator.split
        device = next(model.parameters()).device
        columns: dict[str, list[Tensor]] = {}
        model.eval()
        with torch.no_grad():
            for batch in batches(collator, batch_size, device):
                readout = model.predict(batch)
                arrays = {"": readout.prediction, "logits": readout.logits, "fused": readout.fusion.fused}
                arrays |= {f"reading {name}": values for name, values in readout.readings.items()}
                arrays |= {f"weights {name}": values for name, values in readout.fusion.parts().items()}
                arrays["target"] = batch["target"]
                if importance:
                    arrays["importance"], arrays["contributions"] = model.attribute(batch, batch["target"])
                    arrays["present"] = model.present(batch)
                for name, values in arrays.items():
                    columns.setdefault(name, []).append(values.cpu())
        self.columns = {name: torch.cat(parts) for name, parts in columns.items()}
        self.players = model.players

    def figures(self, reading: str = "") -> dict[str, float | None]:
        """The set's figures, of the main reading or another one."""
        name = f"reading {reading}" if reading else ""
        return figures(self.dataset, self.columns[name].numpy().astype(np.float32), self.columns["target"].numpy())

    @property
    def readings(self) -> list[str]:
        """Names of the further readings."""
        return [name.removeprefix("reading ") for name in self.columns if name.startswith("reading ")]

    def write(self, folder: Path) -> None:
        """Write predictions (one CSV a reading) and, where there is importance, `importance.jsonl`."""
        for reading in ("", *self.readings):
            values = self.columns[f"reading {reading}" if reading else ""].tolist()
            with atomic(folder / f"predictions{f'_{reading}' if reading else ''}.csv") as file:
                table = csv.writer(file)
                table.writerow(("id", "prediction", "truth"))
                for clip, value in zip(self.split.clips, values, strict=True):
                    table.writerow((clip.clip_id, word(value, self.dataset), word(clip.target, self.dataset)))
        if "importance" in self.columns:
            write_jsonl(folder / "importance.jsonl", self.importance_rows())

    def importance_rows(self) -> Iterator[Row]:
        """Rows of importance.jsonl: importance of each modality that a clip has, the dominant one, margin, weights."""
        weights = {name.removeprefix("weights "): x for name, x in self.columns.items() if name.startswith("weights ")}
        for i, clip in enumerate(self.split.clips):
            shares = zip(self.players, self.columns["importance"][i].tolist(), self.columns["present"][i], strict=True)
            own = {name: value for name, value, present in shares if present}
            ordered = sorted(own.values(), reverse=True)
            margin = ordered[0] - ordered[1] if len(ordered) > 1 else ordered[0]
            row = {
                "clip_id": clip.clip_id,
                "importance": own,
                "dominant": max(own, key=own.__getitem__),
                "margin": margin,
            }
            yield row | {name: [round(w, 6) for w in x[i].tolist()] for name, x in weights.items()}

    def error_space(self) -> float | None:
        """Prediction Space Correlation (AGFN) of the fused vectors and the errors."""
        return prediction_space_correlation(
            self.columns["fused"], prediction_errors(self.columns["logits"], self.columns["target"])
        )

    def expert_weights(self) -> Row | None:
        """How α lies over clips, and its rank correlation with how strong the true score is; None without experts."""
        alpha = self.columns.get("weights experts")
        if alpha is None:
            return None
        intensity = self.columns["target"].abs().numpy() if self.dataset.is_score else None
        weights: Row = {}
        for k, name in enumerate(EXPERTS):
            values = alpha[:, k].numpy()
            varied = intensity is not None and np.ptp(values) > 0 and np.ptp(intensity) > 0
            weights[name] = {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "quartiles": np.percentile(values, [25, 50, 75]).tolist(),
                "with_intensity": float(spearmanr(values, intensity).statistic) if varied else None,
            }
        return weights


def word(value: float, dataset: SentimentSet) -> str:
    """A prediction or truth as it stands in a CSV; empty where it could not be read."""
    if dataset.is_score:
        return "" if np.isnan(value) else f"{value:.6g}"
    return dataset.labels[int(value)] if 0 <= value < len(dataset.labels) else ""


def ablations(model: Any, collator: Collator, batch_size: int) -> Row:
    """The chosen figure where parts of the input, or one expert, are taken from the fitted model.

    Returns:
        `all`; `only <modality>` and `without <modality>`; `without expert <name>`; for the generative head
        `shuffled pseudo tokens` (each clip gets another clip's).
    """
    name = selection(collator.dataset)[0]
    device = next(model.parameters()).device
    count = len(model.players)
    rows = {"all": [True] * count}
    if count > 1:
        rows |= {f"only {p}": [p == q for q in model.players] for p in model.players}
        rows |= {f"without {p}": [p != q for q in model.players] for p in model.players}
    cells: Row = {}

    def measure(mask: list[bool], shuffled: bool = False) -> float | None:
        predictions, targets = [], []
        with torch.no_grad():
            for batch in batches(collator, batch_size, device):
                n = len(batch["target"])
                visible = model.present(batch) & torch.tensor(mask, device=device)
                order = torch.arange(n, device=device).roll(max(1, n // 2)) if shuffled else None
                logits = model.logits_of(batch, visible, order)
                predictions.append(logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1).float())
                targets.append(batch["target"])
        values = torch.cat(predictions).cpu().numpy().astype(np.float32)
        return figures(collator.dataset, values, torch.cat(targets).cpu().numpy())[name]

    model.eval()
    for row, mask in rows.items():
        cells[row] = measure(mask)
    if hasattr(model.fusion.fusion, "shown"):
        buffer = model.fusion.fusion.get_buffer("shown")
        for k, expert in enumerate(EXPERTS):
            buffer[k] = False
            cells[f"without expert {expert}"] = measure(rows["all"])
            buffer[k] = True
    if hasattr(model, "lm"):
        cells["shuffled pseudo tokens"] = measure(rows["all"], shuffled=True)
    return {"figure": name, **cells}


def warnings(outcome: Outcome, parts: Row | None) -> list[str]:
    """What has gone wrong with a fit, a line each: a gate that stopped choosing, text alone, ignored pseudo tokens."""
    lines = []
    for name, weights in outcome.columns.items():
        if name.startswith("weights "):
            kind = name.removeprefix("weights ")
            if why := collapse(weights, EXPERTS if kind == "experts" else outcome.players[-weights.shape[1] :]):
                lines.append(f"{kind}: {why}")
    if "text" in outcome.players and "importance" in outcome.columns and len(outcome.players) > 1:
        share = (outcome.columns["importance"][:, outcome.players.index("text")] > 0.9).double().mean().item()
        if share > ALMOST_ALL:
            lines.append(
                f"text has more than 0.9 of the importance on {share:.0%} of the clips: the rest is hardly read"
            )
    if parts and parts["all"]:
        for part, what in (
            ("only text", "text alone does as well: sound and picture are not used"),
            ("shuffled pseudo tokens", "shuffled pseudo tokens cost nothing: the language model ignores them"),
        ):
            value = parts.get(part)
            worse = None if value is None else (value - parts["all"]) * (-1 if selection(outcome.dataset)[1] else 1)
            if worse is not None and worse < IGNORED * parts["all"]:
                lines.append(f"{what} ({parts['figure']} {parts['all']:.3f} and {value:.3f})")
    return lines
