r"""Fit the evaluation's judge on labelled texts, and measure it, and the rewards' lexicon, on others.

    python stages/demo/judge.py --fit runs/demo/clips/judge_fit.jsonl --check runs/demo/clips/judge_check.jsonl \
        --out runs/demo/judge

Both files hold `text` and `emotion` a line. The texts that a judge is measured on share no wording with those that it
was fitted on: the accuracy printed is the one to keep beside every figure that rests on this judge.
"""

import argparse
from pathlib import Path

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import hold
from migr.files.records import write_json
from migr.judge import fit_classifier, open_judge
from migr.judge.measure import labelled_texts, reliability
from migr.text.labels import label_set


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--fit", type=Path, required=True, help="JSONL with text and emotion, to fit on")
    parser.add_argument("--check", type=Path, required=True, help="JSONL with text and emotion, to measure on")
    parser.add_argument("--labels", default="dfew", help="dfew, mafw, or a file with one label a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the judge and accuracy.json")
    return parser.parse_args()


def main() -> None:
    """Fit, measure, save."""
    # Config
    args = arguments()
    labels = label_set(args.labels)

    # Data
    sets = {path: labelled_texts(path, labels) for path in (args.fit, args.check)}
    overlap = {row["text"] for row in sets[args.fit]} & {row["text"] for row in sets[args.check]}
    if overlap:
        raise InputError(f"{args.check}: {len(overlap)} texts also stand in {args.fit}: the measure would flatter")

    # Run
    hold(args.out)
    lexicon = open_judge("lexicon", labels)
    fitted = fit_classifier(
        [r["text"] for r in sets[args.fit]], [r["emotion"] for r in sets[args.fit]], labels, args.out
    )
    accuracy = {
        fitted.name: reliability(fitted, sets[args.check], labels),
        lexicon.name: {
            **reliability(lexicon, sets[args.check], labels),
            "on_fit": reliability(lexicon, sets[args.fit], labels),  # which it was not fitted on either
        },
    }

    # Save
    write_json(args.out / "accuracy.json", accuracy)
    for name, row in accuracy.items():
        other = f"; {row['on_fit']['accuracy']:.1%} of those that the other was fitted on" if "on_fit" in row else ""
        kinds = ", ".join(f"{kind} {part['accuracy']:.1%}" for kind, part in row["per_kind"].items())
        kinds = f" ({kinds})" if kinds else ""
        print(f"judge: {name} agrees with {row['accuracy']:.1%} of {row['n']} labelled texts{kinds}{other}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
