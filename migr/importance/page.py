"""What the importance stage shows: tables in the terminal, and one self-contained HTML page with plots and clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from migr.files.records import Row, atomic
from migr.page import data_uri, environment

SHOWN = 12  # most certain clips, and as many of the least certain


def write_page(path: str | Path, trust: Row, rows: Sequence[Row], images: Sequence[Path], intro: str) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        trust: Of `measure.trust_of`.
        rows: The lines of importance.jsonl of the same clips.
        images: PNG files, embedded.
        intro: Which clips, which network.
    """
    templates = environment()
    templates.filters.update(rate=rate, number=number)
    ordered = sorted(rows, key=lambda row: -row["margin"])
    page = templates.get_template("importance.html.j2").render(
        title="Which modality carries the emotion, and how sure is that?",
        intro=intro,
        images=[data_uri(file) for file in images],
        clips={"Least certain clips": ordered[::-1][:SHOWN], "Most certain clips": ordered[:SHOWN]},
        **{key: trust[key] for key in ("agreement", "calibration", "thresholds", "collapse")},
    )
    with atomic(path) as file:
        file.write(page)


def rate(value: Any) -> str:
    """A fraction as percent, a dash for None."""
    return "-" if value is None else f"{value:.1%}"


def number(value: Any) -> str:
    """Three decimals, a dash for None."""
    return "-" if value is None else f"{value:.3f}"


def show(summary: Row) -> None:
    """Print the accuracies as a table, a column a split, then the agreements and what is wrong, if anything."""
    splits, trust = summary["splits"], summary["trust"]
    alpha = summary["alpha"]
    table = Table(
        title="importance"
        if alpha is None
        else f"importance: alpha {alpha:.2f} (1: entropy gate alone, 0: importance gate alone)"
    )
    table.add_column("accuracy")
    table.add_column("by")
    for name, part in splits.items():
        table.add_column(f"{name} (n={part['n']}{', K-fold' if name == 'train' else ''})", justify="right")
    for group, title in (("label_accuracy", "emotion"), ("dominant_accuracy", "dominant")):
        keys = dict.fromkeys(key for part in splits.values() for key in part[group] or {})
        for key in keys:
            table.add_row(title, key.replace("_", " "), *(rate((p[group] or {}).get(key)) for p in splits.values()))
        table.add_section()
    if any(part["quality_spearman"] is not None for part in splits.values()):
        table.add_row("quality", "Spearman", *(number(part["quality_spearman"]) for part in splits.values()))
    for key in ("MAE", "Corr", "Non0_acc_2", "Mult_acc_7"):
        if any("sentiment" in part for part in splits.values()):
            values = [part["sentiment"]["fused"][key] if "sentiment" in part else None for part in splits.values()]
            table.add_row("sentiment", key, *map(number, values))
    Console().print(table)

    table = Table(title=f"agreement of the importance with other estimates ({trust['split']} clips)")
    for column in ("estimate", "clips", "agrees", "kappa", "right (planted)"):
        table.add_column(column, justify="left" if column == "estimate" else "right")
    for name, row in trust["agreement"].items():
        table.add_row(name, str(row["n"]), rate(row["agree"]), number(row["kappa"]), rate(row["right"]))
    Console().print(table)
    for name, message in trust["collapse"].items():
        print(f"warning: {name.replace('_', ' ')} has collapsed; {message}")
