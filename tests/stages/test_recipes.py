"""The shipped configurations, and every command of docs/recipes.md: parsed in the default run, run in the slow one."""

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import media_files
import pytest
import yaml
from conftest import ROOT
from openpyxl import Workbook

from migr.cli import read_config
from migr.clips.manifest import read_clips
from migr.files.records import read_json, read_jsonl
from migr.memory.published import PUBLISHED
from migr.settings import MediaSettings

FOLDERS = ("3b_24gb", "7b_80gb", "7b_8x80gb", "30b_2nodes")
TO_MAFW = {"happy": "happiness", "sad": "sadness", "angry": "anger"}

# What makes a command tiny, behind its own flags (the last one of a flag counts).
FRAMES = ["--max_frames", "4", "--max_pixels", "3136"]
TRAINING = [*FRAMES, *shlex.split("--use_cpu true --bf16 false --dtype float32 --max_steps 2 --disable_tqdm true")]
TINY = {
    "stages/data.py": ["--max_excluded", "0.3"],  # a dozen bad files are many among so few
    "stages/importance.py": [*FRAMES, "--folds", "2"],
    "stages/describe.py": [*FRAMES, *shlex.split("--engine transformers --max_new_tokens 12")],
    "stages/sft.py": [
        *TRAINING,
        *shlex.split("--limit 8 --per_device_train_batch_size 2 --gradient_accumulation_steps 1"),
    ],
    "stages/grpo.py": [
        *TRAINING,
        *("--judge", "/models/roberta-base-go_emotions"),
        *shlex.split("--limit 8 --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --num_generations 2"),
        *shlex.split("--max_completion_length 12"),
    ],
    "eval/consistency.py": [
        *FRAMES,
        *("--judge", "llm:/models/Qwen3-8B"),
        *shlex.split("--engine transformers --tensor_parallel 1 --dtype float32 --limit 4 --max_new_tokens 12"),
    ],
    "eval/explain.py": [*FRAMES, "--max_new_tokens", "12"],
}


def commands():
    """The commands of the page, with continued lines joined."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def script_of(words):
    """The Python script in a command and what stands behind it; the launcher is in front."""
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[at], words[at + 1 :], words[:at]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("kind", ["sft", "grpo", "eval"])
def test_every_configuration_loads_into_its_dataclasses_and_says_where_values_come_from(folder, kind):
    file = ROOT / "configs" / folder / f"{kind}.yaml"
    values = read_config(file)
    if kind == "eval":
        from eval.run import options

        flags = ["--config", str(file), "--clips", "c", "--model", "m", "--out", "o"]
        parsed = [options.arguments(flags, None)[0]]
    else:
        from trl import GRPOConfig, SFTConfig

        from migr.training.arguments import GRPOArguments, SFTArguments, parse
        from migr.training.checks import force

        types = [SFTArguments, SFTConfig] if kind == "sft" else [GRPOArguments, GRPOConfig]
        own, config = parse(types, ["--config", str(file), "--use_cpu", "true", "--output_dir", "o"])
        force(kind, config, own.explicit)  # a recipe asks for nothing that cannot be honoured
        assert values["model"] in PUBLISHED
        if kind == "grpo":
            assert len(config.reward_weights) == len(own.rewards)
        parsed = [own, own.media_settings, config]
    for key, value in values.items():
        (found,) = [getattr(part, key) for part in parsed if hasattr(part, key)]
        assert found == value or str(found) == str(value) or (key, found) == ("report_to", []), key
    known = {"seed", "rewards", "model", "report_to", "save_total_limit", "gradient_accumulation_steps"}
    known |= {"tensor_parallel", "dataloader_num_workers"}
    lines = [*file.read_text(encoding="utf-8").splitlines(), *file.with_name("clips.yaml").read_text().splitlines()]
    for line in lines:
        assert len(line) <= 120
        if (key := line.partition(":")[0]) in values and key not in known:
            assert "  #" in line or " # " in line, f"{line}: no origin"


@pytest.mark.parametrize("folder", [*FOLDERS, "demo"])
def test_a_recipe_says_once_how_clips_are_read(folder):
    shared = yaml.safe_load((ROOT / "configs" / folder / "clips.yaml").read_text(encoding="utf-8"))
    MediaSettings(**shared)
    for file in (ROOT / "configs" / folder).glob("*.yaml"):
        if file.name != "clips.yaml":
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            assert values["include"] == "clips.yaml" and not shared.keys() & values.keys(), file


def launcher():
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "configs" / "accelerate").glob("*.yaml")))
def test_accelerate_reads_its_configurations(file):
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / "configs" / "accelerate" / file
    config = load_config_from_file(str(path))
    assert config.num_processes >= 2
    if "zero" in file:
        assert str(config.distributed_type.value) == "DEEPSPEED"
        assert config.deepspeed_config["zero_stage"] == int(file[4])


class Parsed(Exception):
    """The command line was accepted."""


def test_every_command_of_the_page_is_accepted_by_its_script(monkeypatch):
    """Flags, keys and values, without running: each script is stopped once its command line is read."""
    own = argparse.ArgumentParser.parse_known_args
    monkeypatch.chdir(ROOT)
    found = commands()
    assert len(found) > 20
    for words in found:
        if words[0] == "unzip":
            continue
        script, flags, front = script_of(words)
        if front[0] == "accelerate":
            args = launcher().parse_args([*front[2:], script, *flags])
            assert args.config_file is None or Path(args.config_file).is_file()
        elif front[0] == "sbatch":
            assert subprocess.run(["/bin/bash", "-n", front[1]], check=True).returncode == 0
        else:
            assert front == ["python"]

        def once(self, args=None, namespace=None):
            result = own(self, args, namespace)
            if self.prog == "command" and not result[1]:
                raise Parsed
            return result

        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        if "stages/sft" in script or "stages/grpo" in script:
            from trl import GRPOConfig, SFTConfig

            from migr.training.arguments import GRPOArguments, SFTArguments, parse

            types = [SFTArguments, SFTConfig] if "sft" in script else [GRPOArguments, GRPOConfig]
            parse(types, [*flags, "--use_cpu", "true"])
            continue
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", once)
            patch.setattr(sys, "argv", ["command", *flags])
            with pytest.raises(Parsed):
                module.main(flags) if script == "eval/consistency.py" else module.main()


# --- the whole page, tiny ---


@pytest.fixture(scope="module")
def world(planted_run, base_model, tmp_path_factory):
    """What the page's paths stand for: archives, trees with bad files among the clips, and tiny models."""
    from migr.omni.tiny import build_tiny

    folder = tmp_path_factory.mktemp("world")
    clips = [(c.path, c.label, "train" if c.split == "train" else "test") for c in read_clips(planted_run.clips)]
    shutil.copy(clips[-1][0], folder / "clip.mp4")
    bad = media_files.bad(folder / "bad").values()
    clips += [(file, "fear", "test" if n % 2 else "train") for n, (file, _) in enumerate(bad)]
    reasons = {f"{len(clips) - len(bad) + n:05d}": reason for n, (_, reason) in enumerate(bad, 1)}
    media_files.dfew(folder / "archive", clips, fold=5)
    with zipfile.ZipFile(folder / "DFEW-part2.zip", "w") as archive:
        for file in (folder / "archive").rglob("*"):
            archive.write(file, file.relative_to(folder / "archive"))
    media_files.mafw(folder / "MAFW", [(p, TO_MAFW.get(label, label), split) for p, label, split in clips], fold=5)
    captions = Workbook()
    captions.active.append(["clip", "English"])
    for number in range(1, len(clips) + 1):
        captions.active.append([f"{number:05d}.mp4", f"Person {number} lowers the brows."])
    (folder / "MAFW" / "Labels").mkdir()
    captions.save(folder / "MAFW" / "Labels" / "descriptive_text.xlsx")
    texts = ["Which emotion? happy sad angry. <think><video>a face</video></think><answer>happy</answer>"] * 20
    qwen3 = build_tiny(folder / "qwen3", texts, family="qwen3_omni_moe")
    sys.path.append(str(ROOT / "tests" / "judge"))
    from test_judges import build_roberta

    from migr.judge.huggingface import GOEMOTIONS

    build_roberta(folder / "go_emotions", list(GOEMOTIONS))[1].save_pretrained(folder / "go_emotions")
    rows = [{"clip_id": str(n), "label": "happy", "response": "<think>joy</think><answer>happy</answer>"} for n in "12"]
    (folder / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    programs = folder / "programs"  # Slurm's two commands, for one machine
    programs.mkdir()
    for name, body in {
        "scontrol": 'printf "node1\\nnode2\\n"',
        "srun": 'SLURM_NODEID=0 exec "$@"',
        "accelerate": f'printf "%s\\n" "$@" > {folder}/launched; while [[ $1 != *.py ]]; do shift; done; '
        f'exec {sys.executable} "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    places = {
        "/data": folder,
        "/data/DFEW": folder / "DFEW",
        "/data/MAFW": folder / "MAFW",
        "/data/MAFW/Labels/descriptive_text.xlsx": folder / "MAFW" / "Labels" / "descriptive_text.xlsx",
        "/models/Qwen2.5-Omni-7B": base_model,
        "/models/Qwen3-Omni-30B-A3B-Instruct": qwen3,
        "/models/roberta-base-go_emotions": folder / "go_emotions",
        "llm:/models/Qwen3-8B": f"llm:{base_model}",
        "DFEW-part2.zip": folder / "DFEW-part2.zip",
        "clip.mp4": folder / "clip.mp4",
        "theirs.jsonl": folder / "theirs.jsonl",
    }
    return folder, {key: str(value) for key, value in places.items()}, programs, reasons


def tiny(words, folder, places):
    """A command of the page as it is run here: other places, few clips and steps."""
    words = [places.get(word, word) for word in words]
    words = [str(folder / word) if word.startswith("runs/") else word for word in words]
    if words[0] == "unzip":
        archive, out = words[words.index("PASSWORD") + 1], words[-1]
        return [sys.executable, "-m", "zipfile", "-e", archive, out]  # not every machine has unzip
    script, flags, front = script_of(words)
    more = [places.get(word, word) for word in TINY.get(script, [])]
    if "--predictions" in flags:
        more = []
    if front[0] == "sbatch":
        return ["/bin/bash", front[1], script, *flags, *more]
    return [
        sys.executable,
        script,
        *flags,
        *more,
    ]  # launchers: tests/training/test_training.py


def run_here(script, flags):
    """A script's main function in this process."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [script, *flags])
        module.main(flags) if script == "eval/consistency.py" else module.main()


def run_all(folder, places, programs):
    """Run the commands one after the other; prints the seconds that each took (pytest -s shows them).

    A script that has run in a process of its own runs here from then on: most of its time is that of its imports.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "ACCELERATE": str(programs / "accelerate")}
    environment |= {"SLURM_JOB_NODELIST": "node[1-2]"}
    seen = set()
    for words in commands():
        command = tiny(words, folder, places)
        if command[1] == "eval/explain.py":
            command += ["--out", str(folder / "clip.html")]
        start = time.monotonic()
        if command[1] in seen:
            run_here(command[1], command[2:])
        else:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1800
            )
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            seen |= {command[1]} if command[0] == sys.executable and words[0] != "unzip" else set()
        print(f"{time.monotonic() - start:5.1f} s  {' '.join(words)[:110]}", flush=True)


def ids(file, key="clip_id"):
    return {row[key] for row in read_jsonl(file)}


@pytest.mark.slow
def test_the_whole_page_from_the_archive_to_the_tables(world):
    folder, places, programs, bad = world
    run_all(folder, places, programs)
    runs = folder / "runs"
    assert len(bad) >= 12
    for name in ("dfew", "mafw"):
        excluded = {row["clip_id"]: row["reason"] for row in read_jsonl(runs / name / "clips" / "excluded.jsonl")}
        assert excluded == bad
    for name in ("dfew", "both"):  # the others go all the way, and no bad one does
        rows = read_jsonl(runs / name / "clips" / "clips.jsonl", unique="clip_id")
        train = {row["clip_id"] for row in rows if row["split"] == "train"}
        assert len(rows) == (42 if name == "dfew" else 84) and len(train) == len(rows) * 2 // 3
        assert ids(runs / name / "importance" / "importance.jsonl") == {row["clip_id"] for row in rows}
        assert ids(runs / name / "reasoning.jsonl") == ids(runs / name / "targets.jsonl") == train
        targets = read_jsonl(runs / name / "targets.jsonl")
        assert {row["order"][0] for row in targets} <= {"video", "audio"}
        assert read_json(runs / name / "grpo" / "done.json")["steps"] == 2
    for name in ("dfew/eval", "both/eval_dfew", "both/eval_mafw", "30b/eval"):
        assert read_json(runs / name / "metrics.json")["n"] == 4
        assert (runs / name / "report.html").is_file()
        assert not ids(runs / name / "predictions.jsonl") & bad.keys()
    captions = read_jsonl(runs / "mafw" / "targets.jsonl")
    assert len(captions) == 28 and all("lowers the brows" in row["target"] for row in captions)
    joined = read_jsonl(runs / "both" / "clips" / "clips.jsonl")
    assert {row["clip_id"].split("/")[0] for row in joined} == {"dfew", "mafw"}
    assert {row["label"] for row in joined} >= {"happiness", "sadness", "anger"}
    assert (runs / "30b" / "sft" / "adapter_model.safetensors").is_file()
    launched = (folder / "launched").read_text().splitlines()
    assert "configs/accelerate/zero3_2nodes.yaml" in launched and launched[launched.index("--main_process_ip") + 1]
    assert launched[launched.index("--main_process_ip") + 1] == "node1"
    assert (folder / "clip.html").is_file() and read_json(runs / "theirs" / "metrics.json")["war"] == 1.0
