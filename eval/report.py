"""The evaluation's page and terminal table: one run, or several side by side with the same rows.

The page is one self-contained HTML file (`page.html.j2`: inline CSS, inline SVG, no script, no network). Everything
that comes from data is escaped by jinja2's autoescaping; control characters are shown as a replacement character.
"""

import base64
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from migr.errors import InputError
from migr.reasoning import MODALITIES
from migr.records import atomic

Metrics = Mapping[str, Any]

LONGEST_SHOWN = 2000  # characters of one reasoning, and of any other text from data
EXAMPLES_SHOWN = 30

# Rate, its name on the page, what it says. The same rows in the page and in the terminal.
ROWS = (
    (
        "inconsistent_among_correct",
        "Inconsistent among correct",
        "the headline: right answer, but other reasoning",
    ),
    ("inconsistent_among_all", "Inconsistent among all", "the same clips as a share of every clip"),
    ("inconsistent_among_correct_worst", "Worst case", "the headline if every failed judgement were inconsistent"),
    ("war", "WAR", "accuracy over all clips; an unparseable response is wrong"),
    ("uar", "UAR", "mean of the per-class recalls"),
    ("eea", "EEA", "the judge reads the label from the reasoning"),
    ("fcr", "FCR", "answer, label and judge agree"),
    ("epc", "EPC", "the judge reads the model's own answer"),
    ("starts_with_dominant", "Starts with the dominant modality", "first segment of the reasoning"),
)
COUNTS = (
    ("n", "Clips"),
    ("n_unparseable", "Unparseable responses"),
    ("n_judge_failed", "Failed judgements"),
)
_TICKS = {0.3: 3}  # steps of an axis that ends there; 5 elsewhere
_IMAGES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def write_report(
    out: str | Path,
    runs: Mapping[str, Metrics],
    examples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    sections: Sequence[tuple[str, Sequence[str | Path]]] = (),
    title: str = "Does the explanation support the answer?",
    intro: str = "",
) -> None:
    """Write the page.

    Args:
        out: The HTML file.
        runs: Name -> metrics as `eval.metrics.measure` gives them, in the order of the columns. The optional keys
            `judge` ({name, accuracy, n}) and `settings` ({name: value}) are printed as well.
        examples: Name of a run -> inconsistent clips, each with `clip_id`, `label`, `answer`, `judged`, `dominant` (or
            None) and `segments`, a list of (modality or None, text). The first `EXAMPLES_SHOWN` are shown.
        sections: Further sections: a title and PNG, SVG or JPEG files, embedded as data URIs.
        title: The heading.
        intro: A paragraph below it.

    Raises:
        InputError: An image is missing or of another kind.
    """
    assert runs, "a report needs at least one run"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, interval=_interval, count=_count)
    with_judge = {name: metrics for name, metrics in runs.items() if metrics.get("judge")}
    settings = {name: metrics["settings"] for name, metrics in runs.items() if metrics.get("settings")}
    page = environment.get_template("page.html.j2").render(
        title=title,
        intro=intro,
        runs=runs,
        rows=ROWS,
        counts=COUNTS,
        modalities=MODALITIES,
        judges={name: metrics["judge"] for name, metrics in with_judge.items()},
        settings=settings,
        setting_names=list(dict.fromkeys(key for values in settings.values() for key in values)),
        classes=_groups(runs, "per_class"),
        dominants=_groups(runs, "per_dominant"),
        panels=(("war", "Recall"), ("inconsistent_among_correct", "Inconsistent among correct")),
        scales={key: _scale(runs, key) for key, _, _ in ROWS},
        ticks=_TICKS,
        examples={name: list(rows)[:EXAMPLES_SHOWN] for name, rows in (examples or {}).items() if rows},
        sections=[(heading, [_data_uri(path) for path in paths]) for heading, paths in sections],
    )
    with atomic(out) as file:
        file.write(page)


def print_table(runs: Mapping[str, Metrics]) -> None:
    """Print the rows of the page as a table in the terminal, one column a run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in runs:
        table.add_column(Text(_clean(name)), justify="right")
    for key, label, _ in ROWS:
        cells = []
        for metrics in runs.values():
            facts = [_interval(metrics[f"{key}_ci95"]), f"n\u00a0{metrics[f'{key}_n']}"]
            cell = Text(percent(metrics[key]), style="bold" if key == ROWS[0][0] else "")
            cells.append(cell.append(("\n" if len(runs) > 1 else "  ") + ", ".join(filter(None, facts)), style="dim"))
        table.add_row(label, *cells)
    table.add_section()
    for key, label in COUNTS:
        table.add_row(label, *(Text(_count(metrics[key])) for metrics in runs.values()))
    table.add_row("Judge's own accuracy", *(Text(reliability(metrics.get("judge"))) for metrics in runs.values()))
    Console().print(table)


def reliability(judge: Mapping[str, Any] | None) -> str:
    """How far a judge can be trusted, in words: `lexicon: 91.20 % (n 700)` or `…: reliability not measured`."""
    if not judge:
        return "no judge"
    if judge["accuracy"] is None:
        return f"{_clean(judge['name'])}: reliability not measured"
    return f"{_clean(judge['name'])}: {percent(judge['accuracy'])} (n\u00a0{judge['n']})"


def percent(rate: float | None) -> str:
    """A fraction as a percentage with two decimals, a dash where there is none."""
    return "–" if rate is None else f"{100 * rate:.2f}\u00a0%"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _count(number: int) -> str:
    return f"{number:,}"


def _clean(value: Any) -> Any:
    """Make a value from data harmless to print: no control or lone surrogate characters, and not endless."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    if len(value) > LONGEST_SHOWN:
        value = f"{value[:LONGEST_SHOWN]} … ({len(value):,} characters)"
    # Cc control, Cs surrogate, Cf format (among them the marks that reverse the direction of what follows)
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs", "Cf") else "\ufffd" for c in value)


def _groups(runs: Mapping[str, Metrics], key: str) -> list[str]:
    """The names of the groups that occur in any run, in the order of the first run that has them."""
    return list(dict.fromkeys(name for metrics in runs.values() for name in metrics[key]))


def _scale(runs: Mapping[str, Metrics], key: str) -> float:
    """The end of a rate's axis: the first round number that holds all its intervals."""
    everything = [
        group for metrics in runs.values() for part in ("per_class", "per_dominant") for group in metrics[part].values()
    ]
    bounds = [group[f"{key}_ci95"][1] for group in [*runs.values(), *everything] if group[f"{key}_ci95"]]
    return next(end for end in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if end >= min(1.0, max(bounds, default=1.0)))


def _data_uri(path: str | Path) -> Markup:
    path = Path(path)
    if path.suffix.lower() not in _IMAGES or not path.is_file():
        raise InputError(f"{path}: no such image (the page embeds {', '.join(_IMAGES)})")
    content = base64.b64encode(path.read_bytes()).decode()
    # Markup: base64 needs no escaping, and it must not be shortened.
    return Markup(f"data:{_IMAGES[path.suffix.lower()]};base64,{content}")  # noqa: S704
