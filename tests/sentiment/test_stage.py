import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT
from launching import DDP, needs_compiler, two_processes
from launching import run as start
from safetensors.torch import load_file

from eval.sentiment import main as score
from migr.cli import Parser, settings_of
from migr.errors import InputError
from migr.files.records import read_jsonl
from migr.sentiment.settings import FitSettings, NetworkSettings, RunSettings
from stages.features import main as features
from stages.sentiment import main as fit
from tests.sentiment import peers
from tests.sentiment.files import planted, tiny_lm
from tests.sentiment.test_files import write


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("stage")
    path = write(made / "x.pkl", planted((96, 24, 24), sims=True))
    features(["--source", "mmsa", "--file", str(path), "--set", "sims", "--out", str(made / "data")])
    return made / "data"


def run(data: Path, out: Path, *words: object) -> dict:
    fit(["--data", str(data), "--out", str(out), "--num_train_epochs", "3", "--disable_tqdm", *map(str, words)])
    return json.loads(next(out.glob("seed-*/done.json")).read_text())


def test_an_interrupted_run_ends_bit_identical(data, tmp_path):
    words = ("--fusion", "experts", "--save_total_limit", 10, "--adversarial_weight", 0.3, "--selection_epochs", 2)
    run(data, tmp_path / "whole", *words)
    whole, cut = tmp_path / "whole" / "seed-1111", tmp_path / "cut" / "seed-1111"
    shutil.copytree(whole, cut)
    for path in (cut / "done.json", cut / "model.safetensors", cut / "predictions.csv"):
        path.unlink()
    steps = sorted(int(path.name.rpartition("-")[2]) for path in cut.glob("checkpoint-*"))
    for step in steps[1:]:
        shutil.rmtree(cut / f"checkpoint-{step}")
    run(data, tmp_path / "cut", *words)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all((one[name] == other[name]).all() for name in one)
    assert (whole / "predictions.csv").read_text() == (cut / "predictions.csv").read_text()
    last = [load_file(folder / f"checkpoint-{steps[-1]}" / "model.safetensors") for folder in (whole, cut)]
    assert all((last[0][name] == last[1][name]).all() for name in last[0])
    assert not any(path.name.startswith("checkpoint") for path in tmp_path.iterdir())
    state = json.loads((cut / f"checkpoint-{steps[-1]}" / "trainer_state.json").read_text())
    rows = [row for row in state["log_history"] if "eval_MAE" in row]
    errors = [row["eval_MAE"] for row in rows]
    means = [errors[0], *((one + two) / 2 for one, two in itertools.pairwise(errors))]
    assert [row["eval_MAE_mean2"] for row in rows] == pytest.approx(means)
    assert json.loads((cut / "done.json").read_text())["epoch"] == 1 + means.index(min(means))


def test_egmf_killed_and_resumed_ends_bit_identical(data, tmp_path):
    lm = tiny_lm(tmp_path / "lm")
    words = ["--head", "llm", "--model", str(lm), "--fusion", "experts", "--grid", "0.5", "--learning_rate", "3e-3"]
    words += ["--save_total_limit", "10", "--no-ablations", "--num_train_epochs", "6"]
    run(data, tmp_path / "whole", *words)
    whole, cut = tmp_path / "whole" / "seed-1111", tmp_path / "cut" / "seed-1111"
    command = [sys.executable, ROOT / "stages" / "sentiment.py", "--data", data, "--out", cut.parent, "--disable_tqdm"]
    killed = subprocess.Popen([*map(str, command), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list(cut.glob("checkpoint-*/complete")):
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert list(cut.glob("checkpoint-*/complete")) and not (cut / "done.json").exists()
    run(data, tmp_path / "cut", *words)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert any("lora" in name for name in one) and all(torch.equal(one[name], other[name]) for name in one)
    for name in ("predictions.csv", "predictions_greedy.csv", "predictions_constrained.csv", "importance.jsonl"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


@pytest.fixture(scope="module")
def fits(data, tmp_path_factory) -> dict[str, list[str]]:
    """Both heads without dropout, whose draws differ between processes: name -> arguments, for batches of 16."""
    lm = tiny_lm(tmp_path_factory.mktemp("lm") / "lm")
    common = ["--data", str(data), "--num_train_epochs", "3", "--dropout", "0", "--disable_tqdm"]
    llm = ["--head", "llm", "--model", str(lm), "--fusion", "experts", "--grid", "0.5", "--learning_rate", "3e-3"]
    return {"agfn": [*common, "--seeds", "1", "2"], "egmf": [*common, *llm]}


@pytest.fixture(scope="module")
def alone(fits, tmp_path_factory) -> Path:
    """What one process learns."""
    out = tmp_path_factory.mktemp("alone")
    for name, words in fits.items():
        fit([*words, "--out", str(out / name)])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, pytest.param("zero2_cpu.yaml", marks=needs_compiler)], ids=str)
def test_two_processes_learn_what_one_learns(config, fits, alone, tmp_path):
    launcher = two_processes(config) if config else DDP
    for name, words in fits.items():
        script = [ROOT / "stages" / "sentiment.py", *words, "--out", tmp_path / name]
        start(tmp_path, [*launcher, *script, "--per_device_train_batch_size", "16"])
        for folder in (alone / name).glob("seed-*"):
            other = tmp_path / name / folder.name
            one, two = (load_file(path / "model.safetensors") for path in (folder, other))
            assert one.keys() == two.keys()
            for weight in one:
                torch.testing.assert_close(two[weight], one[weight], atol=2e-3, rtol=2e-2)
            done, same = (json.loads((path / "done.json").read_text()) for path in (folder, other))
            assert same["epoch"] == done["epoch"] and same["valid"] == pytest.approx(done["valid"], abs=2e-2)
            assert same["test"]["main"]["MAE"] == pytest.approx(done["test"]["main"]["MAE"], abs=2e-3)


@pytest.mark.slow
@needs_compiler
def test_a_fit_under_zero2_that_was_killed_ends_bit_identical_and_writes_no_frozen_weights(fits, tmp_path):
    launcher = two_processes("zero2_cpu.yaml")
    script = [ROOT / "stages" / "sentiment.py", *fits["egmf"], "--num_train_epochs", "4", "--save_total_limit", "10"]
    start(tmp_path, [*launcher, *script, "--out", tmp_path / "whole"])
    whole, cut = tmp_path / "whole" / "seed-1111", tmp_path / "cut" / "seed-1111"
    command = [*map(str, launcher), *map(str, script), "--out", str(cut.parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (tmp_path / "killed.log").open("w") as log:
        killed = psutil.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    while killed.poll() is None and not list(cut.glob("checkpoint-*/complete")):
        time.sleep(0.01)
    for process in (*killed.children(recursive=True), killed):  # workers have sessions of their own
        process.kill()
    psutil.wait_procs([killed])
    assert list(cut.glob("checkpoint-*/complete")) and not (cut / "done.json").exists()
    assert "going on from step" in start(tmp_path, command)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert any("lora" in name for name in one) and all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "predictions.csv").read_bytes() == (cut / "predictions.csv").read_bytes()
    path = next(whole.glob("checkpoint-*/global_step*/mp_rank_00_model_states.pt"))
    states = torch.load(path, weights_only=False)
    weights = {name for name in states["module"] if name.endswith("weight")}
    assert any("lora" in name for name in weights) and not any(".base_layer." in name for name in weights)
    assert not states.get("frozen_param_fragments")


@pytest.mark.parametrize("fusion", ["dual-gate", "experts"])
def test_the_modality_that_carries_the_score_is_found_where_the_other_contradicts_it(fusion, tmp_path):
    table = planted((400, 60, 100), dominant="either")
    dominant = [columns.pop("dominant") for columns in table.values()][-1]
    path = write(tmp_path / "x.pkl", table)
    features(["--source", "mmsa", "--file", str(path), "--set", "mosi", "--out", str(tmp_path / "data")])
    words = ("--fusion", fusion, "--num_train_epochs", 12, "--learning_rate", "2e-3", "--no-ablations")
    run(tmp_path / "data", tmp_path / "run", *words)
    rows = read_jsonl(tmp_path / "run" / "seed-1111" / "importance.jsonl")
    # a weak score is mostly noise: there is little to be carried
    strong = [abs(float(score)) >= 1 for score in table["test"]["regression_labels"]]
    right = [row["dominant"] == name for row, name in zip(rows, dominant, strict=True)]
    assert sum(r for r, s in zip(right, strong, strict=True) if s) >= 0.9 * sum(strong)


def test_two_seeds_with_both_heads_make_a_table(data, tmp_path):
    run(data, tmp_path / "agfn", "--seeds", 1, 2)
    tiny_lm(tmp_path / "lm")
    words = (
        "--head",
        "llm",
        "--model",
        tmp_path / "lm",
        "--fusion",
        "experts",
        "--learning_rate",
        "3e-3",
        "--grid",
        0.5,
    )
    done = run(data, tmp_path / "egmf", *words)
    assert set(done["test"]) == {"main", "greedy", "constrained"}
    assert "shuffled pseudo tokens" in done["ablations_on_valid"]
    assert set(done["experts"]) == {"local", "semantic", "global"}
    content = score(
        [str(tmp_path / "agfn"), str(tmp_path / "egmf"), "--out", str(tmp_path / "table"), "--resamples", "50"]
    )
    assert set(content["runs"]) == {"agfn", "egmf", "egmf greedy", "egmf constrained"}
    assert content["runs"]["agfn"]["n_seeds"] == 2
    egmf = content["runs"]["egmf"]
    assert {"negative", "positive"} <= set(egmf["importance_by_class"])
    assert {"only text", "without audio", "without expert local", "shuffled pseudo tokens"} <= set(
        egmf["ablations_on_valid"]
    )
    assert len(egmf["experts"]["local"]["quartiles"]) == 3 and abs(egmf["experts"]["local"]["with_intensity"]) <= 1
    assert "What the parts do" in (page := (tmp_path / "table" / "report.html").read_text()) and "semantic" in page
    assert "without expert local" not in content["runs"]["agfn"]["ablations_on_valid"]
    run(data, tmp_path / "egmf", *words)  # found finished, left alone
    with pytest.raises(InputError, match="another pseudo_tokens"):
        run(data, tmp_path / "egmf", *words, "--pseudo_tokens", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fusion", "expert"), "choice"),
        (("--fusio", "experts"), "did you mean 'fusion'"),
        (("--head", "llm"), "--model"),
        (("--model", "x"), "--head llm"),
        (("--hidden", 20), "multiple of 8"),
        (("--modalities", "smell"), "has no smell"),
        (("--seeds", 1, 1), "different"),
        (("--selection_epochs", 0), "at least 1"),
        (("--head", "llm", "--model", "/nowhere"), "no causal language model"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, words, message):
    with pytest.raises(InputError, match=message) as caught:
        run(data, tmp_path / "out", *words)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_one_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.json"):
        run(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs" / "sentiment").glob("*.yaml")), ids=str)
def test_recipes_are_read(path):
    parser = Parser(None)
    parser.add_settings(RunSettings, NetworkSettings, FitSettings)
    words = ["--config", str(path)]
    args = parser.parse_args(words)
    args = parser.parse_args([*words, "--model", "x"]) if args.head == "llm" else args
    settings_of(NetworkSettings, args).check()
    fit_settings = settings_of(FitSettings, args)
    if fit_settings.bf16 and not torch.cuda.is_available():
        with pytest.raises(InputError, match="bf16"):
            fit_settings.training_arguments("x", 1, "MAE", False)
        fit_settings.bf16 = False
    assert fit_settings.training_arguments("x", 1, "MAE", False).load_best_model_at_end


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("MMSA") is None, reason="pip install --no-deps mmsa==2.2.1")
def test_mmsas_own_trainer_learns_from_the_file_that_we_write(tmp_path):
    rows = {row[0]: float(row[1]) for row in peers.main(tmp_path, (300, 60, 80), ["tfn", "lmf", "mult"], 15)}
    best = min(rows.pop(name) for name in (peers.PLAIN, peers.EXACT))
    assert set(rows) == {"MMSA tfn", "MMSA lmf", "MMSA mult", "dual-gate", "experts", "concat"}
    assert best < 0.4 and max(rows.values()) < 1.1
