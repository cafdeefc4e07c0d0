"""What a training stage cannot leave to TRL's configuration: values that it sets, and keys that it cannot honour."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from migr.errors import InputError

# field -> (the value that it must have, why); a stage sets it, and refuses another one that the user gave
_MEDIA_COLUMNS = "clips stand in columns of their own, which the trainer would remove"
_NO_EVALUATION = "a stage trains; eval/consistency.py evaluates what it wrote"
_BOTH: dict[str, tuple[Any, str]] = {
    "remove_unused_columns": (False, _MEDIA_COLUMNS),
    "logging_nan_inf_filter": (False, "a loss that is not finite must stop the run, not be logged as 0"),
    "router_aux_loss_coef": (0.0, "router and experts are frozen, and the thinker returns no router logits"),
    "resume_from_checkpoint": (None, "a run goes on from its own last whole checkpoint: start the same command again"),
    "model_init_kwargs": (None, "the stage loads the model: see dtype and attn_implementation"),
    "trust_remote_code": (False, "code that comes with a model is never run"),
    "eval_strategy": ("no", _NO_EVALUATION),
    "eval_on_start": (False, _NO_EVALUATION),
    "do_eval": (False, _NO_EVALUATION),
    "do_predict": (False, _NO_EVALUATION),
    "use_liger_kernel": (False, "its kernels do not know the thinker"),
    "ignore_data_skip": (False, "a run that goes on must see the rows that it had not seen"),
    # TRL asks to look for them; then neither reentrant checkpointing works nor the zeros of towers without work
    "ddp_find_unused_parameters": (False, "every weight that is trained gets a gradient in every step"),
    "save_only_model": (False, "a run goes on exactly only with optimizer and random state saved"),
}
_PREPARED = "the collator makes the batches from clips and targets, so TRL prepares no text"
FORCED: dict[str, dict[str, tuple[Any, str]]] = {
    "sft": {
        **_BOTH,
        "dataset_kwargs": ({"skip_prepare_dataset": True}, _PREPARED),
        "max_length": (None, "a cut would fall into the media's tokens; lower max_frames or max_pixels"),
        "packing": (False, "rows with video and sound cannot be packed"),
        "eval_packing": (None, "rows with video and sound cannot be packed"),
        "padding_free": (False, "rows with video and sound need padding"),
        "assistant_only_loss": (False, "the loss is on the target alone already"),
        "completion_only_loss": (None, "the loss is on the target alone already"),
        "chat_template_path": (None, _PREPARED),
        "dataset_text_field": ("text", _PREPARED),
        "dataset_num_proc": (None, _PREPARED),
        "shuffle_dataset": (False, "rows are shuffled in every epoch already"),
        "eos_token": (None, "the model's own stands behind each target"),
        "pad_token": (None, "the model's own is used"),
    },
    "grpo": {
        **_BOTH,
        "log_multimodal": (False, "TRL logs pictures alone"),
        "num_iterations": (
            1,
            "completions that outlive an update are lost when a run is interrupted, so it could not be resumed exactly",
        ),
        "chat_template_kwargs": (None, "the prompt's template is the model's"),
        "use_transformers_paged": (False, "paged attention knows no video and no sound"),
        "use_transformers_continuous_batching": (False, "it knows no video and no sound"),
        "max_tool_calling_iterations": (None, "there are no tools"),
    },
}


def force(stage: str, config: Any, explicit: frozenset[str]) -> None:
    """Set what the stage needs in TRL's configuration, and refuse what it cannot honour.

    Args:
        stage: "sft" or "grpo".
        config: TRL's configuration; changed in place.
        explicit: Names of the fields that the user gave.

    Raises:
        InputError: A value that the user gave cannot be honoured; says why.
    """
    if "output_dir" not in explicit or not config.output_dir:
        raise InputError("--output_dir is missing: the folder for the run")
    for name, (value, why) in FORCED[stage].items():
        if not hasattr(config, name):
            continue
        current = getattr(config, name)
        current = getattr(current, "value", current)  # of an enumeration
        if name in explicit and current != value and not (value is None and current in ("", [])):
            raise InputError(f"{name}: {current} cannot be honoured here, it must be {value}: {why}")
        if current != value:
            setattr(config, name, value)
    if "suppress_tokens" in (getattr(config, "generation_kwargs", None) or {}):
        raise InputError("generation_kwargs: suppress_tokens cannot be honoured here: it is the media's tokens")
    if stage == "grpo" and config.steps_per_generation != config.gradient_accumulation_steps:
        raise InputError(
            f"steps_per_generation: {config.steps_per_generation} cannot be honoured here, it must equal "
            f"gradient_accumulation_steps: {FORCED['grpo']['num_iterations'][1]}"
        )


@contextmanager
def refused_by_trl() -> Iterator[None]:
    """What TRL's trainer refuses when it is built, as one line."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"configuration: {' '.join(str(error).split())}") from error
