"""Manifests, tables and data sets of clips, and their importances."""

from readers.content import (
    CLIPS,
    DFEW,
    IMPORTANCE,
    LABEL_RECORD,
    MANIFEST,
    MEDIA,
    RECORD,
    document,
    later,
    lines,
    reader,
    table,
    workbook,
)

TABLE = [
    ["path", "label", "split", "transcript"],
    *([f"c{i}.mp4", DFEW.labels[i], "train", "He says no."] for i in range(3)),
]


def probes(folder):
    from migr.sources.checking import Probes

    known = Probes(folder / "probes.jsonl", {"rate": None})
    known.find("/c0.mp4", [1, 2])


def probe_lines():
    from migr.files.records import digest
    from migr.sources.checking import VERSION

    facts = {"has_video": True, "duration": 1.5}
    by = digest({"rate": None}, VERSION)
    return lines({"key": f"/c{i}.mp4", "stamp": [1, 2], "by": by, "result": {"facts": facts}} for i in range(3))


READERS = {
    "manifest": reader(
        "clips.jsonl",
        lines(CLIPS),
        "jsonl",
        lambda f: later("migr.clips.manifest", "read_clips")(f / "clips.jsonl", DFEW),
        MEDIA,
    ),
    "data.json": reader(
        "data.json",
        document({"root": ".", "label_set": LABEL_RECORD}),
        "json",
        lambda f: (
            later("migr.clips.record", "find_labels")(None, f / "clips.jsonl"),
            later("migr.clips.manifest", "read_clips")(f / "clips.jsonl", DFEW),
        ),
        MANIFEST,
    ),
    "migr.json": reader("migr.json", document(RECORD), "json", lambda f: later("migr.clips.record", "read_record")(f)),
    "importance": reader(
        "importance.jsonl",
        lines(IMPORTANCE),
        "jsonl",
        lambda f: later("migr.sources.importance", "read_importance")(f / "importance.jsonl"),
    ),
    "probes": reader("probes.jsonl", probe_lines, "jsonl", probes),
    "table csv": reader(
        "t.csv",
        table(TABLE),
        "bytes",
        lambda f: later("migr.sources.table", "read")([f / "t.csv"], f, DFEW, "train"),
        MEDIA,
    ),
    "table jsonl": reader(
        "t.jsonl",
        lines(CLIPS),
        "jsonl",
        lambda f: later("migr.sources.table", "read")([f / "t.jsonl"], f, DFEW, "train"),
        MEDIA,
    ),
    "table xlsx": reader(
        "t.xlsx",
        lambda: workbook(TABLE),
        "zip",
        lambda f: later("migr.sources.table", "read")([f / "t.xlsx"], f, DFEW, "train"),
        MEDIA,
    ),
    "dfew": reader(
        "EmoLabel_DataSplit/train(single-labeled)/set_1.csv",
        b"video_name,label\n1,1\n2,7\n",
        "bytes",
        lambda f: later("migr.sources.dfew", "read")(f, 1),
        {"Clip/original/1.mp4": b"x", "EmoLabel_DataSplit/test(single-labeled)/set_1.csv": b"video_name,label\n3,1\n"},
    ),
    "mafw": reader(
        "Train & Test Set/single/no_caption/set_1/train.txt",
        b"00001.mp4 happiness\n00002.mp4 sadness\n",
        "bytes",
        lambda f: later("migr.sources.mafw", "read")(f, 1),
        {"data/clips/00001.mp4": b"x", "Train & Test Set/single/no_caption/set_1/test.txt": b"00003.mp4 anger\n"},
    ),
}
