"""GRPO's sampling by a server (`vllm_mode: server`, stages/rollout_server.py) that all training processes share.

Before each step the first process sends the adapter, and the server merges it with the base model that both have. Each
process then asks for its own completions, and names the weights that it means. A clip's features travel once a step.
"""

import json
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from migr.engine.task import Task
from migr.errors import InputError
from migr.rollout.checkpoint import base_digest
from migr.rollout.merging import adapter_tensors
from migr.rollout.protocol import KIND, LARGEST, PROTOCOL, pack
from migr.rollout.sampler import Draw, Drawn
from migr.rollout.token import token_for

GREETING = 10.0  # seconds until a server that is ready has said so
CONNECT = 60.0  # seconds until one that is busy has taken the call
# Sampling may take long, and a machine that is gone says no goodbye: probes after 60 s of silence, given up after four.
ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


class Remote:
    """A trainer's end of the line.

    Args:
        trainer: An `OmniGRPOTrainer`, complete but for this.
        task: Its `max_length` is what the server must take.
        settings: Sampling parameters.

    Raises:
        InputError: As `find_server`; or the server computes in another type, takes only shorter sequences, or does not
            take the settings.
    """

    def __init__(self, trainer: Any, task: Task, settings: Mapping[str, Any]) -> None:
        self.model, self.gather = trainer.model, trainer._dist.gather_params
        self.main = trainer.accelerator.is_main_process
        self.base, self.url = trainer.thinker.name_or_path, server_url(trainer.args)
        dtype = str(trainer.thinker.dtype).removeprefix("torch.")
        facts = find_server(trainer.args, self.base)
        self.version = ""  # of the weights that the server was given last
        if facts["dtype"] != dtype:
            raise InputError(
                f"{self.url}: the server computes in {facts['dtype']}, training in {dtype}; "
                f"start it with --dtype {dtype}"
            )
        if facts["max_length"] < task.max_length:
            raise InputError(
                f"{self.url}: the server takes {facts['max_length']} tokens, training {task.max_length}; start it with "
                f"--max_model_length {task.max_length}, or lower vllm_max_model_length"
            )
        self.sample([], settings)

    def sync(self) -> None:
        """Give the server the trainer's present weights. All processes must call it.

        Raises:
            InputError: The server does not answer.
        """
        scales, tensors = adapter_tensors(self.model, self.gather)
        version = self._ask("/weights", pack(scales, tensors))["weights"] if self.main else None
        (self.version,) = broadcast_object_list([version])

    def sample(self, draws: Sequence[Draw], settings: Mapping[str, Any]) -> list[Drawn]:
        """Draw each completion, in order.

        Raises:
            InputError: The server does not answer, or has other weights by now.
        """
        media = {draw.media: draw.features for draw in draws}
        tensors = {f"{key}/{name}": tensor for key, features in media.items() for name, tensor in features.items()}
        prompts = {(draw.media, tuple(draw.ids)): None for draw in draws}
        place = {prompt: at for at, prompt in enumerate(prompts)}
        words = {
            "weights": self.version,
            "settings": dict(settings),
            "prompts": list(prompts),
            "draws": [(place[draw.media, tuple(draw.ids)], draw.seed) for draw in draws],
        }
        message = pack(words, tensors)
        if len(message) > LARGEST:
            raise InputError(f"{len(message)} bytes of media in one step; lower per_device_train_batch_size")
        return [(ids, logprobs) for ids, logprobs in self._ask("/sample", message)["drawn"]]

    def _ask(self, path: str, message: bytes) -> Any:
        try:
            return ask(self.url, path, message)
        except OSError as error:
            raise InputError(
                f"the rollout server at {self.url} has stopped answering ({_reason(error)}); start it again "
                f"({command(self.url, self.base)}), then this run: it goes on from its last checkpoint"
            ) from error

    def close(self) -> None:
        """Nothing to let go of: the server stays for the next run."""


def server_url(config: Any) -> str:
    """Address of the server by TRL's GRPOConfig: `vllm_server_base_url`, or host and port.

    Raises:
        InputError: It is no address.
    """
    host = config.vllm_server_host
    # TRL's default; it is where to listen, not whom to ask
    host = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
    url = (config.vllm_server_base_url or f"http://{host}:{config.vllm_server_port}").rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"{url}: no address of a server; give vllm_server_base_url like http://127.0.0.1:8000")
    return url


def command(url: str, model: str) -> str:
    """What starts the server that a trainer asks for."""
    parts = urlsplit(url)
    host = "" if parts.hostname in ("127.0.0.1", "localhost") else f" --host {parts.hostname}"
    return f"python stages/rollout_server.py --model {model}{host} --port {parts.port or 80}"


def find_server(config: Any, model: str) -> dict[str, Any]:
    """Wait for the server, at most `vllm_server_timeout` seconds.

    Args:
        config: TRL's GRPOConfig.
        model: The base model.

    Returns:
        What it says of itself: `name` and `model` (the base and its digest), `dtype`, `max_length`.

    Raises:
        InputError: No server, another program, or one with another base model.
    """
    url, until, announced = server_url(config), time.monotonic() + config.vllm_server_timeout, False
    while True:
        try:
            facts = ask(url, "/", timeout=GREETING)
            break
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"no rollout server answers at {url} after {config.vllm_server_timeout:.0f} s ({_reason(error)}); "
                    f"start one: {command(url, model)}"
                ) from error
        if not announced and PartialState().is_main_process:
            print(
                f"waiting up to {config.vllm_server_timeout:.0f} s for the rollout server at {url}; what starts one: "
                f"{command(url, model)}",
                flush=True,
            )
        announced = True
        time.sleep(1.0)
    if not isinstance(facts, dict) or facts.get("protocol") != PROTOCOL:
        raise InputError(f"{url}: no rollout server of this version of migr; start one: {command(url, model)}")
    if facts["model"] != base_digest(model):
        raise InputError(
            f"{url}: the server has another base model ({facts['name']}) than training ({model}); "
            f"start it with the same one: {command(url, model)}"
        )
    return facts


def ask(url: str, path: str, message: bytes | None = None, timeout: float | None = None) -> Any:
    """One question, and the JSON value that answers it.

    Args:
        url: Address of the server.
        path: What is asked.
        message: Body of a POST; a GET without one.
        timeout: Seconds until an answer must come; None waits as long as the connection lives.

    Raises:
        OSError: No connection, or it broke.
        InputError: The server refuses; its words.
    """
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        with closing(kind(str(parts.hostname), parts.port, timeout=timeout or CONNECT)) as connection:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, number in ALIVE:
                if hasattr(socket, option):  # not everywhere
                    connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), number)
            headers = {"Content-Type": KIND, "Authorization": f"Bearer {token_for(url)}"}
            connection.request("GET" if message is None else "POST", parts.path + path, message, headers)
            answer = connection.getresponse()
            text = answer.read()
    except HTTPException as error:
        raise ConnectionError(f"broken answer: {error!r}") from error
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if answer.status != 200 or value is None:
        reason = value.get("error") if isinstance(value, dict) else None
        raise InputError(f"{url}: {reason or f'no rollout server of migr (HTTP status {answer.status})'}")
    return value


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
