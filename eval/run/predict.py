"""Generate predictions and judge them: files that grow clip by clip, so that an interrupted run goes on.

One process generates, or several, each a shard; what they write is the same. Clips are cut into blocks of the batch
size, blocks are dealt to the shards, and a block that was interrupted is generated whole again (with transformers a
clip's batch can change the last digits of its logits), so that neither shards nor interruptions change a response.
"""

import os
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from eval.figures.tally import PREDICTION_KEYS
from migr.clips.manifest import Clip, read_clips
from migr.errors import InputError
from migr.files.claim import BESIDE as _BESIDE
from migr.files.fingerprint import file_digest, model_digest
from migr.files.growing import Growing, Journal, alone, busy, ids_in, merge, part, parts, shard_of
from migr.files.records import Row, iter_jsonl, read_jsonl
from migr.judge.base import Judge, judgement_row
from migr.judge.hidden import HidingJudge
from migr.machine import ahead
from migr.settings import DecodingSettings, EngineSettings, MediaSettings
from migr.text.format import parse
from migr.text.labels import LabelSet

if TYPE_CHECKING:
    from migr.engine import Engine, Generation, Request

_DEATHS = 2  # the engine died so often with a clip, the last time with this clip alone: it is left out
_JUDGED_AT_ONCE = 64


@dataclass(frozen=True)
class GenerationSettings:
    """Which clips are asked about, which model is asked, and how.

    Attributes:
        model: Model folder.
        clips: clips.jsonl.
        labels: What may be answered.
        prompt: The question; the model's own, where it was trained with another.
        media: How clips are read.
        engine: What generates; resolved, not "auto".
        decoding: How answers are drawn.
        split: Split of the clips.
        limit: The first so many clips of the split only.
        cache_dir: Folder of decoded clips.
        shard: "K/N", the K-th of N parts; None asks torchrun's environment.
    """

    model: Path
    clips: Path
    labels: LabelSet
    prompt: str
    media: MediaSettings
    engine: EngineSettings
    decoding: DecodingSettings
    split: str = "test"
    limit: int | None = None
    cache_dir: Path | None = None
    shard: str | None = None


def chosen_clips(settings: GenerationSettings) -> list[Clip]:
    """The labelled clips of the split, at most `limit` of them.

    Raises:
        InputError: The manifest is wrong, or none of the split's clips has a label.
    """
    clips = read_clips(settings.clips, settings.labels, split=settings.split)
    labelled = [clip for clip in clips if clip.label is not None]
    if not labelled:
        raise InputError(f"{settings.clips}: no clip of split {settings.split!r} has a label to compare with")
    if len(labelled) < len(clips):
        print(f"evaluation: {len(clips) - len(labelled)} of {len(clips)} clips have no label and are left out")
    return labelled[: settings.limit]


def read_answered(predictions: Path, settings: GenerationSettings) -> tuple[list[Row], dict[str, Clip]]:
    """The rows of predictions.jsonl, and the clips that they answer about, by id.

    Raises:
        InputError: There is none, a clip is not in the manifest, or a response is no text.
    """
    by_id = {clip.clip_id: clip for clip in read_clips(settings.clips, settings.labels)}
    rows = read_jsonl(predictions, PREDICTION_KEYS, unique="clip_id")
    for row in rows:
        if row["clip_id"] not in by_id:
            raise InputError(f"{predictions}: clip {row['clip_id']!r} is not in {settings.clips}")
        if not isinstance(row["response"], str):
            raise InputError(f"{predictions}: clip {row['clip_id']!r}: response must be text")
    if not rows:
        raise InputError(f"{predictions}: no predictions in it")
    return rows, {row["clip_id"]: by_id[row["clip_id"]] for row in rows}


def generation_config(settings: GenerationSettings) -> Row:
    """Everything that predictions depend on; a run is continued only where all of it is the same."""
    return {
        "model": model_digest(settings.model),
        "clips": file_digest(settings.clips),
        "split": settings.split,
        "label_set": settings.labels.as_record(),
        "prompt": settings.prompt,
        "media": asdict(settings.media),
        "decoding": {
            "engine": settings.engine.engine,
            "dtype": settings.engine.dtype,
            **asdict(settings.decoding),
        },
    }


def generate(clips: Sequence[Clip], settings: GenerationSettings, out: Path) -> bool:
    """Write a prediction for each clip that has none yet; with shards, for this shard's clips.

    Beside `out` stand timings.jsonl (`seconds` since the clip before was finished) and quarantined.jsonl (clips that
    the engine died on twice). The files of shards are merged by the one that ends last, in the clips' order.

    Returns:
        Whether the predictions are complete and it is this process that goes on with them.

    Raises:
        InputError: The model cannot be loaded, a clip cannot be read, a file cannot be written, or the engine dies
            again and again.
    """
    shard = shard_of(settings.shard, os.environ)
    order = [clip.clip_id for clip in clips]
    if shard[1] == 1 and (file := busy(parts(out))):
        raise InputError(f"{file}: another process is writing to it; wait for it, or give another --out")
    done = _finished(out)
    if done.issuperset(order):
        print(f"evaluation: {out} holds all {len(done)} predictions already")
        return _merged(out, order, shard) or shard[0] == 0
    _generate(clips, settings, out, shard, done)
    if _finished(out).issuperset(order) and _merged(out, order, shard):
        return True
    print(f"evaluation: shard {shard[0]} of {shard[1]} is done; the last one to end merges and counts")
    return False


def _finished(out: Path) -> set[str]:
    return ids_in(parts(out)) | ids_in(parts(out.with_name("quarantined.jsonl")))


def _merged(out: Path, order: Sequence[str], shard: tuple[int, int]) -> bool:
    """Put the files in the clips' order; says whether this process did it, or is the only one."""
    with alone(out.parent):
        first = shard[1] == 1 or len(parts(out)) > 1 or not out.exists()
        merge(out, order)
        for name in ("timings.jsonl", "quarantined.jsonl"):  # notes: a rerun after a power cut may write some again
            merge(out.with_name(name), order, latest=True)
    return first


def quarantined(folder: Path) -> list[Row]:
    """The clips that were left out because the engine died on them: `clip_id`, `label`, `reason`, `deaths`."""
    file = folder / "quarantined.jsonl"
    return read_jsonl(file, ("clip_id", "reason"), unique="clip_id") if file.exists() else []


def _generate(
    clips: Sequence[Clip], settings: GenerationSettings, out: Path, shard: tuple[int, int], done: set[str]
) -> None:
    """Generate this shard's pending clips, opening the engine again when it has died; adds them to `done`."""
    from migr.engine import AT_ONCE

    own_devices(os.environ, settings.engine.tensor_parallel)
    ask = asker(settings)
    backend = settings.engine.engine
    size = settings.engine.batch_size or AT_ONCE[backend]
    blocks = [clips[start : start + size] for start in range(0, len(clips), size)][shard[0] :: shard[1]]
    shard_clips = {clip.clip_id: clip for block in blocks for clip in block}
    files = [part(out.with_name(name), shard) for name in (out.name, *_BESIDE[:3])]
    stuck = False
    with (
        Growing(files[0]) as predictions,
        Growing(files[1]) as timings,
        Journal(files[3], done) as journal,
        tqdm(desc="generating", unit="clip", total=len(shard_clips), initial=len(done & shard_clips.keys())) as bar,
    ):
        while True:
            for name in journal.deaths.keys() & shard_clips.keys() - done:
                if len(causes := journal.deaths[name]) >= _DEATHS:
                    reason = "the engine died on it twice"
                    with Growing(files[2]) as left_out:
                        left_out.append(
                            {"clip_id": name, "label": shard_clips[name].label, "reason": reason, "deaths": causes}
                        )
                    done.add(name)
                    tqdm.write(f"evaluation: clip {name!r} is left out, {reason}: {'; '.join(causes)}")
            if done.issuperset(shard_clips):
                return
            before = len(done)
            try:
                with opened(settings) as engine:
                    start = time.monotonic()
                    for stream in _streams(blocks, done, journal, backend):
                        for answer in engine.generate(_asked(ask, stream, journal)):
                            if answer.key in done:
                                continue  # of a block that was interrupted
                            predictions.append(_row(answer, shard_clips[answer.key].label, settings.labels))
                            done.add(answer.key)
                            now = time.monotonic()
                            timings.append({"clip_id": answer.key, "seconds": round(now - start, 4)})
                            start = now
                            bar.update()
            except InputError:
                raise
            except OSError as error:
                raise InputError(f"{error.filename or out}: {error.strerror or error}") from error
            except Exception as error:  # whatever it was, a clip that the engine had may be the cause
                cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                lost = journal.died(cause)
                if not lost or (stuck and len(done) == before):
                    raise InputError(f"the engine died before it had answered for any clip ({cause})") from error
                stuck = len(done) == before
                tqdm.write(f"evaluation: the engine died ({cause}); the {len(lost)} clips it had are tried alone, last")


def _streams(blocks: Sequence[Sequence[Clip]], done: set[str], journal: Journal, engine: str) -> Iterator[list[Clip]]:
    """What is given to the engine in one go: blocks with something to do, then each clip on which it died before."""
    alone = [clip for block in blocks for clip in block if clip.clip_id in journal.deaths and clip.clip_id not in done]
    left = [[clip for clip in block if clip.clip_id not in journal.deaths] for block in blocks]
    if engine == "vllm":  # has no fixed batches, and must never wait for the end of a block
        yield [clip for block in left for clip in block if clip.clip_id not in done]
    else:
        yield from (block for block in left if any(clip.clip_id not in done for clip in block))
    yield from ([clip] for clip in alone)


def _asked(ask: "Callable[[Clip], Request]", stream: Sequence[Clip], journal: Journal) -> "Iterator[Request]":
    """Requests whose media are decoded ahead of the engine; a clip is the engine's from here on."""
    for clip, request in zip(stream, ahead(ask, stream), strict=True):
        journal.give(clip.clip_id)
        yield request


def question_for(clip: Clip, labels: LabelSet, prompt: str) -> str:
    """The question about this clip: ours names the clip's streams, another one stands as it is."""
    from migr.omni.prompt import question, question_about

    return question_about(clip, labels.labels) if prompt == question(labels.labels) else prompt


def asker(settings: GenerationSettings) -> Callable[[Clip], "Request"]:
    """A function that decodes a clip and asks the question about it."""
    from migr.engine import Request
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import load_processor
    from migr.omni.prompt import render_prompt

    processor = load_processor(settings.model)
    inputs = OmniInputs(processor, settings.media, settings.cache_dir)

    def ask(clip: Clip) -> Request:
        text = question_for(clip, settings.labels, settings.prompt)
        prompt = render_prompt(processor, text, clip.has_video, clip.has_audio)
        return Request(clip.clip_id, prompt, inputs.media(clip), inputs.media_keys(clip))

    return ask


def opened(settings: GenerationSettings) -> "Engine":
    """The engine that answers what `asker` asks."""
    from migr.engine import open_engine

    options = {**settings.engine.options(), **asdict(settings.decoding)}
    return open_engine(
        settings.model, **options, audio_in_video=settings.media.audio_in_video, cache_dir=settings.cache_dir
    )


def _row(answer: "Generation", label: str | None, labels: LabelSet) -> Row:
    response = parse(answer.text)
    return {
        "clip_id": answer.key,
        "label": label,
        "response": answer.text,
        "answer": response.label(labels),
        "order": list(response.order),
        "finished": answer.finished,
    }


def own_devices(environ: MutableMapping[str, str], tensor_parallel: int) -> None:
    """Leave a process that torchrun or accelerate started the GPUs that are its own; before the first one is used.

    Raises:
        InputError: There are fewer GPUs than the processes of this machine want.
    """
    import torch

    count = torch.cuda.device_count()
    if "LOCAL_RANK" not in environ or not count:
        return
    need = int(environ.get("LOCAL_WORLD_SIZE", 1)) * tensor_parallel
    if need > count:
        raise InputError(f"{need} GPUs are wanted (processes x --tensor_parallel), and there are {count}")
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else [str(number) for number in range(count)]
    start = int(environ["LOCAL_RANK"]) * tensor_parallel
    environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[start : start + tensor_parallel])


def judge_all(predictions: Path, judge: Judge, out: Path, total: int, labels: LabelSet | None = None) -> None:
    """Write the judgement of each prediction's reasoning that has none yet; the judge sees nothing else.

    Args:
        predictions: predictions.jsonl.
        judge: The judge.
        out: judgements.jsonl.
        total: How many predictions there are.
        labels: With them, right answers are judged twice: `emotion_hidden` is what the judge reads where it does not
            see the words that name an emotion. It is not asked again where there are none.
    """
    hiding = HidingJudge(judge, labels) if labels is not None and not isinstance(judge, HidingJudge) else None
    with alone(out.parent):
        with Growing(out) as file, tqdm(desc="judging", unit="clip", total=total) as bar:
            bar.update(len(done := ids_in([out])))
            rows = (row for row in iter_jsonl(predictions, PREDICTION_KEYS) if row["clip_id"] not in done)
            while batch := list(islice(rows, getattr(judge, "at_once", _JUDGED_AT_ONCE))):
                responses = [parse(row["response"]) for row in batch]
                texts = [response.plain for response in responses]
                judgements = judge.judge(texts)
                hidden = dict(enumerate(judgements))
                if hiding is not None and labels is not None:
                    again = [i for i, text in enumerate(texts) if hiding.hide(text) != text]
                    again = [i for i in again if responses[i].label(labels) == labels.canonical(str(batch[i]["label"]))]
                    hidden |= dict(zip(again, hiding.judge([texts[i] for i in again]), strict=True)) if again else {}
                for i, (row, judgement) in enumerate(zip(batch, judgements, strict=True)):
                    line = judgement_row(row["clip_id"], judge, judgement)
                    right = labels and responses[i].label(labels) == labels.canonical(str(row["label"]))
                    file.append(line | ({"emotion_hidden": hidden[i].emotion} if right else {}))
                    bar.update()
        merge(out, [row["clip_id"] for row in iter_jsonl(predictions, PREDICTION_KEYS)])
