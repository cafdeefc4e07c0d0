"""GRPO's sampling by a server: a process of its own answers as the trainer's model does, after every sync."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from http.server import HTTPServer, SimpleHTTPRequestHandler
from types import SimpleNamespace
from urllib.parse import urlsplit

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import pytest
import torch
from conftest import ROOT, flags
from launching import logged, needs_compiler, run, two_processes
from rollout_trainer import greedy_of_trainer, greedy_of_vllm, make_trainer, prompts_of

from migr.clips.manifest import read_clips
from migr.errors import InputError
from migr.omni.load import load_thinker, media_token_ids
from migr.rollout.checkpoint import base_digest
from migr.rollout.merging import adapter_tensors
from migr.rollout.protocol import pack, unpack
from migr.rollout.remote import ask, find_server, server_url

SCRIPT = ROOT / "stages" / "rollout_server.py"


@contextmanager
def started(model, log, **options):
    """A server on a free port of this machine, which may still be loading; (process, its log)."""
    command = [sys.executable, SCRIPT, *flags(model=model, port=0, batch_size=8, **options)]
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=120)
        process.stdout.close()


def address(process, log):
    """Wait until the server is ready; its address."""
    line = process.stdout.readline()  # empty if it has ended
    assert line.startswith("rollout server: "), log.read_text()
    return line.split()[-1]


def said(model, url, timeout=0.0):
    """The fields of GRPOConfig that find_server reads."""
    return SimpleNamespace(vllm_server_base_url=url, vllm_server_host="0.0.0.0", vllm_server_timeout=timeout)  # noqa: S104


@pytest.fixture(scope="module")
def clips(planted_run):
    """Clips with picture and sound, then without one of them."""
    both = read_clips(planted_run.clips, split="train")[:3]
    return [
        *both,
        replace(both[0], clip_id="silent", has_audio=False),
        replace(both[1], clip_id="blind", has_video=False),
    ]


@pytest.fixture(scope="module")
def process(warm_model, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with started(warm_model, log) as running:
        yield running, log


@pytest.fixture(scope="module")
def url(process):
    return address(*process)


# Messages


def test_a_message_comes_back_as_it_was_sent():
    tensors = {"a/b": torch.randn(3, 2), "c": torch.randn(2).bfloat16(), "d": torch.tensor([[1, 2]])}
    words, found = unpack(pack({"w": [1, None, "ü"]}, {**tensors, "t": tensors["a/b"].T}))
    assert words == {"w": [1, None, "ü"]}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(found["t"], tensors["a/b"].T)
    assert unpack(pack([], {})) == ([], {})


@pytest.mark.parametrize("message", [b"", b"\x80\x04N.", b"\xff" * 40, pack(1, {})[:-3], b"\x02" + b"\0" * 7 + b"{}"])
def test_anything_else_is_no_message(message):
    with pytest.raises(InputError, match="not a message"):
        unpack(message)


def test_a_copy_of_a_model_is_the_same_model_and_another_one_is_not(warm_model, base_model, tmp_path):
    copy = shutil.copytree(warm_model, tmp_path / "copy", copy_function=shutil.copyfile)
    assert base_digest(str(copy)) == base_digest(str(warm_model)) != base_digest(str(base_model))


# A server that is not there, or is another


def test_no_server_is_one_line_with_the_command_that_starts_it(warm_model, capsys):
    with pytest.raises(InputError) as error:
        find_server(said(warm_model, "http://127.0.0.1:9"), str(warm_model))
    assert "no rollout server answers at http://127.0.0.1:9 after 0 s (Connection refused)" in str(error.value)
    assert f"python stages/rollout_server.py --model {warm_model} --port 9" in str(error.value)
    with pytest.raises(InputError):
        find_server(said(warm_model, "http://127.0.0.1:9", timeout=0.5), str(warm_model))
    assert "waiting up to 0 s for the rollout server" in capsys.readouterr().out


def test_an_address_is_read_as_trl_names_it():
    config = SimpleNamespace(vllm_server_base_url=None, vllm_server_host="0.0.0.0", vllm_server_port=8000)  # noqa: S104
    assert server_url(config) == "http://127.0.0.1:8000"
    config.vllm_server_base_url = "https://gpu7:81/under/"
    assert server_url(config) == "https://gpu7:81/under"
    for bad in ("gpu7:8000", "ftp://gpu7", "http://gpu7:x", "http://"):
        config.vllm_server_base_url = bad
        with pytest.raises(InputError, match="no address of a server"):
            server_url(config)


def test_another_program_at_the_address_is_named(warm_model):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="no rollout server of migr"):
            find_server(said(warm_model, f"http://127.0.0.1:{other.server_address[1]}", 5.0), str(warm_model))
        other.shutdown()


def test_a_server_that_cannot_start_says_why(stage, warm_model, tmp_path, url):
    load_thinker(warm_model).save_pretrained(tmp_path / "alone")
    for options, complaint in (
        ({"model": tmp_path / "none"}, "no such folder"),
        ({"model": tmp_path / "alone"}, r"stages/export\.py"),
        ({"model": warm_model, "max_model_length": 0}, "max_model_length: must be at least 1"),
        ({"model": warm_model, "dtype": "int8"}, "--dtype: invalid choice: 'int8'"),
        ({"model": warm_model, "port": urlsplit(url).port}, "cannot listen there"),
    ):
        with pytest.raises(InputError, match=complaint):
            stage("rollout_server", **options)


# The trainer with the server


@pytest.fixture(scope="module")
def trainer(warm_model, sft_adapter, omni_inputs, clips, url, tmp_path_factory):
    server = {"vllm_mode": "server", "vllm_server_base_url": url, "max_steps": 2}
    return make_trainer(warm_model, sft_adapter, omni_inputs, clips, tmp_path_factory.mktemp("remote"), **server)


def test_after_each_sync_the_server_answers_as_the_trainers_model_and_training_goes_on(trainer, clips):
    trainer.rollouts.sync()
    first = greedy_of_trainer(trainer, clips)
    assert greedy_of_vllm(trainer, clips) == first
    assert len({tuple(answer) for answer in first}) > 2  # the media decide, else this would show little
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    trainer.train()

    learns = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    changed = {n for n, weight in trainer.model.named_parameters() if not torch.equal(before[n], weight)}
    assert changed and changed <= learns
    log = [row for row in trainer.state.log_history if "loss" in row]
    assert len(log) == 2
    for row in log:
        assert math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
        # the gap between the two programs; it also covers the mass of the media tokens, which vLLM never samples
        gap = {name: row[f"sampling/sampling_logp_difference/{name}"] for name in ("mean", "max")}
        assert 0.0 <= gap["mean"] <= gap["max"] < 3e-2

    second = greedy_of_trainer(trainer, clips)
    assert second != first, "the steps were too small to show anything"
    assert greedy_of_vllm(trainer, clips) != second, "the server has not got these weights yet"
    trainer.rollouts.sync()
    assert greedy_of_vllm(trainer, clips) == second


def test_samples_depend_on_the_step_and_the_row_and_are_drawn_again_alike(trainer, clips):
    rows = [clips[0]] * 3 + [clips[-1]]
    prompts = prompts_of(trainer.omni, rows)
    first, logprobs = trainer.rollouts.sample(prompts, rows, step=7)
    assert trainer.rollouts.sample(prompts, rows, step=7) == (first, logprobs)
    assert trainer.rollouts.sample(prompts, rows, step=8)[0] != first
    assert len({tuple(ids) for ids in first[:3]}) > 1
    assert all(len(ids) == len(values) and max(values) <= 0.0 for ids, values in zip(first, logprobs, strict=True))
    assert not set(media_token_ids(trainer.omni.processor)) & {token for ids in first for token in ids}


def test_a_clips_media_travel_once_however_many_samples_it_gets(trainer, clips, monkeypatch):
    sent = []
    monkeypatch.setattr(trainer.rollouts.vllm, "_ask", lambda _, message: sent.append(message) or {"drawn": []})
    for count in (1, 4):
        rows = [clips[0]] * count
        with pytest.raises(ValueError, match="zip"):  # nothing was drawn
            trainer.rollouts.sample(prompts_of(trainer.omni, rows), rows, step=0)
    assert len(sent[1]) - len(sent[0]) < 200


def test_several_ask_at_once_and_weights_change_between(trainer, clips):
    rows = clips * 2
    prompts = prompts_of(trainer.omni, rows)
    alone = [trainer.rollouts.sample(prompts, rows, step=step) for step in range(3)]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(trainer.rollouts.sample, prompts, rows, step) for step in range(3)]
        message = pack(*adapter_tensors(trainer.model, lambda _: torch.no_grad()))
        same = pool.submit(ask, trainer.rollouts.vllm.url, "/weights", message)
        together = [future.result(timeout=120) for future in asked]
        assert same.result(timeout=120) == {"weights": trainer.rollouts.vllm.version}
    for (ids, logprobs), (others, their) in zip(alone, together, strict=True):
        assert ids == others
        for values, theirs in zip(logprobs, their, strict=True):
            assert values == pytest.approx(theirs, abs=1e-4)


# What the server refuses


def test_a_server_with_another_base_model_is_refused(base_model, url):
    with pytest.raises(InputError, match=r"another base model \(.*\) than training .*; start it with the same one"):
        find_server(said(base_model, url, timeout=5.0), str(base_model))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"vllm_max_model_length": 10**6}, None),  # no more than the model can do, which is what the server takes
        ({"generation_kwargs": {"temprature": 1}}, "generation_kwargs: vLLM does not take them.*temprature"),
    ],
)
def test_settings_are_tried_before_training(
    config, complaint, warm_model, sft_adapter, omni_inputs, clips, url, tmp_path
):
    def make():
        server = {"vllm_mode": "server", "vllm_server_base_url": url, "max_steps": 1}
        make_trainer(warm_model, sft_adapter, omni_inputs, clips, tmp_path, **server, **config)

    if complaint is None:
        make()
    else:
        with pytest.raises(InputError, match=complaint):
            make()


def test_weights_of_another_run_and_messages_that_are_none_are_refused_and_the_server_goes_on(
    trainer, warm_model, sft_adapter, clips
):
    remote, prompts = trainer.rollouts.vllm, prompts_of(trainer.omni, clips)
    model = load_thinker(warm_model, adapter=sft_adapter)
    scales, tensors = adapter_tensors(model, lambda _: torch.no_grad())
    other = ask(remote.url, "/weights", pack(scales, tensors))["weights"]
    assert other != remote.version
    with pytest.raises(InputError, match="the server has other weights by now"):
        trainer.rollouts.sample(prompts, clips, step=0)
    settings = {"max_tokens": 4, "temperature": 0.0}
    words = {"settings": settings, "weights": other, "prompts": [["text", [5] * 8], ["text", [5] * 10**6]]}
    for path, message, complaint in (
        ("/weights", pack({"thinker.nowhere": 1.0}, {}), "does not fit .* at thinker.nowhere"),
        ("/sample", b"no message", "not a message"),
        ("/sample", pack({"settings": {**settings, "max_tokens": 0}, "draws": []}, {}), "max_tokens"),
        ("/sample", pack({"settings": settings}, {}), "cannot be used"),
        ("/sample", pack({**words, "draws": [[0, 1], [1, 1]]}, {}), "cannot be used|must have ids"),
        ("/elsewhere", b"", "no such path"),
    ):
        with pytest.raises(InputError, match=complaint):
            ask(remote.url, path, message)
    parts = urlsplit(remote.url)
    connection = HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.request("POST", "/sample", None, {"Content-Length": str(2**40)})
    answer = connection.getresponse()
    assert answer.status == 413 and "Content-Length" in json.loads(answer.read())["error"]
    connection.close()
    trainer.rollouts.sync()
    assert len(trainer.rollouts.sample(prompts, clips, step=0)[0]) == len(clips)


def test_numbers_that_are_not_finite_are_refused_and_leave_nothing_behind(trainer, clips, monkeypatch):
    """vLLM's cache once kept NaN for later requests, with good weights and media too."""
    remote, nan = trainer.rollouts.vllm, float("nan")
    trainer.rollouts.sync()
    expected = greedy_of_vllm(trainer, clips)
    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_ask", lambda _, message: sent.append(message) or {"drawn": []})
        with pytest.raises(ValueError, match="zip"):  # nothing was drawn
            greedy_of_vllm(trainer, clips)
    words, features = unpack(sent[0])
    scales, tensors = adapter_tensors(trainer.model, lambda _: torch.no_grad())
    picture, sound = (next(name for name in features if name.endswith(end)) for end in ("_videos", "input_features"))
    weight = min(tensors)
    for path, message in (
        ("/weights", pack(scales, {**tensors, weight: torch.full_like(tensors[weight], nan)})),
        ("/weights", pack(scales, {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()})),
        ("/sample", pack(words, {**features, picture: torch.full_like(features[picture], nan)})),
        ("/sample", pack(words, {**features, sound: torch.full_like(features[sound], -math.inf)})),
    ):
        with pytest.raises(InputError, match="not finite"):
            ask(remote.url, path, message)
        trainer.rollouts.sync()
        for _ in range(2):
            assert greedy_of_vllm(trainer, clips) == expected
    logprobs = trainer.rollouts.sample(prompts_of(trainer.omni, clips), clips, step=0)[1]
    assert all(math.isfinite(value) for values in logprobs for value in values)


# The stage, on one process and on two


@pytest.mark.slow
def test_the_stage_trains_with_a_server_and_resumes_exactly_with_another_one(
    stage, training, planted_run, warm_model, sft_adapter, process, url, tmp_path
):
    shared = {**training, "model": warm_model, "adapter": sft_adapter, "importance": planted_run.importance}
    shared |= {"limit": 4, "max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4}
    shared |= {"max_completion_length": 48, "use_vllm": "true", "learning_rate": 2e-3, "temperature": 0.7, "beta": 0.04}
    shared |= {"vllm_mode": "server"}
    stage("grpo", **shared, vllm_server_base_url=url, output_dir=tmp_path / "whole")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "whole" / "run.json", tmp_path / "again")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    with started(warm_model, tmp_path / "log") as other:
        port = urlsplit(address(other, tmp_path / "log")).port
        stage("grpo", **shared, vllm_server_port=port, output_dir=tmp_path / "again")
    keys = ("step", "loss", "grad_norm", "kl", "reward", "sampling/sampling_logp_difference/mean")
    whole, again = (logged(tmp_path / name, *keys) for name in ("whole", "again"))
    assert [row[0] for row in whole] == [1, 2, 3]
    assert whole == [pytest.approx(row, abs=1e-6) for row in again]


@pytest.mark.slow
@needs_compiler
def test_two_processes_under_zero3_share_a_server(training, planted_run, warm_model, sft_adapter, url, tmp_path):
    own = {"model": warm_model, "adapter": sft_adapter, "importance": planted_run.importance, "limit": 4}
    own |= {"use_vllm": "true", "vllm_mode": "server", "vllm_server_base_url": url, "max_steps": 2, "beta": 0.04}
    own |= {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 48, "learning_rate": 0.01}
    script = [ROOT / "stages" / "grpo.py", *flags(**{**training, **own, "output_dir": tmp_path / "two"})]
    run(tmp_path, [*two_processes("zero3_cpu.yaml"), *script])
    gaps = logged(tmp_path / "two", "sampling/sampling_logp_difference/mean")
    assert len(gaps) == 2 and all(0 <= gap < 3e-2 for (gap,) in gaps)  # as above


# The end of the server; last, as the others need it


def test_a_server_that_dies_is_named_with_the_way_on(trainer, clips, process):
    process[0].send_signal(signal.SIGKILL)
    process[0].wait(timeout=30)
    for ask_it in (trainer.rollouts.sync, lambda: greedy_of_vllm(trainer, clips)):
        with pytest.raises(InputError) as error:
            ask_it()
        assert "has stopped answering (Connection refused); start it again (python stages/" in str(error.value)
        assert "it goes on from its last checkpoint" in str(error.value)
