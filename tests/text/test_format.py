import ast
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import migr
from migr.errors import InputError
from migr.text.format import parse, render
from migr.text.labels import label_set

SEGMENTS = {"video": "The brows are lowered.", "audio": "The voice is harsh."}
words = st.text(alphabet=st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip()
)


def test_a_target_is_read_back_as_it_was_written():
    target = render(SEGMENTS, "The voice decides.", "angry", ["audio", "video"])
    assert target.startswith("<think><audio>The voice is harsh.</audio><video>")
    read = parse(target)
    assert read.error is None and read.answer == "angry"
    assert read.reasoning.order == ("audio", "video") and read.reasoning.conclusion == "The voice decides."
    assert read.plain == "The voice is harsh. The brows are lowered. The voice decides."


@given(words, words, words)
def test_whatever_words_are_rendered_can_be_read(video, audio, conclusion):
    read = parse(render({"video": video, "audio": audio}, conclusion, "sad", ["video", "audio"]))
    assert read.error is None
    assert read.reasoning.segments == (("video", video.strip()), ("audio", audio.strip()))


@pytest.mark.parametrize(
    "segments, order",
    [
        ({"video": ""}, ["video"]),
        ({"video": "a <audio>"}, ["video"]),
        (SEGMENTS, ["video"]),
        ({"video": "</think>"}, ["video"]),
    ],
)
def test_a_target_that_cannot_be_read_back_is_an_error(segments, order):
    with pytest.raises(InputError):
        render(segments, "", "sad", order)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "angry",
        "<think>a</think>",
        "<answer>sad</answer><think>a</think>",
        "<think></think><answer>sad</answer>",
        "<think>a</think><answer></answer>",
        "<think>a</think><answer>sad</answer><answer>sad</answer>",
        "<think>a<think>b</think></think><answer>sad</answer>",
        "<think>a</think> so <answer>sad</answer>",
        "<think>a</think><answer>sad</answer> bye",
        "<think><video>a</think><answer>sad</answer>",
        "<think><video>a<audio>b</audio></video></think><answer>sad</answer>",
        "<think><video>a</video><video>b</video></think><answer>sad</answer>",
        "<think><video></video></think><answer>sad</answer>",
        "<think>a</video></think><answer>sad</answer>",
        "<think>a<answer>sad</think></answer>",
    ],
)
def test_a_response_of_another_format_has_an_error(response):
    assert parse(response).error is not None


def test_two_answers_are_no_answer():
    assert parse("<think>a</think><answer>sad</answer><answer>happy</answer>").answer is None


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>He weeps.</think><answer>sad", "sad", "He weeps."),
        ("<think>He weeps.</think><answer>sad\n\nI hope that helps.", "sad", "He weeps."),
        ("<think>He weeps.</think><answer>sad</answer><answer>Sadness.</answer>", "sad", "He weeps."),
        ("<think>He weeps.</think><answer>sad</answer><answer>fear</answer>", None, "He weeps."),
        ("He weeps.</think>\n<answer>sad</answer>", "sad", "He weeps."),  # the template has opened the thoughts
        ("<think>He weeps. <answer>sad</answer>", "sad", "He weeps."),
        ("<think>He weeps.</think>\n\n**Sad**", "sad", "He weeps."),
        ("He weeps. <answer>sad</answer>", "sad", "He weeps."),
        ("<answer>sad</answer> He weeps.", "sad", "He weeps."),
        ("Sad.", "sad", ""),
        ("<answer>sad</answer>", "sad", ""),
        ("He weeps, so he is sad.", None, ""),
        ("<think>He weeps.", None, "He weeps."),
        ("<think>He weeps.</think><answer>worried</answer>", None, "He weeps."),
    ],
)
def test_a_response_is_read_as_real_systems_write_it(text, answer, reasoning):
    response = parse(text)
    assert response.label(label_set("dfew")) == answer and response.plain == reasoning
    assert response.error is not None or answer is None
    assert [text[part.start : part.end] for part in response.parts] == [part.text for part in response.parts]


def test_text_without_tags_is_conclusion():
    read = parse("<think>He smiles and laughs.</think><answer>happy</answer>")
    assert read.error is None and read.reasoning.segments == () and read.reasoning.conclusion == "He smiles and laughs."


@given(
    st.text()
    | st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<video>", "</video>", "<audio>", "a"])
    ).map("".join)
)
def test_any_string_is_parsed_without_raising(text):
    read = parse(text)
    assert read.error is None or isinstance(read.error, str)
    assert isinstance(read.plain, str)


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 150_000,
        "<think>" + "<video>x</video>" * 60_000,
        "<video>" * 140_000,
        "<think>" + "<audio></video>" * 60_000,
    ],
)
def test_a_megabyte_of_tags_is_parsed_in_linear_time(text):
    whole = text + "</think><answer>sad</answer>"
    start = time.process_time()
    parse(whole)
    assert time.process_time() - start < 5  # quadratic time would take minutes


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<think>One. <audio>Two.</audio></think><answer>sad</answer>", "One. Two."),
        ("<think>One. <answer>sad</answer> Two.</think>", "One. Two."),
        ("<think>One. <answer>sad</think><answer>fear</answer>", "One."),
        ("<think>One. <answer>sad</answer> Two. <answer>sad</answer></think>", "One. Two."),
        ("<answer>sad</answer>", ""),
        ("One. <answer>sad</answer> Two.</think><answer>sad</answer>", "One. Two."),
    ],
)
def test_the_answer_is_cut_out_of_what_a_judge_reads(text, read):
    assert parse(text).plain == read


def test_untagged_reasoning_is_ordered_by_what_its_sentences_speak_of():
    text = "<think>It is late. Her voice trembles. The eyes are wide! She sounds afraid.</think><answer>fear</answer>"
    assert parse(text).order == ("audio", "video")
    assert parse("<think>Who knows.</think><answer>fear</answer>").order == ()
    assert parse("no reasoning at all").order == ()


def test_parts_stand_where_they_say_in_the_order_of_the_text():
    text = "<think>He waits. <audio> A sob. </audio><video>Tears.</video>\nSo sad.</think><answer>sad</answer>"
    parts = parse(text).parts
    assert [(part.modalities, part.text, part.tagged) for part in parts] == [
        ((), "He waits.", False),
        (("audio",), "A sob.", True),
        (("video",), "Tears.", True),
        ((), "So sad.", False),
    ]
    assert [text[part.start : part.end] for part in parts] == [part.text for part in parts]


def test_no_other_module_spells_a_tag():
    root = Path(migr.__file__).parents[1]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in (path for room in ("migr", "reward", "eval", "stages") for path in (root / room).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        texts = {node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        texts -= {node.body[0].value for node in nodes if isinstance(node, documented) and ast.get_docstring(node)}
        spelled = [node.value for node in texts if re.search("</?(think|answer)>", node.value)]
        assert not spelled or path.name == "format.py", f"{path}: {spelled}"
