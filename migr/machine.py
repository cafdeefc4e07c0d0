"""What the machine gives to this process."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
