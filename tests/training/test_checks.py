"""What a training stage cannot leave to TRL's configuration is refused, with the reason."""

import pytest

import migr.omni  # noqa: F401  (mends the imports of trl, so it comes first)

# isort: split
from trl import GRPOConfig, SFTConfig

from migr.errors import InputError
from migr.training.arguments import GRPOArguments, SFTArguments, parse
from migr.training.checks import FORCED, force, refused_by_trl

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
