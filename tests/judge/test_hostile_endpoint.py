"""An endpoint that is hostile or broken: a failed judgement with its reason, within bounds, and nothing given away."""

import gzip
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from migr.errors import InputError
from migr.judge import endpoint, open_judge
from migr.judge.endpoint import KEY, LARGEST
from migr.judge.prompt import read_reply
from migr.text.labels import label_set

LABELS = label_set("dfew")


def reply(content, **more):
    return {"choices": [{"message": {"content": content}}], **more}


class Server:
    """Answers each request with `answer(handler)` and notes what it was sent."""

    def __init__(self, answer):
        self.seen = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.seen.append((self.path, dict(self.headers), body))
                with suppress(OSError):
                    answer(self)

            do_CONNECT = do_POST

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()


def send(text, status=200, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(text)

    return answer


@pytest.fixture(autouse=True)
def once(monkeypatch):
    monkeypatch.setattr(endpoint, "ATTEMPTS", 1)
    monkeypatch.setattr(endpoint, "SECONDS", 1.0)


def judge_of(server):
    return open_judge(f"endpoint:{server.url}/v1#m", LABELS)


SHAPES = [
    b"<html>log in first</html>",
    b"",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"[" * 200_000,
    b'{"choices": []}',
    b'{"choices": "x"}',
    b'{"choices": {"0": 1}}',
    b'{"choices": [null]}',
    b'{"choices": [{}]}',
    b'{"choices": [{"message": null}]}',
    b'{"choices": [{"message": {"content": ["x"]}}]}',
    b'{"choices": [{"message": {"content": 7}}]}',
    b'{"error": {"message": "no"}}',
    b'{"choices": [{"message": {"content": ' + b"9" * 5000 + b"}}]}",
]


@pytest.mark.parametrize("text", SHAPES, ids=range(len(SHAPES)))
def test_a_reply_of_any_other_shape_is_a_failed_judgement_and_ten_of_them_stop_the_run(text):
    with Server(send(text)) as server:
        judge = judge_of(server)
        (judgement,) = judge.judge(["he smiles."])
        assert judgement.emotion is None and judgement.status.startswith("no reply: ")
        assert judge.usage["failed"] == judge.usage["requests"] == 1
        with pytest.raises(InputError, match="10 requests in a row failed"):
            judge.judge(["he smiles."] * 40)


@pytest.mark.parametrize("usage", ['"x"', "[1]", '{"prompt_tokens": "many"}', '{"prompt_tokens": -5}', "{}", "null"])
def test_a_usage_that_is_none_counts_nothing(usage):
    text = json.dumps(reply("sad"))[:-1].encode() + f', "usage": {usage}}}'.encode()
    with Server(send(text)) as server:
        judge = judge_of(server)
        assert judge.judge(["x"])[0].emotion == "sad" and judge.usage["prompt_tokens"] == 0


def test_half_a_character_in_a_reply_does_not_stop_a_run():
    with Server(send(b'{"choices": [{"message": {"content": "\\ud83d"}}]}')) as server:
        assert judge_of(server).judge(["x"])[0].reply == "\ufffd"


def drip(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def drip_head(handler):
    for _ in range(100):
        handler.wfile.write(b"H")
        time.sleep(0.1)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * (1 << 20))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (drip, "timed out"),
        (drip_head, "timed out"),
        (endless, f"more than {LARGEST >> 20} MiB"),
        (send(gzip.compress(bytes(50 << 20)), Content_Encoding="gzip"), "compressed"),
    ],
    ids=["drip", "dripping head", "endless", "bomb"],
)
def test_a_request_has_an_end_in_time_and_size(answer, why):
    with Server(answer) as server:
        start = time.monotonic()
        (judgement,) = judge_of(server).judge(["x"])
        assert why in judgement.status and time.monotonic() - start < 8


def test_nothing_of_the_environment_is_sent_but_the_key_and_no_redirect_is_followed(monkeypatch):
    monkeypatch.setenv(KEY, "secret-key")
    for name, value in {"OPENAI_ORG_ID": "org-1", "OPENAI_PROJECT_ID": "proj-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-leak: yes")
    with Server(send(json.dumps(reply("sad")).encode())) as other:
        with Server(send(b"", 307, Location=f"{other.url}/stolen")) as server:
            (judgement,) = judge_of(server).judge(["x"])
        assert judgement.emotion is None and other.seen == []
    headers = {name.casefold(): value for name, value in server.seen[0][1].items()}
    assert headers.pop("authorization") == "Bearer secret-key"
    assert set(headers) <= {"host", "accept", "accept-encoding", "connection", "content-type", "content-length"}


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_gets_neither_the_key_nor_what_is_on_this_machine(name, monkeypatch):
    monkeypatch.setenv(KEY, "secret-key")
    with (
        Server(send(json.dumps(reply("sad")).encode())) as proxy,
        Server(send(json.dumps(reply("sad")).encode())) as server,
    ):
        monkeypatch.setenv(name, proxy.url)
        assert judge_of(server).judge(["x"])[0].emotion == "sad"
    assert proxy.seen == [] and len(server.seen) == 1


def test_the_key_is_masked_wherever_a_server_repeats_it(monkeypatch):
    monkeypatch.setenv(KEY, "secret-key")
    with Server(send(json.dumps(reply("your key is secret-key")).encode())) as server:
        assert judge_of(server).judge(["x"])[0].reply == "your key is …"
    with Server(send(b'{"error": "secret-key"}', 500)) as server:
        assert "secret-key" not in judge_of(server).judge(["x"])[0].status


@pytest.mark.parametrize(
    "address",
    ["http://[::1/v1#m", "http://127.0.0.1\n/v1#m", "http://127.0.0.1:abc/v1#m", "http://a b/v1#m", "http://#m"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="expected endpoint:URL#MODEL"):
        open_judge(f"endpoint:{address}", LABELS)


@pytest.mark.parametrize("price", [float("inf"), float("nan"), -1.0])
def test_a_price_is_a_finite_number(price):
    with pytest.raises(InputError, match="prices"):
        open_judge("endpoint:http://127.0.0.1/v1#m", LABELS, prices=(price, 1.0))


def test_a_reply_of_empty_lines_is_read_in_proportion_to_its_length():
    start = time.process_time()
    assert read_reply("\n" * 300_000 + "?", LABELS).status == "not a label"
    assert time.process_time() - start < 10  # it took minutes
