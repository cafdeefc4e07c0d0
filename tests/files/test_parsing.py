"""What comes in as text: read, or one line that says why not."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from migr.errors import InputError
from migr.files.parsing import DEEPEST, parse_json, read_text, read_yaml
from migr.files.records import iter_jsonl, read_json, read_jsonl, read_object, write_json, write_jsonl

DIGITS = "9" * 5000
# kind -> (text, what is said of it)
NO_JSON = {
    "NaN": ('{"a": NaN}', "NaN is no JSON number"),
    "infinity": ('{"a": -Infinity}', "Infinity"),
    "overflow": ('{"a": 1e999}', "too large a number"),
    "many digits": (f'{{"a": {DIGITS}}}', "a whole number of 5000 digits"),
    "too large for a float": (f'{{"a": {"9" * 400}}}', "a whole number of 400 digits"),
    "deep": ("[" * 200 + "]" * 200, "nested deeper"),
    "very deep": ("[" * 100_000, "nested deeper"),
    "deep objects": ('{"a":' * 200 + "1" + "}" * 200, "nested deeper"),
    "the same key twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands there twice"),
    "empty": ("", "Expecting value"),
    "cut": ('{"a": [1, 2', "Expecting"),
    "two values": ("{} 3", "Extra data"),
    "raw control character": ('{"a": "\n"}', "control character"),
    "zero-filled": ("\0" * 64, "Expecting value"),
}


@pytest.mark.parametrize("kind", NO_JSON)
def test_text_that_is_no_json_is_refused_with_the_reason(kind, tmp_path):
    text, expected = NO_JSON[kind]
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_json(text)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path}: not valid JSON .*{re.escape(expected)}"):
        read_json(path)
    if text.strip() and "\n" not in text:
        path.write_text(f'{{"clip_id": "x"}}\n\n{text}\n')
        with pytest.raises(InputError, match=f"{path}:3: not valid JSON .*{re.escape(expected)}"):
            read_jsonl(path)


@pytest.mark.parametrize("before", [0, 70_000, 1_000_000])
def test_a_byte_that_is_not_utf8_is_named_wherever_it_stands(before, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"clip_id": "x"}\n{"clip_id": "' + b"y" * before + b'\xff"}\n')
    with pytest.raises(InputError, match=rf"{path}:2: .*not UTF-8 text: byte {before + 13}"):
        read_jsonl(path)
    with pytest.raises(InputError, match=f"{path}: .*not UTF-8 text"):
        read_json(path)
    with pytest.raises(InputError, match=f"{path}: (not UTF-8 text|more than)"):
        read_text(path)


def test_half_a_character_is_read_as_a_visible_sign_and_counted(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"clip_id": "a", "t": "\\ud83d", "\\uD83D": 1}\n{"clip_id": "b", "t": "\\ud83d\\ude00"}\n')
    assert read_jsonl(path) == [{"clip_id": "a", "t": "\ufffd", "\ufffd": 1}, {"clip_id": "b", "t": "😀"}]
    assert capsys.readouterr().err == f"note: {path}: half a character in 1 lines, read as \ufffd\n"
    read_jsonl(path)
    assert capsys.readouterr().err == ""  # once a file


def test_half_a_character_is_written_as_a_visible_sign(tmp_path):
    write_jsonl(tmp_path / "a", [{"clip_id": "\ud83d x"}])
    write_json(tmp_path / "b", {"text": ["\ude00"]})
    assert read_jsonl(tmp_path / "a") == [{"clip_id": "\ufffd x"}]
    assert read_json(tmp_path / "b") == {"text": ["\ufffd"]}


@pytest.mark.parametrize("value", ["[1]", "3", "null", '{"a": 1}', "true"])
def test_a_clip_id_is_a_string(value, tmp_path):
    (tmp_path / "a").write_text(f'{{"clip_id": {value}}}')
    with pytest.raises(InputError, match=r"a:1: clip .*: clip_id must be a string"):
        read_jsonl(tmp_path / "a", ["clip_id"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "expected a JSON object, found list"),
        ("{}", "missing 'n'"),
        ('{"n": "3", "s": {}}', "n must be int, not str"),
        ('{"n": true, "s": {}}', "n must be int, not bool"),
        ('{"n": 3, "s": []}', "s must be dict, not list"),
    ],
)
def test_a_record_has_its_keys_and_their_types(text, expected, tmp_path):
    (tmp_path / "a").write_text(text)
    with pytest.raises(InputError, match=f"a: {expected}"):
        read_object(tmp_path / "a", n=int, s=dict)
    (tmp_path / "a").write_text('{"n": 3, "s": {}, "more": null}')
    assert read_object(tmp_path / "a", n=int, s=dict) == {"n": 3, "s": {}, "more": None}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "an alias"),
        ("seed: " + "[" * 10_000, "nested deeper than 20 levels"),
        ("seed: " + DIGITS, "4300 digits"),
        ("a: 1\na: 2", "a key stands there twice"),
        ("- 1", "expected `key: value` lines"),
        ("1: 2", "expected `key: value` lines"),
        ("? [1]\n: 2", "unhashable"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 2024-99-99", "month must be in"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: \0", "unacceptable character"),
        ("x" * (2 << 20), "more than 1 MiB"),
    ],
    ids=range(12),
)
def test_yaml_that_cannot_be_taken_is_refused(text, expected, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=f"c.yaml.*{re.escape(expected)}"):
        read_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="invalid start byte"):
        read_yaml(tmp_path / "c.yaml")


READERS = {
    "json": read_json,
    "object": lambda path: read_object(path, a=int),
    "jsonl": lambda path: read_jsonl(path, ["clip_id"], unique="clip_id"),
    "yaml": read_yaml,
    "text": read_text,
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TEXTS = st.one_of(
    st.binary(max_size=64),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.lists(VALUES, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(
        st.sampled_from(['{"clip_id": ', '"a"', "[", "]", "}", ",", "\n", "\0", ": ", "&a ", "*a", "\\ud83d", "- "])
    )
    .map("".join)
    .map(str.encode),
)


def only_input_errors(reader, text, folder):
    path = folder / "x"
    path.write_bytes(text)
    try:
        reader(path)
    except InputError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < 1000
    else:
        assert text == path.read_bytes()


@pytest.mark.parametrize("name", READERS)
def test_nothing_but_an_input_error_leaves_a_reader(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(max_examples=100, deadline=None, database=None)
    @given(TEXTS)
    @example(b"\xff" * 100)
    def fuzz(text):
        only_input_errors(READERS[name], text, folder)

    fuzz()


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_nothing_but_an_input_error_leaves_a_reader_in_10000_cases(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(max_examples=10_000, deadline=None, database=None)
    @given(TEXTS)
    def fuzz(text):
        only_input_errors(READERS[name], text, folder)

    fuzz()


def test_what_is_deep_but_allowed_is_read(tmp_path):
    text = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(parse_json(text)) == text


def test_a_line_without_an_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("migr.files.records.LONGEST_LINE", 1000)
    (tmp_path / "a").write_text('{"clip_id": "' + "x" * 2000)
    with pytest.raises(InputError, match="a:1: a line of more than"):
        next(iter_jsonl(tmp_path / "a"))
