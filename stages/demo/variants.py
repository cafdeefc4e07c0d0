"""Variants of the planted benchmark: graded clarity, transcripts, sentiment (`migr/planted/variants.py`).

    python stages/demo/variants.py --kind text --out runs/text --seed 101
    python stages/importance.py --clips runs/text/clips.jsonl --model stages/demo/model --out runs/text/found

Writes clips and their manifest `clips.jsonl`; clips that are there already are kept.
"""

import argparse
from pathlib import Path

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import hold
from migr.files.records import digest, read_json, write_json
from migr.planted import clips as planted
from migr.planted.variants import KINDS, make


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--kind", choices=KINDS, required=True, help="which variant")
    parser.add_argument("--out", type=Path, required=True, help="folder for clips.jsonl and the clips")
    parser.add_argument("--seed", type=int, default=0, help="draws everything; the same seed gives the same clips")
    parser.add_argument("--train", type=int, default=1050, help="number of train clips (default 1050)")
    parser.add_argument("--test", type=int, default=420, help="number of test clips (default 420)")
    return parser.parse_args()


def main() -> None:
    """Specify, render, write the manifest."""
    args = arguments()
    if min(args.train, args.test) < 1:
        raise InputError("--train and --test need at least 1 clip")
    config = {"kind": args.kind, "seed": args.seed, "train": args.train, "test": args.test, "process": planted.VERSION}
    done = args.out / "data.json"
    if done.exists():
        if read_json(done).get("digest") == digest(config):
            print(f"variants: {args.out} holds these clips already")
            return
        raise InputError(f"{args.out} holds other clips: give another --out, or remove it")
    hold(args.out)
    counts = {"train": args.train, "test": args.test}
    rows = [KINDS[args.kind](args.seed, split, index) for split, count in counts.items() for index in range(count)]
    manifest = make(args.out, rows)
    write_json(done, {**config, "digest": digest(config)})
    print(f"variants: {len(rows)} {args.kind} clips -> {manifest}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
