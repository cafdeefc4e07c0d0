"""Reasoning of planted clips by an annotator of a known coherence, in the words that the tiny model can learn.

    python stages/demo/annotate.py --clips runs/demo/clips/clips.jsonl --coherence 0.6 --written video-first \
        --out runs/drift/video-first.jsonl

The second description follows the first one's emotion with probability `--coherence`, else its own
(`migr/planted/annotators.py`). `--written dominant-first` is an annotator who begins with the clearer modality. The
demo's own targets come from one who describes each modality for itself and errs as captions do (`--caption_errors`).
"""

from collections import Counter
from pathlib import Path

from migr.cli import Parser
from migr.errors import InputError, exit_on_input_error
from migr.files.records import read_jsonl, write_jsonl
from migr.planted.annotators import WRITTEN, Annotator
from migr.planted.captions import CAPTION_ERRORS, captioned


def main() -> None:
    """Describe the clips of a split, write the descriptions."""
    # Config
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--clips", type=Path, required=True, help="clips.jsonl of the planted benchmark")
    add("--out", type=Path, required=True, help="reasoning.jsonl to write")
    add("--coherence", type=float, default=0.0, help="probability that the second description follows the first")
    add("--written", choices=WRITTEN, default=WRITTEN[0], help="which modality is described first")
    add("--mistakes", type=float, default=0.0, help="how often the first is told as any other emotion (default 0)")
    errors = f"how often what is easily mistaken is (default 0; without a value {CAPTION_ERRORS}, as base.py's)"
    add("--caption_errors", type=float, nargs="?", const=CAPTION_ERRORS, default=0.0, help=errors)
    add("--split", default="train", help="split of the clips")
    add("--seed", type=int, default=0, help="draws what is followed and what is mistaken")
    args = parser.parse_args()
    annotator = Annotator(args.coherence, args.written, args.mistakes)

    # Data
    rows = read_jsonl(args.clips, ("clip_id", "split"))
    clips = [row for row in rows if row["split"] == args.split and row.get("planted")]
    if not clips:
        raise InputError(f"{args.clips}: no planted clip of split {args.split!r}")

    # Run, save
    by = f"annotator, coherence {args.coherence:g}, {args.written}"
    texts = [{**captioned(clip, args.seed, annotator, args.caption_errors), "by": by} for clip in clips]
    write_jsonl(args.out, texts)
    first = Counter(next(iter(row["segments"])) for row in texts)
    counts = ", ".join(f"{number} begin with {modality}" for modality, number in sorted(first.items()))
    print(f"annotate: {len(texts)} clips ({counts}; {by}) -> {args.out}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
