import math
import pickle
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_judges import Server, says

from eval.run.predict import judge_all
from migr.errors import InputError
from migr.files.records import write_jsonl
from migr.judge import Judgement, LexiconJudge, blind_labels, endpoint, open_judge
from migr.planted import clips as planted
from migr.text.format import parse, render
from migr.text.labels import DFEW, label_set
from reward import REWARDS, make_rewards
from reward.consistency import ConsistencyReward, refuse_blind_judge, require_reply
from reward.evidence import EvidenceReward
from reward.language import LanguageNote, english_readers
from reward.score import text_of

LABELS = label_set("dfew")
PUBLISHED = ["format", "accuracy", "consistency", "grounding"]  # of the recipes
FUNCTIONS = make_rewards(PUBLISHED, LABELS, LexiconJudge(LABELS))
IMPORTANCE = {"video": 0.2, "audio": 0.8}
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<video>", "</video>", "angry", "glare ", "\x00", "𐏿"]
STRINGS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(PIECES)).map("".join)


def score(text: str, label: str = "angry", importance: dict | None = None) -> dict[str, float | None]:
    columns = {"label": [label], "importance": [IMPORTANCE if importance is None else importance]}
    chat = [[{"role": "assistant", "content": text}]]
    return {
        name: function(completions=chat, prompts=[""], **columns)[0]
        for name, function in zip(PUBLISHED, FUNCTIONS, strict=True)
    }


@pytest.mark.parametrize("index", range(140))
def test_every_gold_target_scores_one_on_every_reward(index):
    row = planted.spec(3, "train", index)
    dominant = row["planted"]["dominant"]
    order = sorted(row["segments"], key=lambda modality: modality != dominant)
    importance = {"video": 0.3, "audio": 0.3, dominant: 0.7}
    target = render(row["segments"], row["conclusion"], row["label"], order)
    assert score(target, row["label"], importance) == dict.fromkeys(PUBLISHED, 1.0)


@pytest.mark.parametrize(
    "answer", ["", " ", "a", "<answer>angry</answer>", ", ".join(DFEW), "angry or sad", "angry</answer><answer>sad"]
)
def test_empty_duplicated_nested_and_all_labels_answers_score_zero(answer):
    text = f"<think><audio>A harsh rough tone.</audio><video>Lowered brows.</video>So.</think><answer>{answer}</answer>"
    found = score(text)
    assert found["accuracy"] == 0.0 and found["consistency"] == 0.0


def test_the_same_answer_twice_is_an_answer_and_not_the_format():
    text = "<think><audio>A harsh rough tone.</audio>So.</think><answer>angry</answer><answer>angry</answer>"
    assert score(text)["accuracy"] == 1.0 and score(text)["format"] == 0.0


def test_a_right_answer_with_the_reasoning_of_another_emotion_is_not_consistent():
    text = "<think><audio>A singing tone and a bouncing rhythm.</audio></think><answer>angry</answer>"
    assert score(text)["accuracy"] == 1.0 and score(text)["consistency"] == 0.0


def test_being_consistently_wrong_does_not_pay():
    text = "<think><audio>A singing tone and a bouncing rhythm.</audio></think><answer>happy</answer>"
    assert score(text, "angry")["consistency"] == 0.0 and score(text, "happy")["consistency"] == 1.0


def test_a_right_answer_that_the_judge_cannot_judge_is_none_and_one_without_reasoning_zero():
    assert score("<think>It is what it is, and so on.</think><answer>angry</answer>")["consistency"] is None
    assert score("<answer>angry</answer>")["consistency"] == 0.0


def test_grounding_wants_the_dominant_modality_first_and_segments_about_their_own():
    audio, video = "<audio>A harsh voice.</audio>", "<video>The brows are low.</video>"
    swapped = "<audio>The brows are low.</audio><video>A harsh voice.</video>"
    texts = [f"<think>{body}</think><answer>angry</answer>" for body in (audio + video, video + audio, swapped, "none")]
    assert [score(text)["grounding"] for text in texts] == [1.0, 0.5, 0.0, 0.0]
    assert score(texts[0], importance={})["grounding"] is None


@given(STRINGS)
def test_any_string_scores_in_zero_to_one(text):
    for value in score(text).values():
        assert value is None or (math.isfinite(value) and 0.0 <= value <= 1.0)


@pytest.mark.parametrize("unit", ["<think>", "a", "<video>glare</video>", "perhaps ", ".", "\n", "<answer>"])
def test_a_megabyte_scores_in_linear_time(unit):
    text = "<think>" + unit * (1_000_000 // len(unit)) + "</think><answer>angry</answer>"
    start = time.process_time()
    score(text)
    assert time.process_time() - start < 5


def test_rewards_can_be_pickled_and_an_unknown_one_is_named():
    assert [f.__name__ for f in FUNCTIONS] == ["format_reward", "accuracy", "consistency", "grounding_reward"]
    pickle.loads(pickle.dumps(FUNCTIONS))  # noqa: S301  (our own bytes)
    with pytest.raises(InputError, match="speling"):
        make_rewards(["speling"], LABELS, LexiconJudge(LABELS))


def test_sampled_inconsistency_is_logged():
    logged = {}
    text = "<think><audio>A singing tone.</audio></think><answer>angry</answer>"
    FUNCTIONS[2](completions=[text, text], label=["angry", "angry"], log_metric=logged.__setitem__)
    assert logged.pop("judge_seconds") >= 0
    assert logged == {"inconsistent_among_correct": 1.0, "judge_failed": 0.0}


def answered(text):
    return f"<think>{text}</think><answer>angry</answer>"


class Reader:
    """A judge that keeps what it reads."""

    name = "reader"

    def __init__(self):
        self.texts = []

    def judge(self, texts):
        self.texts += texts
        return [Judgement("angry", {"angry": 1.0}) for _ in texts]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(STRINGS | STRINGS.map(answered), min_size=1, max_size=4))
def test_the_reward_s_judge_reads_what_the_evaluation_s_judge_reads(tmp_path, texts):
    reward, evaluation = Reader(), Reader()
    ConsistencyReward(LABELS, reward)(completions=texts, label=["angry"] * len(texts))
    rows = [{"clip_id": str(i), "label": "angry", "response": text} for i, text in enumerate(texts)]
    write_jsonl(tmp_path / "predictions.jsonl", rows)
    (tmp_path / "judgements.jsonl").unlink(missing_ok=True)
    judge_all(tmp_path / "predictions.jsonl", evaluation, tmp_path / "judgements.jsonl", len(rows))
    assert evaluation.texts == [parse(text).plain for text in texts]
    right = [text for text in map(parse, texts) if text.label(LABELS) == "angry" and not text.hides_answer]
    assert reward.texts == list(dict.fromkeys(text.plain for text in right if text.plain))


def brevity(completions, longest=20, **_):
    return [float(len(text_of(completion)) <= longest) for completion in completions]


class Named:
    """A reward of one's own that asks for the label set."""

    def __init__(self, labels, word):
        self.labels, self.word = labels, word

    def __call__(self, completions, **_):
        return [float(self.word in text_of(completion)) for completion in completions]


def test_a_reward_of_one_s_own_is_named_by_its_dotted_path_and_takes_parameters():
    names = ["test_rewards.brevity", "test_rewards.Named"]
    parameters = {"test_rewards.brevity": {"longest": 3}, "test_rewards.Named": {"word": "frown"}}
    short, named = make_rewards(names, LABELS, LexiconJudge(LABELS), parameters)
    assert short(completions=["abc", "abcd"]) == [1.0, 0.0] and named(completions=["a frown"]) == [1.0]
    assert make_rewards(names[:1], LABELS, LexiconJudge(LABELS))[0](completions=["abcd"]) == [1.0]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("nowhere.reward", {}, "No module named 'nowhere'"),
        ("test_rewards.nothing", {}, "nothing"),
        ("test_rewards.LABELS", {}, "no function and no class"),
        ("test_rewards.Named", {}, "'word'; its parameters"),
        ("test_rewards.Named", {"speling": 1}, "no parameter 'speling'"),
        ("accuracy", {"longest": 1}, "no parameter 'longest'"),
    ],
)
def test_a_reward_that_cannot_be_made_is_one_line(name, parameters, message):
    with pytest.raises(InputError, match=message):
        make_rewards([name], LABELS, LexiconJudge(LABELS), {name: parameters})
    with pytest.raises(InputError, match="'other' is none of the rewards"):
        make_rewards(["format"], LABELS, LexiconJudge(LABELS), {"other": {}})


def test_a_judge_that_is_blind_for_a_label_is_refused_unless_told(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("calm\ntense\nangry\n")
    judge = open_judge("lexicon", label_set(str(tmp_path / "own.txt")), hide_emotion_words=True)
    assert blind_labels(judge) == ("calm", "tense")
    refuse_blind_judge(judge, {"angry"}, allowed=False)
    with pytest.raises(InputError, match=r"cannot name calm, tense: .*--allow_blind_judge"):
        refuse_blind_judge(judge, {"calm", "tense"}, allowed=False)
    refuse_blind_judge(judge, {"tense"}, allowed=True)
    assert "cannot name tense" in capsys.readouterr().out
    assert blind_labels(LexiconJudge(LABELS)) == ()
    assert blind_labels(LexiconJudge(label_set("mafw"))) == ("contempt", "anxiety", "helplessness", "disappointment")


@pytest.mark.parametrize(
    ("texts", "noted"),
    [
        (["画面中他皱着眉头。声音颤抖。"] * 4, True),
        (["She looks down, and her voice is low.", "", "12 34"] * 4, False),
        (["Elle pleure et sa voix tremble, les yeux baissés."] + ["He weeps, and his eyes are wet."] * 3, True),
    ],
)
def test_responses_in_a_language_that_a_reward_does_not_read_are_noted_once(texts, noted, capsys):
    readers = english_readers(list(REWARDS), open_judge("lexicon", LABELS), hide_emotion_words=True)
    assert readers == ["the reward grounding", "judge lexicon", "hide_emotion_words"]
    reward = LanguageNote(make_rewards(["format"], LABELS, LexiconJudge(LABELS))[0], readers)
    for _ in range(8):
        assert reward([f"<think>{text}</think><answer>sad</answer>" for text in texts]) == [
            float(bool(text)) for text in texts
        ]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == noted and all("not in English" in line and "judge lexicon" in line for line in lines)


def test_what_reads_english_alone_depends_on_the_rewards_and_their_judge():
    class Polyglot:
        name = "polyglot"

    assert english_readers(["format", "accuracy"], LexiconJudge(LABELS), hide_emotion_words=True) == []
    assert english_readers(["consistency"], Polyglot(), hide_emotion_words=False) == []
    assert english_readers(["consistency", "grounding"], Polyglot(), True) == [
        "the reward grounding",
        "hide_emotion_words",
    ]


def test_a_judge_is_asked_past_its_cache_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "ATTEMPTS", 1)
    cache = tmp_path / "cache.sqlite"
    with Server(says("happy"), says("sad")) as server:
        judge = open_judge(f"endpoint:{server.url}#m", LABELS, hide_emotion_words=True, cache=cache)
        require_reply(judge)
        require_reply(judge)
        assert len(server.seen) == 2
    with pytest.raises(InputError, match="nobody answers"):
        require_reply(judge)
    with Server((200, b"no JSON")) as server, pytest.raises(InputError, match="no reply: no JSON"):
        require_reply(open_judge(f"endpoint:{server.url}#m", LABELS, cache=cache))
    require_reply(LexiconJudge(LABELS))


# Evidence

TEXT = "<think><video>A deep frown.</video>So it is.</think><answer>angry</answer>"


def measured(text, gain):
    """One token a character; `gain` of those in the segment, 9 elsewhere."""
    start, end = text.index("A deep"), text.index("</video>")
    spans = [(i, i + 1) for i in range(len(text))]
    return {"spans": spans, "gains": [gain if start <= i < end else 9.0 for i in range(len(text))]}


@pytest.mark.parametrize(
    ("gain", "value"), [(0.0, 0.0), (-3.0, 0.0), (math.log(2), 0.5), (math.log(4), 0.75), (700.0, 1.0), (-700.0, 0.0)]
)
def test_evidence_pays_the_share_of_its_likelihood_that_a_token_owes_to_the_clip(gain, value):
    logged = {}
    given = measured(TEXT, gain)
    assert EvidenceReward()([TEXT], [given], logged.__setitem__) == pytest.approx([value])
    assert logged == {"evidence_gain": pytest.approx(gain)}


def test_evidence_counts_segments_alone_and_says_none_where_nobody_measured():
    reward = EvidenceReward()
    free = "<think>A deep frown.</think><answer>angry</answer>"
    given = {"spans": [(i, i + 1) for i in range(len(free))], "gains": [5.0] * len(free)}
    assert reward([free], [given]) == [0.0] and reward([""], [{"spans": [], "gains": []}]) == [0.0]
    assert reward([TEXT, free]) == [None, None]
    assert reward([[{"content": TEXT}]], [measured(TEXT, 9.0)]) == pytest.approx([1.0], abs=1e-3)
    assert make_rewards(["evidence"], LABELS, LexiconJudge(LABELS))[0].needs_gains


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.lists(st.floats(-1e6, 1e6), max_size=80))
def test_evidence_of_any_text_is_none_or_between_zero_and_one(text, gains):
    response = f"<think><audio>{text}</audio></think>"
    spans = [(i, i + 1) for i in range(len(gains))]
    (value,) = EvidenceReward()([response], [{"spans": spans, "gains": gains}])
    assert 0.0 <= value <= 1.0
