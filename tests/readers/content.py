"""Valid files of each kind, as rows and as bytes, and what makes a reader of them."""

import csv
import io
import json

from fuzzing import Reader
from openpyxl import Workbook

from migr.text.labels import label_set

DFEW = label_set("dfew")


RESPONSE = "<think><video>He smiles.</video><audio>A calm voice.</audio>So happy.</think><answer>happy</answer>"


CLIPS = [
    {
        "clip_id": f"c{i}",
        "path": f"c{i}.mp4",
        "label": DFEW.labels[i],
        "split": "test",
        "has_audio": True,
        "duration": 1.5,
    }
    for i in range(3)
]


PREDICTIONS = [
    {"clip_id": f"c{i}", "label": DFEW.labels[i], "response": RESPONSE, "answer": "happy", "order": ["video", "audio"]}
    for i in range(3)
]


JUDGEMENTS = [{"clip_id": f"c{i}", "judge": "j", "emotion": "happy", "emotion_hidden": "sad"} for i in range(3)]


IMPORTANCE = [
    {"clip_id": f"c{i}", "importance": {"video": 0.7, "audio": 0.3}, "dominant": "video", "margin": 0.4}
    for i in range(3)
]


TARGETS = [{"clip_id": f"c{i}", "prompt": "Which?", "target": RESPONSE, "modalities": ["video"]} for i in range(3)]


TURNS = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": RESPONSE}]


SEGMENTS = [{"clip_id": f"c{i}", "segments": {"video": "He smiles."}, "conclusion": "So.", "by": "x"} for i in range(3)]


LABEL_RECORD = DFEW.as_record()


RECORD = {"media": {"fps": 2.0, "max_frames": 8}, "labels": LABEL_RECORD, "prompt": "Which?", "reward_judge": None}


MEDIA = {f"c{i}.mp4": b"x" for i in range(3)}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def document(value):
    return json.dumps(value).encode()


def table(rows, delimiter=","):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows(rows)
    return out.getvalue().encode()


def workbook(rows):
    book, out = Workbook(), io.BytesIO()
    for row in rows:
        book.active.append(row)
    book.save(out)
    return out.getvalue()


def later(module, name):
    """A function that is imported when it is called: what needs torch is not loaded for what does not."""

    def call(*args, **options):
        import importlib

        if module.startswith(("migr.omni", "migr.training", "migr.importance", "migr.rollout")):
            importlib.import_module("migr.omni")
        return getattr(importlib.import_module(module), name)(*args, **options)

    return call


def reader(file, content, kind, read, beside=None):
    return lambda: Reader(file, content() if callable(content) else content, kind, read, _made(beside))


def _made(beside):
    return beside() if callable(beside) else dict(beside or {})


MANIFEST = {**MEDIA, "clips.jsonl": lines(CLIPS)}


RUN = {
    "predictions.jsonl": lines(PREDICTIONS),
    "judgements.jsonl": lines(JUDGEMENTS),
    "importance.jsonl": lines(IMPORTANCE),
}
