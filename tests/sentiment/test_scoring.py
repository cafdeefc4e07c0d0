import csv
import json
from pathlib import Path

import numpy as np
import pytest

from eval.sentiment import main
from migr.errors import InputError
from migr.sentiment.metrics import figures
from migr.sentiment.sets import sentiment_set


def write(path: Path, rows, columns=("id", "prediction", "truth")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def mosi(n=60, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    y = np.round(rng.uniform(-3, 3, n) * 5) / 5
    return [(f"v$_${i}", f"{a + rng.normal() * noise:.1f}", f"{a:.4f}") for i, a in enumerate(y)]


def score(tmp_path: Path, *words) -> dict:
    content = main([*map(str, words), "--out", str(tmp_path / "out"), "--resamples", "200"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == json.loads(json.dumps(content))
    assert "Figures" in (tmp_path / "out" / "report.html").read_text()
    return content


def test_anybodys_csv_has_mmsas_key_names(tmp_path, capsys):
    rows = mosi()
    content = score(tmp_path, write(tmp_path / "mine.csv", rows), "--set", "mosi")
    p, y = (np.array([float(row[i]) for row in rows], np.float32) for i in (1, 2))
    row = content["runs"]["mine"]
    for name, value in figures(sentiment_set("mosi"), p, y).items():
        assert row[name] == pytest.approx(value)
    assert any("Self-MM" in other["system"] for other in content["published"])
    assert "Has0_acc_2" in capsys.readouterr().out


def test_two_runs_are_paired_and_seeds_averaged(tmp_path):
    good = [(*row, seed) for seed in (1, 2) for row in mosi(noise=0.2)]
    write(tmp_path / "good.csv", good, ("id", "prediction", "truth", "seed"))
    write(tmp_path / "bad.csv", mosi(noise=1.5))
    content = score(tmp_path, tmp_path / "bad.csv", tmp_path / "good.csv", "--set", "mosi")
    assert content["runs"]["good"]["n_seeds"] == 2 and content["runs"]["good"]["MAE_std"] == 0
    assert content["paired"]["good"]["MAE"]["difference_ci95"][1] < 0


def test_unread_and_zero_are_counted(tmp_path):
    rows = mosi()
    rows[0] = (rows[0][0], "I cannot say", rows[0][2])
    rows[1] = (rows[1][0], "0.0", rows[1][2])
    row = score(tmp_path, write(tmp_path / "x.csv", rows), "--set", "mosi")["runs"]["x"]
    assert row["share_unread"] == pytest.approx(1 / 60) and row["share_exactly_0"] >= 1 / 60
    mse = score(tmp_path, tmp_path / "x.csv", "--set", "mosi", "--as", "mse")["runs"]["x"]
    assert mse["MAE"] != row["MAE"]


def test_classes_by_name_or_number(tmp_path):
    rows = [("a", "joy", "joy"), ("b", "0", "neutral"), ("c", "none of them", "anger"), ("d", "Anger", "6")]
    row = score(tmp_path, write(tmp_path / "x.csv", rows), "--set", "meld")["runs"]["x"]
    assert row["acc"] == 0.75 and row["share_unread"] == 0.25


def test_mmsas_and_mse_adapters_result_files(tmp_path):
    (tmp_path / "mosi.csv").write_text(
        'Model,Has0_acc_2,MAE,Corr\ntfn,"(np.float64(77.99), np.float64(0.5))","(94.7, 1.2)","(67.3, 0.1)"\n'
        'cmcm,"(87.1, 0.3)","(67.7, 0.2)","(83.0, 0.1)"\n'
    )
    row = score(tmp_path, write(tmp_path / "x.csv", mosi()), tmp_path / "mosi.csv", "--set", "mosi")["runs"]
    assert row["mosi tfn"]["Has0_acc_2"] == pytest.approx(0.7799) and row["mosi tfn"]["MAE"] == pytest.approx(0.947)
    assert row["mosi cmcm"]["Corr_std"] == pytest.approx(0.001)


def test_kudas_log_is_read_at_the_epoch_that_valid_chooses(tmp_path):
    def grid(valid: float, test: float) -> str:
        line = "|  {} | {} | 0.79 | 0.45 | 0.84 | 0.86 | 0.84 | 0.86 |\n\n"
        head = "| Phase | MAE | Corr | Acc-7 | Acc-2 | Acc-2-N0 | F1 | F1-N0 |\n\n+----+\n\n"
        return head + line.format("Train", 0.1) + line.format("Valid", valid) + line.format("Test", test)

    (tmp_path / "kuda.log").write_text("2025 - INFO - \n\n" + grid(0.8, 0.70) + grid(0.7, 0.72) + grid(0.75, 0.69))
    found = score(tmp_path, tmp_path / "kuda.log", "--set", "mosi")["runs"]["kuda"]
    assert found["MAE"] == 0.72 and "epoch 2 of 3" in found["note"]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([("a", "1", "2"), ("a", "1", "2")], ("id", "prediction", "truth"), "twice"),
        ([("a", "1", "9")], ("id", "prediction", "truth"), "±3"),
        ([("a", "1", "")], ("id", "prediction", "truth"), "no label"),
        ([("a", "1")], ("id", "prediction"), "no column truth"),
        ([("a", "1")], ("name", "prediction"), "id,prediction,truth"),
        ([], ("id", "prediction", "truth"), "no predictions"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, rows, columns, message):
    with pytest.raises(InputError, match=message) as caught:
        score(tmp_path, write(tmp_path / "x.csv", rows, columns), "--set", "mosi")
    assert "x.csv" in str(caught.value)


def test_other_clips_and_other_truth_are_refused(tmp_path):
    one, two = write(tmp_path / "one.csv", mosi()), write(tmp_path / "two.csv", mosi(50))
    with pytest.raises(InputError, match="--common"):
        score(tmp_path, one, two, "--set", "mosi")
    rows = mosi()
    rows[3] = (rows[3][0], "1", "3")
    with pytest.raises(InputError, match="another truth"):
        score(tmp_path, one, write(tmp_path / "three.csv", rows), "--set", "mosi")
    with pytest.raises(InputError, match="--set"):
        score(tmp_path, one)
