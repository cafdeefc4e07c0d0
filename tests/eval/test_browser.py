import json
import wave
from urllib.parse import unquote

import numpy as np
import pytest

from eval.figures.codes import MISSING
from eval.figures.metrics import measure
from eval.figures.tally import read_lacking, read_predictions
from eval.page import browser
from eval.page.browser import CELLS, LONGEST_REASONING, Run, collect, judged_confusion, parts_of, transitions
from migr.errors import InputError
from migr.files.records import write_jsonl
from migr.page import clean
from migr.text.format import parse
from migr.text.labels import DFEW, label_set

LABELS = label_set("dfew")


def prediction(name="c", label="sad", answer="sad", think="<video>A frown.</video> So sad."):
    return {"clip_id": name, "label": label, "response": f"<think>{think}</think><answer>{answer}</answer>"}


def run(predictions, name="run", n=None, **files):
    return Run(name, {"n": len(predictions) if n is None else n}, LABELS, predictions, **files)


def test_the_cells_are_those_of_the_figures(tmp_path):
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 7, 500)] + [rng.integers(MISSING, 7, 500) for _ in range(2)]
    metrics = measure(*columns, DFEW, resamples=10)
    names = [[DFEW[i] if i >= 0 else None for i in column] for column in columns]
    predictions = [
        prediction(str(i), label, answer or "?") for i, (label, answer, _) in enumerate(zip(*names, strict=True))
    ]
    judged = tmp_path / "judged.jsonl"
    write_jsonl(judged, [{"clip_id": str(i), "emotion": emotion} for i, emotion in enumerate(names[2])])
    rows = collect([Run("run", metrics, LABELS, predictions, judged)], tmp_path / "page.html")
    cells = [row["runs"][0]["cell"] for row in rows.clips]
    assert rows.complete and {cell: cells.count(cell) for cell in CELLS[:4]} == metrics["cells"]
    assert cells.count("unparseable") == metrics["n_unparseable"]
    assert sum(cell.endswith("not_judged") for cell in cells) == metrics["n_judge_failed"]
    confusion = judged_confusion(rows, 0, DFEW)
    assert np.diag(confusion["counts"]).sum() == (columns[0] == columns[2]).sum()
    assert np.sum(confusion["counts"]) == 500
    assert [row[-1] for row in confusion["counts"]] == [((columns[0] == i) & (columns[2] < 0)).sum() for i in range(7)]


def test_two_runs_meet_on_their_common_clips(tmp_path):
    first = run([prediction("a"), prediction("b"), prediction("only")])
    second = run([prediction("b", answer="angry"), prediction("a")])
    rows = collect([first, second], tmp_path / "page.html")
    assert [row["id"] for row in rows.clips] == ["a", "b", "only"] and rows.clips[2]["runs"][1] is None
    moved = transitions(rows, 0, 1)
    here, there = CELLS.index("right_not_judged"), CELLS.index("wrong_not_judged")
    assert moved[here][there] == moved[here][here] == 1 and sum(map(sum, moved)) == 2
    with pytest.raises(InputError, match="'a' has label 'happy' here and 'sad' in another run"):
        collect([first, run([prediction("a", label="happy")])], tmp_path / "page.html")


def test_reasoning_is_taken_apart_by_modality():
    tagged = "<think><audio>A sob.</audio><video>Tears.</video> So sad.</think><answer>sad</answer>"
    assert parts_of(parse(tagged)) == [("audio", "A sob."), ("video", "Tears."), (None, "So sad.")]
    free = (
        "<think>The face is tense. His eyes are wide! The voice trembles. So it is fear.</think><answer>fear</answer>"
    )
    parts = parts_of(parse(free))
    assert parts[0] == ("video", "The face is tense. His eyes are wide!") and parts[1][0] == "audio"
    assert parts[-1] == (None, "So it is fear.")
    assert parts_of(parse(" nothing of the kind ")) == [(None, "nothing of the kind")]


def test_a_response_without_an_answer_is_shown_as_it_stands(tmp_path):
    cut = {"clip_id": "cut", "label": "sad", "response": "<think><video>Tears.</video></think><answ"}
    rows = collect([run([cut, prediction("odd", answer="sad or angry")])], tmp_path / "page.html").clips
    assert rows[0]["runs"][0]["parts"] == [("video", "Tears.")] and rows[0]["runs"][0]["raw"] == "<answ"
    assert rows[1]["runs"][0]["raw"] == "sad or angry" and rows[1]["runs"][0]["parts"][0] == ("video", "A frown.")


def test_long_text_is_cut_and_its_length_told(tmp_path):
    rows = collect([run([prediction(think="<b>" * 350_000)])], tmp_path / "page.html").clips
    text = json.dumps(rows)
    assert len(text) < LONGEST_REASONING + 1000 and "characters)" in text
    many = "".join(f"<video>{'x' * 3000}</video>" for _ in range(50))
    parts = collect([run([prediction(think=many)])], tmp_path / "page.html").clips[0]["runs"][0]["parts"]
    assert sum(len(text) for _, text in parts) < LONGEST_REASONING + 100 and parts[-1] == (None, "…")


def test_harmful_characters_are_replaced_and_scripts_of_all_the_world_are_not():
    assert clean("a\x00\x1b\u202eb\ud800\u2066") == "a\ufffd\ufffd\ufffdb\ufffd\ufffd"
    for text in ("الوجه حزين", "می\u200cخواهم", "悲伤 🙂\u200d🔥", "line\n\ttab"):
        assert clean(text) == text


def test_clips_are_linked_relative_to_the_page_whatever_they_are_called(tmp_path):
    name = "a b#1 %41 é?'\".mp4"
    media = tmp_path / "data" / "clips" / name
    media.parent.mkdir(parents=True)
    with wave.open(str(media), "wb") as file:  # only what is video or sound is copied
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    (media.parent / "secret.mp4").write_text("no media")
    rows = [{"clip_id": "c", "path": f"clips/{name}", "label": "sad", "split": "test", "has_video": False}]
    rows += [{"clip_id": "d", "path": "clips/gone.mp4", "label": "sad", "split": "test"}]
    rows += [{"clip_id": "e", "path": "clips/secret.mp4", "label": "sad", "split": "test"}]
    manifest = tmp_path / "data" / "clips.jsonl"
    write_jsonl(manifest, rows)
    given = run([prediction("c"), prediction("d"), prediction("e")], clips=manifest)
    page = tmp_path / "out" / "page.html"
    linked, missing, _ = collect([given], page).clips
    assert (page.parent / unquote(linked["src"])).resolve() == media and not {"#", "?", " ", '"'} & set(linked["src"])
    assert linked["audio"] and not missing["audio"] and "src" not in missing and missing["missing"].endswith("gone.mp4")
    first, _, secret = collect([given], page, copy_clips=True).clips
    copied = first["src"]
    assert copied.startswith("page_files/") and (page.parent / copied).read_bytes() == media.read_bytes()
    assert "src" not in secret and secret["missing"].endswith("neither video nor sound")
    assert len(list((page.parent / "page_files").iterdir())) == 1


def test_a_very_long_run_is_shown_in_part_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "CLIPS_SHOWN", 10)

    def endless(label):
        yield from (prediction(str(i)) for i in range(10))
        yield prediction("last", label)
        raise AssertionError("the rest is not read")

    first, second = (Run(name, {"n": 1000}, LABELS, endless("sad")) for name in "ab")
    rows = collect([first, second], tmp_path / "page.html")
    assert len(rows.clips) == 10 and not rows.complete and judged_confusion(rows, 0, DFEW) is None
    assert collect([run([prediction(str(i)) for i in range(10)])], tmp_path / "page.html").complete


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"dominant": "smell"}, "dominant 'smell' is none of"),
        ({"dominant": "video", "importance": {"video": "much"}}, "importance must be .modality: number"),
        ({"dominant": "video", "importance": {"smell": 1}}, "importance of 'smell'"),
        ({"dominant": "video", "importance": {"video": True}}, "importance must be .modality: number"),
    ],
)
def test_wrong_importances_are_named(tmp_path, row, message):
    path = tmp_path / "importance.jsonl"
    path.write_text(json.dumps({"clip_id": "c", **row}) + "\n")
    with pytest.raises(InputError, match=f"clip 'c'.*{message}"):
        collect([run([prediction()], importance=path)], tmp_path / "page.html")


def test_evidence_from_a_modality_that_the_clip_lacks_is_marked_at_its_clip_as_often_as_it_is_counted(tmp_path):
    both, silent = "<audio>A sob.</audio><video>A frown.</video>", "<video>A frown. His voice trembles.</video>"
    predictions = [
        prediction("full", think=both),
        prediction("silent", think=both),
        prediction("inside", think=silent),
        prediction("honest", think="<video>A frown.</video> There is no sound."),
    ]
    rows = [
        {"clip_id": p["clip_id"], "path": f"{p['clip_id']}.mp4", "label": "sad", "split": "test"} for p in predictions
    ]
    write_jsonl(tmp_path / "clips.jsonl", [row | {"has_audio": row["clip_id"] == "full"} for row in rows])
    write_jsonl(tmp_path / "predictions.jsonl", predictions)
    shown = collect([run(predictions, clips=tmp_path / "clips.jsonl")], tmp_path / "page.html").clips
    marked = {row["id"]: row["runs"][0].get("absent") for row in shown}
    assert marked == {"full": None, "silent": ["audio"], "inside": ["audio"], "honest": None}
    lacking = read_lacking(tmp_path / "clips.jsonl", None)
    assert read_predictions(tmp_path / "predictions.jsonl", LABELS, lacking).absent_evidence == 2
    # importances name the modalities where no manifest does
    weights = {"audio": 0.4, "video": 0.6}
    importance = [
        {"clip_id": name, "dominant": "video", "importance": weights if name == "full" else {"video": 1.0}}
        for name in marked
    ]
    write_jsonl(tmp_path / "importance.jsonl", importance)
    again = collect([run(predictions, importance=tmp_path / "importance.jsonl")], tmp_path / "page.html").clips
    assert {row["id"]: row["runs"][0].get("absent") for row in again} == marked
    assert all("absent" not in row["runs"][0] for row in collect([run(predictions)], tmp_path / "page.html").clips)


def test_importances_come_with_their_clip(tmp_path):
    path = tmp_path / "importance.jsonl"
    write_jsonl(path, [{"clip_id": "c", "dominant": "audio", "importance": {"audio": 0.7, "video": 0.3}}])
    row = collect([run([prediction()], importance=path)], tmp_path / "page.html").clips[0]
    assert row["dominant"] == "audio" and list(row["importance"]) == ["video", "audio"]


def test_a_row_that_is_not_text_is_named(tmp_path):
    with pytest.raises(InputError, match="clip 'c': clip_id, label and response must be text"):
        collect([run([prediction() | {"response": 3}])], tmp_path / "page.html")
