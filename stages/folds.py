"""Five-fold runs: the same commands once a fold, and the mean and the standard deviation of their metrics.

    python stages/folds.py --pipeline my.txt --run runs/dfew --set root=/data/DFEW model=/models/Qwen2.5-Omni-7B
    python stages/folds.py --run runs/dfew                            (no pipeline: only the mean of what is there)

The pipeline is a text file with one command a line, in the order in which they run; a # starts a comment,
a line that ends in a backslash goes on in the next. `{fold}` stands for the fold's number, `{run}` for its folder
(RUN/fold1 …), and `{name}` for what `--set name=value` says:

    python stages/data.py --source dfew --root {root} --fold {fold} --out {run}/clips --cache_dir {run}/../probes
    python eval/consistency.py --clips {run}/clips/clips.jsonl --model {model} \\
        --judge llm:/models/Qwen3-8B --out {run}/eval

Every stage finds its finished work, so an interrupted run is started again with the same command. No shell is involved.
The means are over folds, as the literature has them; `folds.json` holds them and each fold's own figures.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.records import Row, read_object, write_json

# Run by this very interpreter, so that no environment has to be activated.
PROGRAMS = {
    "python": [sys.executable],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; each fold gets one below it")
    parser.add_argument("--pipeline", type=Path, help="text file with one command a line")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="what {name} stands for")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="which folds (default all five)")
    parser.add_argument("--metrics", default="eval/metrics.json", help="a fold's metrics, inside its folder")
    return parser.parse_args()


def commands(pipeline: Path, values: dict[str, str]) -> list[list[str]]:
    """The commands of a pipeline with every name replaced.

    Raises:
        InputError: There is no such file, it has no command, a line cannot be split or has an unknown name.
    """
    try:
        text = pipeline.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--pipeline {pipeline}: {error}") from None
    lines, start, line = [], 0, ""
    for number, part in enumerate([*text.splitlines(), ""], 1):
        start = start if line else number
        line += part
        if line.endswith("\\"):
            line = line[:-1] + " "
            continue
        try:
            words = [word.format_map(values) for word in shlex.split(line, comments=True)]
        except (ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{pipeline}:{start}: {error}") from None
        except KeyError as error:
            raise InputError(f"{pipeline}:{start}: nothing says what {{{error.args[0]}}} is (--set)") from None
        line = ""
        if words:
            lines.append([*PROGRAMS.get(words[0], [words[0]]), *words[1:]])
    if not lines:
        raise InputError(f"--pipeline {pipeline}: no command in it")
    return lines


def mean(values: list[float | None]) -> Row:
    """Mean and standard deviation (n - 1) over folds; a fold whose rate has no cases (null) is not counted."""
    numbers = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(numbers) if numbers else None,
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "folds": values,
        "n": len(numbers),
    }


def show(result: Row, folds: list[int]) -> None:
    """Print the figures as a table, a column a fold."""
    table = Table(title=f"{len(folds)} folds")
    for name in ("", *(f"fold {fold}" for fold in folds), "mean", "std"):
        table.add_column(name, justify="right" if name else "left")
    for name in (name for name in result if name != "n"):
        values = [*result[name]["folds"], result[name]["mean"], result[name]["std"]]
        table.add_row(name.replace("_", " "), *("-" if value is None else f"{100 * value:.2f} %" for value in values))
    Console().print(table)


def main() -> None:
    """Run the folds one after the other, then average."""
    # Config
    args = arguments()
    if len(set(args.folds)) != len(args.folds):
        raise InputError("--folds: a fold stands there twice")
    if bad := [item for item in args.set if "=" not in item]:
        raise InputError(f"--set {bad[0]}: expected name=value")
    variables = dict(item.split("=", 1) for item in args.set)
    places = {fold: args.run / f"fold{fold}" for fold in args.folds}

    # Run
    if args.pipeline is not None:
        values = {fold: {**variables, "fold": str(fold), "run": str(places[fold])} for fold in args.folds}
        plan = {fold: commands(args.pipeline, values[fold]) for fold in args.folds}  # all read before the first runs
        for fold, todo in plan.items():
            places[fold].mkdir(parents=True, exist_ok=True)
            for number, command in enumerate(todo, 1):
                print(f"[fold {fold}, {number}/{len(todo)}] {shlex.join(command)}", flush=True)
                status = subprocess.run(command, check=False, env=os.environ).returncode
                if status:
                    raise InputError(f"fold {fold}, command {number} ended with status {status}; mend it, start again")

    # Save
    metrics = {}
    for fold in args.folds:
        file = places[fold] / args.metrics
        metrics[fold] = read_object(file)
        if "war" not in metrics[fold]:
            raise InputError(f"{file}: war is missing; is it a metrics.json of eval/consistency.py?")
    rates = list(dict.fromkeys(key for row in metrics.values() for key in row if f"{key}_ci95" in row))
    for fold, row in metrics.items():
        if missing := [name for name in rates if name not in row]:
            raise InputError(
                f"{places[fold] / args.metrics}: {missing[0]} is missing, which other folds have; count it again"
            )
        if wrong := [name for name in rates if not isinstance(row[name], int | float | None)]:
            raise InputError(f"{places[fold] / args.metrics}: {wrong[0]} must be a number, not {row[wrong[0]]!r:.80}")
    result: Row = {name: mean([metrics[fold][name] for fold in args.folds]) for name in rates}
    result["n"] = {str(fold): metrics[fold].get("n") for fold in args.folds}
    write_json(args.run / "folds.json", result)
    show(result, args.folds)
    print(f"folds: {len(args.folds)} folds -> {args.run}/folds.json")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
