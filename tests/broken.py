"""Broken input by kind, and a command run on it: what every command must answer with one line and status 2."""

import importlib
import inspect
import itertools
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from migr.errors import exit_on_input_error

# Of any file.
CONTENTS = {
    "empty": lambda good: b"",
    "zero-filled": lambda good: bytes(4096),
    "not UTF-8": lambda good: good + b"\xff\xfe\xfa\n",
    "not UTF-8 far behind": lambda good: good + b" " * 70_000 + b"\xff\n",
}
WRONG_ROWS = {
    "a list": "[1]",
    "a number": "3",
    "null": "null",
    "no JSON": "{clip_id: x}",
    "raw control character": '{"a": "\x01"}',
    "deep": '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
}
WRONG_VALUES = {
    "NaN": "NaN",
    "infinity": "-Infinity",
    "overflow": "1e999",
    "5,000 digits": "9" * 5000,
    "key twice": '1, "broken": 2',
}
# In place of a value of another type.
VALUES = [None, True, 3, -1, 2.5, "", "x", "x" * 5000, "\x1b[2J\n", [], [1], ["x"], {}, {"x": 1}, [[]]]


def lines(good: bytes) -> dict[str, bytes]:
    """JSON Lines that are none, or rows that are no rows."""
    rows = good.decode().splitlines()
    spoilt = {kind: change(good) for kind, change in CONTENTS.items()}
    for kind, row in WRONG_ROWS.items():
        spoilt[kind] = "\n".join([*rows, row, ""]).encode()
    for kind, value in WRONG_VALUES.items():
        spoilt[kind] = "\n".join([*rows[:-1], f'{{"broken": {value}, {rows[-1][1:]}', ""]).encode()
    spoilt["cut"] = good.rstrip()[:-3]
    return spoilt


def document(good: bytes) -> dict[str, bytes]:
    """JSON files that are none."""
    text = good.decode()
    spoilt = {kind: change(good) for kind, change in CONTENTS.items()}
    spoilt |= {kind: row.encode() for kind, row in WRONG_ROWS.items()}
    if text.lstrip().startswith("{"):
        for kind, value in WRONG_VALUES.items():
            spoilt[kind] = f'{{"broken": {value}, {text.lstrip()[1:]}'.encode()
    return spoilt | {"cut": good.rstrip()[:-3]}


def table(good: bytes) -> dict[str, bytes]:
    """CSV files that are none."""
    spoilt = {kind: change(good) for kind, change in CONTENTS.items()}
    header, *rows = good.split(b"\n")
    spoilt |= {"no columns wanted": b"a,b\n1,2\n", "header alone": header + b"\n"}
    spoilt["a column twice"] = header + b"," + header.split(b",")[0] + b"\n" + b"\n".join(rows)
    return spoilt


def yaml(good: bytes) -> dict[str, bytes]:
    """Configurations that are none."""
    spoilt = {kind: change(good) for kind, change in CONTENTS.items() if kind != "empty"}
    more = {
        "a list": b"- 1\n",
        "unknown key": b"no_such_key: 1\n",
        "key twice": b"seed: 1\nseed: 2\n",
        "no YAML": b"a: b: c\n",
        "alias": b"seed: &a 1\nresamples: *a\n",
        "tag": b"seed: !!python/object/apply:os.system [id]\n",
        "deep": b"seed: " + b"[" * 5000,
        "many digits": b"seed: " + b"9" * 5000,
        "includes itself": b"include: x.yaml\n",
        "a mapping": b"seed: {a: 1}\n",
        "words": b"seed: words\n",
    }
    return spoilt | more


def text(good: bytes) -> dict[str, bytes]:
    """Text files that are none."""
    return {kind: change(good) for kind, change in CONTENTS.items()}


def sheet(good: bytes) -> dict[str, bytes]:
    """Files that are no zip archive, or half of one."""
    return {"empty": b"", "zero-filled": bytes(4096), "cut": good[: len(good) // 2], "text": b"clip,english\n"}


KINDS = {
    ".jsonl": lines, ".json": document, ".csv": table, ".yaml": yaml, ".txt": text, ".xlsx": sheet, ".pkl": sheet,
    ".safetensors": sheet,
}  # fmt: skip


def other_values(good: bytes, suffix: str) -> dict[str, bytes]:
    """The file with one value of its first row replaced by one of another type, for every value and type."""
    if suffix not in (".jsonl", ".json"):
        return {}
    first, *rest = good.decode().splitlines() if suffix == ".jsonl" else [good.decode()]
    value, spoilt = json.loads(first), {}
    values = itertools.cycle(VALUES)  # a few of them for each key
    for key in value if isinstance(value, dict) else ():
        for other in itertools.islice(values, 4):
            row = json.dumps({**value, key: other})
            spoilt[f"{key}: {str(other)[:20]!r}"] = "\n".join([row, *rest, ""]).encode()
        without = {name: part for name, part in value.items() if name != key}
        spoilt[f"without {key}"] = "\n".join([json.dumps(without), *rest, ""]).encode()
    return spoilt


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def fault(self, refused: bool = True) -> str | None:
        """What is wrong with that; None if it is one line and status 2 (or, unless it must be refused, a result)."""
        said = [line for line in self.err.splitlines() if line.startswith("error")]
        if self.status == 2 and len(said) == 1 and said[0].startswith("error: ") and "Traceback" not in self.err:
            return None if "\x1b" not in self.err else f"a control code: {said[0]!r}"
        if self.status == 0 and not refused and not said and "Traceback" not in self.err:
            return None
        return f"status {self.status}: {self.err[-600:] or self.out[-300:]}"


def run(command: str, argv: list[str], capsys) -> Ended:
    """Run a script's main in this process, as its last lines do."""
    module = importlib.import_module(command.removesuffix(".py").replace("/", "."))
    capsys.readouterr()
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [command, *argv])
        patch.delenv("MIGR_DEBUG", raising=False)
        try:
            with exit_on_input_error():
                module.main(*[argv][: len(inspect.signature(module.main).parameters)])
        except SystemExit as ended:
            status = ended.code or 0
    out, err = capsys.readouterr()
    if status == 1 and " tells where" in err and (log := next((w for w in err.split() if w.endswith(".log")), None)):
        err = err + "\n" + "\n".join(Path(log).read_text().splitlines()[-8:])
        os.unlink(log)
    return Ended(status, out, err)


def words(template: str, places: dict[str, Path]) -> list[str]:
    """The command line with `{name}` replaced by paths."""
    return [word.format(**places) for word in shlex.split(template)]


def remnants(out: Path) -> list[str]:
    """What a command that was refused left in its output, but for the records of a run that may go on."""
    paths = list(out.rglob("*")) if out.is_dir() else [out] if out.exists() else []
    names = [path.name for path in paths if path.is_dir() or path.stat().st_size]
    return [
        name
        for name in names
        if name not in (".running", "env.json", "inflight.jsonl")
        and not name.startswith("seed-")
        and not name.endswith("run.json")
    ]


def fresh(path: Path) -> Path:
    """The path, with nothing there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return path
