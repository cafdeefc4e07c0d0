"""How fast and in how much memory a fusion network scores feature rows.

    python eval/bench/importance_speed.py --rows 100000 --fusion dual-gate

Draws random features (three modalities of --dim numbers each), scores them with a network of random weights on two
threads, and prints rows a second and the process's largest memory. Time and memory are linear in rows and streams.
"""

import time

import torch

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.importance.fit import score
from migr.importance.store import NETWORKS, build
from migr.importance.table import Features
from migr.machine import peak_memory


def main() -> None:
    """Draw, score, print."""
    parser = Parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="clips to score")
    parser.add_argument("--dim", type=int, default=256, help="features a modality (mean and deviation of 128)")
    parser.add_argument("--fusion", choices=list(NETWORKS), default="dual-gate", help="kind of network")
    parser.add_argument("--threads", type=int, default=2, help="threads of the arithmetic")
    args = parser.parse_args()
    if min(args.rows, args.dim, args.threads) < 1:
        raise InputError("--rows, --dim and --threads need at least 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    names = ("video", "audio", "text")
    values = {name: torch.randn(args.rows, args.dim) for name in names}
    ids = tuple(f"clip{i}" for i in range(args.rows))
    table = Features(ids, values, torch.ones(args.rows, len(names), dtype=torch.bool))
    net = build(args.fusion, dims=dict.fromkeys(names, args.dim), n_classes=7).eval()
    start = time.perf_counter()
    score(net, table, torch.arange(args.rows) % 7)
    seconds = time.perf_counter() - start
    peak = peak_memory() / 2**20
    print(
        f"importance_speed: {args.rows} rows, {args.fusion}, {seconds:.1f} s -> "
        f"{args.rows / seconds:,.0f} rows/s, largest memory {peak:.0f} MiB"
    )


if __name__ == "__main__":
    with exit_on_input_error():
        main()
