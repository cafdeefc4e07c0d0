import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from eval.figures.codes import CELLS, MISSING
from eval.figures.metrics import measure
from eval.figures.rates import NAMES
from migr.statistics import proportion

CLASSES = ["happy", "sad", "neutral", "angry"]


def codes(highest, size):
    return hnp.arrays(np.int8, size, elements=st.integers(MISSING, highest))


@st.composite
def tables(draw):
    size = draw(st.integers(1, 60))
    labels = draw(hnp.arrays(np.int8, size, elements=st.integers(0, len(CLASSES) - 1)))
    answers, judgements = draw(codes(len(CLASSES) - 1, size)), draw(codes(len(CLASSES) - 1, size))
    return labels, answers, judgements, draw(codes(2, size)), draw(codes(2, size))


@pytest.mark.parametrize(
    ("right", "inconsistent", "among_correct", "among_all"),
    [(1757, 318, "18.10", "13.75"), (1710, 126, "7.37", "5.45")],
)
def test_the_published_counts_give_the_published_percentages(right, inconsistent, among_correct, among_all):
    n = 2313
    labels = np.zeros(n, int)
    answers = np.where(np.arange(n) < right, 0, 1)
    judgements = np.where(np.arange(n) < inconsistent, 1, 0)
    figures = measure(labels, answers, judgements, CLASSES)
    assert f"{100 * figures['inconsistent_among_correct']:.2f}" == among_correct
    assert f"{100 * figures['inconsistent_among_all']:.2f}" == among_all
    assert figures["inconsistent_among_correct_n"] == right and figures["inconsistent_among_all_n"] == n
    low, high = figures["inconsistent_among_correct_ci95"]
    rate = figures["inconsistent_among_correct"]
    wide = 1.96 * np.sqrt(rate * (1 - rate) / right)  # the normal approximation holds at this size
    assert low == pytest.approx(rate - wide, abs=0.002) and high == pytest.approx(rate + wide, abs=0.002)


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn remarks on small tables
@given(tables())
@settings(max_examples=100, deadline=None)
def test_war_uar_and_confusion_are_those_of_scikit_learn(table):
    labels, answers, judgements, first, dominants = table
    figures = measure(labels, answers, judgements, CLASSES, first, dominants, resamples=10)
    assert figures["war"] == pytest.approx(accuracy_score(labels, answers))
    assert figures["uar"] == pytest.approx(balanced_accuracy_score(labels, answers))
    expected = confusion_matrix(labels, answers, labels=[0, 1, 2, 3, MISSING])[:4]
    assert figures["confusion"]["counts"] == expected.tolist()
    assert figures["confusion"]["answers"] == [*CLASSES, "unparseable"]
    expected = confusion_matrix(labels, judgements, labels=[0, 1, 2, 3, MISSING])[:4]
    assert figures["confusion_judged"]["counts"] == expected.tolist()


@given(tables())
@settings(max_examples=100, deadline=None)
def test_every_figure_equals_its_definition_counted_clip_by_clip(table):
    labels, answers, judgements, first, dominants = (column.tolist() for column in table)
    figures = measure(*table[:3], CLASSES, *table[3:], resamples=10)
    clips = list(zip(labels, answers, judgements, first, dominants, strict=True))
    both = [clip for clip in clips if clip[1] != MISSING and clip[2] != MISSING]
    right = [clip for clip in clips if clip[1] == clip[0]]
    right_judged = [clip for clip in right if clip[2] != MISSING]
    ordered = [clip for clip in clips if clip[3] != MISSING and clip[4] != MISSING]

    def share(part, whole):
        return pytest.approx(sum(map(part, whole)) / len(whole)) if whole else None

    assert figures["n"] == len(clips)
    assert figures["n_unparseable"] == answers.count(MISSING)
    assert figures["n_judge_failed"] == sum(clip[1] != MISSING and clip[2] == MISSING for clip in clips)
    assert figures["inconsistent_among_correct"] == share(lambda c: c[2] != c[0], right_judged)
    assert figures["inconsistent_among_correct_worst"] == share(lambda c: c[2] != c[0], right)
    assert figures["inconsistent_among_all"] == share(lambda c: c in right_judged and c[2] != c[0], clips)
    assert figures["eea"] == share(lambda c: c[2] == c[0], both)
    assert figures["fcr"] == share(lambda c: c[0] == c[1] == c[2], both)
    assert figures["epc"] == share(lambda c: c[1] == c[2], both)
    assert figures["starts_with_dominant"] == share(lambda c: c[3] == c[4], ordered)
    sizes = {"eea_n": both, "inconsistent_among_correct_n": right_judged, "starts_with_dominant_n": ordered}
    assert {key: figures[key] for key in sizes} == {key: len(rows) for key, rows in sizes.items()}


@given(tables())
@settings(max_examples=100, deadline=None)
def test_cells_and_counts_add_up_to_n_and_nothing_is_folded_into_them(table):
    figures = measure(*table[:3], CLASSES, *table[3:], resamples=10)
    apart = figures["n_unparseable"] + figures["n_judge_failed"]
    assert sum(figures["cells"].values()) + apart == figures["n"] == len(table[0])
    classes, dominants = figures["per_class"], figures["per_dominant"]
    for key in ("n", "n_unparseable", "n_judge_failed"):
        assert sum(part[key] for part in classes.values()) == figures[key]
    for cell in CELLS:
        assert sum(part["cells"][cell] for part in classes.values()) == figures["cells"][cell]
    assert sum(part["n"] for part in dominants.values()) == int((table[4] != MISSING).sum())
    assert np.mean([part["war"] for part in classes.values()]) == pytest.approx(figures["uar"])


@given(tables())
@settings(max_examples=100, deadline=None)
def test_every_interval_contains_its_estimate_and_no_denominator_means_no_rate(table):
    figures = measure(*table[:3], CLASSES, *table[3:], resamples=500)
    for part in (figures, *figures["per_class"].values(), *figures["per_dominant"].values()):
        for name in NAMES:
            if part[f"{name}_n"] == 0:
                assert part[name] is None and part[f"{name}_ci95"] is None
            else:
                low, high = part[f"{name}_ci95"]
                assert 0 <= low <= part[name] + 1e-12 and part[name] - 1e-12 <= high <= 1


def test_a_judge_failure_and_an_unparseable_answer_change_their_counts_and_no_class():
    labels, answers, judgements = [0, 0, 1, 1], [0, 0, 1, 2], [0, 1, 1, 2]
    before = measure(labels, answers, judgements, CLASSES)
    after = measure([*labels, 0, 1], [*answers, 0, MISSING], [*judgements, MISSING, 1], CLASSES)
    assert after["cells"] == before["cells"]
    assert after["inconsistent_among_correct"] == before["inconsistent_among_correct"] == pytest.approx(1 / 3)
    assert after["inconsistent_among_correct_worst"] == pytest.approx(2 / 4)
    assert (after["n_judge_failed"], after["n_unparseable"], after["n"]) == (1, 1, 6)
    assert after["war"] == pytest.approx(4 / 6)  # an unparseable response is wrong, a right answer is right
    assert after["confusion"]["counts"][1] == [0, 1, 1, 0, 1]


def test_without_importances_the_start_is_unknown_and_no_modality_is_listed():
    figures = measure([0, 1], [0, 1], [0, 1], CLASSES, first=[0, 1])
    assert figures["starts_with_dominant"] is None and figures["starts_with_dominant_n"] == 0
    assert figures["per_dominant"] == {}


def test_no_clips_give_no_rates():
    figures = measure([], [], [], CLASSES)
    assert figures["n"] == 0 and figures["war"] is None and figures["uar_ci95"] is None


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    labels = np.random.default_rng(0).integers(0, 4, 300)
    answers, judgements = np.roll(labels, 1), np.roll(labels, 2)
    intervals = [measure(labels, answers, judgements, CLASSES, seed=seed)["war_ci95"] for seed in (3, 3, 4)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_the_multinomial_bootstrap_agrees_with_resampling_the_clips_themselves():
    rng = np.random.default_rng(1)
    labels = rng.choice(4, 400, p=[0.5, 0.3, 0.15, 0.05])
    answers = np.where(rng.random(400) < 0.6, labels, rng.integers(MISSING, 4, 400))
    judgements = np.where(rng.random(400) < 0.8, answers, rng.integers(MISSING, 4, 400))
    figures = measure(labels, answers, judgements, CLASSES, resamples=4000)
    by_clip = []
    for _ in range(600):
        chosen = rng.integers(0, 400, 400)
        by_clip.append(measure(labels[chosen], answers[chosen], judgements[chosen], CLASSES, resamples=1))
    for name in ("war", "uar", "inconsistent_among_correct", "inconsistent_among_correct_worst", "epc"):
        expected = np.percentile([row[name] for row in by_clip], [2.5, 97.5])
        assert figures[f"{name}_ci95"] == pytest.approx(expected, abs=0.015)


def test_the_intervals_cover_the_truth_about_as_often_as_they_say():
    """600 samples of 500 clips from a population whose rates are known; 95 % of the intervals should hold them."""
    rng = np.random.default_rng(2)
    share, recall, supports = (
        np.array([0.4, 0.3, 0.2, 0.1]),
        np.array([0.9, 0.7, 0.6, 0.5]),
        np.array([0.95, 0.8, 0.7, 0.9]),
    )
    truth = {
        "war": share @ recall,
        "uar": recall.mean(),
        "inconsistent_among_correct": share @ (recall * (1 - supports)) / (share @ recall),
        "inconsistent_among_all": share @ (recall * (1 - supports)),
    }
    covered = dict.fromkeys(truth, 0)
    for seed in range(600):
        labels = rng.choice(4, 500, p=share)
        right, consistent = rng.random(500) < recall[labels], rng.random(500) < supports[labels]
        answers = np.where(right, labels, (labels + 1) % 4)
        judgements = np.where(consistent, labels, (labels + 2) % 4)
        figures = measure(labels, answers, judgements, CLASSES, resamples=400, seed=seed)
        for name, rate in truth.items():
            low, high = figures[f"{name}_ci95"]
            covered[name] += low <= rate <= high
    for name, times in covered.items():
        assert 0.92 < times / 600 < 0.98, (name, times / 600)  # the binomial's own 3.3 sigma around 95 %


def test_a_million_clips_take_seconds_and_little_memory():
    rng = np.random.default_rng(0)
    n, classes = 1_000_000, [str(i) for i in range(11)]
    labels = rng.integers(0, 11, n).astype(np.int8)
    answers, judgements = np.roll(labels, 1), np.roll(labels, 2)
    orders = rng.integers(0, 3, n).astype(np.int8)
    start = time.perf_counter()
    figures = measure(labels, answers, judgements, classes, orders, orders)
    assert time.perf_counter() - start < 10  # under half a second on a quiet machine
    assert figures["n"] == n and figures["starts_with_dominant"] == 1.0
    peaks = []
    for size in (10_000, n):
        tracemalloc.start()
        measure(labels[:size], answers[:size], judgements[:size], classes, orders[:size], orders[:size])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 32 * 2**20  # 2,000 x a million resampled clips would be gigabytes


def test_a_class_that_does_not_exist_is_our_own_mistake():
    with pytest.raises(AssertionError, match="no such class"):
        measure([0], [4], [0], CLASSES)


def test_a_proportion_has_an_interval_around_it_and_none_without_cases():
    fact = proportion(91, 100)
    assert fact["accuracy"] == 0.91 and fact["accuracy_ci95"][0] < 0.91 < fact["accuracy_ci95"][1] <= 1
    assert proportion(0, 0) == {"accuracy": None, "accuracy_ci95": None, "n": 0}


def test_the_headline_with_hidden_words_counts_right_answers_that_were_judged_so():
    labels, answers = [0, 0, 0, 0, 1], [0, 0, 0, 1, 1]
    figures = measure(labels, answers, [0] * 5, CLASSES, resamples=50, hidden=[0, 2, MISSING, 1, 1])
    assert figures["inconsistent_among_correct_hidden"] == pytest.approx(1 / 3)
    assert figures["inconsistent_among_correct_hidden_n"] == 3
    assert measure(labels, answers, [0] * 5, CLASSES, resamples=5)["inconsistent_among_correct_hidden"] is None
