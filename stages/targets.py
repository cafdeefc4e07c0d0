r"""Stage 3, targets: put the segments of each clip's reasoning in order and write what SFT learns.

    python stages/targets.py --clips runs/demo/clips/clips.jsonl --reasoning runs/demo/clips/reasoning.jsonl \
        --importance runs/demo/importance/importance.jsonl --order dominant-first --out runs/demo/targets.jsonl

`dominant-first` starts with the modality of the largest importance; `video-first` and `audio-first` are fixed. The
conclusion stays last. A target that the rewards' parser cannot read back is an error.
"""

import argparse
from pathlib import Path

from migr.clips import Clip, read_clips
from migr.emotions import label_set
from migr.errors import InputError, Parser, exit_on_input_error
from migr.omni.prompt import question
from migr.reasoning import render
from migr.records import Row, read_jsonl, write_jsonl

ORDERS = ("dominant-first", "video-first", "audio-first")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py")
    parser.add_argument(
        "--reasoning", type=Path, required=True, help="reasoning.jsonl: segments and conclusion of clips"
    )
    parser.add_argument("--importance", type=Path, help="importance.jsonl; needed for dominant-first")
    parser.add_argument("--order", default="dominant-first", help=f"which segment comes first: {', '.join(ORDERS)}")
    parser.add_argument("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    parser.add_argument("--split", default="train", help="split of the clips to write targets for")
    parser.add_argument("--out", type=Path, required=True, help="targets.jsonl to write")
    return parser.parse_args()


def order_of(clip: Clip, segments: dict[str, str], order: str, importance: dict[str, float] | None) -> list[str]:
    """The modalities of the segments in the wanted order; the fixed orders name the modality that comes first."""
    if order == "dominant-first":
        if importance is None:
            raise InputError(f"clip {clip.clip_id} has no importance: run stages/importance.py on these clips")
        return sorted(segments, key=lambda modality: -importance.get(modality, 0.0))
    return sorted(segments, key=lambda modality: modality != order.removesuffix("-first"))


def main() -> None:
    """Read the three files, order the segments, write the targets."""
    # Config
    args = arguments()
    labels = label_set(args.labels)
    if args.order not in ORDERS:
        raise InputError(f"--order {args.order!r} is not one of {', '.join(ORDERS)}")
    if args.order == "dominant-first" and args.importance is None:
        raise InputError("--order dominant-first needs --importance (importance.jsonl of stages/importance.py)")

    # Data
    clips = read_clips(args.clips, labels, split=args.split)
    reasoning = {row["clip_id"]: row for row in read_jsonl(args.reasoning, ["clip_id", "segments"], unique="clip_id")}
    weights: dict[str, dict[str, float]] = {}
    if args.importance:
        rows = read_jsonl(args.importance, ["clip_id", "importance"], unique="clip_id")
        for row in rows:
            values = row["importance"]
            if not isinstance(values, dict) or not all(isinstance(weight, int | float) for weight in values.values()):
                raise InputError(f"{args.importance}: clip {row['clip_id']}: importance must be {{modality: number}}")
        weights = {row["clip_id"]: row["importance"] for row in rows}

    # Run
    prompt = question(labels.labels)
    targets: list[Row] = []
    for clip in clips:
        if clip.clip_id not in reasoning:
            raise InputError(f"{args.reasoning}: no reasoning for clip {clip.clip_id}")
        if clip.label is None:
            raise InputError(f"{args.clips}: clip {clip.clip_id} has no label, which a target needs")
        row = reasoning[clip.clip_id]
        texts = row["segments"].values() if isinstance(row["segments"], dict) else [None]
        if not all(isinstance(text, str) for text in (*texts, row.get("conclusion", ""))):
            raise InputError(
                f"{args.reasoning}: clip {clip.clip_id}: segments must be {{modality: text}}, conclusion a text"
            )
        order = order_of(clip, row["segments"], args.order, weights.get(clip.clip_id))
        try:
            target = render(row["segments"], row.get("conclusion", ""), clip.label, order)
        except InputError as error:
            raise InputError(f"{args.reasoning}: clip {clip.clip_id}: {error}") from None
        targets.append(
            {"clip_id": clip.clip_id, "prompt": prompt, "target": target, "order": order, "label": clip.label}
        )

    # Save
    write_jsonl(args.out, targets)
    first = {m: sum(row["order"][0] == m for row in targets) for m in ("video", "audio", "text")}
    counts = ", ".join(f"{count} start with {m}" for m, count in first.items() if count)
    print(f"targets: {len(targets)} ({counts}) -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
