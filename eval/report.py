"""The evaluation's page: one run, or several side by side with the same rows.

    python eval/report.py RUN [RUN ...] --out report.html     (the page of finished evaluations, side by side)

A RUN is a folder of eval/consistency.py. The page is one HTML file (`page/report.html.j2` with style sheet and script)
that opens from disk and asks nothing of the network: an overview, and a browser of the clips, which are linked by
relative paths or copied beside the page. All that comes from data is escaped, in the markup by jinja2's autoescaping,
in the script by going through `textContent`; the page's own policy allows no script but its own, by hash.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from eval.figures.rates import COUNTS
from eval.page.browser import CELLS, Rows, Run, collect, judged_confusion, run_of, transitions
from eval.page.tables import REWARDED, ROWS, Metrics, Table, count, interval, percent, unread
from migr.cli import Parser
from migr.clips.manifest import recorded_root
from migr.errors import InputError, exit_on_input_error
from migr.files.records import atomic
from migr.page import clean, data_uri, environment
from migr.text.format import MODALITIES

# Of a clip's answer and of the judge's reading of its reasoning: the sign and the name of each cell.
_CELLS = {
    "right_consistent": ("✓ =", "right answer, reasoning says so"),
    "right_inconsistent": ("✓ ≠", "right answer, other reasoning"),
    "wrong_consistent": ("✗ =", "wrong answer, reasoning names the label"),
    "wrong_inconsistent": ("✗ ≠", "wrong answer, other reasoning"),
    "unparseable": ("∅", "no readable answer"),
    "right_not_judged": ("✓ ?", "right answer, not judged"),
    "wrong_not_judged": ("✗ ?", "wrong answer, not judged"),
}
_TICKS = {0.3: 3}  # steps of an axis that ends there; 5 elsewhere
_HERE = Path(__file__).parent / "page"


def write_page(
    out: str | Path,
    runs: Sequence[Run],
    sections: Sequence[tuple[str, Sequence[str | Path]]] = (),
    title: str = "Does the explanation support the answer?",
    intro: str = "",
    copy_clips: bool = False,
    tables: Sequence[Table] = (),
) -> int:
    """Write the page; returns how many clips its browser holds.

    Args:
        out: The HTML file.
        runs: The runs in the order of the columns; names differ. Those with `predictions` fill the clip browser.
        sections: Further sections: a title and PNG, SVG or JPEG files, embedded as data URIs.
        title: The heading.
        intro: A paragraph below it.
        copy_clips: Copy the clips into `<out>_files`, so that the page can be moved; otherwise they are linked.
        tables: Further figures, such as the differences between the runs; they follow the main table.

    Raises:
        InputError: An image is missing or of another kind, or a run's file is wrong.
    """
    assert runs, "a page needs at least one run"
    if len({run.name for run in runs}) < len(runs):
        raise InputError(f"two runs have the same name: {', '.join(run.name for run in runs)}")
    out = Path(out)
    rows = collect(runs, out, copy_clips)
    metrics = {run.name: run.metrics for run in runs}
    templates = environment(_HERE)
    templates.filters.update(percent=percent, interval=interval, count=count, unread=unread)
    settings = {run.name: run.metrics["settings"] for run in runs if run.metrics.get("settings")}
    script = (_HERE / "page.js").read_text(encoding="utf-8") if rows.clips else ""
    page = templates.get_template("report.html.j2").stream(
        title=title,
        intro=intro,
        runs=metrics,
        rows=ROWS,
        counts=COUNTS,
        rewarded=REWARDED,
        cells={cell: {"sign": sign, "name": name} for cell, (sign, name) in _CELLS.items()},
        modalities=MODALITIES,
        judges={name: values["judge"] for name, values in metrics.items() if values.get("judge")},
        judged=[_judged(rows, number, run.metrics) for number, run in enumerate(runs)],
        moves=_moves(rows, runs),
        reliabilities=list(
            {j["name"]: j for m in metrics.values() if (j := m.get("judge")) and "confusion" in j}.values()
        ),
        settings=settings,
        setting_names=list(dict.fromkeys(key for values in settings.values() for key in values)),
        synonyms=_synonyms(runs),
        classes=_groups(metrics, "per_class"),
        dominants=_groups(metrics, "per_dominant"),
        panels=(("war", "Recall"), ("inconsistent_among_correct", "Inconsistent among correct")),
        scales={key: _scale(metrics, key) for key, _, _ in ROWS},
        strip=_scale(metrics, ROWS[0][0], ()),
        ticks=_TICKS,
        tables=tables,
        sections=[(heading, [data_uri(path) for path in paths]) for heading, paths in sections],
        shown=len(rows.clips),
        complete=rows.complete,
        absent=any(entry and entry.get("absent") for row in rows.clips for entry in row["runs"]),
        # Markup: our own files
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_data(runs, rows),
    )
    page.enable_buffering(64)
    with atomic(out) as file:
        file.writelines(page)
    return len(rows.clips)


def _data(runs: Sequence[Run], rows: Rows) -> Iterator[Markup]:
    """The browser's data as JSON, a clip a line, that cannot end the script element or begin a tag or an entity."""
    about = {
        "runs": [clean(run.name) for run in runs],
        "cells": {cell: {"sign": sign, "name": name} for cell, (sign, name) in _CELLS.items()},
    }
    yield Markup(f'{_json(about)[:-1]},"clips":[')  # noqa: S704
    for number, row in enumerate(rows.clips):
        yield Markup(("," if number else "") + _json(row))  # noqa: S704
    yield Markup("]}")


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _judged(rows: Rows, number: int, metrics: Metrics) -> Mapping[str, Any] | None:
    """Labels x judgements: as measured, or counted here where every clip is at hand."""
    return metrics.get("confusion_judged") or judged_confusion(rows, number, metrics["confusion"]["labels"])


def _moves(rows: Rows, runs: Sequence[Run]) -> dict[str, Any] | None:
    """What the first two runs made of the same clips, without the cells that never occur."""
    if len(runs) < 2 or not rows.clips:
        return None
    table = transitions(rows, 0, 1)
    counts = {(here, there): table[i][j] for i, here in enumerate(CELLS) for j, there in enumerate(CELLS)}
    cells = [cell for cell in CELLS if any(number for pair, number in counts.items() if cell in pair)]
    most = max([number for (here, there), number in counts.items() if here != there] + [1])
    return {"first": runs[0].name, "second": runs[1].name, "cells": cells, "counts": counts, "most": most}


def _synonyms(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Label set -> label -> the words that are read as it."""
    sets = {run.labels.name: run.labels for run in runs if run.labels is not None}
    return {
        name: {label: [word for word, meant in labels.synonyms.items() if meant == label] for label in labels.labels}
        for name, labels in sets.items()
    }


def _groups(runs: Mapping[str, Metrics], key: str) -> list[str]:
    """The names of the groups that occur in any run, in the order of the first run that has them."""
    return list(dict.fromkeys(name for metrics in runs.values() for name in metrics[key]))


def _scale(runs: Mapping[str, Metrics], key: str, groups: Sequence[str] = ("per_class", "per_dominant")) -> float:
    """The end of a rate's axis: the first round number that holds the intervals of the runs and of their groups."""
    parts = [part for metrics in runs.values() for name in groups for part in metrics[name].values()]
    bounds = [part[f"{key}_ci95"][1] for part in [*runs.values(), *parts] if part[f"{key}_ci95"]]
    return next(end for end in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if end >= min(1.0, max(bounds, default=1.0)))


def main(argv: Sequence[str]) -> None:
    """Write the page of finished evaluations."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of eval/consistency.py; several stand side by side")
    add("--out", type=Path, required=True, help="the HTML file")
    add("--clips", type=Path, help="clips.jsonl, so that clips play (default: as each run's settings say)")
    add("--importance", type=Path, help="importance.jsonl (default: as each run's settings say)")
    add("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    add("--copy_clips", action="store_true", help="copy the clips beside the page, so that its folder can be moved")
    args = parser.parse_args(argv)
    names = [folder.resolve().name for folder in args.runs]
    if len(set(names)) < len(names):  # runs/a/eval and runs/b/eval
        names = [str(folder) for folder in args.runs]
    runs = [
        run_of(folder, args.labels, args.clips, args.importance, name)
        for folder, name in zip(args.runs, names, strict=True)
    ]
    if args.copy_clips and args.clips is None:
        for manifest in {run.clips for run in runs if run.clips is not None}:
            root, folder = recorded_root(manifest).resolve(), manifest.parent.resolve()
            if not root.is_relative_to(folder):  # a run's folder may come from somebody else
                raise InputError(
                    f"{manifest}: its clips lie in {root}, outside of its folder; to copy them from there, name it "
                    f"yourself: --clips {manifest}"
                )
    count = write_page(args.out, runs, copy_clips=args.copy_clips)
    print(f"page: {len(args.runs)} runs, {count} clips in its browser -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
