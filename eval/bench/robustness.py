r"""Robustness of the fusion networks on the planted benchmark: growing noise in one modality, or one missing.

    python stages/demo/demo.py --run runs/demo --upto importance
    python eval/bench/robustness.py --run runs/demo --model stages/demo/model --out runs/demo/robustness

Fits each way of fusing on the run's train clips as they are, then draws test clips again, from the same numbers, with
one modality's quality multiplied by 1 - level (more blur, noise and muffling in the mp4 itself), and scores them
through the model's towers. With --noisy_training the train clips, too, are drawn again: each with a random level, in
one modality. Writes `robustness.json`, `robustness.md` (the tables) and `robustness.png`. The planted
dominant modality is the clearer of those that show the label, so noise can change it.

concatenation, equal weights, each gate alone, both gates, experts: fitted alike, only the fusion differs. plain
concatenation: as baselines are usually fitted, by the fused loss alone and with no modality ever left out; its
unimodal heads learn nothing, so it is not asked for the dominant modality. oracle: the unimodal head of the planted
dominant modality, which no method is told.
"""

import argparse
import random
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from migr.cli import Parser
from migr.clips.manifest import read_clips
from migr.clips.media import MediaSettings
from migr.errors import InputError, exit_on_input_error
from migr.files.records import Row, atomic, read_json, write_environment, write_json
from migr.importance import fit
from migr.importance.features import tower_features
from migr.importance.measure import truth_of
from migr.importance.plots import COLOURS
from migr.importance.table import Features
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor
from migr.planted.variants import make, noisy
from migr.text.labels import label_set

METHODS: dict[str, dict[str, str]] = {
    "plain concatenation": {"fusion": "concatenation"},
    "concatenation": {"fusion": "concatenation"},
    "equal weights": {"gates": "equal"},
    "entropy gate": {"gates": "entropy"},
    "importance gate": {"gates": "importance"},
    "dual gate": {},
    "experts": {"fusion": "experts"},
}
FITTED: dict[str, dict[str, Any]] = {"plain concatenation": {"unimodal_weight": 0.0, "modality_dropout": 0.0}}
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
MODALITIES = ("video", "audio")
STYLES = dict(zip((*METHODS, "oracle"), cycle(("*:", "s:", "v:", "^--", "D--", "o-", "P-", "x-")), strict=False))
HUES = dict(zip(STYLES, cycle(("#888888", *COLOURS, "#56B4E9", "#E69F00", "black")), strict=False))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="a demo's run that has reached importance")
    parser.add_argument("--model", type=Path, required=True, help="the base model of that run")
    parser.add_argument("--out", type=Path, required=True, help="folder for clips, features and results")
    parser.add_argument("--split", default="test", help="which clips are made noisy")
    parser.add_argument("--limit", type=int, default=280, help="how many of them (a multiple of 14 is balanced)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the fits; figures are means")
    parser.add_argument(
        "--adversarial_weight",
        type=float,
        default=0.0,
        help="of virtual adversarial training, in all fits (default 0)",
    )
    parser.add_argument("--noisy_training", action="store_true", help="fit on train clips with noise of random levels")
    parser.add_argument("--batch_size", type=int, default=16, help="clips that go through the towers at a time")
    return parser.parse_args()


def random_levels(seed: int, size: int) -> list[Row]:
    """The train clips, each with a level drawn evenly from 0 to 1 in one modality."""
    rng = random.Random(f"noisy training {seed}")
    return [noisy(seed, "train", i, rng.choice(MODALITIES), round(rng.random(), 3)) for i in range(size)]


def figures(scores: fit.Scores, label: torch.Tensor, truth: torch.Tensor) -> Row:
    """Label accuracy, dominant-modality accuracy, and the oracle's label accuracy."""
    head = scores.unimodal.argmax(2).gather(1, truth[:, None])[:, 0]
    return {
        "label": (scores.prediction == label).double().mean().item(),
        "dominant": (scores.importance.argmax(1) == truth).double().mean().item(),
        "oracle": (head == label).double().mean().item(),
    }


def mean_of(rows: list[Row]) -> Row:
    """The mean of each figure."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def conditions(noised: Features, names: list[tuple[str, float]], size: int) -> dict[str, tuple[Features, torch.Tensor]]:
    """Name of a condition -> its features and the positions of its clips; the last two hide a whole modality."""
    cases = {}
    for k, (modality, level) in enumerate(names):
        index = torch.arange(k * size, (k + 1) * size)
        cases[f"{modality} {level:g}"] = (noised.take(index), index)
    clean = torch.arange(size)
    for m, name in enumerate(MODALITIES):
        table = noised.take(clean)
        present = table.present.clone()
        present[:, m] = False
        cases[f"{name} missing"] = (Features(table.clip_ids, table.values, present), clean)
    return cases


def table_of(results: dict[str, dict[str, Row]], figure: str) -> str:
    """A Markdown table of one figure, methods down, conditions across, in percent."""
    columns = list(next(iter(results.values())))
    lines = ["| fusion | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, row in results.items():
        cells = ("-" if row[c][figure] is None else f"{100 * row[c][figure]:.1f}" for c in columns)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(path: Path, results: dict[str, dict[str, Row]]) -> None:
    """Curves over the noise level: label and dominant-modality accuracy, noise in video and in audio."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for row, (key, title) in enumerate((("label", "label accuracy"), ("dominant", "dominant-modality accuracy"))):
        for axis, modality in zip(panels[row], MODALITIES, strict=True):
            for method, rows in results.items():
                values = [rows[f"{modality} {level:g}" if level else "video 0"][key] for level in LEVELS]
                if None not in values:
                    axis.plot(LEVELS, values, STYLES[method], color=HUES[method], label=method, markersize=5)
            axis.set(title=f"{title}, noise in {modality}")
            axis.grid(alpha=0.3)
            if row:
                axis.set_xlabel("noise level")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Noisy clips, features, fits, figures."""
    # Config
    args = arguments()
    if args.limit < 14:
        raise InputError("--limit: need at least 14 clips, each label in each modality")
    before = read_json(args.run / "importance" / "summary.json")["config"]
    media = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "max_seconds", "backend")
    settings = MediaSettings(**{name: before[name] for name in media})
    data, model, labels = read_json(args.run / "clips" / "data.json"), args.model, label_set("dfew")

    # Data
    manifest, cache = args.run / "clips" / "clips.jsonl", args.run / "cache"
    if args.noisy_training:
        cache = args.out / "train" / "cache"
        manifest = make(args.out / "train", random_levels(data["seed"], data["train"]))
    clips, processor = read_clips(manifest, labels), load_processor(model)
    train = torch.tensor([i for i, clip in enumerate(clips) if clip.split == "train"])
    target = torch.tensor([labels.labels.index(clips[i].label or "") for i in train.tolist()])
    inputs = OmniInputs(processor, settings, cache, memory=0)
    table = tower_features(clips, inputs, model, cache, args.batch_size).take(train)
    size = min(args.limit, data[args.split])
    # level 0 is drawn once: it is the same clip for both
    names = [("video", 0.0), *((m, level) for m in MODALITIES for level in LEVELS[1:])]
    rows = [noisy(data["seed"], args.split, i, m, level) for m, level in names for i in range(size)]
    noised_clips = read_clips(make(args.out, rows), labels)
    clean = OmniInputs(processor, settings, args.out / "cache", memory=0)
    noised = tower_features(noised_clips, clean, model, args.out / "cache", args.batch_size)
    label = torch.tensor([labels.labels.index(clip.label or "") for clip in noised_clips])
    truth = truth_of(noised_clips, MODALITIES)

    # Run
    results: dict[str, dict[str, Row]] = {}
    cases = conditions(noised, names, size)
    oracle: dict[str, list[Row]] = {case: [] for case in cases}
    for method, shape in tqdm(METHODS.items(), "fusion fits", unit="method"):
        per_case: dict[str, list[Row]] = {case: [] for case in cases}
        for seed in args.seeds:
            options: dict[str, Any] = dict(shape)
            how = {"adversarial_weight": args.adversarial_weight, **FITTED.get(method, {})}
            config = fit.FitConfig(seed=seed, **how)
            net = fit.fit(table, target, len(labels.labels), config, **options)
            for case, (part, index) in cases.items():
                row = figures(fit.score(net, part, label[index]), label[index], truth[index])
                per_case[case].append({key: row[key] for key in ("label", "dominant")})
                if method == "dual gate" and "missing" not in case:
                    oracle[case].append({"label": row["oracle"], "dominant": 1.0})
        results[method] = {case: mean_of(rows) for case, rows in per_case.items()}
    empty = {"label": None, "dominant": None}  # it would read the modality that is not there
    results["oracle"] = {case: mean_of(rows) if rows else empty for case, rows in oracle.items()}
    for method, found_cases in results.items():
        for case in found_cases:
            if "missing" in case or method in FITTED:
                found_cases[case]["dominant"] = None  # one modality left, or heads that have learned nothing

    # Save
    about = {"seeds": args.seeds, "clips": size, "split": args.split, "benchmark_seed": data["seed"], "levels": LEVELS}
    about |= {"adversarial_weight": args.adversarial_weight, "noisy_training": args.noisy_training}
    write_json(args.out / "robustness.json", {"config": about, "results": results})
    with atomic(args.out / "robustness.md") as file:
        for key, title in (("label", "Label accuracy"), ("dominant", "Dominant-modality accuracy")):
            file.write(
                f"{title}, percent; {size} clips, means over {len(args.seeds)} fits\n\n{table_of(results, key)}\n\n"
            )
    plot(args.out / "robustness.png", results)
    write_environment(args.out)
    print((args.out / "robustness.md").read_text(encoding="utf-8"))
    print(f"robustness: {len(rows)} noisy clips, {len(METHODS)} ways of fusing -> {args.out}/robustness.md")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
