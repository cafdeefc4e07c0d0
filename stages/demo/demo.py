"""The whole job on the planted benchmark, step by step: `make demo`, and `make experiment` with `--experiment`.

    python stages/demo/demo.py                          two variants, one seed, and two models more -> runs/demo
    python stages/demo/demo.py --run runs/small --small a few clips and steps: a smoke test of every part
    python stages/demo/demo.py --experiment             four variants, three seeds  -> runs/experiment, docs/results.md
    python stages/demo/demo.py --train_base --upto describe --run runs/base     how stages/demo/model was made

The demo begins as you will, with a model that can see, hear and describe: a tiny Qwen2.5-Omni in `stages/demo/model`.
The experiment trains one for each seed, as `--train_base` does.

Every step is one of the commands of the README, with its own file or folder as output; a step whose output is there is
passed over, so a rerun is quick and an interrupted run goes on; if it was made with other settings, that is an error.
`--arguments STAGE` makes what a stage needs and prints its command line as JSON: `sft.py`, `grpo.py`, `consistency.py`
and `explain.py` ask for it when they are started without arguments.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from stages.demo import models
from stages.demo.runner import CONFIGS, ROOT, SMALL, Step, run_plan

# variant -> (order of the targets, config of GRPO): the usual recipe, ours, and the two crossed cases
VARIANTS = {
    "baseline": ("video-first", "grpo_plain"),
    "order_only": ("dominant-first", "grpo_plain"),
    "rewards_only": ("video-first", "grpo"),
    "migr": ("dominant-first", "grpo"),
}
STAGES = (
    "data",
    "judge",
    "base",
    "perceive",
    "describe",
    "captions",
    "importance",
    "targets",
    "sft",
    "grpo",
    "export",
    "evaluation",
)
SEED = 6  # of the demo
SEEDS = (9, 10, 11)  # of the experiment; recipes were fixed on others
NEEDS = {"sft": "targets", "grpo": "sft", "evaluation": "export", "explain": "export"}  # --arguments: made before it
ORDERS = ("video-first", "rewritten")  # targets of the two models that show when the order matters
COHERENCE = 0.6  # of their annotator
PERCEIVES = 0.9  # share of validation clips that the base must name directly before anything rests on it
TRAIN = ["--train", "1050"]  # clips, where no base is trained; with them, stages/data.py's 2,100


def steps(run: Path, seed: int, variants: Sequence[str], small: bool = False, train_base: bool = False) -> list[Step]:
    """All steps of a run in order; steps of one stage do not depend on each other.

    Args:
        run: The run's folder.
        seed: Draws the clips and the training.
        variants: Which of VARIANTS to train.
        small: A few clips and two steps a stage.
        train_base: Train a base model on the run's clips in place of taking the one that is there.
    """
    plan: list[Step] = []

    def add(name: str, output: Path, script: str, *extra: str, **flags: object) -> None:
        words = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        plan.append(Step(name.split("/")[0], name, [sys.executable, str(ROOT / script), *words, *extra], output))

    def train(name: str, output: Path, script: str, config: str, **flags: object) -> None:
        shared = {"config": CONFIGS / f"{config}.yaml", "clips": manifest, "cache_dir": run / "cache", "seed": seed}
        extra = SMALL["train"] if small else []
        add(name, output / "done.json", script, *extra, **shared, **flags, output_dir=output)

    data, base, judge, manifest = run / "clips", run / "base", run / "judge", run / "clips" / "clips.jsonl"
    model, importance = models.base_model(run, train_base), run / "importance" / "importance.jsonl"
    media = {"cache_dir": run / "cache"}  # how clips are read, the model's folder says
    orders = list(dict.fromkeys(VARIANTS[variant][0] for variant in variants))

    sizes = SMALL["data"] if small else [] if train_base else TRAIN
    add("data", data / "data.json", "stages/data.py", *sizes, source="planted", out=data, seed=seed)
    fit, check = data / "judge_fit.jsonl", data / "judge_check.jsonl"
    add("judge", judge / "accuracy.json", "stages/demo/judge.py", fit=fit, check=check, out=judge)
    if train_base:
        add("base", base / "base.json", "stages/demo/base.py", data=data, out=base, seed=seed)
        sees = run / "perceive" / "model"
        train("perceive", run / "perceive", "stages/sft.py", "perceive", model=base, targets=base / "perceive.jsonl")
        train("describe", run / "describe", "stages/sft.py", "describe", model=sees, targets=base / "describe.jsonl")
    captions = run / "captions.jsonl"
    errs = "--caption_errors"  # at the rate of the base's own captions
    add("captions", captions, "stages/demo/annotate.py", errs, clips=manifest, seed=seed, out=captions)
    least = 0 if small else PERCEIVES
    check_flags = {"clips": manifest, "model": model, "out": run / "check.json", "least": least}
    add("importance/check", run / "check.json", "stages/demo/check.py", **check_flags, **media)  # beside it
    out = importance.parent
    folds = ["--folds", "2" if small else "3"]
    add(
        "importance/scores",
        out / "summary.json",
        "stages/importance.py",
        *folds,
        clips=manifest,
        model=model,
        out=out,
        **media,
    )
    for order in orders:
        files = {"clips": manifest, "reasoning": captions, "importance": importance}
        path = run / "targets" / f"{order}.jsonl"
        add(f"targets/{order}", path, "stages/targets.py", **files, order=order, out=path)
    for order in orders:
        targets = run / "targets" / f"{order}.jsonl"
        train(f"sft/{order}", run / "sft" / order, "stages/sft.py", "sft", model=model, targets=targets)
    for variant in variants:
        order, config = VARIANTS[variant]
        adapter = run / "sft" / order
        output = run / "grpo" / variant
        train(f"grpo/{variant}", output, "stages/grpo.py", config, model=model, adapter=adapter, importance=importance)
    for variant in variants:
        out = run / "export" / variant
        add(f"export/{variant}", out / "config.json", "stages/export.py", model=run / "grpo" / variant, out=out)
    for variant in variants:
        files = {"clips": manifest, "model": run / "export" / variant, "importance": importance}
        judges = {"judge": judge, "judge_check": check, "max_new_tokens": 96}
        out = run / "eval" / variant
        add(f"evaluation/{variant}", out / "metrics.json", "eval/consistency.py", **files, **judges, out=out, **media)
    return plan


def make(
    upto: str,
    run: Path | None = None,
    seed: int = SEED,
    variants: Sequence[str] = ("baseline", "migr"),
    small: bool = False,
    train_base: bool = False,
) -> Path:
    """Bring a run up to a stage, passing over what is there; returns the run's folder.

    Args:
        upto: The last stage to run (one of STAGES).
        run: The run's folder; `runs/demo` of the project if None.
        seed: Draws the clips, the training, and the base model if it is trained.
        variants: Which of VARIANTS to train.
        small: A few clips and two steps a stage.
        train_base: Train a base model, too.

    Raises:
        InputError: A step failed, another process makes the same files, or what is there was made with other settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("the demo's data are made by one process: --num_processes 1, or run `make demo` first")
    run = run or ROOT / "runs" / "demo"
    stages = STAGES[: STAGES.index(upto) + 1]
    plan = steps(run, seed, variants, small, train_base)
    run_plan([step for step in plan if step.stage in stages], stages, run)
    return run


def make_orders(run: Path, seed: int, small: bool = False, train_base: bool = False) -> list[models.Cell]:
    """Train and measure two models more, in RUN/order: an annotator whose descriptions follow each other wrote what
    they learn, from the video on or from the dominant modality on. No rewards.

    Raises:
        InputError: As `make`.
    """
    cells = [models.Cell(seed, "demo", COHERENCE, targets, "400 x 6", "none") for targets in ORDERS]
    plan = models.steps(run, run / "order", cells, small, train_base)
    run_plan(plan, models.STAGES, run / "order", BASE=run)
    return cells


def arguments_of(stage: str, run: Path | None = None, seed: int = SEED, small: bool = False) -> list[str]:
    """The command line of a stage in the demo (the `migr` variant), after making what it needs; progress on stderr.

    Raises:
        InputError: A step failed.
    """
    with redirect_stdout(sys.stderr):
        run = make(NEEDS[stage], run, seed, ["migr"], small)
    if stage == "explain":
        folders = ["--model", run / "export" / "migr", "--importance", run / "importance"]
        return [*map(str, folders), "--max_new_tokens", "96"]
    return next(step.command[2:] for step in steps(run, seed, ["migr"], small) if step.stage == stage)


def main() -> None:
    """The demo or the experiment, then its table and page."""
    parser = Parser(__doc__)
    parser.add_argument("--run", type=Path, help="folder of the run (default runs/demo or runs/experiment)")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of the demo (default {SEED})")
    parser.add_argument("--small", action="store_true", help="a few clips and steps: a smoke test")
    parser.add_argument("--experiment", action="store_true", help="four variants on three seeds, then docs/results.md")
    parser.add_argument("--train_base", action="store_true", help="train the base model, too (nine minutes more)")
    parser.add_argument("--upto", choices=STAGES, default="evaluation", help="stop after this stage")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="what to train (default baseline migr; for --experiment all)"
    )
    parser.add_argument(
        "--order",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="two models more, which show when the order matters (default; a few minutes)",
    )
    parser.add_argument("--arguments", choices=NEEDS, help="make what this stage needs, print its flags as JSON")
    args = parser.parse_args()
    if args.arguments:
        print(json.dumps(arguments_of(args.arguments, args.run and args.run.resolve(), args.seed, args.small)))
        return
    variants = args.variants or (list(VARIANTS) if args.experiment else ["baseline", "migr"])
    from stages.demo import summary

    start = time.monotonic()
    if args.experiment:
        run = args.run or ROOT / "runs" / "experiment"
        for seed in SEEDS:
            print(f"seed {seed}")
            make("evaluation", run / f"seed{seed}", seed, variants, args.small, train_base=True)
            summary.write(run / f"seed{seed}", variants)
        runs = {seed: run / f"seed{seed}" for seed in SEEDS}
        summary.write_results(runs, variants, ROOT / "docs" / "results.md")
        return
    run = (args.run or ROOT / "runs" / "demo").resolve()
    make(args.upto, run, args.seed, variants, args.small, args.train_base)
    if args.upto == "evaluation":
        orders = make_orders(run, args.seed, args.small, args.train_base) if args.order else []
        summary.write(run, variants, orders)
        summary.show(run, time.monotonic() - start)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
