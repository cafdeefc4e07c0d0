"""The figures in words: what each rate is called, how it is written, the table in the terminal, tables for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.figures.drift import compared
from eval.figures.rates import COUNTS, RATES
from migr.page import clean

Metrics = Mapping[str, Any]

# Rate, its name on the page, what it says. The same rows in the page and in the terminal.
ROWS = tuple((rate.name, rate.heading, rate.meaning) for rate in RATES)

REWARDED = "the model was rewarded by it: circular"  # of a judge


def print_table(runs: Mapping[str, Metrics]) -> None:
    """Print the rows of the page as a table in the terminal, one column a run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in runs:
        table.add_column(Text(clean(name)), justify="right")
    for key, label, _ in ROWS:
        cells = []
        for metrics in runs.values():
            facts = [interval(metrics[f"{key}_ci95"]), f"n\u00a0{metrics[f'{key}_n']}"]
            cell = Text(percent(metrics[key]), style="bold" if key == ROWS[0][0] else "")
            cells.append(cell.append(("\n" if len(runs) > 1 else "  ") + ", ".join(filter(None, facts)), style="dim"))
        table.add_row(label, *cells)
    table.add_section()
    for key, label in COUNTS:
        if any(key in metrics for metrics in runs.values()):
            table.add_row(label, *(Text(count(metrics[key]) if key in metrics else "–") for metrics in runs.values()))
    if any(metrics.get("unread_answers") for metrics in runs.values()):
        table.add_row("Answers not read", *(Text(unread(metrics.get("unread_answers"))) for metrics in runs.values()))
    table.add_row("Judge's own accuracy", *(Text(reliability(metrics.get("judge"))) for metrics in runs.values()))
    Console().print(table)


def reliability(judge: Mapping[str, Any] | None) -> str:
    """How far a judge can be trusted, in words: `lexicon: 91.20 % (n 700)` or `…: reliability not measured`."""
    if not judge:
        return "no judge"
    notes = f"; cannot name {', '.join(map(clean, judge['blind']))}" if judge.get("blind") else ""
    notes += f"; {REWARDED}" if judge.get("rewarded") else ""
    if judge["accuracy"] is None:
        return f"{clean(judge['name'])}: reliability not measured{notes}"
    return f"{clean(judge['name'])}: {percent(judge['accuracy'])} (n\u00a0{judge['n']}){notes}"


def unread(answers: Mapping[str, int] | None, most: int = 8) -> str:
    """The most frequent answers that are no known label: `worried 14, frustrated 5`."""
    words = [f"{clean(word)} {number:,}" for word, number in list((answers or {}).items())[:most]]
    return ", ".join([*words, "…"] if len(answers or {}) > most else words)


def percent(rate: float | None) -> str:
    """A fraction as a percentage with two decimals, a dash where there is none."""
    return "–" if rate is None else f"{100 * rate:.2f}\u00a0%"


def interval(bounds: Sequence[float] | None) -> str:
    """The bounds of an interval in percent: `16.3 to 23.4`; empty where there is none."""
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


@dataclass(frozen=True)
class Table:
    """A further table of the page: a heading, a note below it, the names of the columns, and rows of cells as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def comparison(figures: Metrics) -> list[Table]:
    """The figures of eval/compare.py as tables of the page: the paired differences, and the tests."""
    tables = []
    tests = {"right": "right answer", "right_inconsistent": "right answer, other reasoning", "headline": "the headline"}
    for name, run_figures in figures["runs"].items():
        pair = f"{name} against {figures['first']}"
        rows = []
        for key, label, _ in ROWS:
            row = run_figures["differences"][key]
            if row["difference"] is not None:
                low, high = (f"{100 * bound:+.2f}" for bound in row["difference_ci95"])
                rates = percent(row["first"]), percent(row["second"])
                rows.append((label, *rates, f"{100 * row['difference']:+.2f}", f"{low} to {high}"))
        columns = ("", figures["first"], name, "difference, points", "95 % interval")
        note = f"Paired bootstrap over the {count(figures['n'])} clips that the runs share."
        tables.append(Table(pair, columns, rows, note))
        exact = [
            (tests[key], count(row["only_first"]), count(row["only_second"]), count(row["n"]), f"{row['p']:.3g}")
            for key, row in run_figures["mcnemar"].items()
            if row["p"] is not None
        ]
        columns = ("", f"only {figures['first']}", f"only {name}", "clips", "p")
        note = "Exact McNemar tests: on how many clips it holds for one run and not for the other."
        tables.append(Table(f"{pair}: tests", columns, exact, note))
        if drift := run_figures.get("drift"):
            columns = ("", figures["first"], name, "difference", "95 % interval")
            note = f"Paired bootstrap over the {count(drift['n'])} clips on which eval/drift.py measured both."
            tables.append(Table(f"{pair}: drift", columns, compared(drift), note))
    return tables
