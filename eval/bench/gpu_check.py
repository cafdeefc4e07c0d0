r"""SFT, sampling, GRPO and evaluation at real size on one GPU, each against the field's usual way, in ten minutes.

    python eval/bench/gpu_check.py --out runs/gpu_check                     (Qwen2.5-Omni-3B's sizes, random weights)
    python eval/bench/gpu_check.py --out runs/gpu_check --recipe configs/7b_80gb
    python eval/bench/gpu_check.py --out runs/gpu_check --tiny              (anywhere: a tiny model on the CPU)

Nothing is fetched: the weights are drawn in memory, the clips are noise at the recipe's bounds. Both ways run in the
same process, on the same weights and clips, with the steps written out (forward, backward, AdamW on the adapter), so
that nothing but the way differs; the fastest of `--repeats` counts. Usual: transformers' own class, one row a step
under gradient checkpointing, towers in every pass, each completion behind a prompt of its own, the adapter on top,
evaluation one by one. Prints a Markdown table for docs/benchmarks.md, and each way's peak beside the memory estimate.
vLLM needs the model as files: with --vllm it is written to --out (10 GB for the 3B model; a folder in memory, as
/dev/shm, is fast), answers the same clips and samples for GRPO.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)

# isort: split
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from eval.bench.idle import Idle
from eval.bench.memory_check import drawn, read
from eval.page.tables import percent
from migr.cli import Parser
from migr.clips.media import SAMPLE_RATE, Media, MediaSettings
from migr.engine import Request, open_engine
from migr.errors import InputError, exit_on_input_error
from migr.memory.estimate import CONTEXT, GIB, SLACK, estimate, gpu_bytes
from migr.omni.export import write_checkpoint
from migr.omni.inputs import Features, OmniInputs
from migr.omni.load import LORA
from migr.omni.prompt import question, render_prompt
from migr.rollout.merging import folded
from migr.text.labels import DFEW
from migr.training.shared_prefix import pack

ROOT = Path(__file__).resolve().parents[2]
ANSWER = 256  # tokens of a target


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--recipe", type=Path, default=ROOT / "configs" / "3b_24gb", help="folder of sft.yaml and grpo.yaml")
    add("--out", type=Path, required=True, help="folder for the tokenizer, and for the model with --vllm")
    add("--rows", type=int, default=8, help="rows of an SFT step, clips of a GRPO step, clips to evaluate (default 8)")
    add("--generations", type=int, default=8, help="completions of a clip in GRPO (default 8)")
    add("--new_tokens", type=int, help="sampled tokens (default 256; 24 with --tiny)")
    add("--repeats", type=int, default=3, help="the fastest of so many times counts (default 3)")
    add("--vllm", action="store_true", help="evaluation and GRPO by vLLM too")
    add("--tiny", action="store_true", help="a tiny model and few tokens, on the CPU")
    return parser.parse_args()


class Bench:
    """A thinker with a LoRA adapter, clips of noise, and both ways of doing things with them."""

    def __init__(self, args: argparse.Namespace) -> None:
        recipe, _ = read("sft", ["--config", str(args.recipe / "sft.yaml"), "--clips", "-", "--output_dir", "-"])
        self.args, self.name = args, recipe.model
        self.media = MediaSettings(max_frames=4, max_pixels=3136) if args.tiny else recipe.media_settings
        thinker, processor = drawn(self.name, args.out / "tiny", args.tiny)
        self.thinker, self.device = thinker, thinker.device
        thinker.requires_grad_(False)
        if args.tiny:
            thinker.float()  # CPUs are slow in half precision
        self.inputs = OmniInputs(processor, self.media)
        if args.vllm:  # before an adapter is in it
            write_checkpoint(thinker, processor, args.out / "model")
        config = LoraConfig(r=recipe.lora_r, lora_alpha=recipe.lora_alpha, **LORA, task_type="CAUSAL_LM")
        self.model = get_peft_model(thinker, config).train()
        self.clips = [self._clip(seed) for seed in range(args.rows)]
        self.features = [self.inputs.process(clip) for clip in self.clips]
        text = render_prompt(processor, question(DFEW), True, True)
        self.text, self.prompt = text, self.inputs.prompt_ids(text, self.features[0])
        self.optimizer = torch.optim.AdamW([w for w in self.model.parameters() if w.requires_grad], 1e-6)
        self.tokens = [self._tokens(row) for row in self.features]
        self.new = args.new_tokens or (24 if args.tiny else 256)

    def _clip(self, seed: int) -> Media:
        rng, media = np.random.default_rng(seed), self.media
        side = self.inputs.family.factor
        cells = media.max_pixels // side**2
        high = next(n for n in range(int(cells**0.5), 0, -1) if cells % n == 0)
        shape = (media.max_frames, 3, high * side, cells // high * side)
        seconds = media.max_frames / media.fps
        wave = 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE))
        return Media(rng.integers(0, 255, shape, dtype=np.uint8), media.fps, wave.astype(np.float32), seconds)

    @torch.no_grad()
    def _tokens(self, row: Features) -> Features:
        row = {name: value.to(self.device) for name, value in row.items()}
        media = {name: row[name] for name in ("video_grid_thw", "video_second_per_grid", "feature_attention_mask")}
        media["video_tokens"] = self.thinker.video_tokens_of(row["pixel_values_videos"], row["video_grid_thw"])
        media["audio_tokens"] = self.thinker.audio_tokens_of(row["input_features"], row["feature_attention_mask"])
        return media

    def batch(self, rows: list[Features], completion: int) -> dict[str, Tensor]:
        """Prompts with `completion` random tokens behind them, and the media."""
        words = torch.randint(300, 400, (len(rows), completion), generator=torch.Generator().manual_seed(0))
        ids = torch.cat([torch.tensor([self.prompt] * len(rows)), words], 1)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.inputs.collate(rows)}
        return {name: value.to(self.device) for name, value in batch.items()}

    def step(self, rows: list[Features], checkpointing: bool, size: int) -> None:
        """One SFT step over the rows, `size` at a time."""
        with self._checkpointing(checkpointing):
            for start in range(0, len(rows), size):
                batch = self.batch(rows[start : start + size], ANSWER if not self.args.tiny else 32)
                self.model(**batch, labels=batch["input_ids"]).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @contextmanager
    def _checkpointing(self, on: bool) -> Iterator[None]:
        if on:
            self.thinker.gradient_checkpointing_enable({"use_reentrant": False})
            self.thinker.enable_input_require_grads()  # as PEFT and TRL do
        try:
            yield
        finally:
            if on:
                self.thinker.gradient_checkpointing_disable()
                self.thinker.disable_input_require_grads()

    @torch.no_grad()
    def sample(self, ours: bool) -> Tensor:
        """Completions of all clips: one prefill a clip, the adapter folded; or each alone, the adapter on top."""
        count = self.args.generations
        options = {"max_new_tokens": self.new, "min_new_tokens": self.new, "do_sample": True}
        options |= {"use_cache": True, "pad_token_id": self.inputs.processor.tokenizer.pad_token_id}
        batch = self.batch([row for row in self.features for _ in range(count)], 0)
        if ours:
            media = {n: v.to(self.device) for n, v in self.inputs.collate(self.tokens).items()}
            batch = {name: batch[name] for name in ("input_ids", "attention_mask")} | media
            options["group"] = torch.arange(len(self.tokens)).repeat_interleave(count).to(self.device)
        with folded(self.model) if ours else nullcontext():
            return self.model.generate(**batch, **options)

    def grpo(self, ours: bool) -> None:
        """Sampling, then `learn`."""
        self.sample(ours)
        self.learn(ours)

    def learn(self, ours: bool) -> None:
        """The reference's pass and the policy's pass with its gradient, over all completions."""
        count = self.args.generations
        rows = [i for i in range(len(self.clips)) for _ in range(count)]
        for reference in (True, False):
            with torch.no_grad() if reference else nullcontext(), self._checkpointing(not ours):
                if ours:
                    batch = self.batch([self.tokens[i] for i in rows], self.new)
                    media = {n: v.to(self.device) for n, v in self.inputs.collate(self.tokens).items()}
                    positions = partial(self.thinker.positions, media=media)
                    packed = pack(batch["input_ids"], batch["attention_mask"], self.new, rows, positions)
                    arguments = {"input_ids": packed.input_ids, "attention_mask": packed.mask, **media}
                    self._backward(arguments | {"position_ids": packed.position_ids}, packed.shift_labels, reference)
                else:
                    size = self.args.rows
                    for start in range(0, len(rows), size):
                        batch = self.batch([self.features[i] for i in rows[start : start + size]], self.new)
                        labels = torch.nn.functional.pad(batch["input_ids"][:, 1:], (0, 1), value=-100)
                        labels[:, : -self.new - 1] = -100
                        self._backward(batch, labels, reference)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _backward(self, batch: dict[str, Any], labels: Tensor, reference: bool) -> None:
        logits = self.model(**batch).logits[labels != -100]
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[labels != -100])
        if not reference:
            loss.backward()

    def evaluate(self, one_by_one: bool) -> None:
        """Greedy answers to all clips, from decoded frames on."""
        size = 1 if one_by_one else len(self.clips)
        options: dict[str, Any] = {"max_new_tokens": self.new, "min_new_tokens": self.new, "do_sample": False}
        with torch.no_grad():
            for start in range(0, len(self.clips), size):
                rows = [self.inputs.process(clip) for clip in self.clips[start : start + size]]
                self.thinker.generate(**self.batch(rows, 0), **options)


@contextmanager
def usual_class(thinker: Any) -> Iterator[None]:
    """The thinker as transformers' own class, whose frozen towers get gradients under checkpointing."""
    ours = type(thinker)
    thinker.__class__ = ours.__bases__[1]
    try:
        yield
    finally:
        thinker.__class__ = ours


@dataclass(frozen=True)
class Cost:
    """Of one way: seconds (the fastest time), the peak in GiB and the GPU's idle share, None on a CPU."""

    seconds: float
    peak: float | None
    idle: float | None


def measure(function: Callable[[], Any], repeats: int) -> Cost:
    """What a function costs, once it has run to warm up."""
    gpu, best = torch.cuda.is_available(), float("inf")
    function()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with Idle() as idle:
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            if gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return Cost(best, torch.cuda.max_memory_allocated() / GIB if gpu else None, idle.share)


def with_vllm(bench: Bench, out: Path) -> tuple[Cost, Cost]:
    """vLLM's answers to the clips, and a GRPO step that it samples for; loading is left out.

    Its weights are those of the start: a run hands over the adapter once a step.
    """
    requests = [Request(str(i), bench.text, clip) for i, clip in enumerate(bench.clips)]
    count, repeats = bench.args.generations, bench.args.repeats
    draws = [
        replace(request, key=f"{request.key} {n}", media_keys=dict.fromkeys(("video", "audio"), request.key))
        for request in requests
        for n in range(count)
    ]
    # beside the trainer, which keeps what it has
    options: dict[str, Any] = {"max_new_tokens": bench.new, "vllm_gpu_memory_utilization": 0.4}
    with open_engine(out, "vllm", **options) as engine:
        answering = measure(lambda: list(engine.generate(requests)), repeats)
    with open_engine(out, "vllm", **options, temperature=1.0, batch_size=len(draws)) as engine:

        def step() -> None:
            list(engine.generate(draws))
            bench.learn(True)

        return answering, measure(step, repeats)


def show(title: str, ours: Cost, usual: Cost) -> None:
    """Print one row."""
    peaks = ["–" if cost.peak is None else f"{cost.peak:.2f}" for cost in (ours, usual)]
    cells = [f"{ours.seconds:.3f}", f"{usual.seconds:.3f}", f"{usual.seconds / ours.seconds:.1f}", *peaks]
    print(f"| {' | '.join([title, *cells, percent(ours.idle), percent(usual.idle)])} |", flush=True)


def main() -> None:
    """Draw, measure, print."""
    args = arguments()
    if not args.tiny and gpu_bytes() is None:
        raise InputError("no GPU here; --tiny shows the ratios of a tiny model on a CPU")
    bench, rows = Bench(args), args.rows
    plain, reused = bench.features, bench.tokens
    first = lambda: bench.step([bench._tokens(row) for row in plain], False, rows)  # noqa: E731
    ways: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        (f"SFT, {rows} rows, first epoch", first, lambda: bench.step(plain, True, 1)),
        (
            f"SFT, {rows} rows, second epoch",
            lambda: bench.step(reused, False, rows),
            lambda: bench.step(plain, True, 1),
        ),
        (
            f"SFT, {rows} rows, checkpointing in both",
            lambda: bench.step(reused, True, rows),
            lambda: bench.step(plain, True, rows),
        ),
        (f"sampling {rows} x {args.generations}", lambda: bench.sample(True), lambda: bench.sample(False)),
        (f"GRPO step, {rows} x {args.generations}", lambda: bench.grpo(True), lambda: bench.grpo(False)),
        (f"evaluation, {rows} clips", lambda: bench.evaluate(False), lambda: bench.evaluate(True)),
    ]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{'tiny' if args.tiny else bench.name} on {where}, {len(bench.prompt)} tokens a prompt, {bench.new} sampled")
    head = ["ours, s", "usual, s", "times", "peak ours, GiB", "peak usual, GiB", "GPU idle, ours", "usual"]
    print(f"| | {' | '.join(head)} |\n|---|{'---|' * len(head)}")
    usually: list[Cost] = []
    for title, ours, usual in ways:
        cost = measure(ours, args.repeats)
        with usual_class(bench.thinker):
            usually.append(measure(usual, args.repeats))
        show(title, cost, usually[-1])
    if args.vllm:
        answering, learning = with_vllm(bench, args.out / "model")
        show(f"evaluation, {rows} clips, vLLM", answering, usually[-1])
        show(f"GRPO step, {rows} x {args.generations}, vLLM", learning, usually[-2])
    if not args.tiny:
        whole = estimate(bench.name, "sft", bench.media, rows=rows, answer=ANSWER, checkpointing=False)
        print(f"estimated for SFT without checkpointing: {(whole.peak - CONTEXT) / (1 + SLACK) / GIB:.2f} GiB")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
