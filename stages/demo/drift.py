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
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.records import read_json, write_json
from stages.demo import drift_report
from stages.demo.demo import CONFIGS, ROOT, SEEDS, SMALL, make
from stages.demo.runner import Step, check_settings, run_together, step_digest

# kind of target -> (what the annotator describes first; None: the base describes each modality apart, order of targets)
TARGETS = {
    "video-first": ("video-first", "written"),
    "reordered": ("video-first", "dominant-first"),
    "rewritten": ("dominant-first", "written"),
    "apart": (None, "dominant-first"),
    "apart video-first": (None, "video-first"),
    "random": ("random", "written"),
    "least-first": ("least-first", "written"),
}
REWARDS: dict[str, list[str]] = {  # config of GRPO behind the SFT, and flags
    "none": [],
    "all": ["grpo"],
    "evidence": [
        *("grpo", "--rewards", "format", "accuracy", "consistency", "grounding", "evidence"),
        *("--reward_weights", "0.25", "1.0", "1.0", "0.25", "1.0"),
    ],
    "plain": ["grpo_plain"],
    "plain and evidence": [
        *("grpo_plain", "--rewards", "format", "accuracy", "evidence"),
        *("--reward_weights", "0.25", "1.0", "1.0"),
    ],
}
SIZES = {"400 x 6": (400, 6), "150 x 6": (150, 6), "96 x 3": (96, 3)}  # of the cold start: targets, epochs
BASES: dict[str, list[str]] = {  # flags of stages/demo/base.py; demo: the one of `make experiment`
    "demo": [],
    "true": ["--caption_errors", "0"],
    "coherent": ["--caption_errors", "0", "--coherence", "0.9"],
}
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
    "orders": {
        **_SFT,
        "seed": SEEDS,
        "base": ("demo",),
        "coherence": (0.6,),
        "targets": ("random", "least-first", "apart video-first"),
        "rewards": ("none", "all"),
    },
    "evidence": {
        **_SFT,
        "seed": SEEDS,
        "base": ("demo",),
        "coherence": (0.6,),
        "targets": ("video-first", "reordered"),
        "rewards": ("evidence", "plain", "plain and evidence"),
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
        "targets": ("video-first", "reordered", "rewritten"),
    },
}
TINY = {"main": {**GRID["main"], "seed": SEEDS[:1], "coherence": (0.6,), "targets": ("video-first", "apart")}}
STAGES = (
    *("base", "perceive", "describe", "texts", "targets", "coherence"),
    *("sft", "grpo", "export", "evaluation", "drift"),
)
DRIFT_CLIPS = 280  # of the 560 test clips: drift takes nine generations and passes a clip


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    seed: int
    base: str
    coherence: float
    targets: str
    size: str
    rewards: str

    @property
    def texts(self) -> str:
        """Name of its targets."""
        return f"{self.base}-{self.coherence:g}-{self.targets}".replace(" ", "-")

    @property
    def sft(self) -> str:
        """Name of its cold start."""
        return f"{self.texts}-{self.size}".replace(" ", "")

    @property
    def name(self) -> str:
        """Name of its model."""
        return f"{self.sft}-{self.rewards}".replace(" ", "-")


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


def steps(base_run: Path, run: Path, grid_cells: Sequence[Cell], small: bool = False) -> list[Step]:
    """All steps for these cells of one seed, in order; steps of one stage do not depend on each other."""
    plan: dict[str, Step] = {}
    clips, judge = base_run / "clips" / "clips.jsonl", base_run / "judge"
    media, extra = {"cache_dir": base_run / "cache"}, SMALL["train"] if small else []
    about: dict[str, Any]
    learned: dict[str, Any]

    def add(stage: str, name: str, output: Path, script: str, *more: str, **flags: object) -> None:
        words = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        key = f"{stage}/{name}"
        plan.setdefault(key, Step(stage, key, [sys.executable, str(ROOT / script), *words, *more], output))

    def train(stage: str, name: str, script: str, config: str, *more: str, **flags: object) -> Path:
        out = run / stage / name
        shared = {"config": CONFIGS / f"{config}.yaml", "clips": clips, "seed": grid_cells[0].seed, **media, **flags}
        add(stage, name, out / "done.json", script, *more, *extra, **shared, output_dir=out)
        return out

    for cell in grid_cells:
        seed, model = cell.seed, base_run / "describe" / "model"
        if flags := BASES[cell.base]:
            folder = run / "base" / cell.base
            data = {"data": base_run / "clips", "out": folder, "seed": seed}
            add("base", cell.base, folder / "base.json", "stages/demo/base.py", *flags, **data)
            learned = {"model": folder, "targets": folder / "perceive.jsonl"}
            sees = train("perceive", cell.base, "stages/sft.py", "perceive", **learned) / "model"
            learned = {"model": sees, "targets": folder / "describe.jsonl"}
            model = train("describe", cell.base, "stages/sft.py", "describe", **learned) / "model"
        written, order = TARGETS[cell.targets]
        if written is None:
            reasoning = run / "texts" / cell.base / "apart.jsonl"
            flags = ["--max_new_tokens", "48", *(["--limit", "28"] if small else [])]
            about = {"clips": clips, "model": model, "out": reasoning, **media}
            add("texts", f"{cell.base}/apart", reasoning, "stages/describe.py", *flags, **about)
        else:
            reasoning = run / "texts" / f"{cell.coherence:g}-{written}.jsonl"
            about = {"clips": clips, "out": reasoning, "seed": seed, "coherence": cell.coherence, "written": written}
            add("texts", reasoning.stem, reasoning, "stages/demo/annotate.py", **about)
        importance = base_run / "importance" / "importance.jsonl"
        targets = run / "targets" / f"{cell.texts}.jsonl"
        about = {"clips": clips, "reasoning": reasoning, "importance": importance, "order": order, "out": targets}
        flags = ["--leave_out", "missing", "unassigned"] if written is None else []
        add("targets", cell.texts, targets, "stages/targets.py", *flags, **about)
        out = run / "coherence" / cell.texts
        about = {"targets": targets, "clips": clips, "out": out}
        add("coherence", cell.texts, out / "coherence.json", "eval/drift.py", **about)
        limit, epochs = SIZES[cell.size]
        learned = {"model": model, "targets": targets, "limit": 14 if small else limit, "num_train_epochs": epochs}
        trained = train("sft", cell.sft, "stages/sft.py", "sft", **learned)
        if REWARDS[cell.rewards]:
            config, *flags = REWARDS[cell.rewards]
            about = {"model": model, "adapter": trained, "importance": importance}
            trained = train("grpo", cell.name, "stages/grpo.py", config, *flags, **about)
        export, out = run / "export" / cell.name, run / "eval" / cell.name
        add("export", cell.name, export / "config.json", "stages/export.py", model=trained, out=export)
        questions = {"clips": clips, "model": export, "importance": importance, "max_new_tokens": 96, **media}
        judged = {"judge": judge, "judge_check": "none", "out": out}
        add("evaluation", cell.name, out / "metrics.json", "eval/consistency.py", **questions, **judged)
        about = {"predictions": out / "predictions.jsonl", "out": out / "drift", "limit": DRIFT_CLIPS, **questions}
        add("drift", cell.name, out / "drift" / "drift.json", "eval/drift.py", **about)
    return list(plan.values())


def run_steps(plan: Sequence[Step], run: Path, base_run: Path) -> None:
    """Run what is not there yet, stage by stage; what is there must have been made with these settings."""
    record, settings = run / "seconds.json", run / "settings.json"
    seconds: dict[str, float] = read_json(record) if record.exists() else {}
    before: dict[str, str] = read_json(settings) if settings.exists() else {}
    now = {step.name: step_digest(step, {"RUN": run, "BASE": base_run, "ROOT": ROOT}) for step in plan}
    check_settings(plan, now, before)
    for stage in STAGES:
        if todo := [step for step in plan if step.stage == stage and not step.output.exists()]:
            print(f"{stage}: {len(todo)} to do", flush=True)
            before |= {step.name: now[step.name] for step in todo}
            write_json(settings, before)
            run_together(todo, run / "logs", seconds)
            write_json(record, seconds)


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
        make("importance", base_run, seed, ["migr"], args.small)
        run_steps(steps(base_run, folder, seed_cells, args.small), folder, base_run)
    every = list(cells(grid))
    rows = drift_report.collect(
        [(asdict(cell), run / f"seed{cell.seed}", cell.texts, cell.name) for cell in every], bases
    )
    out = run / "drift.md" if args.small or args.seeds else ROOT / "docs" / "drift.md"
    drift_report.write(rows, len(every), run, out)
    print(f"drift: {len(rows)} of {len(every)} models -> {out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
