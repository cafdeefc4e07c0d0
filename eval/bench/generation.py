"""Time generation and judging on real clips: vLLM, transformers in batches, and one by one, as the field evaluates.

    python eval/bench/generation.py --model runs/demo/export/migr --clips runs/demo/clips/clips.jsonl --limit 64

Same model, clips, prompt and greedy decoding, in one process. Each engine answers a few clips first to warm up, then
all of them `--repeats` times; the fastest time counts. One by one, every clip is decoded when its turn comes; the
others decode in threads ahead of the engine, as the evaluation does. A clip's way is timed in three parts: waiting for
its decoded file, processing (frames and sound into the model's tensors, text into tokens) and generating, which is the
rest. Judging is a language model's: the same model reads the reasonings that it just wrote and names one of the labels.
Prints a Markdown table for docs/benchmarks.md: the parts, clips a second, the ratios to one by one (on a machine with
other work, look at CPU time, which includes all threads), the GPU's idle share where there is one, and on how many
clips the greedy responses are equal.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.bench.idle import Idle
from eval.page.tables import percent
from eval.run.options import prompt_of
from eval.run.predict import question_for
from migr.cli import Parser, settings_of
from migr.clips.manifest import Clip, read_clips
from migr.clips.record import find_labels, read_record
from migr.engine import Request, open_engine
from migr.errors import exit_on_input_error
from migr.judge.lexicon import LexiconJudge
from migr.judge.prompt import filled, prompt_for
from migr.machine import ahead
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor
from migr.omni.prompt import render_prompt
from migr.settings import EngineSettings, LabelSettings, MediaSettings
from migr.text.format import parse

ENGINES = {
    "vLLM": ("vllm", 64),
    "transformers, batches of 16": ("transformers", 16),
    "transformers, one by one": ("transformers", 1),
}


@dataclass
class Clock:
    """Seconds by part of the work."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add what the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, measured."""

        def measured(*args: Any) -> Any:
            with self.measure(part):
                return function(*args)

        return measured

    def waiting(self, part: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items; the time until each is there is measured."""
        source = iter(items)
        while True:
            with self.measure(part):
                item = next(source, None)
            if item is None:
                return
            yield item


@dataclass(frozen=True)
class Timing:
    """The fastest of some repetitions: seconds in all, of CPU time and by part, the GPU's idle share, and the texts."""

    total: float
    cpu: float
    parts: dict[str, float]
    idle: float | None
    texts: list[str]


def timed(engine: Any, source: Iterable[Any], ask: Callable[[Any], Request], repeats: int) -> Timing:
    """Let an engine answer what `ask` makes of each item of a list; the fastest of `repeats` times.

    What it asks is made ready ahead of it, unless it takes one at a time.
    """
    timings = []
    prepare, ready = engine.task.prepare, map if engine.task.batch_size == 1 else ahead
    for _ in range(repeats):
        clock = Clock()
        engine.task.prepare = clock.around("processing", prepare)
        cpu = time.process_time()
        with clock.measure("all"), Idle() as gpu:
            requests = clock.waiting("decoding", ready(ask, source))
            texts = [answer.text for answer in engine.generate(requests)]
        engine.task.prepare = prepare
        total, cpu = clock.seconds.pop("all"), time.process_time() - cpu
        parts = {**clock.seconds, "generating": total - sum(clock.seconds.values())}
        timings.append(Timing(total, cpu, parts, gpu.share, texts))
    return min(timings, key=lambda timing: timing.total)


def run(args: argparse.Namespace) -> tuple[int, dict[str, Timing], dict[str, Timing]]:
    """Number of clips, and what each engine took to generate and to judge."""
    record = read_record(args.model)
    labels = find_labels(args.labels, args.clips, model=record)
    clips = read_clips(args.clips, labels, split=args.split)[: args.limit]
    processor = load_processor(args.model)
    # without a cache: every clip is decoded every time
    inputs = OmniInputs(processor, settings_of(MediaSettings, args))
    ask, judge = prompt_of(labels, record), prompt_for(labels)

    def answer(clip: Clip) -> Request:
        prompt = render_prompt(processor, question_for(clip, labels, ask), clip.has_video, clip.has_audio)
        return Request(clip.clip_id, prompt, inputs.media(clip))  # without names: no way gains from the one before

    def name(text: str) -> Request:
        prompt = render_prompt(processor, filled(judge, text), video=False, audio=False)
        return Request("text", prompt, choices=labels.labels)

    generation, judging = {}, {}
    reasonings: list[str] = []
    for title, (backend, size) in ENGINES.items():
        options = settings_of(EngineSettings, args, engine=backend, batch_size=size).options()
        with open_engine(args.model, max_new_tokens=args.max_new_tokens, **options) as engine:
            list(engine.generate(map(answer, clips[:4])))
            generation[title] = timed(engine, clips, answer, args.repeats)
            reasonings = reasonings or [parse(text).plain or text for text in generation[title].texts]
            list(engine.generate(map(name, reasonings[:4])))
            judging[title] = timed(engine, reasonings, name, args.repeats)
    start = time.perf_counter()
    LexiconJudge(labels).judge(reasonings)
    seconds = time.perf_counter() - start
    print(f"lexicon judge: {len(reasonings) / seconds:.0f} texts/s")
    return len(clips), generation, judging


def show(title: str, unit: str, count: int, timings: dict[str, Timing]) -> None:
    """Print one Markdown table: seconds, rate, ratio to one by one, the parts, CPU time, equal responses."""
    last = list(timings.values())[-1]
    parts = ("decoding", "processing", "generating")
    head = [
        title,
        "seconds",
        f"{unit}/s",
        "times one by one",
        *(f"{part}, s" for part in parts),
        "CPU s",
        "GPU idle",
        "equal",
    ]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, timing in timings.items():
        equal = sum(a == b for a, b in zip(timing.texts, last.texts, strict=True))
        cells = [f"{timing.total:.2f}", f"{count / timing.total:.1f}", f"{last.total / timing.total:.1f}"]
        cells += [f"{timing.parts.get(part, 0.0):.2f}" for part in parts]
        cells += [f"{timing.cpu:.2f}", percent(timing.idle), f"{equal} of {count}"]
        print(f"| {' | '.join([name, *cells])} |")


def main() -> None:
    """Run the engines one after the other, print."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of stages/export.py")
    add("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py")
    add("--split", default="test", help="split of the clips (default test)")
    add("--limit", type=int, default=64, help="number of clips (default 64)")
    add("--repeats", type=int, default=3, help="the fastest of so many times counts (default 3)")
    add("--max_new_tokens", type=int, default=96, help="longest response (default 96)")
    parser.add_settings(LabelSettings)
    parser.add_settings(MediaSettings, max_frames=4, max_pixels=84 * 84)
    parser.add_settings(EngineSettings, without=("engine", "batch_size", "tensor_parallel"))
    args = parser.parse_args()
    if (record := read_record(args.model)) is not None:
        parser.inherit(args, record.media, record.source)
    count, generation, judging = run(args)
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    show("generating", "clips", count, generation)
    show("judging", "texts", count, judging)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
