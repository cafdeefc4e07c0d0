"""Whether an output can be written is asked before the work; a program ends in one line."""

import os

import pytest

from migr.errors import InputError, NonFiniteError, exit_on_input_error, printable
from migr.files.records import check_writable


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in ("new", "a/b/c", "new.json", "file.json", "."):
        check_writable(tmp_path / out)
    for out in ("file", "file/below", "file/below.json"):
        with pytest.raises(InputError, match=r"file is a file, not a folder"):
            check_writable(tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def end(capsys, error, **environment):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended, exit_on_input_error():
            raise error
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return ended.value.code, err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("file: no"), "error: file: no\n"),
        (InputError("a\nerror: forged \x1b[2J \u202e"), "error: a\\nerror: forged \\x1b[2J \\u202e\n"),
        (OSError(28, "No space", "x"), "error: x: No space left on device; make room"),
        (OSError(20, "Not a directory", "x/y"), "error: x/y: Not a directory"),
        (OSError(30, "Read-only", "x"), "error: x: Read-only file system"),
        (OSError(36, "long", "x" * 5000), "xxx …\n"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "make room"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "make room"),
        (MemoryError("Unable to allocate 24 GiB"), "error: out of memory (Unable to allocate 24 GiB)"),
    ],
    ids=range(9),
)
def test_what_a_user_can_mend_is_one_line_and_status_2(error, said, capsys):
    status, line = end(capsys, error)
    assert status == 2 and said in line


def test_a_full_disk_is_told_from_what_torch_trips_over_behind_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 232832 vs 232720")
    error.__context__ = RuntimeError("basic_ios::clear: iostream error")
    status, line = end(capsys, error)
    assert status == 2 and "No space left on device; make room" in line
    for other in (InputError("x"), OSError(13, "Permission denied")):  # in whose course a fault of ours came about
        fault = KeyError("n")
        fault.__context__ = other
        assert end(capsys, fault)[0] == 1


def test_a_fault_of_ours_says_where_its_traceback_lies(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, line = end(capsys, KeyError("n"))
    (log,) = tmp_path.iterdir()
    assert status == 1 and str(log) in line and "KeyError" in line
    assert "Traceback" in log.read_text() and "test_records.py" in log.read_text()
    monkeypatch.setenv("MIGR_DEBUG", "1")
    with pytest.raises(KeyError), exit_on_input_error():
        raise KeyError("n")


def test_a_number_that_is_not_finite_ends_with_status_1(capsys):
    assert end(capsys, NonFiniteError("the loss is nan")) == (
        1,
        "error: the loss is nan; the last checkpoint is good\n",
    )


def test_a_process_among_several_says_which_it_is(capsys):
    assert end(capsys, InputError("no"), RANK="3") == (2, "error (process 3): no\n")


def test_text_of_data_is_one_line_without_controls():
    text = "".join(map(chr, range(0x3000)))
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in printable(text)) and "\u2028" not in printable(text)
    assert printable("Ärger 😀 – ok") == "Ärger 😀 – ok" and os.linesep not in printable("a\r\nb")
