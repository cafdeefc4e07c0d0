"""Run a model's chat template (Jinja) with bounds on time, memory and length.

A template comes with a model's folder. The sandbox of Jinja keeps it from files and code, not from loops without end
or texts without bound; so it runs in a process of its own, to which the operating system grants seconds and bytes. The
environment is that of transformers (5.17, `apply_chat_template`); a test holds the two together.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from migr.errors import InputError, reason

SECONDS = 2  # of the processor, for one text; a whole template takes a thousandth of one
MEMORY = 1 << 30  # bytes of address space, the interpreter included
LONGEST = 1 << 24  # characters of one text
SHORT = 1 << 14  # characters of a question and its text that are kept: all rows of a data set may ask the same
MOST = 1 << 10  # texts that are kept
_kept: dict[str, str] = {}
_process: subprocess.Popen[bytes] | None = None
_owner = -1  # a forked process must not speak on its parent's pipe
_turn = threading.Lock()


def render(tokenizer: Any, template: Any, text: str | Sequence[Mapping[str, str]], **variables: Any) -> str:
    """One user turn as chat text, ready for the answer: what `apply_chat_template` gives.

    Args:
        tokenizer: Its special tokens are variables of the template, its name stands in messages.
        template: Of the tokenizer or processor: Jinja source, or several by name, of which "default" counts.
        text: Content of the turn.
        variables: More for the template, such as `enable_thinking`.

    Raises:
        InputError: The template is broken, refuses the text, or goes beyond a bound.
    """
    where = f"{getattr(tokenizer, 'name_or_path', '')}: the chat template"
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise InputError(f"{where} is no text (with several, one must be named default)")
    values: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "tools": None, "documents": None}
    values |= {"add_generation_prompt": True, **tokenizer.special_tokens_map, **variables}
    question = json.dumps({"template": template, "values": values})
    if question in _kept:
        return _kept[question]
    reply = _ask(question)
    if "text" not in reply:
        raise InputError(f"{where} {reply['error']}")
    text = str(reply["text"])
    # what asks for the time is asked anew
    if len(_kept) < MOST and len(question) + len(text) <= SHORT and "strftime_now" not in template:
        _kept[question] = text
    return text


def _ask(question: str) -> dict[str, str]:
    """The reply of the process that renders; it is started by the first question and after each death."""
    global _process, _owner
    with _turn:
        if _process is None or _owner != os.getpid() or _process.poll() is not None:
            # by its path, isolated: importing this package would bring torch, which needs more than the bound
            command = [sys.executable, "-I", __file__]
            _process, _owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE), os.getpid()
            atexit.register(_process.kill)
        assert _process.stdin is not None and _process.stdout is not None
        try:
            _process.stdin.write(question.encode() + b"\n")
            _process.stdin.flush()
            line = _process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line.endswith(b"\n"):
            return dict(json.loads(line))
        status = _process.wait()
        if status == -signal.SIGXCPU:
            return {"error": f"takes more than {SECONDS} s for one text"}
        return {"error": f"takes more than {MEMORY >> 30} GiB of memory for one text (status {status})"}


def _serve() -> None:
    """Answer one question a line until there are no more."""
    environment = _environment()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it goes on while it saves
    template, source = None, None
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        allowed = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))
        try:
            question = json.loads(line)
            if question["template"] != source:
                source = question["template"]
                template = environment.from_string(source)
            assert template is not None
            text = template.render(**question["values"])
            reply = {"text": text} if len(text) <= LONGEST else {"error": f"writes more than {LONGEST} characters"}
        except MemoryError:
            reply = {"error": f"takes more than {MEMORY >> 30} GiB of memory for one text"}
        except Exception as error:  # of Jinja, or whatever an operation within a template raises
            reply = {"error": f"cannot be used ({reason(error)})"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what training would learn: its content, as it stands."""

        tags = {"generation"}  # noqa: RUF012  (as Jinja reads it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    _serve()
