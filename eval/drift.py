"""How far does a model drift from the clip to its own words? Measured on the model that wrote the responses.

    python eval/drift.py --predictions predictions.jsonl --clips clips.jsonl --model DIR --out runs/x/eval/drift
    python eval/drift.py --targets targets.jsonl --clips clips.jsonl --out DIR      (texts alone: no model, no torch)

Evidence curve: gain of each token of the reasoning, log p(token | clip, text so far) minus log p(token | blanked clip,
text so far), over the tenths of the reasoning; with transformers also the share of attention that goes to the media.
Pull of the first segment: the model goes on behind its own first segment, and behind another clip's with another
emotion; how often what follows takes that emotion, minus how often it has it anyway. 0: the clip decides; 1: the words.
Order effect: the same clip with the first segment about either modality; what changes. All of it is ours.

--targets measures coherence in a data set's texts before anything is trained on them: how often the second description
follows the first one's emotion, beyond independence (`eval/figures/coherence.py`).

The folder `--out` gets drift.jsonl (a row a clip), drift.json, drift.png and drift.html, or coherence.jsonl and
coherence.json. An interrupted run goes on. In RUN/drift, eval/compare.py finds it.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.figures import coherence, drift
from eval.figures.metrics import check_resamples
from eval.page.drift import plot, show, show_coherence, write_page
from eval.run.drift import Lenders, emotions_of, rows_of
from eval.run.options import CACHE, engine_of, generation_of
from eval.run.predict import GenerationSettings, asker, opened, read_answered
from migr.cli import Parser
from migr.clips.manifest import Clip, read_clips
from migr.clips.record import find_labels, read_record
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import claim
from migr.files.fingerprint import file_digest, model_digest
from migr.files.growing import Growing, ids_in
from migr.files.records import Row, iter_jsonl, read_jsonl, write_environment, write_json, write_jsonl
from migr.judge import Judge, open_judge
from migr.judge import prompt_of as judge_prompt
from migr.settings import CacheSettings, DecodingSettings, EngineSettings, LabelSettings, MediaSettings
from migr.text.format import parse
from migr.text.labels import LabelSet


def arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, LabelSet, GenerationSettings | None]:
    """Parse the flags; what they do not give comes from the model's folder. With --targets nothing is generated.

    Raises:
        InputError: An unknown flag, a value out of range, or flags that do not go together.
    """
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--predictions", type=Path, help="predictions.jsonl of eval/consistency.py")
    add("--targets", type=Path, help="targets.jsonl of stages/targets.py: measure coherence in its texts")
    add("--clips", type=Path, help="clips.jsonl of stages/data.py")
    add("--model", type=Path, help="the model that wrote the predictions")
    add("--importance", type=Path, help="importance.jsonl, for the figures by dominant modality (default: as planted)")
    add("--judge", default="lexicon", help="who reads segments: lexicon, embedded, DIR, llm:DIR or endpoint:URL#MODEL")
    add("--judge_cache", type=Path, default=CACHE, help=f"judgements of llm, endpoint and DIR (default {CACHE})")
    add("--attention", action=argparse.BooleanOptionalAction, default=True, help="with transformers: where it looks")
    add("--out", type=Path, required=True, help="folder for what is written")
    add("--limit", type=int, help="the first so many predictions or targets only")
    add("--resamples", type=int, default=2000, help="bootstrap resamples of the intervals")
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="discard another run in --out")
    parser.add_settings(LabelSettings, MediaSettings, EngineSettings, DecodingSettings, CacheSettings)
    parser.accept_keys(GenerationSettings, "judge_check", "judge_prices", "hide_emotion_words")  # of the evaluation
    args = parser.parse_args(argv)
    check_resamples(args.resamples, args.seed)
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit must be at least 1")
    if (args.predictions is None) == (args.targets is None):
        raise InputError("give --predictions with --clips and --model, or --targets")
    if args.targets is not None:
        if args.model is not None:
            raise InputError("--model belongs to --predictions: --targets are read, not scored")
        return args, find_labels(args.labels, args.clips, args.targets), None
    if missing := [f"--{name}" for name in ("clips", "model") if getattr(args, name) is None]:
        raise InputError(f"{missing[0]} is missing: --predictions needs --clips and --model")
    record = read_record(args.model)
    if record is not None:
        parser.inherit(args, record.media, record.source)
    labels = find_labels(args.labels, args.clips, args.predictions, model=record)
    return args, labels, generation_of(args, labels, record)


def read_dominant(args: argparse.Namespace, clips: Mapping[str, Clip]) -> dict[str, str]:
    """Clip id -> dominant modality: of importance.jsonl, else as planted; empty where neither tells."""
    if args.importance is not None:
        rows = iter_jsonl(args.importance, ("clip_id", "dominant"))
        return {row["clip_id"]: row["dominant"] for row in rows if row["dominant"]}
    planted = {name: clip.extra.get("planted") or {} for name, clip in clips.items()}
    return {name: truth["dominant"] for name, truth in planted.items() if "dominant" in truth}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Config, data, questions, figures; returns the figures.

    Raises:
        InputError: Something in the input or the configuration is wrong.
    """
    # Config
    args, labels, settings = arguments(argv)
    judge = open_judge(args.judge, labels, cache=args.judge_cache, engine=engine_of(args))
    if settings is None:
        return measure_targets(args, labels, judge)

    # Data
    predictions, by_id = read_answered(args.predictions, settings)
    attention = args.attention and settings.engine.engine == "transformers"
    config = {
        "model": model_digest(args.model),
        **{name: file_digest(getattr(args, name)) for name in ("predictions", "clips")},
        "importance": file_digest(args.importance) if args.importance else None,
        "label_set": labels.as_record(),
        "prompt": settings.prompt,
        "judge": [judge.name, judge_prompt(judge)],
        "media": asdict(settings.media),
        "engine": [settings.engine.engine, args.dtype],
        "decoding": asdict(settings.decoding),
        "attention": attention,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out / "drift.jsonl"
    claim(args.out, config, [out], args.overwrite)

    # Questions
    sample = [by_id[row["clip_id"]] for row in predictions[: args.limit]]
    responses = {row["clip_id"]: row["response"] for row in predictions}
    with Growing(out) as file:
        done = ids_in([out])
        todo = [clip for clip in sample if clip.clip_id not in done]
        rows = ask(settings, todo, responses, judge, read_dominant(args, by_id), attention)
        for row in tqdm(rows, "measuring drift", total=len(sample), initial=len(sample) - len(todo), unit="clip"):
            file.append(row)
    write_environment(args.out)

    # Figures
    rows_there = read_jsonl(out, drift.KEYS, unique="clip_id")
    figures = drift.measure(rows_there, args.resamples, args.seed)
    names = ("model", "predictions", "clips", "seed")
    figures["judge"] = judge.name
    figures["settings"] = {name: str(getattr(args, name)) for name in names} | {"engine": settings.engine.engine}
    write_json(args.out / "drift.json", figures)
    plot(figures, args.out / "drift.png")
    write_page(args.out / "drift.html", figures, rows_there, args.out / "drift.png")
    show(figures)
    if figures["attention"] is None:
        print("drift: no attention curve (--engine transformers has it)")
    print(f"drift: {figures['n']} clips -> {args.out}/drift.html")
    return figures


def ask(
    settings: GenerationSettings,
    clips: Sequence[Clip],
    responses: Mapping[str, str],
    judge: Judge,
    dominants: Mapping[str, str],
    attention: bool,
) -> Iterator[Row]:
    """The rows of drift.jsonl, in order."""
    if not clips:
        return
    lenders = Lenders(responses, judge, settings.decoding.seed)
    with opened(settings) as engine:
        about = (lenders, judge, settings.labels, dominants, attention)
        yield from rows_of(engine, asker(settings), clips, responses, *about)


def measure_targets(args: argparse.Namespace, labels: LabelSet, judge: Judge) -> dict[str, Any]:
    """Coherence of the texts of targets.jsonl."""
    targets = read_jsonl(args.targets, ("clip_id", "target", "label"))[: args.limit]
    clips = {clip.clip_id: clip for clip in read_clips(args.clips, must_exist=False)} if args.clips else {}
    dominants = read_dominant(args, clips)
    rows = []
    for row in targets:
        if not isinstance(row["target"], str):
            raise InputError(f"{args.targets}: clip {row['clip_id']!r}: target must be text")
        texts: dict[str, list[str]] = {}
        for part in parse(row["target"]).parts:
            if part.modalities:
                texts.setdefault(part.modalities[0], []).append(part.text)
        if len(texts) > 1:
            about = {"clip_id": row["clip_id"], "label": row["label"], "dominant": dominants.get(row["clip_id"])}
            rows.append(about | {"order": list(texts)[:2], "texts": [" ".join(text) for text in texts.values()][:2]})
    if not rows:
        raise InputError(f"{args.targets}: no target speaks of two modalities")
    read = iter(emotions_of(judge, [text for row in rows for text in row.pop("texts")]))
    rows = [{**row, "emotions": [next(read), next(read)]} for row in rows]
    figures = coherence.measure(rows, args.resamples, args.seed)
    figures |= {"n_targets": len(targets), "judge": judge.name, "targets": str(args.targets)}
    write_jsonl(args.out / "coherence.jsonl", rows)
    write_json(args.out / "coherence.json", figures)
    show_coherence(figures)
    print(f"drift: coherence of {figures['n_read']} of {len(targets)} targets -> {args.out}/coherence.json")
    return figures


if __name__ == "__main__":
    with exit_on_input_error():
        main()
