"""The embedded judge: what it reads, what it rests on, what it refuses; its figures are in docs/evaluation.md."""

from importlib.util import find_spec

import pytest

from migr.errors import InputError
from migr.files.records import read_jsonl
from migr.judge import embedded as module
from migr.judge import judgement_row, open_judge
from migr.judge.measure import SHIPPED, SHIPPED_MAFW, labelled_texts, shipped_texts
from migr.text.labels import DFEW, MAFW, label_set

LABELS = label_set("dfew")
needs_encoder = pytest.mark.skipif(find_spec(module.PACKAGE) is None, reason="the extra `judge` is not installed")


@pytest.fixture(scope="module")
def judge():
    return open_judge("embedded", LABELS)


@needs_encoder
@pytest.mark.parametrize(
    ("text", "emotion"),
    [
        ("She weeps quietly and wipes her eyes.", "sad"),
        ("He is not sad at all: he laughs and hugs everyone.", "happy"),
        ("At first he smiles, but then he slams his fist on the table and yells at her.", "angry"),
        ("She wrinkles her nose and pushes the stinking plate away.", "disgust"),
    ],
)
def test_negation_contrast_and_deeds_are_read(judge, text, emotion):
    judgement = judge.judge([text])[0]
    assert judgement.emotion == emotion and sum(judgement.probabilities.values()) == pytest.approx(1)
    assert judgement.evidence and all(sentence in text for sentence in judgement.evidence)
    assert judgement_row("c", judge, judgement)["evidence"] == list(judgement.evidence)


@needs_encoder
def test_a_text_is_judged_alike_alone_and_among_others_short_or_long(judge):
    long = "He reads the minutes aloud in an even voice. " * 60 + "Nothing happens."
    texts = ["He sobs.", "", long, "He is furious and shouts."]
    together = judge.judge(texts)
    alone = [judge.judge([text])[0] for text in texts]
    assert [j.emotion for j in together] == [j.emotion for j in alone] == ["sad", None, "neutral", "angry"]
    assert together[1].status == "empty" and together[2].probabilities == pytest.approx(
        alone[2].probabilities, abs=1e-4
    )
    assert "Nothing happens." not in together[0].evidence and together[3].evidence == ("He is furious and shouts.",)


@needs_encoder
def test_it_says_which_labels_it_cannot_name(tmp_path):
    (tmp_path / "own.txt").write_text("sad: gloomy\nbored\njoy: happy\n")
    own = open_judge("embedded", label_set(str(tmp_path / "own.txt")))
    assert own.blind == ("bored",) and own.judge(["She weeps."])[0].emotion == "sad"
    assert open_judge("embedded", label_set("mafw")).blind == ()
    (tmp_path / "own.txt").write_text("low: sad, fear, neutral\nhigh: happy, angry\n")
    low, high = open_judge("embedded", label_set(str(tmp_path / "own.txt"))).judge(
        ["She weeps.", "He laughs, delighted."]
    )
    assert low.emotion == "low" and low.evidence == ("She weeps.",) and high.emotion == "high"
    assert sum(low.probabilities.values()) == pytest.approx(1) and low.probabilities["low"] > 0.6
    (tmp_path / "own.txt").write_text("calmness\nbored\n")
    with pytest.raises(InputError, match=r"knows happy, .* and none of calmness, bored"):
        open_judge("embedded", label_set(str(tmp_path / "own.txt")))


def test_without_its_encoder_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"pip install 'migr\[judge\]'"):
        open_judge("embedded", LABELS)


def test_it_was_fitted_on_other_texts_than_it_is_measured_on():
    shipped = {row["text"] for path in (SHIPPED, SHIPPED_MAFW) for row in read_jsonl(path)}
    assert not shipped & {row["text"] for row in read_jsonl(module.TEXTS)}


def test_each_label_set_is_measured_on_texts_of_its_own_emotions():
    assert {row["emotion"] for row in shipped_texts(LABELS)} == set(DFEW) and len(shipped_texts(LABELS)) == 210
    mafw = shipped_texts(label_set("mafw"))
    assert {row["emotion"] for row in mafw} == set(MAFW) and len(mafw) == 290
    kinds = [(row["emotion"], row["kind"]) for row in labelled_texts(SHIPPED_MAFW, label_set("mafw"))]
    assert all(kinds.count(kind) == 5 for kind in kinds)
