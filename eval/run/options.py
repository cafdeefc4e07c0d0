"""The flags of eval/consistency.py: what they are, how a YAML file gives them, which go together."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.figures.metrics import check_resamples
from eval.run.predict import GenerationSettings
from migr.cli import Parser, settings_of
from migr.clips.record import ModelRecord, read_record
from migr.errors import InputError
from migr.settings import CacheSettings, DecodingSettings, EngineSettings, LabelSettings, MediaSettings
from migr.sources.foreign import FORMATS
from migr.text.labels import LabelSet

CACHE = Path.home() / ".cache" / "migr" / "judgements.sqlite"
_BY_ORDER = "rows name no clips: pair them with --truth by their order (without --truth: number them)"
_COUNT_MISSING = "clips of --truth without a prediction count as wrong"
_HIDE = "the judge does not see words that name an emotion"


def _prices(text: str) -> tuple[float, float]:
    prompt, completion = map(float, text.split(","))
    if not min(prompt, completion) >= 0:
        raise ValueError
    return prompt, completion


_prices.__name__ = "PROMPT,COMPLETION"  # argparse names it in its complaint


def _parser(description: str | None) -> Parser:
    parser = Parser(description)
    add = parser.add_argument
    add("--out", type=Path, help="folder for what is written")
    add("--predictions", type=Path, help="predictions.jsonl (clip_id, label, response), or what another system wrote")
    add("--format", choices=FORMATS, default="auto", help="its format; auto tells it from the content")
    add("--truth", type=Path, help="table of the clips' labels, for predictions without: clips.jsonl, CSV, JSON, …")
    add("--by_order", action=argparse.BooleanOptionalAction, default=False, help=_BY_ORDER)
    add("--count_missing", action=argparse.BooleanOptionalAction, default=False, help=_COUNT_MISSING)
    add("--judgements", type=Path, help="judgements.jsonl: clip_id, judge, emotion")
    add("--judge", help="who reads the reasoning: lexicon, embedded, DIR, llm:DIR or endpoint:URL#MODEL (see above)")
    add("--judge_check", help="JSONL with text and emotion to measure the judge on; none (default: the shipped texts)")
    add("--judge_cache", type=Path, default=CACHE, help=f"judgements of llm, endpoint and DIR (default {CACHE})")
    add("--judge_prices", type=_prices, help="of an endpoint: money per million prompt,completion tokens: 0.4,1.6")
    add("--hide_emotion_words", action=argparse.BooleanOptionalAction, default=False, help=_HIDE)
    add("--importance", type=Path, help="importance.jsonl, for the figures by dominant modality")
    add("--clips", type=Path, help="clips.jsonl of stages/data.py, to generate predictions for")
    add("--model", type=Path, help="folder of stages/export.py; what is said there of media and labels is the default")
    add("--split", default="test", help="split of the clips (default test)")
    add("--limit", type=int, help="the first so many clips of the split only")
    add("--shard", metavar="K/N", help="generate the K-th of N parts (K from 0); torchrun and accelerate set it")
    add("--resamples", type=int, default=2000, help="bootstrap resamples of the intervals")
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="discard another run in --out")
    parser.add_settings(LabelSettings, MediaSettings, EngineSettings, DecodingSettings, CacheSettings)
    return parser


def arguments(argv: Sequence[str], description: str | None) -> tuple[argparse.Namespace, ModelRecord | None]:
    """Parse flags and `--config` YAML (the command line wins) and check that they go together.

    Returns:
        The arguments, and what the model's folder says of itself; how clips are read is taken from there.

    Raises:
        InputError: An unknown flag or key, a value of the wrong type, flags that are missing or contradict each other.
    """
    parser = _parser(description)
    args = parser.parse_args(argv)
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
    elif args.format != "auto" or args.truth is not None or args.by_order:
        raise InputError("--format, --truth and --by_order describe --predictions")
    if args.count_missing and args.truth is None:
        raise InputError("--count_missing needs --truth: the table of the clips that there should be")
    if args.judge_check is not None and args.judge is None:
        raise InputError("--judge_check needs --judge: the judge to measure")
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit must be at least 1")
    check_resamples(args.resamples, args.seed)
    record = read_record(args.model) if args.model is not None else None
    if record is not None:
        parser.inherit(args, record.media, record.source)
    return args, record


def engine_of(args: argparse.Namespace) -> EngineSettings:
    """What generates, and what a judge `llm:DIR` runs on; resolved, so that the run's record says which it was."""
    return settings_of(EngineSettings, args).resolved(args.audio_in_video)


def prompt_of(labels: LabelSet, record: ModelRecord | None) -> str:
    """The question about a clip: the model's own, where it was trained to choose between the same labels."""
    from migr.omni.prompt import question

    if record is not None and record.prompt is not None and record.labels.labels == labels.labels:
        return record.prompt
    return question(labels.labels)


def generation_of(
    args: argparse.Namespace,
    labels: LabelSet,
    record: ModelRecord | None,
    decoding: DecodingSettings | None = None,
    **more: Any,
) -> GenerationSettings:
    """What is asked of the model about the clips, as dataclasses.

    Args:
        args: The command line of a command that asks a model about clips.
        labels: What may be answered.
        record: What the model's folder says.
        decoding: How answers are drawn; None takes the flags.
        more: Fields of `GenerationSettings` that not every command has.
    """
    return GenerationSettings(
        model=args.model,
        clips=args.clips,
        labels=labels,
        prompt=prompt_of(labels, record),
        media=settings_of(MediaSettings, args),
        engine=engine_of(args),
        decoding=decoding or settings_of(DecodingSettings, args),
        cache_dir=args.cache_dir,
        **more,
    )


def shown_settings(args: argparse.Namespace, labels: LabelSet, read: dict[str, Any]) -> dict[str, Any]:
    """What the page says about how the figures came to be; `read` is what the predictions' reader counted."""
    shared = {
        "labels": labels.name,
        **({"judge sees": "no words that name an emotion"} if args.hide_emotion_words else {}),
    }
    if args.predictions is not None:
        names = ("predictions", "truth", "judgements", "importance")
        counted = "counted as wrong" if args.count_missing else "not counted (--count_missing does)"
        facts = {
            "format": read.get("format"),
            "put into tags": read.get("n_wrapped"),
            "paired": "by order" if args.by_order else None,
            "label ids": f"read as 1 ({labels.labels[0]}) to 7 ({labels.labels[-1]})" if read.get("numbered") else None,
            "without a prediction": read.get("n_without") and f"{read['n_without']}, {counted}",
        }
        files = {name: str(getattr(args, name)) for name in names if getattr(args, name)}
        return {**files, **{name: value for name, value in facts.items() if value}, **shared}
    return {
        **{name: str(getattr(args, name)) for name in ("model", "clips", "split", "importance") if getattr(args, name)},
        **shared,
        "engine": f"{engine_of(args).engine}, {args.dtype}",
        "decoding": f"temperature {args.temperature:g}, at most {args.max_new_tokens} tokens, seed {args.seed}",
        "frames": f"{args.fps:g} a second, {args.min_frames} to {args.max_frames}, "
        f"{args.min_pixels} to {args.max_pixels} pixels",
    }
