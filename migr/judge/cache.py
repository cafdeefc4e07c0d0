"""Judgements that have been made before: a rerun does not pay for them again."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from migr.errors import InputError, reason
from migr.files.parsing import parse_json
from migr.files.records import digest
from migr.judge.base import Around, Judge, Judgement, prompt_of


class CachedJudge(Around):
    """Another judge behind an SQLite file, keyed by (judge, prompt, text).

    Several processes may share the file. Each chunk is stored as soon as it is judged, so that an interruption loses
    `at_once` judgements at most. A failure is not stored, and one that an older version stored is not used: another
    attempt, or a mended server, may do better.
    """

    def __init__(self, judge: Judge, path: Path) -> None:
        self.inner, self.name, self.path = judge, judge.name, path
        self.at_once = getattr(judge, "at_once", 256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--judge_cache {path}: {error.strerror or error}; name another file") from None
        self._run("CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, judgement TEXT NOT NULL)", [()])

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text; equal texts are judged once.

        Raises:
            InputError: The file is no cache, or cannot be written.
        """
        keys = [digest(self.name, prompt_of(self.inner), text) for text in texts]
        known = {key: judgement for key in dict.fromkeys(keys) if (judgement := self._known(key)) is not None}
        missing = [(key, text) for key, text in dict(zip(keys, texts, strict=True)).items() if key not in known]
        for begin in range(0, len(missing), self.at_once):
            chunk = missing[begin : begin + self.at_once]
            answers = self.inner.judge([text for _, text in chunk])
            new = {key: judgement for (key, _), judgement in zip(chunk, answers, strict=True)}
            known.update(new)
            rows = [
                (key, json.dumps(asdict(judgement))) for key, judgement in new.items() if judgement.emotion is not None
            ]
            self._run("INSERT OR REPLACE INTO judgements VALUES (?, ?)", rows)
        return [known[key] for key in keys]

    def _known(self, key: str) -> Judgement | None:
        row = self._run("SELECT judgement FROM judgements WHERE key = ?", [(key,)])
        if row is None:
            return None
        try:
            judgement = Judgement(**parse_json(row[0]))
            evidence = tuple(judgement.evidence)
        except (ValueError, TypeError) as error:
            raise InputError(f"--judge_cache {self.path}: a row is none ({reason(error)}); delete the file") from None
        return None if judgement.emotion is None else replace(judgement, evidence=evidence)

    def _run(self, statement: str, rows: Sequence[tuple[str, ...]]) -> tuple[str] | None:
        """Execute a statement for each row in one transaction; gives the first result of the last."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                result = None
                for row in rows:
                    result = connection.execute(statement, row).fetchone()
                return result
        except sqlite3.Error as error:
            raise InputError(f"--judge_cache {self.path}: {error}; delete it or name another file") from None
