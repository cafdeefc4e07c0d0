"""When does the order matter? The experiment on drift: `make drift` writes docs/drift.md.

    python stages/demo/drift.py                                   everything in GRID (many hours)
    python stages/demo/drift.py --only main coherence=0.6 seed=9  a part of it
    python stages/demo/drift.py --run runs/small --small          a few clips and steps: a smoke test
    python stages/demo/drift.py --report                          only write down what is there

An annotator whose second description follows the first one's emotion with probability q writes the targets; a model is
trained on them, with rewards or without; then its inconsistency, its accuracy, the truth of its segments and its drift
are measured. The base models are those of `make experiment` (runs/experiment), made if they are not there. Every step
is a command with an output of its own, passed over if it is there: an interrupted run goes on.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from stages.demo import drift_report
from stages.demo.demo import SEEDS, make
from stages.demo.models import STAGES, TARGETS, Cell, steps
from stages.demo.runner import ROOT, run_plan

_SFT = {"size": ("400 x 6",), "rewards": ("none",)}
GRID: dict[str, dict[str, Sequence[Any]]] = {  # the order in which it is worth running
    "main": {
        "seed": SEEDS,
        "base": ("demo",),
        "coherence": (0.0, 0.3, 0.6, 0.9),
        "targets": ("video-first", "reordered", "rewritten", "apart"),
        "size": ("400 x 6",),
        "rewards": ("none", "all"),
    },
    "words": {
        **_SFT,
        "seed": SEEDS,
        "base": ("demo",),
        "coherence": (0.0, 0.3, 0.6, 0.9),
        "targets": ("mistaken",),
    },
    "orders": {
        **_SFT,
        "seed": SEEDS,
        "base": ("demo",),
        "coherence": (0.6,),
        "targets": ("random", "least-first", "apart video-first"),
    },
    "evidence": {
        **_SFT,
        "seed": SEEDS,
        "base": ("demo",),
        "coherence": (0.6,),
        "targets": ("video-first",),
        "rewards": ("evidence",),
    },
    "sizes": {
        **_SFT,
        "seed": SEEDS,
        "base": ("demo",),
        "coherence": (0.6,),
        "targets": ("video-first", "reordered", "rewritten"),
        "size": ("150 x 6", "96 x 3"),
    },
    "bases": {
        **_SFT,
        "seed": SEEDS,
        "base": ("true", "coherent"),
        "coherence": (0.0, 0.6),
        "targets": ("video-first", "reordered", "rewritten", "apart"),
    },
}
TINY = {"main": {**GRID["main"], "seed": SEEDS[:1], "coherence": (0.6,), "targets": ("video-first", "apart")}}


def cells(grid: dict[str, dict[str, Sequence[Any]]], only: Sequence[str] = ()) -> Iterator[Cell]:
    """The points of the grid, each once; modalities described apart know no annotator, and stand at coherence 0.

    Args:
        grid: Part -> values of each field.
        only: Names of parts, and `field=value,value`; all must hold.

    Raises:
        InputError: No such part or field.
    """
    pairs = [word.partition("=") for word in only]
    parts = [name for name, sign, _ in pairs if not sign] or list(grid)
    filters = {name: values.split(",") for name, sign, values in pairs if sign}
    for name, known in ((n, grid) for n in parts):
        if name not in known:
            raise InputError(f"--only {name}: no such part; there are {', '.join(known)}")
    for name in filters:
        if name not in Cell.__dataclass_fields__:
            raise InputError(f"--only {name}=…: no such field; there are {', '.join(Cell.__dataclass_fields__)}")
    earlier = set()
    for part in parts:
        for values in itertools.product(*(grid[part][name] for name in Cell.__dataclass_fields__)):
            fields = dict(zip(Cell.__dataclass_fields__, values, strict=True))
            if TARGETS[fields["targets"]][0] is None:
                fields["coherence"] = 0.0
            if all(str(fields[name]) in allowed for name, allowed in filters.items()):
                cell = Cell(**fields)
                if cell not in earlier:
                    earlier.add(cell)
                    yield cell


def main() -> None:
    """The grid, or a part of it, then what it says."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--run", type=Path, default=ROOT / "runs" / "drift", help="folder of the run (default runs/drift)")
    add(
        "--bases", type=Path, default=ROOT / "runs" / "experiment", help="where the bases lie (default runs/experiment)"
    )
    add("--only", nargs="+", default=[], metavar="WORD", help=f"parts ({', '.join(GRID)}) and field=value,value")
    add("--seeds", nargs="+", type=int, help="other seeds than the grid's, to try things out on")
    add("--small", action="store_true", help="a few clips and steps: a smoke test")
    add("--report", action="store_true", help="run nothing, write down what is there")
    args = parser.parse_args()
    run, bases = args.run.resolve(), (args.run / "bases" if args.small else args.bases).resolve()
    grid = TINY if args.small else GRID
    if args.seeds:
        grid = {part: {**values, "seed": args.seeds} for part, values in grid.items()}
    selection = list(cells(grid, args.only))
    if not selection:
        raise InputError(f"--only {' '.join(args.only)}: nothing in the grid is like that")
    for seed in [] if args.report else dict.fromkeys(cell.seed for cell in selection):
        seed_cells = [cell for cell in selection if cell.seed == seed]
        print(f"seed {seed}: {len(seed_cells)} models")
        base_run, folder = bases / f"seed{seed}", run / f"seed{seed}"
        make("importance", base_run, seed, ["migr"], args.small, train_base=True)
        run_plan(steps(base_run, folder, seed_cells, args.small), STAGES, folder, BASE=base_run)
    every = list(cells(grid))
    rows = drift_report.collect(every, run, bases)
    out = run / "drift.md" if args.small or args.seeds else ROOT / "docs" / "drift.md"
    drift_report.write(rows, len(every), run, out)
    print(f"drift: {len(rows)} of {len(every)} models -> {out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
