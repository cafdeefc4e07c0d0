"""Stage 1, data: find or make the clips of a data set and write `clips.jsonl`.

    python stages/data.py --source planted --out runs/planted --train 56 --val 14 --test 14      (smoke: a few seconds)
    python stages/data.py --source planted --out runs/planted --seed 0                           (the benchmark)

The planted benchmark (design: `migr/sources/planted.py`) also writes `reasoning.jsonl`, what each modality shows, and
two sets of labelled texts: `judge_fit.jsonl`, to fit the evaluation judge on, and `judge_check.jsonl`, to measure
judges on. The first is worded like the test clips, the second like the train clips (which is how trained models write).
"""

import argparse
from pathlib import Path

from migr.errors import InputError, Parser, exit_on_input_error
from migr.records import Row, digest, read_json, write_environment, write_json, write_jsonl
from migr.sources import planted

MANIFEST_KEYS = ("clip_id", "label", "split", "planted")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--source", choices=["planted"], default="planted", help="where clips come from")
    parser.add_argument("--out", type=Path, required=True, help="folder for clips.jsonl and, if made here, the clips")
    parser.add_argument("--seed", type=int, default=0, help="draws everything; the same seed gives the same clips")
    parser.add_argument("--train", type=int, default=2100, help="number of train clips (default 2100)")
    parser.add_argument("--val", type=int, default=140, help="number of validation clips (default 140)")
    parser.add_argument("--test", type=int, default=560, help="number of test clips (default 560)")
    return parser.parse_args()


def labelled_texts(seed: int, split: str, count: int) -> list[Row]:
    """Whole reasonings with the emotion that they convey, in the wording of a split, drawn apart from the clips."""
    rows = [planted.spec(seed + 1_000_003, split, index) for index in range(count)]
    return [{"text": " ".join([*row["segments"].values(), row["conclusion"]]), "emotion": row["label"]} for row in rows]


def main() -> None:
    """Make the clips, then the files that speak of them."""
    # Config
    args = arguments()
    sizes = {"train": args.train, "val": args.val, "test": args.test}
    if min(sizes.values()) < 0 or args.train < 14:
        raise InputError(
            "--train needs at least 14 clips (each label in each modality once), --val and --test 0 or more"
        )
    config = {"source": args.source, "seed": args.seed, **sizes, "process": planted.VERSION}
    done = args.out / "data.json"
    if done.exists() and read_json(done).get("digest") == digest(config):
        print(f"data: {args.out} holds these clips already")
        return

    # Run
    args.out.mkdir(parents=True, exist_ok=True)
    rows = list(planted.make(args.out, args.seed, sizes))

    # Save
    write_jsonl(
        args.out / "clips.jsonl",
        ({**{key: row[key] for key in MANIFEST_KEYS}, "path": f"clips/{row['clip_id']}.mp4"} for row in rows),
    )
    write_jsonl(args.out / "excluded.jsonl", [])
    write_jsonl(
        args.out / "reasoning.jsonl",
        (
            {"clip_id": row["clip_id"], "segments": row["segments"], "conclusion": row["conclusion"], "by": "planted"}
            for row in rows
        ),
    )
    write_jsonl(args.out / "judge_fit.jsonl", labelled_texts(args.seed, "test", 2100))
    write_jsonl(args.out / "judge_check.jsonl", labelled_texts(args.seed, "train", 700))
    write_environment(args.out)
    write_json(done, {**config, "digest": digest(config)})
    print(
        f"data: {len(rows)} clips ({', '.join(f'{n} {split}' for split, n in sizes.items())}) -> {args.out}/clips.jsonl"
    )


if __name__ == "__main__":
    with exit_on_input_error():
        main()
