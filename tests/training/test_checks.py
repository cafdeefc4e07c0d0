"""What a training stage cannot leave to TRL's configuration is refused, with the reason."""

from pathlib import Path

import pytest

import migr.omni  # noqa: F401  (mends the imports of trl, so it comes first)

# isort: split
from trl import GRPOConfig, SFTConfig

from migr.clips.manifest import Clip
from migr.errors import InputError
from migr.training.arguments import GRPOArguments, SFTArguments, parse
from migr.training.checks import FORCED, force, refused_by_trl
from migr.training.sft import check_targets

TYPES = {"sft": [SFTArguments, SFTConfig], "grpo": [GRPOArguments, GRPOConfig]}
# A value of each field that is not the one that the stage needs
OTHERS = {
    "dataset_kwargs": '{"skip_prepare_dataset": false}',
    "eval_strategy": "steps",
    "eval_packing": "true",
    "completion_only_loss": "false",
    "max_length": "4096",
    "router_aux_loss_coef": "0.01",
    "num_iterations": "2",
    "eos_token": "<end>",
    "max_tool_calling_iterations": "3",
    "chat_template_kwargs": '{"a": 1}',
    "model_init_kwargs": '{"a": 1}',
    "dataset_num_proc": "2",
}


def given(stage, *argv):
    own, config = parse(TYPES[stage], ["--use_cpu", "true", "--bf16", "false", *argv])
    force(stage, config, own.explicit)
    return config


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage, table in FORCED.items() for name in table])
def test_another_value_than_the_one_that_the_stage_needs_is_refused_with_the_reason(stage, name):
    value, why = FORCED[stage][name]
    other = OTHERS.get(name, "somewhere" if value is None or isinstance(value, str) else str(not value).lower())
    with pytest.raises(InputError, match=rf"{name}: .* cannot be honoured here, it must be ") as error:
        given(stage, "--output_dir", "o", f"--{name}", other)
    assert str(error.value).endswith(why)


@pytest.mark.parametrize("stage", TYPES)
def test_what_the_stage_needs_is_set_and_output_dir_is_required(stage):
    config = given(stage, "--output_dir", "o")
    for name, (value, _) in FORCED[stage].items():
        assert getattr(config, name) == value, name
    with pytest.raises(InputError, match="--output_dir is missing"):
        given(stage)


def test_what_trl_refuses_is_one_line():
    with pytest.raises(InputError, match=r"^configuration: first second$"), refused_by_trl():
        raise ValueError("first\n second")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("learning_rate", "nan"), ("learning_rate", "-1"), ("learning_rate", "inf"),
        ("per_device_train_batch_size", "0"), ("per_device_train_batch_size", "-3"),
        ("gradient_accumulation_steps", "0"), ("lora_r", "-4"), ("lora_r", "1000000"), ("lora_dropout", "2"),
        ("limit", "-1"), ("limit", "0"), ("seed", "-1"), ("num_train_epochs", "nan"), ("max_grad_norm", "nan"),
    ],
)  # fmt: skip
def test_an_absurd_number_is_refused_before_anything_is_read(flag, value):
    with pytest.raises(InputError, match=f"--{flag}: must be from .*, not "):
        parse(TYPES["sft"], ["--output_dir", "x", "--use_cpu", "true", f"--{flag}", value])


WHOLE = {"clip_id": "a", "prompt": "Which?", "target": "<think>x</think><answer>sad</answer>"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "prompt must be a text that is not empty"),
        ({"target": 3}, "target must be a text that is not empty"),
        ({"target": " "}, "target must be a text that is not empty"),
        ({"target": "x" * 100_001}, "a target of 100001 characters; 100000 are the most"),
        ({"target": "<think><|VIDEO|></think>"}, "target names .*, which stands for media"),
        ({"modalities": ["smell"]}, "modalities must be some of video"),
        ({"modalities": "video"}, "modalities must be some of video"),
    ],
)
def test_targets_are_checked_before_the_first_step(change, message):
    clips = {"a": Clip("a", Path("a.mp4"), "sad", "train", True, False)}
    check_targets("t.jsonl", [WHOLE], clips)
    with pytest.raises(InputError, match=f"t.jsonl: clip 'a': (a )?{message}"):
        check_targets("t.jsonl", [{**WHOLE, **change}], clips)
