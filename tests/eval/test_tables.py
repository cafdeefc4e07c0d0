import numpy as np

from eval.figures.metrics import measure
from eval.figures.rates import NAMES
from eval.page.tables import ROWS, comparison, percent, print_table, reliability

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")


def metrics(seed=0, n=400, judge=True):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, n)
    answers = np.where(rng.random(n) < 0.7, labels, rng.integers(-1, 7, n))
    judgements = np.where(rng.random(n) < 0.8, answers, rng.integers(-1, 7, n))
    first, dominants = rng.integers(0, 2, n), rng.integers(0, 2, n)
    found = measure(labels, answers, judgements, CLASSES, first, dominants, resamples=50)
    found["judge"] = {"name": "lexicon", "accuracy": 0.912, "accuracy_ci95": [0.9, 0.93], "n": 700} if judge else None
    return found | {"settings": {"model": "runs/model", "split": "test"}}


def test_the_terminal_table_has_the_rows_of_the_page_and_takes_no_markup_from_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    found = metrics()
    print_table({"[red]baseline[/red]": found, "migr": found})
    printed = capsys.readouterr().out
    assert "[red]baseline[/red]" in printed
    assert all(label in printed and percent(found[key]) in printed for key, label, _ in ROWS)
    assert f"n\u00a0{found['inconsistent_among_correct_n']}" in printed


def test_a_judge_that_was_not_measured_says_so():
    assert reliability({"name": "lexicon", "accuracy": None, "n": 0}) == "lexicon: reliability not measured"
    assert reliability(None) == "no judge"
    assert (
        reliability({"name": "lexicon", "accuracy": 0.5, "n": 10}).replace("\u00a0", " ") == "lexicon: 50.00 % (n 10)"
    )


def test_the_differences_of_a_comparison_become_tables_of_the_page():
    differences = {
        key: {"first": 0.2, "second": 0.15, "difference": -0.05, "difference_ci95": [-0.08, 0.0123]} for key in NAMES
    }
    differences["uar"] = {"first": None, "second": 0.1, "difference": None, "difference_ci95": None}
    tests = {
        "right": {"n": 400, "only_first": 12, "only_second": 31, "p": 0.00534},
        "headline": {"n": 0, "only_first": 0, "only_second": 0, "p": None},
    }
    figures = {"n": 1400, "first": "baseline", "runs": {"migr": {"differences": differences, "mcnemar": tests}}}
    rates, exact = comparison(figures)
    assert rates.rows[0] == (ROWS[0][1], percent(0.2), percent(0.15), "-5.00", "-8.00 to +1.23")
    assert len(rates.rows) == len(ROWS) - 1 and "1,400 clips that the runs share" in rates.note
    assert exact.rows == [("right answer", "12", "31", "400", "0.00534")]
