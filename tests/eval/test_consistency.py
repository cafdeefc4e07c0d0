"""The command eval/consistency.py: arithmetic without torch, judging, generating and resuming, and its refusals."""

import json
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import pytest

from eval.consistency import main
from eval.figures.tally import add_dominants, read_dominants, read_judgements, read_predictions
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.judge import CUE_WORDS, fit_classifier
from migr.judge.embedded import PACKAGE as ENCODER
from migr.text.labels import DFEW, label_set

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "consistency.py"


def response(emotion, answer, order=("audio", "video")):
    words = dict.fromkeys(order, CUE_WORDS[emotion].split()[0])
    segments = "".join(f"<{modality}>It is {word}.</{modality}>" for modality, word in words.items())
    return f"<think>{segments}That decides.</think><answer>{answer}</answer>"


def planted(folder, n=200, seed=0):
    """Predictions, judgements and importances whose figures are known; returns the counts."""
    rng = random.Random(seed)
    files = {name: [] for name in ("predictions", "judgements", "importance")}
    right = inconsistent = starts = 0
    for i in range(n):
        label, dominant = rng.choice(DFEW), rng.choice(["video", "audio"])
        answer = label if rng.random() < 0.8 else rng.choice(DFEW)
        judged = answer if rng.random() < 0.9 else rng.choice(DFEW)
        order = rng.sample(["video", "audio"], 2)
        right += answer == label
        inconsistent += answer == label != judged
        starts += order[0] == dominant
        row = {"clip_id": f"c{i}", "label": label, "response": response(judged, answer, order), "note": "kept"}
        files["predictions"].append(row)
        files["judgements"].append({"clip_id": f"c{i}", "judge": "planted", "emotion": judged})
        files["importance"].append(
            {"clip_id": f"c{i}", "importance": {dominant: 1.0}, "dominant": dominant, "margin": 1}
        )
    for name, rows in files.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return {"right": right, "inconsistent": inconsistent, "starts": starts}


def run(folder, *flags):
    """Start the command in a process of its own, from another folder, where torch and its kin cannot be imported."""
    poison = folder / "poison"
    for name in ("torch", "transformers", "vllm", "trl", "peft", "datasets"):
        (poison / name).mkdir(parents=True, exist_ok=True)
        (poison / name / "__init__.py").write_text(f"raise ImportError('{name} must not be imported')")
    path = os.pathsep.join(filter(None, [str(poison), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(SCRIPT), *map(str, flags)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )


def test_the_arithmetic_takes_a_second_from_any_folder_and_imports_no_torch(tmp_path):
    counts = planted(tmp_path, 2000)
    start = time.monotonic()
    done = run(
        tmp_path,
        *("--predictions", "predictions.jsonl", "--judgements", "judgements.jsonl"),
        *("--importance", "importance.jsonl", "--labels", "dfew", "--out", "result"),
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 20  # about one on a quiet machine
    metrics = read_json(tmp_path / "result" / "metrics.json")
    assert metrics["n"] == 2000
    assert metrics["cells"]["right_inconsistent"] == counts["inconsistent"]
    assert metrics["inconsistent_among_correct"] == pytest.approx(counts["inconsistent"] / counts["right"])
    assert metrics["starts_with_dominant"] == pytest.approx(counts["starts"] / 2000)
    assert set(metrics["per_dominant"]) == {"video", "audio"}
    assert metrics["judge"] == {"name": "planted", "accuracy": None, "n": 0}
    assert "reliability not measured" in done.stdout and "evaluation: WAR" in done.stdout
    page = (tmp_path / "result" / "report.html").read_text()
    assert "c1999" in page and "planted" in page
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == ["metrics.json", "report.html"]


@pytest.mark.parametrize(
    ("right", "inconsistent", "headline", "of_all"),
    [(1757, 318, "18.10", "13.75"), (1709, 126, "7.37", "5.45")],
)
def test_the_published_counts_give_the_published_percentages_from_files(
    tmp_path, right, inconsistent, headline, of_all
):
    """Of 2,312 clips: the integers that give both published percentages of either system."""
    answers = ["sad" if i < right else "fear" for i in range(2312)]
    rows = [
        {"clip_id": f"{i}", "label": "sad", "response": f"<think>…</think><answer>{a}</answer>"}
        for i, a in enumerate(answers)
    ]
    judged = [{"clip_id": f"{i}", "judge": "j", "emotion": "angry" if i < inconsistent else "sad"} for i in range(2312)]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    write_jsonl(tmp_path / "judgements.jsonl", reversed(judged))
    files = ("--predictions", tmp_path / "predictions.jsonl", "--judgements", tmp_path / "judgements.jsonl")
    metrics = main([*map(str, files), "--out", str(tmp_path / "out")])
    assert f"{100 * metrics['inconsistent_among_correct']:.2f}" == headline
    assert f"{100 * metrics['inconsistent_among_all']:.2f}" == of_all


def test_of_a_clip_little_more_than_twenty_bytes_stay_in_memory(tmp_path):
    def peak(count):
        for name, row in (("predictions", ROW), ("judgements", JUDGED)):
            write_jsonl(tmp_path / f"{name}.jsonl", (row | {"clip_id": f"clip-{i:07d}"} for i in range(count)))
        write_jsonl(
            tmp_path / "importance.jsonl", ({"clip_id": f"clip-{i:07d}", "dominant": "audio"} for i in range(count))
        )
        tracemalloc.start()
        table = read_predictions(tmp_path / "predictions.jsonl", label_set("dfew"))
        read_judgements(tmp_path / "judgements.jsonl", label_set("dfew"), table)
        add_dominants(table, read_dominants(tmp_path / "importance.jsonl"))
        assert len(table) == count and set(table.judgements) == {1} and set(table.dominants) == {1}
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) - peak(4_000) < 16_000 * 80  # a clip's row has 300 bytes, and as objects a thousand


def test_judgements_and_importances_are_joined_by_clip_in_any_order(tmp_path):
    planted(tmp_path, 300)
    flags = [f"--{name}={tmp_path}/{name}.jsonl" for name in ("predictions", "judgements", "importance")]
    before = main([*flags, "--out", str(tmp_path / "a")])
    for name in ("judgements", "importance"):
        rows = read_jsonl(tmp_path / f"{name}.jsonl")
        random.Random(1).shuffle(rows)
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    assert main([*flags, "--out", str(tmp_path / "a")]) == before


def test_other_systems_files_are_converted_and_then_counted_alike(tmp_path):
    planted(tmp_path, 100)
    rows = read_jsonl(tmp_path / "predictions.jsonl")
    flags = ["--judge", "lexicon", "--judge_check", "none"]
    own = main(["--predictions", str(tmp_path / "predictions.jsonl"), *flags, "--out", str(tmp_path / "own")])
    (tmp_path / "erv.txt").write_text("".join(f"DFEW/clip/{row['clip_id']}.mp4|{row['response']}\n" for row in rows))
    (tmp_path / "truth.csv").write_text("video_name,label\n" + "".join(f"{r['clip_id']},{r['label']}\n" for r in rows))
    flags += ["--predictions", str(tmp_path / "erv.txt"), "--truth", str(tmp_path / "truth.csv")]
    other = main([*flags, "--out", str(tmp_path / "other")])
    own["n_without_prediction"] = 0  # counted where there is a table of the truth
    assert {key: own[key] for key in own if key != "settings"} == {k: other[k] for k in other if k != "settings"}
    assert other["settings"]["format"] == "lines" and other["synonyms"]["joy"] == "happy"
    assert len(read_jsonl(tmp_path / "other" / "predictions.jsonl")) == 100
    assert main([*flags, "--out", str(tmp_path / "other")]) == other  # a rerun finds its own files
    (tmp_path / "erv.txt").write_text("c1|text\n")
    with pytest.raises(InputError, match="another predictions"):
        main([*flags, "--out", str(tmp_path / "other")])


def test_the_judge_is_measured_on_the_shipped_texts_unless_told_otherwise(tmp_path):
    planted(tmp_path, 20)
    flags = ["--predictions", str(tmp_path / "predictions.jsonl"), "--judge", "lexicon", "--out", str(tmp_path / "out")]
    judge = main(flags)["judge"]
    assert judge["n"] == 210 and judge["texts"] == "shipped" and 0.3 < judge["kappa"] < 1
    assert main([*flags, "--judge_check", "none"])["judge"]["accuracy"] is None
    (tmp_path / "labels.txt").write_text("happy\nsad\nbored\n")  # the shipped texts say nothing about bored
    write_jsonl(tmp_path / "predictions.jsonl", [ROW])
    flags = [*flags[:-1], str(tmp_path / "own"), "--labels", str(tmp_path / "labels.txt")]
    assert main(flags)["judge"]["n"] == 0


def test_words_that_name_an_emotion_can_be_hidden_from_the_judge(tmp_path):
    rows = [
        {"clip_id": "a", "label": "sad", "response": "<think>She is sad.</think><answer>sad</answer>"},
        {"clip_id": "b", "label": "sad", "response": "<think>She is sad, tearful.</think><answer>sad</answer>"},
    ]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    flags = ["--predictions", str(tmp_path / "predictions.jsonl"), "--judge", "lexicon", "--out", str(tmp_path / "out")]
    assert main(flags)["n_judge_failed"] == 0
    with pytest.raises(InputError, match="another judge"):
        main([*flags, "--hide_emotion_words"])
    metrics = main([*flags, "--hide_emotion_words", "--overwrite"])
    assert metrics["n_judge_failed"] == 1 and metrics["inconsistent_among_correct"] == 0
    assert metrics["judge"]["name"] == "lexicon, emotion words hidden"


def test_without_judgements_accuracy_is_measured_and_consistency_left_open(tmp_path):
    counts = planted(tmp_path)
    metrics = main(["--predictions", str(tmp_path / "predictions.jsonl"), "--out", str(tmp_path / "result")])
    assert metrics["war"] == counts["right"] / 200 and metrics["judge"] is None
    assert metrics["inconsistent_among_correct"] is None and metrics["n_judge_failed"] == 200


def test_a_judge_reads_the_reasoning_alone_and_its_own_accuracy_stands_beside_the_figures(tmp_path):
    counts = planted(tmp_path)
    check = [{"text": f"The face is {CUE_WORDS[label].split()[0]}.", "emotion": label} for label in DFEW]
    check[0]["text"], check[1]["text"] = check[1]["text"], "Nothing can be said."  # one wrong, one failure
    write_jsonl(tmp_path / "check.jsonl", check)
    done = run(
        tmp_path,
        *(
            "--predictions",
            "predictions.jsonl",
            "--judge",
            "lexicon",
            "--judge_check",
            "check.jsonl",
            "--out",
            "result",
        ),
    )
    assert done.returncode == 0, done.stderr
    metrics = read_json(tmp_path / "result" / "metrics.json")
    assert metrics["cells"]["right_inconsistent"] == counts["inconsistent"]
    assert metrics["judge"]["accuracy"] == pytest.approx(5 / 7)
    assert (metrics["judge"]["n"], metrics["judge"]["n_failed"], metrics["judge"]["name"]) == (7, 1, "lexicon")
    assert "71.43\u00a0%" in (tmp_path / "result" / "report.html").read_text()
    rows = read_jsonl(tmp_path / "result" / "judgements.jsonl", unique="clip_id")
    assert len(rows) == 200 and rows[0]["judge"] == "lexicon" and rows[0]["status"] == "ok"


def test_a_fitted_classifier_judges_without_torch_too(tmp_path):
    planted(tmp_path, 50)
    texts = {
        label: [f"{a} {b}" for a in words.split() for b in words.split()[:5]] for label, words in CUE_WORDS.items()
    }
    labels = [label for label in texts for _ in texts[label]]
    name = fit_classifier(
        [t for label in texts for t in texts[label]], labels, label_set("dfew"), tmp_path / "judge"
    ).name
    done = run(tmp_path, "--predictions", "predictions.jsonl", "--judge", "judge", "--out", "result")
    assert done.returncode == 0, done.stderr
    metrics = read_json(tmp_path / "result" / "metrics.json")
    assert metrics["judge"]["name"] == name and metrics["n_judge_failed"] == 0 and metrics["epc"] > 0.5


def test_the_judge_never_sees_the_answer(tmp_path):
    rows = [{"clip_id": "a", "label": "sad", "response": "<think>Nothing is said here.</think><answer>sad</answer>"}]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    flags = ["--predictions", str(tmp_path / "predictions.jsonl"), "--judge", "lexicon", "--out", str(tmp_path / "out")]
    metrics = main(flags)
    assert metrics["war"] == 1 and metrics["n_judge_failed"] == 1 and sum(metrics["cells"].values()) == 0
    assert metrics["inconsistent_among_correct"] is None and metrics["inconsistent_among_correct_worst"] == 1


def test_judging_goes_on_where_it_stopped_and_refuses_another_judge_or_other_predictions(tmp_path):
    planted(tmp_path, 20)
    flags = ["--predictions", str(tmp_path / "predictions.jsonl"), "--judge", "lexicon", "--out", str(tmp_path / "out")]
    main(flags)
    file = tmp_path / "out" / "judgements.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:7]) + lines[7][:20])  # killed in the middle of a line
    main(flags)
    assert file.read_bytes() == whole
    planted(tmp_path, 20, seed=1)
    with pytest.raises(InputError, match="another predictions"):
        main(flags)
    assert main([*flags, "--overwrite"])["n"] == 20


def test_what_is_derived_from_the_response_yields_to_what_the_row_says(tmp_path):
    rows = [
        {"clip_id": "a", "label": "happiness", "response": response("sad", "Happy."), "order": ["video"]},
        {"clip_id": "b", "label": "sad", "response": "sadly, free text", "answer": "SAD", "order": []},
        {"clip_id": "c", "label": "sad", "response": response("sad", "sad"), "answer": None},
        {"clip_id": "d", "label": "fear", "response": response("sad", "happy or sad")},
        {"clip_id": "e", "label": "fear", "response": "no format <answer>fear</answer>"},
        {"clip_id": "f", "label": "fear", "response": "<answer>fear</answer><answer>fear</answer>"},
    ]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    write_jsonl(tmp_path / "importance.jsonl", [{"clip_id": x, "dominant": "audio"} for x in "abcdxyz"])
    metrics = main(
        [
            *("--predictions", str(tmp_path / "predictions.jsonl"), "--out", str(tmp_path / "out")),
            *("--importance", str(tmp_path / "importance.jsonl")),
        ]
    )
    assert metrics["n_unparseable"] == 2 and metrics["war"] == pytest.approx(4 / 6)
    assert metrics["starts_with_dominant"] == pytest.approx(2 / 3) and metrics["starts_with_dominant_n"] == 3


def test_a_config_file_gives_the_same_keys_and_the_command_line_wins(tmp_path):
    planted(tmp_path, 30)
    config = tmp_path / "eval.yaml"
    config.write_text(
        f"predictions: {tmp_path}/predictions.jsonl\njudge: lexicon\nout: {tmp_path}/a\n"
        "resamples: 50\noverwrite: true\ncache_dir:\n"
    )
    assert main(["--config", str(config)])["bootstrap"] == {"resamples": 50, "seed": 0}
    assert (
        main(["--config", str(config), "--resamples", "60", "--out", str(tmp_path / "b")])["bootstrap"]["resamples"]
        == 60
    )
    assert (tmp_path / "a" / "report.html").exists() and (tmp_path / "b" / "report.html").exists()


ROW = {"clip_id": "c0", "label": "sad", "response": response("sad", "sad")}
SECOND = ROW | {"clip_id": "c1"}
JUDGED = {"clip_id": "c0", "judge": "j", "emotion": "sad"}


@pytest.mark.parametrize(
    ("predictions", "judgements", "flags", "message"),
    [
        (None, None, [], "predictions.jsonl: no such file"),
        ([ROW, {"clip_id": "c1", "label": "sad"}], None, [], "predictions.jsonl:2: missing 'response'"),
        (["{oops"], None, [], "predictions.jsonl:1: not valid JSON"),
        ([], None, [], "predictions.jsonl: no predictions in it"),
        ([ROW | {"label": "bored"}], None, [], "clip 'c0': label 'bored' is none of happy, sad"),
        ([ROW | {"label": None}], None, [], "clip 'c0': label None is none of happy, sad"),
        ([ROW, ROW], None, [], "clip 'c0' stands there twice"),
        ([ROW | {"clip_id": 7}], None, [], "clip_id must be a string"),
        ([ROW | {"clip_id": ["c"]}], None, [], "clip_id must be a string"),
        ([ROW | {"response": None}], None, [], "clip 'c0': response must be text, not NoneType"),
        ([ROW | {"order": ["smell"]}], None, [], "clip 'c0': order must be a list of video, audio, text"),
        ([ROW | {"order": [["video"]]}], None, [], "clip 'c0': order must be a list of video, audio, text"),
        ([ROW], [JUDGED | {"clip_id": "x"}], [], "clip 'x': judged, but not among the predictions"),
        ([ROW], [JUDGED, JUDGED], [], "judgements.jsonl: clip 'c0' stands there twice"),
        ([ROW], [JUDGED | {"emotion": "bored"}], [], "clip 'c0': emotion 'bored' is none of"),
        (
            [ROW, ROW | {"clip_id": "c1"}],
            [JUDGED, JUDGED | {"clip_id": "c1", "judge": "k"}],
            [],
            "one judge's judgements",
        ),
        ([ROW], [{"clip_id": "c0", "emotion": "sad"}], [], "judgements.jsonl:1: missing 'judge'"),
        ([ROW], None, ["--judge", "nobody"], "judge 'nobody': none of lexicon, embedded, llm:…, endpoint"),
        ([ROW], None, ["--labels", "none.txt"], "labels 'none.txt'"),
        ([ROW], None, ["--importance", "none.jsonl"], "none.jsonl: no such file"),
        ([ROW], [JUDGED], ["--judge", "lexicon"], "--predictions stands beside --judgements or --judge"),
        ([ROW], None, ["--judge_check", "check.jsonl"], "--judge_check needs --judge"),
        ([ROW], None, ["--clips", "clips.jsonl"], "--predictions stands beside --clips or --model"),
        ([ROW], None, ["--resample", "5"], "unknown flag '--resample', did you mean 'resamples'"),
        ([ROW], None, ["--resamples", "many"], "argument --resamples: invalid int value: 'many'"),
        ([ROW], None, ["--resamples", "0"], "--resamples must be from 10"),
        ([ROW], None, ["--judge_prices", "cheap"], "invalid PROMPT,COMPLETION value: 'cheap'"),
        ([ROW], None, ["--truth", "none.csv"], "none.csv: no such file"),
        ([ROW], None, ["--judge", "endpoint:nowhere"], "expected endpoint:URL#MODEL"),
        ([ROW], None, ["--judge", "llm:nowhere"], "judge llm:nowhere: no model folder"),
    ],
)
def test_a_mistake_in_the_input_is_named_in_one_line(tmp_path, predictions, judgements, flags, message):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    given = ["--predictions", str(tmp_path / "predictions.jsonl"), "--out", str(tmp_path / "out"), *flags]
    if predictions is not None:
        write("predictions.jsonl", predictions)
    if judgements is not None:
        given += ["--judgements", write("judgements.jsonl", judgements)]
    with pytest.raises(InputError) as error:
        main(given)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("predictoins: a.jsonl", "unknown key 'predictoins', did you mean 'predictions'?"),
        ("config: other.yaml", "unknown key 'config'"),
        ("out: [a, b]", "out must be one value"),
        ("- out", "expected `key: value` lines"),
        ("a: b: c", "mapping values are not allowed"),
        ("resamples: many", "argument --resamples: invalid int value"),
        ("predictions: a.jsonl", "--out is missing"),
        ("out: there", "--clips is missing"),
    ],
)
def test_a_mistake_in_the_config_is_named_in_one_line(tmp_path, text, message):
    (tmp_path / "eval.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        main(["--config", str(tmp_path / "eval.yaml")])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_ends_the_command_with_status_2_and_one_line(tmp_path):
    done = run(tmp_path, "--predictions", "nowhere.jsonl", "--out", "result")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: nowhere.jsonl: no such file" and not (tmp_path / "result").exists()
    done = run(tmp_path, "--prediction", "nowhere.jsonl")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown flag") and done.stderr.count("\n") == 1


def test_hostile_responses_are_counted_and_shown_harmlessly(tmp_path):
    hostile = "<script>alert(1)</script>\x00\x1b[2J\ud800" + "<audio>" * 150_000  # a megabyte
    row = {"clip_id": "<b>\x07", "label": "sad", "response": f"<think>{hostile}</think><answer>sad</answer>"}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    judged = {"clip_id": row["clip_id"], "judge": "<i>j</i>", "emotion": "angry"}
    (tmp_path / "judgements.jsonl").write_text(json.dumps(judged) + "\n")
    done = run(tmp_path, "--predictions", "predictions.jsonl", "--judgements", "judgements.jsonl", "--out", "result")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "result" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and "<i>j" not in page
    assert len(page) < 200_000 and not {"\x00", "\x1b", "\x07"} & set(page)
    assert read_json(tmp_path / "result" / "metrics.json")["inconsistent_among_correct"] == 1
    lexicon = main(
        ["--predictions", str(tmp_path / "predictions.jsonl"), "--judge", "lexicon", "--out", str(tmp_path / "judged")]
    )
    assert lexicon["n"] == 1


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A tiny untrained model and six planted clips, one without a label."""
    import migr.omni  # noqa: F401  (first: mends the libraries' imports)
    from migr.omni.prompt import question
    from migr.omni.tiny import build_tiny
    from migr.planted import clips as source

    folder = tmp_path_factory.mktemp("generated")
    texts = [question(DFEW), response("sad", "sad"), "system\nYou are a helpful assistant.", "user\nassistant\n"]
    build_tiny(folder / "model", texts * 20)
    rows = list(source.make(folder, 0, {"train": 0, "val": 0, "test": 6}))
    for i, row in enumerate(rows):
        row["path"] = f"clips/{row['clip_id']}.mp4"
        row["label"] = row["label"] if i else None
    write_jsonl(
        folder / "clips.jsonl", ({key: row[key] for key in ("clip_id", "path", "label", "split")} for row in rows)
    )
    return folder


def generate(folder, out, *flags):
    return main(
        [
            *("--clips", str(folder / "clips.jsonl"), "--model", str(folder / "model"), "--judge", "lexicon"),
            *("--engine", "transformers", "--max_new_tokens", "12", "--max_frames", "4", "--max_pixels", "3136"),
            *("--cache_dir", str(folder / "cache"), "--out", str(out), *flags),
        ]
    )


def test_generation_goes_on_where_it_stopped(generated, tmp_path, capsys):
    metrics = generate(generated, tmp_path / "whole")
    assert "1 of 6 clips have no label and are left out" in capsys.readouterr().out
    assert metrics["n"] == 5 and metrics["settings"]["split"] == "test"
    whole = read_jsonl(tmp_path / "whole" / "predictions.jsonl")
    assert set(whole[0]) == {"clip_id", "label", "response", "answer", "order", "finished"}
    assert read_json(tmp_path / "whole" / "env.json")["torch"]

    part = tmp_path / "part"
    assert generate(generated, part, "--limit", "2")["n"] == 2
    first = (part / "predictions.jsonl").read_text()
    (part / "predictions.jsonl").write_text(first + '{"clip_id": "test-0')  # killed in the middle of a line
    assert generate(generated, part)["n"] == 5
    assert (part / "predictions.jsonl").read_text().startswith(first)
    texts = {row["clip_id"]: row["response"] for row in read_jsonl(part / "predictions.jsonl", unique="clip_id")}
    assert texts == {row["clip_id"]: row["response"] for row in whole}
    assert len(read_jsonl(part / "judgements.jsonl", unique="clip_id")) == 5
    capsys.readouterr()
    assert generate(generated, part)["n"] == 5
    assert "holds all 5 predictions already" in capsys.readouterr().out


def test_a_run_of_another_configuration_is_not_continued(generated, tmp_path):
    out = tmp_path / "run"
    generate(generated, out, "--limit", "1")
    before = (out / "predictions.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"another decoding\.temperature \(0\.0, now 0\.7\): .*--overwrite"):
        generate(generated, out, "--temperature", "0.7")
    with pytest.raises(InputError, match="another media"):
        generate(generated, out, "--fps", "1")
    weights = next((generated / "model").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(InputError, match="another model"):
            generate(generated, out)
    finally:
        weights.write_bytes(content)
    assert (out / "predictions.jsonl").read_bytes() == before
    assert generate(generated, out, "--temperature", "0.7", "--limit", "1", "--overwrite")["n"] == 1
    assert read_json(out / "run.json")["decoding"]["temperature"] == 0.7


def test_predictions_of_unknown_origin_are_not_added_to(generated, tmp_path):
    write_jsonl(tmp_path / "predictions.jsonl", [ROW])
    with pytest.raises(InputError, match="nothing tells which run wrote it"):
        generate(generated, tmp_path)
    assert read_jsonl(tmp_path / "predictions.jsonl") == [ROW]


def test_a_folder_that_holds_no_model_is_named_before_anything_is_loaded(generated, tmp_path):
    with pytest.raises(InputError, match=r"--model .*nowhere: no model folder"):
        generate(generated, tmp_path / "out", "--model", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no clip of split 'dev'"):
        generate(generated, tmp_path / "out", "--split", "dev")
    assert not (tmp_path / "out").exists()


def test_what_real_systems_write_is_counted_and_what_was_not_read_is_said(tmp_path, capsys):
    weeps = "<think>She weeps and sobs.</think>"
    said = {
        "a": f"{weeps}<answer>sad",
        "b": "Sad.",
        "c": f"{weeps}<answer>worried</answer>",
        "d": f"{weeps}<answer>**Worried**</answer>",
        "e": "She is sobbing, tears everywhere.</think><answer>悲伤</answer>",
        "f": "nobody knows what this person feels, and why",
    }
    (tmp_path / "p.json").write_text(json.dumps(said))
    (tmp_path / "t.csv").write_text("clip,label\n" + "".join(f"{c},sad\n" for c in [*said, "g"]))
    flags = ["--predictions", str(tmp_path / "p.json"), "--truth", str(tmp_path / "t.csv"), "--judge", "lexicon"]
    metrics = main([*flags, "--judge_check", "none", "--out", str(tmp_path / "out")])
    assert (metrics["n"], metrics["n_unparseable"], metrics["n_without_reasoning"]) == (6, 3, 1)
    assert metrics["war"] == 0.5 and metrics["cells"]["right_consistent"] == 2 and metrics["n_judge_failed"] == 0
    assert metrics["inconsistent_among_correct_worst_n"] == 2  # what was not explained is neither
    assert metrics["unread_answers"] == {"worried": 2, "(no answer)": 1} and metrics["n_without_prediction"] == 1
    printed = capsys.readouterr().out
    assert "Answers not read" in printed and "worried 2" in printed and "LABEL: worried" in printed
    assert "1 clips of --truth have no prediction: they are not counted" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Answers without reasoning" in page and "worried 2" in page
    mine = tmp_path / "mine.txt"
    mine.write_text("extends: dfew\nsad: worried\n")
    again = [*flags, "--count_missing", "--labels", str(mine), "--judge_check", "none", "--out", str(tmp_path / "2")]
    metrics = main(again)
    assert (metrics["n"], metrics["war"]) == (7, 5 / 7) and metrics["n_unparseable"] == 2
    assert "they count as wrong" in capsys.readouterr().out


def test_the_headline_stands_both_ways_and_evidence_from_an_absent_modality_is_counted(tmp_path):
    texts = [
        "The voice is sad.",
        "He weeps and his gaze is downcast.",
        "A broad smile, but sad, sad, sadness.",
    ]
    rows = [
        {"clip_id": f"c{i}", "label": "sad", "response": f"<think>{text}</think><answer>sad</answer>"}
        for i, text in enumerate(texts)
    ]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    importance = [{"clip_id": f"c{i}", "dominant": "video", "importance": {"video": 1.0}} for i in range(3)]
    write_jsonl(tmp_path / "importance.jsonl", importance)
    flags = ["--predictions", tmp_path / "predictions.jsonl", "--importance", tmp_path / "importance.jsonl"]
    metrics = main([*map(str, flags), "--judge", "lexicon", "--judge_check", "none", "--out", str(tmp_path / "out")])
    assert metrics["n_absent_evidence"] == 1
    judged = read_jsonl(tmp_path / "out" / "judgements.jsonl")
    assert [row["emotion"] for row in judged] == ["sad"] * 3
    assert [row["emotion_hidden"] for row in judged] == [None, "sad", "happy"]
    assert metrics["inconsistent_among_correct"] == 0.0
    assert metrics["inconsistent_among_correct_hidden"] == 0.5 and metrics["inconsistent_among_correct_hidden_n"] == 2


def test_a_judge_s_blind_spots_and_another_language_are_said(tmp_path, capsys):
    rows = [
        {"clip_id": f"c{i}", "label": "sadness", "response": f"<think>{text}</think><answer>sadness</answer>"}
        for i, text in enumerate(["She weeps and looks down.", "她在哭泣，声音颤抖。"])
    ]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    flags = ["--predictions", str(tmp_path / "predictions.jsonl"), "--labels", "mafw", "--judge", "lexicon"]
    metrics = main([*flags, "--judge_check", "none", "--out", str(tmp_path / "out")])
    assert metrics["judge"]["blind"] == ["contempt", "anxiety", "helplessness", "disappointment"]
    assert metrics["judge"]["not_english"] == 0.5
    printed = " ".join(capsys.readouterr().out.split())
    assert "cannot name contempt, anxiety, helplessness, disappointment" in printed
    assert "50.00 % of the reasonings are not in English" in printed.replace("\u00a0", " ")


def test_the_readmes_example_ends_in_the_figures_that_it_shows(tmp_path):
    data = ROOT / "tests" / "data"
    flags = ["--predictions", str(data / "responses.txt"), "--truth", str(data / "responses_truth.csv")]
    metrics = main([*flags, "--judge", "lexicon", "--judge_check", "none", "--out", str(tmp_path)])
    assert (metrics["n"], metrics["war"], metrics["n_without_reasoning"]) == (6, 4 / 6, 1)
    assert metrics["unread_answers"] == {"worried": 1} and metrics["n_without_prediction"] == 1


@pytest.mark.skipif(find_spec(ENCODER) is None, reason="the extra `judge` is not installed")
def test_the_readmes_example_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command, shown = re.search(r"consistency\.py (--predictions tests/data/.*?)\n\n(.*?)\n\n", readme, re.S).groups()
    monkeypatch.chdir(ROOT)
    main([*command.replace("\\\n", " ").split()[:-1], str(tmp_path)])
    printed = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert len(shown.splitlines()) == 5 and {" ".join(line.split()) for line in shown.splitlines()} <= printed
