"""The whole job on a handful of clips, with every real part: TRL, PEFT, vLLM. The figures mean nothing here."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from migr.errors import InputError
from stages.demo.demo import make
from stages.demo.models import SHIPPED
from stages.demo.runner import Step, check_settings, step_digest

ROOT = Path(__file__).parents[2]
METRICS = {"n", "war", "uar", "cells", "inconsistent_among_correct", "inconsistent_among_all", "eea", "fcr", "epc"}


def demo(run: Path, cwd: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "stages/demo/demo.py"), "--small", "--run", str(run), *more]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = demo(folder / "run", folder, "--no-order")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", done.stdout


def test_it_names_every_stage_and_ends_with_the_table_and_the_page(run):
    folder, printed = run
    for stage in ("data", "importance", "targets", "sft", "grpo", "export", "evaluation"):
        assert f"] {stage}" in printed
    assert "Inconsistent among" in printed and str(folder / "report.html") in printed.replace("\n", "")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('"cell":') == 28 and '"src":"clips/clips/' in page and "data:image/png;base64," in page


def test_results_hold_what_the_contract_says(run):
    results = json.loads((run[0] / "results.json").read_text())
    assert set(results["variants"]) == {"baseline", "migr"}
    for figures in results["variants"].values():
        assert set(figures) >= METRICS and figures["n"] == 14
        judged = sum(figures["cells"].values()) + figures["n_unparseable"]
        assert judged <= 14
    assert 0 <= results["importance"]["accuracy"] <= 1 and results["base"]["all"]["n"] == 14
    assert all(judge["n"] == 700 for judge in results["judges"].values()) and len(results["judges"]) == 2
    assert {"data", "captions", "sft/video-first", "grpo/migr", "evaluation/migr"} <= set(results["seconds"])


def test_a_rerun_reuses_what_is_there(run, tmp_path):
    start = time.monotonic()
    again = demo(run[0], tmp_path, "--no-order")
    assert again.returncode == 0 and again.stdout.count("there already") == 9, again.stdout
    assert time.monotonic() - start < 60


def test_other_settings_do_not_go_on_from_what_is_there(run):
    command = [sys.executable, str(ROOT / "stages/demo/demo.py"), "--small", "--run", str(run[0]), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{run[0]}/clips/data.json: made with other settings" in done.stderr and "--run" in done.stderr


def test_an_edited_recipe_is_other_settings_and_another_place_is_not(tmp_path):
    recipe, made = tmp_path / "sft.yaml", tmp_path / "a" / "done.json"
    recipe.write_text("seed: 1\n")
    made.parent.mkdir()
    made.touch()

    def step(folder):
        return Step("sft", "sft/a", ["python", "sft.py", "--config", str(recipe), "--out", str(folder)], made)

    before = {"sft/a": step_digest(step(tmp_path / "a"), {"RUN": tmp_path / "a"})}
    moved = {"sft/a": step_digest(step("/elsewhere"), {"RUN": Path("/elsewhere")})}
    assert moved == before
    recipe.write_text("seed: 2\n")
    now = {"sft/a": step_digest(step(tmp_path / "a"), {"RUN": tmp_path / "a"})}
    with pytest.raises(InputError, match="remove sft/a"):
        check_settings([step(tmp_path / "a")], now, before)
    check_settings([step(tmp_path / "a")], now, {})
    made.unlink()
    check_settings([step(tmp_path / "a")], now, before)


@pytest.mark.slow
def test_two_models_more_show_when_the_order_matters(run, tmp_path):
    done = demo(run[0], tmp_path)
    assert done.returncode == 0 and "coherent texts, rewritten: " in done.stdout, done.stdout + done.stderr
    order = json.loads((run[0] / "results.json").read_text())["order"]
    assert set(order) == {"video-first", "rewritten"} and all("pull_next" in row for row in order.values())
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    assert "Does the order matter?" in page and "written from the dominant modality on" in page


def test_vllm_made_the_predictions(run):
    settings = json.loads((run[0] / "eval" / "migr" / "metrics.json").read_text())["settings"]
    assert settings["engine"].startswith("vllm")


def test_robustness_of_every_fusion(run, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "eval/bench/robustness.py"),
        "--run",
        str(run[0]),
        "--model",
        str(SHIPPED),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--limit", "14", "--seeds", "0", "--noisy_training"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert found["config"]["clips"] == 14 and found["config"]["noisy_training"]
    assert {"concatenation", "dual gate", "experts", "oracle"} < set(found["results"])
    for cases in found["results"].values():
        assert len(cases) == 11 and cases["video missing"]["dominant"] is None
        assert all(0 <= row["label"] <= 1 for row in cases.values() if row["label"] is not None)
    assert (tmp_path / "out" / "robustness.png").stat().st_size > 10_000


def test_the_base_that_is_there_is_what_training_one_would_write(tmp_path):
    """Its tokenizer and shapes are still those of the code; a short training writes the same files."""
    done = demo(tmp_path / "run", tmp_path, "--train_base", "--upto", "describe")
    assert done.returncode == 0, done.stdout + done.stderr
    new = tmp_path / "run" / "describe" / "model"
    assert {path.name for path in new.iterdir()} - {path.name for path in SHIPPED.iterdir()} == {"spk_dict.pt"}
    for name in ("tokenizer.json", "chat_template.jinja", "migr.json"):
        assert (new / name).read_text() == (SHIPPED / name).read_text(), name
    weights = [load_file(folder / "model.safetensors") for folder in (new, SHIPPED)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].shape == weights[1][name].shape for name in weights[0])


def test_the_base_that_is_there_sees_and_hears(run):
    assert json.loads((run[0] / "check.json").read_text())["all"]["right"] >= 0.85


def test_several_processes_do_not_make_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--num_processes 1"):
        make("data", tmp_path / "run")
    assert not (tmp_path / "run").exists()
