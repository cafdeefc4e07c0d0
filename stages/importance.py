r"""Stage 2, importance: fit a fusion network on the labels; say which modality carries each clip's emotion, how surely.

    python stages/importance.py --clips runs/demo/clips/clips.jsonl --model stages/demo/model \
        --out runs/demo/importance

Reads the clips through the model's own video and audio towers (a transcript through its language model), fits a small
network on the clips of the split `train`, and writes into --out:

    importance.jsonl      one line a clip: importance of each modality, the dominant one, margin, the network's weights
    checks.jsonl          one line a clip: what independent estimates say
    fusion.safetensors    the network fitted on all train clips; fusion.json is its shape and how it was fitted
    model.safetensors     with --head llm: that network, pseudo tokens and LoRA
    summary.json          how well the network names emotions and, on planted clips, finds the dominant modality; how
                          far its scores can be trusted
    page.html             the same to look at, with gates.png and trust.png

A train clip is scored by a network that was not fitted on it (--folds). Where the clips say which modality was planted,
that is used to measure, never to fit. docs/importance.md explains the figures.
"""

import argparse
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from migr.cli import Parser, settings_of
from migr.clips.manifest import Clip, read_clips
from migr.clips.record import find_labels, read_record
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import claim, finish
from migr.files.records import Row, digest, write_environment, write_json, write_jsonl
from migr.importance import fit, trust
from migr.importance.features import MODALITIES, features_key, presence, tower_features
from migr.importance.measure import check_row, measure, planted_truth, row_of, sentiment_of, trust_of
from migr.importance.mllm import answer_drops
from migr.importance.page import show, write_page
from migr.importance.plots import draw, draw_trust
from migr.importance.store import NETWORKS, fingerprint, save
from migr.importance.table import check_labels, check_present, known
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor, load_thinker
from migr.sentiment.metrics import figures
from migr.sentiment.network import LanguageHead
from migr.sentiment.sets import sentiment_set
from migr.sentiment.settings import HEADS, NetworkSettings
from migr.sentiment.training import save_trainable
from migr.settings import CacheSettings, LabelSettings, MediaSettings, OutputSettings

VERSION = 3  # of scores and files; results of another version are made anew


def arguments() -> argparse.Namespace:
    """The command line."""
    parser, fitting = Parser(__doc__), fit.FitConfig()
    add = parser.add_argument
    add("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py, or your own")
    add("--model", required=True, help="Qwen2.5-Omni folder or Hub name; only its towers are run, and see --mllm_check")
    add("--out", type=Path, required=True, help="folder for the results")
    add(
        "--task", choices=["emotion", "sentiment"], default="emotion", help="sentiment: the clips' `sentiment`, -3 to 3"
    )
    add("--fusion", choices=list(NETWORKS), default="dual-gate", help="kind of fusion network")
    add(
        "--head",
        choices=HEADS,
        default="value",
        help="llm: EGMF whole, --model's language model with LoRA answers behind what is fused",
    )
    add("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="of those that the clips have")
    add("--folds", type=int, default=5, help="parts of the train clips, each scored by a fit on the rest")
    add("--seed", type=int, default=0, help="draws weights, batches and folds")
    add("--min_margin", type=float, default=0.0, help="0 to 1; clips under it get `certain`: false (default: no mark)")
    add("--mllm_check", type=int, help="ask the model itself about this many clips (default 40; 0: none)")
    add("--adversarial_weight", type=float, default=0.0, help="weight of virtual adversarial training (default 0: off)")
    add("--adversarial_radius", type=float, default=fitting.adversarial_radius, help="its radius, in deviations")
    add("--batch_size", type=int, default=16, help="clips that go through the towers at a time")
    parser.add_settings(LabelSettings, MediaSettings, CacheSettings, OutputSettings)
    args = parser.parse_args()
    record = read_record(args.model)
    if record is not None:
        parser.inherit(args, record.media, record.source)
    args.label_set = find_labels(args.labels, args.clips, model=record)
    if args.batch_size < 1:
        raise InputError(f"--batch_size: need at least 1, not {args.batch_size}")
    if not 0 <= args.min_margin <= 1:
        raise InputError(f"--min_margin: a margin lies between 0 and 1, not {args.min_margin}")
    if args.adversarial_weight < 0 or args.adversarial_radius <= 0:
        raise InputError("--adversarial_weight must be 0 or more, --adversarial_radius above 0")
    if args.task == "sentiment" and args.mllm_check:
        raise InputError("--mllm_check asks the model for an emotion: leave it out with --task sentiment")
    if args.head == "llm" and args.adversarial_weight:
        raise InputError("--adversarial_weight is for --head value")
    if args.mllm_check is None:
        args.mllm_check = 40 if args.task == "emotion" else 0
    return args


def ask(
    args: argparse.Namespace,
    inputs: OmniInputs,
    clips: list[Clip],
    modalities: tuple[str, ...],
    labels: tuple[str, ...],
) -> torch.Tensor:
    """Leave-one-out on the MLLM for --mllm_check labelled clips of several modalities, drawn by seed: (n, M) or NaN."""
    drops = torch.full((len(clips), len(modalities)), torch.nan)
    fit_for = [i for i, c in enumerate(clips) if c.label is not None and len(set(c.modalities) & set(modalities)) > 1]
    sample = sorted(random.Random(args.seed).sample(fit_for, min(args.mllm_check, len(fit_for))))
    if sample:
        thinker = load_thinker(args.model)
        thinker.to("cuda" if torch.cuda.is_available() else "cpu")
        drops[sample], _ = answer_drops(thinker, inputs, [clips[i] for i in sample], modalities, labels)
    return drops


def score_figures(score: torch.Tensor, truth: torch.Tensor) -> Row:
    """MOSI's figures of predicted against true sentiment scores, each (n,), by MMSA's names."""
    return figures(sentiment_set("mosi"), score.numpy(), truth.numpy())


def main() -> None:
    """Features, fits, scores, checks, files."""
    # Config
    args = arguments()
    settings = settings_of(MediaSettings, args)
    adversarial = {name: getattr(args, name) for name in ("adversarial_weight", "adversarial_radius")}
    config = fit.FitConfig(seed=args.seed, **adversarial)
    emotions = args.label_set
    labels = emotions.labels if args.task == "emotion" else ("sentiment",)

    # Data
    clips = read_clips(args.clips, emotions)
    if args.task == "emotion":
        label = torch.tensor([-1 if clip.label is None else labels.index(clip.label) for clip in clips])
    else:
        label = torch.tensor([sentiment_of(clip) for clip in clips])
    train = torch.tensor([clip.split == "train" for clip in clips])
    learn = (train & known(label)).nonzero().flatten()
    check_labels(label, learn, labels, args.folds)
    modalities, present = presence(clips, args.modalities)
    check_present(modalities, [clip.clip_id for clip in clips], present, learn)
    cache = args.cache_dir or args.out / "cache"
    inputs = OmniInputs(load_processor(args.model), settings, cache)
    about = {"fusion": args.fusion, "head": args.head, "task": args.task, "folds": args.folds}
    about |= {**asdict(config), "labels": list(labels), "modalities": list(modalities)}
    about |= {"min_margin": args.min_margin, "version": VERSION}
    rows = [[clip.clip_id, label[i].item(), clip.split, planted_truth(clip)] for i, clip in enumerate(clips)]
    run = {**about, "mllm_check": args.mllm_check, "clips": digest(str(rows)), "media": asdict(settings)}
    run["features"] = features_key(clips, inputs, args.model, modalities)
    done = args.out / "summary.json"
    if claim(args.out, run, [args.out / "importance.jsonl", done], args.overwrite):
        print(f"importance: {args.out} is finished already")
        return
    features = tower_features(clips, inputs, args.model, cache, args.batch_size, modalities)

    # Run
    bar = lambda fits: tqdm(fits, "fusion fits", unit="fit")  # noqa: E731
    head = None
    if args.head == "llm":
        head = LanguageHead(args.model, labels if args.task == "emotion" else (), NetworkSettings())
    result = fit.cross_score(features, label, train, labels, config, args.folds, bar, args.fusion, head)
    scores = result.scores
    splits = sorted({clip.split for clip in clips}, key=lambda name: (name == "test", name != "train", name))
    places = {s: torch.tensor([i for i, clip in enumerate(clips) if clip.split == s]) for s in splits}
    last = places[splits[-1]]  # the test clips, where there are any: trust is measured there
    sample = [clips[i] for i in last.tolist()]
    mllm = ask(args, inputs, sample, modalities, labels)

    # Save
    summary: Row = {"digest": digest(run), "config": {**about, **asdict(settings)}}
    whole: Any = result.net
    net = whole if head is None else whole.net
    summary["alpha"] = getattr(net, "alpha", None)
    summary |= {"net": fingerprint(result.net), "splits": {}}
    for split, index in places.items():
        summary["splits"][split] = measure(
            [clips[i] for i in index.tolist()], label[index], scores.take(index), modalities, score_figures
        )
    part, fitted = scores.take(last), scores.take(learn)
    trusted = trust_of(sample, label[last], part, fitted, label[learn], modalities, mllm, result.net.axes)
    summary["trust"] = {"split": splits[-1], **trusted}
    args.out.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)  # an interrupted run must not look like an earlier one
    lines = [row_of(clip, i, result, modalities, labels, args.min_margin) for i, clip in enumerate(clips)]
    drops = {i: row for i, row in zip(last.tolist(), mllm, strict=True) if not row.isnan().all()}
    write_jsonl(args.out / "importance.jsonl", lines)
    checks = (check_row(clip, i, scores, modalities, drops.get(i)) for i, clip in enumerate(clips))
    write_jsonl(args.out / "checks.jsonl", checks)
    save(net, args.out / "fusion.safetensors", labels=list(labels), fit=about)
    if head is not None:
        save_trainable(whole, args.out)
    draw(args.out / "gates.png", part, modalities, labels, f"{splits[-1]} clips")
    error = torch.where(known(label[last]), trust.prediction_errors(part.logits, part.target), torch.nan)
    draw_trust(args.out / "trust.png", part, trusted, modalities, labels, error)
    images = [args.out / "gates.png", args.out / "trust.png"]
    intro = f"{len(sample)} {splits[-1]} clips, fusion {args.fusion}, {', '.join(modalities)}."
    write_page(args.out / "page.html", trusted, [lines[i] for i in last.tolist()], images, intro)
    write_environment(args.out)
    write_json(done, summary)
    finish(args.out)
    show(summary)
    print(f"importance: {len(clips)} clips -> {args.out}/importance.jsonl, {args.out}/page.html")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
