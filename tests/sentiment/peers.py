"""MMSA's own trainer beside ours on one planted file: MAE, Acc-2, seconds, memory. `pip install --no-deps mmsa==2.2.1`.

python -m tests.sentiment.peers OUT        (also easydict, pandas and nvidia-ml-py)
"""

import argparse
import csv
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.sentiment.files import planted

SHAPES = {"text": (20, 32), "vision": (40, 20), "audio": (40, 5)}
# MMSA_run asks for a CUDA device even on a CPU, and MulT passes an argument that torch no longer has.
MMSA = """
import sys
import migr.omni  # torch for CPUs beside torchvision of the registry
import torch
torch.cuda.set_device = lambda *_: None
torch.set_num_threads(1)
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
def without_verbose(self, *args, verbose=None, **kwargs):
    return first(self, *args, **kwargs)
first = plateau.__init__
plateau.__init__ = without_verbose
from MMSA import MMSA_run
model, file, out, count = sys.argv[1:]
MMSA_run(model, "mosi", seeds=[1111], gpu_ids=[], num_workers=0, custom_feature=file, model_save_dir=out + "/models",
         res_save_dir=out, log_dir=out + "/logs", config={"train_samples": int(count), "early_stop": 4})
"""
OURS = ("dual-gate", "experts", "concat")
PLAIN, EXACT = "plain estimate by who knows how frames were drawn", "posterior median by the same"


def timed(command: list[str], log: Path) -> tuple[float, int]:
    """Run a command on one thread; its seconds and its largest memory in MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command}: {log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024


def main(
    out: Path,
    counts: tuple[int, int, int],
    models: list[str],
    epochs: int,
    seed: int = 3,
    fits: Sequence[int] = (1111,),
) -> list[tuple[str, ...]]:
    """Write the file, run everybody, print the table."""
    out.mkdir(parents=True, exist_ok=True)
    table = planted(counts, seed=seed, shapes=SHAPES, noise=0.3, keep_known=True)
    rows = []
    for column, name in (("known", PLAIN), ("exact", EXACT)):
        known = [columns.pop(column) for columns in table.values()][-1]
        rows.append((name, f"{np.abs(table['test']['regression_labels'] - known).mean():.3f}", "", "", ""))
    (out / "planted.pkl").write_bytes(pickle.dumps(table, protocol=4))
    data = [sys.executable, "stages/features.py", "--source", "mmsa", "--set", "mosi"]
    timed([*data, "--file", str(out / "planted.pkl"), "--out", str(out / "data")], out / "features.log")
    for model in models:
        own = out / model
        own.mkdir(exist_ok=True)
        command = [sys.executable, "-c", MMSA, model, str(out / "planted.pkl"), str(own), str(counts[0])]
        seconds, memory = timed(command, out / f"{model}.log")
        with (own / "normal" / "mosi.csv").open() as file:
            row = list(csv.DictReader(file))[-1]
        figures = {
            name: float(re.search(r"-?\d+\.?\d*(?=\)|,)", cell)[0]) for name, cell in row.items() if name != "Model"
        }
        rows.append(
            (
                f"MMSA {model}",
                f"{figures['MAE'] / 100:.3f}",
                f"{figures['Non0_acc_2']:.1f}",
                f"{seconds:.0f}",
                str(memory),
            )
        )
        print(rows[-1], flush=True)
    for fusion in OURS:
        command = [
            sys.executable,
            "stages/sentiment.py",
            "--data",
            str(out / "data"),
            "--fusion",
            fusion,
            "--disable_tqdm",
        ]
        command += ["--config", "configs/sentiment/planted.yaml", "--num_train_epochs", str(epochs)]
        command += ["--out", str(out / fusion), "--overwrite", "--seeds", *map(str, fits)]
        seconds, memory = timed(command, out / f"{fusion}.log")
        done = [json.loads((out / fusion / f"seed-{fit}" / "done.json").read_text())["test"]["main"] for fit in fits]
        mae, accuracy = (np.mean([figures[name] for figures in done]) for name in ("MAE", "Non0_acc_2"))
        rows.append((fusion, f"{mae:.3f}", f"{100 * accuracy:.1f}", f"{seconds:.0f}", str(memory)))
        print(rows[-1], flush=True)
    print("| | MAE | Acc-2, Non0 | CPU seconds | MB |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", type=int, nargs=3, default=(1284, 229, 686))
    parser.add_argument("--models", nargs="*", default=["tfn", "lmf", "mult"])
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=3, help="draws the file")
    parser.add_argument("--fits", type=int, nargs="+", default=[1111], help="seeds of our fits, whose mean is told")
    args = parser.parse_args()
    main(args.out, tuple(args.counts), args.models, args.epochs, args.seed, args.fits)
