r"""Feature files of the sentiment field: read one as it was downloaded, say what is in it, write a data folder.

    python stages/features.py --source mmsa --file MOSI/Processed/unaligned_50.pkl --set mosi --out runs/mosi/data

Reads MMSA's pickles (MOSI, MOSEI, SIMS, SIMS-v2, MMSA-FET's own), MSE-Adapter's, MulT's, and the tables of MELD and
CHERMA, without running anything that a pickle asks for and without holding long arrays in memory. Writes into --out:

    data.json       the file's SHA-256 and whether it is the published one; counts against the published ones; min,
                    max, NaN, infinities and constant columns; empty and cut clips; texts in two splits; the labels'
                    grid; the scaling (median and interquartile range of the train split)
    clips.jsonl     one line a clip: clip_id, split, transcript, score or label, lengths
    train/audio.npy and so on: the clips' own frames one behind the other; what was not finite is NaN

docs/sentiment.md explains the formats.
"""

import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import LOCK, clear, hold
from migr.files.records import Row, write_environment
from migr.sentiment import pickles, tables
from migr.sentiment.sets import SETS, SentimentSet, sentiment_set
from migr.sentiment.written import write_data

PICKLES = {"mmsa": pickles.read_mmsa, "mse": pickles.read_mse, "mult": pickles.read_mult}
TABLES = {"meld": tables.read_meld, "cherma": tables.read_cherma}


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summary(data: Row, dataset: SentimentSet) -> list[str]:
    """The report in lines: what someone must know before training on it."""
    lines = [f"{dataset.name}: {data['published'] or 'not a published file'}, sha256 {data['sha256'] or '-'}"]
    for split, facts in data["report"]["splits"].items():
        count = f"{split}: {facts['clips']} clips"
        if facts["published"] not in (None, facts["clips"]):
            count += f" (published: {facts['published']})"
        parts = [count, f"scores in {facts['grid']}" if "grid" in facts else ""]
        for modality in data["dims"]:
            own = facts[modality]
            part = f"{modality} {data['dims'][modality]} features, up to {own['longest']} frames"
            trouble = [
                f"{own[key]:,} {name}"
                for key, name in (
                    ("empty_clips", "empty clips"),
                    ("longer_than_stored", "cut clips"),
                    ("not_finite", "values not finite"),
                    ("constant", "constant columns"),
                )
                if own[key]
            ]
            parts.append(part + (f" ({', '.join(trouble)})" if trouble else ""))
        if facts["duplicate_ids"]:
            parts.append(f"{facts['duplicate_ids']} duplicate ids (the later ones end in #2)")
        lines.append("; ".join(filter(None, parts)))
    shared = {pair: n for pair, n in data["report"]["texts_in_two_splits"].items() if n}
    lines += [f"{n} texts stand in {pair}" for pair, n in shared.items()]
    return lines + data["report"]["notes"]


def main(argv: Sequence[str]) -> None:
    """Config, file, folder, report."""
    # Config
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--source", required=True, choices=[*PICKLES, *TABLES], help="whose layout the file has")
    add("--file", type=Path, required=True, help="the .pkl (mse: one of its three); meld, cherma: the folder of tables")
    add("--set", help=f"{', '.join(SETS)} (default for meld and cherma: themselves)")
    add("--features", type=Path, help="meld, cherma: folder with {text,audio,visual}/{train,dev,test}/<clip>.npy")
    add("--out", type=Path, required=True, help="folder for the data")
    args = parser.parse_args(argv)
    name = args.set or (args.source if args.source in TABLES else None)
    if name is None:
        raise InputError(f"--set is missing: one of {', '.join(SETS)}")
    dataset = sentiment_set(name)
    if args.source in TABLES and name != args.source:
        raise InputError(f"--source {args.source} reads the set {args.source}, not {name}")
    if args.features is not None and args.source in PICKLES:
        raise InputError("--features belongs to --source meld and cherma: pickles hold their own")

    if args.out.exists() and not (args.out / "data.json").exists() and any(args.out.iterdir()):
        raise InputError(f"--out {args.out}: holds something else; give another folder")

    # File
    start = time.perf_counter()
    if args.source in TABLES:
        splits, notes = TABLES[args.source](args.file, dataset, args.features)
        digest = None
    else:
        splits, notes = PICKLES[args.source](args.file, dataset)
        notes = [f"passed over: {note}" for note in notes]
        digest = sha256(args.file)

    # Folder
    about = {"source": args.source, "file": str(args.file), "sha256": digest}
    about["published"] = dataset.files.get(digest or "")
    partial = args.out.with_name(f".{args.out.name}.partial")
    hold(partial)
    try:
        clear(partial)  # what a kill has left
        data = write_data(partial, splits, dataset, about, notes)
        write_environment(partial)
    except BaseException:
        shutil.rmtree(partial)
        raise
    (partial / LOCK).unlink()
    if args.out.exists():
        shutil.rmtree(args.out)
    partial.rename(args.out)

    # Report
    print("\n".join(summary(data, dataset)))
    print(f"features: {time.perf_counter() - start:.1f} s -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
