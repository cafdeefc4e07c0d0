r"""The sentiment field's figures, exactly as MMSA computes them, of runs, of anybody's CSV, of others' result files.

    python eval/sentiment.py runs/mosi/agfn runs/mosi/egmf --out runs/mosi/table
    python eval/sentiment.py predictions.csv --set mosi --out runs/scored          (columns id,prediction,truth)

A RUN is a folder of stages/sentiment.py; a CSV with the columns id, prediction and truth (or --data, the folder of
stages/features.py that has the truth); a result CSV of MMSA or MSE-Adapter; or KuDA's log. Both Acc-2 and both F1 are
always given, with 95 % intervals over clips, mean and deviation over seeds, paired tests against the first run, the
share of predictions at exactly 0, and the share that could not be read; of runs also what each modality and expert
does on valid, how the experts' weights lie over clips and follow the strength of the true score, and what went wrong.
Published rows stand beside it with their source and convention. Writes metrics.json (MMSA's key names) and report.html;
docs/sentiment.md explains the figures.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.figures.metrics import check_resamples
from eval.figures.sentiment import Scored, agreeing, compare, draw
from eval.figures.sentiment_runs import Predictions, Reported, read_run, set_of, truths
from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.records import Row, atomic, write_json
from migr.sentiment.metrics import CONVENTIONS
from migr.sentiment.sets import SETS, SentimentSet, sentiment_set

PUBLISHED = Path(__file__).parents[1] / "configs" / "sentiment" / "published.csv"
NOT_SHARES = ("MAE", "Corr")


def published(dataset: SentimentSet) -> list[Row]:
    """Published rows of a set: system, figures by MMSA's names (shares as fractions), source, convention."""
    if not PUBLISHED.exists():
        return []
    entries = []
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["set"] == dataset.name:
                about = {key: row[key] for key in ("system", "source", "convention")}
                names = [name for name in row if name not in ("set", *about) and row[name]]
                values = {name: float(row[name]) / (1 if name in NOT_SHARES else 100) for name in names}
                entries.append({**about, "figures": values})
    return entries


def scored(entries: Sequence[Predictions], dataset: SentimentSet, args: Any) -> dict[str, Scored]:
    """Every system on the clips that all of them have, in one order, under one bootstrap."""
    per_seed = [list(rows) for entry in entries for rows in entry.seeds.values()]
    clips = agreeing(per_seed)
    lacking = max(len(names) for names in per_seed) - len(clips)
    if not clips:
        raise InputError("the runs have no clip in common: their ids differ")
    if lacking and not args.common:
        raise InputError(f"{lacking} clips are not in all runs: compare those that are with --common")
    first = entries[0]
    for entry in entries[1:]:
        other = next((clip for clip in clips if abs(entry.truth[clip] - first.truth[clip]) > 1e-4), None)
        if other is not None:
            raise InputError(f"clip {other!r} has another truth in {entry.name} than in {first.name}")
    truth = np.array([first.truth[clip] for clip in clips])
    truth = truth.astype(np.float32) if dataset.is_score else truth.astype(np.int64)
    weights = draw(len(clips), args.resamples, args.seed)
    runs = {}
    for entry in entries:
        seeds = {seed: np.array([rows[clip] for clip in clips], dtype=np.float32) for seed, rows in entry.seeds.items()}
        runs[entry.name] = Scored(dataset, seeds, truth, args.convention, weights)
    return runs


def importance_by_class(entry: Predictions, dataset: SentimentSet) -> dict[str, dict[str, float]]:
    """Mean importance of each modality by true class: the labels, or negative, neutral and positive."""
    groups: dict[str, list[Mapping[str, float]]] = {}
    for row in entry.importance:
        true = entry.truth.get(row["clip_id"])
        if true is None:
            continue
        if dataset.is_score:
            name = "negative" if true < 0 else "positive" if true > 0 else "neutral"
        else:
            name = dataset.labels[int(true)]
        groups.setdefault(name, []).append(row["importance"])
    names = sorted({modality for rows in groups.values() for row in rows for modality in row})
    return {g: {m: float(np.mean([row.get(m, 0.0) for row in rows])) for m in names} for g, rows in groups.items()}


def shown(name: str, value: float | None) -> str:
    """A figure as the field prints it: shares in percent, MAE and Corr as they are."""
    if value is None:
        return "–"
    return f"{value:.3f}" if name in NOT_SHARES else f"{100 * value:.2f}"


def show(runs: Mapping[str, Row], names: Sequence[str]) -> None:
    """Print the table in the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(Text(run), justify="right")
    for name in names:
        cells = []
        for row in runs.values():
            std, ci = row.get(f"{name}_std"), row.get(f"{name}_ci95")
            cell = Text(shown(name, row.get(name)))
            cell.append(f" ±{shown(name, std)}" if std is not None else "")
            cells.append(cell.append(f"\n{shown(name, ci[0])} to {shown(name, ci[1])}" if ci else "", style="dim"))
        table.add_row(name, *cells)
    for name in ("n", "n_seeds", "share_exactly_0", "share_unread"):
        if any(name in row for row in runs.values()):
            values = [row.get(name) for row in runs.values()]
            table.add_row(
                name, *(f"{v:.3f}" if isinstance(v, float) else str(v if v is not None else "–") for v in values)
            )
    Console().print(table)


def write_page(path: Path, content: Row) -> None:
    """Write the page: figures, published rows, error by true score, importance by class."""
    from markupsafe import Markup

    from migr.page import environment

    folder = Path(__file__).parent / "page"
    templates = environment(folder)
    templates.filters["figure"] = lambda value, name: shown(name, value)
    css = Markup((folder / "page.css").read_text(encoding="utf-8"))  # noqa: S704  (our own file)
    page = templates.get_template("sentiment.html.j2").render(**content, css=css, title=f"Sentiment: {content['set']}")
    with atomic(path) as file:
        file.write(page)


def arguments(argv: Sequence[str]) -> Any:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="what to score; the first is compared with")
    add("--set", help=f"{', '.join(SETS)} (default: what the runs say)")
    add("--data", type=Path, help="folder of stages/features.py: the truth, for tables without it")
    add("--as", dest="convention", choices=list(CONVENTIONS), default="mmsa", help="whose definitions (default mmsa)")
    add("--common", action="store_true", help="compare only the clips that all runs have")
    add("--out", type=Path, required=True, help="folder for metrics.json and report.html")
    add("--resamples", type=int, default=2000, help="bootstrap resamples")
    add("--seed", type=int, default=0, help="seed of the bootstrap")
    args = parser.parse_args(argv)
    check_resamples(args.resamples, args.seed)
    return args


def main(argv: Sequence[str]) -> Row:
    """Config, runs, figures, files; returns the figures."""
    # Config
    args = arguments(argv)
    own = [set_of(path) for path in args.runs if path.is_dir() and (path / "run.json").exists()]
    dataset = sentiment_set(args.set) if args.set else next((choice for choice in own if choice is not None), None)
    truth = truths(args.data, dataset) if args.data and dataset else {}

    # Runs
    entries = [entry for path in args.runs for entry in read_run(path, dataset, truth)]
    if dataset is None:
        raise InputError("--set is missing")
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two runs are called {twice!r}: rename a file or folder")
    predictions = [entry for entry in entries if isinstance(entry, Predictions)]

    # Figures
    table = scored(predictions, dataset, args) if predictions else {}
    runs: dict[str, Row] = {}
    for entry in entries:
        if isinstance(entry, Reported):
            runs[entry.name] = {**entry.figures, "note": entry.note}
            continue
        runs[entry.name] = {**table[entry.name].row(), "about": entry.about, **entry.parts()}
        if entry.importance:
            runs[entry.name]["importance_by_class"] = importance_by_class(entry, dataset)
    first = next(iter(table.values()), None)
    paired = {name: compare(first, side, args.seed) for name, side in table.items() if first and side is not first}
    keys = list(first.draws) if first else [key for key in runs[names[0]] if key != "note" and not key.endswith("_std")]
    content: Row = {
        "set": dataset.name,
        "convention": f"{args.convention}: {CONVENTIONS[args.convention]}",
        "figures": keys,
        "runs": runs,
        "first": next(iter(table), None),
        "paired": paired,
        "published": published(dataset),
    }

    # Save
    write_json(args.out / "metrics.json", content)
    write_page(args.out / "report.html", content)
    show(runs, keys)
    for name, row in paired.items():
        change, p = row["error"]["difference"], row["error"]["p"]
        print(f"{name} against {content['first']}: mean error {change:+.4f}, p {p:.2g}")
    print(f"sentiment: {', '.join(names)} on {dataset.name} -> {args.out}/metrics.json, report.html")
    return content


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
