"""All commands x all kinds of broken input: one line and status 2, no traceback, nothing written (no model here).

Each command is run on whole input first, so that what is refused is the broken file and nothing else.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import whole
from broken import KINDS, fresh, other_values, remnants, run, words
from conftest import ROOT

from migr.files.records import read_jsonl


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return whole.build(tmp_path_factory.mktemp("world"))


# command -> command lines; each `{input}` is broken in turn, of a folder each file that is named behind it
COMMANDS = {
    "eval/consistency.py": [
        "--predictions {predictions} --judgements {judgements} --importance {importance} --labels {labels} "
        "--resamples 20 --out {out}",
        "--config {consistency_yaml} --predictions {predictions} --judge lexicon --judge_check {check} --out {out}",
        "--predictions {lines} --truth {truth} --judge lexicon --judge_check none --resamples 20 --out {out}",
    ],
    "eval/judges.py": [
        "lexicon --texts {texts} --labels {labels} --out {out}",
    ],
    "eval/compare.py": ["{one} {two} --resamples 20 --importance {importance} --labels {labels} --out {out}"],
    "eval/report.py": ["{one} {two} --importance {importance} --clips {clips} --out {out}.html"],
    "eval/sentiment.py": ["{scores} --set mosi --resamples 20 --out {out}"],
    "stages/targets.py": [
        "--config {targets_yaml} --clips {clips} --reasoning {reasoning} --out {out}.jsonl --labels {labels}",
        "--clips {clips} --reasoning {reasoning} --importance {importance} --order dominant-first --out {out}.jsonl",
        "--clips {clips} --reasoning {free} --order video-first --out {out}.jsonl",
        "--clips {clips} --reasoning {captions} --reasoning_format captions --order video-first --out {out}.jsonl",
        "--clips {clips} --reasoning {captions_xlsx} --reasoning_format captions --order video-first --out {out}.jsonl",
    ],
    "stages/data.py": [
        "--source table --table {table} --root {root} --labels {labels} --workers 1 --cache_dir {cache} --out {out}",
        "--source table --table {table_rows} --root {root} --workers 1 --cache_dir {cache} --out {out}",
        "--source table --table {table_sheet} --root {root} --workers 1 --cache_dir {cache} --out {out}",
    ],
    "stages/features.py": ["--source mmsa --set mosi --file {features} --out {out}"],
    "stages/curves.py": ["{training} --out {out}.png"],
    "stages/folds.py": ["--run {folds} --folds 1 2"],
    "stages/demo/judge.py": ["--fit {texts} --check {check} --out {out}"],
}
INSIDE = {
    "one": ["metrics.json", "predictions.jsonl", "judgements.jsonl"],
    "training": ["trainer_state.json"],
    "folds": ["fold1/eval/metrics.json"],
}
# what need not be refused: a run without judgements, of long files what the page does not show, what trainers log
ALLOWED = {
    ("judgements", "empty"),
    ("one", "judgements.jsonl"),
    ("one", "predictions.jsonl: empty"),
    *(("training", f"trainer_state.json: {kind}") for kind in ("NaN", "infinity", "overflow")),
}
CASES = [
    (command, number, name)
    for command, lines in COMMANDS.items()
    for number, line in enumerate(lines)
    for name in dict.fromkeys(part.partition("}")[0] for part in line.split("{")[1:])
    if name not in ("out", "two", "root", "cache")
]


def spoilt(name, good, folder):
    """(kind, path in place of the whole input, must it be refused) of one input."""
    if good.is_dir():
        for file in INSIDE[name]:
            content = (good / file).read_bytes()
            for must, kinds in (
                (True, KINDS[Path(file).suffix](content)),
                (False, other_values(content, Path(file).suffix)),
            ):
                for kind, broken in kinds.items():
                    place = folder / "copy" / good.name
                    if not place.exists():
                        shutil.copytree(good, place)
                    (place / file).write_bytes(broken)
                    yield f"{file}: {kind}", place, must
            (place / file).unlink()
            yield f"{file}: missing", place, file == "metrics.json" or name != "one"
            (place / file).write_bytes(content)
        yield "missing", folder / "nothing", True
        (folder / "file").write_text("x")
        yield "a file", folder / "file", True
        return
    content = good.read_bytes()
    for must, kinds in ((True, KINDS[good.suffix](content)), (False, other_values(content, good.suffix))):
        for kind, broken in kinds.items():
            path = folder / f"x{good.suffix}"
            path.write_bytes(broken)
            yield kind, path, must
    yield "missing", folder / f"nothing{good.suffix}", True
    (folder / f"folder{good.suffix}").mkdir()
    yield "a folder", folder / f"folder{good.suffix}", True
    yield "a long name", folder / ("x" * 300 + good.suffix), True
    yield "a long path", folder / ("x/" * 5000 + good.name), True


@pytest.mark.parametrize(("command", "number"), sorted({case[:2] for case in CASES}))
def test_whole_input_is_taken(command, number, world, tmp_path, capsys):
    ended = run(command, words(COMMANDS[command][number], {**world, "out": tmp_path / "out"}), capsys)
    assert ended.status == 0, ended.err


SLOW = [("eval/report.py", 0, "one"), ("eval/report.py", 0, "clips"), ("eval/consistency.py", 1, "predictions")]


@pytest.mark.parametrize(
    ("command", "number", "name"),
    [pytest.param(*case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES],
)
def test_broken_input_is_one_line_and_leaves_nothing(command, number, name, world, tmp_path, capsys):
    faults = []
    for kind, path, must in spoilt(name, world[name], tmp_path):
        out = tmp_path / "out"
        ended = run(command, words(COMMANDS[command][number], {**world, name: path, "out": out}), capsys)
        must = must and not {(name, kind), (name, kind.partition(":")[0])} & ALLOWED
        fault = ended.fault(must)
        if fault is None and ended.status == 2:
            fault = ", ".join(rest for end in ("", ".jsonl", ".html", ".png") for rest in remnants(Path(f"{out}{end}")))
        if fault:
            faults.append(f"{kind}: {fault}")
        for path in tmp_path.glob("out*"):
            fresh(path)
    assert not faults, f"{len(faults)} faults\n" + "\n\n".join(faults)


# command, number of its line, and what is absurd about it
ABSURD = {
    ("eval/consistency.py", 0): ["--resamples 9", "--resamples 1000000001", "--resamples x", "--seed -1", "--limit 0",
                                 "--seed 99999999999", "--judge_prices x", "--no_such 1"],
    ("eval/compare.py", 0): ["--resamples 1", "--resamples 1000000001", "--seed -1", "--resamples nan", "--no_such"],
    ("eval/sentiment.py", 0): ["--resamples 0", "--resamples 1000000001", "--seed -1", "--set none", "--as none"],
    ("eval/judges.py", 0): ["--batch_size 0", "--max_model_length -1", "--dtype x", "--no_such 1"],
    ("eval/report.py", 0): ["--labels nothing", "--no_such"],
    ("stages/targets.py", 0): ["--order x", "--split nothing", "--leave_out x", "--no_such"],
    ("stages/data.py", 0): ["--workers 0", "--workers 10000000", "--timeout nan", "--timeout inf", "--max_excluded nan",
                            "--max_excluded 1", "--fold 9", "--seed 3", "--frame_rate 5", "--max_seconds -1"],
    ("stages/features.py", 0): ["--set none", "--features .", "--no_such"],
    ("stages/folds.py", 0): ["--folds 1 1", "--folds 99", "--set x", "--metrics ../../x", "--no_such"],
    ("stages/demo/judge.py", 0): ["--labels nothing", "--no_such"],
}  # fmt: skip


@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_setting_is_refused_before_work_starts(case, world, tmp_path, capsys):
    command, number = case
    faults = {}
    for more in ABSURD[case]:
        line = words(COMMANDS[command][number], {**world, "out": tmp_path / "out"})
        if fault := run(command, [*line, *more.split()], capsys).fault():
            faults[more] = fault
    assert not faults and not list(tmp_path.iterdir()), faults


LONG = {"a long name": "x" * 300, "a long path": "x/" * 2500 + "x", "half a character": "\ud83d.mp4", "NUL": "a\0b.mp4"}


@pytest.mark.parametrize("kind", LONG)
def test_one_path_that_no_file_can_have_excludes_its_clip_alone(kind, world, tmp_path, capsys):
    rows = [*read_jsonl(world["table_rows"]), {"path": LONG[kind], "label": "sad"}]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {**world, "table_rows": table, "out": tmp_path / "out"}
    ended = run("stages/data.py", [*words(COMMANDS["stages/data.py"][1], places), "--max_excluded", "0.5"], capsys)
    assert ended.status == 0 and len(read_jsonl(tmp_path / "out" / "clips.jsonl")) == len(rows) - 1, ended.err
    (excluded,) = read_jsonl(tmp_path / "out" / "excluded.jsonl")
    assert excluded["reason"] in ("missing", "outside_root"), excluded


def test_label_sets_have_bounds_and_each_label_can_be_answered(world, tmp_path, capsys):
    for text, message in (("".join(f"word{i}\n" for i in range(501)), "501 labels"), ("happy\nmr.\n", "mr.")):
        labels = tmp_path / "labels.txt"
        labels.write_text(text)
        line = words(COMMANDS["eval/judges.py"][0], {**world, "labels": labels, "out": tmp_path / "out"})
        ended = run("eval/judges.py", line, capsys)
        assert ended.fault() is None and message in ended.err, ended


def test_a_disk_that_is_full_is_one_line_and_the_command_goes_on_later(world, tmp_path):
    line = words(COMMANDS["stages/demo/judge.py"][0], {**world, "out": tmp_path / "out"})
    command = [sys.executable, str(ROOT / "stages/demo/judge.py"), *line]
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # noqa: E731
    # Python before 3.12.8 keeps a compiled module that it could only write in part (CPython's gh-126606)
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=full, env=environment)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "; make room, then" in ended.stderr
    assert not remnants(tmp_path / "out")
    assert subprocess.run(command, capture_output=True).returncode == 0


OUTPUTS = {"a file": "file", "below a file": "file/sub", "a name too long": "x" * 300, "a path too long": "x/" * 3000}


@pytest.mark.parametrize(("command", "number"), sorted({case[:2] for case in CASES}))
def test_an_output_that_cannot_be_written_is_one_line(command, number, world, tmp_path, capsys):
    line = COMMANDS[command][number]
    if "{out}" not in line:
        pytest.skip("no output of its own")
    faults = []
    for kind, place in OUTPUTS.items():
        (tmp_path / "file").write_text("precious")
        ending = line.partition("{out}")[2].split()[:1]
        if kind == "a file" and ending and ending[0].startswith("."):
            continue  # a file is what it writes
        ended = run(command, words(line, {**world, "out": tmp_path / place}), capsys)
        if fault := ended.fault():
            faults.append(f"{kind}: {fault}")
        assert (tmp_path / "file").read_text() == "precious"
    assert not faults, "\n\n".join(faults)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
