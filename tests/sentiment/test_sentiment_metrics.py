import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from eval.figures.sentiment import Scored, compare, draw, resampled
from migr.sentiment.metrics import f1_of, figures, sortings, table_of
from migr.sentiment.sets import SETS, sentiment_set

GOLDEN = Path(__file__).parent / "metricstop.json"  # 60 tables with what MMSA 2.2.1's metricsTop.py made of them


def tables(count: int, seed: int):
    """Random tables with ties, zeros, thresholds, texts of one decimal, predictions out of range."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        name = ("mosi", "mosei", "sims", "simsv2")[i % 4]
        bound, n = SETS[name].bound, int(rng.integers(8, 16 if count < 100 else 60))
        steps = (5, 3, 10)[int(rng.integers(3))]
        y = np.round(rng.uniform(-bound, bound, n) * steps) / steps
        y[0], y[1] = bound, -bound  # never all zero: MMSA fails there
        p = y + rng.normal(size=n) * bound * rng.uniform(0, 0.7)
        if i % 3 == 0:
            p = np.round(p, 1)
        p[rng.random(n) < 0.2] = rng.choice([0.0, -0.0, 0.1, -0.1, 0.7, -0.7, 0.5, 1.5, -2.5, 2.6])
        yield name, p.astype(np.float32), y.astype(np.float32)


def test_figures_equal_mmsas_golden_values():
    rows = json.loads(GOLDEN.read_text())
    assert len(rows) == 60
    for row in rows:
        p, y = (np.array(row[key], np.float32) for key in ("prediction", "truth"))
        found = figures(sentiment_set(row["set"]), p, y)
        assert {k: round(found[k], 4) for k in row["figures"]} == row["figures"]


@pytest.mark.skipif(importlib.util.find_spec("MMSA") is None, reason="pip install --no-deps mmsa==2.2.1")
def test_figures_equal_mmsas_own_on_a_thousand_tables():
    import torch

    folder = importlib.util.find_spec("MMSA").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("metricstop", Path(folder) / "utils" / "metricsTop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    top = module.MetricsTop("regression")
    for name, p, y in tables(1000, 5):
        expected = top.getMetics(name.removesuffix("v2"))(torch.from_numpy(p), torch.from_numpy(y))
        found = figures(sentiment_set(name), p, y)
        assert {k: round(found[k], 4) for k in expected} == {k: float(v) for k, v in expected.items()}, (p, y)


def test_float64_and_swapped_f1_differ_so_nobody_simplifies_them():
    sims = sentiment_set("sims")
    y = np.array([-1, -0.8, -0.6, -0.2, 0, 0, 0.2, 0.6, 0.8, 1], np.float32)
    p = np.array([-1.2, -0.7, -0.1, 0, 0.1, -0.1, 0.1, 0.7, 0.9, 0.7], np.float32)
    assert figures(sims, p, y)["Mult_acc_5"] == 0.6
    edges = (-0.7, -0.1, 0.1, 0.7)
    wide = [np.sum([np.clip(x.astype(np.float64), -1, 1) > edge for edge in edges], axis=0) for x in (p, y)]
    assert (wide[0] == wide[1]).mean() == 0.5
    y, p = np.array([1, -1, 0, 2], np.float32), np.zeros(4, np.float32)
    ours, kuda = (figures(sentiment_set("mosi"), p, y, name) for name in ("mmsa", "kuda"))
    assert round(ours["Has0_F1_score"], 4) == 0.6429
    assert kuda["Has0_F1_score"] == pytest.approx(f1_score(p >= 0, y >= 0, average="weighted"))
    assert kuda["Has0_F1_score"] != ours["Has0_F1_score"] and kuda["Has0_acc_2"] == ours["Has0_acc_2"]
    assert ours["Corr"] is None


def test_mults_zero_is_negative():
    y, p = np.array([0, 0, 1, -1], np.float32), np.array([0.5, -0.5, 1, -1], np.float32)
    found = figures(sentiment_set("mosi"), p, y, "mult")
    assert found["Acc_2"] == 0.75 and "Has0_acc_2" not in found
    assert found["F1_score"] == pytest.approx(f1_score(p > 0, y > 0, average="weighted"))
    assert figures(sentiment_set("mosi"), p, y)["Has0_acc_2"] == 0.75


def test_unread_answers_are_wrong_and_never_zero():
    mosi, meld = sentiment_set("mosi"), sentiment_set("meld")
    y = np.array([1, 2, 0, -1], np.float32)
    p = np.array([1, np.nan, np.nan, -1], np.float32)
    found = figures(mosi, p, y)
    assert found["Has0_acc_2"] == 0.5 and found["MAE"] == 0 and found["Mult_acc_7"] == 0.5
    assert figures(mosi, p, y, "mse")["Mult_acc_7"] == 0.75
    truth, answer = np.array([0, 0, 1, 2]), np.array([0, -1, 1, np.nan])
    found = figures(meld, answer.astype(np.float32), truth)
    assert found["acc"] == 0.5
    expected = f1_score(truth, [0, 9, 1, 9], labels=[0, 1, 2], average="weighted")
    assert found["weight_F1"] == pytest.approx(expected)
    assert figures(meld, answer.astype(np.float32), truth, "mse")["acc"] == 0.75
    assert all(v is None for v in figures(mosi, np.full(4, np.nan, np.float32), y).values() if v != 0)


@pytest.mark.parametrize("name", ["mosi", "sims", "meld"])
def test_a_resample_counts_as_the_clips_themselves(name):
    dataset, rng = sentiment_set(name), np.random.default_rng(3)
    if dataset.is_score:
        y = (np.round(rng.uniform(-dataset.bound, dataset.bound, 90) * 5) / 5).astype(np.float32)
        p = (y + rng.normal(size=90)).astype(np.float32)
    else:
        y = rng.integers(0, 7, 90)
        p = np.where(rng.random(90) < 0.5, y, rng.integers(0, 8, 90)).astype(np.float32)
    weights = draw(90, 5, 0)
    for convention in ("mmsa", "kuda", "mult"):
        drawn = resampled(dataset, p, y, convention, weights)
        for r in range(5):
            index = np.repeat(np.arange(90), weights[r].astype(int))
            found = figures(dataset, p[index], y[index], convention)
            assert set(found) == set(drawn)
            for key, value in found.items():
                assert drawn[key][r] == pytest.approx(value, abs=1e-6), (convention, key)


def test_seeds_and_paired_tests():
    dataset, rng = sentiment_set("mosi"), np.random.default_rng(0)
    y = rng.uniform(-3, 3, 300).astype(np.float32)
    weights = draw(300, 400, 1)
    good, bad = (
        Scored(dataset, {s: (y + rng.normal(size=300) * e).astype(np.float32) for s in "ab"}, y, "mmsa", weights)
        for e in (0.5, 0.8)
    )
    row = good.row()
    assert row["MAE_ci95"][0] < row["MAE"] < row["MAE_ci95"][1] and row["MAE_std"] >= 0
    assert row["share_exactly_0"] == 0 and sum(r["n"] for r in row["error_by_score"]) == 300
    found = compare(bad, good, 0)
    assert found["MAE"]["difference_ci95"][1] < 0 and found["error"]["p"] < 0.001
    same = compare(good, good, 0)
    assert same["MAE"]["difference"] == 0 and same["error"]["p"] == 1


def test_weighted_f1_is_scikit_learns():
    rng = np.random.default_rng(2)
    for _ in range(50):
        truth, p = rng.integers(0, 5, 30), rng.integers(0, 5, 30).astype(np.float32)
        (sorting,) = sortings(sentiment_set("meld"), p, truth)
        assert f1_of(table_of(sorting)) == pytest.approx(f1_score(truth, p, average="weighted"))
