"""One kind of error for everything that a user can mend, and its one-line form on the command line."""

import errno
import gc
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed writing", "basic_ios::clear: iostream error")
_LONGEST = 2000  # characters of an error's line
_PATIENCE = 10.0  # seconds that processes other than the first give it to say what is wrong with all of them
_START = 100.0  # seconds; a mistake before that is one of the start, which a slow machine takes longer for
_STARTED = time.monotonic()
# Controls, direction marks and line separators: a file's text must not clear the screen or forge a line of ours.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """The input or the configuration is at fault. The message names the file, line, field or clip, and the way out."""


class NonFiniteError(FloatingPointError):
    """A loss, gradient or reward is not a finite number. The last checkpoint is good."""


def printable(text: str) -> str:
    """Text from data as it may reach a terminal: one line, its control characters written out (`\\x1b`)."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def reason(error: BaseException) -> str:
    """The first line of a library's complaint, or its kind where it says nothing by itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    bare = not lines or isinstance(error, KeyError | ZeroDivisionError | IndexError | AttributeError | TypeError)
    return (f"{type(error).__name__}: {lines[0]}" if lines and bare else (lines or [type(error).__name__])[0])[:400]


@contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Whatever a library raises over a user's file is the file's fault: `what (its reason)` as an `InputError`.

    For calls that are given nothing but what comes from outside, such as a model's folder.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({reason(error)})") from error


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """End a program in one line on stderr, whatever ends it. Scripts wrap `main` in it.

    Status 2 is what a user can mend: an `InputError`, a full disk, a path that cannot be written, too little memory.
    Status 1 is a number that is not finite, or a fault of ours, which says where its traceback lies; the environment
    variable MIGR_DEBUG=1 shows it at once. Ctrl-C is status 130.
    """
    try:
        yield
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted; the same command goes on from what is done", file=sys.stderr, flush=True)
        # torch and trl leave so many objects that a last collection takes seconds; without it, triton's complain
        gc.freeze()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("MIGR_DEBUG") == "1":
            raise
        line = _mistake(error)
        if line is None and not isinstance(error, NonFiniteError):
            line = f"a fault of migr itself ({type(error).__name__}: {reason(error)}); {_log()} tells where: report it"
            _end(line, 1)
        _end(line or f"{error}; the last checkpoint is good", 2 if line else 1)


def _end(line: str, status: int) -> NoReturn:
    line = printable(line)
    if len(line) > _LONGEST:
        line = f"{line[:_LONGEST]} …"
    rank = os.environ.get("RANK", "0")
    line = f"error: {line}" if rank == "0" else f"error (process {rank}): {line}"
    _tell_launcher(line)
    if rank != "0":  # where the first fails too, the launcher ends this one, and a mistake that all make is said once
        age = time.monotonic() - _STARTED
        time.sleep(max(_PATIENCE, age if age < _START else 0))
    encoding = sys.stderr.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)
    sys.exit(status)


def _tell_launcher(line: str) -> None:
    """Let torch's launcher (torchrun, accelerate launch) show the line in its own report of failures."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")


def _mistake(error: BaseException) -> str | None:
    """What a user reads of an error that is theirs to mend; None if it is not."""
    if isinstance(error, InputError):
        return str(error)
    code = _code(error)
    if code is None and any(_code(earlier) in _NO_ROOM for earlier in _contexts(error)):
        code = errno.ENOSPC  # torch trips over what it could not write, and complains of that
    if code is not None:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        again = "make room, then run the same command again" if code in _NO_ROOM else "give another path, or mend it"
        return f"{where}{os.strerror(code)}; {again}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({reason(error)}); lower the batch size, the frames or the lengths"
    return None


def _code(error: BaseException) -> int | None:
    """Number of an operating system's error, which safetensors and torch report under names of their own."""
    if isinstance(error, OSError):
        return error.errno
    if match := re.search(r"\(os error (\d+)\)", str(error)):
        return int(match[1])
    return errno.ENOSPC if any(words in str(error) for words in _TORCH_CANNOT_WRITE) else None


def _contexts(error: BaseException) -> Iterator[BaseException]:
    """The errors in whose course an error came about."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        yield (error := earlier)


def _log() -> Path:
    """Write the present traceback to a file of its own."""
    handle, name = tempfile.mkstemp(prefix=f"migr-{Path(sys.argv[0]).stem}-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        traceback.print_exc(file=file)
    return Path(name)
