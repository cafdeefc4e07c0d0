import pytest

from migr.errors import InputError
from migr.text.labels import DFEW, MAFW, label_set


def test_the_shipped_sets_have_the_data_sets_own_order():
    assert label_set("dfew").labels == DFEW and DFEW[0] == "happy" and DFEW[6] == "fear"
    assert label_set("mafw").labels == MAFW and len(MAFW) == 11 and MAFW[3] == "happiness"


@pytest.mark.parametrize(
    "text, label",
    [
        *[("Angry", "angry"), (" anger. ", "angry"), ("**joyful**", "happy"), ("Surprised!", "surprise")],
        *[('"sad"', "sad"), ("`sad`.", "sad"), ("<b>Sad</b>", "sad"), (r"$\boxed{\text{Fear}}$", "fear")],
        *[("**Answer:** fear", "fear"), ("Emotion: *anger*", "angry"), ("The emotion is: disgust", "disgust")],
        *[("愤怒", "angry"), ("答案：害怕的。", "fear"), ("“驚訝”", "surprise"), ("中性", "neutral")],
    ],
)
def test_synonyms_and_case_are_read_as_the_label(text, label):
    assert label_set("dfew").canonical(text) == label


@pytest.mark.parametrize("text", ["", "happy or sad", "happy, sad", "contempt", "h", "none of these", "happysad"])
def test_anything_but_one_known_label_is_no_label(text):
    assert label_set("dfew").canonical(text) is None


def test_the_same_word_means_each_sets_own_label():
    assert label_set("mafw").canonical("happy") == "happiness"
    assert label_set("dfew").canonical("happiness") == "happy"
    assert label_set("mafw").canonical("失望") == "disappointment" and label_set("dfew").canonical("失望") is None


def test_an_own_label_file_is_read_with_its_synonyms(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("# mine\ncalm: relaxed, at ease\nbored\n")
    labels = label_set(str(file))
    assert labels.labels == ("calm", "bored") and labels.canonical("At ease") == "calm"


def test_a_file_adds_synonyms_and_labels_to_a_shipped_set(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("extends: dfew\nfear: worried, tense\n")
    labels = label_set(str(file))
    assert labels.labels == DFEW and labels.name == "dfew"  # its numbers still mean the same
    assert labels.canonical("Worried") == "fear" and labels.canonical("happiness") == "happy"
    file.write_text("extends: mafw\nfear: terrified\nboredom: bored\n")
    labels = label_set(str(file))
    assert labels.labels == (*MAFW, "boredom") and labels.name == "mine" and labels.canonical("terrified") == "fear"


@pytest.mark.parametrize(
    "content",
    ["extends: dfewww\n", "calm\nextends: dfew\n", "extends: dfew\nfear: sorrow\n", "extends: dfew\njoy: x, x\n"],
)
def test_an_extension_that_cannot_be_is_named_with_its_line(tmp_path, content):
    file = tmp_path / "mine.txt"
    file.write_text(content)
    with pytest.raises(InputError, match=r"mine\.txt:[12]:"):
        label_set(str(file))


@pytest.mark.parametrize("content, where", [("a\na\n", ":2"), ("a: b\nb\n", ":2"), ("a\n", "two labels")])
def test_a_faulty_label_file_is_named_with_its_line(tmp_path, content, where):
    file = tmp_path / "mine.txt"
    file.write_text(content)
    with pytest.raises(InputError, match=where):
        label_set(str(file))
    with pytest.raises(InputError, match="neither"):
        label_set("dfewww")
