"""Generate predictions and judge them: files that grow by finished batches, so that an interrupted run goes on."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.tally import PREDICTION_KEYS, answer_of, order_of
from migr.clips import Clip, read_clips
from migr.emotions import LabelSet
from migr.errors import InputError
from migr.judge import Judge
from migr.reasoning import parse, plain
from migr.records import Row, digest, iter_jsonl, read_json, write_json

MEDIA = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels")
_WRITTEN_AT_ONCE = 16  # predictions that an interruption can lose at most
_JUDGED_AT_ONCE = 256


def chosen_clips(args: argparse.Namespace, labels: LabelSet) -> list[Clip]:
    """The labelled clips of the split, at most `--limit` of them.

    Raises:
        InputError: The manifest is wrong, or none of the split's clips has a label.
    """
    clips = read_clips(args.clips, labels, split=args.split)
    labelled = [clip for clip in clips if clip.label is not None]
    if not labelled:
        raise InputError(f"{args.clips}: no clip of split {args.split!r} has a label to compare with")
    if len(labelled) < len(clips):
        print(f"evaluation: {len(clips) - len(labelled)} of {len(clips)} clips have no label and are left out")
    return labelled[: args.limit]


def generation_config(args: argparse.Namespace, labels: LabelSet) -> Row:
    """Everything that predictions depend on; a run is continued only where all of it is the same."""
    import migr.omni.prompt

    return {
        "model": model_digest(args.model),
        "clips": file_digest(args.clips),
        "split": args.split,
        "labels": list(labels.labels),
        "prompt": migr.omni.prompt.question(labels.labels),
        "media": {name: getattr(args, name) for name in MEDIA},
        "decoding": {
            name: getattr(args, name) for name in ("engine", "dtype", "max_new_tokens", "temperature", "seed")
        },
    }


def model_digest(model: Path) -> str:
    """Hash of a model folder: its configurations' content, its weight files' names, sizes and times.

    Raises:
        InputError: The folder has no config.json.
    """
    if not (model / "config.json").is_file():
        raise InputError(f"--model {model}: no model folder (config.json is missing); stages/export.py writes one")
    configs = [path.read_bytes() for path in sorted(model.glob("*config.json"))]
    weights = [(path.name, path.stat()) for path in sorted(model.glob("*.safetensors"))]
    return digest(*configs, [(name, facts.st_size, facts.st_mtime_ns) for name, facts in weights])


def file_digest(path: Path) -> str:
    """Hash of a file's content.

    Raises:
        InputError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        raise InputError(f"{path}: no such file") from None


def claim(out: Path, config: Mapping[str, Any], files: Sequence[Path], overwrite: bool) -> None:
    """Take the folder for this run: continue one of the same configuration, discard another only if told to.

    Raises:
        InputError: The folder holds the files of another run, or of an unknown one.
    """
    record = out / "run.json"
    config = json.loads(json.dumps(config))  # as it will be read back
    if overwrite:
        for file in files:
            file.unlink(missing_ok=True)
    elif record.exists():
        old = read_json(record)
        changed = [key for key in {**old, **config} if old.get(key) != config.get(key)]
        if changed:
            raise InputError(
                f"{out} holds a run with another {', '.join(changed)}: give another --out, or --overwrite it "
                "(to judge the same predictions otherwise: --predictions FILE --judge NAME and another --out)"
            )
    elif there := [file for file in files if file.exists()]:
        raise InputError(f"{there[0]}: nothing tells which run wrote it; give another --out, or --overwrite it")
    write_json(record, config)


def generate(clips: Sequence[Clip], args: argparse.Namespace, labels: LabelSet, out: Path) -> None:
    """Write a prediction for each clip that has none yet.

    Raises:
        InputError: The model cannot be loaded, or a clip cannot be read.
    """
    done = finished(out)
    pending = {clip.clip_id: clip for clip in clips if clip.clip_id not in done}
    if not pending:
        print(f"evaluation: {out} holds all {len(done)} predictions already")
        return

    from migr.engine import Generation, Request, open_engine
    from migr.media import MediaSettings
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import load_processor
    from migr.omni.prompt import question, render_prompt

    processor = load_processor(args.model)
    settings = MediaSettings(**{name: getattr(args, name) for name in MEDIA})
    inputs = OmniInputs(processor, settings, args.cache_dir)
    text = question(labels.labels)
    requests = (
        Request(clip.clip_id, render_prompt(processor, text, clip.has_video, clip.has_audio), inputs.media(clip))
        for clip in pending.values()
    )

    def batches(generations: Iterator[Generation]) -> Iterator[list[Row]]:
        start = time.monotonic()
        for batch in _batches(generations, args.batch_size or _WRITTEN_AT_ONCE):
            seconds = round((time.monotonic() - start) / len(batch), 4)  # a clip's share of its batch
            yield [row_of(generation, seconds) for generation in batch]
            start = time.monotonic()

    def row_of(generation: Generation, seconds: float) -> Row:
        response = parse(generation.text)
        return {
            "clip_id": generation.key,
            "label": pending[generation.key].label,
            "response": generation.text,
            "answer": answer_of(response, labels),
            "order": order_of(response),
            "finished": generation.finished,
            "seconds": seconds,
        }

    options = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "seed", "batch_size", "dtype")}
    with open_engine(args.model, args.engine, **options) as engine:
        append(out, batches(engine.generate(requests)), "generating", len(done) + len(pending), len(done))


def judge_all(predictions: Path, judge: Judge, out: Path, total: int) -> None:
    """Write the judgement of each prediction's reasoning that has none yet; the judge sees nothing else."""
    done = finished(out)
    rows = (row for row in iter_jsonl(predictions, PREDICTION_KEYS) if row["clip_id"] not in done)

    def batches() -> Iterator[list[Row]]:
        for batch in _batches(rows, _JUDGED_AT_ONCE):
            judgements = judge.judge([plain(parse(row["response"])) for row in batch])
            yield [
                {
                    "clip_id": row["clip_id"],
                    "judge": judge.name,
                    "emotion": judgement.emotion,
                    "status": judgement.status,
                    "probabilities": {label: round(p, 4) for label, p in judgement.probabilities.items()},
                }
                for row, judgement in zip(batch, judgements, strict=True)
            ]

    append(out, batches(), "judging", total, len(done))


def finished(path: Path) -> set[str]:
    """The clip ids of a growing file; a line that was cut off by the interruption is removed."""
    if not path.exists():
        return set()
    whole = 0
    with path.open("rb+") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole += len(line)
    return {row["clip_id"] for row in iter_jsonl(path, ("clip_id",))}


def append(path: Path, batches: Iterable[list[Row]], doing: str, total: int, initial: int) -> None:
    """Append each batch as it comes and hand it to the operating system, with a progress bar."""
    with path.open("a", encoding="utf-8") as file, tqdm(total=total, initial=initial, desc=doing, unit="clip") as bar:
        for rows in batches:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            bar.update(len(rows))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
