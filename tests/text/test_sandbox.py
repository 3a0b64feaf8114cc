"""Templates from strangers: no code runs, and time and memory stay bounded."""

from __future__ import annotations

import sys
import time

import pytest

from gumba.errors import TemplateError
from gumba.text import ChatTemplate

MESSAGES = [{"role": "user", "content": "banana"}]

CODE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.__class__.__base__ }}x{{ messages.append(1) }}",
    "{{ (messages | attr('append'))(1) }}",
    "{{ namespace.__init__.__globals__['sys'].modules }}",
    "{{ raise_exception.__globals__['datetime'] }}x{{ raise_exception.__globals__.x.y }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}x{{ '{0.__class__}'.format(1).x.y }}",
    "{% for x in messages | map(attribute='__class__') %}{{ x.mro() }}{% endfor %}",
]

GROW = "{%% set ns = namespace(s=%s) %%}{%% for i in range(60) %%}{%% set ns.s = %s %%}{%% endfor %%}{{ %s }}"
BOMBS = {
    "repeat": "{{ 'a' * 10**9 }}",
    "repeat list": "{{ [0] * 10**9 }}",
    "repeat lists": "{{ [range(100000) | list] * 100000 }}",
    "center filter": "{{ 'a' | center(10**9) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "percent filter": "{{ '%0999999999d' | format(1) }}",
    "percent": "{{ '%0999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "format": "{{ '{:999999999}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 10**9) }}",
    "percent of long texts": "{{ '%s%s%s' % ('a' * 4000000, 'b' * 4000000, 'c') }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "power of product": "{{ (10 ** 1000) ** 1000 }}",
    "round": "{{ 1 | round(10**9, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "range": "{{ range(10**9) | list }}",
    "nested range": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
    "double by tilde": GROW % ("'abcdefgh'", "ns.s ~ ns.s", "ns.s"),
    "double by plus": GROW % ("'abcdefgh'", "ns.s + ns.s", "ns.s"),
    "double a list": GROW % ("[1]", "ns.s + ns.s", "ns.s"),
    "nest lists": GROW % ("[1]", "[ns.s, ns.s]", "ns.s"),
    "nest tuples and compare": GROW % ("(1,)", "(ns.s, ns.s)", "ns.s == ns.s"),
    "nest dicts": GROW % ("[1]", "{'a': ns.s, 'b': ns.s}", "ns.s | tojson"),
    "nest dict calls": GROW % ("[1]", "dict(a=ns.s, b=ns.s)", "ns.s | tojson"),
    "capture": "{% set ns = namespace(s='abcdefgh') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"
    "{% endfor %}",
    "capture constants": "{% set x %}{% for i in range(99999) %}" + "x" * 100000 + "{% endfor %}{% endset %}{{ x | length }}",
    "long output": "{% for i in range(99999) %}" + "x" * 100000 + "{% endfor %}",
    "macro recursion": "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(100000) }}",
    "macro tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "replace": "{{ ('a' * 4000000).replace('a', 'b' * 4000000) }}",
    "replace filter": "{{ ('a' * 4000000) | replace('a', 'b' * 4000000) }}",
    "join filter": "{{ range(99999) | join('a' * 100000) }}",
    "join": "{{ ('a' * 100000).join(range(99999) | map('string')) }}",
    "split": "{{ ('ab ' * 2000000).split() | length }}",
    "list of letters": "{{ ('a' * 4000000) | list | length }}",
    "strip": "{{ ('a' * 4000000).strip('b' * 4000000 + 'a') }}",
    "trim": "{{ ('a' * 4000000) | trim('b' * 4000000 + 'a') }}",
    "batch": "{{ [1] | batch(10**9, 1) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "json indent": "{{ {'a': 1} | tojson(indent=10**9) }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "sum of lists": "{{ ([[0] * 10] * 10000) | sum(start=[]) | length }}",
    "compare lists": "{% set l = range(99999) | list %}{% for i in range(99999) %}{% if l == l[:] %}{% endif %}{% endfor %}",
    "search": "{% set x = 'a' * 4000000 %}{% for i in range(99999) %}{{ x.lower().find('b') }}{% endfor %}",
    "huge source": "a" * 5_000_000,
    "deep source": "{{ " + "(" * 60000 + ")" * 60000 + " }}",
    "long sum": "{{ " + "+".join(["1"] * 20000) + " }}",
    "date": "{{ strftime_now('%c' * 100000) }}",
}  # fmt: skip


@pytest.mark.parametrize("source", CODE)
def test_no_way_to_python(source):
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(MESSAGES)
    assert MESSAGES == [{"role": "user", "content": "banana"}]


def peak_memory_mb() -> float:
    resource = pytest.importorskip("resource")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


@pytest.mark.parametrize("name", BOMBS)
def test_bounded(name):
    ChatTemplate("{{ messages }}").render(MESSAGES)  # imports are not the template's
    before, began = peak_memory_mb(), time.monotonic()
    with pytest.raises(TemplateError):
        ChatTemplate(BOMBS[name]).render(MESSAGES)
    assert time.monotonic() - began < 5  # the limit is 2 s of its own; machines are shared
    assert peak_memory_mb() - before < 150


def test_a_long_conversation_is_no_bomb():
    source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 1000}] * 1000
    assert len(ChatTemplate(source).render(messages)) > 4_900_000


def test_the_budget_is_one_renderings():
    template = ChatTemplate("{% for i in range(90000) %}{{ 'x' * 50 }}{% endfor %}")
    assert {len(template.render(MESSAGES)) for _ in range(3)} == {4_500_000}
