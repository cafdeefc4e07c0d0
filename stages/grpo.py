r"""Stage 5, GRPO: reward accuracy, format, consistency of reasoning and answer, and grounding in the dominant modality.

    accelerate launch stages/grpo.py                                             (the demo's data; makes what it lacks)
    accelerate launch stages/grpo.py --config configs/demo/grpo.yaml --model MODEL --adapter runs/my_sft \
        --clips clips.jsonl --importance importance.jsonl --output_dir runs/my_grpo

Continues the SFT adapter; the SFT policy stays the reference of the KL term. Any field of TRL's GRPOConfig can stand in
the YAML or on the command line; `rewards` and `reward_weights` go together. Each reward's mean is logged, and
`inconsistent_among_correct` of the sampled reasoning. Interrupted runs go on, finished ones are left alone.
"""

import sys
from dataclasses import asdict

from migr.cli import demo_arguments
from migr.errors import InputError, exit_on_input_error
from migr.training.arguments import GRPOArguments, parse
from migr.training.checks import force, refused_by_trl


def main() -> None:
    """Config, data, training, save."""
    from trl import GRPOConfig

    # Config
    argv = sys.argv[1:] or demo_arguments("grpo")
    args, config = parse([GRPOArguments, GRPOConfig], argv, __doc__)
    force("grpo", config, args.explicit)
    args.require("model", "clips", *(["adapter"] if args.adapter else []))
    if args.importance or "grounding" in args.rewards:
        args.require("importance")
    if not args.adapter and not args.lora_r:
        raise InputError("GRPO trains an adapter: give --adapter (a folder of stages/sft.py) or a --lora_r above 0")
    if config.reward_weights is not None and len(config.reward_weights) != len(args.rewards):
        raise InputError(f"{len(config.reward_weights)} reward_weights for {len(args.rewards)} rewards: {args.rewards}")

    import random

    from datasets import Dataset

    from migr.clips.manifest import read_clips
    from migr.clips.record import ModelRecord, find_labels, read_record
    from migr.judge import open_judge
    from migr.memory.estimate import announce
    from migr.omni.adapters import check_adapter, check_saved
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import check_model, load_processor, load_thinker, media_token_ids
    from migr.omni.prompt import question, question_about
    from migr.rollout.remote import find_server
    from migr.rollout.rollouts import check_vllm
    from migr.settings import EngineSettings
    from migr.sources.importance import read_importance
    from migr.training.card import write_card
    from migr.training.grpo import OmniGRPOTrainer
    from migr.training.guards import CheckedReward, StopOnNonFiniteGradient
    from migr.training.history import reward_line, warnings
    from migr.training.prepare import read_all
    from migr.training.runs import CompleteMarker, begin, finish
    from reward import make_rewards, read_parameters
    from reward.consistency import refuse_blind_judge, require_reply
    from reward.language import LanguageNote, english_readers

    trained = read_record(args.adapter or args.model)
    args.inherit_media(trained)
    check_vllm(config, check_model(args.model), args.media_settings.audio_in_video)
    labels = find_labels(args.labels, args.clips, model=trained)
    judge = open_judge(
        args.judge,
        labels,
        hide_emotion_words=args.hide_emotion_words,
        cache=args.judge_cache,
        engine=EngineSettings(engine="transformers"),
    )
    rewards = make_rewards(args.rewards, labels, judge, read_parameters(args.reward_parameters))
    if args.adapter:
        check_adapter(args.adapter)
    # the judge by its content, not by its folder
    about = {"label_set": labels.as_record(), "judge": judge.name, "question": question(labels.labels)}
    resume = begin(config.output_dir, args, about, config, overwrite=args.overwrite)
    if resume == "done":
        print(f"grpo: {config.output_dir} is finished already")
        return
    announce(args, config)
    if "consistency" in args.rewards:
        require_reply(judge)
    readers = english_readers(args.rewards, judge, args.hide_emotion_words)
    if readers and config.process_index == 0:
        rewards[0] = LanguageNote(rewards[0], readers)
    if config.use_vllm and config.vllm_mode == "server":
        find_server(config, args.model)

    # Data
    clips = [clip for clip in read_clips(args.clips, labels, split=args.split) if clip.label is not None]
    if args.limit:
        clips = random.Random(config.seed).sample(clips, min(args.limit, len(clips)))
    if len(clips) < (prompts := config.generation_batch_size // config.num_generations):
        raise InputError(f"{args.clips}: {len(clips)} labelled clips, fewer than the {prompts} that make one batch")
    if "consistency" in args.rewards:
        refuse_blind_judge(judge, {str(clip.label) for clip in clips}, args.allow_blind_judge)
    weights: dict[str, dict[str, float]] = {}
    if args.importance:
        weights = read_importance(args.importance, uncertain=True)
        if "grounding" in args.rewards and (missing := [c.clip_id for c in clips if c.clip_id not in weights]):
            raise InputError(f"{args.importance}: no importance for clip {missing[0]}")
    columns = {
        "prompt": [[{"role": "user", "content": question_about(clip, labels.labels)}] for clip in clips],
        "clip": list(range(len(clips))),
        "clip_id": [clip.clip_id for clip in clips],
        "label": [clip.label for clip in clips],
        "importance": [weights.get(clip.clip_id) for clip in clips],
        "modalities": [list(clip.modalities) for clip in clips],
    }
    dataset = Dataset.from_dict(columns)
    processor = load_processor(args.model)
    inputs = OmniInputs(processor, args.media_settings, args.cache_dir)
    read_all(inputs, clips)

    # Training
    model = load_thinker(
        args.model,
        dtype=args.dtype,
        adapter=args.adapter,
        trainable=True,
        attn_implementation=args.attn_implementation,
    )
    # A sampled media token would have no features, and break the next forward pass.
    config.generation_kwargs = {**(config.generation_kwargs or {}), "suppress_tokens": media_token_ids(processor)}
    with refused_by_trl():
        trainer = OmniGRPOTrainer(
            inputs=inputs,
            clips=clips,
            model=model,
            args=config,
            reward_funcs=[CheckedReward(name, reward) for name, reward in zip(args.rewards, rewards, strict=True)],
            train_dataset=dataset,
            processing_class=processor,
            peft_config=None if args.adapter else args.lora_config,
            callbacks=[CompleteMarker(), StopOnNonFiniteGradient()],
        )
    if trainer.is_world_process_zero():
        rewarded_by = judge.name if "consistency" in args.rewards else None
        ModelRecord(asdict(args.media_settings), labels, question(labels.labels), rewarded_by).write(config.output_dir)
    result = trainer.train(resume_from_checkpoint=resume)

    trainer.close()

    # Save
    trainer.save_model(config.output_dir)
    trainer.save_state()
    if trainer.is_world_process_zero() and not check_saved(config.output_dir, trainer.model, args.adapter):
        print("note: the adapter is as it was: all gradients were zero (rewards that are all alike?)")
    history = trainer.state.log_history
    if trainer.is_world_process_zero():
        counts = {"clips": f"{len(clips)} of {args.clips}, split {args.split}", "importance": args.importance}
        write_card(config.output_dir, "GRPO", args.card_settings(config), counts, history)
    finish(config.output_dir, {"steps": result.global_step, "clips": len(clips)})
    if trainer.is_world_process_zero():
        seconds = result.metrics["train_runtime"]
        for sentence in warnings(history):
            print(f"note: {sentence}")
        print(f"grpo: {reward_line(history)}; {result.global_step} steps, {seconds:.0f} s -> {config.output_dir}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
