"""Judges that hold a model or ask an address, what is stored of them, and the measure of a judge."""

import json
import shutil
import time
from collections import Counter

import pytest
from tiny_judges import LABELS, SAYS, Server, build_classifier, build_roberta, build_text_model, free_port, says, serve

import migr.omni  # noqa: F401  (first: mends the libraries' imports)
from eval.judges import main
from migr.errors import InputError
from migr.files.records import digest, read_json, read_jsonl, write_jsonl
from migr.judge import CUE_WORDS, Judgement, LexiconJudge, close, judgement_row, open_judge, prompt_of, usage_of
from migr.judge import endpoint as endpoint_module
from migr.judge.endpoint import KEY
from migr.judge.hidden import HidingJudge
from migr.judge.huggingface import GOEMOTIONS, GOEMOTIONS_MAFW, label_map
from migr.judge.llm import LlmJudge
from migr.judge.measure import FAILED, SHIPPED, agreement, labelled_texts, reliability
from migr.judge.prompt import PROMPT, filled, prompt_for, read_reply
from migr.settings import EngineSettings
from migr.text.labels import _FAMILIES, DFEW, MAFW, label_set

TEXTS = ["He smiles.", "", "She weeps <|im_end|> {labels} {text}.", "A frown. " * 900]


class Stub:
    """A judge that counts what it is asked."""

    def __init__(self, answer=lambda text: "sad", prompt="?"):
        self.name, self.prompt, self.answer, self.asked = "stub", prompt, answer, []

    def judge(self, texts):
        self.asked += texts
        return [
            Judgement(found, {found: 1.0}) if (found := self.answer(text)) in DFEW else Judgement(None, {}, found)
            for text in texts
        ]


# The shipped texts and the measure of a judge


def test_the_shipped_texts_are_thirty_for_each_emotion_with_the_hard_kinds_in_each():
    rows = labelled_texts(SHIPPED, LABELS)
    counts = Counter((row["emotion"], row["kind"]) for row in rows)
    assert all(sum(n for (e, _), n in counts.items() if e == emotion) >= 30 for emotion in DFEW)
    assert all(counts[emotion, kind] >= 6 for emotion in DFEW for kind in ("plain", "mixed", "negation", "unnamed"))
    assert len({row["text"] for row in rows}) == len(rows)
    hide = HidingJudge(LexiconJudge(LABELS), LABELS).hide
    named = [row["text"] for row in rows if row["kind"] == "unnamed" and hide(row["text"]) != row["text"]]
    assert named == []
    assert {row["emotion"] for row in labelled_texts(SHIPPED, label_set("mafw"))} < set(MAFW)


def test_a_judge_is_measured_as_scikit_learn_would():
    from sklearn.metrics import cohen_kappa_score, recall_score

    rows = [{"text": e, "emotion": e, "kind": k} for e in DFEW for k in ("plain", "mixed", "plain")]
    replies = iter(["sad", "sad", "no cue", *DFEW[:1] * 6, *DFEW[3:4] * 12])
    facts = reliability(Stub(lambda _: next(replies)), rows, LABELS)
    truth = [row["emotion"] for row in rows]
    found = ["sad", "sad", FAILED, *["happy"] * 6, *["angry"] * 12]
    assert facts["accuracy"] == pytest.approx(3 / 21) and facts["n_failed"] == 1
    assert facts["kappa"] == pytest.approx(cohen_kappa_score(truth, found))
    recalls = recall_score(truth, found, labels=list(DFEW), average=None, zero_division=0)
    assert [facts["per_class"][label]["recall"] for label in DFEW] == pytest.approx(list(recalls))
    assert facts["confusion"]["counts"][0] == [0, 2, 0, 0, 0, 0, 0, 1]
    assert facts["per_class"]["happy"]["precision"] == 0 and facts["per_class"]["disgust"]["precision"] is None
    assert facts["per_kind"]["mixed"]["n"] == 7 and facts["per_kind"]["mixed"]["accuracy"] == pytest.approx(1 / 7)
    assert reliability(Stub(), [], LABELS) == {"name": "stub", "accuracy": None, "n": 0}


def test_two_judges_agree_where_both_judged_and_alike():
    def found(*emotions):
        return [Judgement(emotion, {}) for emotion in emotions]

    facts = agreement(found("sad", "sad", "fear", None), found("sad", "fear", "fear", "sad"), LABELS)
    assert facts["accuracy"] == pytest.approx(2 / 3) and facts["n"] == 3 and facts["n_failed"] == 1
    assert facts["confusion"]["counts"][-1][1] == 1


def test_the_command_measures_compares_and_lists_what_was_misread(tmp_path, capsys):
    from migr.judge import fit_classifier

    texts = [(f"{a} {b}", e) for e, cues in CUE_WORDS.items() for a in cues.split() for b in cues.split()[:4]]
    fit_classifier([t for t, _ in texts], [e for _, e in texts], LABELS, tmp_path / "fitted")
    found = main(["lexicon", str(tmp_path / "fitted"), "--out", str(tmp_path / "out")])
    assert read_json(tmp_path / "out" / "judges.json") == json.loads(json.dumps(found))
    assert [row["n"] for row in found["judges"]] == [210, 210] and len(found["pairs"]) == 1
    misread = read_jsonl(tmp_path / "out" / "misread.jsonl")
    wrong = sum(round(210 * (1 - row["accuracy"])) for row in found["judges"])
    assert len(misread) == wrong and all(row["judged"] != row["emotion"] for row in misread)
    assert "Cohen's kappa" in capsys.readouterr().out
    rows = [
        {"clip_id": str(i), "label": "sad", "response": f"<think>{t}</think>"} for i, (t, _) in enumerate(texts[:9])
    ]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    flags = ["--predictions", str(tmp_path / "predictions.jsonl")]
    assert main(["lexicon", str(tmp_path / "fitted"), *flags])["pairs"][0]["n"] == 9
    for wrong_flags, message in (
        (["lexicon", *flags], "name two judges"),
        (["lexicon", "lexicon"], "named twice"),
        (["lexicon", "--texts", str(tmp_path / "predictions.jsonl")], "missing 'text', 'emotion'"),
    ):
        with pytest.raises(InputError, match=message):
            main(wrong_flags)


# What is hidden, stored and cached


def test_every_word_that_names_an_emotion_is_hidden_and_evidence_is_not():
    hide = HidingJudge(LexiconJudge(LABELS), LABELS).hide
    words = [word for family in _FAMILIES for word in family] + ["sadly", "Angrily", "unhappiness", "taken aback"]
    assert [word for word in words if hide(f"He is {word}.") != "He is …."] == []
    assert hide("A smile, tears, a shout: madam, the contents!") == "A smile, tears, a shout: madam, the contents!"
    assert hide("他看起来很悲伤，声音低沉") == "他看起来很…，声音低沉"
    assert hide("Livid and frustrated, she is upset.") == "… and …, she is …."
    own = label_set("mafw")
    assert HidingJudge(LexiconJudge(own), own).hide("Contempt!") == "…!"


def test_a_cached_judgement_is_not_asked_for_again_and_a_missing_reply_is(tmp_path):
    from migr.judge.cache import CachedJudge

    stub = Stub(lambda text: {"a": "sad", "b": "no cue"}.get(text, "no reply: timeout"))
    file = tmp_path / "deep" / "cache.sqlite"
    first = CachedJudge(stub, file).judge(["a", "b", "a", "c"])
    assert stub.asked == ["a", "b", "c"] and [j.emotion for j in first] == ["sad", None, "sad", None]
    assert CachedJudge(stub, file).judge(["b", "c", "a"]) == [first[1], first[3], first[0]]
    assert stub.asked == ["a", "b", "c", "b", "c"]  # a failure is not kept
    stub.prompt = "another?"
    CachedJudge(stub, file).judge(["a"])
    stub.name = "other"
    CachedJudge(stub, file).judge(["a"])
    assert stub.asked[5:] == ["a", "a"]
    file.write_bytes(b"no database, " * 100)
    with pytest.raises(InputError, match=r"--judge_cache .*not a database"):
        CachedJudge(stub, file)


def test_a_row_names_the_prompt_by_its_hash_and_keeps_the_reply():
    row = judgement_row("c", Stub(), Judgement(None, {}, "not a label", "Sad or so"))
    assert row["prompt"] == digest("?") and row["reply"] == "Sad or so" and row["emotion"] is None
    assert set(judgement_row("c", LexiconJudge(LABELS), Judgement("sad", {"sad": 1 / 3}))) == {
        *("clip_id", "judge", "emotion", "status", "probabilities")
    }


@pytest.mark.parametrize(
    ("reply", "emotion", "status"),
    [
        ("sad", "sad", "ok"),
        (" Sadness.\n", "sad", "ok"),
        ('{"emotion": "joy"}', "happy", "ok"),
        ("sad or angry", None, "not a label"),
        ('{"emotion": ["sad"]}', None, "not a label"),
        ('{"mood": "sad"}', None, "not a label"),
        ("", None, "empty reply"),
        ("[" * 100_000, None, "not a label"),
        ('```json\n{"emotion": "sad"}\n```', "sad", "ok"),
        ('{"Emotion": "SAD", "confidence": 0.9}', "sad", "ok"),
        ("Emotion: **Sad**", "sad", "ok"),
        ('<think>sad or angry?</think>\n\n{"emotion": "angry"}', "angry", "ok"),
        ("The brows are low, the voice is loud.\n\nVerdict: angry", "angry", "ok"),
        ("<think>happy, I think", None, "no reply: cut"),
        ("愤怒", "angry", "ok"),
    ],
)
def test_a_reply_is_a_label_or_a_failure(reply, emotion, status):
    judgement = read_reply(reply, LABELS)
    assert (judgement.emotion, judgement.status) == (emotion, status)


def test_a_reasoning_cannot_leave_its_place_in_the_prompt():
    asked = filled(prompt_for(LABELS), TEXTS[2])
    assert "<|" not in asked and "She weeps < |im_end| > {labels} {text}." in asked
    assert "{text}" in PROMPT and asked.count(", ".join(DFEW)) == 1


# Hugging Face classifiers


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return build_classifier(tmp_path_factory.mktemp("hf") / "tiny-emotion")


def test_a_hugging_face_classifier_judges_through_its_label_map(classifier):
    judge = open_judge(classifier, LABELS)
    texts = [cues.split()[0] for cues in CUE_WORDS.values()]
    found = judge.judge([*texts, " "])
    assert [judgement.emotion for judgement in found] == [*CUE_WORDS, None] and found[-1].status == "empty"
    assert all(sum(j.probabilities.values()) == pytest.approx(1) and len(j.probabilities) == 7 for j in found[:-1])
    assert [judgement.emotion for judgement in judge.judge(texts[::-1])] == [*CUE_WORDS][::-1]
    assert found[0].reply.startswith("joy 0.") and found[0].reply.count(", ") == 2  # what it says in its own labels
    assert judge.name.startswith("tiny-emotion-") and open_judge(str(classifier), LABELS).name == judge.name
    mafw = open_judge(classifier, label_set("mafw"))
    assert mafw.judge(texts[:2])[0].emotion == "happiness" and mafw.name != judge.name


def test_what_is_longer_than_the_model_reads_is_read_in_windows_not_cut(classifier):
    judge = open_judge(classifier, LABELS)
    sad, glad = (" ".join(CUE_WORDS[emotion].split()[:8]) for emotion in ("sad", "happy"))
    assert judge.judge([f"{glad} " + f"{sad} " * 12])[0].emotion == "sad"  # 100 words; the model reads 28 at once


def test_goemotions_reaches_every_label_of_dfew_and_mafw(tmp_path):
    names = list(GOEMOTIONS)
    assert len(names) == 28 and set(GOEMOTIONS_MAFW) < set(names)
    for labels in (LABELS, label_set("mafw")):
        found = label_map(tmp_path, names, labels, None)
        assert set(found) == set(labels.labels)
    mafw = dict(zip(names, label_map(tmp_path, names, label_set("mafw"), None), strict=True))
    assert (mafw["nervousness"], mafw["grief"], mafw["love"]) == ("anxiety", "helplessness", "happiness")
    _, model = build_roberta(tmp_path / "go", names, problem_type="multi_label_classification")
    model.save_pretrained(tmp_path / "go")
    judgement = open_judge(tmp_path / "go", LABELS).judge(["smile"])[0]
    assert set(judgement.probabilities) == set(DFEW) and sum(judgement.probabilities.values()) == pytest.approx(1)


def test_a_classifier_that_cannot_be_used_is_named(tmp_path, classifier):
    import torch

    def broken(change):
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(classifier, folder)
        change(folder)
        with pytest.raises(InputError) as error:
            open_judge(folder, LABELS).judge(["smile"])
        return str(error.value)

    def config(**changes):
        def change(folder):
            found = {**read_json(folder / "config.json"), **changes}
            (folder / "config.json").write_text(json.dumps(found))

        return change

    def pickle(folder):
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")

    assert "weights as pickles are not loaded" in broken(pickle)
    assert "label_map.json beside config.json" in broken(config(id2label={"0": "LABEL_0", "1": "LABEL_1"}))
    assert "to ask a language model, say llm:" in broken(config(architectures=["Qwen3ForCausalLM"]))
    assert "cannot be loaded as a text classifier" in broken(
        config(model_type="evil", auto_map={"AutoModelForSequenceClassification": "evil.Evil"})
    )
    assert "'x' is no label of the model" in broken(lambda f: (f / "label_map.json").write_text('{"x": "sad"}'))
    assert "'bored' is not in dfew" in broken(lambda f: (f / "label_map.json").write_text('{"joy": "bored"}'))
    own = {"joy": "sad", "sadness": "happy", "fear": None}
    shutil.copytree(classifier, tmp_path / "mapped")
    (tmp_path / "mapped" / "label_map.json").write_text(json.dumps(own))
    judge = open_judge(tmp_path / "mapped", LABELS)
    assert judge.judge(["smile grin laugh"])[0].emotion == "sad" and judge.name != open_judge(classifier, LABELS).name


# Language models through the engine


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    from migr.omni.tiny import build_tiny

    folder = tmp_path_factory.mktemp("llm") / "thinker"
    build_tiny(folder, [prompt_for(LABELS), *[row["text"] for row in read_jsonl(SHIPPED)]])
    return folder


@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_a_language_model_can_only_reply_with_a_label(thinker, backend):
    judge = LlmJudge(thinker, LABELS, EngineSettings(backend))
    try:
        found = judge.judge(TEXTS)
    finally:
        close(judge)
    assert [judgement.status for judgement in found] == ["ok", "empty", "ok", "ok"]
    assert all(judgement.emotion in DFEW and judgement.reply == judgement.emotion for judgement in found[::2])
    assert judge.name.startswith("llm-thinker-") and prompt_of(judge) == prompt_for(LABELS)
    assert judge.judge([""]) == [Judgement(None, {}, "empty")]  # nothing to ask: no model is loaded


def test_a_model_that_writes_no_text_is_no_judge(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    with pytest.raises(InputError, match=r"BertForMaskedLM is no causal language model .*endpoint:http"):
        open_judge(f"llm:{tmp_path}", LABELS)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return build_text_model(tmp_path_factory.mktemp("llm") / "text")


@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_any_causal_language_model_is_a_judge_whatever_runs_it(text_model, backend):
    judge = LlmJudge(text_model, LABELS, EngineSettings(engine=backend))
    try:
        found = judge.judge([*SAYS, ""])
    finally:
        close(judge)
    assert [judgement.emotion for judgement in found] == ["happy", "sad", "angry", None, None]
    assert [judgement.status for judgement in found[3:]] == ["not a label", "empty"]
    assert found[1].reply == SAYS["She weeps."]


@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_a_language_model_with_damaged_weights_is_no_judge(text_model, tmp_path, backend):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(text_model, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.gate_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"llm:.*gate_proj\.weight are not finite"):
        LlmJudge(folder, LABELS, EngineSettings(engine=backend)).judge(["She weeps."])
    large = {**read_json(folder / "config.json"), "intermediate_size": 1 << 20}
    (folder / "config.json").write_text(json.dumps(large))
    with pytest.raises(InputError, match=r"config\.json describes a model of [\d,]+ weights, [\d,]+ are there"):
        LlmJudge(folder, LABELS, EngineSettings(engine=backend)).judge(["She weeps."])


# Endpoints


def test_an_endpoint_is_asked_for_one_of_the_labels_and_its_tokens_are_counted(monkeypatch, tmp_path):
    monkeypatch.setenv(KEY, "secret-key")
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-others")
    script = [says('{"emotion": "sad"}'), says("Fear."), *[says("who knows")] * 2, says(None)]
    with Server(*script) as server:
        monkeypatch.setattr(endpoint_module, "AT_ONCE", 1)  # in order, so that the script's replies are known
        judge = open_judge(f"endpoint:{server.url}#m", LABELS, cache=tmp_path / "c.sqlite", prices=(2.0, 8.0))
        found = judge.judge(["one", "two", "three", "four", "", "one"])
        again = open_judge(f"endpoint:{server.url}#m", LABELS, cache=tmp_path / "c.sqlite")
        assert again.judge(["one", "two"]) == found[:2]
    assert [judgement.emotion for judgement in found] == ["sad", "fear", None, None, None, "sad"]
    assert [judgement.status for judgement in found[2:5]] == ["not a label", "empty reply", "empty"]
    assert usage_of(judge) == {
        **{"requests": 6, "failed": 0, "prompt_tokens": 600, "completion_tokens": 30},  # failures once more
        "cost": pytest.approx((600 * 2 + 30 * 8) / 1e6),
    }
    assert usage_of(again)["requests"] == 0 and len(server.seen) == 6
    headers, body = server.seen[0]
    assert headers["authorization"] == "Bearer secret-key" and body["model"] == "m" and body["temperature"] == 0
    assert body["response_format"]["json_schema"]["schema"]["properties"]["emotion"]["enum"] == list(DFEW)
    assert body["messages"][0]["content"] == filled(prompt_for(LABELS), "one")


def test_rate_limits_and_server_errors_are_tried_again_and_lasting_ones_are_a_status(monkeypatch):
    script = [(429, {"error": {"message": "slow down"}}), (503, b"<html>"), says("sad")]
    with Server(*script) as server:
        judge = open_judge(f"endpoint:{server.url}#m", LABELS)
        assert judge.judge(["x"])[0].emotion == "sad" and len(server.seen) == 3
    monkeypatch.setattr(endpoint_module, "ATTEMPTS", 2)
    with Server((500, {"error": {"message": "broken"}})) as server:
        found = open_judge(f"endpoint:{server.url}#m", LABELS).judge(["x"])[0]
        assert found.emotion is None and found.status.startswith("no reply: ") and len(server.seen) == 2
    with Server((200, b"this is no JSON")) as server:
        assert open_judge(f"endpoint:{server.url}#m", LABELS).judge(["x"])[0].status.startswith("no reply")
    monkeypatch.setattr(endpoint_module, "SECONDS", 0.2)
    with Server(lambda body: (time.sleep(0.6), says("sad"))[1]) as server:
        assert "timed out" in open_judge(f"endpoint:{server.url}#m", LABELS).judge(["x"])[0].status


def test_a_reply_that_was_cut_is_asked_for_once_more_with_more_room_and_is_not_kept(tmp_path):
    cut = says("<think>Hm, tears", finish="length")
    with Server(cut, cut, says("sad")) as server:
        judge = open_judge(f"endpoint:{server.url}#m", LABELS, cache=tmp_path / "cache.sqlite")
        assert judge.judge(["x"])[0].status == "no reply: cut"
        room = [body["max_completion_tokens"] for _, body in server.seen]
        assert room == [endpoint_module.REPLY, 2 * endpoint_module.REPLY]
        assert judge.judge(["x", "x"])[1].emotion == "sad" and len(server.seen) == 3


def test_an_option_that_a_server_refuses_is_left_out_from_then_on():
    refusal = (400, {"error": {"message": "Unsupported parameter: 'response_format' is not supported"}})

    def plain(body):
        return refusal if "response_format" in body else says("sad")

    with Server(plain) as server:
        judge = open_judge(f"endpoint:{server.url}#m", LABELS)
        assert [judgement.emotion for judgement in judge.judge(["x"]) + judge.judge(["y", "z"])] == ["sad"] * 3
        assert len(server.seen) == 4
    with Server((400, {"error": {"message": "the prompt is too long"}})) as server:
        found = open_judge(f"endpoint:{server.url}#m", LABELS).judge(["x"])[0]
        assert "the prompt is too long" in found.status and len(server.seen) == 1


def test_what_waiting_cannot_mend_stops_the_run_without_telling_the_key(monkeypatch):
    monkeypatch.setenv(KEY, "secret-key")
    monkeypatch.setattr(endpoint_module, "ATTEMPTS", 1)
    for status, message in ((401, "refused the key in MIGR_JUDGE_KEY"), (404, "no such model or address")):
        with Server((status, {"error": {"message": "no: secret-key"}})) as server:
            with pytest.raises(InputError, match=message) as error:
                open_judge(f"endpoint:{server.url}#m", LABELS).judge(["x", "y"])
            assert "secret-key" not in str(error.value)
    with Server((500, {})) as server, pytest.raises(InputError, match=r"10 requests in a row failed"):
        open_judge(f"endpoint:{server.url}#m", LABELS).judge([str(i) for i in range(30)])
    assert 10 <= len(server.seen) < 10 + endpoint_module.AT_ONCE
    with pytest.raises(InputError, match=r"nobody answers at http://127.*run again when it is there"):
        open_judge(f"endpoint:http://127.0.0.1:{free_port()}/v1#m", LABELS).judge(["x"])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host/v1", "expected endpoint:URL#MODEL"),
        ("ftp://host/v1#m", "expected endpoint:URL#MODEL"),
        ("https://user:key@host/v1#m", "the URL must hold no key"),
        ("https://host/v1?key=1#m", "the URL must hold no key"),
        ("http://host/v1#m", "the key would travel unencrypted"),
    ],
)
def test_an_address_that_would_give_the_key_away_is_refused(address, message, monkeypatch):
    monkeypatch.setenv(KEY, "secret-key")
    with pytest.raises(InputError, match=message):
        open_judge(f"endpoint:{address}", LABELS)


def test_the_key_of_openai_goes_to_openai_alone(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert open_judge("endpoint:https://api.openai.com/v1#m", LABELS).client.api_key == "theirs"
    assert open_judge("endpoint:https://elsewhere.example/v1#m", LABELS).client.api_key == "none"


@pytest.mark.slow
def test_vllms_own_server_is_an_endpoint_and_can_only_reply_with_a_label(thinker, tmp_path):
    """A tiny text-only language model behind `vllm serve` on loopback."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path / "tiny-lm"
    torch.manual_seed(0)
    tokens = len(read_json(thinker / "tokenizer.json")["model"]["vocab"]) + 64
    config = Qwen2Config(
        vocab_size=tokens, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(thinker / name, folder / name)
    with serve(folder, tmp_path) as url:
        judge = open_judge(f"endpoint:{url}#tiny", LABELS, cache=tmp_path / "c.sqlite")
        texts = [row["text"] for row in read_jsonl(SHIPPED)][::14]
        found = judge.judge(texts)
        assert all(judgement.status == "ok" and judgement.emotion in DFEW for judgement in found)
        assert all(json.loads(judgement.reply) == {"emotion": judgement.emotion} for judgement in found)
        usage = usage_of(judge)
        assert usage["requests"] == len(texts) and usage["prompt_tokens"] > 15 * 50 and usage["completion_tokens"] > 15
        assert judge.judge(texts) == found and usage_of(judge)["requests"] == len(texts)
        with pytest.raises(InputError, match="no such model or address"):
            open_judge(f"endpoint:{url}#another", LABELS).judge(["x"])
