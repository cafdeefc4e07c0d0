"""A small GRPO trainer that samples with vLLM, and the likeliest answers of both, for the tests of the two modes."""

import torch
from datasets import Dataset
from trl import GRPOConfig

from migr.omni.load import load_thinker, media_token_ids
from migr.omni.prompt import question, render_prompt
from migr.text.labels import DFEW
from migr.training.grpo import OmniGRPOTrainer

NEW = 24


def brevity(completions, **_):
    return [1.0 / (1.0 + len(completion[0]["content"])) for completion in completions]


def make_trainer(model, adapter, inputs, clips, folder, **config):
    """A trainer on these clips, four samples each."""
    prompt = [{"role": "user", "content": question(DFEW)}]
    rows = [{"prompt": prompt, "clip": i, "clip_id": clip.clip_id} for i, clip in enumerate(clips)]
    usual = dict(
        output_dir=str(folder),
        use_vllm=True,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=NEW,
        beta=0.04,
        learning_rate=0.02,
        temperature=0.9,
        generation_kwargs={"suppress_tokens": media_token_ids(inputs.processor)},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        lr_scheduler_type="constant",
    )
    return OmniGRPOTrainer(
        inputs=inputs,
        clips=clips,
        model=load_thinker(model, adapter=adapter, trainable=True),
        args=GRPOConfig(**{**usual, **config}),
        reward_funcs=[brevity],
        train_dataset=Dataset.from_list(rows),
        processing_class=inputs.processor,
    )


def prompts_of(inputs, clips):
    texts = [render_prompt(inputs.processor, question(DFEW), clip.has_video, clip.has_audio) for clip in clips]
    return [inputs.prompt_ids(text, inputs.features(clip)) for text, clip in zip(texts, clips, strict=True)]


def greedy_of_vllm(trainer, clips):
    """vLLM's likeliest tokens with the weights that it has."""
    rollouts, usual = trainer.rollouts, trainer.rollouts.settings
    rollouts.settings = {**usual, "temperature": 0.0}
    try:
        return rollouts.sample(prompts_of(trainer.omni, clips), clips, step=0)[0]
    finally:
        rollouts.settings = usual


@torch.no_grad()
def greedy_of_trainer(trainer, clips):
    """The likeliest tokens of the trainer's model, clip by clip."""
    answers = []
    for ids, clip in zip(prompts_of(trainer.omni, clips), clips, strict=True):
        answer = trainer.model.eval().generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            **trainer.omni.features(clip),
            max_new_tokens=NEW,
            do_sample=False,
            suppress_tokens=media_token_ids(trainer.omni.processor),
            eos_token_id=trainer.eos_token_ids,
        )
        answers.append(answer[0, len(ids) :].tolist())
    return answers
