"""Broken containers by the thousand: no crash of the parent, no hang, bounded memory, each clip in exactly one list."""

import os
import random
import resource
import subprocess
import sys
import time

import odd_clips
import pytest
from conftest import ROOT, flags

from migr.files.records import read_jsonl

SOURCES = [
    *(odd_clips.cut_by_stream_copy, odd_clips.late_sound, odd_clips.gap_in_sound, odd_clips.av1_mp4, odd_clips.webcam),
    *(odd_clips.longer_track, odd_clips.variable_rate, odd_clips.rotated, odd_clips.changing_sound, odd_clips.mpeg_ts),
    *(odd_clips.old_avi, odd_clips.flash),
]
BOXES = [
    *(b"moov", b"trak", b"mdia", b"stbl", b"stts", b"ctts", b"stsz", b"stco", b"elst", b"mvhd", b"tkhd", b"mdat"),
    *(b"RIFF", b"strh", b"movi", b"idx1", b"FLV", b"G@"),
    *(b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x1fC\xb6u", b"\x2a\xd7\xb1"),
]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One of: bits flipped, cut, boxes swapped, numbers behind a box's name made huge or zero, a hole of zeros."""
    data = bytearray(content)
    kind = rng.choice(("bits", "cut", "swap", "lie", "hole"))
    if kind == "bits":
        for _ in range(rng.choice((1, 10, 200))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        start, end = sorted(rng.sample(range(len(data)), 2))
        return bytes(data[:start] + data[end:]) if rng.random() < 0.5 else bytes(data[:end])
    elif kind == "hole":
        start = rng.randrange(len(data))
        data[start : start + 2000] = bytes(min(2000, len(data) - start))
    else:
        places = [at for name in BOXES if (at := data.find(name)) >= 0]
        one, other = rng.choice(places), rng.choice(places)
        if kind == "swap":
            data[one : one + 4], data[other : other + 4] = data[other : other + 4], data[one : one + 4]
        else:
            at = min(one + rng.choice((-4, 4, 8, 12, 16, 20, 24)), len(data) - 4)
            data[max(at, 0) : max(at, 0) + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)))
    return bytes(data)


def run(folder, count, seed):
    """Seconds, MiB of the parent's peak, reasons; of `count` mutated files that stages/data.py examines."""
    rng = random.Random(seed)
    sources = [kind(folder / "whole" / kind.__name__).path for kind in SOURCES]
    (folder / "clips").mkdir()
    names = []
    for number in range(count):
        source = sources[number % len(sources)]
        names.append(f"clips/{number:05d}{source.suffix}")
        (folder / names[-1]).write_bytes(mutated(source.read_bytes(), rng))
    (folder / "t.csv").write_text("path,label\n" + "".join(f"{name},sad\n" for name in names))
    given = {"source": "table", "table": folder / "t.csv", "out": folder / "out", "max_excluded": 0.999, "timeout": 20}
    start = time.monotonic()
    command = [sys.executable, ROOT / "stages" / "data.py", *flags(**given, workers=2, require="any")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    usable, excluded = (read_jsonl(folder / "out" / name) for name in ("clips.jsonl", "excluded.jsonl"))
    assert sorted(row["path"] for row in [*usable, *excluded]) == sorted(names)
    reasons: dict[str, int] = {}
    for row in excluded:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return time.monotonic() - start, peak, len(usable), reasons


def test_a_few_broken_containers_are_each_in_exactly_one_list(tmp_path):
    seconds, _, usable, reasons = run(tmp_path, 36, seed=1)
    assert seconds < 300 and usable + sum(reasons.values()) == 36


@pytest.mark.slow
def test_two_thousand_broken_containers(tmp_path, capsys):
    seconds, peak, usable, reasons = run(tmp_path, 2000, seed=0)
    with capsys.disabled():
        print(f"\n{seconds:.0f} s, largest process {peak} MiB, {usable} usable, {reasons}")
    assert peak < 3500
