"""The files of an evaluation: predictions, judgements, figures, records; and its page."""

from readers.content import (
    DFEW,
    IMPORTANCE,
    JUDGEMENTS,
    PREDICTIONS,
    RUN,
    document,
    later,
    lines,
    reader,
)


def tallied(folder):
    table = later("eval.figures.tally", "read_predictions")(folder / "predictions.jsonl", DFEW)
    later("eval.figures.tally", "read_judgements")(folder / "judgements.jsonl", DFEW, table)
    dominants = later("eval.figures.tally", "read_dominants")(folder / "importance.jsonl")
    later("eval.figures.tally", "add_dominants")(table, dominants)
    later("eval.figures.tally", "read_lacking")(None, folder / "importance.jsonl")
    names = ("labels", "answers", "judgements")
    columns = [getattr(table, name) for name in names]
    later("eval.figures.metrics", "measure")(*columns, DFEW.labels, table.first, table.dominants, 20, 0, table.hidden)


def page(folder):
    run = later("eval.page.browser", "run_of")(folder, "dfew")
    later("eval.report", "write_page")(folder / "page.html", [run])


def metrics():
    from array import array

    from eval.figures.metrics import measure

    columns = [array("h", [0, 1, 2])] * 3
    facts = measure(*columns, DFEW.labels, array("h", [0, 0, 0]), array("h", [0, 0, 0]), 20, 0, array("h", [0, 1, 2]))
    facts |= {
        "judge": {"name": "j", "accuracy": 0.9, "n": 10, "accuracy_ci95": [0.8, 1.0]},
        "unread_answers": {"calm": 2},
    }
    return facts | {"settings": {"labels": "dfew", "engine": "vllm"}, "synonyms": {"joy": "happy"}}


def claimed(folder):
    from migr.files.claim import claim

    claim(folder, {"model": "a", "media": {"fps": 2.0}}, [folder / "predictions.jsonl"])


def grown(folder):
    from migr.files.growing import Growing, Journal, ids_in, merge

    path = folder / "predictions.jsonl"
    ids_in([path])
    with Growing(path) as file:
        file.append({"clip_id": "new", "response": "x"})
    merge(path, ["c2", "c1"])
    with Journal(folder / "inflight.jsonl", set()):
        pass


def journal(folder):
    from migr.files.growing import Journal

    with Journal(folder / "inflight.jsonl", {"a"}) as known:
        known.give("b")
        known.died("x")


READERS = {
    "predictions": reader("predictions.jsonl", lines(PREDICTIONS), "jsonl", tallied, RUN),
    "judgements": reader("judgements.jsonl", lines(JUDGEMENTS), "jsonl", tallied, RUN),
    "dominants": reader("importance.jsonl", lines(IMPORTANCE), "jsonl", tallied, RUN),
    "labelled texts": reader(
        "texts.jsonl",
        lines({"text": "He smiles.", "emotion": "happy", "kind": "gold"} for _ in range(3)),
        "jsonl",
        lambda f: later("migr.judge.measure", "labelled_texts")(f / "texts.jsonl", DFEW),
    ),
    "metrics.json": reader("metrics.json", lambda: document(metrics()), "json", page, RUN),
    "page's predictions": reader(
        "predictions.jsonl", lines(PREDICTIONS), "jsonl", page, lambda: {**RUN, "metrics.json": document(metrics())}
    ),
    "page's importance": reader(
        "importance.jsonl", lines(IMPORTANCE), "jsonl", page, lambda: {**RUN, "metrics.json": document(metrics())}
    ),
    "compared run": reader(
        "metrics.json",
        lambda: document(metrics()),
        "json",
        lambda f: later("eval.compare", "read_side")(f, "a", "dfew", None),
        RUN,
    ),
    "run.json": reader(
        "run.json", document({"model": "a", "media": {"fps": 2.0}, "finished": True}), "json", claimed, RUN
    ),
    "grown": reader("predictions.jsonl", lines(PREDICTIONS), "jsonl", grown),
    "journal": reader(
        "inflight.jsonl",
        lines([{"clip_id": None, "deaths": {"a": ["x"]}, "oom_kills": 0}, {"clip_id": "a"}]),
        "jsonl",
        journal,
    ),
}
