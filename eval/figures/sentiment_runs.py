"""Predictions and figures of the sentiment field's systems: our runs, anybody's CSV, MMSA's, KuDA's, MSE-Adapter's."""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from migr.errors import InputError
from migr.files.records import Row, read_jsonl, read_object
from migr.files.shape import Finite, check_shape
from migr.sentiment.data import read_clips
from migr.sentiment.sets import SentimentSet, sentiment_set

READINGS = ("", "greedy", "constrained")  # predictions.csv is the run's main reading
_PAIR = re.compile(r"\(?\s*(?:np\.float\d+\()?(-?[\d.]+|nan)\)?\s*,\s*(?:np\.float\d+\()?(-?[\d.]+|nan)\)?\s*\)?")
_PREDICTION = ("prediction", "pred", "predicted", "y_pred")
_TRUTH = ("truth", "label", "true", "target", "y_true")
# KuDA's log prints a grid for every epoch; its column names -> MMSA's
_KUDA = {"Acc-2": "Has0_acc_2", "Acc-2-N0": "Non0_acc_2", "F1": "Has0_F1_score", "F1-N0": "Non0_F1_score"}
_KUDA |= {"Acc-7": "Mult_acc_7", "MAE": "MAE", "Corr": "Corr"}
_KUDA_SIMS = {"Acc-2": "Mult_acc_2", "Acc-3": "Mult_acc_3", "Acc-5": "Mult_acc_5", "F1": "F1_score"}
_KUDA_SIMS |= {"MAE": "MAE", "Corr": "Corr"}


class _Weights(BaseModel):
    """How one expert's weight lies over clips."""

    mean: Finite
    std: Finite
    quartiles: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    with_intensity: Finite | None


class _Experts(BaseModel):
    """Of all experts."""

    local: _Weights
    semantic: _Weights
    whole: _Weights = Field(alias="global")


class _Fit(BaseModel):
    """done.json of a seed, as far as it is shown."""

    ablations_on_valid: dict[str, Finite | str | None] | None = None
    experts: _Experts | None = None
    warnings: list[str] = []


@dataclass
class Predictions:
    """One system: clip -> prediction for each seed (NaN unread, or the number of a class), and the truth.

    `fits`: what each seed's fit says of its parts.
    """

    name: str
    seeds: dict[str, dict[str, float]]
    truth: dict[str, float] = field(default_factory=dict)
    importance: list[Row] = field(default_factory=list)
    about: Row = field(default_factory=dict)
    fits: list[Row] = field(default_factory=list)

    def parts(self) -> Row:
        """What modalities, experts and pseudo tokens do, and how experts weigh: means over seeds; empty for tables."""
        shown: Row = {}
        if tables := [fit["ablations_on_valid"] for fit in self.fits if fit.get("ablations_on_valid")]:
            rows = {name: mean([table.get(name) for table in tables]) for name in tables[0]}
            shown["ablations_on_valid"] = rows | {"figure": tables[0].get("figure")}
        if weights := [fit["experts"] for fit in self.fits if fit.get("experts")]:
            shown["experts"] = {
                name: {key: mean([table[name][key] for table in weights]) for key in ("mean", "std", "with_intensity")}
                | {"quartiles": np.mean([table[name]["quartiles"] for table in weights], 0).tolist()}
                for name in ("local", "semantic", "global")
            }
        if lines := [line for fit in self.fits for line in fit.get("warnings", [])]:
            shown["warnings"] = lines
        return shown


def mean(values: Sequence[Any]) -> float | None:
    """Of those that are numbers; None where there are none."""
    numbers = [value for value in values if isinstance(value, int | float)]
    return float(np.mean(numbers)) if numbers else None


@dataclass
class Reported:
    """Figures that a system's own output states: they can be set beside others, not computed again."""

    name: str
    figures: Row
    note: str


def read_run(path: Path, dataset: SentimentSet | None, truth: dict[str, float]) -> list[Predictions | Reported]:
    """Whatever `path` is.

    Args:
        path: A folder of stages/sentiment.py, a CSV of predictions, a result CSV of MMSA or MSE-Adapter, a KuDA log.
        dataset: Of `--set`, if given.
        truth: Clip -> truth, for tables that have none.

    Raises:
        InputError: None of these; or the set is not known.
    """
    if path.is_dir():
        return read_folder(path, dataset)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if dataset is None:
        raise InputError(f"{path}: --set is missing; only runs of stages/sentiment.py say it themselves")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if "| Phase" in text:
        return [read_kuda(path, text, dataset)]
    if text.partition(",")[0].strip() in ("Model", "Models"):
        return list(read_results(path))
    return [read_table(path, dataset, truth)]


def set_of(path: Path) -> SentimentSet | None:
    """The set that a run's folder names; None for files."""
    return sentiment_set(read_object(path / "run.json")["set"]) if path.is_dir() else None


def read_folder(path: Path, dataset: SentimentSet | None) -> list[Predictions | Reported]:
    """A run: one entry for its main reading, one more for each further reading."""
    own = set_of(path)
    if own is None or (dataset is not None and own.name != dataset.name):
        raise InputError(f"{path}: a run on {own.name if own else '?'}, not on --set {dataset.name if dataset else ''}")
    folders = sorted(folder for folder in path.glob("seed-*") if (folder / "done.json").exists())
    if not folders:
        raise InputError(f"{path}: no finished seed in it (seed-*/done.json)")
    entries: list[Predictions | Reported] = []
    for reading in READINGS:
        entry = Predictions(f"{path.name} {reading}".strip(), {}, about=read_object(path / "run.json"))
        for folder in folders:
            file = folder / f"predictions{f'_{reading}' if reading else ''}.csv"
            if not file.exists():
                continue
            table = read_table(file, own, {})
            if entry.truth and entry.truth != table.truth:
                raise InputError(f"{file}: other clips or labels than {folders[0].name}")
            entry.seeds[folder.name.removeprefix("seed-")] = table.seeds[""]
            entry.truth = table.truth
            if not reading:
                entry.fits.append(read_object(folder / "done.json"))
                check_shape(_Fit, entry.fits[-1], f"{folder / 'done.json'}: not of stages/sentiment.py")
            if not reading and (folder / "importance.jsonl").exists():
                entry.importance += read_jsonl(folder / "importance.jsonl", ("clip_id", "importance"))
        if entry.seeds:
            entries.append(entry)
    return entries


def read_table(path: Path, dataset: SentimentSet, truth: dict[str, float]) -> Predictions:
    """A CSV with the columns id, prediction and truth; an optional `seed` makes several of it, `split` keeps test."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = {str(name).strip().casefold(): name for name in reader.fieldnames or ()}
            columns = [next((names[n] for n in known if n in names), None) for known in (_PREDICTION, _TRUTH)]
            if ("id" not in names and "clip_id" not in names) or columns[0] is None:
                raise InputError(f"{path}: expected the columns id,prediction,truth, found {', '.join(names)}")
            identity = names.get("id", names.get("clip_id"))
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 CSV ({error})") from None
    table = Predictions(path.stem, {})
    for number, row in rows:
        where = f"{path}:{number}"
        if "split" in names and (row[names["split"]] or "").strip() != "test":
            continue
        clip, seed = (row[identity] or "").strip(), (row[names["seed"]] or "").strip() if "seed" in names else ""
        seed_rows = table.seeds.setdefault(seed, {})
        if clip in seed_rows:
            raise InputError(f"{where}: {clip!r} stands there twice")
        seed_rows[clip] = value_of(row[columns[0]], dataset)
        if columns[1] is not None:
            true = value_of(row[columns[1]], dataset)
            if math.isnan(true) or (true < 0 and not dataset.is_score):
                raise InputError(f"{where}: truth {row[columns[1]]!r} is no label of {dataset.name}")
            if dataset.is_score and abs(true) > dataset.bound + 1e-4:
                raise InputError(f"{where}: truth {true:g}; scores of {dataset.name} lie in ±{dataset.bound:g}")
            table.truth[clip] = true
    if not table.seeds:
        raise InputError(f"{path}: no predictions in it")
    if columns[1] is None:
        lacking = next((clip for rows in table.seeds.values() for clip in rows if clip not in truth), None)
        if lacking is not None:
            raise InputError(f"{path}: no column truth, and clip {lacking!r} is not in --data either")
        table.truth = {clip: truth[clip] for rows in table.seeds.values() for clip in rows}
    return table


def value_of(text: str | None, dataset: SentimentSet) -> float:
    """A score, NaN where it is none; or the number of a class by number or name, -1 where it is none."""
    word = (text or "").strip()
    if not dataset.is_score and word.casefold() in dataset.labels:
        return float(dataset.labels.index(word.casefold()))
    try:
        value = float(word)
    except ValueError:
        return math.nan if dataset.is_score else -1.0
    if dataset.is_score:
        return value if math.isfinite(value) else math.nan
    return value if value in range(len(dataset.labels)) else -1.0


def truths(folder: Path, dataset: SentimentSet) -> dict[str, float]:
    """Clip -> truth of the test split of a data folder."""
    return {clip.clip_id: clip.target for clip in read_clips(folder, dataset)["test"]}


def read_results(path: Path) -> list[Reported]:
    """MMSA's and MSE-Adapter's result CSV: a row a model, a cell a pair of mean and deviation times 100, as text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a UTF-8 CSV ({error})") from None
    reports = []
    for row in rows:
        model = row.pop("Model", None) or row.pop("Models", None) or "?"
        figures: Row = {}
        for name, cell in row.items():
            match = _PAIR.search(cell or "") if name else None
            if name and match:
                try:
                    figures[name], figures[f"{name}_std"] = (float(part) / 100 for part in match.groups())
                except ValueError:
                    raise InputError(f"{path}: {model}: {name}: {cell[:40]!r} is no pair of numbers") from None
        if not figures:
            raise InputError(f"{path}: {model}: no pairs (mean, deviation) in its row")
        reports.append(Reported(f"{path.stem} {model}", figures, "as its own result file states; not computed again"))
    return reports


def read_kuda(path: Path, text: str, dataset: SentimentSet) -> Reported:
    """KuDA's log: test is printed in every epoch; the epoch is chosen by valid MAE, as KuDA itself does not choose."""
    names = _KUDA if dataset.bound > 1 else _KUDA_SIMS
    header: list[str] = []
    epochs: list[dict[str, dict[str, float]]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "Phase":
            header = cells[1:]
            epochs.append({})
        elif header and cells[0] in ("Train", "Valid", "Test") and len(cells) == len(header) + 1:
            try:
                epochs[-1][cells[0]] = dict(zip(header, map(float, cells[1:]), strict=True))
            except ValueError:
                raise InputError(f"{path}: no numbers in {line.strip()[:80]!r}") from None
    epochs = [epoch for epoch in epochs if {"Valid", "Test"} <= set(epoch) and "MAE" in epoch["Valid"]]
    if not epochs:
        raise InputError(f"{path}: no epoch with Valid and Test in it")
    best = min(range(len(epochs)), key=lambda i: epochs[i]["Valid"]["MAE"])
    figures: Row = {names[key]: value for key, value in epochs[best]["Test"].items() if key in names}
    note = f"its log: test at epoch {best + 1} of {len(epochs)}, which has the best valid MAE; F1 swapped (--as kuda)"
    return Reported(path.stem, figures, note)
