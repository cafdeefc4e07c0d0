"""The flags of eval/consistency.py: what they are, how a YAML file gives them, which go together."""

import argparse
import difflib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from eval.run import predict
from migr.errors import InputError, Parser
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


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = Parser(description)
    add = parser.add_argument
    add("--config", type=Path, help="YAML file with these same keys; the command line wins")
    add("--out", type=Path, help="folder for what is written")
    add("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    add("--predictions", type=Path, help="predictions.jsonl (clip_id, label, response), or what another system wrote")
    add("--format", choices=FORMATS, default="auto", help="its format; auto tells it from the content")
    add("--truth", type=Path, help="table of the clips' labels, for predictions without: clips.jsonl, CSV, JSON, …")
    add("--by_order", action=argparse.BooleanOptionalAction, default=False, help=_BY_ORDER)
    add("--count_missing", action=argparse.BooleanOptionalAction, default=False, help=_COUNT_MISSING)
    add("--judgements", type=Path, help="judgements.jsonl: clip_id, judge, emotion")
    add("--judge", help="who reads the reasoning: lexicon, DIR, llm:DIR or endpoint:URL#MODEL (see above)")
    add("--judge_check", help="JSONL with text and emotion to measure the judge on; none (default: the shipped texts)")
    add("--judge_cache", type=Path, default=CACHE, help=f"judgements of llm, endpoint and DIR (default {CACHE})")
    add("--judge_prices", type=_prices, help="of an endpoint: money per million prompt,completion tokens: 0.4,1.6")
    add("--hide_emotion_words", action=argparse.BooleanOptionalAction, default=False, help=_HIDE)
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
    add("--fps", type=float, default=2.0, help="frames sampled a second; as in training, like the next five")
    add("--min_frames", type=int, default=4, help="at least this many frames a clip")
    add("--max_frames", type=int, default=32, help="at most this many frames a clip")
    add("--min_pixels", type=int, default=56 * 56, help="frames are enlarged to this many pixels")
    add("--max_pixels", type=int, default=448 * 448, help="frames are reduced to this many pixels")
    add("--audio_in_video", action=argparse.BooleanOptionalAction, default=False, help="interleave sound and frames")
    add("--resamples", type=int, default=2000, help="bootstrap resamples of the intervals")
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="discard another run in --out")
    predict.add_flags(parser)
    return parser


def arguments(argv: Sequence[str], description: str | None) -> argparse.Namespace:
    """Parse flags and `--config` YAML (the command line wins) and check that they go together.

    Raises:
        InputError: An unknown flag or key, a value of the wrong type, flags that are missing or contradict each other.
    """
    parser = _parser(description)
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
    elif args.format != "auto" or args.truth is not None or args.by_order:
        raise InputError("--format, --truth and --by_order describe --predictions")
    if args.count_missing and args.truth is None:
        raise InputError("--count_missing needs --truth: the table of the clips that there should be")
    if args.judge_check is not None and args.judge is None:
        raise InputError("--judge_check needs --judge: the judge to measure")
    if args.engine == "auto":  # resolved here, so that the run's record says what generated
        args.engine = "vllm" if find_spec("vllm") and not args.audio_in_video else "transformers"
    for name in ("limit", "max_new_tokens", "batch_size", "resamples", "tensor_parallel"):
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
    switches = {action.dest for action in parser._actions if isinstance(action, argparse.BooleanOptionalAction)}
    flags = []
    for key, value in config.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise InputError(f"--config {path}: unknown key {key!r}{hint}")
        if isinstance(value, list | dict):
            raise InputError(f"--config {path}: {key} must be one value, not {value!r}")
        if key in switches:
            flags.append(f"--{key}" if value else f"--no-{key}")
        elif value is not None:
            flags.append(f"--{key}={value}")
    return flags


def settings_of(args: argparse.Namespace, labels: LabelSet, read: dict[str, Any]) -> dict[str, Any]:
    """What the page says about how the figures came to be; `read` is what the predictions' reader counted."""
    shared = {
        "labels": labels.name,
        **({"judge sees": "no words that name an emotion"} if args.hide_emotion_words else {}),
    }
    if args.predictions is not None:
        given = ("predictions", "truth", "judgements", "importance")
        counted = "counted as wrong" if args.count_missing else "not counted (--count_missing does)"
        facts = {
            "format": read.get("format"),
            "put into tags": read.get("n_wrapped"),
            "paired": "by order" if args.by_order else None,
            "without a prediction": read.get("n_without") and f"{read['n_without']}, {counted}",
        }
        files = {name: str(getattr(args, name)) for name in given if getattr(args, name)}
        return {**files, **{name: value for name, value in facts.items() if value}, **shared}
    return {
        **{name: str(getattr(args, name)) for name in ("model", "clips", "split", "importance") if getattr(args, name)},
        **shared,
        "engine": f"{args.engine}, {args.dtype}",
        "decoding": f"temperature {args.temperature:g}, at most {args.max_new_tokens} tokens, seed {args.seed}",
        "frames": f"{args.fps:g} a second, {args.min_frames} to {args.max_frames}, "
        f"{args.min_pixels} to {args.max_pixels} pixels",
    }
