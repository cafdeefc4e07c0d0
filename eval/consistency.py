"""Stage 7, evaluation: does the reasoning support the answer? Generates, judges, counts; writes the table and the page.

    python eval/consistency.py                                        (the demo; makes what it lacks)
    python eval/consistency.py --clips clips.jsonl --model DIR --judge NAME --out DIR
    python eval/consistency.py --predictions FILE --judge NAME --labels dfew --out DIR
    python eval/consistency.py --predictions FILE --judgements FILE --labels dfew --out DIR    (arithmetic, no torch)

A judge is `lexicon` or a folder of stages/judge.py; it sees the reasoning alone. The folder `--out` gets
predictions.jsonl and judgements.jsonl (those not given), metrics.json and report.html. An interrupted run goes on.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from eval import predict, tally
from eval.metrics import measure, proportion
from eval.report import percent, print_table, write_report
from migr.emotions import LabelSet, label_set
from migr.errors import InputError, Parser, exit_on_input_error
from migr.judge import Judge, open_judge
from migr.records import iter_jsonl, write_environment, write_json


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, help="YAML file with these same keys; the command line wins")
    add("--out", type=Path, help="folder for what is written")
    add("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    add("--predictions", type=Path, help="predictions.jsonl: clip_id, label, response")
    add("--judgements", type=Path, help="judgements.jsonl: clip_id, judge, emotion")
    add("--judge", help="who reads the reasoning: lexicon, or a folder of stages/judge.py")
    add("--judge_check", type=Path, help="JSONL with text and emotion, to measure the judge itself on")
    add("--importance", type=Path, help="importance.jsonl, for the figures by dominant modality")
    add("--clips", type=Path, help="clips.jsonl of stages/data.py, to generate predictions for")
    add("--model", type=Path, help="folder of stages/export.py")
    add("--split", default="test", help="split of the clips (default test)")
    add("--limit", type=int, help="the first so many clips of the split only")
    add("--engine", choices=["auto", "vllm", "transformers"], default="auto", help="auto: vllm if there")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="type of the weights")
    add("--max_new_tokens", type=int, default=256, help="longest response")
    add("--batch_size", type=int, help="clips at a time (default 64 with vllm, 16 with transformers)")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    add("--seed", type=int, default=0, help="seed of sampling and of the bootstrap")
    add("--cache_dir", type=Path, help="where decoded clips are kept (shared by all stages)")
    add("--fps", type=float, default=2.0, help="frames sampled a second; as in training, like the next four")
    add("--min_frames", type=int, default=4, help="at least this many frames a clip")
    add("--max_frames", type=int, default=32, help="at most this many frames a clip")
    add("--min_pixels", type=int, default=56 * 56, help="frames are enlarged to this many pixels")
    add("--max_pixels", type=int, default=448 * 448, help="frames are reduced to this many pixels")
    add("--resamples", type=int, default=2000, help="bootstrap resamples of the intervals")
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="discard another run in --out")
    return parser


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse flags and `--config` YAML (the command line wins) and check that they go together.

    Raises:
        InputError: An unknown flag or key, a value of the wrong type, flags that are missing or contradict each other.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.config is not None:
        args = parser.parse_args([*_flags(args.config, parser), *argv])
    if args.out is None:
        raise InputError("--out is missing: the folder for metrics.json and report.html")
    if args.predictions is not None:
        clash = "--clips or --model" if args.clips or args.model else None
        clash = "--judgements or --judge" if args.judgements and args.judge else clash
        if clash:
            raise InputError(f"--predictions stands beside {clash}: give one or the other (--help shows the four uses)")
    elif missing := [f"--{name}" for name in ("clips", "model", "judge") if getattr(args, name) is None]:
        raise InputError(f"{missing[0]} is missing: give --clips, --model and --judge, or --predictions")
    elif args.judgements is not None:
        raise InputError("--judgements belongs to --predictions; what is generated here is judged by --judge")
    if args.judge_check is not None and args.judge is None:
        raise InputError("--judge_check needs --judge: the judge to measure")
    if args.engine == "auto":  # resolved here, so that the run's record says what generated
        args.engine = "vllm" if find_spec("vllm") else "transformers"
    for name in ("limit", "max_new_tokens", "batch_size", "resamples"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    return args


def _flags(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The keys of a YAML file as flags."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise InputError(f"--config {path}: expected `key: value` lines")
    known = {action.dest for action in parser._actions} - {"help", "config"}
    flags = []
    for key, value in config.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise InputError(f"--config {path}: unknown key {key!r}{hint}")
        if isinstance(value, list | dict):
            raise InputError(f"--config {path}: {key} must be one value, not {value!r}")
        if key == "overwrite":
            flags.append("--overwrite" if value else "--no-overwrite")
        elif value is not None:
            flags.append(f"--{key}={value}")
    return flags


def reliability(judge: Judge, check: Path | None, labels: LabelSet) -> dict[str, Any]:
    """The judge's name and, on labelled texts if there are any, how often it reads the emotion that they convey.

    A failed judgement counts as not right; `n_failed` says how many there were.
    """
    if check is None:
        return {"name": judge.name, "accuracy": None, "n": 0}
    texts, truth = [], []
    for number, row in enumerate(iter_jsonl(check, ("text", "emotion")), 1):
        emotion = labels.canonical(row["emotion"]) if isinstance(row["emotion"], str) else None
        if emotion is None or not isinstance(row["text"], str):
            raise InputError(
                f"{check}: row {number}: needs a text and one of {', '.join(labels.labels)} ({labels.name})"
            )
        texts.append(row["text"])
        truth.append(emotion)
    found = [judgement.emotion for judgement in judge.judge(texts)]
    right = sum(emotion == expected for emotion, expected in zip(found, truth, strict=True))
    return {"name": judge.name, **proportion(right, len(truth)), "n_failed": found.count(None)}


def settings_of(args: argparse.Namespace, labels: LabelSet) -> dict[str, Any]:
    """What the page says about how the figures came to be."""
    if args.predictions is not None:
        given = ("predictions", "judgements", "importance")
        return {"labels": labels.name, **{name: str(getattr(args, name)) for name in given if getattr(args, name)}}
    return {
        **{name: str(getattr(args, name)) for name in ("model", "clips", "split", "importance") if getattr(args, name)},
        "labels": labels.name,
        "engine": f"{args.engine}, {args.dtype}",
        "decoding": f"temperature {args.temperature:g}, at most {args.max_new_tokens} tokens, seed {args.seed}",
        "frames": f"{args.fps:g} a second, {args.min_frames} to {args.max_frames}, "
        f"{args.min_pixels} to {args.max_pixels} pixels",
    }


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Config, predictions, judgements, figures; returns the metrics.

    Raises:
        InputError: Something in the input or the configuration is wrong.
    """
    # Config
    if not argv:
        from stages import demo

        argv = demo.arguments_of("evaluation", demo.make("evaluation"))
    args = arguments(argv)
    labels = label_set(args.labels)
    judge = open_judge(args.judge, labels) if args.judge else None
    judge_facts = reliability(judge, args.judge_check, labels) if judge else None
    dominants = tally.read_dominants(args.importance) if args.importance else {}
    predictions, judgements = args.predictions, args.judgements

    # Predictions
    if predictions is None:
        clips = predict.chosen_clips(args, labels)
        config = {**predict.generation_config(args, labels), "judge": judge.name if judge else None}
        args.out.mkdir(parents=True, exist_ok=True)
        predictions = args.out / "predictions.jsonl"
        predict.claim(args.out, config, [predictions, args.out / "judgements.jsonl"], args.overwrite)
        predict.generate(clips, args, labels, predictions)
        write_environment(args.out)
    table = tally.read_predictions(predictions, labels)
    tally.add_dominants(table, dominants)

    # Judgements
    args.out.mkdir(parents=True, exist_ok=True)
    if judge is not None:
        judgements = args.out / "judgements.jsonl"
        if args.predictions is not None:
            config = {"predictions": predict.file_digest(predictions), "labels": labels.labels, "judge": judge.name}
            predict.claim(args.out, config, [judgements], args.overwrite)
        predict.judge_all(predictions, judge, judgements, len(table.ids))
    if judgements is not None:
        name = tally.read_judgements(judgements, labels, table)
        judge_facts = judge_facts or {"name": name, "accuracy": None, "n": 0}

    # Figures
    columns = (table.labels, table.answers, table.judgements)
    metrics = measure(*columns, labels.labels, table.first, table.dominants, args.resamples, args.seed)
    metrics |= {"judge": judge_facts, "settings": settings_of(args, labels)}
    write_json(args.out / "metrics.json", metrics)
    source = args.model or (args.predictions.parent if args.predictions.stem == "predictions" else args.predictions)
    name = source.resolve().name.removesuffix(".jsonl")
    write_report(args.out / "report.html", {name: metrics}, {name: tally.examples(predictions, table, labels)})
    print_table({name: metrics})
    print(
        f"evaluation: WAR {percent(metrics['war'])}, inconsistent among correct "
        f"{percent(metrics['inconsistent_among_correct'])} ({metrics['cells']['right_inconsistent']} of "
        f"{metrics['inconsistent_among_correct_n']}) -> {args.out}/report.html"
    )
    return metrics


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
