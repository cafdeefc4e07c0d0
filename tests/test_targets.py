"""Targets: the reasoning's segments in the order that was asked for, and a clear word where that cannot be."""

import pytest

from migr.clips import Clip
from migr.emotions import DFEW
from migr.errors import InputError
from migr.omni.prompt import question
from migr.reasoning import parse
from migr.records import read_jsonl, write_jsonl
from stages.targets import order_of

SEGMENTS = {"video": "The face shows a broad smile.", "audio": "The voice has a singing tone."}


class Files:
    def __init__(self, folder):
        self.folder, self.out = folder, folder / "targets.jsonl"
        self.clips = [{"clip_id": n, "path": f"{n}.mp4", "label": "happy", "split": "train"} for n in "ab"]
        self.reasoning = [{"clip_id": n, "segments": dict(SEGMENTS), "conclusion": "So it is."} for n in "ab"]
        weights = {"a": {"video": 0.3, "audio": 0.7}, "b": {"video": 0.6, "audio": 0.4}}
        self.importance = [{"clip_id": name, "importance": weights[name]} for name in "ab"]

    def given(self):
        """Write the three files; returns them as arguments of the stage."""
        paths = {name: self.folder / f"{name}.jsonl" for name in ("clips", "reasoning", "importance")}
        for name, path in paths.items():
            write_jsonl(path, getattr(self, name))
        return paths


@pytest.fixture
def files(tmp_path):
    """A folder with two clips, their reasoning and their importances, as rows that a test may spoil before writing."""
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    return Files(tmp_path)


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("dominant-first", ["audio", "video"]),
        ("video-first", ["video", "video"]),
        ("audio-first", ["audio", "audio"]),
    ],
)
def test_each_order_starts_with_its_modality_and_ends_with_conclusion_and_label(stage, files, order, first):
    stage("targets", **files.given(), order=order, out=files.out)
    rows = read_jsonl(files.out, ["clip_id", "prompt", "target", "order", "label"])
    assert [row["clip_id"] for row in rows] == ["a", "b"] and {row["prompt"] for row in rows} == {question(DFEW)}
    for row, modality in zip(rows, first, strict=True):
        response = parse(row["target"])
        assert response.error is None and response.answer == "happy"
        assert response.reasoning.conclusion == "So it is." and dict(response.reasoning.segments) == SEGMENTS
        assert list(response.reasoning.order) == row["order"] and row["order"][0] == modality


def test_the_fixed_orders_need_no_importance_and_dominant_first_does(stage, files):
    given = files.given()
    del given["importance"]
    stage("targets", **given, order="audio-first", out=files.out)
    assert len(read_jsonl(files.out)) == 2
    with pytest.raises(InputError, match="dominant-first needs --importance"):
        stage("targets", **given, order="dominant-first", out=files.out)


def test_a_segment_without_importance_comes_last_and_a_tie_keeps_the_order_of_the_file():
    clip = Clip("a", None, "happy", "train")
    three = {"text": "It says so.", **SEGMENTS}
    assert order_of(clip, three, "dominant-first", {"video": 0.4, "audio": 0.6}) == ["audio", "video", "text"]
    assert order_of(clip, SEGMENTS, "dominant-first", {"audio": 0.5, "video": 0.5}) == ["video", "audio"]
    assert order_of(clip, {"audio": "x"}, "video-first", None) == ["audio"]


def test_a_clip_of_another_split_is_left_out(stage, files):
    files.clips[1]["split"] = "test"
    stage("targets", **files.given(), out=files.out)
    assert [row["clip_id"] for row in read_jsonl(files.out)] == ["a"]


def spoil(name, index, **changes):
    return lambda files: getattr(files, name)[index].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.importance.pop(), "clip b has no importance"),
        (lambda files: files.reasoning.pop(), "no reasoning for clip b"),
        (lambda files: files.reasoning.append(files.reasoning[0]), "'a' stands there twice"),
        (lambda files: files.reasoning[1].pop("segments"), r"reasoning.jsonl:2: missing 'segments'"),
        (spoil("clips", 1, label=None), "clip b has no label"),
        (spoil("clips", 1, label="smug"), "clip 'b': label 'smug' is not one of happy"),
        (spoil("reasoning", 1, segments={"video": "A <audio> tag.", "audio": "x"}), "clip b: .*cannot be read back"),
        (spoil("reasoning", 1, segments={"video": " ", "audio": "x"}), "clip b: .*<video> is empty"),
        (spoil("reasoning", 1, segments={"smell": "Roses."}), "clip b: .*cannot be read back"),
        (spoil("reasoning", 1, segments=["A smile."]), "clip b: segments must be"),
        (spoil("reasoning", 1, segments={"video": None}), "clip b: segments must be"),
        (spoil("reasoning", 1, conclusion="So.</think>"), "clip b: .*cannot be read back"),
        (spoil("importance", 1, importance=[0.4, 0.6]), "clip b: importance must be"),
        (spoil("importance", 1, importance={"video": None}), "clip b: importance must be"),
    ],
)
def test_what_cannot_be_a_target_is_named_with_file_and_clip_and_nothing_is_written(stage, files, change, message):
    change(files)
    with pytest.raises(InputError, match=message):
        stage("targets", **files.given(), order="dominant-first", out=files.out)
    assert not files.out.exists()


def test_an_unknown_order_is_named_with_those_there_are(stage, files):
    with pytest.raises(InputError, match="'loudest-first' is not one of dominant-first, video-first, audio-first"):
        stage("targets", **files.given(), order="loudest-first", out=files.out)


def test_planted_targets_start_with_the_planted_modality(planted_run):
    truth = {row["clip_id"]: row["planted"]["dominant"] for row in read_jsonl(planted_run.clips)}
    rows = read_jsonl(planted_run.targets)
    assert len(rows) == 28 and all(row["order"][0] == truth[row["clip_id"]] for row in rows)
