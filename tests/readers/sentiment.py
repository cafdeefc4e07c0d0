"""The feature files, tables and results of the sentiment field."""

import pickle
from pathlib import Path

import numpy as np

from readers.content import (
    document,
    later,
    reader,
)


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


MELD = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    + "".join(f'{i},"Well, no.",Joey,joy,positive,{i},0,1,1,"00:00:0{i},100","00:00:0{i},900"\n' for i in range(3))
)


CHERMA = [
    {"audio_file": f"a/{i}.wav", "video_file": f"{i}.mp4", "video_label": "高兴", "txt_label": "悲伤"} for i in range(3)
]


READERS = {
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
}
