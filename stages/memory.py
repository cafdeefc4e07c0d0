"""How much GPU memory a configuration needs, hours and disk too, before anything is downloaded or started.

    python stages/memory.py                                              (all shipped configurations)
    python stages/memory.py --config configs/7b_80gb/grpo.yaml --gib 80 --rows 9356
    python stages/memory.py --config my.yaml --model DIR --zero 3 --gpus 16
    python stages/memory.py --config configs/7b_80gb/sft.yaml --gib 48 --fit     (the fastest batch for that GPU)

Knows the published models by name. The training stages print the same line when they start. Memory:
migr/memory/estimate.py. Hours and --fit: migr/memory/fit.py; the hours are those of an H200.
"""

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from migr.cli import Parser, read_config, settings_of
from migr.errors import InputError, exit_on_input_error
from migr.memory.estimate import GIB, Estimate, estimate, of_run
from migr.memory.fit import disk, fit, hours
from migr.settings import DecodingSettings, EngineSettings, MediaSettings
from migr.training.arguments import GRPOArguments, SFTArguments, parse

DFEW = 9356  # clips of the four folds that train
ROOT = Path(__file__).resolve().parents[1]
# folder of configs/ -> GiB of a GPU, GPUs, ZeRO stage: what the recipe is for
MACHINES = {"3b_24gb": (24, 1, 0), "7b_80gb": (80, 1, 0), "7b_8x80gb": (80, 8, 2), "30b_2nodes": (80, 16, 3)}

# an evaluation's model is a folder that the recipe makes
PUBLISHED_FOR = {
    "3b_24gb": "Qwen/Qwen2.5-Omni-3B",
    "7b_80gb": "Qwen/Qwen2.5-Omni-7B",
    "7b_8x80gb": "Qwen/Qwen2.5-Omni-7B",
    "30b_2nodes": "Qwen/Qwen3-Omni-30B-A3B-Instruct",
}

# fields that only an evaluation's YAML has
OF_EVALUATION = {field.name for kind in (EngineSettings, DecodingSettings) for field in fields(kind)} - {
    "dtype",
    "temperature",
    "seed",
    "vllm_gpu_memory_utilization",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__, yaml=False)
    parser.add_argument("--config", type=Path, help="YAML of stages/sft.py, stages/grpo.py or eval/consistency.py")
    parser.add_argument("--model", help="count this model instead of the configuration's")
    parser.add_argument("--gib", type=float, help="GiB of one GPU (default: what the recipe is for, else 80)")
    parser.add_argument("--gpus", type=int, help="number of GPUs (default: what the recipe is for, else 1)")
    parser.add_argument("--zero", type=int, choices=[0, 1, 2, 3], help="DeepSpeed's ZeRO stage (default likewise)")
    parser.add_argument("--rows", type=int, default=DFEW, help=f"rows of your data (default {DFEW}: folds of DFEW)")
    parser.add_argument("--fit", action="store_true", help="print the YAML lines that run fastest on that GPU")
    return parser.parse_args()


def stage_of(config: Path, keys: set[str]) -> str:
    """Which command reads a YAML with these keys: "sft", "grpo" or "eval"; the file's name decides between several.

    Raises:
        InputError: None reads them all, or several do and the file's name does not say which.
    """
    from trl import GRPOConfig, SFTConfig

    kinds = {
        "sft": (SFTArguments, MediaSettings, SFTConfig),
        "grpo": (GRPOArguments, MediaSettings, GRPOConfig),
    }
    if keys & OF_EVALUATION:
        return "eval"
    names = {stage: {field.name for kind in types for field in fields(kind)} for stage, types in kinds.items()}
    stages = [stage for stage in names if keys <= names[stage]]
    if not stages:  # the parser says which key it is
        stages = [max(names, key=lambda stage: len(keys & names[stage]))]
    named = [stage for stage in stages if config.stem.startswith(stage)] or stages
    if len(named) > 1:
        raise InputError(f"--config {config}: of sft or of grpo? Give its file one of these names")
    return named[0]


def read(config: Path, model: str | None) -> tuple[Any, Any]:
    """The arguments of one YAML file, and TRL's configuration; None of an evaluation."""
    values = read_config(config)
    stage = stage_of(config, set(values))
    if stage == "eval":
        values["model"] = model or PUBLISHED_FOR.get(config.resolve().parent.name, "")
        return argparse.Namespace(**values), None

    from trl import GRPOConfig, SFTConfig

    types: list[Any] = [GRPOArguments, GRPOConfig] if stage == "grpo" else [SFTArguments, SFTConfig]
    # a machine without a GPU can count too
    flags = ["--config", str(config), "--use_cpu", "true", "--output_dir", "out"]
    args, training = parse(types, [*flags, *(["--model", model] if model else [])])
    return args, training


def estimated(args: Any, training: Any, gib: float, gpus: int, zero: int) -> Estimate:
    """The estimate of a training, or of an evaluation."""
    if training is not None:
        return of_run(args, training, gpus=gpus, gpu=gib * GIB, zero=zero)
    media, engine = settings_of(MediaSettings, args), settings_of(EngineSettings, args)
    share = engine.vllm_gpu_memory_utilization * gib * GIB if engine.engine == "vllm" else 0.0
    answer = settings_of(DecodingSettings, args).max_new_tokens
    return estimate(args.model, "eval", media, answer=answer, gpus=gpus, vllm=share)


def costs(args: Any, training: Any, estimate: Estimate, gpus: int, rows: int) -> tuple[str, str]:
    """Hours on GPUs like the H200 and GB on disk, as cells of the table."""
    if training is None:
        return "", ""
    rows = min(rows, args.limit or rows)
    time, (cache, saved) = hours(args, training, estimate, rows, gpus), disk(args, training, rows)
    below = "below " if getattr(training, "use_vllm", False) else ""
    return f"{below}{time:.1f}", f"{cache / 1e9:.1f} + {saved / 1e9:.1f}"


def main() -> None:
    """Read, estimate, show."""
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    configs = (
        [args.config]
        if args.config
        else sorted(p for name in MACHINES for p in (ROOT / "configs" / name).glob("[egs]*.yaml"))
    )
    table = Table(title="GPU memory, GiB (estimated)", title_justify="left")
    numbers = ("tokens", "peak", "GPU", "hours", "GB on disk")
    for column in ("configuration", "model", "trained", "tokens", "largest parts", *numbers[1:]):
        table.add_column(column, justify="right" if column in numbers else "left")
    worst = None
    for config in configs:
        machine = MACHINES.get(config.resolve().parent.name, (80, 1, 0))
        machine_flags = (args.gib, args.gpus, args.zero)
        gib, gpus, zero = (own if own is not None else usual for own, usual in zip(machine_flags, machine, strict=True))
        own, training = read(config, args.model)
        if args.fit:
            if training is None:
                continue
            best = fit(own, training, gib * GIB, int(gpus), int(zero))
            print(f"# {config}, {gpus} x {gib:g} GiB: {best.estimate.peak / GIB:.1f} GiB, {best.seconds:.1f} s a step")
            print(best.lines())
            continue
        estimate = estimated(own, training, gib, int(gpus), int(zero))
        moment = max(estimate.moments, key=estimate.total)
        parts = sorted(((estimate.parts[name], name) for name in estimate.moments[moment]), reverse=True)[:4]
        largest = ", ".join(f"{name} {size / GIB:.1f}" for size, name in parts if size > 0.05 * GIB)
        counts = estimate.counts
        share = f"{counts['trained'] / 1e6:.1f} M, {counts['trained'] / counts['parameters']:.2%}"
        row = (f"{config.parent.name}/{config.name}", f"{estimate.model} ({counts['parameters'] / 1e9:.2f} B)", share)
        cells = (f"{counts['tokens']:,}", largest, f"{estimate.peak / GIB:.1f}", f"{gpus} x {gib:g}")
        table.add_row(*row, *cells, *costs(own, training, estimate, int(gpus), args.rows))
        if worst is None or estimate.peak / gib > worst[0]:
            worst = (estimate.peak / gib, config, estimate, gib)
    if args.fit:
        return
    Console(width=None if os.isatty(1) else 160).print(table)
    assert worst is not None
    _, config, estimate, gib = worst
    print(f"{estimate.line(gib * GIB)} -> {config}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
