"""The work of a rollout server: one vLLM, and many that ask it at the same time."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NoReturn

from torch import Tensor

from migr.errors import InputError, reason
from migr.files.records import digest
from migr.rollout.checking import read_draws
from migr.rollout.protocol import unpack
from migr.rollout.sampler import Draw, Drawn, Sampler


@dataclass(eq=False)
class Job:
    """What one message asks for, and the answer to it."""

    kind: str
    message: bytes
    words: Any
    tensors: Mapping[str, Tensor]
    answer: Future[Any] = field(default_factory=Future)
    drawn: dict[int, Drawn] = field(default_factory=dict)  # by the place in the answer


class Desk:
    """Takes messages from any thread; one thread works on them.

    What several processes ask for is sampled together. New weights wait until everything before them is sampled, and
    everything behind them waits for the weights.

    Args:
        sampler: A vLLM whose workers have `MergesAdapters`.
    """

    KINDS = ("weights", "sample")

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.version: str | None = None  # of the adapter that is merged
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._running: dict[str, tuple[Job, int]] = {}

    def ask(self, kind: str, message: bytes) -> Any:
        """Wait for the answer to a message, as `migr.rollout.remote` writes it.

        Returns:
            Of "weights": {"weights": their version}. Of "sample": {"drawn": [[token ids, log-probabilities], ...]}.

        Raises:
            InputError: It cannot be done; says why.
        """
        assert kind in self.KINDS, kind
        job = Job(kind, message, *unpack(message))
        self._jobs.put(job)
        return job.answer.result()

    def work(self) -> NoReturn:
        """Work until vLLM fails; whoever waits then is told so."""
        waiting: deque[Job] = deque()
        while True:
            while not self._jobs.empty() or not (waiting or self._running):
                waiting.append(self._jobs.get())
            while waiting and (waiting[0].kind == "sample" or not self._running):
                self._begin(waiting.popleft())
            if self._running:
                try:
                    ended = self.sampler.ended()
                except Exception as error:
                    for lost in {*waiting, *(job for job, _ in self._running.values())}:
                        lost.answer.set_exception(InputError(f"the server's vLLM failed ({reason(error)})"))
                    raise
                for name, result in ended.items():
                    job, at = self._running.pop(name)
                    self._draw(job, at, result)

    def _begin(self, job: Job) -> None:
        begin = self._weights if job.kind == "weights" else self._sample
        try:
            begin(job)
        except InputError as error:
            job.answer.set_exception(error)
        except (*self.sampler.refusals, KeyError, IndexError) as error:
            job.answer.set_exception(InputError(f"the request cannot be used ({type(error).__name__}: {error})"))

    def _weights(self, job: Job) -> None:
        before, self.version = self.version, None  # until they have changed
        try:
            damaged = self.sampler.llm.collective_rpc("merge_adapter", args=(job.message,))
        except InputError:
            self.version = before
            raise
        self.sampler.reloaded()
        if name := next(filter(None, damaged), None):
            raise InputError(f"merged with the adapter, the weights of {name} are not finite numbers")
        self.version = digest(job.message)
        job.answer.set_result({"weights": self.version})

    def _sample(self, job: Job) -> None:
        words = job.words
        parameters = self.sampler.parameters(words["settings"])
        if not words["draws"]:
            return job.answer.set_result({"drawn": []})
        if words["weights"] != self.version:
            raise InputError("the server has other weights by now; does another run use it, or was it started again?")
        names: list[str] = []
        try:
            for ids, media, features, seed in read_draws(self.sampler.task, words, job.tensors):
                names.append(self.sampler.begin(Draw(ids, media, features, seed), parameters))
        except Exception:
            self.sampler.llm.llm_engine.abort_request(names)
            raise
        self._running |= {name: (job, at) for at, name in enumerate(names)}

    def _draw(self, job: Job, at: int, result: Drawn) -> None:
        job.drawn[at] = result
        if len(job.drawn) == len(job.words["draws"]):
            job.answer.set_result({"drawn": [job.drawn[i] for i in range(len(job.drawn))]})
