"""What the importance stage shows: tables in the terminal, and one self-contained HTML page with plots and clips."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.table import Table

from migr.files.records import Row, atomic

SHOWN = 12  # most certain clips, and as many of the least certain

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
 body { font: 15px/1.45 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
 table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
 td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #8884; }
 td.n { font-variant-numeric: tabular-nums; } img { max-width: 100%; background: white; } .bad { color: #b00020; }
 @media (prefers-color-scheme: dark) { body { background: #16181c; color: #e4e6ea; } .bad { color: #ff8a80; } }
</style>
<h1>{{ title }}</h1>
<p>{{ intro }}</p>
{% for name, said in collapse.items() %}<p class="bad"><b>{{ name }} has collapsed</b>: {{ said }}.</p>{% endfor %}
<h2>Agreement with independent estimates</h2>
<table><tr><th>estimate<th>has an opinion on<th>agrees<th>Cohen's κ<th>is itself right (planted)</tr>
{% for name, row in agreement.items() %}<tr><td>{{ name }}<td class="n">{{ row.n }} clips
<td class="n">{{ row.agree | rate }}
<td class="n">{{ row.kappa | number }}<td class="n">{{ row.right | rate }}</tr>{% endfor %}</table>
{% if calibration %}<h2>Calibration</h2>
<table><tr><th>head<th>clips<th>expected calibration error<th>temperature<th>error with it</tr>
{% for name, row in calibration.items() %}<tr><td>{{ name }}<td class="n">{{ row.n }}
<td class="n">{{ row.ece | number }}
<td class="n">{{ row.temperature | number }}
<td class="n">{{ row.ece_scaled | number }}</tr>{% endfor %}</table>{% endif %}
<h2>Threshold on the margin</h2>
<table><tr><th>--min_margin<th>clips kept<th>agree with leave-one-out<th>planted modality found</tr>
{% for row in thresholds %}<tr><td class="n">{{ row.min_margin }}<td class="n">{{ row.kept | rate }}
<td class="n">{{ row.agree | rate }}<td class="n">{{ row.right | rate }}</tr>{% endfor %}</table>
{% for image in images %}<img alt="plots" src="{{ image }}">{% endfor %}
{% for heading, rows in clips.items() %}<h2>{{ heading }}</h2>
<table><tr><th>clip<th>about<th>dominant<th>margin<th>importance</tr>
{% for row in rows %}<tr><td>{{ row.clip_id }}<td>{{ row.target }}<td>{{ row.dominant }}
<td class="n">{{ row.margin | number }}
<td class="n">{% for m, w in row.importance.items() %}{{ m }} {{ w | number }} {% endfor %}</tr>{% endfor %}</table>
{% endfor %}</html>
"""


def write_page(path: str | Path, found: Row, rows: Sequence[Row], images: Sequence[Path], intro: str) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        found: Of `measure.trust_of`.
        rows: The lines of importance.jsonl of the same clips.
        images: PNG files, embedded.
        intro: Which clips, which network.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters.update(rate=rate, number=number)
    ordered = sorted(rows, key=lambda row: -row["margin"])
    page = environment.from_string(PAGE).render(
        title="Which modality carries the emotion, and how sure is that?",
        intro=intro,
        images=["data:image/png;base64," + base64.b64encode(file.read_bytes()).decode() for file in images],
        clips={"Least certain clips": ordered[::-1][:SHOWN], "Most certain clips": ordered[:SHOWN]},
        **{key: found[key] for key in ("agreement", "calibration", "thresholds", "collapse")},
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
    splits, found = summary["splits"], summary["trust"]
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
    for key in ("mae", "pearson", "acc2_non0", "acc7"):
        if any("sentiment" in part for part in splits.values()):
            values = [part["sentiment"]["fused"][key] if "sentiment" in part else None for part in splits.values()]
            table.add_row("sentiment", key, *map(number, values))
    Console().print(table)

    table = Table(title=f"agreement of the importance with other estimates ({found['split']} clips)")
    for column in ("estimate", "clips", "agrees", "kappa", "right (planted)"):
        table.add_column(column, justify="left" if column == "estimate" else "right")
    for name, row in found["agreement"].items():
        table.add_row(name, str(row["n"]), rate(row["agree"]), number(row["kappa"]), rate(row["right"]))
    Console().print(table)
    for name, said in found["collapse"].items():
        print(f"warning: {name.replace('_', ' ')} has collapsed; {said}")
