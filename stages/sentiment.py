r"""Fit AGFN, EGMF or concatenation on a data folder of stages/features.py, one run a seed; predict the test split once.

    accelerate launch stages/sentiment.py --data runs/mosi/data --fusion dual-gate --seeds 1111 2222 --out runs/agfn
    accelerate launch stages/sentiment.py --data runs/mosi/data --fusion experts --head llm --model MODEL \
        --config configs/sentiment/egmf_0.5b.yaml --out runs/egmf

`--head value`: the fusion network's own score or classes. `--head llm`: EGMF's pseudo tokens in a frozen causal
language model with LoRA (`--lora_r 0`: without). transformers' Trainer fits; the epoch is chosen on valid alone (MAE,
or weighted F1); an interrupted run goes on from its last whole checkpoint. A seed's folder holds predictions.csv (and
one CSV for each further reading), importance.jsonl, done.json with the figures, ablations and warnings, and
model.safetensors with what was learned. eval/sentiment.py makes the table.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from migr.cli import Parser, settings_of
from migr.errors import InputError, exit_on_input_error
from migr.files.records import Row, write_json
from migr.machine import peak_memory
from migr.sentiment.metrics import selection
from migr.sentiment.settings import FitSettings, NetworkSettings, RunSettings


def fit_seed(run: RunSettings, network: NetworkSettings, fit: FitSettings, data: Any, seed: int) -> Row:
    """One seed: fit, choose the epoch on valid, predict test; what it gave, from its folder if it is finished."""
    import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

    import torch  # isort: skip
    from transformers import EarlyStoppingCallback, set_seed

    from migr.files.records import read_object
    from migr.sentiment.heads import build_head
    from migr.sentiment.outcome import Outcome, ablations, warnings
    from migr.sentiment.training import Collator, Positions, SentimentTrainer, save_trainable
    from migr.training.guards import StopOnNonFiniteGradient
    from migr.training.runs import CompleteMarker, begin, finish

    folder = Path(run.out) / f"seed-{seed}"
    config = fit.training_arguments(str(folder), seed, *selection(data.dataset), unused=network.head == "llm")
    settings = {**asdict(network), "patience": fit.patience, "modalities": list(data.dims), "ablations": run.ablations}
    files = (str(data.folder / "clips.jsonl"), str(data.folder / "data.json"))
    resume = begin(folder, settings, config, inputs=files, overwrite=run.overwrite)
    if resume == "done":
        outcome: Row = read_object(folder / "done.json")
        return outcome
    set_seed(seed)
    model, writer = build_head(network, data, fit.gradient_checkpointing)
    collators = {name: Collator(split, data.dataset, writer) for name, split in data.splits.items()}
    trainer = SentimentTrainer(
        model=model,
        args=config,
        train_dataset=Positions(data.splits["train"]),
        eval_dataset=Positions(data.splits["valid"]),
        collators=(collators["train"], collators["valid"]),
        dataset=data.dataset,
        selection_epochs=fit.selection_epochs,
        names=[clip.clip_id for clip in data.splits["train"].clips],
        callbacks=[CompleteMarker(), StopOnNonFiniteGradient(), EarlyStoppingCallback(fit.patience)],
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start

    summary: Row = {}
    if trainer.is_world_process_zero():
        save_trainable(model, folder)
        size = config.per_device_eval_batch_size
        valid = Outcome(model, collators["valid"], size, importance=False)
        parts = ablations(model, collators["valid"], size) if run.ablations else None
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
            "peak_mb": round((peak or peak_memory()) / 2**20),
        }
    finish(folder, summary)
    return summary


def main(argv: Sequence[str]) -> None:
    """Config, data, one fit a seed, save."""
    # Config
    parser = Parser(__doc__)
    parser.add_settings(RunSettings, NetworkSettings, FitSettings)
    args = parser.parse_args(argv)
    run, network, fit = (
        settings_of(RunSettings, args),
        settings_of(NetworkSettings, args),
        settings_of(FitSettings, args),
    )
    network.check()
    for name in ("data", "out"):
        if not getattr(run, name):
            raise InputError(f"--{name} is missing: give it on the command line or in the YAML")
    if not run.seeds or len(set(run.seeds)) < len(run.seeds):
        raise InputError(f"--seeds {run.seeds}: give one or more, all different")

    from migr.sentiment.data import SentimentData

    # Data
    data = SentimentData(run.data, run.modalities or None)
    if not data.dims:
        raise InputError(f"{run.data}: no features in it; stages/features.py --features adds those of tables")
    if short := [name for name, split in data.splits.items() if not len(split)]:
        raise InputError(f"{run.data}: the split {short[0]!r} has no clips")
    about = {key: data.about.get(key) for key in ("set", "source", "file", "sha256", "published")}
    name = selection(data.dataset)[0]
    about |= {"fusion": network.fusion, "head": network.head, "model": network.model, "modalities": list(data.dims)}
    about |= {"chosen_on": "valid", "by": name, "selection_epochs": fit.selection_epochs}
    about["test_opened"] = "once, after the fit"

    # Training
    for seed in run.seeds:
        outcome = fit_seed(run, network, fit, data, seed)
        if not outcome:
            continue  # another process of this run tells
        write_json(Path(run.out) / "run.json", about)
        for line in outcome["warnings"]:
            print(f"sentiment: seed {seed}: {line}")
        values = {reading: figures[name] for reading, figures in outcome["test"].items()}
        text = "  ".join(f"{reading} {value:.4f}" for reading, value in values.items() if value is not None)
        print(f"sentiment: seed {seed}, epoch {outcome['epoch']:.0f}: test {name}: {text}; {outcome['seconds']:.0f} s")

    # Save
    if outcome:
        print(f"sentiment: {len(run.seeds)} seeds -> {run.out}; next: python eval/sentiment.py {run.out} --out TABLE")


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
