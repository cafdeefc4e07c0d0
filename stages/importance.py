r"""Stage 2, importance: fit the gated-fusion network on the labels; say which modality carries each clip's emotion.

    python stages/importance.py --clips runs/demo/clips/clips.jsonl --model runs/demo/pretrained/model \
        --out runs/demo/importance

Reads the clips through the model's own video and audio towers, fits a small network on the clips of the split `train`,
and writes into --out:

    importance.jsonl      one line a clip: importance of each modality, the dominant one, margin, both gates
    fusion.safetensors    the network fitted on all train clips; fusion.json is its shape and how it was fitted
    gates.png             gates and importance by emotion
    summary.json          how well the network names emotions, and, on planted clips, finds the dominant modality

A train clip is scored by a network that was not fitted on it (--folds). Where the clips say which modality was planted,
that is used to measure, never to fit.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from migr.clips import Clip, read_clips
from migr.emotions import label_set
from migr.errors import InputError, Parser, exit_on_input_error
from migr.importance import fit
from migr.importance.features import features_key, presence, tower_features
from migr.importance.plots import draw
from migr.media import BACKENDS, MediaSettings
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor
from migr.records import Row, digest, read_json, write_environment, write_json, write_jsonl

VERSION = 1  # of scores and files; results of another version are made anew


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py, or your own")
    parser.add_argument("--model", required=True, help="Qwen2.5-Omni folder or Hub name; only its towers are run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    parser.add_argument("--fusion", choices=["dual-gate"], default="dual-gate", help="kind of fusion network")
    parser.add_argument(
        "--folds", type=int, default=5, help="parts of the train clips, each scored by a fit on the rest"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws weights, batches and folds")
    parser.add_argument("--cache_dir", type=Path, help="folder of decoded clips and features (default OUT/cache)")
    parser.add_argument("--batch_size", type=int, default=16, help="clips that go through the towers at a time")
    media = MediaSettings()
    parser.add_argument("--fps", type=float, default=media.fps, help="frames per second of clip time")
    parser.add_argument("--min_frames", type=int, default=media.min_frames, help="at least this many frames, even")
    parser.add_argument("--max_frames", type=int, default=media.max_frames, help="at most this many frames, even")
    parser.add_argument("--min_pixels", type=int, default=media.min_pixels, help="height x width at least")
    parser.add_argument("--max_pixels", type=int, default=media.max_pixels, help="height x width at most")
    parser.add_argument("--max_seconds", type=float, default=media.max_seconds, help="a longer clip is an error")
    parser.add_argument("--backend", choices=BACKENDS, default=media.backend, help="video reader")
    return parser.parse_args()


def row_of(clip: Clip, i: int, found: fit.CrossScores, modalities: tuple[str, ...], labels: tuple[str, ...]) -> Row:
    """The line of `importance.jsonl` for the clip at position i; `fold` is null where the final network scored it."""

    def weights(values: torch.Tensor) -> dict[str, float]:
        return {name: round(value, 6) for name, value in zip(modalities, values[i].tolist(), strict=True)}

    scores, fold = found.scores, int(found.fold[i])
    ordered = scores.importance[i].sort(descending=True).values.tolist()
    return {
        "clip_id": clip.clip_id,
        "importance": weights(scores.importance),
        "dominant": modalities[int(scores.importance[i].argmax())],
        "margin": round(ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0), 6),
        "target": labels[int(scores.target[i])],
        "entropy_gate": weights(scores.entropy_gate),
        "importance_gate": weights(scores.importance_gate),
        "gate": weights(scores.gate),
        "fold": fold if fold >= 0 else None,
        "model": found.models[i],
    }


def planted_truth(clip: Clip) -> str | None:
    """The modality that was planted as dominant, where the manifest says so; read to measure, never to fit."""
    planted = clip.extra.get("planted")
    return planted.get("dominant") if isinstance(planted, dict) else None


def measure(clips: list[Clip], label: torch.Tensor, scores: fit.Scores, modalities: tuple[str, ...]) -> Row:
    """Accuracies on one split; `dominant_accuracy` only where the clips were planted."""
    known = label >= 0
    share = torch.bincount(scores.importance.argmax(1), minlength=len(modalities)) / len(clips)
    measured: Row = {
        "n": len(clips),
        "label_accuracy": None,
        "dominant": dict(zip(modalities, share.tolist(), strict=True)),
        "dominant_accuracy": None,
    }
    if known.any():
        right = (scores.logits.argmax(1) == label)[known].float().mean().item()
        measured["label_accuracy"] = {"fused": right}
        for m, name in enumerate(modalities):
            here = known & scores.present[:, m]
            alone = (scores.unimodal[:, m].argmax(1) == label)[here].float().mean().item() if here.any() else None
            measured["label_accuracy"][name] = alone
    truth = [planted_truth(clip) for clip in clips]
    n = len(truth) - truth.count(None)
    if n:
        measured["dominant_accuracy"] = {"majority": max(truth.count(name) for name in modalities) / n}
        for way, chosen in fit.alternatives(scores).items():
            right = sum(modalities[m] == name for m, name in zip(chosen.tolist(), truth, strict=True))
            measured["dominant_accuracy"][way] = right / n
    return measured


def show(summary: Row) -> None:
    """Print the accuracies as a table, a column a split."""
    splits = summary["splits"]
    table = Table(title=f"importance: alpha {summary['alpha']:.2f} (1: entropy gate alone, 0: importance gate alone)")
    table.add_column("accuracy")
    table.add_column("by")
    for name, part in splits.items():
        table.add_column(f"{name} (n={part['n']}{', K-fold' if name == 'train' else ''})", justify="right")
    for group, title in (("label_accuracy", "emotion"), ("dominant_accuracy", "dominant")):
        keys = dict.fromkeys(key for part in splits.values() for key in part[group] or {})
        for key in keys:
            values = [(part[group] or {}).get(key) for part in splits.values()]
            table.add_row(title, key.replace("_", " "), *("-" if v is None else f"{v:.1%}" for v in values))
        table.add_section()
    Console().print(table)


def main() -> None:
    """Tower features, fits, scores, files."""
    # Config
    args = arguments()
    names = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "max_seconds", "backend")
    settings = MediaSettings(**{name: getattr(args, name) for name in names})
    config = fit.FitConfig(seed=args.seed)
    if args.batch_size < 1:
        raise InputError(f"--batch_size: need at least 1, not {args.batch_size}")
    known = label_set(args.labels)
    labels = known.labels

    # Data
    clips = read_clips(args.clips, known)
    label = torch.tensor([-1 if clip.label is None else labels.index(clip.label) for clip in clips])
    train = torch.tensor([clip.split == "train" for clip in clips])
    learn = (train & (label >= 0)).nonzero().flatten()
    fit.check_labels(label, learn, labels, args.folds)
    modalities, present = presence(clips)
    fit.check_present(modalities, [clip.clip_id for clip in clips], present, learn)
    cache = args.cache_dir or args.out / "cache"
    inputs = OmniInputs(load_processor(args.model), settings, cache)
    about = {"fusion": args.fusion, "folds": args.folds, **asdict(config), "labels": list(labels), "version": VERSION}
    rows = [[clip.clip_id, clip.label, clip.split, planted_truth(clip)] for clip in clips]
    key = digest(about, rows, features_key(clips, inputs, args.model))
    done = args.out / "summary.json"
    if done.exists() and read_json(done).get("digest") == key and (args.out / "importance.jsonl").exists():
        print(f"importance: {args.out} holds this result already")
        return
    features = tower_features(clips, inputs, args.model, cache, args.batch_size)

    # Run
    found = fit.cross_score(
        features, label, train, labels, config, args.folds, progress=lambda fits: tqdm(fits, "fusion fits", unit="fit")
    )

    # Save
    summary: Row = {"digest": key, "config": {**about, **asdict(settings)}, "alpha": found.net.alpha}
    summary |= {"net": fit.fingerprint(found.net), "splits": {}}
    splits = sorted({clip.split for clip in clips}, key=lambda name: (name == "test", name != "train", name))
    for split in splits:
        index = torch.tensor([i for i, clip in enumerate(clips) if clip.split == split])
        part = fit.Scores(*(column[index] for column in found.scores))
        summary["splits"][split] = measure([clips[i] for i in index.tolist()], label[index], part, modalities)
    args.out.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)  # an interrupted run must not look like an earlier one
    write_jsonl(args.out / "importance.jsonl", (row_of(c, i, found, modalities, labels) for i, c in enumerate(clips)))
    fit.save(found.net, args.out / "fusion.safetensors", labels=list(labels), fit=about)
    draw(args.out / "gates.png", part, modalities, labels, f"{split} clips")
    write_environment(args.out)
    write_json(done, summary)
    show(summary)
    print(f"importance: {len(clips)} clips -> {args.out}/importance.jsonl")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
