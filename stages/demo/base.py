"""How the demo's base model is made: a tiny Qwen2.5-Omni with random weights, and what it must learn.

    python stages/demo/base.py --data runs/demo/clips --out runs/demo/base

Writes a model folder in the layout of the real repository, and two sets of targets for `stages/sft.py` with
`lora_r: 0`. `perceive.jsonl`: name the emotion of the face, of the voice, of the clip.
`describe.jsonl`: describe one modality; answer directly; put given text into the tags. A real MLLM knows all this;
without it there is no effect to study, because the answer can only copy the text.

The descriptions are captions, and err as captions do: of some emotions they tell another one's signs every second time
(`CAPTION_ERRORS`), while the answer is always right. So the model sees more than it says. All captions are worded
alike, so that a million weights can learn in minutes which signs to name; the truth is in the benchmark's own
`reasoning.jsonl`.

With `--coherence q` the model also learns to describe both modalities in one go, the second after the first one's
emotion with probability q. `stages/demo/annotate.py` writes reasoning of coherent annotators.
"""

import argparse
import random
from pathlib import Path

from migr.cli import Parser
from migr.errors import exit_on_input_error
from migr.files.claim import hold
from migr.files.records import Row, digest, read_json, read_jsonl, write_json, write_jsonl
from migr.omni.prompt import ANSWER_DIRECTLY, DESCRIBE, NAME
from migr.omni.tiny import build_tiny
from migr.planted.annotators import Annotator
from migr.planted.captions import CAPTION_ERRORS, captioned, format_task, story, texts
from migr.text.format import block


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of stages/data.py --source planted")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its targets")
    parser.add_argument("--seed", type=int, default=0, help="draws the weights")
    parser.add_argument("--coherence", type=float, default=0.0, help="the model's: see migr/planted/annotators.py")
    errors = f"how often captions mistake what is easily mistaken (default {CAPTION_ERRORS})"
    parser.add_argument("--caption_errors", type=float, default=CAPTION_ERRORS, help=errors)
    return parser.parse_args()


def main() -> None:
    """Build the model, write what it is to learn."""
    # Config
    args = arguments()
    # Data
    rows = read_jsonl(args.data / "clips.jsonl", ["clip_id", "label", "split", "planted"])
    clips = [row for row in rows if row["split"] == "train"]
    Annotator(args.coherence)  # checks it
    captions = [captioned(clip, args.seed, errors=args.caption_errors) for clip in clips]
    about = {"seed": args.seed, "texts": texts(), "captions": captions}
    about |= {"coherence": args.coherence} if args.coherence else {}
    done, key = args.out / "base.json", digest(about)
    if done.exists() and read_json(done)["digest"] == key:
        print(f"base: {args.out} holds this model already")
        return

    hold(args.out)

    # Run
    build_tiny(args.out, texts(), seed=args.seed)
    perceive: list[Row] = []
    describe: list[Row] = []
    for i, (clip, row) in enumerate(zip(clips, captions, strict=True)):
        both, clear, label = ["video", "audio"], clip["planted"]["dominant"], clip["label"]
        common = {"clip_id": row["clip_id"], "order": [], "label": label}
        modalities = [clear] if i % 2 else both  # alone, and beside the other
        answer = block("answer", label)
        direct = {**common, "prompt": ANSWER_DIRECTLY, "target": answer, "modalities": both}
        perceive.append({**common, "prompt": NAME[clear], "target": answer, "modalities": modalities})
        perceive.append(direct)
        for modality, text in row["segments"].items():
            rng = random.Random(f"shown {args.seed} {i} {modality}")
            context = both if rng.random() < 0.5 else [modality]  # with the other modality beside it, and alone
            describe.append({**common, "prompt": DESCRIBE[modality], "target": text, "modalities": context})
        describe.append(direct)
        if args.coherence:
            written = ("video-first", "audio-first")[i // 2 % 2]
            coherent = captioned(clip, args.seed, Annotator(args.coherence, written), args.caption_errors)
            describe.append({**common, **story(coherent, list(coherent["segments"])), "modalities": both})
        if i % 2:
            task = format_task(captions, random.Random(f"format {args.seed} {i}"))
            describe.append({**common, **task, "modalities": []})

    # Save
    write_jsonl(args.out / "perceive.jsonl", perceive)
    write_jsonl(args.out / "describe.jsonl", describe)
    write_json(done, {"digest": key, "seed": args.seed})
    print(f"base: untrained model, {len(perceive)} targets to perceive and {len(describe)} to describe -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
