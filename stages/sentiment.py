r"""Fit AGFN, EGMF or concatenation on a data folder of stages/features.py, one run a seed; predict the test split once.

    accelerate launch stages/sentiment.py --data runs/mosi/data --fusion dual-gate --seeds 1111 2222 --out runs/agfn
    accelerate launch stages/sentiment.py --data runs/mosi/data --fusion experts --head llm --model MODEL \
        --config configs/sentiment/egmf_0.5b.yaml --out runs/egmf

`--head value`: the fusion network's own score or classes. `--head llm`: EGMF's pseudo tokens in a frozen causal
language model with LoRA (`--lora_r 0`: without). Any field of transformers' TrainingArguments can stand in the YAML or
on the command line. The epoch is chosen on valid alone (MAE, or weighted F1); an interrupted run goes on from its last
whole checkpoint. A seed's folder holds predictions.csv (and one CSV for each further reading), importance.jsonl,
done.json with the figures, ablations and warnings, and model.safetensors with what was learned. eval/sentiment.py makes
the table.
"""

import copy
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migr.errors import InputError, exit_on_input_error
from migr.files.records import Row, write_json
from migr.training.arguments import parse  # first: it mends the imports of transformers

from transformers import TrainingArguments  # isort: skip


@dataclass
class SentimentArguments:
    """What is fitted, on what."""

    data: str = field(default="", metadata={"help": "folder of stages/features.py"})
    out: str = field(default="", metadata={"help": "folder for the run; a seed's files are in OUT/seed-<seed>"})
    seeds: list[int] = field(default_factory=lambda: [1111], metadata={"help": "one fit each"})
    modalities: list[str] = field(
        default_factory=list, metadata={"help": "of text, video, audio; default: all there are"}
    )
    fusion: str = field(default="dual-gate", metadata={"help": "dual-gate (AGFN), experts (EGMF), concat"})
    head: str = field(default="value", metadata={"help": "value, or llm: a language model writes the answer"})
    encoder: str = field(default="attention", metadata={"help": "of frames: attention, or bilstm"})
    hidden: int = field(default=64, metadata={"help": "size of a token, a multiple of 8"})
    tokens: int = field(default=4, metadata={"help": "tokens a modality that experts fuse"})
    dropout: float = field(default=0.2, metadata={"help": "in encoders and fusion"})
    unimodal_weight: float = field(default=0.5, metadata={"help": "of the unimodal heads' loss (value head)"})
    adversarial_weight: float = field(default=0.0, metadata={"help": "of virtual adversarial training (value head)"})
    adversarial_radius: float = field(default=0.1, metadata={"help": "its radius, in deviations of a token"})
    model: str = field(default="", metadata={"help": "llm: folder of a causal language model, or of a Qwen-Omni"})
    pseudo_tokens: int = field(default=4, metadata={"help": "llm: how many"})
    form: str = field(default="repeat", metadata={"help": "llm: repeat (EGMF), affine (MSE-Adapter), free"})
    transcript: bool = field(default=True, metadata={"help": "llm: whether the prompt has the transcript"})
    grid: float = field(default=0.1, metadata={"help": "llm: step of the scores that may be answered"})
    median: bool = field(default=True, metadata={"help": "llm: scores are the median of the answers, else the mean"})
    lora_r: int = field(default=16, metadata={"help": "llm: LoRA rank; 0 leaves the language model frozen"})
    lora_alpha: int = field(default=32, metadata={"help": "llm: LoRA scale"})
    auxiliary_weight: float = field(default=0.0, metadata={"help": "llm: weight of the fusion network's own loss"})
    dtype: str = field(default="auto", metadata={"help": "llm: weights' type: auto, float32, bfloat16"})
    patience: int = field(default=8, metadata={"help": "epochs without a better valid figure before the fit ends"})
    ablations: bool = field(default=True, metadata={"help": "measure what modalities, experts, pseudo tokens do"})
    overwrite: bool = field(default=False, metadata={"help": "discard a run of another configuration in out"})

    def check(self) -> None:
        """Raise InputError for what cannot be, before any long work."""
        from migr.sentiment.encoders import ENCODERS, FUSIONS
        from migr.sentiment.generative import FORMS

        for name, allowed in (
            ("fusion", FUSIONS), ("head", ("value", "llm")), ("encoder", ENCODERS), ("form", FORMS),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise InputError(f"--{name} {getattr(self, name)}: one of {', '.join(allowed)}")
        for name in ("data", "out", *(("model",) if self.head == "llm" else ())):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing: give it on the command line or in the YAML")
        if self.head == "value" and self.model:
            raise InputError("--model belongs to --head llm")
        if self.hidden < 8 or self.hidden % 8 or self.tokens < 1 or self.pseudo_tokens < 1:
            raise InputError("--hidden must be a multiple of 8, --tokens and --pseudo_tokens at least 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds {self.seeds}: give different ones")


@dataclass
class FitArguments(TrainingArguments):
    """transformers' arguments with defaults for sets of a few thousand clips."""

    output_dir: str | None = field(default="", metadata={"help": "not used: see --out"})
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    num_train_epochs: float = 30.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    dataloader_pin_memory: bool = False


def build_model(args: SentimentArguments, data: Any) -> tuple[Any, Any]:
    """The head with its fusion network, and the writer of prompts (None for the value head)."""
    from migr.sentiment.answers import AnswerTree, answer_texts
    from migr.sentiment.encoders import SequenceConfig, SequenceFusion
    from migr.sentiment.generative import GenerativeSentiment, PromptWriter, PseudoTokens
    from migr.sentiment.language_model import embedding_rms, load_language_model
    from migr.sentiment.value import ValueSentiment

    dataset = data.dataset
    shape = SequenceConfig(
        data.dims, len(dataset.labels) or 1, args.fusion, args.encoder, args.hidden, args.tokens, args.dropout
    )
    fusion = SequenceFusion(shape)
    fusion.set_scaling(data.about["scaling"])
    if args.head == "value":
        return ValueSentiment(fusion, args.unimodal_weight, args.adversarial_weight, args.adversarial_radius), None
    lm, tokenizer = load_language_model(args.model, args.dtype, args.lora_r, args.lora_alpha)
    answers = AnswerTree.build(*answer_texts(dataset, args.grid), tokenizer)
    size = lm.get_input_embeddings().weight.shape[1]
    pseudo = PseudoTokens(args.hidden, size, args.pseudo_tokens, args.form, embedding_rms(lm))
    writer = PromptWriter(tokenizer, dataset.prompt, args.pseudo_tokens, args.transcript)
    model = GenerativeSentiment(
        lm, fusion, pseudo, answers, dataset.is_score, args.median, args.transcript, args.auxiliary_weight
    )
    return model, writer


def fit_seed(args: SentimentArguments, config: Any, data: Any, seed: int) -> Row:
    """One seed: fit, choose the epoch on valid, predict test; what it gave, from its folder if it is finished."""
    import torch
    from transformers import EarlyStoppingCallback, set_seed

    from migr.files.records import read_json
    from migr.sentiment.metrics import selection
    from migr.sentiment.outcome import Outcome, ablations, warnings
    from migr.sentiment.training import Collator, Positions, SentimentTrainer, save_trainable
    from migr.training.guards import StopOnNonFiniteGradient
    from migr.training.runs import CompleteMarker, begin, finish

    folder = Path(args.out) / f"seed-{seed}"
    config = copy.deepcopy(config)
    config.output_dir, config.seed, config.data_seed = str(folder), seed, seed
    config.metric_for_best_model, config.greater_is_better = selection(data.dataset)
    chosen = {key: value for key, value in vars(args).items() if key not in ("out", "seeds", "overwrite")}
    files = (str(data.folder / "clips.jsonl"), str(data.folder / "data.json"))
    resume = begin(folder, chosen, config, inputs=files, overwrite=args.overwrite)
    if resume == "done":
        found: Row = read_json(folder / "done.json")
        return found
    set_seed(seed)
    model, writer = build_model(args, data)
    collators = {name: Collator(split, data.dataset, writer) for name, split in data.splits.items()}
    trainer = SentimentTrainer(
        model=model,
        args=config,
        train_dataset=Positions(data.splits["train"]),
        eval_dataset=Positions(data.splits["valid"]),
        collators=(collators["train"], collators["valid"]),
        dataset=data.dataset,
        names=[clip.clip_id for clip in data.splits["train"].clips],
        callbacks=[CompleteMarker(), StopOnNonFiniteGradient(), EarlyStoppingCallback(args.patience)],
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    summary: Row = {}
    if trainer.is_world_process_zero():
        save_trainable(model, folder)
        size = config.per_device_eval_batch_size
        valid = Outcome(model, collators["valid"], size, importance=False)
        parts = ablations(model, collators["valid"], size) if args.ablations else None
        test = Outcome(model, collators["test"], size)  # opened here, once
        test.write(folder)
        history = [row for row in trainer.state.log_history if f"eval_{config.metric_for_best_model}" in row]
        best = str(trainer.state.best_model_checkpoint or "")
        step = int(best.rpartition("-")[2] or 0)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        summary = {
            "seed": seed,
            "epoch": next((row["epoch"] for row in history if row["step"] == step), None),
            "epochs": trainer.state.epoch,
            "valid": valid.figures(),
            "test": {name or "main": test.figures(name) for name in ("", *test.readings)},
            "prediction_space_correlation": test.error_space(),
            "experts": test.expert_weights(),
            "ablations_on_valid": parts,
            "warnings": warnings(test, parts),
            "trainable": sum(weight.numel() for weight in weights),
            "seconds": round(seconds, 1),
            "peak_mb": round(peak / 2**20 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
    finish(folder, summary)
    return summary


def main() -> None:
    """Config, data, one fit a seed, save."""
    # Config
    args, config = parse([SentimentArguments, FitArguments], sys.argv[1:], __doc__)
    args.check()

    from migr.sentiment.data import SentimentData
    from migr.sentiment.metrics import selection

    # Data
    data = SentimentData(args.data, args.modalities or None)
    if not data.dims:
        raise InputError(f"{args.data}: no features in it; stages/features.py --features adds those of tables")
    if short := [name for name, split in data.splits.items() if not len(split)]:
        raise InputError(f"{args.data}: the split {short[0]!r} has no clips")
    about = {key: data.about.get(key) for key in ("set", "source", "file", "sha256", "published")}
    run = {**about, "fusion": args.fusion, "head": args.head, "model": args.model, "modalities": list(data.dims)}
    run |= {"chosen_on": "valid", "by": selection(data.dataset)[0], "test_opened": "once, after the fit"}

    # Training
    for seed in args.seeds:
        found = fit_seed(args, config, data, seed)
        if not found:
            continue  # another process of this run tells
        write_json(Path(args.out) / "run.json", run)
        for line in found["warnings"]:
            print(f"sentiment: seed {seed}: {line}")
        name = selection(data.dataset)[0]
        figures = "  ".join(
            f"{key} {values[name]:.4f}" for key, values in found["test"].items() if values[name] is not None
        )
        print(f"sentiment: seed {seed}, epoch {found['epoch']:.0f}: test {name}: {figures}; {found['seconds']:.0f} s")

    # Save
    print(f"sentiment: {len(args.seeds)} seeds -> {args.out}; next: python eval/sentiment.py {args.out} --out TABLE")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
