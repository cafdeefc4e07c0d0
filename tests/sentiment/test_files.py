import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from migr.errors import InputError
from migr.sentiment.opcodes import read_pickle
from migr.sentiment.tables import mend
from stages.features import main
from tests.sentiment.files import planted


def write(path: Path, content, protocol=4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def features(path: Path, out: Path, source="mmsa", dataset="mosi", *more: str):
    main(["--source", source, "--file", str(path), "--set", dataset, "--out", str(out), *more])
    return json.loads((out / "data.json").read_text()), [json.loads(x) for x in (out / "clips.jsonl").open()]


def frames_of(out: Path, rows, split: str, modality: str) -> list[np.ndarray]:
    every = np.load(out / split / f"{modality}.npy", allow_pickle=False)
    own = np.cumsum([row["lengths"][modality] for row in rows if row["split"] == split])
    return np.split(every, own[:-1])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_the_reader_gives_is_what_was_written(tmp_path, protocol):
    rng = np.random.default_rng(protocol)
    columns = {
        "plain": rng.normal(size=(9, 30, 74)),
        "fortran": np.asfortranarray(rng.normal(size=(3, 30, 74)).astype("f4")),
        "turned": rng.normal(size=(40, 30, 7)).transpose(1, 2, 0),
        "swapped": rng.normal(size=(2, 3)).astype(">f8"),
        "strings": np.array(["ein Fall", "一个"]),
        "objects": np.array(["a", "bcd"], dtype=object),
        "bytes": np.array([[b"x", b"1.5"]]),
        "empty": np.zeros((0, 5)),
        "bools": np.array([True, False]),
    }
    scalars = [np.int64(3), np.float32(0.5), 2.25, 7, True, "text"]
    content, _ = read_pickle(write(tmp_path / "x.pkl", {"columns": columns, "scalars": scalars}, protocol))
    assert content["scalars"] == scalars
    for name, expected in columns.items():
        array = content["columns"][name]
        found = array.objects() if name == "objects" else array.numbers()
        assert np.array_equal(found, expected), name


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("aligned", [False, True])
def test_mmsa_files_come_out_as_they_went_in(tmp_path, protocol, aligned):
    table = planted(aligned=aligned)
    table["config"] = {"made by": "MMSA-FET"}
    audio = table["train"]["audio"]
    audio[3, 2, 1], audio[3, 3, 1], audio[4, 0, 0] = -np.inf, np.nan, 1e300
    audio[5] = 0.0  # no sound was found
    if not aligned:
        table["train"]["audio_lengths"][7] = 99
    data, rows = features(write(tmp_path / "x.pkl", table, protocol), tmp_path / "data")
    assert [row["clip_id"] for row in rows if row["split"] == "test"] == table["test"]["id"]
    assert np.allclose([row["score"] for row in rows if row["split"] == "valid"], table["valid"]["regression_labels"])
    assert "passed over: config (no split)" in data["report"]["notes"]
    facts = data["report"]["splits"]["train"]
    assert facts["grid"] == "fifths" and facts["clips"] == 40 and facts["published"] == 1284
    assert facts["audio"]["not_finite"] == 3 and facts["audio"]["empty_clips"] == 1
    assert facts["audio"]["longer_than_stored"] == (0 if aligned else 1)
    column = data["report"]["columns"]["audio"]["train"]
    assert (column[1]["-inf"], column[1]["nan"], column[0]["inf"]) == (1, 1, 1)
    own = frames_of(tmp_path / "data", rows, "train", "audio")
    length = int(table["train"]["text_bert"][0, 1].sum()) if aligned else table["train"]["audio_lengths"][0]
    assert np.array_equal(own[0], audio[0, :length].astype(np.float32))
    assert len(own[5]) == 0
    assert np.isnan(own[3][2, 1]) and np.isnan(own[3][3, 1]) and np.isnan(own[4][0, 0])
    median = np.nanmedian(np.concatenate(own), axis=0)
    assert np.allclose(data["scaling"]["audio"]["median"], median, atol=1e-5)


def test_both_layouts_of_text_bert_and_lists_for_arrays(tmp_path):
    table = planted(aligned=True)
    expected = features(write(tmp_path / "a.pkl", table), tmp_path / "a")[1]
    for columns in table.values():
        columns["text_bert"] = columns["text_bert"].transpose(0, 2, 1)  # the first DataPre
        columns["regression_labels"] = [np.float32(score) for score in columns["regression_labels"]]
        columns["raw_text"] = columns["raw_text"].tolist()
    assert features(write(tmp_path / "b.pkl", table), tmp_path / "b")[1] == expected


def test_sims_has_labels_of_its_modalities(tmp_path):
    table = planted(sims=True)
    _, rows = features(write(tmp_path / "x.pkl", table), tmp_path / "data", dataset="sims")
    assert np.isclose(rows[2]["scores"]["video"], table["train"]["regression_labels_V"][2])


def test_mse_adapters_lists(tmp_path):
    rng = np.random.default_rng(0)
    names = ("neutral", "joy", "anger")
    for split in ("train", "valid", "test"):
        rows = [
            {
                "label": names[i % 3],
                "features": {
                    "text": f"text {i}",
                    "audio": rng.normal(size=(9, 4)),
                    "video": rng.normal(size=(5, 3)).astype("f4"),
                    "audio_len": 4 + i % 3,
                    "video_len": 5,
                },
            }
            for i in range(6)
        ]
        write(tmp_path / f"meld_{split}.pkl", rows)
    data, rows = features(tmp_path / "meld_train.pkl", tmp_path / "data", "mse", "meld")
    assert data["dims"] == {"video": 3, "audio": 4}
    assert [row["lengths"]["audio"] for row in rows[:3]] == [4, 5, 6]
    assert rows[1]["label"] == "joy" and rows[1]["transcript"] == "text 1"
    rows = [
        {"label": "ennui", "features": {"text": "", "audio": np.ones((2, 4)), "video": np.ones((2, 3), "f4")}}
        for _ in range(3)
    ]
    write(tmp_path / "meld_test.pkl", rows)
    with pytest.raises(InputError, match=r"test_0.*ennui"):
        features(tmp_path / "meld_train.pkl", tmp_path / "data", "mse", "meld")


def test_mults_files(tmp_path):
    rng = np.random.default_rng(0)
    table = {}
    for split in ("train", "valid", "test"):
        audio = rng.normal(size=(4, 8, 5))
        audio[:, :3] = 0  # padded at the front
        table[split] = {
            "vision": rng.normal(size=(4, 6, 3)),
            "audio": audio,
            "text": rng.normal(size=(4, 7, 10)),
            "labels": rng.integers(-3, 4, (4, 1, 1)) * 1.0,
            "id": np.array([[b"vid", b"0.5", str(i).encode()] for i in range(4)]),
        }
    _, rows = features(write(tmp_path / "mosi_data.pkl", table, 2), tmp_path / "data", "mult")
    assert rows[1]["clip_id"] == "vid$_$0.5$_$1" and rows[0]["lengths"]["audio"] == 5
    with pytest.raises(InputError, match="--source mult"):
        features(tmp_path / "mosi_data.pkl", tmp_path / "data")


MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def meld(folder: Path) -> Path:
    rows = {
        "train": '1,"I\x92m fine, really",Ross,neutral,neutral,125,3,8,21,"00:16:16,059","00:16:21,731"',
        "dev": '1,None,Chandler,anger,negative,110,7,8,21,"00:16:16,059","00:16:16,059"',
        "test": '1,"She said ""no""",Joey,joy,positive,38,4,8,21,"00:16:16,059","00:21:21,059"',
    }
    for split, row in rows.items():
        text = f"{MELD_HEADER}\r\n{row}\r\n"
        (folder / f"{split}_sent_emo.csv").write_bytes(text.encode())
    return folder


def test_melds_tables_in_both_encodings(tmp_path):
    data, rows = features(meld(tmp_path), tmp_path / "data", "meld", "meld")
    assert [row["transcript"] for row in rows] == ["I\u2019m fine, really", "None", 'She said "no"']
    assert [row["clip_id"] for row in rows] == ["train/dia125_utt3", "valid/dia110_utt7", "test/dia38_utt4"]
    notes = " ".join(data["report"]["notes"])
    for part in ("no moov atom", "does not exist", "305.0 s", "0.0 s", "1 rows had cp1252"):
        assert part in notes
    assert mend("plain") == ("plain", 0)


def test_chermas_tables_with_features(tmp_path):
    for split in ("train", "dev", "test"):
        own = [
            {
                "audio_file": f"{split}{i}.wav",
                "video_file": f"{split}{i}.mp4",
                "txt_label": "平静",
                "video_label": "高兴",
            }
            for i in range(3)
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps(own, ensure_ascii=False), encoding="utf-8")
        for folder, end in (("text", ""), ("visual", ".mp4")):
            (tmp_path / folder / split).mkdir(parents=True)
            for i in range(3):
                np.save(tmp_path / folder / split / f"{split}{i}{end}.npy", np.ones((4, 6), np.float32))
    (tmp_path / "text/dev/dev1.npy").unlink()
    data, rows = features(tmp_path, tmp_path / "data", "cherma", "cherma", "--features", str(tmp_path))
    assert data["dims"] == {"text": 6, "video": 6} and rows[0]["labels"] == {"text": "平静"}
    assert data["report"]["splits"]["valid"]["text"]["empty_clips"] == 1
    np.save(tmp_path / "text/dev/dev1.npy", np.array(["object"], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"dev1\.npy"):
        features(tmp_path, tmp_path / "data", "cherma", "cherma", "--features", str(tmp_path))


class Call:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def array(shape: tuple[int, ...], content: bytes) -> bytes:
    """A numpy array as numpy writes it, but with this shape whatever the bytes say."""
    honest = np.frombuffer(content, np.uint8)
    dumped = pickle.dumps(honest, protocol=4)
    size = b"K" + bytes([len(honest)]) + b"\x85"
    assert size in dumped and len(shape) == 1
    return dumped.replace(size, b"\x8a\x08" + struct.pack("<q", shape[0]) + b"\x85")


def hostile(touched: Path) -> dict[str, bytes]:
    deep = b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b"."
    nested = b"\x80\x04)" + b"\x85" * 300_000 + b"."
    bomb = b"\x80\x04]\x94" + b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"l\x94" for i in range(40)) + b"."
    whole = pickle.dumps(planted((4, 2, 2)), protocol=4)
    fet = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n."
    return {
        "os.system": pickle.dumps({"train": Call(os.system, f"touch {touched}")}),
        "eval": pickle.dumps({"train": Call(eval, f"open({str(touched)!r}, 'w')")}),
        "getattr": pickle.dumps({"train": Call(getattr, "", "upper")}),
        "runstring": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(X\x01\x00\x00\x001}tR.",
        "newobj": b"\x80\x02cnumpy\ndtype\n)\x81.",
        "persistent": b"\x80\x02U\x01aQ.",
        "extension": b"\x80\x02\x82\x01.",
        "deep": deep,
        "nested": nested,
        "bomb": bomb,
        "objects": b"\x80\x04" + b"]" * 100_001,
        "lying text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc",
        "lying bytes": b"\x80\x04\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"abc",
        "long integer": b"\x80\x04\x8b" + struct.pack("<I", 1 << 30),
        "lying shape": array((1 << 50,), b"12345678"),
        "negative shape": array((-8,), b"12345678"),
        "truncated": whole[: len(whole) // 2],
        "tensors": fet,
        "zip": b"PK\x03\x04" + b"0" * 100,
        "empty": b"",
        "protocol 0": pickle.dumps({"train": 1}, protocol=0),
        "memo": b"\x80\x04h\x07.",
        "stack": b"\x80\x04\x85.",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }


def test_hostile_files_run_nothing_and_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("migr.sentiment.opcodes.MAX_OBJECTS", 100_000)
    touched = tmp_path / "touched"
    for name, content in hostile(touched).items():
        path = tmp_path / "x.pkl"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            features(path, tmp_path / "out")
        assert "\n" not in str(caught.value) and "x.pkl" in str(caught.value), name
        assert not touched.exists(), name
        assert not (tmp_path / "out").exists(), name


def test_hostile_files_say_what_they_wanted(tmp_path):
    content = hostile(tmp_path / "touched")
    for name, expected in (
        ("os.system", "posix.system|nt.system"),
        ("eval", "builtins.eval"),
        ("tensors", "MMSA-FET"),
        ("truncated", "cut off|longer than the file"),
        ("zip", "torch.save"),
        ("text", "Git LFS"),
    ):
        path = tmp_path / "x.pkl"
        path.write_bytes(content[name])
        with pytest.raises(InputError, match=expected):
            read_pickle(path)


def test_every_cut_of_a_file_is_one_line(tmp_path):
    whole = pickle.dumps(planted((3, 2, 2), shapes=dict.fromkeys(("text", "vision", "audio"), (3, 2))), protocol=2)
    path = tmp_path / "x.pkl"
    for end in range(2, len(whole) - 1, 41):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError):
            read_pickle(path)


def test_changed_bytes_give_data_or_one_line(tmp_path):
    whole = pickle.dumps(planted((3, 2, 2), shapes=dict.fromkeys(("text", "vision", "audio"), (3, 2))), protocol=4)
    rng, path = np.random.default_rng(0), tmp_path / "x.pkl"
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(2, len(whole), 3):
            changed[place] = rng.integers(256)
        path.write_bytes(bytes(changed))
        try:
            features(path, tmp_path / "out")
        except InputError as error:
            assert "\n" not in str(error)


def test_wrong_labels_and_folders_are_named(tmp_path):
    table = planted()
    table["test"]["regression_labels"][3] = 7
    path = write(tmp_path / "x.pkl", table)
    with pytest.raises(InputError, match=r"test: clip .*7.*±3"):
        features(path, tmp_path / "data")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    with pytest.raises(InputError, match="something else"):
        features(write(tmp_path / "y.pkl", planted()), tmp_path / "mine")
    assert (tmp_path / "mine" / "precious").exists()
    with pytest.raises(InputError, match="--set"):
        main(["--source", "mmsa", "--file", str(path), "--out", str(tmp_path / "data")])


@pytest.mark.slow
def test_two_gigabytes_in_flat_memory(tmp_path):
    """A MOSEI-like file of 2 GB: float64 audio and vision, protocol 4, one contiguous block each, as MMSA's."""
    path = tmp_path / "big.pkl"
    with path.open("wb") as file:
        pickler = pickle._Pickler(file, protocol=4)

        class Zeros:  # what numpy writes, but its bytes are written in pieces
            def __init__(self, shape):
                self.shape = shape

        def save(self, zeros):
            blank = np.zeros((0, *zeros.shape[1:]))
            call, args, state = blank.__reduce__()
            self.save_reduce(call, args, obj=None)
            self.write(pickle.MARK)
            for part in (state[0], zeros.shape, state[2], False):
                self.save(part)
            self.framer.commit_frame(force=True)
            size = int(np.prod(zeros.shape)) * 8
            self.framer.current_frame, frame = None, self.framer.current_frame
            file.write(pickle.BINBYTES8 + struct.pack("<Q", size))
            rng = np.random.default_rng(0)
            for _ in range(zeros.shape[0]):
                file.write(rng.normal(size=zeros.shape[1:]).tobytes())
            self.framer.current_frame = io.BytesIO() if frame is not None else None
            self.write(pickle.TUPLE + pickle.BUILD)

        pickler.dispatch = {**pickle._Pickler.dispatch, Zeros: save}
        table = {}
        for split, n in (("train", 3400), ("valid", 300), ("test", 700)):
            table[split] = {
                "audio": Zeros((n, 500, 74)),
                "vision": Zeros((n, 500, 35)),
                "audio_lengths": [250] * n,
                "vision_lengths": [250] * n,
                "regression_labels": np.linspace(-3, 3, n).astype("f4"),
                "id": [f"{split}{i}" for i in range(n)],
                "raw_text": [f"text {i}" for i in range(n)],
            }
        pickler.dump(table)
    assert path.stat().st_size > 1.9e9
    code = (
        "import sys; from migr.machine import peak_memory; from stages.features import main; main(sys.argv[1:]);"
        "print('peak', peak_memory() >> 20)"
    )
    command = [sys.executable, "-c", code, "--source", "mmsa", "--file", str(path), "--set", "mosei"]
    run = subprocess.run([*command, "--out", str(tmp_path / "d")], capture_output=True, text=True, check=True)
    print(run.stdout)
    assert int(run.stdout.split("peak ")[1]) < 300
