"""What others wrote: predictions in formats of their own, and reasonings."""

from readers.content import (
    DFEW,
    MANIFEST,
    RESPONSE,
    SEGMENTS,
    TURNS,
    document,
    later,
    lines,
    reader,
    table,
    workbook,
)

FOREIGN = [["video_name", "response", "label"], *([f"c{i}.mp4", RESPONSE, DFEW.labels[i]] for i in range(3))]


def convert(name, **options):
    def read(folder):
        predictions = later("migr.sources.predictions", "convert")
        reading = later("migr.sources.predictions", "Reading")(**options)
        reading.needed(folder / name)
        predictions(folder / name, folder / "out.jsonl", DFEW, reading)
        later("eval.figures.tally", "read_predictions")(folder / "out.jsonl", DFEW)

    return read


def reasoned(name, form="auto"):
    def read(folder):
        from migr.clips.manifest import read_clips
        from migr.sources.reasoning import check, match, merge, read_reasoning

        clips = read_clips(folder / "clips.jsonl", DFEW)
        rows = read_reasoning(folder / name, form)
        for clip_id, row in merge([(folder / name, match(folder / name, rows, clips))]).items():
            check(row, clip_id)

    return read


READERS = {
    "foreign lines": reader(
        "a.txt",
        "".join(f"c{i}.mp4|{RESPONSE}\nmore\n" for i in range(3)).encode(),
        "bytes",
        lambda f: convert("a.txt", truth=f / "t.jsonl")(f),
        {"t.jsonl": lines({"clip_id": f"c{i}", "label": "happy"} for i in range(3))},
    ),
    "foreign json": reader(
        "a.json",
        document({"results": [{"id": f"c{i}", "output": RESPONSE, "gt": "happy"} for i in range(3)]}),
        "json",
        convert("a.json"),
    ),
    "foreign map": reader(
        "a.json", document({f"c{i}": {"text": RESPONSE, "label": "happy"} for i in range(3)}), "json", convert("a.json")
    ),
    "foreign conversations": reader(
        "a.json",
        document([{"video": f"c{i}.mp4", "conversations": TURNS, "label": "happy"} for i in range(3)]),
        "json",
        convert("a.json", format="conversations"),
    ),
    "foreign csv": reader("a.csv", table(FOREIGN, ";"), "bytes", convert("a.csv")),
    "foreign xlsx": reader("a.xlsx", lambda: workbook(FOREIGN), "zip", convert("a.xlsx")),
    "foreign jsonl": reader(
        "a.jsonl",
        lines(
            {"messages": [{"role": "assistant", "content": RESPONSE}], "videos": [f"a/c{i}.mp4"], "labels": "happy"}
            for i in range(3)
        ),
        "jsonl",
        convert("a.jsonl"),
    ),
    "truth words": reader(
        "t.txt",
        b"c0.mp4 happiness\nc1.mp4 sad\nc2.mp4 anger\n",
        "bytes",
        lambda f: convert("a.jsonl", truth=f / "t.txt", count_missing=True)(f),
        {"a.jsonl": lines({"id": f"c{i}", "text": RESPONSE} for i in range(3))},
    ),
    "truth json": reader(
        "t.json",
        document({f"c{i}": "happy" for i in range(3)}),
        "json",
        lambda f: convert("a.jsonl", truth=f / "t.json", by_order=True)(f),
        {"a.jsonl": lines({"text": RESPONSE} for _ in range(3))},
    ),
    "reasoning": reader("r.jsonl", lines(SEGMENTS), "jsonl", reasoned("r.jsonl"), MANIFEST),
    "reasoning conversations": reader(
        "r.json",
        document([{"video": f"c{i}.mp4", "conversations": TURNS} for i in range(3)]),
        "json",
        reasoned("r.json"),
        MANIFEST,
    ),
    "reasoning csv": reader(
        "r.csv",
        table([["name", "video", "audio"], *([f"c{i}.mp4", "He smiles.", "Calm."] for i in range(3))]),
        "bytes",
        reasoned("r.csv"),
        MANIFEST,
    ),
    "reasoning table": reader(
        "r.jsonl",
        lines({"name": f"c{i}", "video": "He smiles."} for i in range(3)),
        "jsonl",
        reasoned("r.jsonl", "table"),
        MANIFEST,
    ),
    "captions": reader(
        "r.txt", b"c0.mp4\tHe smiles.\nc1.mp4 She frowns.\n", "bytes", reasoned("r.txt", "captions"), MANIFEST
    ),
}
