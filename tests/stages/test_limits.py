"""Every command that reads a clip takes `max_seconds`, gives up on a clip in time, and names it."""

import pytest
from conftest import MEDIA, flags

import eval.consistency
import eval.explain
import eval.grounding
from eval.explain import explain
from migr.clips import timeline
from migr.clips.manifest import read_clips
from migr.clips.media import MediaError
from migr.files.records import read_jsonl, write_jsonl
from migr.settings import DecodingSettings, MediaSettings
from migr.text.labels import label_set


@pytest.fixture
def commands(stage, training, planted_run, warm_model, sft_adapter, tmp_path):
    """Command -> a function that runs it without a cache of decoded clips; of each, half a second may be read."""
    without = {key: value for key, value in training.items() if key != "cache_dir"} | {"max_seconds": 0.5}
    reading = {"clips": planted_run.clips, "model": warm_model, **MEDIA, "max_seconds": 0.5}
    targets = {"model": warm_model, "targets": planted_run.targets, "lora_r": 4, "max_steps": 1}
    grpo = {"model": warm_model, "adapter": sft_adapter, "importance": planted_run.importance, "max_steps": 1}
    grpo |= {"num_generations": 4, "per_device_train_batch_size": 4}
    (row, *_) = read_jsonl(planted_run.targets)
    predictions = tmp_path / "predictions.jsonl"
    write_jsonl(predictions, [{"clip_id": row["clip_id"], "label": row["label"], "response": row["target"]}])
    engine = {**reading, "engine": "transformers"}
    out = tmp_path / "out"
    path = read_clips(planted_run.clips)[0].path
    settings = MediaSettings(**MEDIA, max_seconds=0.5), DecodingSettings(max_new_tokens=1)
    return {
        "importance": lambda: stage("importance", **reading, folds=2, out=out),
        "describe": lambda: stage("describe", **engine, out=out / "reasoning.jsonl"),
        "sft": lambda: stage("sft", **without, **targets, output_dir=out),
        "sft with a cache": lambda: stage("sft", **without, **targets, output_dir=out, cache_dir=tmp_path / "cache"),
        "grpo": lambda: stage("grpo", **without, **grpo, output_dir=out),
        "consistency": lambda: eval.consistency.main(flags(**engine, judge="lexicon", out=out)),
        "grounding": lambda: eval.grounding.main(flags(**engine, predictions=predictions, out=out)),
        "explain": lambda: explain(path, warm_model, None, label_set("dfew"), *settings),
    }


NAMES = ["importance", "describe", "sft", "sft with a cache", "grpo", "consistency", "grounding", "explain"]


@pytest.mark.parametrize("name", NAMES)
def test_reports_2_17_a_clip_that_is_too_long_or_takes_too_long_is_named(name, commands, monkeypatch):
    with pytest.raises(MediaError, match=r"\.mp4: .* longer than max_seconds = 0\.5; cut the clip or raise it"):
        commands[name]()
    monkeypatch.setattr(timeline.Limit.__init__, "__defaults__", (0.0,))
    with pytest.raises(MediaError, match=r"\.mp4: not read within 0 s; transcode or leave out"):
        commands[name]()
