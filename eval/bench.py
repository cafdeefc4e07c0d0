"""Time generation on real clips: vLLM, transformers in batches, transformers one by one (as the field evaluates).

    python eval/bench.py --model runs/demo/export/migr --clips runs/demo/clips/clips.jsonl --limit 64

Same model, clips, prompt and greedy decoding, in one process. Clips are decoded before the clock starts, and each
engine answers a few clips first to warm up. Prints seconds, clips a second and the ratios, and on how many clips the
greedy responses are equal.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from migr.clips import read_clips
from migr.emotions import label_set
from migr.engine import Request, open_engine
from migr.errors import Parser, exit_on_input_error
from migr.media import MediaSettings
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor
from migr.omni.prompt import question, render_prompt

ENGINES = {
    "vllm": ("vllm", 64),
    "transformers, batches of 16": ("transformers", 16),
    "transformers, one by one": ("transformers", 1),
}


def timed(engine: str, size: int, model: Path, requests: Sequence[Request], longest: int) -> tuple[float, list[str]]:
    """Seconds to answer all requests after a warm-up, and the responses."""
    opened = open_engine(model, backend=engine, max_new_tokens=longest, batch_size=size)
    try:
        list(opened.generate(requests[:4]))
        start = time.perf_counter()
        texts = [answer.text for answer in opened.generate(requests)]
        return time.perf_counter() - start, texts
    finally:
        opened.close()


def main() -> None:
    """Decode, then run the engines one after the other."""
    parser = Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of stages/export.py")
    parser.add_argument("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py")
    parser.add_argument("--split", default="test", help="split of the clips (default test)")
    parser.add_argument("--limit", type=int, default=64, help="number of clips (default 64)")
    parser.add_argument("--max_new_tokens", type=int, default=96, help="longest response (default 96)")
    parser.add_argument("--max_pixels", type=int, default=84 * 84, help="frames are reduced to this many pixels")
    args = parser.parse_args()
    labels = label_set("dfew")
    clips = read_clips(args.clips, labels, split=args.split)[: args.limit]
    processor = load_processor(args.model)
    inputs = OmniInputs(processor, MediaSettings(max_frames=4, min_pixels=56 * 56, max_pixels=args.max_pixels))
    ask = question(labels.labels)
    requests = [
        Request(clip.clip_id, render_prompt(processor, ask, clip.has_video, clip.has_audio), inputs.media(clip))
        for clip in clips
    ]
    results = {name: timed(*how, args.model, requests, args.max_new_tokens) for name, how in ENGINES.items()}
    slowest, plain = results["transformers, one by one"]
    for name, (seconds, texts) in results.items():
        equal = sum(a == b for a, b in zip(texts, plain, strict=True))
        rate = f"{seconds:.2f} s, {len(clips) / seconds:.1f} clips/s, {slowest / seconds:.1f} times one by one"
        print(f"{name}: {rate}; {equal} of {len(clips)} responses equal")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
