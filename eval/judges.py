"""Judge the judges: how well does one read the emotion that a text conveys, and do two of them agree?

    python eval/judges.py lexicon                                    on the 210 shipped texts, 30 for each of DFEW's 7
    python eval/judges.py runs/demo/judge --texts my_texts.jsonl     on labelled texts of your own
    python eval/judges.py lexicon endpoint:http://127.0.0.1:8000/v1#qwen --out runs/judges     two judges, same texts
    python eval/judges.py lexicon runs/demo/judge --predictions predictions.jsonl     on reasonings without a truth

A text file has `text` and `emotion` a line, and may have a `kind` to report by. The shipped texts were written for this
project in the manner of real explanations; `kind` is plain, mixed (cues that contradict each other), negation, or
unnamed (no word that names an emotion). With --out, judges.json holds all figures and misread.jsonl each text that a
judge misread. A failed judgement is not right, and a category of its own in the confusion and in Cohen's kappa.

Judges are named as in eval/consistency.py: lexicon, a folder (of stages/judge.py, or any Hugging Face text classifier),
llm:DIR (a Qwen-Omni model), endpoint:URL#MODEL (OpenAI-compatible; key in MIGR_JUDGE_KEY).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.metrics import proportion
from migr.emotions import LabelSet, label_set
from migr.errors import InputError, Parser, exit_on_input_error
from migr.judge import Judge, Judgement, close, open_judge, prompt_of, usage_of
from migr.records import Row, iter_jsonl, write_json, write_jsonl

SHIPPED = Path(__file__).with_name("data") / "judge_texts.jsonl"
FAILED = "no judgement"


def labelled_texts(path: Path, labels: LabelSet) -> list[Row]:
    """Rows with `text` and a canonical `emotion`, from JSON Lines.

    Raises:
        InputError: A row without text, or with an emotion outside the label set; an empty file.
    """
    rows = []
    for number, row in enumerate(iter_jsonl(path, ("text", "emotion")), 1):
        emotion = labels.canonical(row["emotion"]) if isinstance(row["emotion"], str) else None
        if emotion is None or not isinstance(row["text"], str):
            raise InputError(
                f"{path}: row {number}: needs a text and one of {', '.join(labels.labels)} ({labels.name})"
            )
        rows.append({**row, "emotion": emotion})
    if not rows:
        raise InputError(f"{path}: no texts in it")
    return rows


def judge_texts(judge: Judge, texts: Sequence[str], at_once: int = 256) -> list[Judgement]:
    """All judgements, with a progress bar where it takes time."""
    found: list[Judgement] = []
    with tqdm(total=len(texts), desc=judge.name[:40], unit="text", delay=2) as bar:
        for begin in range(0, len(texts), at_once):
            found += judge.judge(texts[begin : begin + at_once])
            bar.update(len(found) - bar.n)
    return found


def reliability(judge: Judge, rows: Sequence[Row], labels: LabelSet, found: Sequence[Judgement] | None = None) -> Row:
    """How well a judge reads the emotion that labelled texts convey: the one measure behind every report of it.

    Args:
        judge: The judge.
        rows: Labelled texts (`labelled_texts`); none gives an accuracy of None.
        labels: The label set.
        found: Its judgements of these texts, where they are made already.

    Returns:
        `name`, `accuracy` with `accuracy_ci95` and `n`, `n_failed`, Cohen's `kappa` (None where it is undefined),
        `confusion` (labels x judged), `per_class` (n, recall, precision, failed) and `per_kind` (n, accuracy).
    """
    if not rows:
        return {"name": judge.name, "accuracy": None, "n": 0}
    if found is None:
        found = judge_texts(judge, [row["text"] for row in rows])
    truth, judged = [row["emotion"] for row in rows], [judgement.emotion or FAILED for judgement in found]
    right = [a == b for a, b in zip(truth, judged, strict=True)]
    kinds = dict.fromkeys(row["kind"] for row in rows if isinstance(row.get("kind"), str))
    return {
        "name": judge.name,
        **proportion(sum(right), len(rows)),
        "n_failed": judged.count(FAILED),
        **_tables(truth, judged, labels),
        "per_kind": {
            kind: proportion(sum(mine), len(mine))
            for kind in kinds
            if (mine := [ok for ok, row in zip(right, rows, strict=True) if row.get("kind") == kind])
        },
    }


def agreement(one: Sequence[Judgement], other: Sequence[Judgement], labels: LabelSet) -> Row:
    """How far two judges name the same emotion for the same texts.

    Returns:
        `accuracy` (share of equal judgements among the `n` texts that both judged), `n_failed` (either failed), and
        `kappa` and `confusion` (one x other) with failures as a category of their own.
    """
    a, b = ([judgement.emotion or FAILED for judgement in found] for found in (one, other))
    both = [(x, y) for x, y in zip(a, b, strict=True) if FAILED not in (x, y)]
    tables = _tables(a, b, labels)
    return {
        **proportion(sum(x == y for x, y in both), len(both)),
        "n_failed": len(a) - len(both),
        "kappa": tables["kappa"],
        "confusion": tables["confusion"],
    }


def _tables(truth: Sequence[str], judged: Sequence[str], labels: LabelSet) -> Row:
    from sklearn.metrics import cohen_kappa_score, confusion_matrix  # a second to import, and not always needed

    names = [*labels.labels, FAILED]
    counts = confusion_matrix(truth, judged, labels=names)
    varied = len({*truth, *judged}) > 1
    rows = counts if FAILED in truth else counts[:-1]
    per_class = {
        label: {
            "n": int(counts[i].sum()),
            "recall": counts[i, i] / counts[i].sum() if counts[i].any() else None,
            "precision": counts[i, i] / counts[:, i].sum() if counts[:, i].any() else None,
            "n_failed": int(counts[i, -1]),
        }
        for i, label in enumerate(labels.labels)
    }
    return {
        "kappa": float(cohen_kappa_score(truth, judged, labels=names)) if varied else None,
        "confusion": {"labels": names[: len(rows)], "judged": names, "counts": rows.tolist()},
        "per_class": per_class,
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("judges", nargs="+", metavar="JUDGE", help="one judge or several")
    add("--texts", type=Path, default=SHIPPED, help="JSONL with text and emotion (default: the shipped texts)")
    add("--predictions", type=Path, help="predictions.jsonl: compare the judges on these reasonings instead")
    add("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    add("--hide_emotion_words", action="store_true", help="judges do not see words that name an emotion")
    add("--judge_cache", type=Path, help="file of judgements made before, so that a rerun does not pay again")
    add("--out", type=Path, help="folder for judges.json and misread.jsonl")
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
    labels = label_set(args.labels)
    options: dict[str, Any] = {"hide_emotion_words": args.hide_emotion_words, "cache": args.judge_cache}
    judges = [open_judge(name, labels, **options) for name in args.judges]

    # Texts
    if args.predictions is not None:
        from eval.tally import PREDICTION_KEYS, reasoning_of

        texts = [reasoning_of(row["response"]) for row in iter_jsonl(args.predictions, PREDICTION_KEYS)]
        rows: list[Row] = []
    else:
        rows = labelled_texts(args.texts, labels)
        texts = [row["text"] for row in rows]

    # Judgements
    found = []
    for judge in judges:
        found.append(judge_texts(judge, texts))
        close(judge)

    # Figures
    figures: Row = {"texts": len(texts), "judges": [], "pairs": []}
    for judge, judgements in zip(judges, found, strict=True):
        about = {"prompt": prompt_of(judge) or None, "usage": usage_of(judge)}
        figures["judges"].append({**reliability(judge, rows, labels, judgements), **about})
    for i, one in enumerate(judges):
        for j, other in enumerate(judges[i + 1 :], i + 1):
            figures["pairs"].append({"judges": [one.name, other.name], **agreement(found[i], found[j], labels)})
    if args.out is not None:
        misread = [
            {"judge": judge.name, **row, "judged": judgement.emotion, "status": judgement.status}
            for judge, judgements in zip(judges, found, strict=True)
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
