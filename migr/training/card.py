"""The model card of a trained folder: what it was made from, what it reads, what it reached, how to load it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from migr.files.records import Row, atomic
from migr.training.history import reward_line, warnings

_PACKAGES = ("migr", "trl", "peft", "transformers", "torch")
_LOAD = {
    "adapter": """    python stages/export.py --model {folder} --out EXPORT      # merged, for vLLM and the evaluation
    python eval/explain.py clip.mp4 --model EXPORT

As an adapter, with transformers and PEFT:

    from migr.omni.load import load_thinker
    thinker = load_thinker("{base}", adapter="{folder}")""",
    "model": """    python eval/explain.py clip.mp4 --model {folder}/model

    from migr.omni.load import load_thinker
    thinker = load_thinker("{folder}/model")""",
}


def write_card(
    folder: str | Path, stage: str, settings: Mapping[str, Any], data: Mapping[str, Any], history: Sequence[Row]
) -> None:
    """Write `README.md` into the folder of a finished training, in place of TRL's.

    Args:
        folder: The training's output_dir.
        stage: "SFT" or "GRPO".
        settings: Name -> value, in the order of printing; `model` names the base.
        data: What it was trained on: name -> count or path.
        history: What the trainer logged.
    """
    folder = Path(folder)
    adapter = (folder / "adapter_config.json").is_file()
    base = settings["model"]
    lines = ["---", *(["library_name: peft", f"base_model: {base}"] if adapter else ["library_name: transformers"])]
    lines += ["tags: [migr, emotion, video, audio]", "---", "", f"# {folder.resolve().name}", ""]
    what = "LoRA adapter for the language model of" if adapter else "Model trained from"
    lines += [f"{what} `{base}`, trained by `stages/{stage.lower()}.py` of migr ({stage}).", "", "## Data", ""]
    lines += [f"- {name}: {value}" for name, value in data.items()]
    lines += ["", "## Settings", ""]
    lines += [f"- {name}: {_text(value)}" for name, value in settings.items() if value is not None]
    lines += ["", "## Figures", "", f"- {_figures(history)}"]
    lines += [f"- note: {sentence}" for sentence in warnings(history)]
    lines += [
        "",
        "These are the trainer's own; `eval/consistency.py` measures it on clips that it has not seen.",
        "",
    ]
    lines += ["## How to load", "", _LOAD["adapter" if adapter else "model"].format(folder=folder, base=base), ""]
    lines += [f"Made with {', '.join(f'{name} {version(name)}' for name in _PACKAGES)}."]
    with atomic(folder / "README.md") as file:
        file.write("\n".join(lines) + "\n")


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _figures(history: Sequence[Row]) -> str:
    rows = [row for row in history if "loss" in row]
    if not rows:
        return "nothing was logged"
    line = reward_line(rows)
    return f"step {rows[-1]['step']}: " + (f"rewards {line}" if line else f"loss {rows[-1]['loss']:.3f}")
