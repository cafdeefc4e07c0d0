"""Judge the judges: how well does one read the emotion that a text conveys, and do two of them agree?

    python eval/judges.py lexicon embedded        on the 210 shipped texts (dfew), or those and 80 more (--labels mafw)
    python eval/judges.py runs/demo/judge --texts my_texts.jsonl     on labelled texts of your own
    python eval/judges.py lexicon endpoint:http://127.0.0.1:8000/v1#qwen --out runs/judges     two judges, same texts
    python eval/judges.py lexicon runs/demo/judge --predictions predictions.jsonl     on reasonings without a truth

A text file has `text` and `emotion` a line, and may have a `kind` to report by. The shipped texts were written for this
project in the manner of real explanations; `kind` is plain, mixed (cues that contradict each other), negation, or
unnamed (no word that names an emotion). With --out, judges.json holds all figures and misread.jsonl each text that a
judge misread. A failed judgement is not right, and a category of its own in the confusion and in Cohen's kappa.

Judges are named as in eval/consistency.py: lexicon, embedded, a folder (of stages/demo/judge.py, or any Hugging Face
text classifier), llm:DIR (a language model), endpoint:URL#MODEL (OpenAI-compatible; key in MIGR_JUDGE_KEY).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from migr.cli import Parser, settings_of
from migr.clips.record import find_labels
from migr.errors import InputError, exit_on_input_error
from migr.files.records import Row, iter_jsonl, write_json, write_jsonl
from migr.judge import close, open_judge, prompt_of, usage_of
from migr.judge.measure import agreement, judge_texts, labelled_texts, reliability, shipped_texts
from migr.settings import EngineSettings, LabelSettings
from migr.text.labels import LabelSet


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("judges", nargs="+", metavar="JUDGE", help="one judge or several")
    add("--texts", type=Path, help="JSONL with text and emotion (default: the shipped texts)")
    add("--predictions", type=Path, help="predictions.jsonl: compare the judges on these reasonings instead")
    hide = "judges do not see words that name an emotion"
    add("--hide_emotion_words", action=argparse.BooleanOptionalAction, default=False, help=hide)
    add("--judge_cache", type=Path, help="file of judgements made before, so that a rerun does not pay again")
    add("--out", type=Path, help="folder for judges.json and misread.jsonl")
    parser.add_settings(LabelSettings, EngineSettings)
    args = parser.parse_args(argv)
    if args.predictions is not None and len(args.judges) < 2:
        raise InputError("--predictions has no truth to measure one judge by: name two judges, or give --texts")
    if len(set(args.judges)) < len(args.judges):
        raise InputError("the same judge is named twice")
    return args


def main(argv: Sequence[str]) -> Row:
    """Config, texts, judgements, figures; returns the figures."""
    # Config
    args = _arguments(argv)
    labels = find_labels(args.labels, args.predictions)
    options: dict[str, Any] = {"hide_emotion_words": args.hide_emotion_words, "cache": args.judge_cache}
    options["engine"] = settings_of(EngineSettings, args)
    judges = [open_judge(name, labels, **options) for name in args.judges]

    # Texts
    if args.predictions is not None:
        from eval.figures.tally import PREDICTION_KEYS
        from migr.text.format import parse

        texts = [parse(row["response"]).plain for row in iter_jsonl(args.predictions, PREDICTION_KEYS)]
        rows: list[Row] = []
    else:
        rows = labelled_texts(args.texts, labels) if args.texts else shipped_texts(labels)
        if not rows:
            raise InputError(f"the shipped texts are for dfew and mafw, not for {labels.name}: give --texts")
        texts = [row["text"] for row in rows]

    # Judgements
    judgement_lists = []
    for judge in judges:
        judgement_lists.append(judge_texts(judge, texts))
        close(judge)

    # Figures
    figures: Row = {"texts": len(texts), "judges": [], "pairs": []}
    for judge, judgements in zip(judges, judgement_lists, strict=True):
        about = {"prompt": prompt_of(judge) or None, "usage": usage_of(judge)}
        figures["judges"].append({**reliability(judge, rows, labels, judgements), **about})
    for i, one in enumerate(judges):
        for j, other in enumerate(judges[i + 1 :], i + 1):
            figures["pairs"].append(
                {"judges": [one.name, other.name], **agreement(judgement_lists[i], judgement_lists[j], labels)}
            )
    if args.out is not None:
        misread = [
            {"judge": judge.name, **row, "judged": judgement.emotion, "status": judgement.status}
            for judge, judgements in zip(judges, judgement_lists, strict=True)
            for row, judgement in zip(rows, judgements, strict=bool(rows))
            if judgement.emotion != row["emotion"]
        ]
        write_json(args.out / "judges.json", figures)
        write_jsonl(args.out / "misread.jsonl", misread)
    _print(figures, labels)
    names = ", ".join(judge.name for judge in judges)
    print(f"judges: {names} on {len(texts)} texts" + (f" -> {args.out}/judges.json" if args.out else ""))
    return figures


def _print(figures: Row, labels: LabelSet) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def share(part: Row, key: str = "accuracy") -> str:
        return "–" if part.get(key) is None else f"{100 * part[key]:.1f} %"

    def kappa(part: Row) -> str:
        return "–" if part["kappa"] is None else f"{part['kappa']:.3f}"

    console = Console()
    measured = [row for row in figures["judges"] if row["n"]]
    if measured:
        table = Table("", *(escape(row["name"]) for row in measured), show_edge=False, pad_edge=False)
        table.add_row(
            "accuracy",
            *(f"{share(r)}  {100 * r['accuracy_ci95'][0]:.1f} to {100 * r['accuracy_ci95'][1]:.1f}" for r in measured),
        )
        table.add_row("Cohen's kappa", *map(kappa, measured))
        table.add_row("failed", *(f"{row['n_failed']} of {row['n']}" for row in measured))
        table.add_section()
        for label in labels.labels:
            table.add_row(escape(f"recall, {label}"), *(share(row["per_class"][label], "recall") for row in measured))
        table.add_section()
        for kind in measured[0]["per_kind"]:
            table.add_row(
                escape(kind) + f" ({measured[0]['per_kind'][kind]['n']})",
                *(share(r["per_kind"][kind]) for r in measured),
            )
        console.print(table)
    for pair in figures["pairs"]:
        console.print(
            f"{' and '.join(map(escape, pair['judges']))} agree on {share(pair)} of the {pair['n']} texts that both "
            f"judged, kappa {kappa(pair)}; {pair['n_failed']} failed",
            highlight=False,
        )


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
