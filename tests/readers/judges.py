"""Judges' folders, what servers reply, and any response."""

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from readers.content import (
    DFEW,
    RESPONSE,
    document,
    later,
    reader,
)


def fitted(folder):
    from migr.judge.fitted import open_fitted

    open_fitted(folder, DFEW).judge(["He smiles and laughs."])


def fitted_files():
    import tempfile

    from migr.judge.fitted import fit_classifier

    with tempfile.TemporaryDirectory() as name:
        fit_classifier([f"a text of {label} face" for label in DFEW.labels] * 3, list(DFEW.labels) * 3, DFEW, name)
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


def hugging(folder):
    from migr.judge.huggingface import HuggingFaceJudge

    HuggingFaceJudge(folder, DFEW)


def cached(folder):
    """The text is the one row of the cache."""
    from migr.files.records import digest
    from migr.judge.base import Judgement
    from migr.judge.cache import CachedJudge
    from migr.judge.lexicon import LexiconJudge

    judge, path = LexiconJudge(DFEW), folder / "cache.sqlite"
    known = CachedJudge(judge, path)
    key = digest(judge.name, "", "a text")
    row = (folder / "row").read_bytes().decode(errors="replace")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO judgements VALUES (?, ?)", (key, row))
    (judgement,) = known.judge(["a text"])
    assert isinstance(judgement, Judgement)


@cache
def endpoint():
    from migr.judge.endpoint import EndpointJudge

    return EndpointJudge("http://127.0.0.1:1/v1#m", DFEW)


def replied(folder):
    """An endpoint's reply, behind the transport: a failed judgement, or one with a label."""
    judge = endpoint()
    judge._failed_in_a_row = 0
    judgement = judge._read((folder / "reply").read_bytes())
    assert judgement.emotion in (None, *DFEW.labels) and isinstance(judgement.status, str)


REPLY = {
    "choices": [{"message": {"role": "assistant", "content": '{"emotion": "happy"}'}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 3},
}


def responded(folder):
    """Any text is a response: parsed, read as a label, split into segments, scored."""
    from migr.judge.lexicon import LexiconJudge
    from migr.judge.prompt import read_reply
    from migr.text.format import parse
    from reward.format import format_reward

    text = (folder / "response").read_bytes().decode(errors="replace")
    response = parse(text)
    assert response.label(DFEW) in (None, *DFEW.labels)
    later("eval.page.browser", "parts_of")(response)
    LexiconJudge(DFEW).judge([response.plain])
    read_reply(text, DFEW)
    assert all(0 <= value <= 1 for value in format_reward([text]))


READERS = {
    "judge.json": reader("judge.json", lambda: fitted_files()["judge.json"], "json", fitted, fitted_files),
    "judge.safetensors": reader(
        "judge.safetensors", lambda: fitted_files()["judge.safetensors"], "bytes", fitted, fitted_files
    ),
    "judge's config.json": reader(
        "config.json",
        document({"id2label": {str(i): label for i, label in enumerate(DFEW.labels)}, "problem_type": None}),
        "json",
        hugging,
        lambda: {"model.safetensors": save({"a": np.zeros(3)})},
    ),
    "label_map.json": reader(
        "label_map.json",
        document({label: label for label in DFEW.labels}),
        "json",
        hugging,
        lambda: {
            "config.json": document({"id2label": {str(i): label for i, label in enumerate(DFEW.labels)}}),
            "model.safetensors": save({"a": np.zeros(3)}),
        },
    ),
    "judge's cache": reader(
        "row",
        document({"emotion": "happy", "probabilities": {"happy": 1.0}, "status": "ok", "evidence": [], "reply": None}),
        "json",
        cached,
    ),
    "endpoint's reply": reader("reply", document(REPLY), "json", replied),
    "response": reader("response", RESPONSE.encode(), "bytes", responded),
}
