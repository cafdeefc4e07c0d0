"""How well sentences are assigned to modalities, on labelled ones.

python eval/bench/sentences.py tests/data/sentences_heldout.jsonl
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.records import read_jsonl
from migr.text.format import MODALITIES
from migr.text.sentences import modalities_of


def measure(path: str | Path) -> tuple[float, Counter[tuple[str, str]], list[tuple[str, str, str]]]:
    """Share of sentences whose modalities are found exactly, (true, found) counts, and the wrong ones."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    for row in read_jsonl(path, ("text", "modalities")):
        if not isinstance(row["modalities"], list) or not set(row["modalities"]) <= set(MODALITIES):
            raise InputError(f"{path}: modalities must be a list of {', '.join(MODALITIES)}, not {row['modalities']!r}")
        true, assigned = (_name(names) for names in (row["modalities"], modalities_of(row["text"])))
        counts[true, assigned] += 1
        if true != assigned:
            wrong.append((true, assigned, row["text"]))
    if not counts:
        raise InputError(f"{path}: no sentences in it")
    return sum(n for (true, assigned), n in counts.items() if true == assigned) / counts.total(), counts, wrong


def _name(modalities: Iterable[str]) -> str:
    return "+".join(m for m in MODALITIES if m in set(modalities)) or "none"


def main() -> None:
    """Print accuracy, confusion and what went wrong."""
    parser = Parser(__doc__)
    parser.add_argument("sentences", type=Path, help="JSONL with text and modalities")
    accuracy, counts, wrong = measure(parser.parse_args().sentences)
    names = sorted({name for pair in counts for name in pair}, key=lambda name: ("+" in name, name))
    width = max(map(len, names)) + 2
    print(f"{'true':{width}}{''.join(f'{name:>{width}}' for name in names)}   <- found")
    for true in names:
        print(f"{true:{width}}{''.join(f'{counts[true, name] or 0:>{width}}' for name in names)}")
    for true, assigned, text in wrong:
        print(f"  {true} found as {assigned}: {text}")
    print(f"sentences: {accuracy:.1%} of {counts.total()} assigned to exactly the right modalities")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
