"""What users of neighbouring projects have reported: each number has its tests. The numbers have gaps."""

import ast
from functools import cache

import pytest
from conftest import ROOT

ODD = ("clips/test_odd_clips.py", ("test_what_is_read_is_what_a_player_shows", "test_examining_says_what_a_player"))
TWO = ("training/test_scale.py", ("test_reports_19_20_25_on_two_processes",))
REPORTS = {
    1: [ODD],  # cuts by stream copy
    2: [("stages/test_limits.py", ("test_reports_2_17",))],  # long clips, the other reader
    3: [  # templates that open the thoughts
        ("omni/test_omni.py", ("test_a_template_that_opens_the_thoughts",)),
        ("text/test_format.py", ("test_a_response_is_read_as_real_systems_write_it",)),
    ],
    4: [  # prediction files of other trainers
        ("sources/test_readers.py", ("test_results_of_llama", "test_results_of_ms_swift", "test_results_of_video_r1")),
    ],
    5: [("judge/test_judges.py", ("test_a_reply_is_a_label", "test_a_cached_judgement"))],  # fenced and cut replies
    6: [("omni/test_foreign_models.py", ("test_report_6_names", "test_report_6_an_adapter_that_changes_nothing"))],
    7: [("eval/test_consistency.py", ("test_what_real_systems_write",))],  # bare labels
    8: [ODD],  # late and early sound, gaps
    9: [ODD],  # AV1
    10: [("text/test_format.py", ("test_a_response_is_read_as_real_systems_write_it",))],  # no closing tag
    11: [ODD],  # webcams
    13: [ODD],  # sound that outlasts the picture
    14: [  # clips without sound
        ("omni/test_prompt.py", ("test_the_question_names_the_streams",)),
        ("reward/test_rewards.py", ("test_grounding_wants",)),
        ("eval/test_consistency.py", ("test_the_headline_stands_both_ways",)),
        ("clips/test_odd_clips.py", ("test_every_kind_is_explained",)),
    ],
    16: [ODD],  # variable rate
    17: [  # decord's loop
        ("clips/test_odd_clips.py", ("test_report_17",)),
        ("stages/test_limits.py", ("test_reports_2_17",)),
    ],
    19: [("training/test_training.py", ("test_report_19",)), TWO],  # GRPO with checkpointing
    20: [TWO, ("training/test_training.py", ("test_what_defines_a_run",))],  # another number of processes
    21: [("sources/test_read_tables.py", ("test_report_21",))],  # tables of MOSI, MOSEI, CH-SIMS
    23: [  # vLLM's share of memory
        ("cli/test_cli.py", ("test_flags_and_yaml_say_the_same",)),
        ("engine/test_engine.py", ("test_report_23",)),
    ],
    24: [("engine/test_engine.py", ("test_report_24",))],  # "raise max_model_length"
    25: [TWO, ("training/test_scale.py", ("test_report_25", "test_training_all_weights_under_zero3_is_refused"))],
    26: [("clips/test_odd_clips.py", ("test_report_26",))],  # no decord
    27: [("eval/test_consistency.py", ("test_a_judge_s_blind_spots_and_another_language",))],  # Chinese reasoning
    30: [("sources/test_readers.py", ("test_numbers_mean_labels",))],  # labels from 0 on
    31: [("clips/test_transcode.py", ("test_what_no_browser_plays", "test_a_copy_shows"))],  # what no browser plays
    32: [("omni/test_foreign_models.py", ("test_report_32",))],  # an empty adapter
    33: [("engine/test_engine.py", ("test_greedy_tokens",))],  # sound alone, mixed, through vLLM; on GPUs untried
    34: [("training/test_scale.py", ("test_sft_under_zero3_with_a_modality_missing",))],  # mixed under ZeRO-3
    35: [("omni/test_omni.py", ("test_report_35",))],  # thinker-only checkpoints
    36: [  # several generations of one video
        ("training/test_shared_prefix.py", ("test_completions_behind", "test_shared_prompts")),
    ],
    39: [("clips/test_odd_clips.py", ("test_report_39",))],  # WAV from a pipe
    40: [  # interleaving where a clip has no sound; equal sound
        ("omni/test_models.py", ("test_a_batch_with_missing_modalities", "test_interleaved_media_get_the_positions")),
        ("training/test_training.py", ("test_another_video_or_another_audio_alone_changes_the_log_probs",)),
    ],
}


@cache
def names_in(file):
    """The test functions of a file."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("number", REPORTS)
def test_a_report_has_its_tests(number):
    for file, beginnings in REPORTS[number]:
        for beginning in beginnings:
            assert any(name.startswith(beginning) for name in names_in(file)), f"{file}: {beginning}"
