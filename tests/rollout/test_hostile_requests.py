"""A rollout server's requests: checked before vLLM sees them, and served to its own user's trainings alone."""

import os
import stat
import threading
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)

# isort: split
import numpy as np
import pytest
import torch

from migr.clips.media import Media
from migr.engine.task import Task
from migr.errors import InputError
from migr.omni.inputs import OmniInputs
from migr.omni.load import load_processor
from migr.omni.prompt import render_prompt
from migr.omni.tiny import build_tiny
from migr.rollout.checking import check_draw
from migr.rollout.protocol import KIND, LARGEST
from migr.rollout.token import VARIABLE, new_token, token_for
from migr.settings import MediaSettings
from stages.rollout_server import Handler, Server


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    texts = ["Which emotion? happy or sad. <answer>happy</answer>"] * 20
    processor = load_processor(build_tiny(tmp_path_factory.mktemp("model") / "tiny", texts))
    return Task(OmniInputs(processor, MediaSettings()), 64, 0.0, 0, 8, 4096)


@pytest.fixture
def draw(task):
    """(ids, features) of a clip with picture and sound."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 3, 56, 56), dtype=np.uint8)
    media = Media(frames, 2.0, rng.standard_normal(32_000).astype(np.float32) * 0.1, 2.0)
    features = task.inputs.process(media)
    prompt = render_prompt(task.inputs.processor, "Which emotion?", True, True)
    return task.inputs.prompt_ids(prompt, features), dict(features)


def test_what_a_trainer_sends_is_taken(task, draw):
    check_draw(task, *draw, seed=7)
    ids = task.inputs.prompt_ids(render_prompt(task.inputs.processor, "Which?", False, False), {})
    check_draw(task, ids, {}, seed=None)


def grid(*numbers):
    return lambda f: f.update(video_grid_thw=torch.tensor([numbers]))


SPOILT = {
    "a huge grid": grid(10**6, 10**6, 10**6),
    "a negative grid": grid(2, -4, -4),
    "no grid": grid(0, 4, 4),
    "another grid": grid(2, 2, 4),
    "an odd grid": grid(2, 3, 3),
    "a grid of fractions": lambda f: f.update(video_grid_thw=torch.tensor([[2.0, 4.0, 4.0]])),
    "two grids": lambda f: f.update(video_grid_thw=torch.cat([f["video_grid_thw"]] * 2)),
    "pixels of another width": lambda f: f.update(pixel_values_videos=f["pixel_values_videos"][:, :-1]),
    "fewer rows than the grid": lambda f: f.update(pixel_values_videos=f["pixel_values_videos"][:-1]),
    "pixels that are NaN": lambda f: f["pixel_values_videos"].fill_(float("nan")),
    "pixels that are whole": lambda f: f.update(pixel_values_videos=f["pixel_values_videos"].long()),
    "no time": lambda f: f.update(video_second_per_grid=torch.tensor([0.0])),
    "NaN for time": lambda f: f.update(video_second_per_grid=torch.tensor([float("nan")])),
    "other mel bins": lambda f: f.update(input_features=f["input_features"][:, :-1]),
    "a mask that is longer": lambda f: f.update(feature_attention_mask=torch.ones(1, 500, dtype=torch.long)),
    "a mask with holes": lambda f: f["feature_attention_mask"][0].fill_(0),
    "no frames": lambda f: f.update(
        input_features=f["input_features"][..., :0], feature_attention_mask=f["feature_attention_mask"][:, :0]
    ),
    "infinite sound": lambda f: f["input_features"].fill_(float("inf")),
    "half of a modality": lambda f: f.pop("video_grid_thw"),
    "an unknown tensor": lambda f: f.update(more=torch.zeros(1)),
    "no features": lambda f: f.clear(),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_features_that_do_not_fit_are_refused(kind, task, draw):
    ids, features = draw
    features = {name: tensor.clone() for name, tensor in features.items()}
    SPOILT[kind](features)
    with pytest.raises(InputError):
        check_draw(task, ids, features, seed=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: [],
        lambda ids: "text",
        lambda ids: [*ids, -1],
        lambda ids: [*ids, 10**9],
        lambda ids: [*ids, 1.5],
        lambda ids: [*ids, True],
        lambda ids: ids * 1000,
        lambda ids: ids + ids,
    ],
    ids=range(8),
)
def test_a_prompt_that_does_not_fit_is_refused(change, task, draw):
    ids, features = draw
    with pytest.raises(InputError):
        check_draw(task, change(ids), features, seed=1)


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5, "7", True])
def test_a_seed_that_is_none_is_refused(seed, task, draw):
    with pytest.raises(InputError, match="seed"):
        check_draw(task, *draw, seed=seed)


# Who is served


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server's HTTP side; what would be vLLM's repeats the message's length."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    running = Server(("127.0.0.1", 0), Handler)
    running.desk = SimpleNamespace(KINDS=("sample",), ask=lambda kind, message: {"bytes": len(message)})
    running.facts = {}
    running.token, running.names = new_token(running.server_address[1]), frozenset({"127.0.0.1", "localhost"})
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


def post(server, body=b"abc", **headers):
    port = server.server_address[1]
    known = {"Authorization": f"Bearer {token_for(f'http://127.0.0.1:{port}')}", "Content-Type": KIND}
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/sample", body, {name: value for name, value in known.items() if value is not None})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_its_own_users_training_is_served(server):
    assert post(server) == (200, b'{"bytes": 3}')
    (file,) = (Path(os.environ["XDG_CACHE_HOME"]) / "migr").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": None}, 401),
        ({"Authorization": "Bearer guess"}, 401),
        ({"Authorization": "Bearer ä"}, 401),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": None}, 415),
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Content_Length": "9" * 30}, 413),
        ({"Content_Length": str(LARGEST + 1)}, 413),
        ({"Content_Length": "-1"}, 413),
    ],
)
def test_nobody_else_is(headers, status, server):
    assert post(server, **headers)[0] == status
    assert post(server)[0] == 200


def test_messages_wait_for_room_together(server):
    entered, leave, second = threading.Event(), threading.Event(), threading.Event()

    def hold():
        with server.room(6, 10):
            entered.set()
            leave.wait(10)

    def follow():
        with server.room(6, 10):
            second.set()

    threads = [threading.Thread(target=hold), threading.Thread(target=follow)]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    assert not second.wait(0.2)
    leave.set()
    assert second.wait(10)
    for thread in threads:
        thread.join()


def test_a_token_of_the_environment_is_taken(monkeypatch):
    monkeypatch.setenv(VARIABLE, "shared")
    assert new_token(1) == token_for("http://elsewhere:8000") == "shared"
