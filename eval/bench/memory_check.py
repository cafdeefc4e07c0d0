r"""The memory estimate against the peak that a GPU measures: a model of a published size with random weights.

    python eval/bench/memory_check.py --out runs/memory_check                                  (one GPU of 24 GB)
    python eval/bench/memory_check.py --out runs/memory_check --recipe configs/7b_80gb         (one GPU of 80 GB)
    python eval/bench/memory_check.py --out runs/memory_check --tiny                      (anywhere; measures no memory)

Nothing is fetched: the weights are drawn, and clips rendered that are as long and as large as the recipe reads them, so
that a row has the tokens that the estimate counts with. stages/sft.py and stages/grpo.py then run with the recipe's
values, each in a process of its own, for two steps: Adam's moments are there from the second on. Prints a Markdown
table for docs/benchmarks.md: what migr/memory/estimate.py says that tensors take (without the CUDA context and the
allocator's slack) beside torch.cuda.max_memory_allocated. Needs 10 GB on disk for the 3B model.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import migr.omni  # noqa: F401  (mends the imports of trl and transformers, so it comes first)
from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.records import read_json, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
CLIPS, ANSWER, STEPS = 16, 256, 2  # ANSWER: tokens of a target, as the estimate of SFT assumes
NEAR = 0.15  # how far estimate and peak may be apart
TINY = "--use_cpu true --bf16 false --dtype float32 --max_frames 4 --max_pixels 3136 --gradient_accumulation_steps 1"
TINY_OF = {
    "sft": "--per_device_train_batch_size 2",
    "grpo": "--per_device_train_batch_size 4 --num_generations 2 --max_completion_length 12",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "configs" / "3b_24gb", help="folder of sft and grpo.yaml")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few tokens, on the CPU")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the clips and the runs")
    return parser.parse_args()


def read(kind: str, argv: list[str]) -> tuple[Any, Any]:
    """A stage's arguments and TRL's configuration; parsed as on a CPU, so that no GPU is taken here."""
    import trl

    from migr.training.arguments import GRPOArguments, SFTArguments, parse

    types = {"sft": [SFTArguments, trl.SFTConfig], "grpo": [GRPOArguments, trl.GRPOConfig]}
    args, config = parse(types[kind], [*argv, "--use_cpu", "true"])
    return args, config


def make_model(name: str, out: Path, tiny: bool) -> None:
    """Write the model folder: a published model's sizes (or tiny ones), random bf16 weights, a small tokenizer."""
    from migr.omni.export import write_checkpoint

    write_checkpoint(*drawn(name, out.with_name("tiny"), tiny), out)


def drawn(name: str, folder: Path, tiny: bool) -> tuple[Any, Any]:
    """A thinker of a published model's sizes (or tiny ones) with random bf16 weights, on the GPU if there is one.

    Args:
        name: The published model.
        folder: For a tiny model, whose tokenizer and processor it takes.
        tiny: Tiny sizes, on the CPU.

    Returns:
        The thinker and the processor.
    """
    import torch
    from transformers import GenerationConfig

    from migr.memory.published import configuration
    from migr.omni.family import family_of
    from migr.omni.load import load_processor, thinker_config
    from migr.omni.tiny import build_tiny
    from migr.planted.captions import texts

    family = family_of(configuration(name))
    assert family is not None, name
    small = build_tiny(folder, texts(), family=family.name)
    config, marks = thinker_config(small) if tiny else configuration(name), thinker_config(small)
    for target, source in ((config, marks), (config.text_config, marks.text_config)):
        for key, value in source.to_dict().items():
            if key.endswith(("token_id", "token_index")):
                setattr(target, key, value)  # of the tokenizer that is there
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu"):
            model = family.thinker(config)
    finally:
        torch.set_default_dtype(usual)
    model.to(torch.bfloat16).generation_config = GenerationConfig.from_pretrained(small)
    return model, load_processor(small)


def make_data(out: Path, settings: Any) -> None:
    """Render clips at the bounds of the media settings, and write what SFT and GRPO read about them."""
    from PIL import Image

    from migr.omni.family import family_of
    from migr.omni.load import load_processor
    from migr.omni.prompt import question
    from migr.planted import clips as planted
    from migr.text.format import render
    from migr.text.labels import DFEW

    (out / "clips").mkdir(parents=True, exist_ok=True)
    processor = load_processor(out / "model")
    tokenizer, family = processor.tokenizer, family_of(processor)
    assert family is not None
    cells = settings.max_pixels // family.factor**2  # tokens of a frame pair, in a rectangle near a square
    high = next(side for side in range(math.isqrt(cells), 0, -1) if cells % side == 0)
    size = (cells // high * family.factor, high * family.factor)
    clips, targets, importance = [], [], []
    for index in range(CLIPS):
        row = planted.spec(0, "train", index) | {"seconds": settings.max_frames / settings.fps}
        name, rng = row["clip_id"], np.random.default_rng(index)
        frames = np.stack([np.asarray(Image.fromarray(f).resize(size)) for f in planted.draw_frames(row, rng)])
        planted.write_clip(out / "clips" / f"{name}.mp4", frames, planted.synthesise(row, rng))

        texts, order = row["segments"], list(row["segments"])
        once = len(tokenizer(render(texts, row["conclusion"], row["label"], order)).input_ids)
        more = (ANSWER - once) // len(tokenizer(" ".join(texts.values())).input_ids)
        texts = {modality: " ".join([text] * (1 + more)) for modality, text in texts.items()}
        target = render(texts, row["conclusion"], row["label"], order)
        clips.append({"clip_id": name, "path": f"clips/{name}.mp4", "label": row["label"], "split": "train"})
        targets.append({"clip_id": name, "prompt": question(DFEW), "target": target})
        importance.append({"clip_id": name, "importance": {"video": 0.6, "audio": 0.4}})
    write_jsonl(out / "clips.jsonl", clips)
    write_jsonl(out / "targets.jsonl", targets * 4)  # a step of 32 rows needs them
    write_jsonl(out / "importance.jsonl", importance)


def measure(kind: str, argv: list[str], out: Path) -> tuple[str, int, int] | None:
    """Run a stage as a program: the GPU, bytes allocated and bytes reserved at the peak; None on a CPU.

    Raises:
        InputError: The stage ended with an error, which it has printed.
    """
    done = subprocess.run([sys.executable, str(ROOT / "stages" / f"{kind}.py"), *argv], check=False)
    if done.returncode:
        raise InputError(f"stages/{kind}.py ended with status {done.returncode}")
    gpu = read_json(out / "done.json").get("gpu")
    return None if gpu is None else (gpu["name"], gpu["allocated"], gpu["reserved"])


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result from a new process, which starts with an empty GPU."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    """Model and clips, two steps of both stages, the table."""
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, transformers would spread the rows over them
    from migr.memory.estimate import CONTEXT, GIB, SLACK, gpu_bytes, of_run

    if not args.tiny and gpu_bytes() is None:
        raise InputError("no GPU here, so there is no peak to measure; --tiny shows on a CPU that the command works")
    flags = {}
    for kind in ("sft", "grpo"):
        files = ["--config", str(args.recipe / f"{kind}.yaml"), "--clips", str(args.out / "clips.jsonl")]
        short = f"--max_steps {STEPS} --save_strategy no --dataloader_num_workers 0 --disable_tqdm true".split()
        places = ["--cache_dir", str(args.out / "cache"), "--output_dir", str(args.out / kind)]
        flags[kind] = [*files, *short, *places, *(f"{TINY} {TINY_OF[kind]}".split() if args.tiny else [])]
    flags["sft"] += ["--targets", str(args.out / "targets.jsonl")]
    flags["grpo"] += ["--importance", str(args.out / "importance.jsonl"), "--adapter", str(args.out / "sft")]
    flags["grpo"] += ["--judge", "lexicon"]  # the recipe's would have to be downloaded
    recipe, _ = read("sft", flags["sft"])
    apart(make_model, recipe.model, args.out / "model", args.tiny)
    make_data(args.out, recipe.media_settings)

    lines = []
    for kind, argv in flags.items():
        shutil.rmtree(args.out / kind, ignore_errors=True)  # a finished run would be left alone
        argv += ["--model", str(args.out / "model")]
        own, config = read(kind, argv)
        expected, measured_row = of_run(own, config, gpus=1, zero=0), measure(kind, argv, args.out / kind)
        history = read_json(args.out / kind / "trainer_state.json")["log_history"]
        logged = {key: row[key] for row in history for key in ("num_tokens", "train_runtime") if key in row}
        used, rows = (expected.peak - CONTEXT) / (1 + SLACK), expected.counts["rows"]
        real = logged["num_tokens"] / (STEPS * rows * config.gradient_accumulation_steps)
        cells = [f"{'tiny' if args.tiny else recipe.model}, {kind.upper()}", f"{rows} x {expected.counts['tokens']}"]
        cells += [f"{real:.0f}", f"{used / GIB:.2f}"]
        if measured_row is None:
            cells += ["not measured (no GPU)", "–", "–", "CPU"]
        else:
            name, allocated, reserved = measured_row
            verdict = "" if abs(used / allocated - 1) <= NEAR else f" (more than {NEAR:.0%} off)"
            cells += [f"{allocated / GIB:.2f}", f"{used / allocated:.2f}{verdict}", f"{reserved / GIB:.2f}", name]
        lines.append([*cells, f"{logged['num_tokens'] / logged['train_runtime']:,.0f}"])
    head = ["model, stage", "rows x tokens", "tokens in the run", "estimated, GiB", "peak, GiB", "estimated / peak"]
    for cells in ([*head, "reserved, GiB", "on", "tokens/s"], ["---"] * 9, *lines):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
