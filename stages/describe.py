r"""Where a data set has no reasoning: let a model describe each modality by itself, and write reasoning.jsonl.

    python stages/describe.py --clips runs/x/clips/clips.jsonl --model runs/x/export \
        --out runs/x/described/reasoning.jsonl

Each clip is described twice: its frames without the sound, and its sound without the frames, so that neither
description can borrow from the other. A transcript goes through word for word. The model is never told the label. Each
line holds `segments`, a `conclusion` that names the evidence and no emotion, and `by` (model, questions and settings).

    names_other   {modality: [emotions]} of descriptions that name another emotion than the label: marked, not hidden
                  (stages/targets.py --leave_out names_other leaves such clips out)
    cut           modalities whose description was cut at --max_new_tokens
    unusable      {modality: text} of descriptions that are empty or hold tags; they are in no segment

An interrupted run goes on where it stopped, clip by clip.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from migr.cli import Parser, settings_of
from migr.clips.manifest import Clip, read_clips
from migr.clips.record import find_labels, read_record
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import claim
from migr.files.fingerprint import model_digest
from migr.files.growing import Growing
from migr.files.records import Row, digest, read_jsonl
from migr.omni.prompt import DESCRIBE, render_prompt
from migr.settings import (
    CacheSettings,
    DecodingSettings,
    EngineSettings,
    LabelSettings,
    MediaSettings,
    OutputSettings,
)
from migr.text.format import block, parse
from migr.text.labels import LabelSet

NAMES = {"video": "the video", "audio": "the audio", "text": "the words"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py, or your own")
    add("--model", type=Path, required=True, help="model folder; stages/export.py writes one for vllm")
    add("--out", type=Path, required=True, help="reasoning.jsonl to write, or to go on with")
    add("--split", default="train", help="split of the clips to describe, or `all`")
    add("--modalities", nargs="+", choices=DESCRIBE, default=list(DESCRIBE), help="which to describe (default both)")
    for modality, ask in DESCRIBE.items():
        add(f"--ask_{modality}", default=ask, help=f"the question about {modality} (default: {ask})")
    add("--limit", type=int, help="describe only the first so many clips")
    parser.add_settings(LabelSettings, MediaSettings, EngineSettings, DecodingSettings, CacheSettings, OutputSettings)
    args = parser.parse_args()
    record = read_record(args.model)
    if record is not None:
        parser.inherit(args, record.media, record.source)
    args.label_set = find_labels(args.labels, args.clips, model=record)
    return args


def emotions_in(text: str, labels: LabelSet) -> list[str]:
    """The labels that a text names outright, by their own names or a synonym, in the order of the set."""
    words = {**labels.synonyms, **{label: label for label in labels.labels}}
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    emotions = {words[match] for match in re.findall(rf"\b(?:{pattern})\b", text.casefold())}
    return [label for label in labels.labels if label in emotions]


def row_of(clip: Clip, descriptions: dict[str, Any], by: str, labels: LabelSet) -> Row:
    """The line of reasoning.jsonl for a clip and what the model said of its modalities (`Generation` each)."""
    usable: dict[str, str] = {}
    unusable: dict[str, str] = {}
    for modality, generation in descriptions.items():
        text = " ".join(generation.text.split())
        target = parse(block("think", block(modality, text)) + block("answer", "x"))  # as a target will be
        (unusable if target.error else usable)[modality] = text
    segments = dict(usable)
    if transcript := str(clip.extra.get("transcript") or "").strip():
        segments["text"] = transcript
    evidence = " and ".join(NAMES[modality] for modality in segments)
    row: Row = {
        "clip_id": clip.clip_id,
        "segments": segments,
        "conclusion": f"The evidence is in {evidence}." if evidence else "",
    }
    if clip.label is not None:
        named = {m: [e for e in emotions_in(text, labels) if e != clip.label] for m, text in usable.items()}
        row |= {"names_other": marked} if (marked := {m: others for m, others in named.items() if others}) else {}
    row |= {"cut": cut} if (cut := [m for m, generation in descriptions.items() if not generation.finished]) else {}
    row |= {"unusable": unusable} if unusable else {}
    return row | {"by": by}


def main() -> None:
    """Describe the clips that have no line yet."""
    # Config
    args = arguments()
    labels, settings = args.label_set, settings_of(MediaSettings, args)
    engine, decoding = settings_of(EngineSettings, args).resolved(), settings_of(DecodingSettings, args)
    ask = {modality: getattr(args, f"ask_{modality}") for modality in args.modalities}
    about = [asdict(settings), engine.engine, engine.dtype, asdict(decoding)]
    by = f"{args.model.resolve().name}-{digest(model_digest(args.model), ask, about)[:8]}"

    # Data
    clips = read_clips(args.clips, labels, split=None if args.split == "all" else args.split)[: args.limit]
    questions = {clip.clip_id: [m for m in args.modalities if m in clip.modalities] for clip in clips}

    config = {"model": model_digest(args.model), "ask": ask, "media": asdict(settings), **asdict(decoding)}
    claim(args.out, config | {"engine": engine.engine, "dtype": engine.dtype}, [args.out], args.overwrite)
    with Growing(args.out) as out:
        rows = {row["clip_id"]: row for row in read_jsonl(args.out, ["clip_id", "by"], unique="clip_id")}
        if other := {row["by"] for row in rows.values()} - {by}:
            raise InputError(
                f"{args.out}: holds descriptions of another model, question or setting ({', '.join(sorted(other))}, "
                f"now {by}); give another --out, or delete it"
            )
        pending = [clip for clip in clips if clip.clip_id not in rows]

        # Run, save
        if pending:
            from migr.engine import AT_ONCE, Request, open_engine
            from migr.omni.inputs import OmniInputs
            from migr.omni.load import load_processor

            processor = load_processor(args.model)
            inputs = OmniInputs(processor, settings, args.cache_dir)
            prompts = {m: render_prompt(processor, text, m == "video", m == "audio") for m, text in ask.items()}
            alone: dict[str, dict[str, Any]] = {"video": {"waveform": None}, "audio": {"frames": None, "fps": None}}

            def requests(block: Sequence[Clip]) -> Iterator[Request]:
                for clip in block:
                    media = inputs.media(clip) if questions[clip.clip_id] else None
                    for m in questions[clip.clip_id]:
                        assert media is not None
                        yield Request(
                            f"{clip.clip_id} ({m})", prompts[m], replace(media, **alone[m]), inputs.media_keys(clip)
                        )

            # with transformers the batch can change the last digits of logits: an interrupted one is made whole again
            size = engine.batch_size or AT_ONCE[engine.engine]
            whole = [clips[start : start + size] for start in range(0, len(clips), size)]
            blocks = (
                [pending] if engine.engine == "vllm" else [b for b in whole if any(c.clip_id not in rows for c in b)]
            )
            with (
                open_engine(args.model, **engine.options(), **asdict(decoding), cache_dir=args.cache_dir) as describer,
                tqdm(desc="describing", total=len(clips), initial=len(clips) - len(pending), unit="clip") as bar,
            ):
                for block in blocks:
                    answers = describer.generate(requests(block))
                    for clip in block:
                        needed = questions[clip.clip_id]
                        descriptions = dict(zip(needed, islice(answers, len(needed)), strict=True))
                        if clip.clip_id not in rows:
                            rows[clip.clip_id] = row_of(clip, descriptions, by, labels)
                            out.append(rows[clip.clip_id])
                            bar.update()

    marks = {key: sum(key in row for row in rows.values()) for key in ("names_other", "cut", "unusable")}
    notes = ", ".join(f"{count} with {key}" for key, count in marks.items() if count)
    print(f"describe: {len(rows)} clips, {len(pending)} of them now ({notes or 'nothing to mark'}; {by}) -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
