"""Two runs on the same clips: paired intervals, McNemar, changed cells, and refusals."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from eval.compare import main
from eval.figures.codes import outcome_of
from eval.figures.metrics import measure
from eval.figures.paired import differences, mcnemar
from migr.errors import InputError
from migr.files.records import read_json, read_jsonl, write_json, write_jsonl
from migr.text.labels import DFEW


def write_run(folder, labels, answers, judgements, judge="j", ids=None, label_set="dfew", order=None):
    folder.mkdir()
    ids = ids or [f"c{i}" for i in range(len(labels))]
    rows = [
        {
            "clip_id": name,
            "label": DFEW[y],
            "response": "<think>x</think>" + (f"<answer>{DFEW[a]}</answer>" if a >= 0 else ""),
        }
        for name, y, a in zip(ids, labels, answers, strict=True)
    ]
    judged = [
        {"clip_id": name, "judge": judge, "emotion": DFEW[j] if j >= 0 else None}
        for name, j in zip(ids, judgements, strict=True)
    ]
    order = range(len(rows)) if order is None else order
    write_jsonl(folder / "predictions.jsonl", [rows[i] for i in order])
    write_jsonl(folder / "judgements.jsonl", judged)
    figures = measure(labels, answers, judgements, DFEW, resamples=20)
    judge_facts = {"name": judge, "accuracy": None, "n": 0}
    write_json(folder / "metrics.json", {**figures, "judge": judge_facts, "settings": {"labels": label_set}})
    return str(folder)


def sample(rng, n=400, accuracy=0.8, support=0.85, labels=None):
    labels = rng.integers(0, 7, n) if labels is None else labels
    answers = np.where(rng.random(n) < accuracy, labels, rng.integers(-1, 7, n))
    judgements = np.where(rng.random(n) < support, answers, rng.integers(-1, 7, n))
    return labels, answers, judgements


def test_each_side_is_what_measure_says_and_clips_are_joined_by_name(tmp_path):
    rng = np.random.default_rng(0)
    labels, *one = sample(rng)
    _, *other = sample(rng, accuracy=0.7, support=0.95, labels=labels)
    a = write_run(tmp_path / "a", labels, *one)
    b = write_run(tmp_path / "b", labels, *other, order=rng.permutation(len(labels)))
    found = main([a, b, "--out", str(tmp_path / "out")])
    assert read_json(tmp_path / "out" / "compare.json") == json.loads(json.dumps(found))
    figures = [measure(labels, *side, DFEW) for side in (one, other)]
    for name, row in found["runs"]["b"]["differences"].items():
        assert row["first"] == figures[0][name] and row["second"] == figures[1][name]
        if row["first"] is not None:
            low, high = row["difference_ci95"]
            assert low <= row["difference"] == row["second"] - row["first"] <= high
    changed = read_jsonl(tmp_path / "out" / "changed.jsonl", unique="clip_id")
    assert len(changed) == found["runs"]["b"]["n_changed"] > 50
    assert sum(row["n"] for row in found["runs"]["b"]["cells"]) == 400
    for row in changed:
        i = int(row["clip_id"][1:])
        assert row["label"] == DFEW[labels[i]]
        answers = {
            name: None if side[0][i] < 0 else DFEW[side[0][i]] for name, side in zip("ab", (one, other), strict=True)
        }
        assert {name: run["answer"] for name, run in row["runs"].items()} == answers
        assert row["runs"]["a"]["cell"] != row["runs"]["b"]["cell"]


def test_a_run_that_was_counted_before_a_rate_was_there_is_compared_all_the_same(tmp_path, capsys):
    labels, *one = sample(np.random.default_rng(3), n=40)
    a, b = (write_run(tmp_path / name, labels, *one) for name in "ab")
    old = {key: value for key, value in read_json(tmp_path / "a" / "metrics.json").items() if not key.startswith("epc")}
    write_json(tmp_path / "a" / "metrics.json", old)
    found = main([a, b, "--out", str(tmp_path / "out")])
    assert found["runs"]["b"]["differences"]["epc"]["difference"] == 0  # it is counted from the clips
    assert [line for line in capsys.readouterr().err.splitlines() if "counted before there was epc, shown as –" in line]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_run_differs_from_itself_by_nothing():
    labels, *side = sample(np.random.default_rng(1))
    outcome = outcome_of(labels, *side)
    start = np.zeros(len(labels), int)
    found = differences(labels, (outcome, start, start), (outcome, start, start), 7, 200, 0)
    assert found["war"]["difference"] == 0 and found["uar"]["difference_ci95"] == [0, 0]
    assert found["starts_with_dominant"]["difference"] is None
    assert all(
        test["only_first"] == test["only_second"] == 0 and test["p"] == 1 for test in mcnemar(outcome, outcome).values()
    )


def test_paired_intervals_are_narrower_than_unpaired_ones_and_cover_the_truth():
    """A second run that repeats the first on nine clips of ten; 300 draws of a known difference."""
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(300):
        labels = rng.integers(0, 7, 300)
        answers = np.where(rng.random(300) < 0.7, labels, (labels + 1) % 7)
        again = np.where(rng.random(300) < 0.9, answers, np.where(rng.random(300) < 0.9, labels, (labels + 1) % 7))
        sides = [(outcome_of(labels, a, a), *np.zeros((2, 300), int)) for a in (answers, again)]
        low, high = differences(labels, *sides, 7, 400, seed)["war"]["difference_ci95"]
        covered += low <= 0.1 * (0.9 - 0.7) <= high
    assert 0.91 < covered / 300 < 0.985
    unpaired = measure(labels, answers, answers, DFEW)["war_ci95"]
    assert high - low < 0.6 * (unpaired[1] - unpaired[0])


def test_mcnemar_counts_the_clips_where_the_runs_differ():
    labels = np.zeros(40, int)
    one = outcome_of(labels, labels, np.repeat([1, 0, -1], [12, 26, 2]))  # 12 right and inconsistent
    other = outcome_of(labels, np.repeat([0, 3], [37, 3]), np.repeat([0, 1, 0], [9, 5, 26]))
    found = mcnemar(one, other)["headline"]
    assert found == {"n": 37, "only_first": 9, "only_second": 2, "p": pytest.approx(2 * binom.cdf(2, 11, 0.5))}
    assert mcnemar(one, other)["right"] == {"n": 40, "only_first": 3, "only_second": 0, "p": pytest.approx(0.25)}


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    labels, *side = sample(np.random.default_rng(3), 20)
    first = write_run(tmp_path / "first", labels, *side)

    def other(name, labels=labels, side=side, **options):
        return write_run(tmp_path / name, labels, *side, **options)

    def refusal(*flags):
        with pytest.raises(InputError) as error:
            main([*flags, "--out", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
        return str(error.value)

    fewer = other("fewer", labels[:15], [column[:15] for column in side])
    assert "fewer lacks 5 clips of first, such as 'c15', and has 0 others: --common" in refusal(first, fewer)
    assert "fewer" not in refusal(fewer, first).partition("lacks 0 clips")[0][:5]
    assert "different judges" in refusal(first, other("judged", judge="k"))
    assert "counted with the labels 'mafw'" in refusal(first, other("set", label_set="mafw"))
    assert "has another label in labels than in first" in refusal(first, other("labels", (labels + 1) % 7))
    assert "the same run is given twice" in refusal(first, first)
    assert "two runs or more" in refusal(first)
    strangers = other("strangers", ids=[f"x{i}" for i in range(20)])
    assert "no clip is common" in refusal(first, strangers, "--common")
    assert main([first, fewer, "--common"])["n"] == 15
    assert main([first, str(tmp_path / "judged"), "--any_judge"])["runs"]["judged"]["n_changed"] == 0


def test_three_runs_are_compared_with_the_first(tmp_path, capsys):
    rng = np.random.default_rng(4)
    labels = sample(rng, 60)[0]
    folders = [write_run(tmp_path / name, labels, *sample(rng, 60, labels=labels)[1:]) for name in ("a", "b", "[red]c")]
    found = main(folders)
    assert list(found["runs"]) == ["b", "[red]c"]
    assert "[red]c" in capsys.readouterr().out


def test_drift_stands_beside_the_headline_where_both_runs_have_it(tmp_path, capsys):
    def drift(folder, pull, judge="lexicon"):
        (folder / "drift").mkdir(exist_ok=True)
        behind = {"next_planted": None, "conclusion": None, "response": "x"}
        rows = [
            {
                "clip_id": f"c{i}",
                "label": "sad",
                "evidence": {"modality": ["video"] * 4, "gain": [1.0, 1.0, 0.5, 0.5], "attention": None},
                "pull": {
                    "first": "video",
                    "emotion": "sad",
                    "exchanged": "fear",
                    "own": {**behind, "next": "sad", "answer": "sad"},
                    "other": {**behind, "next": "fear" if i < pull else "sad", "answer": "sad"},
                },
                "order": None,
                "cost": {"scored": 2, "generated": 2, "tokens": 8, "attended": 0, "seconds": 0.1},
            }
            for i in range(10)
        ]
        write_jsonl(folder / "drift" / "drift.jsonl", rows)
        write_json(folder / "drift" / "drift.json", {"judge": judge})

    labels, *one = sample(np.random.default_rng(1), 30)
    a, b = (write_run(tmp_path / name, labels, *one) for name in "ab")
    drift(tmp_path / "a", 2)
    assert "drift" not in main([a, b])["runs"]["b"]
    drift(tmp_path / "b", 7)
    changes = main([a, b, "--out", str(tmp_path / "out"), "--resamples", "100"])["runs"]["b"]["drift"]
    assert changes["n"] == 10 and changes["pull_next"]["difference"] == pytest.approx(0.5)
    low, high = changes["pull_next"]["difference_ci95"]
    assert 0.1 <= low < 0.5 < high <= 0.9 and changes["gain_fall"]["first"] == 0.5
    assert "Pull on the next segment" in capsys.readouterr().out
    assert "b against a: drift" in (tmp_path / "out" / "report.html").read_text()
    drift(tmp_path / "b", 7, judge="embedded")
    with pytest.raises(InputError, match="drift was read by different judges"):
        main([a, b])
