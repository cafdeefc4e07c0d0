"""Put the clips of several data sets into one manifest, to train on all of them.

    python stages/join.py --clips runs/dfew/clips/clips.jsonl runs/mafw/clips/clips.jsonl --names dfew mafw \
        --labels mafw --out runs/both/clips

Clip ids get the data set's name in front (`dfew/00042`), paths become relative to the folder that all have in common,
labels those of `--labels` (DFEW's are among MAFW's, by other words). Splits stay as they are.
"""

import argparse
import os
from pathlib import Path

from migr.clips import read_clips
from migr.emotions import label_set
from migr.errors import InputError, Parser, exit_on_input_error
from migr.records import write_environment, write_json, write_jsonl


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="clips.jsonl of each data set")
    parser.add_argument("--names", nargs="+", required=True, help="a short name for each, in the same order")
    parser.add_argument("--labels", default="mafw", help="dfew, mafw, or a file with one label a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for clips.jsonl")
    return parser.parse_args()


def main() -> None:
    """Read, rename, write."""
    # Config
    args = arguments()
    labels = label_set(args.labels)
    if len(args.names) != len(args.clips) or len(set(args.names)) != len(args.names):
        raise InputError(f"--names: give {len(args.clips)} different names, one for each of --clips")

    # Data
    sets = [read_clips(path) for path in args.clips]
    root = Path(os.path.commonpath([clip.path.parent for clips in sets for clip in clips]))
    rows = []
    for name, path, clips in zip(args.names, args.clips, sets, strict=True):
        for clip in clips:
            label = None if clip.label is None else labels.canonical(clip.label)
            if clip.label is not None and label is None:
                raise InputError(f"{path}: clip {clip.clip_id!r}: {clip.label!r} is none of {', '.join(labels.labels)}")
            own = {"clip_id": f"{name}/{clip.clip_id}", "path": str(clip.path.relative_to(root)), "label": label}
            flags = {"split": clip.split, "has_video": clip.has_video, "has_audio": clip.has_audio}
            rows.append({**clip.extra, **own, **flags})

    # Save
    args.out.mkdir(parents=True, exist_ok=True)
    write_environment(args.out)
    write_json(args.out / "data.json", {"source": "joined", "root": str(root), "labels": labels.labels})
    write_jsonl(args.out / "clips.jsonl", rows)
    parts = ", ".join(f"{len(clips)} {name}" for name, clips in zip(args.names, sets, strict=True))
    print(f"join: {len(rows)} clips ({parts}) below {root} -> {args.out}/clips.jsonl")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
