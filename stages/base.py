"""Stage 0 of the demo, base: a tiny Qwen2.5-Omni with random weights, and what it must learn to stand for a real one.

    python stages/base.py --data runs/demo/clips --out runs/demo/base

Writes a model folder in the layout of the real repository and two sets of targets for `stages/sft.py` with `lora_r: 0`:
`perceive.jsonl` (name the emotion of the face, of the voice, of the clip) and `describe.jsonl` (describe
one modality; answer directly; put given text into the tags). A real MLLM knows all this; without it there is no effect
to study, because the answer can only copy the text. And a real MLLM learned to describe from captions that often tell
another emotion's signs, while its answers are right: the captions here err as often (`CAPTION_ERRORS`), so the model
sees more than it says. With your own Qwen2.5-Omni, skip this stage.
"""

import argparse
import random
from pathlib import Path

from migr.emotions import DFEW
from migr.errors import Parser, exit_on_input_error
from migr.omni.prompt import ANSWER_DIRECTLY, DESCRIBE, FORMAT, NAME, question
from migr.omni.tiny import build_tiny
from migr.reasoning import render
from migr.records import Row, digest, read_json, read_jsonl, write_json, write_jsonl
from migr.sources import planted, wording

# How often a caption of the pretraining tells the signs of the emotion that it is most easily mistaken for. Ours; the
# pairs are the usual ones of people's judgements of faces. SFT's targets and all test texts are free of such errors.
CAPTION_ERRORS = 0.2
MISTAKEN = {
    "happy": "surprise",
    "sad": "neutral",
    "neutral": "sad",
    "angry": "disgust",
    "surprise": "fear",
    "disgust": "angry",
    "fear": "surprise",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of stages/data.py --source planted")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its targets")
    parser.add_argument("--seed", type=int, default=0, help="draws the weights")
    return parser.parse_args()


def texts() -> list[str]:
    """What the benchmark can say, for the tokenizer: on too little text, samples come out four times as long."""
    prompts = [question(DFEW), ANSWER_DIRECTLY, FORMAT, *DESCRIBE.values(), *NAME.values()] * 200
    rows = [planted.spec(7, split, index) for split in ("train", "test") for index in range(1500)]
    targets = [
        render(r["segments"], r["conclusion"], r["label"], random.Random(i).sample(["video", "audio"], 2))
        for i, r in enumerate(rows)
    ]
    return [*prompts, *targets, "system\nYou are a helpful assistant.", "user\n", "assistant\n"]


def caption(row: Row, clip: Row, modality: str, rng: random.Random) -> str:
    """What the pretraining says that a modality shows: right, or with the signs of another emotion."""
    if rng.random() >= CAPTION_ERRORS:
        return row["segments"][modality]
    shown, dominant = clip["planted"]["shown"][modality], clip["planted"]["dominant"]
    return wording.describe(modality, MISTAKEN[shown], modality == dominant, "train", rng)


def format_task(reasoning: list[Row], rng: random.Random) -> Row:
    """Put given pieces into the tags, in the given order: what any language model can do.

    The pieces come from different clips, so that nothing about reasoning and answers is learned from them.
    """
    order = rng.sample(["video", "audio"], 2)
    pieces = {modality: rng.choice(reasoning)["segments"][modality] for modality in order}
    conclusion, answer = rng.choice(reasoning)["conclusion"], rng.choice(DFEW)
    prompt = FORMAT.format(pieces=" ".join(pieces.values()), conclusion=conclusion, answer=answer)
    return {"prompt": prompt, "target": render(pieces, conclusion, answer, order)}


def main() -> None:
    """Build the model, write what it is to learn."""
    # Config
    args = arguments()
    key = digest(
        {
            "seed": args.seed,
            "data": read_json(args.data / "data.json")["digest"],
            "texts": digest(texts()),
            "captions": [CAPTION_ERRORS, MISTAKEN],
        }
    )
    done = args.out / "base.json"
    if done.exists() and read_json(done)["digest"] == key:
        print(f"base: {args.out} holds this model already")
        return

    # Data
    clips = {row["clip_id"]: row for row in read_jsonl(args.data / "clips.jsonl", ["clip_id", "label", "split"])}
    reasoning = [row for row in read_jsonl(args.data / "reasoning.jsonl") if clips[row["clip_id"]]["split"] == "train"]

    # Run
    build_tiny(args.out, texts(), seed=args.seed)
    perceive: list[Row] = []
    describe: list[Row] = []
    for i, row in enumerate(reasoning):
        clip = clips[row["clip_id"]]
        both, clear, label = ["video", "audio"], clip["planted"]["dominant"], clip["label"]
        common = {"clip_id": row["clip_id"], "order": [], "label": label}
        shown = [clear] if i % 2 else both  # alone, and beside the other
        answer = f"<answer>{label}</answer>"
        direct = {**common, "prompt": ANSWER_DIRECTLY, "target": answer, "modalities": both}
        perceive.append({**common, "prompt": NAME[clear], "target": answer, "modalities": shown})
        perceive.append(direct)
        for modality in row["segments"]:
            rng = random.Random(f"caption {args.seed} {i} {modality}")
            text = caption(row, clip, modality, rng)
            seen = both if rng.random() < 0.5 else [modality]  # with the other modality beside it, and alone
            describe.append({**common, "prompt": DESCRIBE[modality], "target": text, "modalities": seen})
        describe.append(direct)
        if i % 2:
            task = format_task(reasoning, random.Random(f"format {args.seed} {i}"))
            describe.append({**common, **task, "modalities": []})

    # Save
    write_jsonl(args.out / "perceive.jsonl", perceive)
    write_jsonl(args.out / "describe.jsonl", describe)
    write_json(done, {"digest": key, "seed": args.seed})
    print(f"base: untrained model, {len(perceive)} targets to perceive and {len(describe)} to describe -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
