"""The models of the experiment on drift: one is a point of its grid, made and measured by a few commands."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.demo.runner import CONFIGS, ROOT, SMALL, Step

# kind of target -> (what the annotator describes first; None: the base describes each modality apart, order of targets)
TARGETS = {
    "video-first": ("video-first", "written"),
    "reordered": ("video-first", "dominant-first"),
    "rewritten": ("dominant-first", "written"),
    "apart": (None, "dominant-first"),
    "apart video-first": (None, "video-first"),
    "random": ("random", "written"),
    "least-first": ("least-first", "written"),
    "mistaken": ("video-first", "written"),
}
MISTAKES = {"mistaken": ["--mistakes", "0.5"]}  # flags of stages/demo/annotate.py
REWARDS: dict[str, list[str]] = {  # config of GRPO behind the SFT, and flags
    "none": [],
    "all": ["grpo"],
    "evidence": [
        *("grpo", "--rewards", "format", "accuracy", "consistency", "grounding", "evidence"),
        *("--reward_weights", "0.25", "1.0", "1.0", "0.25", "1.0"),
    ],
}
SIZES = {"400 x 6": (400, 6), "150 x 6": (150, 6), "96 x 3": (96, 3)}  # of the cold start: targets, epochs
BASES: dict[str, list[str]] = {  # flags of stages/demo/base.py; demo: the one of `make experiment`
    "demo": [],
    "true": ["--caption_errors", "0"],
    "coherent": ["--caption_errors", "0", "--coherence", "0.9"],
}
STAGES = (
    *("base", "perceive", "describe", "texts", "targets", "coherence"),
    *("sft", "grpo", "export", "evaluation", "drift"),
)
SHIPPED = ROOT / "stages" / "demo" / "model"  # a base that is there already, of seed 6
DRIFT_CLIPS = 140  # of the 560 test clips: drift takes nine generations and passes a clip


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    seed: int
    base: str
    coherence: float
    targets: str
    size: str
    rewards: str

    @property
    def texts(self) -> str:
        """Name of its targets."""
        return f"{self.base}-{self.coherence:g}-{self.targets}".replace(" ", "-")

    @property
    def sft(self) -> str:
        """Name of its cold start."""
        return f"{self.texts}-{self.size}".replace(" ", "")

    @property
    def name(self) -> str:
        """Name of its model."""
        return f"{self.sft}-{self.rewards}".replace(" ", "-")


def base_model(run: Path, trained: bool) -> Path:
    """The model folder that a run of the demo rests on: trained in it, or the one that is there already."""
    return run / "describe" / "model" if trained else SHIPPED


def steps(
    base_run: Path, run: Path, models: Sequence[Cell], small: bool = False, train_base: bool = True
) -> list[Step]:
    """All steps for these cells of one seed, in order; steps of one stage do not depend on each other.

    Args:
        base_run: The demo's run with the clips and the base model.
        run: Where everything is written.
        models: Which.
        small: A few clips and two steps a stage.
        train_base: The demo's base was trained in `base_run`; else it is the one that is there already.
    """
    plan: dict[str, Step] = {}
    clips, judge = base_run / "clips" / "clips.jsonl", base_run / "judge"
    media, extra = {"cache_dir": base_run / "cache"}, SMALL["train"] if small else []
    about: dict[str, Any]
    learned: dict[str, Any]

    def add(stage: str, name: str, output: Path, script: str, *more: str, **flags: object) -> None:
        words = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        key = f"{stage}/{name}"
        plan.setdefault(key, Step(stage, key, [sys.executable, str(ROOT / script), *words, *more], output))

    def train(stage: str, name: str, script: str, config: str, *more: str, **flags: object) -> Path:
        out = run / stage / name
        shared = {"config": CONFIGS / f"{config}.yaml", "clips": clips, "seed": models[0].seed, **media, **flags}
        add(stage, name, out / "done.json", script, *more, *extra, **shared, output_dir=out)
        return out

    for cell in models:
        seed, model = cell.seed, base_model(base_run, train_base)
        if flags := BASES[cell.base]:
            folder = run / "base" / cell.base
            data = {"data": base_run / "clips", "out": folder, "seed": seed}
            add("base", cell.base, folder / "base.json", "stages/demo/base.py", *flags, **data)
            learned = {"model": folder, "targets": folder / "perceive.jsonl"}
            sees = train("perceive", cell.base, "stages/sft.py", "perceive", **learned) / "model"
            learned = {"model": sees, "targets": folder / "describe.jsonl"}
            model = train("describe", cell.base, "stages/sft.py", "describe", **learned) / "model"
        written, order = TARGETS[cell.targets]
        if written is None:
            reasoning = run / "texts" / cell.base / "apart.jsonl"
            flags = ["--max_new_tokens", "48", *(["--limit", "28"] if small else [])]
            about = {"clips": clips, "model": model, "out": reasoning, **media}
            add("texts", f"{cell.base}/apart", reasoning, "stages/describe.py", *flags, **about)
        else:
            flags = MISTAKES.get(cell.targets, [])
            name = cell.targets if flags else written
            reasoning = run / "texts" / f"{cell.coherence:g}-{name}.jsonl"
            about = {"clips": clips, "out": reasoning, "seed": seed, "coherence": cell.coherence, "written": written}
            add("texts", reasoning.stem, reasoning, "stages/demo/annotate.py", *flags, **about)
        importance = base_run / "importance" / "importance.jsonl"
        targets = run / "targets" / f"{cell.texts}.jsonl"
        about = {"clips": clips, "reasoning": reasoning, "importance": importance, "order": order, "out": targets}
        flags = ["--leave_out", "missing", "unassigned"] if written is None else []
        add("targets", cell.texts, targets, "stages/targets.py", *flags, **about)
        out = run / "coherence" / cell.texts
        about = {"targets": targets, "clips": clips, "out": out}
        add("coherence", cell.texts, out / "coherence.json", "eval/drift.py", **about)
        limit, epochs = SIZES[cell.size]
        learned = {"model": model, "targets": targets, "limit": 14 if small else limit, "num_train_epochs": epochs}
        trained = train("sft", cell.sft, "stages/sft.py", "sft", **learned)
        if REWARDS[cell.rewards]:
            config, *flags = REWARDS[cell.rewards]
            about = {"model": model, "adapter": trained, "importance": importance}
            trained = train("grpo", cell.name, "stages/grpo.py", config, *flags, **about)
        export, out = run / "export" / cell.name, run / "eval" / cell.name
        add("export", cell.name, export / "config.json", "stages/export.py", model=trained, out=export)
        questions = {"clips": clips, "model": export, "importance": importance, "max_new_tokens": 96, **media}
        judged = {"judge": judge, "judge_check": "none", "out": out}
        add("evaluation", cell.name, out / "metrics.json", "eval/consistency.py", **questions, **judged)
        about = {"predictions": out / "predictions.jsonl", "out": out / "drift", "limit": DRIFT_CLIPS, **questions}
        # transformers tells where the model looks, and is the faster one for a tiny model
        add("drift", cell.name, out / "drift" / "drift.json", "eval/drift.py", **about, engine="transformers")
    return list(plan.values())
