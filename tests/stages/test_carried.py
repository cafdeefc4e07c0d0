"""Settings travel with what they made: a model's folder says how its clips are read, and what it was asked."""

from dataclasses import asdict

import pytest

import migr.omni  # noqa: F401  (first: mends the libraries' imports)
from eval.consistency import main, same_judge
from migr.clips.record import ModelRecord, find_labels, read_record
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_json, write_jsonl
from migr.omni.export import export
from migr.omni.prompt import question
from migr.omni.tiny import build_tiny
from migr.planted import clips as planted
from migr.settings import MediaSettings
from migr.text.labels import DFEW, label_set

MEDIA = MediaSettings(max_frames=4, max_pixels=3136)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three clips, and an export of a tiny model that was trained with few small frames and rewarded by the lexicon."""
    folder = tmp_path_factory.mktemp("carried")
    texts = [question(DFEW), "system\nYou are a helpful assistant.", "user\nassistant\n"] * 20
    build_tiny(folder / "model", texts)
    record = ModelRecord(asdict(MEDIA), label_set("dfew"), question(DFEW), "lexicon, emotion words hidden")
    record.write(folder / "model")
    export(folder / "model", folder / "export")
    rows = [
        {"clip_id": row["clip_id"], "path": f"clips/{row['clip_id']}.mp4", "label": row["label"], "split": "test"}
        for row in planted.make(folder, 0, {"train": 0, "val": 0, "test": 3})
    ]
    write_jsonl(folder / "clips.jsonl", rows)
    return folder


def evaluate(folder, out, *flags):
    argv = [
        "--clips",
        folder / "clips.jsonl",
        "--model",
        folder / "export",
        "--judge",
        "lexicon",
        "--out",
        folder / out,
    ]
    argv += ["--engine", "transformers", "--batch_size", "3", "--max_new_tokens", "8", "--resamples", "20"]
    return main([*map(str, argv), "--judge_check", "none", *flags])


def test_an_export_is_evaluated_as_it_was_trained_without_a_flag(folder, capsys):
    assert read_record(folder / "export").media == asdict(MEDIA)
    evaluate(folder, "plain")
    shown = capsys.readouterr()
    assert "note:" not in shown.err and "judge lexicon is the one that the model was rewarded by" in shown.out
    evaluate(folder, "flags", "--max_frames", "4", "--max_pixels", "3136")
    assert "note:" not in capsys.readouterr().err
    evaluate(folder, "other", "--max_frames", "8")
    assert f"note: max_frames is 8 here and 4 in {folder}/export/migr.json\n" in capsys.readouterr().err
    runs = {name: read_json(folder / name / "run.json") for name in ("plain", "flags", "other")}
    assert runs["plain"] == runs["flags"] and runs["plain"]["media"] == asdict(MEDIA)
    assert runs["other"]["media"]["max_frames"] == 8
    first, second = (read_jsonl(folder / name / "predictions.jsonl") for name in ("plain", "flags"))
    assert first == second


def test_another_judge_is_not_said_to_be_that_of_the_rewards(folder):
    assert same_judge("lexicon", "lexicon, emotion words hidden") and not same_judge("fitted-1", "lexicon")
    assert not same_judge("lexicon", None)


def test_labels_come_from_the_data_then_from_the_model(tmp_path):
    model = ModelRecord(asdict(MEDIA), label_set("mafw"))
    clips = tmp_path / "clips.jsonl"
    assert find_labels(None, clips).name == "dfew" and find_labels(None, clips, model=model).name == "mafw"
    write_json(tmp_path / "data.json", {"label_set": {"name": "own", "labels": ["calm", "tense"], "synonyms": {}}})
    assert find_labels(None, clips, model=model).labels == ("calm", "tense")
    assert find_labels("dfew", clips, model=model).name == "dfew"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"media": None}, "no record of a model"),
        ({"media": {"fps": "2"}}, "media: fps must be float, not '2'"),
        ({"labels": {"labels": ["one"]}}, "two or more words"),
        ({"prompt": 3}, "prompt must be text"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, change, message):
    values = ModelRecord(asdict(MEDIA), label_set("dfew")).as_json()
    write_json(tmp_path / "migr.json", values | change)
    with pytest.raises(InputError, match=message) as error:
        read_record(tmp_path)
    assert str(tmp_path / "migr.json") in str(error.value)


def test_a_checkpoint_is_described_by_its_run(tmp_path):
    ModelRecord(asdict(MEDIA), label_set("dfew")).write(tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    assert read_record(tmp_path / "checkpoint-3").media == asdict(MEDIA) and read_record(tmp_path / "elsewhere") is None
