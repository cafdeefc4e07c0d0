"""Readers take time in proportion to what they read: four times as much takes about four times as long."""

import json
import time
from contextlib import suppress

import pytest
from fuzzing import TOKENS
from readers import READERS
from readers.content import (
    CLIPS,
    IMPORTANCE,
    JUDGEMENTS,
    PREDICTIONS,
    RESPONSE,
    SEGMENTS,
    TURNS,
    document,
    lines,
    table,
    workbook,
)
from readers.judges import responded as read_response

from migr.errors import InputError

ROWS, TIMES, MOST = 1500, 4, 10.0  # rows at first, how many times as many then, the ratio of the times that may be
LENGTH = 20_000  # characters of a response


def numbered(row):
    """`count` rows like this one, with ids of their own."""
    return lambda count: [{**row, "clip_id": f"c{i}"} for i in range(count)]


def jsonl(row):
    return lambda count: lines(numbered(row)(count))


MANY = {
    "manifest": jsonl({**CLIPS[0], "path": "c0.mp4"}),
    "importance": jsonl(IMPORTANCE[0]),
    "predictions": jsonl(PREDICTIONS[0]),
    "labelled texts": lambda count: lines([{"text": "He smiles.", "emotion": "happy"}] * count),
    "page's predictions": jsonl(PREDICTIONS[0]),
    "grown": jsonl(PREDICTIONS[0]),
    "journal": jsonl({}),
    "table csv": lambda count: table([["path", "label"], *([f"c{i}.mp4", "happy"] for i in range(count))]),
    "table jsonl": jsonl(CLIPS[0]),
    "table xlsx": lambda count: workbook([["path", "label"], *([f"c{i}.mp4", "happy"] for i in range(count))]),
    "dfew": lambda count: table([["video_name", "label"], *([i, 1] for i in range(10, count))]),
    "mafw": lambda count: "".join(f"{i:05d}.mp4 happiness\n" for i in range(10, count)).encode(),
    "foreign lines": lambda count: "".join(f"c0{'0' * (i % 2)}.mp4|{RESPONSE}\nmore\n" for i in range(count)).encode(),
    "foreign json": lambda count: document([{"id": f"c{i}", "output": RESPONSE, "gt": "happy"} for i in range(count)]),
    "foreign map": lambda count: document({f"c{i}": {"text": RESPONSE, "label": "happy"} for i in range(count)}),
    "foreign conversations": lambda count: document(
        [{"video": f"c{i}.mp4", "conversations": TURNS, "label": "happy"} for i in range(count)]
    ),
    "foreign csv": lambda count: table([["id", "text", "gt"], *([f"c{i}", RESPONSE, "happy"] for i in range(count))]),
    "reasoning": lambda count: lines([{**SEGMENTS[0], "clip_id": f"c{i}"} for i in range(count)]),
    "reasoning csv": lambda count: table([["name", "video"], *([f"c{i}.mp4", "Calm."] for i in range(count))]),
    "captions": lambda count: "".join(f"c{i}.mp4\tHe smiles.\n" for i in range(count)).encode(),
    "pipeline": lambda count: b"data --source dfew --out {out}\n" * count,
    "sentiment predictions": lambda count: table([["id", "prediction", "truth"], *([i, 1, 1] for i in range(count))]),
    "kuda log": lambda count: b"| Phase | MAE |\n| Valid | 0.7 |\n| Test | 0.7 |\n" * count,
    "probes": lambda count: lines([{"key": f"/{i}", "stamp": [1], "by": "x", "result": {}} for i in range(count)]),
    "trainer's log": lambda count: document({"log_history": [{"step": i, "loss": 0.5} for i in range(count)]}),
    "label_map.json": lambda count: document({f"l{i}": "happy" for i in range(count)}),
    "endpoint's reply": lambda count: document({"choices": [{"message": {"content": "{" * count}}]}),
}


def seconds(read, folder):
    """The shortest of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        with suppress(InputError):
            read(folder)
        times.append(time.process_time() - start)
    return min(times)


def check(measure):
    """Compare two sizes; once more where the machine was busy."""
    for _ in range(3):
        small, large = measure(1), measure(TIMES)
        if large < MOST * small + 0.05:
            return
    pytest.fail(f"{small:.3f} s, and {large:.3f} s for {TIMES} times as much")


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_a_file_of_four_times_as_many_rows_takes_about_four_times_as_long(name, tmp_path):
    reader = READERS[name]()
    for file, content in reader.beside.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    path = tmp_path / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)

    def measure(times):
        path.write_bytes(MANY[name](ROWS * times))
        return seconds(reader.read, tmp_path)

    check(measure)


@pytest.mark.slow
@pytest.mark.parametrize("token", sorted({token.decode(errors="replace") for token in TOKENS if len(token) < 20}))
def test_a_response_of_four_times_the_length_takes_about_four_times_as_long(token, tmp_path):
    def measure(times):
        (tmp_path / "response").write_text(token * (LENGTH * times // len(token)))
        return seconds(read_response, tmp_path)

    check(measure)


@pytest.mark.slow
def test_many_judgements_are_read_in_proportion(tmp_path):
    def measure(times):
        for name, row in (("predictions", PREDICTIONS), ("judgements", JUDGEMENTS), ("importance", IMPORTANCE)):
            (tmp_path / f"{name}.jsonl").write_bytes(jsonl(row[0])(ROWS * times))
        return seconds(READERS["judgements"]().read, tmp_path)

    check(measure)
    assert json.loads((tmp_path / "judgements.jsonl").read_bytes().splitlines()[0])["clip_id"] == "c0"
