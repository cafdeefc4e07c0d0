"""Files of long runs after a power cut: from the first damaged line on they count as not written."""

import json

import pytest

from migr.files.growing import Growing, Journal, ids_in, merge
from migr.files.records import read_jsonl

ROWS = [{"clip_id": name, "value": "é" * 20} for name in "abcdef"]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
THIRD = sum(len(line) for line in TEXT.splitlines(keepends=True)[:3])
CUTS = {
    "whole": (TEXT, "abcdef"),
    "lost tail": (TEXT[:THIRD], "abc"),
    "cut row": (TEXT[: THIRD + 5], "abc"),
    "zeros to the end": (TEXT[:THIRD] + bytes(len(TEXT) - THIRD), "abc"),
    "a block of zeros within": (TEXT[:THIRD] + bytes(20) + TEXT[THIRD + 20 :], "abc"),
    "all zeros": (bytes(len(TEXT)), ""),
    "empty": (b"", ""),
    "a row of another kind": (TEXT[:THIRD] + b"[1]\n" + TEXT[THIRD:], "abc"),
    "an id that is none": (TEXT[:THIRD] + b'{"clip_id": [1]}\n' + TEXT[THIRD:], "abc"),
}


@pytest.mark.parametrize("kind", CUTS)
def test_a_damaged_file_goes_on_from_its_last_whole_row(kind, tmp_path, capsys):
    text, done = CUTS[kind]
    path = tmp_path / "a.jsonl"
    path.write_bytes(text)
    assert ids_in([path]) == set(done)
    with Growing(path) as file:
        for row in ROWS:
            if row["clip_id"] not in done:
                file.append(row)
    assert path.read_bytes() == TEXT
    lost = text[len("".join(json.dumps(row) + "\n" for row in ROWS[: len(done)])) :]
    aside = path.with_name("a.jsonl.damaged")
    if b"\n" in lost:  # more than one row that a kill has cut off
        assert aside.read_bytes() == lost and "damaged after" in capsys.readouterr().err
    else:
        assert not aside.exists()


def test_notes_that_were_written_again_do_not_stop_a_run(tmp_path):
    path = tmp_path / "timings.jsonl"
    path.write_text('{"clip_id": "a", "seconds": 1}\n{"clip_id": "b", "seconds": 2}\n{"clip_id": "a", "seconds": 3}\n')
    merge(path, ["a", "b"], latest=True)
    assert read_jsonl(path) == [{"clip_id": "a", "seconds": 3}, {"clip_id": "b", "seconds": 2}]


@pytest.mark.parametrize(
    "header", [b"", bytes(50) + b"\n", b'{"clip_id": null}\n', b'{"clip_id": null, "deaths": 3}\n']
)
def test_a_damaged_journal_knows_of_no_deaths(header, tmp_path):
    path = tmp_path / "inflight.jsonl"
    path.write_bytes(header)
    with Journal(path, set()) as journal:
        journal.give("a")
    assert journal.deaths == {} and not path.exists()
