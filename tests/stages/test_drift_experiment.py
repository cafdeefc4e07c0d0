"""The experiment on drift: its grid, its steps, and what it writes of results."""

import itertools

import numpy as np
import pytest

from migr.errors import InputError
from migr.files.records import read_json, write_json, write_jsonl
from stages.demo import drift_report
from stages.demo.drift import GRID, cells
from stages.demo.models import BASES, REWARDS, SIZES, STAGES, TARGETS, Cell, steps


def test_the_grid_names_what_there_is_and_each_model_once():
    every = list(cells(GRID))
    assert len({cell.name + str(cell.seed) for cell in every}) == len(every) == len(set(every))
    for cell in every:
        assert cell.targets in TARGETS and cell.rewards in REWARDS and cell.size in SIZES and cell.base in BASES
        assert cell.coherence == 0 or TARGETS[cell.targets][0] is not None  # described apart: there is no annotator
    assert {cell.coherence for cell in every} == {0.0, 0.3, 0.6, 0.9} and len({cell.seed for cell in every}) == 3


@pytest.mark.parametrize(
    ("only", "count"),
    [
        (["main"], 78),  # 3 seeds x 2 rewards x (4 coherences x 3 kinds + apart)
        (["main", "seed=9"], 26),
        (["main", "coherence=0.6", "rewards=none", "seed=9,10"], 6),
        (["main", "targets=apart"], 6),
        (["words"], 12),  # 3 seeds x 4 coherences
        (["orders", "targets=random,least-first", "seed=9"], 2),
    ],
)
def test_a_part_of_the_grid_can_be_asked_for(only, count):
    assert len(list(cells(GRID, only))) == count


@pytest.mark.parametrize(("only", "message"), [(["mian"], "no such part; there are main"), (["q=1"], "no such field")])
def test_a_part_that_is_not_there_is_named(only, message):
    with pytest.raises(InputError, match=message):
        list(cells(GRID, only))


def test_steps_have_their_inputs_made_before_them_and_share_what_is_the_same(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    chosen = [cell for cell in cells(GRID) if cell.seed == GRID["main"]["seed"][0]]
    plan = steps(base, run, chosen)
    assert {step.stage for step in plan} <= set(STAGES)
    assert len({step.name for step in plan}) == len({str(step.output) for step in plan}) == len(plan)
    made = []
    for step in sorted(plan, key=lambda step: STAGES.index(step.stage)):
        words = step.command[2:]
        for flag, word in itertools.pairwise(words):
            if word.startswith(str(run)) and flag in (
                "--model",
                "--targets",
                "--reasoning",
                "--adapter",
                "--predictions",
            ):
                assert any(word.startswith(str(folder)) for folder in made), (step.name, flag, word)
        made.append(step.output if step.output.suffix == ".jsonl" else step.output.parent)
    count = {stage: sum(step.stage == stage for step in plan) for stage in STAGES}
    assert count["evaluation"] == count["drift"] == count["export"] == len(chosen)
    assert count["base"] == count["perceive"] == count["describe"] == 2
    assert count["sft"] == len({cell.sft for cell in chosen}) < len(chosen)  # rewards share a cold start


def written(run, cell, wrong, pull):
    """An evaluation of 100 clips, of which so many right answers come with other reasoning."""
    folder = run / f"seed{cell.seed}" / "eval" / cell.name
    (folder / "drift").mkdir(parents=True)
    ids = [f"c{i}" for i in range(100)]
    rows = [{"clip_id": name, "label": "sad", "response": "x", "answer": "sad"} for name in ids]
    write_jsonl(folder / "predictions.jsonl", rows)
    read = [{"clip_id": name, "emotion": "fear" if i < wrong else "sad"} for i, name in enumerate(ids)]
    write_jsonl(folder / "judgements.jsonl", read)
    dominant = {m: {"inconsistent_among_correct": wrong / 100} for m in ("video", "audio")}
    metrics = {"inconsistent_among_correct": wrong / 100, "war": 1.0, "per_dominant": dominant}
    write_json(folder / "metrics.json", metrics)
    drift = {
        "pull_next": pull,
        "pull_next_ci95": [pull - 0.05, pull + 0.05],
        "same_next": 0.5,
        "same_next_n": 2,
        "pull_answer": None,
        "gain_fall": 0.25,
        "order_inconsistent": 0.1,
        "by_dominant": {},
    }
    write_json(folder / "drift" / "drift.json", drift)
    text = run / f"seed{cell.seed}" / "coherence" / cell.texts
    text.mkdir(parents=True, exist_ok=True)
    write_json(text / "coherence.json", {"coherence": cell.coherence + 0.05})


def test_the_page_says_which_remedy_helps_at_which_coherence(tmp_path):
    run, bases = tmp_path / "run", tmp_path / "bases"
    every = {}
    for seed, q, (kind, wrong) in itertools.product(
        (1, 2), (0.0, 0.6), {"video-first": 30, "reordered": 29, "rewritten": 5}.items()
    ):
        cell = Cell(seed, "demo", q, kind, "400 x 6", "none")
        every[cell] = wrong if q else 4
        written(run, cell, every[cell], q)
    rewarded = Cell(1, "demo", 0.6, "video-first", "400 x 6", "all")
    written(run, rewarded, 1, 0.5)
    clips = [{"clip_id": f"c{i}", "planted": {"dominant": "video", "shown": {}}} for i in range(100)]
    for seed in (1, 2):
        (bases / f"seed{seed}" / "clips").mkdir(parents=True)
        write_jsonl(bases / f"seed{seed}" / "clips" / "clips.jsonl", clips)
    evidence = Cell(1, "demo", 0.6, "video-first", "400 x 6", "evidence")
    written(run, evidence, 3, 0.5)
    mistaken = Cell(1, "demo", 0.6, "mistaken", "400 x 6", "none")
    written(run, mistaken, 40, 0.25)
    chosen = [*every, rewarded, evidence, mistaken]
    chosen.append(Cell(3, "demo", 0.0, "video-first", "400 x 6", "none"))  # is not there yet
    rows = drift_report.collect(chosen, run, bases)
    assert len(rows) == 15 and all(row["same_next"] is None for row in rows)  # of two clips
    drift_report.write(rows, len(chosen), run, run / "drift.md")
    page = (run / "drift.md").read_text()
    assert "Run so far: 15 of 16 models" in page and "![benefit of each remedy](img/drift.png)" in page
    rule = {
        line.split(" | ")[0]: line
        for line in page[page.index("## The rule") : page.index("![")].splitlines()
        if line[:3] in ("| 0",)
    }
    assert rule["| 0"] == "| 0 | nothing | not run | not run |"
    assert rule["| 0.6"].startswith("| 0.6 | rewritten (-25.0 points [") and "reordered" not in rule["| 0.6"]
    assert rule["| 0.6"].count("-29.0 points") == 1  # rewards behind video-first, seed 1
    assert "| 0.6 | 1 | 25.00\u00a0% [20.0, 30.0] | – | – |" in page and page.count("| mistaken |") == 0  # apart
    results = read_json(run / "results.json")
    gain = next(r for r in results["benefits"] if r["remedy"] == "rewritten" and r["coherence"] == 0.6)
    low, high = gain["difference_ci95"]
    assert gain["difference"] == pytest.approx(-0.25) and low < -0.25 < high < 0 and gain["seeds"] == [1, 2]
    assert gain["pull_next"] == pytest.approx(0.6)
    (extra,) = (r for r in results["benefits"] if r["remedy"] == "evidence")
    assert extra["rewards"] == "all" and extra["difference"] == pytest.approx(0.02)  # against all without it
    assert (run / "img" / "drift.png").stat().st_size > 5000


def test_nothing_run_is_said(tmp_path):
    drift_report.write([], 168, tmp_path, tmp_path / "drift.md")
    page = (tmp_path / "drift.md").read_text()
    assert "Nothing of this has been run yet" in page and "168 models" in page


def test_a_benefit_is_over_the_clips_that_both_have(tmp_path):
    one, other = (Cell(seed, "demo", 0.0, "video-first", "400 x 6", "none") for seed in (1, 2))
    written(tmp_path, one, 10, 0.0)
    written(tmp_path, other, 20, 0.0)
    folders = [tmp_path / f"seed{cell.seed}" / "eval" / cell.name for cell in (one, other)]
    change = drift_report.benefit(folders[:1], folders[1:])
    assert change["difference"] == pytest.approx(-0.1) and np.ptp(change["difference_ci95"]) > 0.05
    assert drift_report.benefit([], [])["difference"] is None
