"""How much GPU memory a configuration needs, before anything is downloaded or started; see migr/memory/estimate.py.

    python stages/memory.py                                              (all shipped configurations)
    python stages/memory.py --config configs/7b_80gb/grpo.yaml --gib 80
    python stages/memory.py --config my.yaml --model DIR --zero 3 --gpus 16

Knows the published models by name. The training stages print the same line when they start.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from migr.errors import InputError, Parser, exit_on_input_error
from migr.memory.estimate import GIB, Estimate, estimate, of_run
from migr.training.arguments import parse

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


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--config", type=Path, help="YAML of stages/sft.py, stages/grpo.py or eval/consistency.py")
    parser.add_argument("--model", help="count this model instead of the configuration's")
    parser.add_argument("--gib", type=float, help="GiB of one GPU (default: what the recipe is for, else 80)")
    parser.add_argument("--gpus", type=int, help="number of GPUs (default: what the recipe is for, else 1)")
    parser.add_argument("--zero", type=int, choices=[0, 1, 2, 3], help="DeepSpeed's ZeRO stage (default likewise)")
    return parser.parse_args()


def read(config: Path, model: str | None, gib: float, gpus: int, zero: int) -> Estimate:
    """The estimate of one YAML file."""
    import yaml

    from eval.run import options
    from eval.run.predict import MEDIA
    from stages.grpo import GRPOArguments
    from stages.sft import SFTArguments

    try:
        keys = set(yaml.safe_load(config.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise InputError(f"--config {config}: {' '.join(str(error).split())}") from None
    if "max_new_tokens" in keys:
        flags = ["--config", str(config), "--model", model or PUBLISHED_FOR.get(config.resolve().parent.name, "")]
        args = options.arguments([*flags, "--clips", "clips.jsonl", "--judge", "lexicon", "--out", "out"], __doc__)
        from migr.clips.media import MediaSettings

        media = MediaSettings(**{name: getattr(args, name) for name in MEDIA})
        share = 0.9 * gib * GIB if args.engine == "vllm" else 0.0
        return estimate(str(args.model), "eval", media, answer=args.max_new_tokens, gpus=gpus, vllm=share)

    from trl import GRPOConfig, SFTConfig

    grpo = "num_generations" in keys
    types: list[Any] = [GRPOArguments, GRPOConfig] if grpo else [SFTArguments, SFTConfig]
    flags = [
        "--config",
        str(config),
        "--use_cpu",
        "true",
        "--output_dir",
        "out",
    ]  # a machine without a GPU can count too
    args, training = parse(types, [*flags, *(["--model", model] if model else [])])
    return of_run(args, training, gpus=gpus, gpu=gib * GIB, zero=zero)


def main() -> None:
    """Read, estimate, show."""
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    configs = (
        [args.config] if args.config else sorted(p for name in MACHINES for p in (ROOT / "configs" / name).glob("*"))
    )
    table = Table(title="GPU memory, GiB (estimated)", title_justify="left")
    for column in ("configuration", "model", "trained", "tokens", "largest parts", "peak", "GPU"):
        table.add_column(column, justify="right" if column in ("tokens", "peak", "GPU") else "left")
    worst = None
    for config in configs:
        machine = MACHINES.get(config.resolve().parent.name, (80, 1, 0))
        given = (args.gib, args.gpus, args.zero)
        gib, gpus, zero = (own if own is not None else usual for own, usual in zip(given, machine, strict=True))
        found = read(config, args.model, gib, int(gpus), int(zero))
        moment = max(found.moments, key=found.total)
        parts = sorted(((found.parts[name], name) for name in found.moments[moment]), reverse=True)[:4]
        shown = ", ".join(f"{name} {size / GIB:.1f}" for size, name in parts if size > 0.05 * GIB)
        counts = found.counts
        share = f"{counts['trained'] / 1e6:.1f} M, {counts['trained'] / counts['parameters']:.2%}"
        row = (f"{config.parent.name}/{config.name}", f"{found.model} ({counts['parameters'] / 1e9:.2f} B)", share)
        table.add_row(*row, f"{counts['tokens']:,}", shown, f"{found.peak / GIB:.1f}", f"{gpus} x {gib:g}")
        if worst is None or found.peak / gib > worst[0]:
            worst = (found.peak / gib, config, found, gib)
    Console(width=None if os.isatty(1) else 160).print(table)
    assert worst is not None
    _, config, found, gib = worst
    print(f"{found.line(gib * GIB)} -> {config}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
