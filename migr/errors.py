"""One kind of error for everything that a user can mend, and its one-line form on the command line."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """The input or the configuration is at fault. The message names the file, line, field or clip, and the way out."""


class NonFiniteError(FloatingPointError):
    """A loss, gradient or reward is not a finite number. The last checkpoint is good."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turn an `InputError` or a full disk into one line on stderr and exit status 2. Scripts wrap `main` in it."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; make room, then run the same command again", file=sys.stderr)
        sys.exit(2)
