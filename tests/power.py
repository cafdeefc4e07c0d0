"""A power cut: a command dies at one of its writes, and what it had not handed to the disk is damaged.

Commands run in processes forked from one that holds the libraries. Noted are their syncs, with what the file was then,
their renames, and the rows they append; what has changed since, or was never synced, a power cut may damage in any of
the ways of `DAMAGES`.
"""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from migr.files.growing import Growing

ROOT = Path(__file__).parents[1]

# file, bytes of it that are safe on the disk -> what is left of it
DAMAGES: dict[str, Callable[[bytes, int], bytes | None]] = {
    "lost": lambda text, safe: text[:safe] or None,  # and names that the folder did not have on the disk yet
    "empty": lambda text, safe: text[:safe],  # its name and marker are there, its content is not
    "cut": lambda text, safe: text[: (safe + len(text)) // 2],
    "zero-filled": lambda text, safe: text[:safe] + bytes(len(text) - safe),
    "reordered": lambda text, safe: text[:safe] + bytes((len(text) - safe) // 2) + text[(safe + len(text) + 1) // 2 :],
}


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A disk of this size at a folder; gives what changes its size. Skips the test where it cannot be mounted."""

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def resize(kilobytes: int) -> None:
        assert mount(f"remount,size={kilobytes}k")

    folder.mkdir()
    if os.geteuid() or not mount(f"size={kilobytes}k"):
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield resize
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


class Commands:
    """Runs commands of this project, one after the other, in forks of one process; use it in a `with` statement.

    Args:
        folder: For what the commands print, and for the notes of their syncs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0

    def __enter__(self) -> "Commands":
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def run(
        self, name: str, *argv: Any, until: int | None = None, libraries: Sequence[str] = ()
    ) -> tuple[int, str, list[dict[str, Any]]]:
        """Run a command, at most to its `until`-th sync, rename or appended row; libraries are imported once for all.

        Returns:
            Its exit status, what it printed, and its syncs, renames and appended rows.
        """
        self.number += 1
        log, notes = (self.folder / f"{self.number}.{kind}" for kind in ("log", "notes"))
        notes.touch()
        assert self.process.stdin is not None and self.process.stdout is not None
        job = [libraries, name, [str(word) for word in argv], str(log), str(notes), until]
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return status, log.read_text(errors="replace"), [json.loads(line) for line in notes.read_text().splitlines()]


def damage(folder: Path, events: list[dict[str, Any]], kind: str) -> list[str]:
    """Do to the files of a folder what a power cut may do to those that are not synced; returns their names."""
    synced = {event["inode"]: event for event in events if event["what"] == "sync"}
    names = []
    restored = set()
    for place, event in reversed(list(enumerate(events))):
        if kind != "lost" or event["what"] != "rename" or not (name := Path(event["name"])).is_file():
            continue
        if not any(later.get("inode") == name.parent.stat().st_ino for later in events[place:]):
            names.append(str(name.relative_to(folder)))
            restored.add(name)
            name.unlink() if event["before"] is None else name.write_bytes(Path(event["before"]).read_bytes())
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path not in restored):
        facts, text = path.stat(), path.read_bytes()
        event = synced.get(facts.st_ino)
        safe = 0 if event is None else min(event["size"], len(text))
        if not text or (safe == len(text) and event is not None and event["mtime"] == facts.st_mtime_ns):
            continue
        names.append(str(path.relative_to(folder)))
        rest = DAMAGES[kind](text, safe)
        if rest is None:
            path.unlink()
        else:
            path.write_bytes(rest)
    return names


def watch(notes: str, until: int | None) -> None:
    """Note syncs, renames and appended rows of this process and its children; kill all of them at the `until`-th."""
    log = os.open(notes, os.O_WRONLY | os.O_APPEND)
    fsync = os.fsync

    def note(**event: Any) -> None:
        os.write(log, json.dumps(event).encode() + b"\n")
        if until is not None and Path(notes).read_bytes().count(b"\n") >= until:
            os.killpg(0, signal.SIGKILL)

    def synced(descriptor: Any) -> None:
        fsync(descriptor)
        facts = os.fstat(descriptor if isinstance(descriptor, int) else descriptor.fileno())
        note(what="sync", inode=facts.st_ino, size=facts.st_size, mtime=facts.st_mtime_ns)

    def renaming(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **more: Any) -> None:
            before = None
            if os.path.isfile(target):
                shutil.copyfile(target, before := f"{notes}.{os.stat(target).st_ino}.{time.monotonic_ns()}")
            rename(source, target, **more)
            note(what="rename", name=str(target), before=before)

        return renamed

    os.fsync, os.replace, os.rename = synced, renaming(os.replace), renaming(os.rename)

    def appended(file: Growing, row: Any) -> None:
        append(file, row)
        note(what="append", name=str(file.path))

    append, Growing.append = Growing.append, appended  # type: ignore[method-assign]


def _start(name: str, argv: list[str], log: str, notes: str, until: int | None) -> int:
    """The exit status of a command in a fork of its own."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        watch(notes, until)
        from migr.errors import exit_on_input_error

        main = importlib.import_module(name).main
        sys.argv = [name, *argv]
        with exit_on_input_error():
            main(argv) if name.startswith("eval.") else main()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        libraries, *job = json.loads(line)
        for library in libraries:
            importlib.import_module(library)
        print(_start(*job), file=answers, flush=True)
