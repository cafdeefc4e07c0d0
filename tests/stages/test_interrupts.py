"""Ctrl-C: a command ends within seconds in one line, leaves no process behind, and goes on when it is started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import odd_clips
import pytest
from conftest import MEDIA, ROOT, flags

from migr.files.records import read_json, read_jsonl

SECONDS = 20  # the commands need one or two; on a busy machine as long as they took to begin
COUNT = 200


def in_session(leader):
    """Processes of a session, but zombies: its leader's and whatever it has started."""
    alive = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if int(session) == leader and state != "Z":
            alive.append(folder.name)
    return alive


def interrupt(folder, script, arguments, begun):
    """Press Ctrl-C once `begun()`, then let the same command finish; what it says then."""
    command = [sys.executable, ROOT / script, *flags(**arguments)]
    start = {"cwd": folder, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    # a shell starts what stands in its background deaf to Ctrl-C, and so all that it starts
    start["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with (folder / "stderr").open("w") as err, (folder / "stdout").open("w") as out:
        process = subprocess.Popen([*map(str, command)], stdout=out, stderr=err, start_new_session=True, **start)
    try:
        start_time = time.monotonic()
        while not begun():
            assert process.poll() is None and time.monotonic() < start_time + 240, (folder / "stderr").read_text()
            time.sleep(0.05)
        limit = max(SECONDS, time.monotonic() - start_time)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the foreground
        assert process.wait(timeout=limit) == 130, (folder / "stderr").read_text()
        assert not in_session(process.pid)
    finally:
        if in_session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    message = (folder / "stderr").read_text()
    assert message.rstrip().endswith("interrupted; the same command goes on from what is done")
    assert "Traceback" not in message and "KeyboardInterrupt" not in message
    again = subprocess.run([*map(str, command)], capture_output=True, timeout=240, check=False, **start)
    assert again.returncode == 0, again.stdout + again.stderr
    return again.stdout


def lines_of(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_data_while_it_examines_clips(tmp_path):
    clip = odd_clips.late_sound(tmp_path / "clips").path
    for number in range(COUNT):
        os.link(clip, tmp_path / "clips" / f"{number}.mp4")
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"clips/{number}.mp4,sad\n" for number in range(COUNT)))
    arguments = {"source": "table", "table": table, "out": tmp_path / "out", "workers": 2}
    probes = tmp_path / "out" / "probes.jsonl"
    output = interrupt(tmp_path, "stages/data.py", arguments, lambda: lines_of(probes) >= 5)
    assert len(read_jsonl(tmp_path / "out" / "clips.jsonl")) == COUNT
    assert 0 < int(output.partition(" examined in")[0].split()[-1]) < COUNT  # what was done is not done again


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_training(kind, training, planted_run, warm_model, sft_adapter, tmp_path):
    own = {"sft": {"targets": planted_run.targets, "lora_r": 4}}
    own["grpo"] = {"adapter": sft_adapter, "importance": planted_run.importance, "num_generations": 4, "beta": 0.04}
    arguments = {**training, **own[kind], "model": warm_model, "max_steps": 16, "save_steps": 1, "learning_rate": 1e-3}
    arguments |= {"per_device_train_batch_size": 4, "output_dir": tmp_path / "run"}
    marker = tmp_path / "run" / "checkpoint-1" / "complete"
    output = interrupt(tmp_path, f"stages/{kind}.py", arguments, marker.exists)
    assert "going on from step" in output
    assert read_json(tmp_path / "run" / "done.json")["steps"] == 16


@pytest.mark.slow
def test_evaluation_while_it_generates(planted_run, warm_model, tmp_path):
    arguments = {"clips": planted_run.clips, "model": warm_model, "judge": "lexicon", "out": tmp_path / "run"}
    arguments |= {**MEDIA, "engine": "transformers", "split": "train", "batch_size": 1, "max_new_tokens": 90}
    predictions = tmp_path / "run" / "predictions.jsonl"
    interrupt(tmp_path, "eval/consistency.py", arguments, lambda: lines_of(predictions) >= 2)
    rows = read_jsonl(predictions)
    assert len(rows) == len({row["clip_id"] for row in rows}) == 28
