"""How drift is shown: a table in the terminal, curves, and the page with the clips that drift most."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.figures.drift import FIGURES, GROUPS, MODALITIES, TENTHS, most_drifting, shown
from eval.page.tables import percent
from migr.files.records import Row, atomic
from migr.page import data_uri, environment

MOST = 20  # clips on the page
_HERE = Path(__file__).parent


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures as a table, those of clips with either dominant modality beside them."""
    from rich.console import Console
    from rich.table import Table

    groups = {"all": figures, **figures["by_dominant"]} if len(figures["by_dominant"]) > 1 else {"all": figures}
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("drift")
    for name in groups:
        table.add_column("all" if name == "all" else f"{name} dominant", justify="right")
    for figure in FIGURES:
        if figures[figure.name] is not None:
            cells = (shown(group, figure) for group in groups.values())
            table.add_row(figure.heading, *(f"{value}  [{bounds}]" if bounds else value for value, bounds in cells))
    Console().print(table)
    print(cost_of(figures))


def cost_of(figures: Mapping[str, Any]) -> str:
    """What the measurement took, as a sentence."""
    cost = figures["cost"]
    if not figures["n"]:
        return "no clip was measured"
    line = f"cost a clip: {cost['scored']:.1f} forward passes to score, {cost['generated']:.1f} generations of "
    line += f"{cost['tokens'] / max(cost['generated'], 1):.0f} tokens"
    line += f", {cost['attended']:.1f} for attention" if cost["attended"] else ""
    return f"{line}; {cost['clips_per_second']:.2f} clips/s"


def show_coherence(figures: Mapping[str, Any]) -> None:
    """Print the coherence of texts as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for name in ("texts", "n", "same emotion", "if independent", "coherence"):
        table.add_column(name, justify="left" if name == "texts" else "right")
    groups = {"all": figures}
    groups |= {f"{modality} dominant": group for modality, group in figures["by_dominant"].items()}
    groups |= {f"{modality} first": group for modality, group in figures["by_first"].items()}
    for name, group in groups.items():
        bounds = group["coherence_ci95"]
        value = "–" if bounds is None else f"{group['coherence']:.2f}  [{bounds[0]:.2f}, {bounds[1]:.2f}]"
        cells = (percent(group["agreement"]), percent(group["expected"]), value)
        table.add_row(name, str(group["n_read"]), *cells)
    Console().print(table)


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draw the curves: what a token owes to the clip, and the attention to media where it was asked for."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("curve", "gain, nats a token", "What the reasoning owes to the clip")]
    if figures["attention"] is not None:
        panels.append(("attention", "share of attention", "How much of the attention goes to the clip"))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.4), squeeze=False)
    places = [(tenth + 0.5) / TENTHS for tenth in range(TENTHS)]
    for axis, (key, name, title) in zip(axes[0], panels, strict=True):
        axis.axhline(0, color="0.6", linewidth=1)
        for group in GROUPS:
            if (curve := figures[key].get(group)) is None:
                continue
            points = [
                (x, mean, *bounds)
                for x, mean, bounds in zip(places, curve["mean"], curve["ci95"], strict=True)
                if mean is not None and bounds is not None
            ]
            if points:
                xs, means, lows, highs = zip(*points, strict=True)
                line = axis.plot(xs, means, marker="o", markersize=3, label=group, zorder=3 if group == "all" else 2)[0]
                axis.fill_between(xs, lows, highs, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set(xlabel="place in the reasoning", ylabel=name, title=title, xlim=(0, 1))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_page(path: Path, figures: Mapping[str, Any], rows: Sequence[Row], image: Path) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        figures: Of `eval.figures.drift.measure`.
        rows: Of drift.jsonl.
        image: The curves.
    """
    templates = environment(_HERE)
    groups = {"all": figures, **{f"{name} dominant": group for name, group in figures["by_dominant"].items()}}
    page = templates.get_template("drift.html.j2").render(
        title="Does the reasoning leave the clip for its own words?",
        figures=[
            {
                "heading": figure.heading,
                "meaning": figure.meaning,
                "cells": [(*shown(group, figure), group[f"{figure.name}_n"]) for group in groups.values()],
            }
            for figure in FIGURES
            if figures[figure.name] is not None
        ],
        groups=list(groups),
        first={
            modality: {figure.heading: shown(group, figure) for figure in FIGURES if figure.name in group}
            for modality, group in figures["by_first"].items()
        },
        pulls=[figure.heading for figure in FIGURES if figure.name.startswith("pull")],
        counts={key: value for key, value in figures.items() if key.startswith("n_") or key == "n"},
        cost=cost_of(figures),
        judge=figures["judge"],
        image=data_uri(image),
        modalities=MODALITIES,
        clips=most_drifting(rows, MOST),
    )
    with atomic(path) as file:
        file.write(page)
