"""What other systems write becomes predictions.jsonl: formats, ids, labels, and refusals."""

import json

import pytest

from eval.figures.tally import read_predictions
from migr.errors import InputError
from migr.files.records import read_jsonl, write_jsonl
from migr.sources.foreign import detect
from migr.sources.predictions import Reading, convert, read_truth
from migr.text.labels import label_set

DFEW = label_set("dfew")
SAID = {
    "12583": "<think>A frown | and a shout.</think>\n<answer>angry</answer>",
    "12584": "<think>A smile.\nThen a laugh.</think>\n\n<answer>happiness</answer>",
    "12590": "no tags, 100 % | free text",
}
TRUTH = {"12583": "angry", "12584": "sad", "12590": "fear"}


def written(folder, form):
    """The same three predictions as another system would write them."""
    path = folder / f"predictions.{form}"
    if form == "lines":
        path.write_text("".join(f"{clip}|{text}\n" for clip, text in SAID.items()))
    elif form == "map":
        path.write_text(json.dumps(SAID))
    elif form == "indented":
        path.write_text(json.dumps(SAID, indent=2))
    elif form == "list":
        path.write_text(json.dumps([{"id": clip, "output": text} for clip, text in SAID.items()]))
    elif form == "conversations":
        rows = [
            {
                "video": f"/data/DFEW/clip/{clip}.mp4",
                "conversations": [
                    {"from": "human", "value": "<video>\n<audio>\nWhich emotion?"},
                    {"from": "gpt", "value": text},
                ],
            }
            for clip, text in SAID.items()
        ]
        path.write_text(json.dumps(rows))
    elif form == "resumed":  # a second list behind the first: no valid JSON as a whole
        rows = [
            {"video": f"{clip}.mp4", "conversations": [{"value": text, "from": "gpt"}]} for clip, text in SAID.items()
        ]
        path.write_text(json.dumps(rows[:1]) + json.dumps(rows[1:]))
    elif form == "csv":
        lines = ["video_name;output"] + [f'{clip.zfill(6)};"{text}"' for clip, text in SAID.items()]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n")
    elif form == "jsonl":
        write_jsonl(path, ({"id": clip, "text": text} for clip, text in SAID.items()))
    return path


def truth(folder, text="video_name,label\n12583,4\n12584,2\n12590,7\n99999,1\n", name="set_5.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("lines", "lines"),
        ("map", "json"),
        ("indented", "json"),
        ("list", "json"),
        ("conversations", "json"),
        ("resumed", "json"),
        ("csv", "csv"),
        ("jsonl", "jsonl"),
    ],
)
def test_every_format_is_recognised_and_gives_the_same_predictions(tmp_path, form, found):
    path = written(tmp_path, form)
    assert detect(path) == found and Reading().needed(path)
    facts = convert(path, tmp_path / "out.jsonl", DFEW, Reading(truth=truth(tmp_path)))
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert {row["clip_id"]: row["response"] for row in rows} == SAID
    assert {row["clip_id"]: row["label"] for row in rows} == TRUTH
    assert facts == {"format": found, "n": 3, "n_wrapped": 0, "numbered": True, "n_without": 1}
    table = read_predictions(tmp_path / "out.jsonl", DFEW)
    assert list(table.answers) == [3, 0, -1]


def turns(label):
    return [{"from": "human", "value": "?"}, {"from": "gpt", "value": label}]


TABLES = {
    "single.txt": "12583.mp4 anger\n12584.mp4 sadness\n12590.mp4 fear\n",
    "truth.json": json.dumps(TRUTH),
    "rl.json": json.dumps([{"video": f"x/{k}.mp4", "conversations": turns(v)} for k, v in TRUTH.items()]),
    "clips.jsonl": "".join(json.dumps({"clip_id": k, "label": v}) + "\n" for k, v in {**TRUTH, "x": None}.items()),
    "table.csv": "clip,emotion\n12583,angry\n12584,Sad\n12590,afraid\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_truth_table_may_have_any_of_these_forms(tmp_path, name):
    assert read_truth(truth(tmp_path, TABLES[name], name), DFEW).labels == TRUTH


def test_labels_and_answers_in_the_rows_need_no_truth_table(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('id,reasoning,prediction,gt\na,"A frown, a shout.",angry,angry\nb,A smile.,,sad\n')
    facts = convert(path, tmp_path / "out.jsonl", DFEW)
    assert read_jsonl(tmp_path / "out.jsonl") == [
        {"clip_id": "a", "label": "angry", "response": "<think>A frown, a shout.</think><answer>angry</answer>"},
        {"clip_id": "b", "label": "sad", "response": "A smile."},
    ]
    assert facts["n_wrapped"] == 1


def test_half_a_character_does_not_stop_the_conversion(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('[{"id": "a", "text": "\\ud83d\\ude00 \\ud83d", "label": "sad"}]')
    convert(path, tmp_path / "out.jsonl", DFEW)
    assert read_jsonl(tmp_path / "out.jsonl")[0]["response"] == "\U0001f600 \ufffd"


def test_our_own_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_jsonl(path, [{"clip_id": "a", "label": "sad", "response": "x"}])
    assert not Reading().needed(path)
    assert Reading(truth=truth(tmp_path)).needed(path)


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        ("just words\n", None, "the format cannot be told from its first line ('just words'); --format is one of"),
        ('{"a": "x"', None, "not valid JSON"),
        ('{"a": "x"}', None, "clip 'a': no label; --truth FILE names a table"),
        ('{"b": "x"}', "video_name,label\na,1\n", "clip 'b': no label; it is not in"),
        ("12583|x\nno bar\n77|y\n", "video_name,label\n12583,1\n", "clip '77': no label; it is not in"),
        ("id,text\na,b,c\n", None, "another number of columns (3) than the header's 2"),
        ('id,text\na,"b\n', None, "not valid CSV"),
        ('[{"text": "x"}]', None, "record 1: no id; its keys are text; the id may be called clip_id"),
        ('[{"id": "a", "label": "sad"}]', None, "no text; its keys are id, label; the text may be called response"),
        ('[{"id": "a", "text": "x", "label": "sad"}]', "video_name,label\na,1\n", "labelled sad here and happy in"),
        ('[{"id": "a", "text": "x", "label": "bored"}]', None, "label 'bored' is none of happy, sad"),
        ('[{"id": "a", "conversations": [{"from": "human", "value": "x"}]}]', None, "has no turn of the model"),
        ('{"a": "x"}', "video_name,label\na,8\n", "label '8' is none of"),
        ('{"a": "x"}', "video_name,label\na,1\na,2\n", "clip 'a' has two labels, happy and sad"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, text, table, message):
    path = tmp_path / "file.txt"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        convert(path, tmp_path / "out.jsonl", DFEW, Reading(truth=truth(tmp_path, table) if table else None))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_numbers_mean_labels_in_dfew_alone_and_that_is_said(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"a": "happy"}))
    for table, numbered in (("video_name,label\na,1\n", True), ("video_name,label\na,happy\n", False)):
        read = convert(path, tmp_path / "out.jsonl", DFEW, Reading(truth=truth(tmp_path, table)))
        assert read["numbered"] is numbered
    with pytest.raises(InputError, match="label '0' is none of"):  # counted from 0
        read_truth(truth(tmp_path, "video_name,label\na,0\nb,1\n"), DFEW)
    with pytest.raises(InputError, match="numbers are read for dfew alone"):
        read_truth(truth(tmp_path, "video_name,label\na,1\n"), label_set("mafw"))


def test_two_clips_that_share_a_bare_name_are_not_mixed_up(tmp_path):
    table = truth(tmp_path, json.dumps({"x": 0}), "t.jsonl")
    write_jsonl(table, [{"clip_id": f"{part}/1", "label": label} for part, label in (("a", "sad"), ("b", "fear"))])
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"b/1": "x"}))
    convert(path, tmp_path / "out.jsonl", DFEW, Reading(truth=table))
    assert read_jsonl(tmp_path / "out.jsonl") == [{"clip_id": "b/1", "label": "fear", "response": "x"}]
    path.write_text(json.dumps({"1": "x"}))
    with pytest.raises(InputError, match="clip '1': no label"):
        convert(path, tmp_path / "out.jsonl", DFEW, Reading(truth=table))


TEXT = "<think>She weeps.</think><answer>sad</answer>"
LLAMA_FACTORY = [
    {
        "prompt": "<|im_start|>user\nWhich emotion?",
        "predict": text,
        "label": f"<think>…</think><answer>{label}</answer>",
    }
    for text, label in (("<think>A frown.</think><answer>angry</answer>", "angry"), (TEXT, "sad"), ("fear", "fear"))
]


def test_results_of_llama_factory_are_paired_by_order_when_asked(tmp_path):
    path, out = tmp_path / "generated_predictions.jsonl", tmp_path / "out.jsonl"
    write_jsonl(path, LLAMA_FACTORY)
    table = truth(tmp_path, "video_name,label\n00025,4\n00013,2\n00099,7\n")
    with pytest.raises(InputError, match=r"row 1: no id; its keys are prompt, predict, label; .*say --by_order"):
        convert(path, out, DFEW, Reading(truth=table))
    convert(path, out, DFEW, Reading(truth=table, by_order=True))
    assert [(r["clip_id"], r["label"]) for r in read_jsonl(out)] == [
        ("00025", "angry"),
        ("00013", "sad"),
        ("00099", "fear"),
    ]
    assert list(read_predictions(out, DFEW).answers) == [3, 1, 6]
    convert(path, out, DFEW, Reading(by_order=True))  # no table: numbered, with the labels of the rows
    assert [(row["clip_id"], row["label"]) for row in read_jsonl(out)] == [("1", "angry"), ("2", "sad"), ("3", "fear")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("video_name,label\na,4\nb,2\n", "more rows than the 2 clips of"),
        ("video_name,label\na,4\nb,2\nc,7\nd,1\n", r"3 rows, and .* has 4 clips"),
        ("video_name,label\na,2\nb,4\nc,7\n", "clip 'a': labelled angry here and sad in .*is the order"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(tmp_path, table, message):
    write_jsonl(tmp_path / "p.jsonl", LLAMA_FACTORY)
    with pytest.raises(InputError, match=message):
        convert(
            tmp_path / "p.jsonl",
            tmp_path / "out.jsonl",
            DFEW,
            Reading(truth=truth(tmp_path, table), by_order=True),
        )


def test_order_pairs_with_the_split_of_a_manifest(tmp_path):
    write_jsonl(tmp_path / "p.jsonl", LLAMA_FACTORY)
    clips = [("x", "train", "happy"), ("a", "test", "angry"), ("b", "test", "sad"), ("c", "test", "fear")]
    write_jsonl(tmp_path / "clips.jsonl", [{"clip_id": c, "split": s, "label": e} for c, s, e in clips])
    facts = convert(
        tmp_path / "p.jsonl",
        tmp_path / "out.jsonl",
        DFEW,
        Reading(truth=tmp_path / "clips.jsonl", by_order=True),
    )
    assert facts["n"] == 3 and facts["n_without"] == 0  # the training clips need no prediction


@pytest.mark.parametrize(
    "row",
    [
        {"response": TEXT, "labels": "sad", "logprobs": None, "messages": [], "videos": ["/x/12583.mp4"], "images": []},
        {"response": TEXT, "labels": "sad", "videos": [{"path": "/x/12583.mp4"}]},
        {"labels": "sad", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": TEXT}],
         "audios": ["12583.wav"]},
    ],
)  # fmt: skip
def test_results_of_ms_swift_are_named_by_their_media(tmp_path, row):
    write_jsonl(tmp_path / "result.jsonl", [row])
    convert(tmp_path / "result.jsonl", tmp_path / "out.jsonl", DFEW)
    assert read_jsonl(tmp_path / "out.jsonl") == [{"clip_id": "12583", "label": "sad", "response": TEXT}]


def test_several_media_files_do_not_name_a_clip(tmp_path):
    write_jsonl(tmp_path / "r.jsonl", [{"response": "x", "labels": "sad", "videos": ["a.mp4", "b.mp4"]}])
    with pytest.raises(InputError, match="2 media files, which of them is the clip"):
        convert(tmp_path / "r.jsonl", tmp_path / "out.jsonl", DFEW)


def test_results_of_video_r1_are_a_list_inside_an_object(tmp_path):
    row = {"problem_id": 7, "path": "./DFEW/12583.mp4", "output": TEXT, "prediction": "", "solution": TEXT[23:]}
    for indent in (None, 2):
        (tmp_path / "r.json").write_text(
            json.dumps({"results": [row], "final_acc": [{"mean_acc": 0.5}]}, indent=indent)
        )
        convert(tmp_path / "r.json", tmp_path / "out.jsonl", DFEW)
        assert read_jsonl(tmp_path / "out.jsonl") == [{"clip_id": "12583", "label": "sad", "response": TEXT}]


def test_a_clip_without_a_prediction_is_wrong_when_asked(tmp_path):
    path, out = written(tmp_path, "map"), tmp_path / "out.jsonl"
    facts = convert(path, out, DFEW, Reading(truth=truth(tmp_path), count_missing=True))
    assert facts["n"] == 3 and facts["n_without"] == 1
    assert read_jsonl(out)[-1] == {"clip_id": "99999", "label": "happy", "response": "", "missing": True}
    assert len(read_predictions(out, DFEW)) == 4


def foreign(folder, form):
    """A file of that form, and the flags that it needs."""
    if form == "llama_factory":
        write_jsonl(folder / "generated_predictions.jsonl", LLAMA_FACTORY)
        table = truth(folder, "video_name,label\n00025,4\n00013,2\n00099,7\n")
        return folder / "generated_predictions.jsonl", ["--truth", table, "--by_order"]
    if form == "ms_swift":
        rows = [{"response": SAID[clip], "labels": TRUTH[clip], "videos": [f"/x/{clip}.mp4"]} for clip in SAID]
        write_jsonl(folder / "result.jsonl", rows)
        return folder / "result.jsonl", []
    if form == "video_r1":
        rows = [
            {"path": f"./DFEW/{clip}.mp4", "output": SAID[clip], "solution": f"<answer>{TRUTH[clip]}</answer>"}
            for clip in SAID
        ]
        (folder / "results.json").write_text(json.dumps({"results": rows, "final_acc": []}))
        return folder / "results.json", []
    return written(folder, form), ["--truth", truth(folder)]


FORMS = ["lines", "map", "indented", "list", "conversations", "resumed", "csv", "jsonl"]


@pytest.mark.parametrize("form", [*FORMS, "llama_factory", "ms_swift", "video_r1"])
def test_the_command_scores_every_format(tmp_path, form):
    from eval.consistency import main

    path, flags = foreign(tmp_path, form)
    arguments = ["--predictions", path, *flags, "--judge", "lexicon", "--judge_check", "none", "--labels", "dfew"]
    metrics = main([*map(str, arguments), "--resamples", "20", "--out", str(tmp_path / "out")])
    # of LLaMA-Factory's three answers all are right (one by label alone), of the others' angry alone
    assert metrics["n"] == 3 and metrics["war"] == pytest.approx(1.0 if form == "llama_factory" else 1 / 3)
    assert metrics["n_without_reasoning"] == (1 if form == "llama_factory" else 0)
