r"""Stage 5, GRPO: reward accuracy, format, consistency of reasoning and answer, and grounding in the dominant modality.

    accelerate launch stages/grpo.py                                             (the demo's data; makes what it lacks)
    accelerate launch stages/grpo.py --config configs/demo/grpo.yaml --model MODEL --adapter runs/my_sft \
        --clips clips.jsonl --importance importance.jsonl --output_dir runs/my_grpo

Continues the SFT adapter; the SFT policy stays the reference of the KL term. Any field of TRL's GRPOConfig can stand in
the YAML or on the command line; `rewards` and `reward_weights` go together. Each reward's mean is logged, and
`inconsistent_among_correct` of the sampled reasoning. Interrupted runs go on, finished ones are left alone.
"""

import sys
from dataclasses import dataclass, field

from migr.errors import InputError, exit_on_input_error
from migr.training.arguments import OmniArguments, parse


@dataclass
class GRPOArguments(OmniArguments):
    """What GRPO reads beside TRL's GRPOConfig."""

    adapter: str | None = field(default=None, metadata={"help": "LoRA adapter to continue from (a folder of sft.py)"})
    split: str = field(default="train", metadata={"help": "split of the clips to train on"})
    importance: str | None = field(default=None, metadata={"help": "importance.jsonl; needed for the grounding reward"})
    judge: str = field(
        default="lexicon",
        metadata={"help": "judge of the consistency reward: lexicon, a folder, llm:DIR or endpoint:URL#MODEL"},
    )
    judge_cache: str | None = field(
        default=None, metadata={"help": "file of what a judge said before (of folders, llm and endpoint)"}
    )
    hide_emotion_words: bool = field(
        default=True, metadata={"help": "that judge does not see words that name an emotion: naming it does not pay"}
    )
    allow_blind_judge: bool = field(
        default=False, metadata={"help": "train although the judge cannot name some of the clips' labels"}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["format", "accuracy", "consistency", "grounding"],
        metadata={"help": "rewards, in the order of reward_weights; also dotted paths, such as my_lib.rewards.brevity"},
    )
    reward_parameters: dict | str | None = field(  # type: ignore[type-arg]
        default=None, metadata={"help": "parameters of own rewards: {name: {parameter: value}}"}
    )


def main() -> None:
    """Config, data, training, save."""
    from trl import GRPOConfig

    # Config
    argv = sys.argv[1:]
    if not argv:
        from stages.demo import demo

        argv = demo.arguments_of("grpo", demo.make("sft", variants=["migr"]))
    args, config = parse([GRPOArguments, GRPOConfig], argv, __doc__)
    args.require("model", "clips", *(["adapter"] if args.adapter else []))
    if args.importance or "grounding" in args.rewards:
        args.require("importance")
    if not args.adapter and not args.lora_r:
        raise InputError("GRPO trains an adapter: give --adapter (a folder of stages/sft.py) or a --lora_r above 0")
    if config.reward_weights is not None and len(config.reward_weights) != len(args.rewards):
        raise InputError(f"{len(config.reward_weights)} reward_weights for {len(args.rewards)} rewards: {args.rewards}")
    if config.num_iterations != 1 or config.steps_per_generation != config.gradient_accumulation_steps:
        raise InputError(
            "num_iterations must be 1 and steps_per_generation equal gradient_accumulation_steps: "
            "completions that outlive an update are lost when a run is interrupted, so it could not be resumed exactly"
        )

    import random

    from datasets import Dataset

    from migr.clips.manifest import read_clips
    from migr.files.records import read_jsonl
    from migr.judge import open_judge
    from migr.memory.estimate import announce
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import check_adapter, check_model, load_processor, load_thinker, media_token_ids
    from migr.omni.prompt import question_about
    from migr.rollout.remote import find_server
    from migr.rollout.rollouts import check_vllm
    from migr.text.labels import label_set
    from migr.training.card import write_card
    from migr.training.grpo import OmniGRPOTrainer
    from migr.training.guards import CheckedReward, StopOnNonFiniteGradient
    from migr.training.history import reward_line, warnings
    from migr.training.prepare import read_all
    from migr.training.runs import CompleteMarker, begin, finish
    from reward import make_rewards, read_parameters
    from reward.consistency import refuse_blind_judge

    check_vllm(config, check_model(args.model), args.audio_in_video)
    labels = label_set(args.labels)
    judge = open_judge(
        args.judge, labels, hide_emotion_words=args.hide_emotion_words, cache=args.judge_cache, engine="transformers"
    )
    rewards = make_rewards(args.rewards, labels, judge, read_parameters(args.reward_parameters))
    inputs_of_run = [args.clips, *([args.importance] if args.importance else [])]
    if args.adapter:
        inputs_of_run.append(f"{check_adapter(args.adapter)}/adapter_model.safetensors")
    resume = begin(config.output_dir, args, config, inputs=tuple(inputs_of_run), overwrite=args.overwrite)
    if resume == "done":
        print(f"grpo: {config.output_dir} is finished already")
        return
    announce(args, config)
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
        table = read_jsonl(args.importance, ["clip_id", "importance"], unique="clip_id")
        weights = {row["clip_id"]: row["importance"] for row in table}
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
    config.remove_unused_columns = False
    config.logging_nan_inf_filter = False
    config.router_aux_loss_coef = 0.0  # router and experts are frozen, and the thinker returns no router logits
    config.log_multimodal = False
    # A sampled media token would have no features, and break the next forward pass.
    config.generation_kwargs = {**(config.generation_kwargs or {}), "suppress_tokens": media_token_ids(processor)}
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
    result = trainer.train(resume_from_checkpoint=resume)

    trainer.close()

    # Save
    trainer.save_model(config.output_dir)
    trainer.save_state()
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
