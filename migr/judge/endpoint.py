"""A model behind an OpenAI-compatible URL as a judge: `vllm serve`, another server, or a paid service.

What is sent is the question and the key that is meant for that server, and nothing else of this machine: no other
variable, no cookie, no redirect is followed, a proxy of the environment is used beyond this machine alone. What comes
back is bounded in time and size, and of whatever shape it is, it gives a judgement or a failed one.
"""

import asyncio
import importlib
import math
import os
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, urlsplit

from migr.errors import InputError, printable
from migr.files.parsing import parse_json
from migr.files.records import Row
from migr.judge.base import LONGEST, NO_REPLY, Judgement
from migr.judge.prompt import filled, prompt_for, read_reply
from migr.text.labels import LabelSet

KEY = "MIGR_JUDGE_KEY"  # environment variable; OPENAI_API_KEY is read for api.openai.com alone
AT_ONCE = 8  # requests in flight
ATTEMPTS = 5  # of one request, with growing pauses; the server's Retry-After is obeyed, up to a minute
SECONDS = 120.0  # for one attempt, from the first byte sent to the last one received
CONNECT = 10.0  # seconds of them until somebody takes the call
LARGEST = 4 << 20  # bytes of a reply
REPLY = 1024  # tokens of a reply
IN_A_ROW = 10  # requests that fail in spite of that before the run stops
_AGAIN = {"max_completion_tokens", "seed"}
_HERE = ("localhost", "127.0.0.1", "::1")
_SENT = ("host", "accept", "content-type", "content-length", "authorization")  # headers


class Endpoint:
    """Asks at temperature 0; a reply that is not "ok" to `interpret` is asked for once more, and is then a failure.

    Rate limits, timeouts and server errors are tried again by the `openai` package, with backoff. What a server does
    not know (a reply by schema, a temperature) is left out from its first complaint on. `usage` counts what was asked.
    """

    at_once = 4 * AT_ONCE

    def __init__(self, address: str, prices: tuple[float, float] | None = None, schema: Row | None = None) -> None:
        url, _, model = address.partition("#")
        parts = _parts(url)
        if parts is None or not model:
            raise InputError(f"judge endpoint:{address}: expected endpoint:URL#MODEL, as in endpoint:http://…/v1#qwen")
        if parts.username or parts.password or parts.query:
            raise InputError(f"judge: the URL must hold no key or password; put the key into {KEY}")
        if prices is not None and not all(0 <= price < math.inf for price in prices):
            raise InputError(f"judge: the prices must be finite numbers of at least 0, not {prices}")
        key = os.environ.get(KEY) or (os.environ.get("OPENAI_API_KEY") if parts.hostname == "api.openai.com" else None)
        if key and not (key.isascii() and key.isprintable()):
            raise InputError(f"judge: {KEY} holds characters that no key has")
        if key and parts.scheme == "http" and parts.hostname not in _HERE:
            raise InputError(f"judge endpoint:{address}: the key would travel unencrypted; use https, or unset {KEY}")
        try:
            import openai
        except ImportError:
            raise InputError("judge endpoint: needs the package openai (pip install openai)") from None
        self.openai = openai
        self.name, self.url, self.model, self.prices = f"endpoint-{url}#{model}", url, model, prices
        limits = {"timeout": httpx().Timeout(SECONDS, connect=CONNECT), "max_retries": ATTEMPTS - 1}
        self.client = openai.AsyncOpenAI(base_url=url, api_key=key or "none", **limits)
        self._options: dict[str, Any] = {
            "temperature": 0.0,
            "seed": 0,
            "max_completion_tokens": REPLY,  # room for a model that thinks first; others stop behind the label
        }
        if schema is not None:
            self._options["response_format"] = {"type": "json_schema", "json_schema": schema}
        self._key, self._proxy = key, _proxy(parts)
        self._failed_in_a_row = 0
        self._stopped: str | None = None  # why, once too many have failed in a row
        self._counts = {"requests": 0, "failed": 0, "prompt_tokens": 0, "completion_tokens": 0}

    @property
    def usage(self) -> Row:
        """Requests, failures and tokens so far; with prices also the cost, in the prices' currency."""
        counts: Row = dict(self._counts)
        if self.prices is not None:
            spent = self.prices[0] * counts["prompt_tokens"] + self.prices[1] * counts["completion_tokens"]
            counts["cost"] = round(spent / 1e6, 6)
        return counts

    def content(self, text: str) -> str:
        """What is sent about a text."""
        return text

    def interpret(self, reply: str, finished: bool) -> Judgement:
        """What a reply says; `finished`: it was not cut."""
        return Judgement(None, {}, "ok" if finished else f"{NO_REPLY}: cut", reply)

    def ask(self, texts: Sequence[str]) -> list[Judgement]:
        """What the replies about the texts say, in order.

        Raises:
            InputError: The key, the model or the URL is wrong, nobody answers, or request after request fails.
        """
        return asyncio.run(self._ask_all(texts))

    async def _ask_all(self, texts: Sequence[str]) -> list[Judgement]:
        free = asyncio.Semaphore(AT_ONCE)
        async with bounded_client(self._key, self._proxy) as http:
            client = self.client.with_options(http_client=http)

            async def ask(text: str) -> Judgement:
                async with free:
                    return await self._ask(client, text)

            return await asyncio.gather(*map(ask, texts))

    async def _ask(self, client: Any, text: str) -> Judgement:
        if not text.strip():
            return Judgement(None, {}, "empty")
        if self._stopped is not None:  # what still waits is not sent to a server that does not answer
            raise InputError(self._stopped)
        messages = [{"role": "user", "content": self.content(text)}]
        again = False
        while True:
            options = dict(self._options)
            if again:  # with more room, and another draw where the server draws
                options |= {
                    name: 2 * REPLY if name == "max_completion_tokens" else 1 for name in _AGAIN & options.keys()
                }
            try:
                body = {"model": self.model, "messages": messages, **options}
                response = await client.post("/chat/completions", body=body, cast_to=httpx().Response)
                judgement = self._read(response.content)
                if again or judgement.status == "ok" or judgement.reply is None:
                    return judgement
                again = True
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                refused = [name for name in options if name in str(error)]
                if not refused:
                    return self._failure(self._line(error))
                self._options.pop(refused[0], None)
            except (self.openai.AuthenticationError, self.openai.PermissionDeniedError) as error:
                raise InputError(f"judge {self.name}: refused the key in {KEY}: {self._line(error)}") from None
            except self.openai.NotFoundError as error:
                raise InputError(f"judge {self.name}: no such model or address: {self._line(error)}") from None
            except self.openai.APIConnectionError as error:
                if isinstance(error.__cause__, httpx().ConnectError | httpx().ConnectTimeout):
                    why = f"nobody answers at {self.url} ({self._line(error.__cause__)})"
                    self._stopped = f"judge {self.name}: {why}; what is judged is kept: run again when it is there"
                    raise InputError(self._stopped) from None
                return self._failure(self._line(error))
            except (self.openai.OpenAIError, ValueError) as error:
                return self._failure(self._line(error))

    def _read(self, content: bytes) -> Judgement:
        """The judgement of a reply, or a failed one where it is not the protocol's."""
        try:
            text = content.decode(errors="replace")
            reply = parse_json(text.replace(self._key, "…") if self._key else text, finite=False)
        except ValueError as error:
            return self._failure(f"no JSON ({str(error)[:80]})")
        reply = reply if isinstance(reply, dict) else {}
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        answer = message.get("content", "") if isinstance(message, dict) else None
        if message is None or not isinstance(answer, str | None):
            return self._failure("no choices in it" if not choices else "no text in it")
        self._failed_in_a_row = 0
        self._counts["requests"] += 1
        used = reply.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            count = used.get(name) if isinstance(used, dict) else None
            self._counts[name] += count if isinstance(count, int) and 0 < count < 10**9 else 0
        return self.interpret(answer or "", choice.get("finish_reason") != "length")

    def _failure(self, why: str) -> Judgement:
        status = f"{NO_REPLY}: {why}"
        self._counts["requests"] += 1
        self._counts["failed"] += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= IN_A_ROW:
            self._stopped = self._stopped or (
                f"judge {self.name}: {self._failed_in_a_row} requests in a row failed, the last with {status!r}; "
                "what is judged is kept: run again when it answers"
            )
            raise InputError(self._stopped)
        return Judgement(None, {}, status)

    def _line(self, error: BaseException) -> str:
        """A server's complaint in one line; some servers repeat the key in it."""
        text = str(error).replace(self._key, "…") if self._key else str(error)
        return printable(" ".join(text.split()))[:300]


class EndpointJudge(Endpoint):
    """Asks for `{"emotion": label}`."""

    def __init__(self, address: str, labels: LabelSet, prices: tuple[float, float] | None = None) -> None:
        super().__init__(address, prices, _schema(labels))
        self.labels, self.prompt = labels, prompt_for(labels)

    def content(self, text: str) -> str:
        """The question about a reasoning."""
        return filled(self.prompt, text[:LONGEST])

    def interpret(self, reply: str, finished: bool) -> Judgement:
        """The emotion that a reply names."""
        return read_reply(reply, self.labels, finished)

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text.

        Raises:
            InputError: The key, the model or the URL is wrong, nobody answers, or request after request fails.
        """
        return self.ask(texts)


def httpx() -> Any:
    """The HTTP library that the installed `openai` is built on."""
    return importlib.import_module("httpx2" if find_spec("httpx2") else "httpx")


def bounded_client(key: str | None, proxy: str | None) -> Any:
    """An HTTP client that sends `_SENT` alone, follows nowhere, and gives up after `SECONDS` or `LARGEST` bytes."""
    library = httpx()

    class Bounded(library.AsyncBaseTransport):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.inner = library.AsyncHTTPTransport(proxy=proxy)

        async def handle_async_request(self, request: Any) -> Any:
            names = [name for name in _SENT if name in request.headers and (key or name != "authorization")]
            headers = {name: request.headers[name] for name in names} | {"accept-encoding": "identity"}
            sent = library.Request(
                request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
            )
            body = bytearray()
            try:
                async with asyncio.timeout(SECONDS):
                    response = await self.inner.handle_async_request(sent)
                    try:
                        async for part in response.stream:
                            body += part
                            if len(body) > LARGEST:
                                return self.refusal(request, f"a reply of more than {LARGEST >> 20} MiB")
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise library.ReadTimeout(f"no whole reply within {SECONDS:g} s", request=request) from None
            if response.headers.get("content-encoding", "identity") != "identity":
                return self.refusal(request, "a compressed reply, which was not asked for")
            headers = {name: value for name, value in response.headers.items() if name != "transfer-encoding"}
            return library.Response(response.status_code, headers=headers, content=bytes(body), request=request)

        def refusal(self, request: Any, why: str) -> Any:
            return library.Response(413, json={"error": {"message": why}}, request=request)

        async def aclose(self) -> None:
            await self.inner.aclose()

    return library.AsyncClient(transport=Bounded(), trust_env=False, follow_redirects=False)


def _parts(url: str) -> SplitResult | None:
    """The parts of an address with a host and a usable port, None if it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable and url.isprintable() and " " not in url else None


def _proxy(parts: SplitResult) -> str | None:
    """The environment's proxy for an address beyond this machine. A key goes there by https alone, through a tunnel."""
    host = str(parts.hostname)
    if host in _HERE or urllib.request.proxy_bypass(host):
        return None
    known = urllib.request.getproxies()
    return known.get(parts.scheme) or known.get("all")


def _schema(labels: LabelSet) -> Row:
    emotion = {"type": "string", "enum": list(labels.labels)}
    schema = {"type": "object", "properties": {"emotion": emotion}, "required": ["emotion"]}
    return {"name": "emotion", "strict": True, "schema": {**schema, "additionalProperties": False}}
