import math
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migr.errors import InputError
from migr.judge import LexiconJudge
from migr.planted import clips as planted
from migr.text.format import render
from migr.text.labels import DFEW, label_set
from reward import REWARDS, make_rewards

LABELS = label_set("dfew")
FUNCTIONS = make_rewards(list(REWARDS), LABELS, LexiconJudge(LABELS))
IMPORTANCE = {"video": 0.2, "audio": 0.8}


def score(text: str, label: str = "angry", importance: dict | None = None) -> dict[str, float | None]:
    columns = {"label": [label], "importance": [IMPORTANCE if importance is None else importance]}
    chat = [[{"role": "assistant", "content": text}]]
    return {
        name: function(completions=chat, prompts=[""], **columns)[0]
        for name, function in zip(REWARDS, FUNCTIONS, strict=True)
    }


@pytest.mark.parametrize("index", range(140))
def test_every_gold_target_scores_one_on_every_reward(index):
    row = planted.spec(3, "train", index)
    dominant = row["planted"]["dominant"]
    order = sorted(row["segments"], key=lambda modality: modality != dominant)
    importance = {"video": 0.3, "audio": 0.3, dominant: 0.7}
    target = render(row["segments"], row["conclusion"], row["label"], order)
    assert score(target, row["label"], importance) == dict.fromkeys(REWARDS, 1.0)


@pytest.mark.parametrize(
    "answer", ["", " ", "a", "<answer>angry</answer>", ", ".join(DFEW), "angry or sad", "angry</answer><answer>angry"]
)
def test_empty_duplicated_nested_and_all_labels_answers_score_zero(answer):
    text = f"<think><audio>A harsh rough tone.</audio><video>Lowered brows.</video>So.</think><answer>{answer}</answer>"
    found = score(text)
    assert found["accuracy"] == 0.0 and found["consistency"] == 0.0


def test_a_right_answer_with_the_reasoning_of_another_emotion_is_not_consistent():
    text = "<think><audio>A singing tone and a bouncing rhythm.</audio></think><answer>angry</answer>"
    assert score(text)["accuracy"] == 1.0 and score(text)["consistency"] == 0.0


def test_being_consistently_wrong_does_not_pay():
    text = "<think><audio>A singing tone and a bouncing rhythm.</audio></think><answer>happy</answer>"
    assert score(text, "angry")["consistency"] == 0.0 and score(text, "happy")["consistency"] == 1.0


def test_a_right_answer_that_the_judge_cannot_judge_is_none():
    assert score("<think>It is what it is, and so on.</think><answer>angry</answer>")["consistency"] is None


def test_grounding_wants_the_dominant_modality_first_and_segments_about_their_own():
    audio, video = "<audio>A harsh voice.</audio>", "<video>The brows are low.</video>"
    swapped = "<audio>The brows are low.</audio><video>A harsh voice.</video>"
    texts = [f"<think>{body}</think><answer>angry</answer>" for body in (audio + video, video + audio, swapped, "none")]
    assert [score(text)["grounding"] for text in texts] == [1.0, 0.5, 0.5, 0.0]
    assert score(texts[0], importance={})["grounding"] is None


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["<think>", "</think>", "<answer>", "</answer>", "<video>", "</video>", "angry", "glare ", "\x00", "𐏿"]
        )
    ).map("".join)
)
def test_any_string_scores_in_zero_to_one(text):
    for value in score(text).values():
        assert value is None or (math.isfinite(value) and 0.0 <= value <= 1.0)


@pytest.mark.parametrize("unit", ["<think>", "a", "<video>glare</video>", "perhaps ", ".", "\n", "<answer>"])
def test_a_megabyte_scores_in_linear_time(unit):
    text = "<think>" + unit * (1_000_000 // len(unit)) + "</think><answer>angry</answer>"
    start = time.perf_counter()
    score(text)
    assert time.perf_counter() - start < 5


def test_rewards_can_be_pickled_and_an_unknown_one_is_named():
    assert [f.__name__ for f in FUNCTIONS] == ["format_reward", "accuracy", "consistency", "grounding_reward"]
    pickle.loads(pickle.dumps(FUNCTIONS))  # noqa: S301  (our own bytes)
    with pytest.raises(InputError, match="speling"):
        make_rewards(["speling"], LABELS, LexiconJudge(LABELS))


def test_sampled_inconsistency_is_logged():
    logged = {}
    text = "<think><audio>A singing tone.</audio></think><answer>angry</answer>"
    FUNCTIONS[2](completions=[text, text], label=["angry", "angry"], log_metric=logged.__setitem__)
    assert logged == {"inconsistent_among_correct": 1.0}
