import re

import pytest

from migr.errors import InputError
from migr.files.records import read_json, write_json
from migr.judge import LexiconJudge, fit_classifier, open_judge
from migr.planted import clips as planted
from migr.text.labels import label_set

LABELS = label_set("dfew")


def texts(split: str, count: int) -> tuple[list[str], list[str]]:
    rows = [planted.spec(11, split, index) for index in range(count)]
    return [" ".join([*row["segments"].values(), row["conclusion"]]) for row in rows], [row["label"] for row in rows]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return fit_classifier(*texts("test", 700), LABELS, tmp_path_factory.mktemp("judge"))


def right(judge, split: str) -> float:
    found, truth = judge.judge(texts(split, 350)[0]), texts(split, 350)[1]
    return sum(judgement.emotion == emotion for judgement, emotion in zip(found, truth, strict=True)) / len(truth)


def test_the_classifier_reads_wording_that_it_was_not_fitted_on(classifier):
    assert right(classifier, "train") > 0.9


def test_the_lexicon_knows_the_train_wording_and_only_part_of_the_test_wording():
    assert right(LexiconJudge(LABELS), "train") == 1.0
    assert 0.5 < right(LexiconJudge(LABELS), "test") < 0.9


def test_a_saved_classifier_judges_as_before(classifier, tmp_path):
    sentences, emotions = texts("test", 210)
    fitted = fit_classifier(sentences, emotions, LABELS, tmp_path)
    assert open_judge(tmp_path, LABELS).judge(sentences) == fitted.judge(sentences)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge.json", "judge.safetensors"]


def test_the_classifier_says_which_words_decided(classifier):
    """In the order of the text; without them its label is less likely than without as many other words."""
    drops = []
    for text, judgement in zip(texts("train", 20)[0], classifier.judge(texts("train", 20)[0]), strict=True):
        words = re.findall(r"[\w'-]+", text.casefold())
        assert 0 < len(judgement.evidence) <= 4
        assert sorted(judgement.evidence, key=words.index) == list(judgement.evidence)
        others = [word for word in dict.fromkeys(words) if word not in judgement.evidence][: len(judgement.evidence)]
        less = [
            re.sub(rf"(?i)\b(?:{'|'.join(map(re.escape, out))})\b", "", text) for out in (judgement.evidence, others)
        ]
        drops.append([found.probabilities[judgement.emotion] for found in classifier.judge(less)])
    without, instead = (sum(values) / len(values) for values in zip(*drops, strict=True))
    assert without < instead - 0.2


def test_with_two_labels_each_has_its_words(tmp_path):
    (tmp_path / "two.txt").write_text("calm\ntense\n")
    two = label_set(str(tmp_path / "two.txt"))
    rows = [("slow breath", "calm"), ("soft voice", "calm"), ("clenched jaw", "tense"), ("sharp voice", "tense")] * 5
    judge = fit_classifier([text for text, _ in rows], [label for _, label in rows], two, tmp_path / "fitted")
    calm, tense = judge.judge(["A soft voice.", "A sharp voice, a jaw."])
    assert calm.emotion == "calm" and "soft" in calm.evidence and "sharp" not in calm.evidence
    assert tense.emotion == "tense" and {"sharp", "jaw"} <= set(tense.evidence)


@pytest.mark.parametrize(
    "text, emotion",
    [
        ("The brows are lowered and the jaw is clenched.", "angry"),
        ("He is not smiling; the mouth is downturned.", "sad"),
        ("Perhaps a smile, but the eyes glare and the voice is harsh.", "angry"),
        ("The face is blurred, perhaps a smile. The voice is harsh and rough.", "angry"),
        ("Perhaps a smile.", "happy"),
        ("She looks terrified, afraid of what comes.", "fear"),
    ],
)
def test_the_lexicon_weighs_negation_and_hedges(text, emotion):
    assert LexiconJudge(LABELS).judge([text])[0].emotion == emotion


def test_saying_a_cue_again_does_not_make_it_more_likely():
    judge = LexiconJudge(LABELS)
    once, again = judge.judge(["A frown, a straight mouth.", "A frown. A frown, a deep frown, a straight mouth."])
    assert once == again and once.status == "tie"


def test_the_classifier_learns_that_a_hedged_cue_weighs_less(classifier):
    said = "{} twinkling, sparkly eyes. {} syllables that stab, words hammered out."
    plain = classifier.judge([said.format("One can see", "One can hear")])[0]
    hedged = classifier.judge([said.format("One can see", "A faint voice, it might be")])[0]
    assert hedged.emotion == "happy" and hedged.probabilities["angry"] < plain.probabilities["angry"]


@pytest.mark.parametrize(
    "text, status", [("", "no cue"), ("Nothing is known.", "no cue"), ("A smile and a glare.", "tie")]
)
def test_a_judge_that_cannot_tell_fails_and_names_no_emotion(text, status, classifier):
    judgement = LexiconJudge(LABELS).judge([text])[0]
    assert judgement.emotion is None and judgement.status == status
    assert classifier.judge([""])[0].emotion is None and classifier.judge([]) == []


def test_wrong_judges_are_named(tmp_path, classifier):
    with pytest.raises(InputError, match="none of lexicon, embedded, llm:…, endpoint:…, and no folder"):
        open_judge(tmp_path / "none", LABELS)
    with pytest.raises(InputError, match="no text to fit"):
        fit_classifier(["a smile"], ["happy"], LABELS, tmp_path)
    fit_classifier(*texts("test", 70), LABELS, tmp_path)
    with pytest.raises(InputError, match="fitted for"):
        open_judge(tmp_path, label_set("mafw"))
    saved = read_json(tmp_path / "judge.json")
    del saved["features"]
    write_json(tmp_path / "judge.json", saved)
    with pytest.raises(InputError, match="fitted by an older version"):
        open_judge(tmp_path, LABELS)
