"""Output folders: whose run is in one, and may this one go on there?"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migr.errors import InputError
from migr.files.growing import parts
from migr.files.records import read_json, write_json

BESIDE = ("timings.jsonl", "quarantined.jsonl", "inflight.jsonl", "crash.txt")  # beside predictions.jsonl


def claim(out: Path, config: Mapping[str, Any], files: Sequence[Path], overwrite: bool) -> None:
    """Take the folder for this run: continue one of the same configuration, discard another only if told to.

    Raises:
        InputError: The folder holds the files of another run, or of an unknown one.
    """
    record = out / "run.json"
    config = json.loads(json.dumps(config))  # as it will be read back
    if overwrite:
        for path in (*files, *(out / name for name in BESIDE)):
            for file in parts(path):
                file.unlink(missing_ok=True)
    elif record.exists():
        old = read_json(record)
        changed = [key for key in {**old, **config} if old.get(key) != config.get(key)]
        if changed:
            raise InputError(
                f"{out} holds a run with another {', '.join(changed)}: give another --out, or --overwrite it "
                "(to judge the same predictions otherwise: --predictions FILE --judge NAME and another --out)"
            )
    elif there := [file for file in files if file.exists()]:
        raise InputError(f"{there[0]}: nothing tells which run wrote it; give another --out, or --overwrite it")
    write_json(record, config)
