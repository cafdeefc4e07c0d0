"""What the machine gives to this process."""

import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage counts what the starting process had before
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def process_pool() -> Iterator[ProcessPoolExecutor]:
    """Processes on all cores; Ctrl-C is for this one, and then what they have not begun is left."""
    pool = ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(function: Callable[[Item], Result], items: Iterable[Item], count: int = 16) -> Iterator[Result]:
    """`function` of each item, in order; up to `count` of them are worked out in threads before they are asked for.

    For work that lets go of the interpreter, as decoding does, beside a consumer that is busy with the one before. What
    `function` raises comes where its result would.
    """
    pool = ThreadPoolExecutor(max(1, min(4, cores())))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
