"""Put the runs of the demo and of the experiment together: `results.json`, one page, the results table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.figures.rates import RATES
from eval.page.browser import Run
from eval.page.tables import Table, percent, print_table
from eval.report import write_page
from migr.files.records import atomic, read_json, write_json
from migr.planted.truth import segment_truth
from migr.text.labels import label_set
from migr.training.history import PANELS, plot, read_history
from stages.demo.drift_report import figures_of
from stages.demo.models import Cell

COLUMNS = {rate.name: rate.column for rate in RATES if rate.column}  # of the results table


def write(run: Path, variants: Sequence[str], orders: Sequence[Cell] = ()) -> dict[str, Any]:
    """Write `results.json` and `report.html` of one run; returns the results.

    Args:
        run: The run's folder.
        variants: Which were trained.
        orders: The models that show when the order matters, in RUN/order.
    """
    metrics = {}
    clips = run / "clips" / "clips.jsonl"
    for variant in variants:
        folder = run / "eval" / variant
        metrics[variant] = {**read_json(folder / "metrics.json"), **segment_truth(folder / "predictions.jsonl", clips)}
    scored = read_json(run / "importance" / "summary.json")["splits"]["test"]
    importance = {"accuracy": scored["dominant_accuracy"]["attribution"], **scored}
    judges = read_json(run / "judge" / "accuracy.json")
    seconds = read_json(run / "seconds.json")
    base = read_json(run / "check.json")
    results = {"variants": metrics, "importance": importance, "judges": judges, "base": base, "seconds": seconds}
    if orders:
        results["order"] = {cell.targets: figures_of(run / "order", cell, clips) for cell in orders}
    write_json(run / "results.json", results)
    importances = run / "importance" / "importance.jsonl"
    runs = []
    for variant, figures in metrics.items():
        predictions, judgements = (run / "eval" / variant / f"{name}.jsonl" for name in ("predictions", "judgements"))
        runs.append(Run(variant, figures, label_set("dfew"), predictions, judgements, importances, clips))
    curve = run / "grpo" / "curves.png"
    plot({variant: read_history(run / "grpo" / variant) for variant in variants}, curve, list(PANELS)[:1])
    gates = [("Modality importance", [run / "importance" / "gates.png"]), ("Consistency during GRPO", [curve])]
    write_page(
        run / "report.html",
        runs,
        gates,
        title="Does the explanation support the answer?",
        intro="The planted benchmark: clips made by the project, one modality carries the emotion, the other misleads. "
        "baseline: video-first SFT, GRPO with accuracy and format. migr: dominant-first SFT, GRPO with all rewards.",
        tables=[
            Table(
                "Is it true of the clip?",
                ("", *metrics),
                [
                    ("Segments about the dominant modality that say what it shows", *map(_truth, metrics.values())),
                ],
                "Only the planted benchmark knows what a modality shows.",
            ),
            *([_order_table(results["order"])] if orders else []),
        ],
    )
    return results


ORDER_ROWS = {  # figure -> what it is; of `stages.demo.drift_report`
    "headline": "Inconsistent among correct",
    "video": "… where the video is dominant",
    "audio": "… where the sound is dominant",
    "war": "Right answers (WAR)",
    "pull_next": "Pull of the first segment on the next",
}


def _order_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    head = {"video-first": "written from the video on", "rewritten": "written from the dominant modality on"}
    rows = [(name, *(percent(row[key]) for row in figures.values())) for key, name in ORDER_ROWS.items()]
    return Table(
        "Does the order matter?",
        ("", *(head[name] for name in figures)),
        rows,
        "Two models more, from texts of an annotator whose second description follows the first one's emotion in six "
        "clips of ten; SFT alone, no rewards. Pull: how often the next segment takes the emotion of an exchanged first "
        "one, beyond how often it has it anyway. The whole experiment: docs/drift.md.",
    )


def _truth(figures: Mapping[str, Any]) -> str:
    return f"{percent(figures['segment_truth'])}, n {figures['segment_truth_n']}"


def show(run: Path, seconds: float) -> None:
    """Print the table, the reliability of what it rests on, the time and the page's path."""
    results = read_json(run / "results.json")
    print()
    print_table(results["variants"])
    for name, figures in results["variants"].items():
        truth = percent(figures["segment_truth"])
        print(f"{name}: {truth} of {figures['segment_truth_n']} segments on the dominant modality say what it shows")
    for name, row in results.get("order", {}).items():
        rates = f"{percent(row['headline'])} inconsistent among correct, pull {percent(row['pull_next'])}"
        print(f"coherent texts, {name}: {rates}")
    base = results["base"]["all"]
    print(f"the base answers directly on {percent(base['right'])} of {base['n']} validation clips")
    importance = results["importance"]
    others = ", ".join(f"{name.replace('_', ' ')} {percent(x)}" for name, x in importance["dominant_accuracy"].items())
    print(f"importance names the planted dominant modality on {percent(importance['accuracy'])} of the test clips")
    print(f"  ({others})")
    for name, row in results["judges"].items():
        print(f"judge {name} agrees with {percent(row['accuracy'])} of {row['n']} labelled texts")
    print(f"{seconds:.0f} s in all; the page: {run / 'report.html'}")


def write_results(runs: Mapping[int, Path], variants: Sequence[str], out: Path) -> None:
    """Write the tables of the experiment: each seed and the mean over seeds.

    Args:
        runs: Seed -> folder of its run.
        variants: Which of them, the one that others are compared with first.
        out: Markdown file; `results_notes.md` beside it says what they mean.
    """
    results = {seed: read_json(run / "results.json") for seed, run in runs.items()}
    lines = [
        "# Results on the planted benchmark",
        "",
        "Made by `make experiment`; every figure comes from the `results.json` of a seed's run. Rates in percent, with "
        "95 % bootstrap intervals over the test clips of that seed; the last rows are means over the seeds.",
        "",
        f"| seed | variant | {' | '.join(COLUMNS.values())} | segment truth |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for seed, result in results.items():
        for variant in variants:
            lines.append(f"| {seed} | {variant} | {_cells(result['variants'][variant])} |")
    for variant in variants:
        means = {
            key: float(np.mean([r["variants"][variant][key] for r in results.values()]))
            for key in (*COLUMNS, "segment_truth")
        }
        lines.append(f"| mean | **{variant}** | {_cells(means)} |")
    lines += ["", *_ratios(results, variants), "", "## What the figures rest on", ""]
    lines += [
        "| seed | base answers directly | dominant modality right | judge | its accuracy |",
        "|---|---|---|---|---|",
    ]
    for seed, result in results.items():
        base, right = percent(result["base"]["all"]["right"]), percent(result["importance"]["accuracy"])
        for name, row in result["judges"].items():
            lines.append(f"| {seed} | {base} | {right} | {name} | {percent(row['accuracy'])} of {row['n']} |")
    lines += ["", "What they mean, and what was tried: [results_notes.md](results_notes.md)."]
    with atomic(out) as file:
        file.write("\n".join(lines) + "\n")
    print(f"experiment: {len(runs)} seeds, {len(variants)} variants -> {out}")


def _ratios(results: Mapping[int, Mapping[str, Any]], variants: Sequence[str]) -> list[str]:
    """The headline as a share of the first variant's, seed by seed and for the means."""
    first, *others = variants
    rows = [{v: r["variants"][v]["inconsistent_among_correct"] for v in variants} for r in results.values()]
    rows.append({v: float(np.mean([row[v] for row in rows])) for v in variants})
    lines = [f"Inconsistent among correct, as a share of {first}'s (in the literature 0.41):", ""]
    lines += [f"| seed | {' | '.join(others)} |", "|---" * len(variants) + "|"]
    for name, row in zip([*map(str, results), "mean"], rows, strict=True):
        cells = (f"{row[v] / row[first]:.2f}" if row[first] else "–" for v in others)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cells(figures: Mapping[str, Any]) -> str:
    cells = []
    for key in (*COLUMNS, "segment_truth"):
        cell = percent(figures[key])
        if interval := figures.get(f"{key}_ci95"):
            cell += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
        cells.append(cell)
    return " | ".join(cells)
