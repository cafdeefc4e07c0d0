"""Does an explanation rest on the clip, and the answer on the explanation? Measured on the model that wrote them.

    python eval/grounding.py --predictions predictions.jsonl --clips clips.jsonl --model DIR --out DIR

Grounding gain: log p(segment | clip) minus log p(segment | changed clip), in nats; the segment's own modality is
blanked (grey frames, silence) or taken from a clip with another label. Near 0, it could have been said of any clip.
Answer support: the model reads a reasoning that it gave to a clip with another answer, and answers again for its own
clip. If the answer stays, it rests on the clip and not on the words; if it becomes the other's, it follows the words.
On the planted benchmark also segment truth: does a segment say what its modality shows? All of it is ours.

The folder `--out` gets grounding.jsonl (a row a clip), grounding.json and grounding.png. An interrupted run goes on.
"""

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.figures.evidence import CHANGES, Donors, answers, gains, measure
from eval.figures.metrics import check_resamples
from eval.run.options import generation_of
from eval.run.predict import GenerationSettings, asker, opened, read_answered
from migr.cli import Parser
from migr.clips.manifest import Clip
from migr.clips.record import find_labels, read_record
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import claim
from migr.files.fingerprint import file_digest, model_digest
from migr.files.growing import Growing, ids_in
from migr.files.records import Row, read_jsonl, write_environment, write_json
from migr.planted.truth import segment_truth
from migr.settings import CacheSettings, DecodingSettings, EngineSettings, LabelSettings, MediaSettings


def show(figures: Mapping[str, Any]) -> None:
    """Print the figures as a table."""
    from rich.console import Console
    from rich.table import Table

    def cell(row: Mapping[str, Any], key: str, digits: int = 2, times: int = 1) -> str:
        if row[key] is None:
            return "–"
        low, high = (times * bound for bound in row[f"{key}_ci95"])
        return f"{times * row[key]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for name in ("gain", "n", "nats a segment", "nats a token", "above 0, %"):
        table.add_column(name, justify="left" if name == "gain" else "right")
    changes = {"blank": "blanked", "other": "swapped"}
    for modality, by_change in figures["gain"].items():
        for how, row in by_change.items():
            cells = (cell(row, "mean"), cell(row, "per_token"), cell(row, "positive", 0, 100))
            table.add_row(f"{modality} {changes[how]}", str(row["n"]), *cells)
    Console().print(table)
    support = figures["answer_support"]
    stays, follows = (cell(support, name, 1, 100) for name in ("stays", "follows"))
    print(f"behind another clip's reasoning (n {support['n']}), % of answers: {stays} stay, {follows} follow the words")
    if figures.get("segment_truth") is not None:
        share = f"{100 * figures['segment_truth']:.1f} % of {figures['segment_truth_n']} segments"
        print(f"{share} on the dominant modality say what it shows")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the gain per token of every segment, by modality and change."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    segments = [segment for row in rows for segment in row["segments"]]
    names = {f"{m}\n{how}": (m, how) for m in ("video", "audio") for how in CHANGES}
    values = [
        [s[how] / s["tokens"] for s in segments if s["modality"] == m and s[how] is not None]
        for m, how in names.values()
    ]
    figure, axis = plt.subplots(figsize=(6, 3.4))
    axis.axhline(0, color="0.6", linewidth=1)
    axis.boxplot([v or [float("nan")] for v in values], tick_labels=list(names), showfliers=False, whis=(5, 95))
    axis.set(ylabel="gain, nats a token", title="What a segment owes to its modality")
    axis.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, GenerationSettings]:
    """Parse the flags; what they do not give comes from the model's folder.

    Raises:
        InputError: An unknown flag, or a value out of range.
    """
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--predictions", type=Path, required=True, help="predictions.jsonl of eval/consistency.py")
    add("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py")
    add("--model", type=Path, required=True, help="the model that wrote the predictions")
    add("--out", type=Path, required=True, help="folder for what is written")
    add("--limit", type=int, help="the first so many predictions only")
    add("--seed", type=int, default=0, help="seed of the exchanged clips and of the bootstrap")
    add("--resamples", type=int, default=2000, help="bootstrap resamples of the intervals")
    add("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="discard another run in --out")
    parser.add_settings(LabelSettings, MediaSettings, EngineSettings, CacheSettings)
    parser.accept_keys(DecodingSettings, GenerationSettings, "judge")  # of the evaluation's YAML
    args = parser.parse_args(argv)
    check_resamples(args.resamples, args.seed)
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit must be at least 1")
    record = read_record(args.model)
    if record is not None:
        parser.inherit(args, record.media, record.source)
    labels = find_labels(args.labels, args.clips, args.predictions, model=record)
    return args, generation_of(args, labels, record, DecodingSettings(max_new_tokens=1))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Config, data, scores, figures; returns the figures.

    Raises:
        InputError: Something in the input or the configuration is wrong.
    """
    args, generation = arguments(argv)

    # Data
    predictions, clips = read_answered(args.predictions, generation)
    config = {
        "model": model_digest(args.model),
        **{name: file_digest(getattr(args, name)) for name in ("predictions", "clips")},
        "label_set": generation.labels.as_record(),
        "prompt": generation.prompt,
        "media": asdict(generation.media),
        "engine": [generation.engine.engine, args.dtype, args.seed],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out / "grounding.jsonl"
    claim(args.out, config, [out], args.overwrite)

    # Scores
    sample = predictions[: args.limit]
    with Growing(out) as file:
        done = ids_in([out])
        for row in tqdm(
            score(generation, sample, done, clips, predictions, args.seed),
            desc="scoring",
            unit="clip",
            total=len(sample),
            initial=len([row for row in sample if row["clip_id"] in done]),
        ):
            file.append(row)
    write_environment(args.out)

    # Figures
    rows = read_jsonl(out, ("clip_id", "segments"), unique="clip_id")
    figures = {**measure(rows, args.resamples, args.seed), **segment_truth(args.predictions, args.clips)}
    figures["settings"] = {name: str(getattr(args, name)) for name in ("model", "predictions", "clips", "seed")}
    figures["settings"]["engine"] = generation.engine.engine
    write_json(args.out / "grounding.json", figures)
    plot(rows, args.out / "grounding.png")
    show(figures)
    print(f"grounding: {figures['n_segments']} segments of {figures['n']} clips -> {args.out}/grounding.json")
    return figures


def score(
    settings: GenerationSettings,
    rows: Sequence[Row],
    done: Collection[str],
    clips: Mapping[str, Clip],
    every: Sequence[Row],
    seed: int,
) -> Iterator[Row]:
    """The rows of grounding.jsonl that are not done yet, in order.

    A block that was interrupted is scored whole again: its clips' batches can change the last digits of the gains.
    """
    blocks = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    blocks = [block for block in blocks if any(row["clip_id"] not in done for row in block)]
    if not blocks:
        return
    ask, labels = asker(settings), settings.labels
    donors = Donors(every, clips, labels, seed)
    with opened(settings) as engine:
        for block in blocks:
            pairs = [(clips[row["clip_id"]], row["response"]) for row in block]
            segment_gains = gains(engine, ask, pairs, donors.of_media)
            lenders = [(clip, donors.of_reasoning(clip.clip_id)) for clip, _ in pairs]
            exchanges = [(clip, donors.think[clip.clip_id], donors.think[lender]) for clip, lender in lenders if lender]
            read = answers(engine, ask, exchanges, labels)
            for clip, lender in lenders:
                if (name := clip.clip_id) in done:
                    continue
                original, other = read.get(name, (None, None))
                lent = {m: donors.of_media(clip, m) for m in ("video", "audio")}
                yield {
                    "clip_id": name,
                    "segments": segment_gains[name],
                    "media_from": {m: c.clip_id for m, c in lent.items() if c},
                    "reasoning_from": lender,
                    "answer": donors.answers[name],
                    "other_answer": donors.answers[lender] if lender else None,
                    "answer_behind_own": original,
                    "answer_behind_other": other,
                }


if __name__ == "__main__":
    with exit_on_input_error():
        main()
