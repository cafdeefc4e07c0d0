"""Stage 1, data: find or make the clips of a data set, examine each, write `clips.jsonl` and `excluded.jsonl`.

    python stages/data.py --source planted --out runs/planted --train 56 --val 14 --test 14      (smoke: a few seconds)
    python stages/data.py --source planted --out runs/planted --seed 0                           (the benchmark)
    python stages/data.py --source dfew --root /data/DFEW --fold 1 --out runs/dfew/clips
    python stages/data.py --source mafw --root /data/MAFW --fold 1 --out runs/mafw/clips
    python stages/data.py --source table --table mine.csv --root /data/mine --labels dfew --out runs/mine/clips

The planted benchmark (design: `migr/planted/clips.py`) also writes `reasoning.jsonl`, what each modality shows, and
two sets of labelled texts: `judge_fit.jsonl`, to fit the evaluation judge on, and `judge_check.jsonl`, to measure
judges on. The first is worded like the test clips, the second like the train clips (which is how trained models write).
With `--coherence q` the annotator of `reasoning.jsonl` tells coherent stories (`migr/planted/annotators.py`).

Real clips are read once, from end to end, each in a process that may hang or crash without harm. What cannot be used
stands in `excluded.jsonl` with a reason; a share above --max_excluded is an error. Results are kept in `probes.jsonl`:
an interrupted run goes on, a later one examines only what has changed. Formats and reasons: docs/data.md.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from migr.cli import Parser, settings_of
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import claim, finish
from migr.files.records import Row, digest, write_environment, write_json, write_jsonl
from migr.machine import cores
from migr.planted import clips as planted
from migr.planted import wording
from migr.planted.annotators import WRITTEN, Annotator, rewritten
from migr.settings import CacheSettings, LabelSettings, MediaSettings, OutputSettings
from migr.sources import dfew, mafw, table
from migr.sources.checking import examine_listed, frames_root, kinds_of
from migr.sources.listed import Listed
from migr.text.labels import DFEW, label_set

NEEDS = {"video": ("video",), "audio": ("audio",), "both": ("video", "audio"), "any": ()}
TEXTS = 2  # version of `labelled_texts`


@dataclass(frozen=True)
class Source:
    """Where clips come from: flags that it alone knows, with their defaults, and the reader that lists its clips.

    The planted benchmark has no reader: it makes its clips.
    """

    flags: dict[str, Any]
    read: Callable[[argparse.Namespace], Listed] | None = None


SIZES = {"train": 2100, "val": 140, "test": 560}
SOURCES = {
    "planted": Source({"seed": 0, **SIZES, "coherence": 0.0, "written": WRITTEN[0]}),
    "dfew": Source(
        {"fold": 1, "frame_rate": None},
        lambda args: dfew.read(args.root, args.fold, frames=args.frame_rate is not None),
    ),
    "mafw": Source({"fold": 1}, lambda args: mafw.read(args.root, args.fold)),
    "table": Source(
        {"table": None, "labels": "dfew", "split": "train"},
        lambda args: table.read(args.table, args.root or args.table[0].parent, label_set(args.labels), args.split),
    ),
}


def arguments() -> argparse.Namespace:
    """The command line, with the defaults of the source.

    Raises:
        InputError: A flag is missing, out of range, or belongs to another source.
    """
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--source", choices=list(SOURCES), default="planted", help="where clips come from")
    add("--out", type=Path, required=True, help="folder for clips.jsonl and, if made here, the clips")
    add("--root", type=Path, help="folder of the data set; for a table, of its paths (default: the table's own)")
    add("--fold", type=int, choices=dfew.FOLDS, help="dfew, mafw: the published fold (default 1)")
    add("--frame_rate", type=float, help="dfew: read the frame folders (no sound) at so many frames a second")
    add("--table", type=Path, nargs="+", help="table: CSV, XLSX or JSONL with path and label; several are put together")
    add("--split", help="table: the split of rows that name none (default train)")
    add("--max_excluded", type=float, default=0.05, help="share of clips that may be unusable (default 0.05)")
    add("--require", choices=list(NEEDS), default="video", help="streams that a clip must have (default video)")
    add("--workers", type=int, default=cores(), help=f"clips examined at a time (default {cores()}, the cores)")
    add("--timeout", type=float, default=60.0, help="seconds that examining a clip may take (default 60)")
    add("--seed", type=int, help="planted: draws everything; the same seed gives the same clips")
    for split, count in SIZES.items():
        add(f"--{split}", type=int, help=f"planted: number of {split} clips (default {count})")
    add("--coherence", type=float, help="planted: how often a second description follows the first one (default 0)")
    add("--written", choices=WRITTEN, help=f"planted: what is described first (default {WRITTEN[0]})")
    # of media, examining needs the reader and the seconds; all are taken, so that one YAML does for all stages
    parser.add_settings(LabelSettings, MediaSettings, CacheSettings, OutputSettings)
    args = parser.parse_args()
    settings_of(MediaSettings, args)
    own = SOURCES[args.source].flags
    for name in {flag for source in SOURCES.values() for flag in source.flags}:
        if name not in own and getattr(args, name) is not None:
            raise InputError(f"--{name} does not go with --source {args.source}")
        if getattr(args, name) is None:
            setattr(args, name, own.get(name))
    if args.source != "planted" and (args.table if args.source == "table" else args.root) is None:
        raise InputError(f"--source {args.source} needs --{'table' if args.source == 'table' else 'root'}")
    if len(args.table or []) > 1 and args.root is None:
        raise InputError("several tables need --root: a folder that holds the clips of all")
    for name in ("frame_rate", "workers", "timeout"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < 1e6:
            raise InputError(f"--{name}: must be a positive number, not {getattr(args, name)}")
    if not 0 <= args.max_excluded < 1:
        raise InputError(f"--max_excluded: must be a share from 0 to below 1, not {args.max_excluded}")
    return args


def prepare(args: argparse.Namespace) -> None:
    """Examine the clips of a data set and write down which can be used."""
    # Config
    tables = [str(file.resolve()) for file in args.table or []]
    about = {"source": args.source, "fold": args.fold, "table": tables}
    record, manifest = args.out / "data.json", args.out / "clips.jsonl"
    settings = {"max_seconds": args.max_seconds, "backend": args.backend, "rate": args.frame_rate}
    config = {**about, **settings, "require": args.require, "labels": args.labels, "split": args.split}
    claim(args.out, config, [manifest, args.out / "excluded.jsonl"], args.overwrite)

    # Data
    reader = SOURCES[args.source].read
    assert reader is not None, "planted clips are made, not read"
    source = reader(args)
    cache = args.cache_dir or args.out

    # Run
    examination = examine_listed(source, cache, settings, args.workers, args.timeout)
    rows, excluded = [], []
    for row, result in zip(source.rows, examination.results(), strict=True):
        facts = result.get("facts", {})
        absent = [kind for kind in NEEDS[args.require] if facts and not facts[f"has_{kind}"]]
        if absent:
            what = "digital silence" if facts.get("silent") else f"no {absent[0]} stream"
            result = {"reason": f"no_{absent[0]}", "detail": f"{what} (--require {args.require})"}
        if "reason" in result:
            excluded.append({**row, **result})
        else:
            path = f"{row['clip_id']}.mp4" if source.frames else row["path"]
            rows.append({**row, "path": path, **facts, "duration": round(facts["duration"], 3)})

    # Save
    write_jsonl(args.out / "excluded.jsonl", excluded)
    why = Counter(row["reason"] for row in excluded)
    reasons = ", ".join(f"{count} {reason}" for reason, count in why.most_common())
    if not rows or len(excluded) > args.max_excluded * len(source.rows):
        manifest.unlink(missing_ok=True)  # an earlier one would hide the loss
        raise InputError(
            f"{len(excluded)} of {len(source.rows)} clips cannot be used ({reasons}), --max_excluded is "
            f"{args.max_excluded:g}: {args.out}/excluded.jsonl says which and why, clips.jsonl is not written; mend "
            "the files and run again (only what changed is examined), or raise --max_excluded"
        )
    root = frames_root(cache, settings).resolve() if source.frames else source.root
    clips, named = Counter(row["split"] for row in rows), Counter(row["split"] for row in source.rows)
    counts = {"clips": clips, "excluded": why, "named": named, "published": source.published}
    write_environment(args.out)
    kinds = kinds_of(rows)
    labels = {"labels": source.labels.labels, "label_set": source.labels.as_record()}
    write_json(record, {**about, "root": str(root), **labels, **settings, **counts, "kinds": kinds})
    write_jsonl(manifest, rows)
    for split, count in source.published.items():
        if named[split] != count:
            print(f"data: {args.source} fold {args.fold} names {named[split]} {split} clips, published are {count}")
    for what, numbers in kinds.items():
        print(f"data: {what:<10} {', '.join(f'{count} {kind}' for kind, count in numbers.items())}")
    parts = ", ".join(f"{count} {split}" for split, count in clips.items())
    print(
        f"data: {len(rows)} clips ({parts}), {len(excluded)} excluded{f' ({reasons})' if reasons else ''}; "
        f"{examination.examined} examined in {examination.seconds:.0f} s -> {manifest}"
    )


def labelled_texts(seed: int, split: str, count: int) -> list[Row]:
    """Whole reasonings with the emotion that they convey, in the wording of a split, drawn apart from the clips.

    Half are as a gold target says it, half `blended`: one of the three clear cues is of another emotion, as models
    write it and a judge must be able to read.
    """
    texts = []
    for index in range(count):
        row = planted.spec(seed + 1_000_003, split, index)
        rng = random.Random(f"text {seed} {split} {index}")
        blended, clear, segments = index // 14 % 2 == 1, row["planted"]["dominant"], row["segments"]
        if blended:
            other = rng.choice([label for label in DFEW if label != row["label"]])
            segments = {**segments, clear: wording.blend(clear, row["label"], other, planted.bank_of(split), rng)}
        parts = rng.sample(list(segments.values()), len(segments))
        kind = "blended" if blended else "gold"
        texts.append({"text": " ".join([*parts, row["conclusion"]]), "emotion": row["label"], "kind": kind})
    return texts


def pick(row: Row, *keys: str) -> Row:
    """The row with these keys only."""
    return {key: row[key] for key in keys}


def plant(args: argparse.Namespace) -> None:
    """Make the planted clips, then the files that speak of them."""
    sizes = {"train": args.train, "val": args.val, "test": args.test}
    if min(sizes.values()) < 0 or args.train < 14:
        raise InputError(
            "--train needs at least 14 clips (each label in each modality once), --val and --test 0 or more"
        )
    annotator = Annotator(args.coherence, args.written)
    config = {"source": args.source, "seed": args.seed, **sizes, "process": planted.VERSION, "texts": TEXTS}
    config |= asdict(annotator) if args.coherence else {}
    done = args.out / "data.json"
    if claim(args.out, config, [args.out / "clips.jsonl", done], args.overwrite):
        print(f"data: {args.out} is finished already")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    rows = list(planted.make(args.out, args.seed, sizes))
    write_jsonl(
        args.out / "clips.jsonl",
        ({**pick(row, "clip_id", "label", "split", "planted"), "path": f"clips/{row['clip_id']}.mp4"} for row in rows),
    )
    write_jsonl(args.out / "excluded.jsonl", [])
    described = (rewritten(row, annotator, args.seed) for row in rows)
    reasoning = ({**pick(row, "clip_id", "segments", "conclusion"), "by": "planted"} for row in described)
    write_jsonl(args.out / "reasoning.jsonl", reasoning)
    write_jsonl(args.out / "judge_fit.jsonl", labelled_texts(args.seed, "test", 2100))
    write_jsonl(args.out / "judge_check.jsonl", labelled_texts(args.seed, "train", 700))
    write_environment(args.out)
    write_json(done, {**config, "digest": digest(config), "label_set": label_set("dfew").as_record()})
    finish(args.out)
    parts = ", ".join(f"{n} {split}" for split, n in sizes.items())
    print(f"data: {len(rows)} clips ({parts}) -> {args.out}/clips.jsonl")


def main() -> None:
    """Make clips, or examine those of a data set."""
    args = arguments()
    (plant if args.source == "planted" else prepare)(args)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
