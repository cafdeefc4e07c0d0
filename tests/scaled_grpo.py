"""GRPO with given completions at first, then sampled ones, for test_scale.py: the same work on any number of processes.

accelerate launch … tests/scaled_grpo.py MODEL ADAPTER CLIPS CACHE OUT
"""

import os
import sys

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
from datasets import Dataset
from trl import GRPOConfig

from migr.clips.manifest import read_clips
from migr.clips.media import MediaSettings
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor, load_thinker, media_token_ids
from migr.omni.prompt import question
from migr.text.labels import DFEW
from migr.training.grpo import OmniGRPOTrainer

GIVEN = 2  # steps
SAYS = ["The voice is low.", "The face smiles.", "The brows are raised and the mouth is open.", "Nothing is clear."]


class GivenAtFirst(OmniGRPOTrainer):
    """Sampling differs with the number of processes, so the first steps learn from what is given."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.state.global_step >= GIVEN:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        tokenizer = self.omni.processor.tokenizer
        texts = [f"<think>{SAYS[i % len(SAYS)]}</think><answer>{DFEW[row]}</answer>" for i, row in self._said()]
        return [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts], None

    def _said(self):
        """(which of its clip's completions, clip) of each row."""
        return [(self._rows[:at].count(row), row) for at, row in enumerate(self._rows)]


def brevity(completions, **_):
    return [1.0 / (1.0 + len(completion[0]["content"])) for completion in completions]


def main() -> None:
    model, adapter, manifest, cache, out = sys.argv[1:]
    # the configuration first: under ZeRO-3 it decides how the weights are loaded
    args = GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        num_generations=4,
        max_completion_length=12,
        max_steps=GIVEN + 1,
        beta=0.04,
        learning_rate=0.01,
        shuffle_dataset=False,
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
    clips = read_clips(manifest)
    inputs = OmniInputs(load_processor(model), MediaSettings(max_frames=4, max_pixels=3136), cache)
    args.generation_kwargs = {"suppress_tokens": media_token_ids(inputs.processor)}
    prompt = [{"role": "user", "content": question(DFEW)}]
    trainer = GivenAtFirst(
        inputs=inputs,
        clips=clips,
        model=load_thinker(model, adapter=adapter, trainable=True),
        args=args,
        reward_funcs=[brevity],
        train_dataset=Dataset.from_list(
            [{"prompt": prompt, "clip": i, "clip_id": clip.clip_id} for i, clip in enumerate(clips)]
        ),
        processing_class=inputs.processor,
    )
    trainer.train()
    trainer.save_model(out)
    trainer.save_state()


if __name__ == "__main__":
    main()
