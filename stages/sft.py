r"""Stage 4, SFT: fine-tune the thinker on ordered targets, with LoRA on the language model.

    accelerate launch stages/sft.py                                              (the demo's data; makes what it lacks)
    accelerate launch stages/sft.py --config configs/demo/sft.yaml --model MODEL --clips clips.jsonl \
        --targets targets.jsonl --output_dir runs/my_sft

The loss is on the target alone. Any field of TRL's SFTConfig can stand in the YAML or on the command line. An
interrupted run goes on from its last whole checkpoint; a finished one is found and left alone. With LoRA the output
folder holds the adapter; `lora_r: 0` trains all weights, the towers too, and writes a whole model to `OUTPUT/model`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from migr.errors import InputError, exit_on_input_error
from migr.training.arguments import OmniArguments, parse


@dataclass
class SFTArguments(OmniArguments):
    """What SFT reads beside TRL's SFTConfig."""

    targets: str = field(default="", metadata={"help": "targets.jsonl of stages/targets.py"})
    stop_loss: float | None = field(
        default=None, metadata={"help": "end once the mean loss of the last logging_steps is below this"}
    )


def main() -> None:
    """Config, data, training, save."""
    from trl import SFTConfig

    # Config
    argv = sys.argv[1:]
    if not argv:
        from stages.demo import demo

        argv = demo.arguments_of("sft", demo.make("targets", variants=["migr"]))
    args, config = parse([SFTArguments, SFTConfig], argv, __doc__)
    args.require("model", "clips", "targets")

    import random

    from datasets import Dataset

    from migr.clips.manifest import read_clips
    from migr.files.records import read_jsonl
    from migr.memory.estimate import announce
    from migr.omni.export import write_checkpoint
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import load_processor, load_thinker
    from migr.text.labels import label_set
    from migr.training.card import write_card
    from migr.training.guards import StopOnNonFiniteGradient
    from migr.training.prepare import read_all
    from migr.training.runs import CompleteMarker, begin, finish
    from migr.training.sft import OmniSFTTrainer, StopAtLoss, TargetCollator, row_lengths
    from migr.training.zero3 import check_zero3

    check_zero3(config, args.lora_r)
    inputs_of_run = (args.clips, args.targets)
    resume = begin(config.output_dir, args, config, inputs=inputs_of_run, overwrite=args.overwrite)
    if resume == "done":
        print(f"sft: {config.output_dir} is finished already")
        return
    announce(args, config)

    # Data
    clips = {clip.clip_id: clip for clip in read_clips(args.clips, label_set(args.labels))}
    rows = read_jsonl(args.targets, ["clip_id", "prompt", "target"])
    if not rows:
        raise InputError(f"{args.targets}: no targets in it")
    if missing := [row["clip_id"] for row in rows if row["clip_id"] not in clips]:
        raise InputError(f"{args.targets}: clip {missing[0]} is not in {args.clips}")
    if args.limit:
        rows = random.Random(config.seed).sample(rows, min(args.limit, len(rows)))
    processor = load_processor(args.model)
    keys = ("clip_id", "prompt", "target", "modalities")
    lengths = row_lengths(rows, clips, processor.tokenizer)  # for train_sampling_strategy: group_by_length
    columns = [{key: row.get(key) for key in keys} | {"length": n} for row, n in zip(rows, lengths, strict=True)]
    dataset = Dataset.from_list(columns)
    inputs = OmniInputs(processor, args.media_settings, args.cache_dir)
    read_all(inputs, [clips[clip_id] for clip_id in dict.fromkeys(row["clip_id"] for row in rows)])

    # Training
    model = load_thinker(
        args.model, dtype=args.dtype, trainable=args.lora_r == 0, attn_implementation=args.attn_implementation
    )
    config.remove_unused_columns = False
    config.dataset_kwargs = {"skip_prepare_dataset": True}
    config.max_length = None  # a cut would fall into the media placeholders
    config.logging_nan_inf_filter = False
    config.router_aux_loss_coef = 0.0  # router and experts are frozen, and the thinker returns no router logits
    trainer = OmniSFTTrainer(
        model=model,
        args=config,
        train_dataset=dataset,
        data_collator=TargetCollator(inputs, clips),
        processing_class=processor,
        peft_config=args.lora_config if args.lora_r else None,
        callbacks=[CompleteMarker(), StopOnNonFiniteGradient(), StopAtLoss(args.stop_loss)],
    )
    result = trainer.train(resume_from_checkpoint=resume)

    # Save
    if args.lora_r:
        trainer.save_model(config.output_dir)
    elif trainer.is_world_process_zero():
        write_checkpoint(trainer.accelerator.unwrap_model(trainer.model), processor, Path(config.output_dir) / "model")
    trainer.save_state()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    loss = logged[-1] if logged else result.training_loss  # the trainer's own mean is wrong in a resumed run
    if trainer.is_world_process_zero():
        counts = {
            "clips": f"{len({row['clip_id'] for row in rows})} of {args.clips}",
            "targets": f"{len(rows)} of {args.targets}",
        }
        write_card(config.output_dir, "SFT", args.card_settings(config), counts, trainer.state.log_history)
    finish(config.output_dir, {"loss": loss, "steps": result.global_step, "rows": len(rows)})
    if trainer.is_world_process_zero():
        effort = f"{result.global_step} steps, {result.metrics['train_runtime']:.0f} s"
        print(f"sft: loss {loss:.3f}, {effort} -> {config.output_dir}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
