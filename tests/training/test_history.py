import json
import math

import pytest
from PIL import Image

from migr.errors import InputError
from migr.training.card import write_card
from migr.training.history import plot, read_history, reward_line, rewards, warnings


def grpo(**changes):
    """Three logged steps of a healthy run; `changes` replace a value in all of them."""
    row = {
        "loss": 0.1,
        "rewards/accuracy/mean": 0.5,
        "rewards/consistency/mean": 0.25,
        "completions/clipped_ratio": 0.1,
    }
    return [{**row, "frac_reward_zero_std": 0.2, **changes, "step": step} for step in (5, 10, 15)]


def write_state(folder, history):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def test_rewards_stand_in_a_line_with_their_last_mean():
    history = [*grpo(), {"rewards/accuracy/mean": 0.75, "rewards/consistency/mean": math.nan, "step": 20}]
    assert rewards(history) == ["accuracy", "consistency"]
    assert reward_line(history) == "accuracy 0.75, consistency 0.25"
    assert reward_line(grpo(**{"rewards/consistency/mean": math.nan})) == "accuracy 0.50, consistency –"
    assert reward_line([{"loss": 1.0, "step": 1}]) == ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"rewards/accuracy/mean": 0.0}, "no sampled response had the right answer"),
        ({"rewards/consistency/mean": math.nan}, "the reward consistency was None for every response"),
        ({"completions/clipped_ratio": 0.8}, "80% of the responses were cut: raise max_completion_length"),
        ({"frac_reward_zero_std": 1.0}, "always had the same reward"),
    ],
)
def test_what_cannot_have_worked_is_said(changes, sentence):
    sentences = warnings(grpo(**changes))
    assert len(sentences) == (sentence is not None)
    assert sentence is None or sentence in sentences[0]


def test_curves_of_runs_side_by_side_and_of_one_that_goes_on(tmp_path):
    write_state(tmp_path / "done", grpo())
    write_state(tmp_path / "begun" / "checkpoint-5", [{"loss": 1.0, "step": 5}])
    histories = {name: read_history(tmp_path / name) for name in ("done", "begun")}
    plot(histories, tmp_path / "plots" / "curves.png")
    with Image.open(tmp_path / "plots" / "curves.png") as image:
        assert image.size[0] == 2 * 675 and image.size[1] > 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no trainer_state.json"),
        ("[]", "expected a JSON object, found list"),
        ('{"log_history": []}', "nothing is logged"),
    ],
)
def test_a_folder_without_a_log_is_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_history(tmp_path)


def test_the_card_says_what_it_was_made_from(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    settings = {"model": "Qwen/Qwen2.5-Omni-7B", "labels": "dfew", "rewards": ["format", "accuracy"], "limit": None}
    write_card(tmp_path, "GRPO", settings, {"clips": "9 of clips.jsonl"}, grpo(**{"rewards/accuracy/mean": 0.0}))
    card = (tmp_path / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-Omni-7B" in card and "- rewards: format, accuracy" in card
    assert "- clips: 9 of clips.jsonl" in card and "limit" not in card
    assert "step 15: rewards accuracy 0.00, consistency 0.25" in card and "- note: no sampled response" in card
    assert f"stages/export.py --model {tmp_path}" in card
