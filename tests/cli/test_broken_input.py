"""All commands x all kinds of broken input: one line and status 2, no traceback, nothing written (no model here).

Each command is run on whole input first, so that what is refused is the broken file and nothing else.
"""

import shutil
from pathlib import Path

import pytest
import whole
from broken import KINDS, fresh, other_values, remnants, run, words


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
