"""Targets: the reasoning's segments in the order that was asked for, and a clear word where that cannot be."""

import json

import pytest

from migr.clips.manifest import Clip
from migr.errors import InputError
from migr.files.records import read_jsonl, write_jsonl
from migr.omni.prompt import question
from migr.sources.reasoning import match, read_reasoning
from migr.sources.tables import names_of
from migr.text.format import parse
from migr.text.labels import DFEW
from stages.targets import CHOICES, order_of

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
        (spoil("importance", 1, importance=[0.4, 0.6]), "clip 'b': importance must be"),
        (spoil("importance", 1, importance={"video": None}), "clip 'b': importance must be"),
        (spoil("reasoning", 1, answer="sad"), "answers another emotion than the label of clip b;.* --leave_out answer"),
        (lambda files: files.reasoning.clear(), "reasoning.jsonl: no reasoning in it"),
        (lambda files: free(files, b=" "), "clip b: text must be a text, and not empty"),
        (lambda files: free(files, b=None), "clip b: text must be a text"),
        (lambda files: free(files, b="He is angry."), "no sentence speaks of a modality in clip b"),
        (lambda files: free(files, b="He smiles <audio> brightly."), "clip b: .*cannot be read back"),
        (spoil("reasoning", 1, segments={}), "no sentence speaks of a modality in clip b"),
    ],
)
def test_what_cannot_be_a_target_is_named_with_file_and_clip_and_nothing_is_written(stage, files, change, message):
    change(files)
    with pytest.raises(InputError, match=message):
        stage("targets", **files.given(), order="dominant-first", out=files.out)
    assert not files.out.exists()


def free(files, **texts):
    """Free texts in place of the segments of these clips."""
    for row in files.reasoning:
        if row["clip_id"] in texts:
            del row["segments"], row["conclusion"]
            row["text"] = texts[row["clip_id"]]


@pytest.mark.parametrize(
    ("order", "first"), [("least-first", ["video", "audio"]), ("planted-first", ["audio", "video"])]
)
def test_the_orders_that_ask_whether_importance_matters(stage, files, order, first):
    for row, dominant in zip(files.clips, ("audio", "video"), strict=True):
        row["planted"] = {"dominant": dominant}
    stage("targets", **files.given(), order=order, out=files.out)
    assert [row["order"][0] for row in read_jsonl(files.out)] == first


def test_least_first_needs_importance_and_planted_first_a_planted_clip(stage, files):
    given = {name: path for name, path in files.given().items() if name != "importance"}
    with pytest.raises(InputError, match="--order least-first needs --importance"):
        stage("targets", **given, order="least-first", out=files.out)
    clip = Clip("a", None, "sad", "train")
    with pytest.raises(InputError, match="clip a: nobody planted a modality"):
        order_of(clip, SEGMENTS, "planted-first", None)
    three = {"video": "x", "audio": "y", "text": "z"}
    weights = {"video": 0.5, "audio": 0.3, "text": 0.2}
    assert order_of(clip, three, "least-first", weights) == ["text", "audio", "video"]
    drawn = [order_of(Clip(str(i), None, "sad", "train"), three, "random", None) for i in range(60)]
    assert len({tuple(order) for order in drawn}) == 6
    part = [order_of(Clip(str(i), None, "sad", "train"), SEGMENTS, "random", None) for i in range(60)]
    assert part == [[m for m in order if m in SEGMENTS] for order in drawn]  # a segment less changes no order


def test_an_unknown_order_is_named_with_those_there_are(stage, files):
    with pytest.raises(InputError, match="'loudest-first' is not one of dominant-first, video-first, audio-first"):
        stage("targets", **files.given(), order="loudest-first", out=files.out)


def test_planted_targets_start_with_the_planted_modality(planted_run):
    truth = {row["clip_id"]: row["planted"]["dominant"] for row in read_jsonl(planted_run.clips)}
    rows = read_jsonl(planted_run.targets)
    assert len(rows) == 28 and all(row["order"][0] == truth[row["clip_id"]] for row in rows)


TEXT = (
    "In the video, a man stands in a hall. His brows are knit. In addition, his voice is loud. "
    'Also, he says, "Not again!" This may be a protest. His jaw and his tone are tense. Therefore, he is upset.'
)


@pytest.mark.parametrize(
    ("order", "think"),
    [
        (
            "dominant-first",  # audio: what speaks of both goes there
            "<audio>His voice is loud. His jaw and his tone are tense.</audio>"
            "<video>In the video, a man stands in a hall. His brows are knit.</video>"
            '<text>He says, "Not again!" This may be a protest.</text>Therefore, he is upset.',
        ),
        (
            "video-first",  # the same segments in another order
            "<video>In the video, a man stands in a hall. His brows are knit.</video>"
            "<audio>In addition, his voice is loud. His jaw and his tone are tense.</audio>"
            '<text>He says, "Not again!" This may be a protest.</text>Therefore, he is upset.',
        ),
    ],
)
def test_free_text_becomes_ordered_segments_with_every_sentence_once(stage, files, order, think):
    free(files, a=TEXT)
    stage("targets", **files.given(), order=order, out=files.out)
    row = read_jsonl(files.out)[0]
    assert row["target"] == f"<think>{think}</think><answer>happy</answer>"
    assert row["order"] == list(parse(row["target"]).reasoning.order)
    (assigned,) = read_jsonl(files.folder / "targets.sentences.jsonl")
    assert assigned["by"] == "lexicon" and assigned["clip_id"] == "a" and len(assigned["sentences"]) == 7
    assert assigned["sentences"][5] == ["His jaw and his tone are tense.", ["video", "audio"]]


def test_segments_alone_leave_no_file_of_sentences(stage, files):
    stage("targets", **files.given(), out=files.out)
    assert not list(files.folder.glob("*.sentences.jsonl"))


@pytest.mark.parametrize("change", [{"certain": False}, {"importance": {"video": 0.5, "audio": 0.5}}])
def test_an_uncertain_clip_or_a_tie_gets_the_neutral_order(stage, files, change):
    free(files, a=TEXT)
    files.importance[0].update(change)
    files.reasoning[1]["segments"] = dict(reversed(SEGMENTS.items()))  # its file names the audio first
    files.importance[1].update({"importance": {"audio": 0.5, "video": 0.5}})
    stage("targets", **files.given(), order="dominant-first", out=files.out)
    first, second = read_jsonl(files.out)
    assert first["order"] == ["video", "audio", "text"] and second["order"] == ["video", "audio"]
    assert "His jaw and his tone are tense." in dict(parse(first["target"]).reasoning.segments)["video"]


def test_clips_can_be_left_out_for_named_reasons_and_are_counted(stage, files, capsys):
    for name in "cde":
        (files.folder / f"{name}.mp4").write_bytes(b"x")
        files.clips.append({"clip_id": name, "path": f"{name}.mp4", "label": "happy", "split": "train"})
    files.reasoning.append({"clip_id": "c", "text": "It is nothing but joy."})
    files.reasoning.append({"clip_id": "d", "text": TEXT, "answer": "Sad."})
    files.reasoning[1]["names_other"] = {"audio": ["sad"]}
    files.importance += [{"clip_id": name, "importance": {"video": 0.4, "audio": 0.6}} for name in "cd"]
    reasons = ["missing", "unassigned", "answer", "names_other"]
    stage("targets", **files.given(), leave_out=reasons, out=files.out)
    assert [row["clip_id"] for row in read_jsonl(files.out)] == ["a"]
    said = capsys.readouterr().out
    assert "1 missing, 1 unassigned, 1 answer, 1 names other" in said
    with pytest.raises(InputError, match=r"with another leave_out \(.*, now .*--overwrite"):
        stage("targets", **files.given(), leave_out=reasons[:3], out=files.out)
    stage("targets", **files.given(), leave_out=reasons[:3], out=files.out, overwrite="true")
    assert [row["clip_id"] for row in read_jsonl(files.out)] == ["a", "b"]
    assert "1 have a description that names another emotion" in capsys.readouterr().out


def test_many_clips_without_reasoning_are_counted_and_the_first_are_named(stage, files):
    for i in range(8):
        (files.folder / f"x{i}.mp4").write_bytes(b"x")
        files.clips.append({"clip_id": f"x{i}", "path": f"x{i}.mp4", "label": "happy", "split": "train"})
    with pytest.raises(InputError, match=r"no reasoning for clips x0, x1, x2, x3, x4 and 3 more \(8 of 10\);"):
        stage("targets", **files.given(), out=files.out)


# --- reasoning that others wrote


def conversation(video, answer):
    human = {"from": "human", "value": "<video>\n<audio>\nWhich emotion? Use <think></think> and <answer></answer>."}
    return {"video": video, "conversations": [human, {"from": "gpt", "value": answer}]}


def test_conversations_are_matched_by_file_stem_and_become_targets(stage, files):
    entries = [
        conversation("/data/other/MER/a.avi", f"<think>{TEXT}</think>\n<answer>happy</answer>"),
        conversation("b.mp4", "<think><audio>A laugh.</audio><video>A grin.</video>So.</think><answer>joy</answer>"),
        conversation("elsewhere.mp4", "<think>His brow is low.</think>\n<answer>angry</answer>"),
    ]
    given = files.given()
    given["reasoning"] = files.folder / "cold_start.json"
    given["reasoning"].write_text(json.dumps(entries))
    stage("targets", **given, order="video-first", out=files.out)
    rows = read_jsonl(files.out)
    assert [row["order"] for row in rows] == [["video", "audio", "text"], ["video", "audio"]]
    assert rows[1]["target"] == "<think><video>A grin.</video><audio>A laugh.</audio>So.</think><answer>happy</answer>"


def test_a_clip_takes_its_segments_from_two_files(stage, files):
    given = files.given()
    tables = [files.folder / "seen.csv", files.folder / "heard.csv"]
    tables[0].write_text('clip,中文,Video\na.mp4,笑,"A girl smiles, broadly."\nb.mp4,哭,A man weeps.\n', "utf-8-sig")
    tables[1].write_text("name;audio;conclusion\nb;A low voice.;So.\na;A laugh.;\n")
    stage("targets", **given | {"reasoning": tables}, out=files.out)
    first, second = read_jsonl(files.out)
    assert first["target"].startswith("<think><audio>A laugh.</audio><video>A girl smiles, broadly.</video></think>")
    assert "A low voice.</audio>So.</think>" in second["target"] and second["order"] == ["video", "audio"]
    with pytest.raises(InputError, match=r"heard\.csv: clip b: another file says something of the same modality"):
        stage("targets", **given | {"reasoning": [given["reasoning"], tables[1]]}, out=files.out)


@pytest.mark.parametrize(
    ("name", "form", "content", "rows"),
    [
        ("t.csv", "auto", "name,chinese,english\ns_07,x,He nods.\n", [{"clip_id": "s_07", "text": "He nods."}]),
        ("t.tsv", "auto", "Video\tText\tanswer\nx/9.mp4\tHe nods, twice.\tsad\n",
         [{"clip_id": "x/9.mp4", "text": "He nods, twice.", "answer": "sad"}]),
        ("t.csv", "auto", 'id,text\n\n7,"He nods.\n\nHe bows."\n', [{"clip_id": "7", "text": "He nods.\n\nHe bows."}]),
        ("t.csv", "table", "clip_id,video,audio,transcript\n1,A nod.,,Yes.\n",
         [{"clip_id": "1", "segments": {"video": "A nod.", "text": "Yes."}, "conclusion": ""}]),
        ("t.txt", "captions", "00025.mp4 A man nods.\n00026.mp4\tA nod.\n",
         [{"clip_id": "00025.mp4", "segments": {"video": "A man nods."}, "by": "caption"},
          {"clip_id": "00026.mp4", "segments": {"video": "A nod."}, "by": "caption"}]),
        ("t.jsonl", "table", '{"id": 7, "reasoning": "He nods."}\n', [{"clip_id": "7", "text": "He nods."}]),
        ("t.jsonl", "auto", json.dumps(conversation("q.mp4", "<think>He nods.</think><answer>sad</answer>")),
         [{"clip_id": "q.mp4", "text": "He nods.", "answer": "sad"}]),
    ],
)  # fmt: skip
def test_each_format_is_read(tmp_path, name, form, content, rows):
    (tmp_path / name).write_text(content)
    assert read_reasoning(tmp_path / name, form) == rows


@pytest.mark.parametrize(
    ("name", "form", "content", "message"),
    [
        ("x.json", "auto", "[]", "no reasoning in it"),
        ("x.json", "auto", "{}", "expected a list of entries"),
        ("x.json", "auto", '[{"video": "a"}]', "entry 1: no list 'conversations'"),
        ("x.json", "auto", '[{"conversations": []}]', "entry 1: names no clip"),
        ("x.json", "auto", json.dumps([conversation("a.mp4", "sad")]), r"entry 1 \(a.mp4\): .*file of bare labels"),
        ("x.json", "auto", json.dumps([conversation("a.mp4", "<think> no end")]), "entry 1 .*empty or not closed"),
        ("x.csv", "auto", "name,english\na,\n", "x.csv:2: clip a: no text"),
        ("x.csv", "auto", "who,english\na,He nods.\n", "x.csv:1: no header names a column for the clip"),
        ("x.csv", "auto", "name,text\na,He nods, twice.\n", "x.csv:2: another number of columns"),
        ("x.csv", "auto", 'name,text\na,"He nods\n', "x.csv:2: .*quotation mark"),
        ("x.csv", "auto", "name,text\n", "no reasoning in it"),
        ("x.csv", "captions", "name,note\na,He nods.\n", "x.csv:1: no header names .*caption"),
        ("x.txt", "captions", "00025.mp4\n", "x.txt:1: expected a clip"),
        ("x.xls", "captions", "PK", "save it as .xlsx, CSV"),
        ("x.jsonl", "poem", "{}", "'poem' is not one of auto, segments"),
        ("x.jsonl", "auto", '{"clip_id": "a"}', "x.jsonl:1: missing 'segments' or 'text'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_or_entry(tmp_path, name, form, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_reasoning(tmp_path / name, form)


def test_a_table_that_is_not_utf8_is_an_error(tmp_path):
    (tmp_path / "x.csv").write_bytes("name,text\na,Café.\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_reasoning(tmp_path / "x.csv")


def test_clips_are_found_by_id_stem_and_bare_number(tmp_path):
    clips = [
        Clip(name, tmp_path / path, "sad", "train") for name, path in (("7", "clip/00007.mp4"), ("b.1", "s_21.avi"))
    ]

    def found(*names):
        return {clip: row["clip_id"] for clip, row in match("f", [{"clip_id": name} for name in names], clips).items()}

    assert found("00007.mp4", "D:\\x\\s_21.wav") == {"7": "00007.mp4", "b.1": "D:\\x\\s_21.wav"}
    assert found(7, "b.1", "other") == {"7": 7, "b.1": "b.1"}
    assert names_of("b.1") == ["b.1"] and names_of("x/007.MP4") == ["x/007.MP4", "007", "7"]
    with pytest.raises(InputError, match=r"f: '7' stands there twice \(as '007' and '7.mp4'\)"):
        found("007", "7.mp4")
    with pytest.raises(InputError, match=r"none of its 2 names fits a clip: it has p, q, the clips are 7, b.1"):
        found("p", "q")
    clips.append(Clip("9", tmp_path / "7.mp4", "sad", "train"))
    with pytest.raises(InputError, match=r"'07.mp4' may be each of 7, 9: name the clip in full"):
        found("07.mp4")
    assert found("7") == {"7": "7"}


def test_a_language_model_assigns_and_an_interrupted_run_goes_on(stage, files, base_model, capsys):
    free(files, a=TEXT, b="His brows are knit. The voice is low.")
    given = files.given() | {"assigner": "llm", "assigner_model": base_model, "engine": "transformers"}
    options = {"order": "video-first", "leave_out": "unassigned"}
    stage("targets", **given, **options, out=files.out)
    first, second = files.out.read_bytes(), files.folder / "targets.sentences.jsonl"
    rows = read_jsonl(second)
    assert [len(row["sentences"]) for row in rows] == [7, 2] and rows[0]["by"].startswith(f"{base_model.name}-")
    assert all(tuple(found) in CHOICES.values() for row in rows for _, found in row["sentences"])
    lines = second.read_text().splitlines(keepends=True)
    stage("targets", **given, **options, out=files.out)
    assert "finished already" in capsys.readouterr().out
    files.out.unlink()
    second.write_text(lines[0] + lines[1][:20])  # cut off while it was written
    stage("targets", **given, **options, out=files.out)
    assert files.out.read_bytes() == first and read_jsonl(second) == rows
    rows[0]["sentences"][0][0] = "Another text."
    files.out.unlink()
    write_jsonl(second, rows)
    with pytest.raises(InputError, match="clip a is of another run or text: delete the file"):
        stage("targets", **given, **options, out=files.out)
    with pytest.raises(InputError, match="--assigner llm and --assigner_model"):
        stage("targets", **files.given(), assigner="llm", out=files.out)


def test_targets_that_would_not_earn_full_rewards_are_told_with_the_reason(stage, files, capsys):
    files.clips += [
        {"clip_id": name, "path": "a.mp4", "label": "happy", "split": "train", "has_audio": name != "seen"}
        for name in ("short", "swapped", "seen", "other")
    ]
    segments = {
        "short": {**SEGMENTS, "audio": "Singing."},
        "swapped": {"video": SEGMENTS["audio"], "audio": SEGMENTS["video"]},
        "seen": SEGMENTS,
        "other": {"video": "Das Gesicht zeigt ein breites Lächeln.", "audio": "Die Stimme klingt hell und singt fast."},
    }
    files.reasoning += [{"clip_id": n, "segments": rows, "conclusion": ""} for n, rows in segments.items()]
    files.importance += [{"clip_id": n, "importance": {"video": 0.3, "audio": 0.7}} for n in segments]
    stage("targets", **files.given(), order="video-first", out=files.out)
    told = {row["clip_id"]: row["lacks"] for row in read_jsonl(files.folder / "targets.rewards.jsonl")}
    assert {name: list(reasons) for name, reasons in told.items()} == {
        "a": ["start"],
        "short": ["start", "statement"],
        "swapped": ["start", "own"],
        "seen": ["absent", "start"],
        "other": ["language"],
    }
    printed = capsys.readouterr().out
    assert "5 of 6 would not earn full rewards" in printed and "1 take evidence from a modality that" in printed
    assert "4 do not start with the dominant modality: a, short, swapped, …" in printed
    files.clips, files.reasoning = files.clips[:2], files.reasoning[:2]
    stage("targets", **files.given(), order="dominant-first", out=files.out, overwrite="true")
    assert not (files.folder / "targets.rewards.jsonl").exists()
