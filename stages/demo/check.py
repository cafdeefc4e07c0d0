r"""Does a model see and hear at all? Its direct answers, before anything is compared that rests on them.

    python stages/demo/check.py --clips runs/demo/clips/clips.jsonl --model stages/demo/model \
        --out runs/demo/check.json --least 0.9

Asks for the emotion of each validation clip without any reasoning, and for that of each clip with one modality alone.
Below --least the run ends with status 2: an SFT or GRPO on a base that cannot perceive says nothing about reasoning. On
the planted benchmark that happened on one seed of three when the base learned for too short a time (docs/results.md).
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from migr.cli import Parser, settings_of
from migr.clips.manifest import Clip, read_clips
from migr.clips.record import find_labels, read_record
from migr.engine import Request, open_engine
from migr.errors import InputError, exit_on_input_error
from migr.files.records import Row, write_json
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor
from migr.omni.prompt import ANSWER_DIRECTLY, render_prompt
from migr.settings import CacheSettings, EngineSettings, LabelSettings, MediaSettings
from migr.text.format import block


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py, or your own")
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--split", default="val", help="split of the clips to ask about (default val)")
    parser.add_argument("--limit", type=int, help="ask about the first so many only")
    parser.add_argument("--least", type=float, default=0.0, help="share of right answers to reach, 0 to 1 (default 0)")
    parser.add_settings(LabelSettings, MediaSettings, EngineSettings, CacheSettings)
    args = parser.parse_args()
    record = read_record(args.model)
    if record is not None:
        parser.inherit(args, record.media, record.source)
    args.label_set = find_labels(args.labels, args.clips, model=record)
    if not 0 <= args.least <= 1:
        raise InputError(f"--least: a share lies between 0 and 1, not {args.least}")
    return args


def main() -> None:
    """Ask, count, save, and stop the run if the model perceives too little."""
    # Config
    args = arguments()
    labels, settings = args.label_set, settings_of(MediaSettings, args)

    # Data
    clips = [clip for clip in read_clips(args.clips, labels, split=args.split) if clip.label is not None][: args.limit]
    if not clips:
        raise InputError(f"{args.clips}: no clip of split {args.split!r} has a label")
    processor = load_processor(args.model)
    inputs = OmniInputs(processor, settings, args.cache_dir)
    choices = tuple(block("answer", label) for label in labels.labels)
    questions: list[tuple[Clip, tuple[str, ...], str]] = []  # clip, what is shown of it, where the answer counts
    for clip in clips:
        have = tuple(name for name in ("video", "audio") if name in clip.modalities)
        questions.append((clip, have, "all"))
        questions += [(clip, (name,), f"{name} alone") for name in have if len(have) > 1]

    def requests() -> Iterator[Request]:
        for clip, names, _ in questions:
            media, video, audio = inputs.media(clip), "video" in names, "audio" in names
            if not video:
                media = replace(media, frames=None, fps=None)
            if not audio:
                media = replace(media, waveform=None)
            prompt = render_prompt(processor, ANSWER_DIRECTLY, video, audio)
            yield Request(f"{clip.clip_id} ({' and '.join(names)})", prompt, media, inputs.media_keys(clip), choices)

    # Run
    with open_engine(args.model, **settings_of(EngineSettings, args).options(), cache_dir=args.cache_dir) as engine:
        answers = engine.generate(requests())
        texts = [row.text for row in tqdm(answers, "asking", len(questions), unit="answer")]

    # Save
    right: dict[str, list[bool]] = {}
    for (clip, _, key), text in zip(questions, texts, strict=True):
        right.setdefault(key, []).append(text == choices[labels.labels.index(clip.label or "")])
    figures: Row = {key: {"right": sum(hits) / len(hits), "n": len(hits)} for key, hits in right.items()}
    parts = ", ".join(f"{row['right']:.1%} ({key}, {row['n']} clips)" for key, row in figures.items())
    print(f"check: direct answers of the model are right on {parts}")
    if figures["all"]["right"] < args.least:
        raise InputError(
            f"{args.model}: right on {figures['all']['right']:.1%} of the clips, fewer than {args.least:.0%}: it does "
            "not see and hear enough for a comparison; train the base longer, or start from another seed"
        )
    write_json(args.out, figures)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
