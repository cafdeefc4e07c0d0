"""All that reads files, each with a valid file of its kind: `READERS`."""

import csv
import io
import json
import pickle
import shutil
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
from fuzzing import Reader
from openpyxl import Workbook
from safetensors.numpy import save

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


TABLE = [
    ["path", "label", "split", "transcript"],
    *([f"c{i}.mp4", DFEW.labels[i], "train", "He says no."] for i in range(3)),
]
FOREIGN = [["video_name", "response", "label"], *([f"c{i}.mp4", RESPONSE, DFEW.labels[i]] for i in range(3))]


def convert(name, **options):
    def read(folder):
        predictions = later("migr.sources.predictions", "convert")
        reading = later("migr.sources.predictions", "Reading")(**options)
        reading.needed(folder / name)
        predictions(folder / name, folder / "out.jsonl", DFEW, reading)
        later("eval.figures.tally", "read_predictions")(folder / "out.jsonl", DFEW)

    return read


def tallied(folder):
    table = later("eval.figures.tally", "read_predictions")(folder / "predictions.jsonl", DFEW)
    later("eval.figures.tally", "read_judgements")(folder / "judgements.jsonl", DFEW, table)
    dominants = later("eval.figures.tally", "read_dominants")(folder / "importance.jsonl")
    later("eval.figures.tally", "add_dominants")(table, dominants)
    later("eval.figures.tally", "read_lacking")(None, folder / "importance.jsonl")
    names = ("labels", "answers", "judgements")
    columns = [getattr(table, name) for name in names]
    later("eval.figures.metrics", "measure")(*columns, DFEW.labels, table.first, table.dominants, 20, 0, table.hidden)


def page(folder):
    run = later("eval.page.browser", "run_of")(folder, "dfew")
    later("eval.report", "write_page")(folder / "page.html", [run])


def metrics():
    from array import array

    from eval.figures.metrics import measure

    columns = [array("h", [0, 1, 2])] * 3
    facts = measure(*columns, DFEW.labels, array("h", [0, 0, 0]), array("h", [0, 0, 0]), 20, 0, array("h", [0, 1, 2]))
    facts |= {
        "judge": {"name": "j", "accuracy": 0.9, "n": 10, "accuracy_ci95": [0.8, 1.0]},
        "unread_answers": {"calm": 2},
    }
    return facts | {"settings": {"labels": "dfew", "engine": "vllm"}, "synonyms": {"joy": "happy"}}


def claimed(folder):
    from migr.files.claim import claim

    claim(folder, {"model": "a", "media": {"fps": 2.0}}, [folder / "predictions.jsonl"])


def grown(folder):
    from migr.files.growing import Growing, Journal, ids_in, merge

    path = folder / "predictions.jsonl"
    ids_in([path])
    with Growing(path) as file:
        file.append({"clip_id": "new", "response": "x"})
    merge(path, ["c2", "c1"])
    with Journal(folder / "inflight.jsonl", set()):
        pass


def journal(folder):
    from migr.files.growing import Journal

    with Journal(folder / "inflight.jsonl", {"a"}) as known:
        known.give("b")
        known.died("x")


def probes(folder):
    from migr.sources.checking import Probes

    known = Probes(folder / "probes.jsonl", {"rate": None})
    known.find("/c0.mp4", [1, 2])


def probe_lines():
    from migr.files.records import digest
    from migr.sources.checking import VERSION

    facts = {"has_video": True, "duration": 1.5}
    by = digest({"rate": None}, VERSION)
    return lines({"key": f"/c{i}.mp4", "stamp": [1, 2], "by": by, "result": {"facts": facts}} for i in range(3))


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
    (found,) = known.judge(["a text"])
    assert isinstance(found, Judgement)


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


def targets(folder):
    from migr.files.records import read_jsonl

    read_clips = later("migr.clips.manifest", "read_clips")
    clips = {clip.clip_id: clip for clip in read_clips(folder / "clips.jsonl", DFEW)}
    rows = read_jsonl(folder / "targets.jsonl", ["clip_id", "prompt", "target"])
    if all(row["clip_id"] in clips for row in rows):
        later("migr.training.sft", "check_targets")(folder / "targets.jsonl", rows, clips)


def reasoned(name, form="auto"):
    def read(folder):
        from migr.clips.manifest import read_clips
        from migr.sources.reasoning import check, match, merge, read_reasoning

        clips = read_clips(folder / "clips.jsonl", DFEW)
        rows = read_reasoning(folder / name, form)
        for clip_id, row in merge([(folder / name, match(folder / name, rows, clips))]).items():
            check(row, clip_id)

    return read


def adapter(folder):
    later("migr.omni.adapters", "_read_config")(folder, True)


def model(folder):
    later("migr.omni.load", "check_model")(folder)
    list(later("migr.omni.load", "thinker_config")(folder).to_dict())


def resumed(folder):
    later("migr.training.runs", "last_complete")(folder)
    later("migr.training.runs", "begin")(folder, {"a": 1})


def fusion(folder):
    later("migr.importance.store", "load")(folder / "fusion.safetensors")


def fusion_files():
    import tempfile

    from migr.importance.store import build, save

    net = build("dual-gate", dims={"video": 4, "audio": 3}, n_classes=7)
    with tempfile.TemporaryDirectory() as name:
        save(net, Path(name) / "fusion.safetensors", labels=list(DFEW.labels))
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


def unpickled(source, name):
    def read(folder):
        from migr.sentiment.sets import sentiment_set

        dataset = sentiment_set("mosi" if source != "mse" else "meld")
        splits, _ = later("migr.sentiment.pickles", f"read_{source}")(folder / name, dataset)
        later("migr.sentiment.written", "write_data")(folder / "out", splits, dataset, {"source": source}, [])

    return read


def pickled():
    rng = np.random.default_rng(0)
    split = {
        "id": [f"v${i}" for i in range(4)],
        "raw_text": np.array([f"text {i}" for i in range(4)]),
        "audio": rng.normal(size=(4, 3, 2)),
        "vision": rng.normal(size=(4, 3, 2)).astype("f4"),
        "audio_lengths": [1, 2, 3, 3],
        "regression_labels": rng.integers(-3, 4, 4).astype(float),
        "labels": rng.integers(-3, 4, (4, 1, 1)).astype(float),
    }
    return pickle.dumps(dict.fromkeys(("train", "valid", "test"), split), protocol=2)


def sentiment(folder):
    data = later("migr.sentiment.data", "SentimentData")(folder)
    for split in data.splits.values():
        for modality in split.frames:
            for i in range(len(split)):
                split.clip_frames(i, modality)


def sentiment_files():
    import tempfile

    from migr.sentiment.pickles import read_mmsa
    from migr.sentiment.sets import sentiment_set
    from migr.sentiment.written import write_data

    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "x.pkl", Path(name) / "out"
        path.write_bytes(pickled())
        dataset = sentiment_set("mosi")
        write_data(out, read_mmsa(path, dataset)[0], dataset, {"source": "mmsa"}, [])
        return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def reported(name, dataset="mosi"):
    def read(folder):
        from migr.sentiment.sets import sentiment_set

        later("eval.figures.sentiment_runs", "read_run")(folder / name, sentiment_set(dataset), {"a": 1.0})

    return read


def meld(folder):
    from migr.sentiment.sets import sentiment_set

    later("migr.sentiment.tables", "read_meld")(folder, sentiment_set("meld"), None)


def cherma(folder):
    from migr.sentiment.sets import sentiment_set

    later("migr.sentiment.tables", "read_cherma")(folder, sentiment_set("cherma"), None)


@cache
def rollout_task():
    import tempfile

    name = Path(tempfile.mkdtemp()) / "tiny"
    processor = later("migr.omni.load", "load_processor")(
        later("migr.omni.tiny", "build_tiny")(name, ["Which emotion? happy or sad."] * 20)
    )
    inputs = later("migr.omni.inputs", "OmniInputs")(processor, later("migr.settings", "MediaSettings")())
    shutil.rmtree(name.parent)
    return later("migr.engine.task", "Task")(inputs, 64, 0.0, 0, 8, 4096)


def rollout_request():
    """Words and tensors of a message that asks for two draws of a clip."""
    task = rollout_task()
    rng = np.random.default_rng(0)
    frames, sound = rng.integers(0, 255, (4, 3, 56, 56), dtype=np.uint8), rng.standard_normal(8000).astype(np.float32)
    features = task.inputs.process(later("migr.clips.media", "Media")(frames, 2.0, sound, 0.5))
    prompt = later("migr.omni.prompt", "render_prompt")(task.inputs.processor, "Which?", True, True)
    ids = task.inputs.prompt_ids(prompt, features)
    words = {"settings": {}, "weights": "a", "prompts": [["m", ids]], "draws": [[0, 1], [0, None]]}
    return words, {f"m/{name}": tensor for name, tensor in features.items()}


def asked(folder):
    words, tensors = later("migr.rollout.protocol", "unpack")((folder / "message").read_bytes())
    list(later("migr.rollout.checking", "read_draws")(rollout_task(), words, tensors))


def worded(folder):
    from migr.files.records import read_json

    words = read_json(folder / "words")
    list(later("migr.rollout.checking", "read_draws")(rollout_task(), words, rollout_request()[1]))


MELD = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    + "".join(f'{i},"Well, no.",Joey,joy,positive,{i},0,1,1,"00:00:0{i},100","00:00:0{i},900"\n' for i in range(3))
)
CHERMA = [
    {"audio_file": f"a/{i}.wav", "video_file": f"{i}.mp4", "video_label": "高兴", "txt_label": "悲伤"} for i in range(3)
]
ADAPTER = {
    **{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.0, "bias": "none"},
    **{"task_type": "CAUSAL_LM", "base_model_name_or_path": None, "rank_pattern": {}, "alpha_pattern": {}},
}


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
LIGHT = {
    "labels": reader(
        "labels.txt",
        b"extends: dfew\nhappy: blissful\n# a remark\ncalm: quiet\n",
        "bytes",
        lambda f: label_set(str(f / "labels.txt")),
    ),
    "manifest": reader(
        "clips.jsonl",
        lines(CLIPS),
        "jsonl",
        lambda f: later("migr.clips.manifest", "read_clips")(f / "clips.jsonl", DFEW),
        MEDIA,
    ),
    "data.json": reader(
        "data.json",
        document({"root": ".", "label_set": LABEL_RECORD}),
        "json",
        lambda f: (
            later("migr.clips.record", "find_labels")(None, f / "clips.jsonl"),
            later("migr.clips.manifest", "read_clips")(f / "clips.jsonl", DFEW),
        ),
        MANIFEST,
    ),
    "migr.json": reader("migr.json", document(RECORD), "json", lambda f: later("migr.clips.record", "read_record")(f)),
    "importance": reader(
        "importance.jsonl",
        lines(IMPORTANCE),
        "jsonl",
        lambda f: later("migr.sources.importance", "read_importance")(f / "importance.jsonl"),
    ),
    "predictions": reader("predictions.jsonl", lines(PREDICTIONS), "jsonl", tallied, RUN),
    "judgements": reader("judgements.jsonl", lines(JUDGEMENTS), "jsonl", tallied, RUN),
    "dominants": reader("importance.jsonl", lines(IMPORTANCE), "jsonl", tallied, RUN),
    "labelled texts": reader(
        "texts.jsonl",
        lines({"text": "He smiles.", "emotion": "happy", "kind": "gold"} for _ in range(3)),
        "jsonl",
        lambda f: later("migr.judge.measure", "labelled_texts")(f / "texts.jsonl", DFEW),
    ),
    "metrics.json": reader("metrics.json", lambda: document(metrics()), "json", page, RUN),
    "page's predictions": reader(
        "predictions.jsonl", lines(PREDICTIONS), "jsonl", page, lambda: {**RUN, "metrics.json": document(metrics())}
    ),
    "page's importance": reader(
        "importance.jsonl", lines(IMPORTANCE), "jsonl", page, lambda: {**RUN, "metrics.json": document(metrics())}
    ),
    "compared run": reader(
        "metrics.json",
        lambda: document(metrics()),
        "json",
        lambda f: later("eval.compare", "read_side")(f, "a", "dfew", None),
        RUN,
    ),
    "run.json": reader(
        "run.json", document({"model": "a", "media": {"fps": 2.0}, "finished": True}), "json", claimed, RUN
    ),
    "grown": reader("predictions.jsonl", lines(PREDICTIONS), "jsonl", grown),
    "journal": reader(
        "inflight.jsonl",
        lines([{"clip_id": None, "deaths": {"a": ["x"]}, "oom_kills": 0}, {"clip_id": "a"}]),
        "jsonl",
        journal,
    ),
    "probes": reader("probes.jsonl", probe_lines, "jsonl", probes),
    "table csv": reader(
        "t.csv",
        table(TABLE),
        "bytes",
        lambda f: later("migr.sources.table", "read")([f / "t.csv"], f, DFEW, "train"),
        MEDIA,
    ),
    "table jsonl": reader(
        "t.jsonl",
        lines(CLIPS),
        "jsonl",
        lambda f: later("migr.sources.table", "read")([f / "t.jsonl"], f, DFEW, "train"),
        MEDIA,
    ),
    "table xlsx": reader(
        "t.xlsx",
        lambda: workbook(TABLE),
        "zip",
        lambda f: later("migr.sources.table", "read")([f / "t.xlsx"], f, DFEW, "train"),
        MEDIA,
    ),
    "dfew": reader(
        "EmoLabel_DataSplit/train(single-labeled)/set_1.csv",
        b"video_name,label\n1,1\n2,7\n",
        "bytes",
        lambda f: later("migr.sources.dfew", "read")(f, 1),
        {"Clip/original/1.mp4": b"x", "EmoLabel_DataSplit/test(single-labeled)/set_1.csv": b"video_name,label\n3,1\n"},
    ),
    "mafw": reader(
        "Train & Test Set/single/no_caption/set_1/train.txt",
        b"00001.mp4 happiness\n00002.mp4 sadness\n",
        "bytes",
        lambda f: later("migr.sources.mafw", "read")(f, 1),
        {"data/clips/00001.mp4": b"x", "Train & Test Set/single/no_caption/set_1/test.txt": b"00003.mp4 anger\n"},
    ),
    "foreign lines": reader(
        "a.txt",
        "".join(f"c{i}.mp4|{RESPONSE}\nmore\n" for i in range(3)).encode(),
        "bytes",
        lambda f: convert("a.txt", truth=f / "t.jsonl")(f),
        {"t.jsonl": lines({"clip_id": f"c{i}", "label": "happy"} for i in range(3))},
    ),
    "foreign json": reader(
        "a.json",
        document({"results": [{"id": f"c{i}", "output": RESPONSE, "gt": "happy"} for i in range(3)]}),
        "json",
        convert("a.json"),
    ),
    "foreign map": reader(
        "a.json", document({f"c{i}": {"text": RESPONSE, "label": "happy"} for i in range(3)}), "json", convert("a.json")
    ),
    "foreign conversations": reader(
        "a.json",
        document([{"video": f"c{i}.mp4", "conversations": TURNS, "label": "happy"} for i in range(3)]),
        "json",
        convert("a.json", format="conversations"),
    ),
    "foreign csv": reader("a.csv", table(FOREIGN, ";"), "bytes", convert("a.csv")),
    "foreign xlsx": reader("a.xlsx", lambda: workbook(FOREIGN), "zip", convert("a.xlsx")),
    "foreign jsonl": reader(
        "a.jsonl",
        lines(
            {"messages": [{"role": "assistant", "content": RESPONSE}], "videos": [f"a/c{i}.mp4"], "labels": "happy"}
            for i in range(3)
        ),
        "jsonl",
        convert("a.jsonl"),
    ),
    "truth words": reader(
        "t.txt",
        b"c0.mp4 happiness\nc1.mp4 sad\nc2.mp4 anger\n",
        "bytes",
        lambda f: convert("a.jsonl", truth=f / "t.txt", count_missing=True)(f),
        {"a.jsonl": lines({"id": f"c{i}", "text": RESPONSE} for i in range(3))},
    ),
    "truth json": reader(
        "t.json",
        document({f"c{i}": "happy" for i in range(3)}),
        "json",
        lambda f: convert("a.jsonl", truth=f / "t.json", by_order=True)(f),
        {"a.jsonl": lines({"text": RESPONSE} for _ in range(3))},
    ),
    "reasoning": reader("r.jsonl", lines(SEGMENTS), "jsonl", reasoned("r.jsonl"), MANIFEST),
    "reasoning conversations": reader(
        "r.json",
        document([{"video": f"c{i}.mp4", "conversations": TURNS} for i in range(3)]),
        "json",
        reasoned("r.json"),
        MANIFEST,
    ),
    "reasoning csv": reader(
        "r.csv",
        table([["name", "video", "audio"], *([f"c{i}.mp4", "He smiles.", "Calm."] for i in range(3))]),
        "bytes",
        reasoned("r.csv"),
        MANIFEST,
    ),
    "reasoning table": reader(
        "r.jsonl",
        lines({"name": f"c{i}", "video": "He smiles."} for i in range(3)),
        "jsonl",
        reasoned("r.jsonl", "table"),
        MANIFEST,
    ),
    "captions": reader(
        "r.txt", b"c0.mp4\tHe smiles.\nc1.mp4 She frowns.\n", "bytes", reasoned("r.txt", "captions"), MANIFEST
    ),
    "configuration": reader(
        "c.yaml",
        b"include: d.yaml\nseed: 1\nrewards: [format, accuracy]\nnested: {a: 1}\n",
        "bytes",
        lambda f: later("migr.cli", "read_config")(f / "c.yaml"),
        {"d.yaml": b"limit: 3\n"},
    ),
    "pipeline": reader(
        "p.txt",
        b"data --source dfew --fold {fold} --out {out}/clips\nsft --config x \\\n  --seed 1 # why\n",
        "bytes",
        lambda f: later("stages.folds", "commands")(f / "p.txt", {"fold": "1", "out": "o"}),
    ),
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
    "reward parameters": reader(
        "p",
        document({"format": {"a": 1}}),
        "json",
        lambda f: later("reward", "read_parameters")((f / "p").read_bytes().decode(errors="replace")),
    ),
    "mmsa pickle": reader("x.pkl", pickled, "bytes", unpickled("mmsa", "x.pkl")),
    "mult pickle": reader("x.pkl", pickled, "bytes", unpickled("mult", "x.pkl")),
    "mse pickle": reader(
        "m_test.pkl",
        lambda: pickle.dumps(
            [{"label": "joy", "features": {"text": "a", "audio": np.ones((2, 2)), "video": np.ones((2, 2))}}] * 3,
            protocol=4,
        ),
        "bytes",
        unpickled("mse", "m_test.pkl"),
        lambda: dict.fromkeys(
            ("m_train.pkl", "m_valid.pkl"),
            pickle.dumps(
                [{"label": "joy", "features": {"text": "a", "audio": np.ones((2, 2)), "video": np.ones((2, 2))}}] * 3
            ),
        ),
    ),
    "sentiment data.json": reader(
        "data.json", lambda: sentiment_files()["data.json"], "json", sentiment, sentiment_files
    ),
    "sentiment clips": reader(
        "clips.jsonl", lambda: sentiment_files()["clips.jsonl"], "jsonl", sentiment, sentiment_files
    ),
    "meld": reader(
        "train_sent_emo.csv",
        MELD.encode(),
        "bytes",
        meld,
        {"dev_sent_emo.csv": MELD.encode(), "test_sent_emo.csv": MELD.encode()},
    ),
    "cherma": reader(
        "train.json", document(CHERMA), "json", cherma, {"dev.json": document(CHERMA), "test.json": document(CHERMA)}
    ),
    "sentiment predictions": reader("p.csv", b"id,prediction,truth\na,0.5,1\nb,-1,0.2\n", "bytes", reported("p.csv")),
    "sentiment results": reader(
        "r.csv", b'Model,Has0_acc_2,MAE\nmult,"(81.1, 0.8)","(70.0, 1.5)"\n', "bytes", reported("r.csv")
    ),
    "kuda log": reader(
        "k.log", b"| Phase | MAE | Corr |\n| Valid | 0.7 | 0.8 |\n| Test | 0.7 | 0.8 |\n", "bytes", reported("k.log")
    ),
    "trainer's log": reader(
        "trainer_state.json",
        document({"log_history": [{"step": 1, "loss": 0.5, "rewards/format/mean": 0.1}]}),
        "json",
        lambda f: later("migr.training.history", "warnings")(later("migr.training.history", "read_history")(f)),
    ),
}
HEAVY = {
    "targets": reader("targets.jsonl", lines(TARGETS), "jsonl", targets, MANIFEST),
    "adapter_config.json": reader("adapter_config.json", document(ADAPTER), "json", adapter),
    "config.json": reader(
        "config.json",
        document(
            {
                "model_type": "qwen2_5_omni",
                "architectures": ["A"],
                "thinker_config": {"text_config": {"hidden_size": 64}, "audio_config": {}},
            }
        ),
        "json",
        model,
    ),
    "training's run.json": reader(
        "run.json", document({"run": {"a": 1, "processes": 1, "distributed": "NO"}, "trainer": {}}), "json", resumed
    ),
    "checkpoint's marker": reader(
        "checkpoint-2/complete", document({"a.bin": [1, 1739517911]}), "json", resumed, {"checkpoint-2/a.bin": b"x"}
    ),
    "rollout message": reader(
        "message", lambda: later("migr.rollout.protocol", "pack")(*rollout_request()), "bytes", asked
    ),
    "rollout words": reader("words", lambda: document(rollout_request()[0]), "json", worded),
    "processor's settings": reader(
        "preprocessor_config.json",
        document({"image_std": [0.5, 0.5, 0.5], "patch_size": 14, "n_fft": 400, "size": {"merge_size": 2}}),
        "json",
        lambda f: later("migr.omni.checks", "check_processor")(str(f)),
    ),
    "fusion.json": reader("fusion.json", lambda: fusion_files()["fusion.json"], "json", fusion, fusion_files),
    "fusion.safetensors": reader(
        "fusion.safetensors", lambda: fusion_files()["fusion.safetensors"], "bytes", fusion, fusion_files
    ),
}
READERS = {**LIGHT, **HEAVY}
