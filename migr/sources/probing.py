"""Examine many clips in processes of their own: one that hangs, crashes or takes too much memory costs its clip alone.

A worker is `python -m migr.sources.probing`: it reads one JSON job a line, answers one JSON result a line, and lives
for the whole run. One that does not answer in time is killed, and a new one takes its place.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from migr.clips.container import REASONS as MEDIA_REASONS
from migr.clips.container import MediaError
from migr.clips.examine import examine
from migr.errors import InputError
from migr.files.records import Row
from migr.sources import frames

REASONS = MEDIA_REASONS | {"crashed": "the decoder brought its process down"}
COMMAND = [sys.executable, "-P", "-m", "migr.sources.probing"]
_START_SECONDS = 300.0  # imports, on a machine that is busy otherwise


def examine_all(jobs: Iterable[Row], workers: int, timeout: float, memory: int) -> Iterator[tuple[Row, Row]]:
    """Examine clips in `workers` processes; yields (job, result) in the order in which they finish.

    Args:
        jobs: What `answer` needs: `path`, `max_seconds`, `backend`, for pictures also `target` and `rate`.
        workers: Number of processes.
        timeout: Seconds a clip may take.
        memory: Bytes that a worker may take in addition to what it needs to start.

    Raises:
        InputError: A worker does not start.
    """
    waiting = iter(jobs)
    busy: list[_Worker] = []
    try:
        for job in islice(waiting, workers):
            busy.append(_Worker(memory, timeout))
            busy[-1].give(job)
        while busy:
            nearest = min(worker.deadline for worker in busy)
            ready, _, _ = select.select(busy, [], [], max(0.0, nearest - time.monotonic()))
            late = [worker for worker in busy if worker not in ready and worker.deadline <= time.monotonic()]
            for worker in [*ready, *late]:
                job, result = worker.job, worker.collect(worker in late)
                if result is None:  # it has started and is at work
                    continue
                yield job, result
                if (following := next(waiting, None)) is not None:
                    worker.give(following)
                else:
                    worker.stop()
                    busy.remove(worker)
    finally:
        for worker in busy:
            worker.stop()


class _Worker:
    """One process, the job that it works at, and when the answer is due."""

    def __init__(self, memory: int, timeout: float):
        self.timeout = timeout
        self.command = [*COMMAND, str(memory), str(timeout)]
        self.process: subprocess.Popen[bytes] | None = None

    def fileno(self) -> int:
        """For select: the pipe that answers come through."""
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.fileno()

    def give(self, job: Row) -> None:
        """Send a job, to a new process where there is none."""
        if self.process is None:
            # unbuffered: what has been read ahead would be invisible to select; a group of its own: Ctrl-C is for us
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, process_group=0
            )
            self.started = False
        self.job = job
        self.deadline = time.monotonic() + (self.timeout if self.started else _START_SECONDS)
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died: collect() sees it
            self.process.stdin.write(json.dumps(job).encode() + b"\n")

    def collect(self, late: bool) -> Row | None:
        """The result of the job, or None where the process only says that it has started."""
        assert self.process is not None and self.process.stdout is not None
        line = b"" if late else self.process.stdout.readline()
        if line and not self.started:
            self.started, self.deadline = True, time.monotonic() + self.timeout
            return None
        if line:
            result: Row = json.loads(line)
            return result
        code = self.stop(0.0 if late else 5.0)
        if not self.started:
            raise InputError(f"the probe process does not start (status {code}): {' '.join(self.command)}")
        if late or code == -signal.SIGALRM:
            return {"reason": "timeout", "detail": f"no answer within {self.timeout:g} s"}
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
        return {"reason": "crashed", "detail": f"the process that read it ended with {name}"}

    def stop(self, patience: float = 0.0) -> int:
        """End the process, at once or (one that has closed its pipe) after some seconds; returns its status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        with process:  # closes the pipes, waits
            return process.wait()


def answer(job: Row) -> Row:
    """Examine one clip: `{"facts": ...}` of `migr.clips.container.examine`, or `{"reason": ..., "detail": ...}`."""
    path = Path(job["path"])
    try:
        if "target" in job:
            frames.wrap(path, Path(job["target"]), job["rate"])
            path = Path(job["target"])
        return {"facts": examine(path, job["max_seconds"], job["backend"])}
    except MediaError as error:
        return {"reason": error.reason, "detail": str(error).removeprefix(f"{path}: ")}
    except MemoryError:
        return {"reason": "no_memory", "detail": "not enough memory to decode it"}
    except Exception as error:  # whatever a decoder raises: the clip's fault, and written down as such
        return {"reason": "damaged", "detail": f"{type(error).__name__}: {error}"[:300]}


def serve(memory: int, timeout: float) -> None:
    """Answer jobs from standard input until it closes."""
    answers, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # decoders that print must not disturb the answers
    sizes = Path("/proc/self/statm")  # in pages, the first is the address space; Linux only
    if sizes.exists():
        used = int(sizes.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.write(answers, b'"ready"\n')
    os.dup2(nothing, 2)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)  # ends a hung worker whose parent is gone
        result = answer(json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(answers, json.dumps(result).encode() + b"\n")


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
