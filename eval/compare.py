"""Compare runs on the same clips: is the difference larger than chance, and which clips changed?

    python eval/compare.py runs/demo/eval/baseline runs/demo/eval/migr --labels dfew --out runs/compared

A RUN is a folder of eval/consistency.py (predictions.jsonl and judgements.jsonl, or the files that its metrics.json
names). Every other run is compared with the first: each rate's difference with a paired bootstrap interval (clips are
resampled, with what both runs made of them), and exact McNemar tests on the clips where the runs differ. compare.json
holds all figures, changed.jsonl each clip that changed its cell, report.html the runs side by side. Where all runs have
a RUN/drift (eval/drift.py), its figures are compared too, on the clips on which both were measured.

Runs on different clips are refused, unless --common restricts them to the clips that all have; so are other label sets
and other judges (--any_judge), because then the judge's difference would pass for the runs'.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.figures import drift, tally
from eval.figures.codes import CELL_OF, MISSING, OUTCOMES, Ints, hidden_of, outcome_of, start_of
from eval.figures.metrics import check_resamples
from eval.figures.paired import differences, mcnemar
from eval.page.browser import run_of
from eval.page.stored import read_metrics
from eval.page.tables import comparison, percent
from eval.report import write_page
from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.parsing import is_file
from migr.files.records import Row, iter_jsonl, write_json, write_jsonl
from migr.text.labels import LabelSet, label_set


@dataclass
class Side:
    """One run: where it comes from, its judge, and its tally."""

    name: str
    predictions: Path
    judge: str
    table: tally.Tally

    def column(self, name: str, rows: Ints) -> Ints:
        """(n,) one of the tally's columns for the chosen rows."""
        return np.asarray(getattr(self.table, name), np.int64)[rows]


def read_side(folder: Path, name: str, label_name: str, dominants: tally.Dominants | None) -> Side:
    """Read a run's folder.

    Raises:
        InputError: A file is missing or wrong, or the run was counted with another label set.
    """
    settings = read_metrics(folder).get("settings") or {}
    labels = label_set(label_name)
    if settings.get("labels", labels.name) != labels.name:
        counted = settings["labels"]
        raise InputError(f"{folder}: counted with the labels {counted!r}, not {labels.name!r} (--labels names the set)")

    def file(key: str) -> Path:
        path = folder / f"{key}.jsonl"
        return Path(settings[key]) if isinstance(settings.get(key), str) and not path.is_file() else path

    table = tally.read_predictions(file("predictions"), labels)
    judge = tally.read_judgements(file("judgements"), labels, table) if is_file(file("judgements")) else "no judge"
    if dominants is not None:
        tally.add_dominants(table, dominants)
    return Side(name, file("predictions"), judge, table)


def align(sides: Sequence[Side], common: bool) -> list[Ints]:
    """For each run the rows of the clips that are compared, in the order of the first run.

    Raises:
        InputError: The clips differ and `common` is not set, none is common, or a clip has different labels.
    """
    first = sides[0]
    rows: list[Ints] = [np.arange(len(first.table)), *(side.table.rows(first.table.clips) for side in sides[1:])]
    keep = np.all([side_rows != MISSING for side_rows in rows], axis=0)
    if not common:
        for side, side_rows in zip(sides, rows, strict=True):
            extra = len(side.table) - int((side_rows != MISSING).sum())
            lacking = int((side_rows == MISSING).sum())
            if extra or lacking:
                example = (
                    f", such as {tally.clip_at(first.predictions, int(np.argmin(side_rows)))!r}" if lacking else ""
                )
                raise InputError(
                    f"{side.name} lacks {lacking} clips of {first.name}{example}, and has {extra} others: "
                    "--common compares those that all runs have"
                )
    if not keep.any():
        raise InputError(f"{', '.join(side.name for side in sides)}: no clip is common to these runs")
    rows = [side_rows[keep] for side_rows in rows]
    for side, side_rows in zip(sides[1:], rows[1:], strict=True):
        other = first.column("labels", rows[0]) != side.column("labels", side_rows)
        if other.any():
            name = tally.clip_at(first.predictions, int(rows[0][int(np.argmax(other))]))
            raise InputError(f"clip {name!r} has another label in {side.name} than in {first.name}")
    return rows


def changed(sides: Sequence[Side], rows: Sequence[Ints], outcomes: Sequence[Ints], labels: LabelSet) -> Iterator[Row]:
    """The clips whose cell is not the same in all runs, with each run's cell, answer and judgement."""

    def word(code: int) -> str | None:
        return None if code < 0 else labels.labels[code]

    cells = np.array([CELL_OF[outcome] for outcome in range(OUTCOMES)])
    named = [cells[outcome] for outcome in outcomes]
    moved = np.any([cell != named[0] for cell in named[1:]], axis=0)
    place = {int(row): i for i, row in enumerate(rows[0]) if moved[i]}
    for number, row in enumerate(iter_jsonl(sides[0].predictions, tally.PREDICTION_KEYS)):
        if (i := place.get(number)) is None:
            continue
        runs = {
            side.name: {
                "cell": str(cell[i]),
                "answer": word(side.table.answers[side_rows[i]]),
                "judged": word(side.table.judgements[side_rows[i]]),
            }
            for side, side_rows, cell in zip(sides, rows, named, strict=True)
        }
        yield {"clip_id": row["clip_id"], "label": word(sides[0].table.labels[number]), "runs": runs}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of eval/consistency.py; the first is compared with")
    add("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    add("--importance", type=Path, help="importance.jsonl, for the start with the dominant modality")
    add("--common", action="store_true", help="compare only the clips that all runs have")
    add("--any_judge", action="store_true", help="allow different judges")
    add("--out", type=Path, help="folder for compare.json and changed.jsonl")
    add("--resamples", type=int, default=2000, help="bootstrap resamples")
    add("--seed", type=int, default=0, help="seed of the bootstrap")
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        raise InputError("give two runs or more to compare")
    check_resamples(args.resamples, args.seed)
    return args


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names; as long as they must be to differ."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("the same run is given twice")
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def main(argv: Sequence[str]) -> Row:
    """Config, runs, figures, files; returns the figures."""
    # Config
    args = _arguments(argv)
    labels = label_set(args.labels)
    dominants = tally.read_dominants(args.importance) if args.importance else None

    # Runs
    names = _names(args.runs)
    sides = [read_side(folder, name, args.labels, dominants) for folder, name in zip(args.runs, names, strict=True)]
    if len({side.judge for side in sides}) > 1 and not args.any_judge:
        judges = ", ".join(f"{side.name} by {side.judge!r}" for side in sides)
        raise InputError(f"judged by different judges ({judges}): judge them alike, or allow it with --any_judge")
    rows = align(sides, args.common)

    # Figures
    truth = sides[0].column("labels", rows[0])
    outcomes, places = [], []
    for side, common in zip(sides, rows, strict=True):
        answers = side.column("answers", common)
        outcomes.append(outcome_of(truth, answers, side.column("judgements", common)))
        starts = start_of(side.column("first", common), side.column("dominants", common))
        places.append((outcomes[-1], starts, hidden_of(truth, answers, side.column("hidden", common))))
    figures: Row = {"n": len(truth), "labels": labels.name, "first": names[0], "judge": sides[0].judge, "runs": {}}
    for name, outcome, place in zip(names[1:], outcomes[1:], places[1:], strict=True):
        moves = Counter((CELL_OF[a], CELL_OF[b]) for a, b in zip(outcomes[0].tolist(), outcome.tolist(), strict=True))
        figures["runs"][name] = {
            "differences": differences(truth, places[0], place, len(labels.labels), args.resamples, args.seed),
            "mcnemar": mcnemar(outcomes[0], outcome),
            "cells": [{"from": a, "to": b, "n": n} for (a, b), n in sorted(moves.items())],
            "n_changed": sum(n for (a, b), n in moves.items() if a != b),
        }
    if (measured := drift.read_runs(args.runs, args.any_judge)) is not None:
        for name, rows_there in zip(names[1:], measured[1:], strict=True):
            figures["runs"][name]["drift"] = drift.differences(measured[0], rows_there, args.resamples, args.seed)

    # Save
    if args.out is not None:
        write_json(args.out / "compare.json", figures)
        write_jsonl(args.out / "changed.jsonl", changed(sides, rows, outcomes, labels))
        named = zip(args.runs, names, strict=True)
        runs = [run_of(folder, args.labels, None, args.importance, name) for folder, name in named]
        write_page(args.out / "report.html", runs, tables=comparison(figures))
    show(figures)
    where = f" -> {args.out}/compare.json, changed.jsonl, report.html" if args.out else ""
    print(f"compare: {' against '.join(names)} on {len(truth)} clips{where}")
    return figures


def show(figures: Row) -> None:
    """Print the figures as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for name, metrics in figures["runs"].items():
        table = Table("", escape(figures["first"]), escape(name), "difference, points", show_edge=False, pad_edge=False)
        for rate, row in metrics["differences"].items():
            if row["difference"] is not None:
                low, high = (100 * bound for bound in row["difference_ci95"])
                change = f"{100 * row['difference']:+.2f}  [{low:+.2f}, {high:+.2f}]"
                table.add_row(rate, percent(row["first"]), percent(row["second"]), change)
        table.add_section()
        for heading, first, second, change, bounds in drift.compared(metrics.get("drift", {})):
            table.add_row(heading, first, second, f"{change}  [{bounds}]")
        console.print(table)
        for test, row in metrics["mcnemar"].items():
            p = "–" if row["p"] is None else f"{row['p']:.3g}"
            counts = f"only first {row['only_first']}, only second {row['only_second']} of {row['n']}"
            console.print(f"McNemar, {test}: {counts}, p = {p}", highlight=False)
        moved = [row for row in metrics["cells"] if row["from"] != row["to"]]
        console.print(f"{metrics['n_changed']} clips changed their cell", highlight=False)
        for row in sorted(moved, key=lambda row: -row["n"]):
            console.print(f"  {row['from']} -> {row['to']}: {row['n']}", highlight=False)


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
