"""A model behind an OpenAI-compatible URL as a judge: `vllm serve`, another server, or a paid service."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from migr.errors import InputError
from migr.files.records import Row
from migr.judge.base import LONGEST, NO_REPLY, Judgement
from migr.judge.prompt import filled, prompt_for, read_reply
from migr.text.labels import LabelSet

KEY = "MIGR_JUDGE_KEY"  # environment variable; OPENAI_API_KEY is read for api.openai.com alone
AT_ONCE = 8  # requests in flight
ATTEMPTS = 5  # of one request, with growing pauses; the server's Retry-After is obeyed
SECONDS = 120.0  # for one attempt
IN_A_ROW = 10  # requests that fail in spite of that before the run stops
_HERE = ("localhost", "127.0.0.1", "::1")


class EndpointJudge:
    """Asks for `{"emotion": label}` at temperature 0; a reply that is no label, or none at all, is a failure.

    Rate limits, timeouts and server errors are tried again by the `openai` package, with backoff. What a server does
    not know (a reply by schema, a temperature) is left out from its first complaint on. `usage` counts what was asked.
    """

    at_once = 4 * AT_ONCE

    def __init__(self, address: str, labels: LabelSet, prices: tuple[float, float] | None = None) -> None:
        url, _, model = address.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise InputError(f"judge endpoint:{address}: expected endpoint:URL#MODEL, as in endpoint:http://…/v1#qwen")
        if parts.username or parts.password or parts.query:
            raise InputError(f"judge: the URL must hold no key or password; put the key into {KEY}")
        key = os.environ.get(KEY) or (os.environ.get("OPENAI_API_KEY") if parts.hostname == "api.openai.com" else None)
        if key and parts.scheme == "http" and parts.hostname not in _HERE:
            raise InputError(f"judge endpoint:{address}: the key would travel unencrypted; use https, or unset {KEY}")
        try:
            import openai
        except ImportError:
            raise InputError("judge endpoint: needs the package openai (pip install openai)") from None
        self.openai, self.labels, self.prompt = openai, labels, prompt_for(labels)
        self.name, self.url, self.model, self.prices = f"endpoint-{url}#{model}", url, model, prices
        self.client = openai.OpenAI(base_url=url, api_key=key or "none", timeout=SECONDS, max_retries=ATTEMPTS - 1)
        self._options: dict[str, Any] = {
            "temperature": 0.0,
            "seed": 0,
            "max_completion_tokens": 1024,  # room for a model that thinks first; others stop behind the label
            "response_format": {"type": "json_schema", "json_schema": _schema(labels)},
        }
        self._key, self._lock = key, threading.Lock()
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

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """One judgement a text.

        Raises:
            InputError: The key, the model or the URL is wrong, or request after request fails.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = [pool.submit(self._ask, text) for text in texts]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, text: str) -> Judgement:
        if not text.strip():
            return Judgement(None, {}, "empty")
        if self._stopped is not None:  # what still waits is not sent to a server that does not answer
            raise InputError(self._stopped)
        message: Any = {"role": "user", "content": filled(self.prompt, text[:LONGEST])}
        while True:
            options = dict(self._options)
            try:
                reply = self.client.chat.completions.create(model=self.model, messages=[message], **options)
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                refused = [name for name in options if name in str(error)]
                if not refused:
                    return self._failure(f"{NO_REPLY}: {self._line(error)}")
                with self._lock:
                    self._options.pop(refused[0], None)
            except (self.openai.AuthenticationError, self.openai.PermissionDeniedError) as error:
                raise InputError(f"judge {self.name}: refused the key in {KEY}: {self._line(error)}") from None
            except self.openai.NotFoundError as error:
                raise InputError(f"judge {self.name}: no such model or address: {self._line(error)}") from None
            except (self.openai.OpenAIError, ValueError) as error:  # ValueError: a reply that is no JSON
                return self._failure(f"{NO_REPLY}: {self._line(error)}")
            else:
                return self._read(reply)

    def _read(self, reply: Any) -> Judgement:
        used, choices = getattr(reply, "usage", None), getattr(reply, "choices", None)
        with self._lock:
            self._failed_in_a_row = 0
            self._counts["requests"] += 1
            self._counts["prompt_tokens"] += getattr(used, "prompt_tokens", None) or 0
            self._counts["completion_tokens"] += getattr(used, "completion_tokens", None) or 0
        if not choices:
            return Judgement(None, {}, f"{NO_REPLY}: no choices in it")
        return read_reply(choices[0].message.content or "", self.labels)

    def _failure(self, status: str) -> Judgement:
        with self._lock:
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

    def _line(self, error: Exception) -> str:
        """A server's complaint in one line; some servers repeat the key in it."""
        text = str(error).replace(self._key, "…") if self._key else str(error)
        return " ".join(text.split())[:300]


def _schema(labels: LabelSet) -> Row:
    emotion = {"type": "string", "enum": list(labels.labels)}
    schema = {"type": "object", "properties": {"emotion": emotion}, "required": ["emotion"]}
    return {"name": "emotion", "strict": True, "schema": {**schema, "additionalProperties": False}}
