"""The private surface of TRL that our trainers override or call: an upgrade that changes it fails here."""

import inspect

import migr.omni  # noqa: F401  (mends the imports of trl, so it comes first)

# isort: split
import pytest
from trl import GRPOTrainer, SFTTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

# what is overridden or called -> its parameters in TRL 1.16; those behind "..." are pictures' and not ours
SURFACE = {
    GRPOTrainer._get_train_sampler: "self dataset",
    GRPOTrainer._load_from_checkpoint: "self resume_from_checkpoint model",
    GRPOTrainer.save_model: "self output_dir _internal_call",
    GRPOTrainer._tokenize_prompts: "self prompts",
    GRPOTrainer._generate_single_turn: "self prompt_ids images multimodal_fields num_generations has_tool_images",
    GRPOTrainer._generate_and_score_completions: "self inputs",
    GRPOTrainer._compute_loss: "self model inputs",
    GRPOTrainer._get_per_token_logps_and_entropies: "self model input_ids attention_mask logits_to_keep batch_size "
    "compute_entropy compute_aux_loss ...",
    SFTTrainer.compute_loss: "self model inputs return_outputs num_items_in_batch",
    SFTTrainer._prepare_inputs: "self inputs",
    RepeatSampler.__init__: "self data_source mini_repeat_count batch_size repeat_count shuffle seed",
    grpo_trainer.DistributedBackend.gather_params: "self params",
    add_fused_lm_head: "model temperature cast_lm_head_to_fp32 outputs",
}


@pytest.mark.parametrize("function", SURFACE, ids=lambda function: function.__qualname__)
def test_what_we_override_has_the_signature_that_we_know(function):
    names = " ".join(inspect.signature(function).parameters)
    known = SURFACE[function]
    assert names == known or (known.endswith(" ...") and names.startswith(known[:-3])), (
        f"TRL changed {function.__qualname__}({names}); it was ({known}): look at migr/training and migr/rollout"
    )


def test_the_trainers_set_the_attributes_that_we_read():
    source = inspect.getsource(GRPOTrainer.__init__)
    for name in ("_dist", "use_vllm", "eos_token_ids", "shuffle_dataset", "num_iterations"):
        assert f"self.{name} = " in source, f"TRL's GRPOTrainer has no {name} any more"
    assert "base_model" in inspect.getsource(add_fused_lm_head), "TRL's fused head calls something else than base_model"
