"""Share of the time that a GPU computes nothing, by its own counter."""

import threading
from typing import Self

import torch

PERIOD = 0.1  # seconds between two looks; the counter itself averages over about as long


class Idle:
    """Looks at the GPU's utilisation while the block runs.

    Attributes:
        share: Mean share of idle time in [0, 1]; None without a GPU, or where the block was too short for a look.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._looks: list[int] = []  # percent busy
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.wait(PERIOD):
            self._looks.append(torch.cuda.utilization())

    def __enter__(self) -> Self:
        if torch.cuda.is_available():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._looks:
            self.share = 1 - sum(self._looks) / len(self._looks) / 100
