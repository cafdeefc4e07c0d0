"""Chat templates from strangers: what transformers makes of them, or one line within seconds and bounded memory."""

import os
import resource
import time
from types import SimpleNamespace

import pytest

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)
from migr.errors import InputError
from migr.omni import templates
from migr.omni.prompt import render_prompt
from migr.omni.templates import render

# isort: split
from transformers.utils.chat_template_utils import render_jinja_template

TOKENIZER = SimpleNamespace(name_or_path="models/evil", special_tokens_map={"eos_token": "<|end|>", "pad_token": "<p>"})
FEATURES = {
    "plain": "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}",
    "generation": "a {% generation %}{% set x = 3 %}{{ messages[0].content }} {{ x }}{% endgeneration %} {{ x }} b",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2, sort_keys=true) }} {{ '<é>' | tojson }}",
    "loops": "{% for i in range(9) %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "blanks": "  {% if add_generation_prompt %}\n  <|bot|>\n  {% endif %}\n{%- if tools is none %} none{% endif %}",
    "variables": "{{ enable_thinking }} {{ documents }} {{ undefined_name }}|{{ strftime_now('%Y') | length }}",
    "namespace": "{% set n = namespace(k=0) %}{% for c in 'abc' %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}",
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_template_gives_what_transformers_gives(name):
    turns = [{"role": "user", "content": 'Which "emotion"? é😀'}]
    given = {**TOKENIZER.special_tokens_map, "enable_thinking": True, "add_generation_prompt": True}
    expected, _ = render_jinja_template([turns], chat_template=FEATURES[name], **given)
    assert [render(TOKENIZER, FEATURES[name], turns[0]["content"], enable_thinking=True)] == expected


def test_of_several_templates_the_default_counts():
    assert render(TOKENIZER, {"default": "{{ messages[0].content }}", "tool_use": "x"}, "hm") == "hm"
    with pytest.raises(InputError, match="models/evil: the chat template is no text"):
        render(TOKENIZER, {"tool_use": "x"}, "hm")


def test_a_text_is_rendered_once_unless_it_tells_the_time(monkeypatch):
    render(TOKENIZER, "the same: {{ messages[0].content }}", "hm")
    clock = "{{ strftime_now('%Y') }} {{ messages[0].content }}"
    render(TOKENIZER, clock, "hm")
    monkeypatch.setattr(templates, "_ask", lambda question: {"error": "was asked"})
    assert render(TOKENIZER, "the same: {{ messages[0].content }}", "hm") == "the same: hm"
    for template, text in (("the same: {{ messages[0].content }}", "other"), (clock, "hm")):
        with pytest.raises(InputError, match="was asked"):
            render(TOKENIZER, template, text)


DOUBLING = "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}"
HOSTILE = {
    "loops without end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "takes more than 2 s",
    ),
    "a power": ("{{ 7 ** (7 ** 12) }}", "takes more than 2 s"),
    "doubling": (DOUBLING, "takes more than 1 GiB"),
    "multiplied text": ("{{ 'a' * 4000000000 }}", "takes more than 1 GiB"),
    "a filter": ("{{ 'a' | center(4000000000) }}", "takes more than 1 GiB"),
    "a list": ("{{ ([0] * 4000000000) | length }}", "takes more than 1 GiB"),
    "lorem ipsum": ("{{ lipsum(n=100000000) }}", "takes more than 2 s"),
    "a long text": ("{{ 'a' * 20000000 }}", "writes more than 16777216 characters"),
    "a range": ("{% for a in range(10**9) %}{% endfor %}", "cannot be used (Range too big"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be used (maximum recursion depth"),
    "no syntax": ("{% for %}", "cannot be used (Expected an expression"),
    "refusal": ("{{ raise_exception('no such role') }}", "cannot be used (no such role)"),
    "files": ("{% include '/etc/passwd' %}", "cannot be used (TypeError: no loader"),
    "code": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be used (access to attribute '__class__'"),
    "a type": ("{{ 1 + 'a' }}", "cannot be used (TypeError"),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in ("a power", "lorem ipsum") else ()) for kind in HOSTILE],
)
def test_a_hostile_template_is_one_line_and_the_next_one_is_served(kind):
    template, message = HOSTILE[kind]
    start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as error:
        render(TOKENIZER, template, "Which emotion?")
    assert str(error.value).startswith(f"models/evil: the chat template {message}") and "\n" not in str(error.value)
    assert time.monotonic() - start < 60 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 1 << 17  # KiB
    assert render(TOKENIZER, "{{ messages[0].content }}", "Which?") == "Which?"


def test_a_template_that_is_harmless_for_some_texts_alone_is_stopped_at_the_others():
    template = f"{{% if 'sad' in messages[0].content[0].text %}}{DOUBLING}{{% else %}}fine{{% endif %}}"
    processor = SimpleNamespace(tokenizer=TOKENIZER, chat_template=template)
    assert render_prompt(processor, "happy", False, False) == "fine"
    with pytest.raises(InputError, match="takes more than 1 GiB"):
        render_prompt(processor, "sad", False, False)


def test_a_forked_process_has_a_renderer_of_its_own():
    assert render(TOKENIZER, "{{ messages[0].content }}", "parent") == "parent"
    ours = templates._process.pid
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        text = render(TOKENIZER, "{{ messages[0].content }}", "child")
        os.write(writing, f"{text} {templates._process.pid != ours}".encode())
        templates._process.kill()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"child True"
    assert render(TOKENIZER, "{{ messages[0].content }}", "parent") == "parent" and templates._process.pid == ours
