r"""Stage 4, SFT: fine-tune the thinker on ordered targets, with LoRA on the language model.

    accelerate launch stages/sft.py                                              (the demo's data; makes what it lacks)
    accelerate launch stages/sft.py --config configs/demo/sft.yaml --model MODEL --clips clips.jsonl \
        --targets targets.jsonl --output_dir runs/my_sft

The loss is on the target alone. Any field of TRL's SFTConfig can stand in the YAML or on the command line. An
interrupted run goes on from its last whole checkpoint; a finished one is found and left alone. With LoRA the output
folder holds the adapter; `lora_r: 0` trains all weights, the towers too, and writes a whole model to `OUTPUT/model`.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from migr.cli import demo_arguments
from migr.errors import InputError, exit_on_input_error
from migr.training.arguments import SFTArguments, parse
from migr.training.checks import force, refused_by_trl


def main() -> None:
    """Config, data, training, save."""
    from trl import SFTConfig

    # Config
    argv = sys.argv[1:] or demo_arguments("sft")
    args, config = parse([SFTArguments, SFTConfig], argv, __doc__)
    force("sft", config, args.explicit)
    args.require("model", "clips", "targets")

    import random

    from datasets import Dataset

    from migr.clips.manifest import read_clips
    from migr.clips.record import NAME, ModelRecord, find_labels, read_record
    from migr.files.records import read_jsonl
    from migr.memory.estimate import announce
    from migr.omni.adapters import check_saved
    from migr.omni.export import write_checkpoint
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import load_processor, load_thinker
    from migr.omni.prompt import question, question_about
    from migr.training.card import write_card
    from migr.training.guards import StopOnNonFiniteGradient
    from migr.training.prepare import read_all
    from migr.training.runs import CompleteMarker, begin, finish
    from migr.training.sft import OmniSFTTrainer, StopAtLoss, TargetCollator, check_targets, row_lengths
    from migr.training.zero3 import check_mixed, check_zero3

    check_zero3(config, args.lora_r)
    args.inherit_media(read_record(args.model))
    labels = find_labels(args.labels, args.clips, model=read_record(args.model))
    resume = begin(config.output_dir, args, {"label_set": labels.as_record()}, config, overwrite=args.overwrite)
    if resume == "done":
        print(f"sft: {config.output_dir} is finished already")
        return
    announce(args, config)

    # Data
    clips = {clip.clip_id: clip for clip in read_clips(args.clips, labels)}
    rows = read_jsonl(args.targets, ["clip_id", "prompt", "target"])
    if not rows:
        raise InputError(f"{args.targets}: no targets in it")
    if missing := [row["clip_id"] for row in rows if row["clip_id"] not in clips]:
        raise InputError(f"{args.targets}: clip {missing[0]} is not in {args.clips}")
    check_targets(args.targets, rows, clips)
    shown_and_whole = ((row.get("modalities"), clips[row["clip_id"]].modalities) for row in rows)
    check_mixed(config, args.lora_r, (own if own is not None else whole for own, whole in shown_and_whole))
    if args.limit:
        rows = random.Random(config.seed).sample(rows, min(args.limit, len(rows)))
    prompts = {row["prompt"] for row in rows}
    ours = all(row["prompt"] == question_about(clips[row["clip_id"]], labels.labels) for row in rows)
    prompt = question(labels.labels) if ours else prompts.pop() if len(prompts) == 1 else None
    record = ModelRecord(asdict(args.media_settings), labels, prompt)
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
    with refused_by_trl():
        trainer = OmniSFTTrainer(
            model=model,
            args=config,
            train_dataset=dataset,
            data_collator=TargetCollator(inputs, clips),
            processing_class=processor,
            peft_config=args.lora_config if args.lora_r else None,
            callbacks=[CompleteMarker(), StopOnNonFiniteGradient(), StopAtLoss(args.stop_loss)],
        )
    if trainer.is_world_process_zero():
        record.write(config.output_dir)
    result = trainer.train(resume_from_checkpoint=resume)

    # Save
    if args.lora_r:
        trainer.save_model(config.output_dir)
    elif trainer.is_world_process_zero():
        model, out = trainer.accelerator.unwrap_model(trainer.model), Path(config.output_dir) / "model"
        write_checkpoint(model, processor, out, beside={NAME: record.as_json()})
    trainer.save_state()
    if args.lora_r and trainer.is_world_process_zero():
        check_saved(config.output_dir, trainer.model)
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
