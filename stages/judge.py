r"""Fit the evaluation's judge on labelled texts, and measure it, and the rewards' lexicon, on others.

    python stages/judge.py --fit runs/demo/clips/judge_fit.jsonl --check runs/demo/clips/judge_check.jsonl \
        --out runs/demo/judge

Both files hold `text` and `emotion` a line. The texts that a judge is measured on share no wording with those that it
was fitted on: the accuracy printed is the one to keep beside every figure that rests on this judge.
"""

import argparse
from pathlib import Path

from migr.emotions import label_set
from migr.errors import InputError, Parser, exit_on_input_error
from migr.judge import Judge, fit_classifier, open_judge
from migr.records import Row, read_jsonl, write_json


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--fit", type=Path, required=True, help="JSONL with text and emotion, to fit on")
    parser.add_argument("--check", type=Path, required=True, help="JSONL with text and emotion, to measure on")
    parser.add_argument("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the judge and accuracy.json")
    return parser.parse_args()


def agreement(judge: Judge, rows: list[Row]) -> Row:
    """How often a judge names the emotion of labelled texts; a failed judgement is not right."""
    found = [judgement.emotion for judgement in judge.judge([row["text"] for row in rows])]
    right = sum(emotion == row["emotion"] for emotion, row in zip(found, rows, strict=True))
    return {"accuracy": right / len(rows), "n": len(rows), "failed": found.count(None)}


def main() -> None:
    """Fit, measure, save."""
    # Config
    args = arguments()
    labels = label_set(args.labels)

    # Data
    sets = {}
    for path in (args.fit, args.check):
        sets[path] = read_jsonl(path, ["text", "emotion"])
        for number, row in enumerate(sets[path], 1):
            if row["emotion"] not in labels.labels:
                raise InputError(f"{path}:{number}: emotion {row['emotion']!r} is none of {', '.join(labels.labels)}")
    overlap = {row["text"] for row in sets[args.fit]} & {row["text"] for row in sets[args.check]}
    if overlap:
        raise InputError(f"{args.check}: {len(overlap)} texts also stand in {args.fit}: the measure would flatter")

    # Run
    lexicon = open_judge("lexicon", labels)
    fitted = fit_classifier(
        [r["text"] for r in sets[args.fit]], [r["emotion"] for r in sets[args.fit]], labels, args.out
    )
    accuracy = {
        fitted.name: agreement(fitted, sets[args.check]),
        lexicon.name: {
            **agreement(lexicon, sets[args.check]),
            "on_fit": agreement(lexicon, sets[args.fit]),  # which it was not fitted on either
        },
    }

    # Save
    write_json(args.out / "accuracy.json", accuracy)
    for name, row in accuracy.items():
        other = f"; {row['on_fit']['accuracy']:.1%} of those that the other was fitted on" if "on_fit" in row else ""
        print(f"judge: {name} agrees with {row['accuracy']:.1%} of {row['n']} labelled texts{other}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
