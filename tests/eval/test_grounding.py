"""Grounding: gains on a trained tiny model, nothing for a clip against itself, answers behind another's reasoning."""

import math
import random

import pytest

from eval.figures.evidence import Donors, answers, gains, measure, spans_of
from eval.grounding import main
from migr.clips.manifest import read_clips
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.planted.truth import segment_truth
from migr.planted.wording import CUES
from migr.text.format import parse
from migr.text.labels import DFEW, label_set

MEDIA_FLAGS = ["--max_frames", "4", "--max_pixels", "3136"]


@pytest.fixture(scope="module")
def given(planted_run, tmp_path_factory):
    """What the trained model learned by heart, as predictions: eight clips, one without the format."""
    path = tmp_path_factory.mktemp("grounding") / "predictions.jsonl"
    rows = [
        {"clip_id": row["clip_id"], "label": row["label"], "response": row["target"]}
        for row in read_jsonl(planted_run.targets)[:8]
    ]
    rows[3]["response"] = "no format at all"
    write_jsonl(path, rows)
    return path


@pytest.fixture(scope="module")
def flags(planted_run, warm_model, given):
    files = {"predictions": given, "clips": planted_run.clips, "model": warm_model, "cache_dir": planted_run.cache}
    return [
        *(word for name, path in files.items() for word in (f"--{name}", str(path))),
        *("--engine", "transformers", "--batch_size", "6", "--resamples", "50", *MEDIA_FLAGS),
    ]


@pytest.fixture(scope="module")
def opened(flags):
    """Engine, question and clips."""
    from eval.grounding import arguments
    from eval.run import predict
    from migr.engine import open_engine

    _, settings = arguments([*flags, "--out", "nowhere"])
    with open_engine(settings.model, "transformers", max_new_tokens=1, batch_size=6) as engine:
        clips = {clip.clip_id: clip for clip in read_clips(settings.clips, settings.labels)}
        yield engine, predict.asker(settings), clips


def test_segments_are_found_where_they_stand():
    text = "<think><audio> It is low. </audio><video>It is low.</video>So sad.</think><answer>sad</answer>"
    spans = spans_of(parse(text))
    assert [(m, text[a:b]) for m, a, b in spans] == [("audio", "It is low."), ("video", "It is low.")]
    assert spans[1][1] > text.index("<video>")
    free = "<think>It is late. Her voice trembles. The eyes are wide!</think><answer>fear</answer>"
    assert [(m, free[a:b].strip()) for m, a, b in spans_of(parse(free))] == [
        ("audio", "Her voice trembles."),
        ("video", "The eyes are wide!"),
    ]
    assert spans_of(parse("no reasoning")) == [] and spans_of(parse("<think>Who knows.</think>")) == []


def test_a_clip_against_itself_gains_exactly_nothing_and_against_others_something(opened, given):
    engine, ask, clips = opened
    rows = [row for row in read_jsonl(given) if "<think>" in row["response"]][:4]
    pairs = [(clips[row["clip_id"]], row["response"]) for row in rows]
    same = gains(engine, ask, pairs, lambda clip, modality: clip)
    others = dict(zip([clip.clip_id for clip, _ in pairs], [clip for clip, _ in pairs[1:] + pairs[:1]], strict=True))
    swapped = gains(engine, ask, pairs, lambda clip, modality: others[clip.clip_id])
    found = []
    for clip, response in pairs:
        assert [s["modality"] for s in same[clip.clip_id]] == [span[0] for span in spans_of(parse(response))]
        for one, other in zip(same[clip.clip_id], swapped[clip.clip_id], strict=True):
            assert one["other"] == 0.0
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4) and one["logprob"] < 0
            assert one["tokens"] > 2 and math.isfinite(one["blank"]) and math.isfinite(other["other"])
            found += [abs(one["blank"]), abs(other["other"])]
    assert max(found) > 1e-2, "the trained model looks at its clips"
    assert gains(engine, ask, pairs[:1], lambda clip, modality: None)[rows[0]["clip_id"]][0]["other"] is None


def test_a_segment_about_what_the_clip_lacks_is_not_scored(opened, given):
    from dataclasses import replace

    engine, ask, clips = opened
    row = read_jsonl(given)[0]
    clip = replace(clips[row["clip_id"]], has_audio=False)
    (segments,) = gains(engine, ask, [(clip, row["response"])], lambda clip, modality: None).values()
    assert [segment["modality"] for segment in segments] == ["video"]
    assert gains(engine, ask, [(clip, "<think>Who knows.</think>")], lambda *_: None) == {clip.clip_id: []}


def test_the_answer_behind_a_reasoning_is_a_label_and_depends_on_it_alone(opened, given):
    engine, ask, clips = opened
    rows = [row for row in read_jsonl(given) if "<think>" in row["response"]]
    thinks = [row["response"].partition("<think>")[2].partition("</think>")[0] for row in rows]
    clip = clips[rows[0]["clip_id"]]
    read = [answers(engine, ask, [(clip, thinks[0], think)], label_set("dfew"))[clip.clip_id] for think in thinks]
    assert len({own for own, _ in read}) == 1 and read[0][0] == read[0][1]
    assert {other for _, other in read} <= set(DFEW)


def test_donors_have_another_label_or_answer_and_never_change(planted_run, given):
    labels = label_set("dfew")
    rows = read_jsonl(given)
    clips = {c.clip_id: c for c in read_clips(planted_run.clips, labels) if c.clip_id in {r["clip_id"] for r in rows}}
    donors = Donors(rows, clips, labels, 0)
    for row in rows:
        lender = donors.of_media(clips[row["clip_id"]], "video")
        assert lender.label != row["label"] and lender == donors.of_media(clips[row["clip_id"]], "video")
        name = donors.of_reasoning(row["clip_id"])
        if row["response"] == "no format at all":
            assert name is None
        else:
            assert donors.answers[name] not in (None, donors.answers[row["clip_id"]])


def test_the_command_goes_on_where_it_stopped_and_refuses_another_run(flags, tmp_path, capsys):
    whole = main([*flags, "--out", str(tmp_path / "whole")])
    main([*flags, "--out", str(tmp_path / "part"), "--limit", "3"])
    file = tmp_path / "part" / "grounding.jsonl"
    assert len(read_jsonl(file)) == 3
    file.write_bytes(file.read_bytes()[:-20])  # killed in the middle of a row
    part = main([*flags, "--out", str(tmp_path / "part")])
    capsys.readouterr()
    again = main([*flags, "--out", str(tmp_path / "part")])
    assert part == again and part["n"] == 8 and part["n_segments"] == 14
    rows, expected = read_jsonl(file), read_jsonl(tmp_path / "whole" / "grounding.jsonl")
    for row, other in zip(rows, expected, strict=True):
        assert {**row, "segments": 0} == {**other, "segments": 0}
        for one, two in zip(row["segments"], other["segments"], strict=True):
            assert one == pytest.approx(two, abs=1e-3)
    assert whole["answer_support"] == part["answer_support"] and part["answer_support"]["n"] == 7
    for modality in ("video", "audio"):
        for how in ("blank", "other"):
            figure = part["gain"][modality][how]
            low, high = figure["mean_ci95"]
            assert figure["n"] == 7 and low <= figure["mean"] <= high
    assert part["segment_truth"] == 1.0  # they are the planted descriptions
    assert read_json(tmp_path / "part" / "grounding.json") == part
    assert (tmp_path / "part" / "grounding.png").stat().st_size > 5000
    out = capsys.readouterr().out
    assert "audio swapped" in out and "behind another clip's reasoning (n 7)" in out
    with pytest.raises(InputError, match="another engine"):
        main([*flags, "--out", str(tmp_path / "part"), "--seed", "1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_id": "gone"}, "clip 'gone' is not in"),
        ({"response": None}, "response"),
        (None, "no predictions in it"),
    ],
)
def test_predictions_that_cannot_be_used_are_named(flags, given, tmp_path, change, message):
    rows = read_jsonl(given)[:1]
    write_jsonl(tmp_path / "predictions.jsonl", [rows[0] | change] if change else [])
    with pytest.raises(InputError, match=message):
        main([*flags, "--out", str(tmp_path / "out"), "--predictions", str(tmp_path / "predictions.jsonl")])
    assert not (tmp_path / "out").exists()


def segment(modality, blank, other, tokens=10):
    return {"modality": modality, "tokens": tokens, "logprob": -5.0, "blank": blank, "other": other}


def row(name, segments, behind=("sad", "sad"), other="happy"):
    own, answer = behind
    lent = {"reasoning_from": "x", "other_answer": other, "answer_behind_own": own, "answer_behind_other": answer}
    return {"clip_id": name, "segments": segments, **lent}


def test_the_figures_are_means_over_segments_with_intervals_over_clips():
    draw = random.Random(0)
    rows = [row(f"c{i}", [segment("video", draw.gauss(2, 1), None), segment("audio", 1.0, -1.0)]) for i in range(400)]
    rows += [row("d", [], behind=("sad", "happy")), row("e", []) | {"reasoning_from": None}]
    found = measure(rows, 1000, 0)
    video = found["gain"]["video"]["blank"]
    assert video["n"] == 400 and video["mean"] == pytest.approx(2, abs=0.15)
    low, high = video["mean_ci95"]
    assert 0.15 < high - low < 0.25 and low < video["mean"] < high  # 2 x 1.96 / sqrt(400)
    assert video["per_token"] == pytest.approx(video["mean"] / 10)
    assert found["gain"]["video"]["other"] == {
        "n": 0,
        **{key: None for name in ("mean", "per_token", "positive") for key in (name, f"{name}_ci95")},
    }
    audio = found["gain"]["audio"]
    assert audio["other"]["mean"] == -1 and audio["other"]["mean_ci95"] == [-1, -1] and audio["other"]["positive"] == 0
    support = found["answer_support"]
    assert support["n"] == 401 and support["stays"] == 400 / 401 and support["follows"] == 1 / 401
    assert measure([], 10, 0)["answer_support"] == {
        "n": 0,
        **{key: None for name in ("stays", "follows") for key in (name, f"{name}_ci95")},
    }


def test_segment_truth_counts_what_the_dominant_modality_shows(tmp_path):
    cue = {emotion: cues[0][0][0] for emotion, cues in CUES["audio"].items()}
    clips = [
        {"clip_id": name, "planted": {"dominant": "audio", "shown": {"audio": "sad", "video": "happy"}}}
        for name in "abc"
    ]
    texts = [f"<audio>{cue['sad']}</audio>", f"<audio>{cue['angry']}</audio><video>x</video>", "<video>none</video>"]
    write_jsonl(tmp_path / "clips.jsonl", clips)
    rows = [
        {"clip_id": name, "label": "sad", "response": f"<think>{text}</think><answer>sad</answer>"}
        for name, text in zip("abc", texts, strict=True)
    ]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    found = segment_truth(tmp_path / "predictions.jsonl", tmp_path / "clips.jsonl")
    assert found == {"segment_truth": 0.5, "segment_truth_n": 2}
    for planted in ({"dominant": "audio"}, {"dominant": "audio", "shown": {"video": "sad"}}):
        write_jsonl(tmp_path / "clips.jsonl", [{"clip_id": name, "planted": planted} for name in "abc"])
        counts = segment_truth(tmp_path / "predictions.jsonl", tmp_path / "clips.jsonl")
        assert counts == {"segment_truth": None, "segment_truth_n": 0}, "nothing is known of what it shows"
    write_jsonl(tmp_path / "clips.jsonl", [{"clip_id": name, "planted": {"shown": []}} for name in "abc"])
    with pytest.raises(InputError, match=r"clips\.jsonl: clip 'a': planted\.shown"):
        segment_truth(tmp_path / "predictions.jsonl", tmp_path / "clips.jsonl")
    write_jsonl(tmp_path / "clips.jsonl", [{"clip_id": name} for name in "abc"])
    assert segment_truth(tmp_path / "predictions.jsonl", tmp_path / "clips.jsonl") == {}
