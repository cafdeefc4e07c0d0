r"""Stage 3, targets: put the reasoning of each clip into segments, in order, and write what SFT learns.

    python stages/targets.py --clips runs/demo/clips/clips.jsonl --reasoning runs/demo/clips/reasoning.jsonl \
        --importance runs/demo/importance/importance.jsonl --order dominant-first --out runs/demo/targets.jsonl

`dominant-first` starts with the modality of the largest importance, `least-first` with that of the smallest;
`video-first` and `audio-first` are fixed; `planted-first` starts with the modality that truly carries the emotion,
which planted clips know; `random` is drawn by `--seed` and the clip; `written` leaves the segments as they come. A
clip whose importance is a tie, or marked `certain: false`, gets the neutral order: video, audio, text. The conclusion
stays last. A target that the rewards' parser cannot read back is an error.

--reasoning takes one or more files; a clip's segments may come from several. Formats: our own rows (`segments`, or a
free `text`), `conversations` (EMER, R1-Omni), `captions` (what is seen, as MAFW's), a `table` (CSV, TSV, XLSX). Free
text is split into sentences, and each one assigned to a modality by a lexicon, or by a language model (--assigner llm);
which sentence went where stands in OUT.sentences.jsonl. Targets that would not earn full rewards in GRPO are counted,
and stand in OUT.rewards.jsonl with the reason. docs/targets.md tells more.

--rewrite llm has a language model (--rewriter) write the reasoning anew from these segments, in the wanted order, so
that nothing colours the dominant modality's description. What says more than its source, or reads as another emotion
to --judge, is refused and stands in OUT.refused.jsonl.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from migr.cli import Parser, settings_of
from migr.clips.manifest import Clip, read_clips
from migr.clips.record import find_labels
from migr.errors import InputError, exit_on_input_error
from migr.files.claim import claim, finish
from migr.files.fingerprint import file_digest, model_digest
from migr.files.growing import Growing
from migr.files.records import Row, digest, read_jsonl, write_jsonl
from migr.judge import open_judge
from migr.judge.writer import open_writer
from migr.omni.prompt import question, question_about
from migr.settings import EngineSettings, LabelSettings, OutputSettings
from migr.sources.importance import read_importance
from migr.sources.reasoning import FORMATS, check, match, merge, read_reasoning, told
from migr.sources.rewriting import REFUSALS, Evidence, rewrite_into
from migr.text.format import MODALITIES, parse, render
from migr.text.labels import LabelSet
from migr.text.segments import arrange
from migr.text.sentences import modalities_of, split
from reward.faults import FAULTS, faults_of

ORDERS = ("dominant-first", "video-first", "audio-first", "least-first", "planted-first", "random", "written")
BY_IMPORTANCE = {"dominant-first": -1, "least-first": 1}
# Why a clip may be left out instead of being an error (the last one is no error by itself)
REASONS = ("missing", "unassigned", "answer", "names_other")
CHOICES = {
    "video": ("video",),
    "audio": ("audio",),
    "text": ("text",),
    "both": ("video", "audio"),
    "none": (),
}
ASK = (
    "What is this sentence evidence from? Answer video (what is seen: face, gestures, scene), audio (how it sounds: "
    "voice, noise, music), text (what the words say), both (what is seen and how it sounds), or none (a guess or a "
    "conclusion). Sentence: {sentence}"
)
Assigned = tuple[str, tuple[str, ...]]  # a sentence and the modalities that it is about


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="clips.jsonl of stages/data.py")
    parser.add_argument("--reasoning", type=Path, required=True, nargs="+", help="file or files of reasoning")
    parser.add_argument("--reasoning_format", default="auto", help=f"one of {', '.join(FORMATS)}; for all files")
    parser.add_argument("--importance", type=Path, help="importance.jsonl; needed for dominant-first and least-first")
    parser.add_argument("--order", default="dominant-first", help=f"which segment comes first: {', '.join(ORDERS)}")
    parser.add_argument("--seed", type=int, default=0, help="of --order random")
    parser.add_argument("--split", default="train", help="split of the clips to write targets for")
    parser.add_argument("--assigner", choices=["lexicon", "llm"], default="lexicon", help="of free text's sentences")
    parser.add_argument("--assigner_model", type=Path, help="model folder of --assigner llm")
    parser.add_argument(
        "--leave_out",
        nargs="+",
        choices=REASONS,
        default=[],
        help="leave these clips out: without reasoning, with no sentence about a modality, whose reasoning answers "
        "another label (each an error otherwise), or with a description that names another emotion (kept otherwise)",
    )
    parser.add_argument("--rewrite", choices=["llm"], help="have a language model write the reasoning anew, in order")
    parser.add_argument("--rewriter", help="of --rewrite llm: a model folder, or endpoint:URL#MODEL")
    parser.add_argument(
        "--judge", default="lexicon", help="must read the label in what was rewritten (default lexicon)"
    )
    parser.add_argument("--out", type=Path, required=True, help="targets.jsonl to write")
    parser.add_settings(LabelSettings, EngineSettings, OutputSettings)
    return parser.parse_args()


def run_config(args: argparse.Namespace, labels: LabelSet) -> Row:
    """What the targets depend on."""
    config: Row = {name: getattr(args, name) for name in ("order", "split", "reasoning_format", "assigner")}
    config |= {"rewriter": args.rewriter, "judge": args.judge} if args.rewrite else {}
    config |= {"seed": args.seed} if args.order == "random" else {}
    config |= {"leave_out": sorted(args.leave_out), "label_set": labels.as_record()}
    config |= {"clips": file_digest(args.clips), "reasoning": [file_digest(path) for path in args.reasoning]}
    config["importance"] = file_digest(args.importance) if args.importance else None
    config["question"] = question(labels.labels)
    config["assigner_model"] = model_digest(args.assigner_model) if args.assigner_model else None
    return config


def order_of(
    clip: Clip, segments: Mapping[str, str], order: str, importance: Mapping[str, float] | None, seed: int = 0
) -> list[str]:
    """The modalities of the segments in the wanted order; the fixed orders name the modality that comes first.

    Equal weights (or none at all: an uncertain clip) keep the neutral order.
    """
    if order in BY_IMPORTANCE:
        if importance is None:
            raise InputError(f"clip {clip.clip_id} has no importance: run stages/importance.py on these clips")
        neutral = sorted(segments, key=(*MODALITIES, *segments).index)
        sign = BY_IMPORTANCE[order]
        return sorted(neutral, key=lambda modality: sign * importance.get(modality, 0.0))
    if order == "written":
        return list(segments)
    if order == "random":
        return sorted(segments, key=lambda modality: digest(seed, clip.clip_id, modality))
    first = order.removesuffix("-first")
    if order == "planted-first":
        first = (clip.extra.get("planted") or {}).get("dominant", "")
        if not first:
            raise InputError(f"clip {clip.clip_id}: nobody planted a modality in it; --order planted-first needs one")
    return sorted(segments, key=lambda modality: modality != first)


def main() -> None:
    """Read the files, assign the sentences of free texts, order the segments, write the targets."""
    # Config
    args = arguments()
    labels = find_labels(args.labels, args.clips)
    if args.order not in ORDERS:
        raise InputError(f"--order {args.order!r} is not one of {', '.join(ORDERS)}")
    if args.order in BY_IMPORTANCE and args.importance is None:
        raise InputError(f"--order {args.order} needs --importance (importance.jsonl of stages/importance.py)")
    if bool(args.rewrite) != bool(args.rewriter):
        raise InputError("--rewrite llm and --rewriter (a model folder, or endpoint:URL#MODEL) go together")
    if (args.assigner == "llm") != (args.assigner_model is not None):
        raise InputError("--assigner llm and --assigner_model (a model folder) go together")

    # Data
    clips = read_clips(args.clips, labels, split=args.split)
    read = [(path, match(path, read_reasoning(path, args.reasoning_format), clips)) for path in args.reasoning]
    reasoning, source = merge(read), ", ".join(map(str, args.reasoning))
    weights = read_importance(args.importance) if args.importance else {}
    left: dict[str, list[str]] = {reason: [] for reason in REASONS}
    for clip in clips:
        if clip.label is None:
            raise InputError(f"{args.clips}: clip {clip.clip_id} has no label, which a target needs")
        if clip.clip_id not in reasoning:
            left["missing"].append(clip.clip_id)
            continue
        row = reasoning[clip.clip_id]
        check(row, f"{source}: clip {clip.clip_id}")
        order_of(clip, {}, args.order, weights.get(clip.clip_id))  # what it needs is there
        if "answer" in row and labels.canonical(str(row["answer"])) != clip.label:
            left["answer"].append(clip.clip_id)
        if row.get("names_other"):
            left["names_other"].append(clip.clip_id)

    # Run
    refuse(args, source, left, "missing", "no reasoning for", len(clips))
    refuse(args, source, left, "answer", "the reasoning answers another emotion than the label of", len(clips))
    if claim(args.out, run_config(args, labels), [args.out], args.overwrite):
        print(f"targets: {args.out} is finished already")
        return
    out = {name for reason in args.leave_out for name in left[reason]}
    texts = {
        c.clip_id: reasoning[c.clip_id]["text"]
        for c in clips
        if c.clip_id in reasoning and c.clip_id not in out and "segments" not in reasoning[c.clip_id]
    }
    file = args.out.with_name(f"{args.out.stem}.sentences.jsonl")
    sentences = assign(texts, file, args) if texts else {}
    left["unassigned"] = [name for name, pairs in sentences.items() if not any(names for _, names in pairs)]
    left["unassigned"] += [name for name, row in reasoning.items() if row.get("segments") == {} and name not in out]
    refuse(args, source, left, "unassigned", "no sentence speaks of a modality in", len(clips))
    out = {name for reason in args.leave_out for name in left[reason]}
    plans: dict[str, Evidence] = {}
    for clip in clips:
        if clip.clip_id in out:
            continue
        row, importance = reasoning[clip.clip_id], weights.get(clip.clip_id)
        segments, conclusion = row.get("segments"), row.get("conclusion", "")
        if segments is None:
            modalities = [modality for _, names in sentences[clip.clip_id] for modality in names]
            every = dict.fromkeys((*modalities, *MODALITIES), "")  # as they come up
            # in every order alike, what speaks of several modalities goes with the more important one
            rank = order_of(clip, every, "dominant-first", importance or {})
            sequence = order_of(clip, every, args.order, importance, args.seed)
            arranged = arrange(sentences[clip.clip_id], sequence, rank)
            segments, conclusion = arranged.segments, arranged.conclusion
        order = order_of(clip, segments, args.order, importance, args.seed)
        ordered = {modality: segments[modality] for modality in order}
        plans[clip.clip_id] = Evidence(clip.clip_id, clip.label or "", ordered, conclusion)
    refused = rewrite_all(plans, args, labels) if args.rewrite else []
    targets: list[Row] = []
    faults: list[Row] = []
    for clip in clips:
        if (plan := plans.get(clip.clip_id)) is None:
            continue
        order, importance = list(plan.segments), weights.get(clip.clip_id)
        try:
            target = render(plan.segments, plan.conclusion, plan.label, order)
        except InputError as error:
            raise InputError(f"{source}: clip {clip.clip_id}: {error}") from None
        prompt = question_about(clip, labels.labels)
        targets.append(
            {"clip_id": clip.clip_id, "prompt": prompt, "target": target, "order": order, "label": clip.label}
        )
        if reasons := faults_of(parse(target), importance or {}, clip.modalities):
            faults.append({"clip_id": clip.clip_id, "lacks": reasons})
    if not targets:
        raise InputError(f"{source}: no clip is left to write a target for")

    # Save
    write_jsonl(args.out, targets)
    finish(args.out)
    first = Counter(row["order"][0] for row in targets)
    counts = ", ".join(f"{first[m]} start with {m}" for m in MODALITIES if first[m])
    omissions = [f"{len(left[reason])} {reason.replace('_', ' ')}" for reason in args.leave_out if left[reason]]
    notes = f"; left out: {', '.join(omissions)}" if omissions else ""
    notes += f"; {len(refused)} refused" if refused else ""
    if left["names_other"] and "names_other" not in args.leave_out:
        notes += f"; {len(left['names_other'])} have a description that names another emotion"
    print(f"targets: {len(targets)} ({counts}{notes}) -> {args.out}")
    tell_faults(faults, len(targets), args.out.with_name(f"{args.out.stem}.rewards.jsonl"))


def rewrite_all(plans: dict[str, Evidence], args: argparse.Namespace, labels: LabelSet) -> list[Row]:
    """Have a language model write the plans anew; what it is refused leaves them, and comes back as rows."""
    file, refusals = (args.out.with_name(f"{args.out.stem}.{name}.jsonl") for name in ("rewritten", "refused"))
    engine = settings_of(EngineSettings, args)
    writer, judge = open_writer(args.rewriter, engine), open_judge(args.judge, labels, engine=engine)
    rows = rewrite_into(file, list(plans.values()), writer, judge, labels)
    refused = [row for row in rows if "refused" in row]
    write_jsonl(refusals, refused)
    for reason, what in REFUSALS.items():
        if names := [row["clip_id"] for row in refused if row["refused"] == reason]:
            print(
                f"  {len(names)} refused, {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''} ({refusals})"
            )
    for row in rows:
        plan = plans.pop(row["clip_id"])
        if "refused" not in row:
            plans[plan.clip_id] = replace(plan, segments=row["segments"], conclusion=row["conclusion"])
    return refused


def tell_faults(faults: Sequence[Row], n: int, file: Path) -> None:
    """Say how many targets would not earn full rewards in GRPO, and why; which these are goes into a file."""
    if not faults:
        file.unlink(missing_ok=True)  # of an earlier run
        return
    write_jsonl(file, faults)
    print(f"  {len(faults)} of {n} would not earn full rewards (docs/rewards.md), see {file}:")
    for reason, what in FAULTS.items():
        if names := [row["clip_id"] for row in faults if reason in row["lacks"]]:
            print(f"    {len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}")


def assign(texts: Mapping[str, str], file: Path, args: argparse.Namespace) -> dict[str, list[Assigned]]:
    """Split the texts, assign their sentences, and write both to a file; what a language model has said is kept."""
    pieces = {name: split(text) for name, text in texts.items()}
    if args.assigner == "lexicon":
        assigned = {name: [(sentence, modalities_of(sentence)) for sentence in parts] for name, parts in pieces.items()}
        write_jsonl(file, ({"clip_id": name, "by": "lexicon", "sentences": parts} for name, parts in assigned.items()))
        return assigned
    from migr.engine import open_engine

    by = f"{args.assigner_model.resolve().name}-{model_digest(args.assigner_model)[:8]}"
    with Growing(file) as out:
        rows = {row["clip_id"]: row for row in read_jsonl(file, ["clip_id", "by", "sentences"])}
        for name, row in rows.items():
            if row["by"] != by or [sentence for sentence, _ in row["sentences"]] != pieces.get(name):
                raise InputError(
                    f"{file}: clip {name} is of another run or text: delete the file, or give another --out"
                )
        todo = {name: parts for name, parts in pieces.items() if name not in rows}
        if todo:
            options = settings_of(EngineSettings, args).options()
            with open_engine(args.assigner_model, max_new_tokens=8, **options) as engine:
                answers = ask_modalities(engine, engine.task.inputs.processor, chain.from_iterable(todo.values()))
                for name, parts in tqdm(todo.items(), "assigning", len(pieces), initial=len(rows), unit="clip"):
                    pairs = list(zip(parts, islice(answers, len(parts)), strict=True))
                    rows[name] = {"clip_id": name, "by": by, "sentences": pairs}
                    out.append(rows[name])
    return {name: [(sentence, tuple(pairs)) for sentence, pairs in rows[name]["sentences"]] for name in pieces}


def ask_modalities(engine: Any, processor: Any, sentences: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """What a language model says the sentences are about, in order; it can answer nothing but one of `CHOICES`.

    Args:
        engine: An open `migr.engine` engine, greedy.
        processor: Its processor.
        sentences: Read only as fast as they are answered.
    """
    from migr.engine import Request
    from migr.omni.prompt import render_prompt

    def request(number: int, sentence: str) -> Any:
        ask = ASK.format(sentence=sentence.replace("<|", "< |"))  # a special token's name is plain text here
        return Request(f"sentence {number}", render_prompt(processor, ask, False, False), choices=tuple(CHOICES))

    requests = (request(number, sentence) for number, sentence in enumerate(sentences, 1))
    for generation in engine.generate(requests):
        yield CHOICES[generation.text]


def refuse(args: argparse.Namespace, source: str, left: dict[str, list[str]], reason: str, what: str, n: int) -> None:
    """One error for all clips that cannot have a target, unless they are to be left out."""
    if left[reason] and reason not in args.leave_out:
        raise InputError(f"{source}: {what} {told(left[reason], n)}; to go on without: --leave_out {reason}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
