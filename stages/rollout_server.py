r"""A vLLM for GRPO on GPUs of its own; stages/grpo.py asks it with `use_vllm: true` and `vllm_mode: server`.

    CUDA_VISIBLE_DEVICES=7 python stages/rollout_server.py --model MODEL
    CUDA_VISIBLE_DEVICES=6,7 python stages/rollout_server.py --model MODEL --tensor_parallel 2 --port 8001

MODEL is the base model of the training. The trainer sends its adapter before each step; the server merges it. It
answers on this machine only, unless --host names another address, and to trainings of the same user alone: a secret of
each start stands in the user's cache folder (where the trainer has no part in it, set MIGR_ROLLOUT_TOKEN to the same
text for both). What travels is not encrypted: let the network be one that you trust. Runs until it is stopped; one
training at a time.
"""

import argparse
import hmac
import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from migr.cli import Parser, settings_of
from migr.errors import InputError, exit_on_input_error
from migr.rollout.token import LOOPBACK, VARIABLE, new_token
from migr.settings import EngineSettings


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="the base model of the training: a folder, or a name on the Hub")
    parser.add_argument("--host", default="127.0.0.1", help="address to answer on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_settings(EngineSettings, without=("engine",), batch_size=128)
    args = parser.parse_args()
    settings_of(EngineSettings, args)  # checks the ranges
    return args


class Server(ThreadingHTTPServer):
    """A thread for each question; together they hold no more bytes of messages than the largest one may have."""

    request_queue_size = 128  # all training processes may call at once
    token = ""  # of this start
    names: frozenset[str] = frozenset()  # under which it may be addressed

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.held, self.changed = 0, threading.Condition()

    @contextmanager
    def room(self, size: int, largest: int) -> Iterator[None]:
        """Wait until there is room for a message."""
        with self.changed:
            self.changed.wait_for(lambda: self.held + size <= largest)
            self.held += size
        try:
            yield
        finally:
            with self.changed:
                self.held -= size
                self.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    """One question of a trainer."""

    timeout = 60  # seconds of silence in the middle of a message

    def do_GET(self) -> None:
        """Say what is served."""
        if self.is_ours():
            self.reply(200, self.server.facts)  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        """Take weights, or sample."""
        from migr.rollout.protocol import KIND, LARGEST

        size, kind = self.headers.get("Content-Length", ""), self.path.strip("/")
        server: Any = self.server
        if not self.is_ours():
            return
        if kind not in server.desk.KINDS:
            return self.reply(404, {"error": f"{self.path}: no such path"})
        if not size.isdecimal() or len(size) > 20 or int(size) > LARGEST:
            return self.reply(413, {"error": f"a message has a Content-Length of at most {LARGEST}, not {size[:20]!r}"})
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(token.encode(), server.token.encode()):
            words = f"it serves the trainings of its own user alone; elsewhere, set {VARIABLE} to one text for both"
            return self.reply(401, {"error": words})
        if self.headers.get("Content-Type") != KIND:
            return self.reply(415, {"error": f"a message has the Content-Type {KIND}"})
        with server.room(int(size), LARGEST):
            message = self.rfile.read(int(size))
            if len(message) != int(size):
                return None  # the trainer is gone
            try:
                self.reply(200, server.desk.ask(kind, message))
            except InputError as error:
                self.reply(400, {"error": str(error)})

    def is_ours(self) -> bool:
        """Whether no web page asks: those name another origin, or reach this address by a name of their own."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            numbers = host.replace(".", "").isdecimal() or ":" in host  # an address, which no page can take for its own
        except ValueError:
            host, numbers = "", False
        if "Origin" in self.headers or not (numbers or host in self.server.names):  # type: ignore[attr-defined]
            self.reply(403, {"error": "asked for by a web page, or under a name that is not this server's (--host)"})
            return False
        return True

    def reply(self, status: int, value: Any) -> None:
        """Answer with a JSON value; log-probabilities that are no numbers go through as NaN."""
        body = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the trainer is gone

    def log_message(self, *_: Any) -> None:
        """Say nothing of each question."""


def main() -> None:
    """Config, vLLM, serve."""
    args = arguments()
    if find_spec("vllm") is None:
        raise InputError("vllm is not installed (pip install 'migr[cpu]' or 'migr[gpu]')")

    import torch

    import migr.omni  # noqa: F401  (mends the imports of the libraries below, so it comes first)
    from migr.clips.media import MediaSettings
    from migr.engine.task import Task
    from migr.omni.inputs import OmniInputs
    from migr.omni.load import check_model, load_processor, thinker_config
    from migr.rollout.checkpoint import base_digest
    from migr.rollout.protocol import PROTOCOL
    from migr.rollout.sampler import Sampler, check_whole
    from migr.rollout.server import Desk

    check_whole(model := check_model(args.model))
    limit = min(args.max_model_length, thinker_config(model).text_config.max_position_embeddings)
    try:
        server: Any = Server((args.host, args.port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {args.host} --port {args.port}: cannot listen there ({error})") from error

    # vLLM
    dtype = "float32" if args.dtype == "auto" and not torch.cuda.is_available() else args.dtype
    task = Task(OmniInputs(load_processor(model), MediaSettings()), limit, 0.0, 0, args.batch_size, limit)
    workers = {"tensor_parallel": args.tensor_parallel, "worker_extension_cls": "migr.rollout.merging.MergesAdapters"}
    with Sampler(model, dtype, task, args.vllm_gpu_memory_utilization, **workers) as sampler:
        # Serve
        server.desk = Desk(sampler)
        server.facts = {
            "protocol": PROTOCOL,
            "name": args.model,
            "model": base_digest(model),
            "dtype": str(sampler.llm.llm_engine.model_config.dtype).removeprefix("torch."),
            "max_length": limit,
        }
        server.token = new_token(server.server_address[1])
        server.names = frozenset({args.host, *LOOPBACK, socket.gethostname(), socket.getfqdn()})
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        print(f"rollout server: {args.model} on http://{host}:{port}", flush=True)
        try:
            server.desk.work()
        except KeyboardInterrupt:
            print("rollout server: stopped")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
