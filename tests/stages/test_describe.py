"""Descriptions of each modality by itself: no sound with the frames, no frames with the sound, marks, resume."""

import shutil
from types import SimpleNamespace

import pytest

from migr.clips.manifest import Clip
from migr.engine import Generation
from migr.errors import InputError
from migr.files.claim import record_of
from migr.files.records import read_jsonl, write_jsonl
from migr.text.labels import label_set
from stages.describe import emotions_in, row_of
from tests.conftest import MEDIA

DFEW = label_set("dfew")


@pytest.fixture(scope="module")
def described(planted_run, warm_model, stage, tmp_path_factory):
    """Five planted clips, described by the tiny model; the first without sound, the second with a transcript."""
    out = tmp_path_factory.mktemp("described")
    rows = read_jsonl(planted_run.clips)[:5]
    rows[0]["has_audio"] = False
    rows[1]["transcript"] = " I never said that. "
    rows[2]["label"] = None
    for row in rows:
        row["path"] = str((planted_run.clips.parent / row["path"]).relative_to(planted_run.folder))
    write_jsonl(planted_run.folder / "five.jsonl", rows)
    given = {"clips": planted_run.folder / "five.jsonl", "model": warm_model, "split": "all", **MEDIA}
    given |= {"max_new_tokens": 24, "engine": "transformers", "cache_dir": planted_run.cache}
    stage("describe", **given, out=out / "reasoning.jsonl")
    return SimpleNamespace(
        given=given, out=out / "reasoning.jsonl", rows=read_jsonl(out / "reasoning.jsonl"), clips=rows
    )


def test_each_present_modality_is_described_once_and_a_transcript_goes_through(described):
    assert [row["clip_id"] for row in described.rows] == [clip["clip_id"] for clip in described.clips]
    told = [set(row["segments"]) | set(row.get("unusable", {})) for row in described.rows]
    assert told == [{"video"}, {"video", "audio", "text"}, *[{"video", "audio"}] * 3]
    assert described.rows[1]["segments"]["text"] == "I never said that."
    assert "names_other" not in described.rows[2]  # it has no label
    assert len({row["by"] for row in described.rows}) == 1


def test_a_modality_is_described_from_its_own_stream_alone(described, stage, tmp_path, monkeypatch):
    from migr import engine

    seen = {}
    opened = engine.open_engine

    def watched(*args, **options):
        found = opened(*args, **options)
        generate = found.generate

        def looking(requests):
            def pass_on():
                for request in requests:
                    seen[request.key] = request
                    yield request

            return generate(pass_on())

        found.generate = looking
        return found

    monkeypatch.setattr(engine, "open_engine", watched)
    stage("describe", **described.given, limit=2, out=tmp_path / "r.jsonl")
    first, second = (clip["clip_id"] for clip in described.clips[:2])
    assert list(seen) == [f"{first} (video)", f"{second} (video)", f"{second} (audio)"]
    video, audio = seen[f"{second} (video)"], seen[f"{second} (audio)"]
    assert video.media.frames is not None and video.media.waveform is None and "face" in video.prompt
    assert audio.media.frames is None and audio.media.waveform is not None and "voice" in audio.prompt
    assert not any(label in request.prompt for request in seen.values() for label in DFEW.labels)
    assert read_jsonl(tmp_path / "r.jsonl") == described.rows[:2]


def test_an_interrupted_run_goes_on_and_another_model_or_question_may_not(described, stage, tmp_path, capsys):
    out = tmp_path / "reasoning.jsonl"
    lines = described.out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:30])
    shutil.copy(record_of(described.out, True), record_of(out, True))
    stage("describe", **described.given, out=out)
    assert "5 clips, 2 of them now" in capsys.readouterr().out
    assert [row["clip_id"] for row in read_jsonl(out)] == [row["clip_id"] for row in described.rows]
    stage("describe", **described.given, out=out)
    assert "0 of them now" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"with another ask\.audio \(Describe .*, now What .*\)"):
        stage("describe", **described.given, ask_audio="What do you hear?", out=out)


def said(**texts):
    return {modality: Generation("x", text, (1,), finished="…" not in text) for modality, text in texts.items()}


def test_what_names_another_emotion_is_cut_or_cannot_be_read_is_marked_and_kept():
    clip = Clip("a", None, "sad", "train", extra={"transcript": ""})
    row = row_of(clip, said(video="A happy, joyful  face.\n", audio="An angry or sad voice…"), "m", DFEW)
    assert row["segments"] == {"video": "A happy, joyful face.", "audio": "An angry or sad voice…"}
    assert row["names_other"] == {"video": ["happy"], "audio": ["angry"]} and row["cut"] == ["audio"]
    assert row["conclusion"] == "The evidence is in the video and the audio." and row["by"] == "m"
    row = row_of(clip, said(video=" ", audio="A <video> voice"), "m", DFEW)
    assert row["segments"] == {} and row["unusable"] == {"video": "", "audio": "A <video> voice"}
    assert row["conclusion"] == "" and "names_other" not in row
    assert "names_other" not in row_of(clip, said(video="A sorrowful face."), "m", DFEW)
    assert emotions_in("Surprised? Unhappy, happier, and in a rage.", DFEW) == ["sad", "angry", "surprise"]
    assert emotions_in(row_of(clip, said(video="x", audio="y"), "m", DFEW)["conclusion"], DFEW) == []


def test_descriptions_become_targets(described, stage, tmp_path):
    rows = [row for row in described.clips if row["label"]]
    write_jsonl(described.given["clips"].with_name("four.jsonl"), rows)
    stage(
        "targets",
        clips=described.given["clips"].with_name("four.jsonl"),
        reasoning=described.out,
        order="audio-first",
        leave_out="unassigned",
        split=rows[0]["split"],
        out=tmp_path / "targets.jsonl",
    )
    targets = read_jsonl(tmp_path / "targets.jsonl")
    assert targets and all(row["target"].endswith(f"<answer>{row['label']}</answer>") for row in targets)
