"""How well a judge reads the emotion that labelled texts convey, and how far two judges agree."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from migr.errors import InputError
from migr.files.records import Row, iter_jsonl
from migr.judge.base import Judge, Judgement
from migr.statistics import proportion
from migr.text.labels import LabelSet

SHIPPED = Path(__file__).with_name("data") / "judge_texts.jsonl"
SHIPPED_MAFW = SHIPPED.with_name("judge_texts_mafw.jsonl")  # for the four emotions that MAFW has beyond DFEW
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


def shipped_texts(labels: LabelSet) -> list[Row]:
    """The shipped labelled texts for a label set: DFEW's seven emotions, MAFW's eleven, else none."""
    rows: list[Row] = []
    for path in (SHIPPED, SHIPPED_MAFW):
        if all(labels.canonical(row["emotion"]) for row in iter_jsonl(path)):
            rows += labelled_texts(path, labels)
    return rows


def judge_texts(judge: Judge, texts: Sequence[str], at_once: int = 256) -> list[Judgement]:
    """All judgements, with a progress bar where it takes time."""
    judgements: list[Judgement] = []
    with tqdm(total=len(texts), desc=judge.name[:40], unit="text", delay=2) as bar:
        for begin in range(0, len(texts), at_once):
            judgements += judge.judge(texts[begin : begin + at_once])
            bar.update(len(judgements) - bar.n)
    return judgements


def reliability(
    judge: Judge, rows: Sequence[Row], labels: LabelSet, judgements: Sequence[Judgement] | None = None
) -> Row:
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
    if judgements is None:
        judgements = judge_texts(judge, [row["text"] for row in rows])
    truth, judged = [row["emotion"] for row in rows], [judgement.emotion or FAILED for judgement in judgements]
    right = [a == b for a, b in zip(truth, judged, strict=True)]
    kinds = dict.fromkeys(row["kind"] for row in rows if isinstance(row.get("kind"), str))
    return {
        "name": judge.name,
        **proportion(sum(right), len(rows)),
        "n_failed": judged.count(FAILED),
        **_tables(truth, judged, labels),
        "per_kind": {
            kind: proportion(sum(hits), len(hits))
            for kind in kinds
            if (hits := [ok for ok, row in zip(right, rows, strict=True) if row.get("kind") == kind])
        },
    }


def agreement(one: Sequence[Judgement], other: Sequence[Judgement], labels: LabelSet) -> Row:
    """How far two judges name the same emotion for the same texts.

    Returns:
        `accuracy` (share of equal judgements among the `n` texts that both judged), `n_failed` (either failed), and
        `kappa` and `confusion` (one x other) with failures as a category of their own.
    """
    a, b = ([judgement.emotion or FAILED for judgement in side] for side in (one, other))
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
