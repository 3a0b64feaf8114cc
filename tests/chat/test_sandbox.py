"""Templates from strangers: no code runs, and time and memory stay bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gumba.chat.template import ChatTemplate
from gumba.errors import TemplateError

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


def kept(expression: str, times: int) -> str:
    """The expression's values, each in a variable of its own, without a loop."""
    return "".join(f"{{%set a{i}={expression}%}}" for i in range(times))


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
    "reverse without a loop": "{% set s = '\U0001f600' * 2000000 %}" + "{%set a=s[::-1]%}" * 2800,
    "slices kept": "{% set s = '\U0001f600' * 2000000 %}" + kept("s[1:]", 100),
    "wide texts kept": "{% set s = '\U0001f600' * 8000000 %}" + kept("s[1:]", 20),
    "slices of a list kept": "{% set s = range(100000) | list %}"
    + kept("s[1:]", 1000),
    "keys": "{% set s = 'a' * 8000000 %}{% set d = {} %}" + "{%if d[s[1:]]%}{%endif%}" * 100,
    "keys by attribute": "{% set s = 'a' * 4000000 %}" + "{%if s[s[1:]]%}{%endif%}" * 100,
    "texts of a list kept": "{% set l = ['a' * 4000000] %}" + kept("l|string", 100),
    "widened by one": "{% set l = ['a' * 2000000, '\U0001f600'] %}"
    + kept("l|join", 100),
    "escapes kept": "{% set l = ['\x01' * 2000000, '\U0001f600'] %}"
    + kept("l~''", 100),
    "many prints": "{{a}}" * 26000,
    "many lists": "{{[" + "[]," * 16000 + "]}}",
    "date": "{{ strftime_now('%c' * 100000) }}",
}  # fmt: skip


@pytest.mark.parametrize("source", CODE)
def test_no_way_to_python(source):
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(MESSAGES)
    assert MESSAGES == [{"role": "user", "content": "banana"}]


def run_bomb(source: str) -> dict[str, object]:
    began = time.monotonic()
    try:
        ChatTemplate(source).render(MESSAGES)
        error = None
    except TemplateError:
        error = "TemplateError"
    except BaseException as other:
        error = repr(other)[:300]
    return {"error": error, "seconds": time.monotonic() - began}


def serve() -> None:
    """Run the sources that come in, each in a fork of its own: its peak of memory begins at what the parent has."""
    ChatTemplate("{{ messages }}").render(MESSAGES)  # imports are not the template's
    for line in sys.stdin:
        source = json.loads(line)
        if not hasattr(os, "fork"):
            print(json.dumps(run_bomb(source)), flush=True)
            continue
        end, start = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(start, json.dumps(run_bomb(source)).encode())
            os._exit(0)
        os.close(start)
        _, status, usage = os.wait4(child, 0)
        result = json.loads(os.read(end, 4096) or "{}")  # shorter than a pipe's buffer
        os.close(end)
        result["peak_mb"] = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
        print(json.dumps({"error": f"status {status}", "seconds": 0.0} | result), flush=True)


@pytest.fixture(scope="module")
def measured():
    """Seconds, peak of memory (above that of a harmless template, in MB; None where unknown) and error of a source."""
    command = [sys.executable, str(Path(__file__).resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as server:

        def run(source):
            server.stdin.write(json.dumps(source) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        least = run("{{ messages }}").get("peak_mb")

        def above(source):
            result = run(source)
            extra = None if least is None else result["peak_mb"] - least
            return result["seconds"], extra, result["error"]

        yield above
        server.stdin.close()


def test_the_measure_of_memory_measures(measured):
    for size in (7_000_000, 10, 7_000_000):
        _, extra, error = measured("{% set x = 'a' * " + str(size) + " %}")
        assert error is None
        assert extra is None or (6 < extra < 20) == (size > 10)


@pytest.mark.parametrize("name", BOMBS)
def test_bounded(name, measured):
    seconds, extra, error = measured(BOMBS[name])
    assert error == "TemplateError"
    assert seconds < 5  # the limit is 2 s of its own; machines are shared
    assert extra is None or extra < 150


def test_a_long_conversation_is_no_bomb():
    source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 1000}] * 1000
    assert len(ChatTemplate(source).render(messages)) > 4_900_000


def test_the_budget_is_one_renderings():
    template = ChatTemplate("{% for i in range(90000) %}{{ 'x' * 50 }}{% endfor %}")
    assert {len(template.render(MESSAGES)) for _ in range(3)} == {4_500_000}


def test_the_largest_templates_are_accepted():
    line = "{%- if message.role == 'tool' and loop.index0 not in ns.seen -%}{{- message['content'][1:] ~ '\\n' -}}{%- endif -%}\n"
    source = "{% for message in messages %}" + line * (40_436 // len(line)) + "{% endfor %}"
    assert ChatTemplate(source).render(MESSAGES) == ""


@pytest.mark.parametrize(
    ("expression", "value"),
    [("'banana'[1:4]", "ana"), ("'banana'[::-2]", "aaa"), ("[1, 2, 3][:-1]", "[1, 2]"), ("(1, 2)[1:]", "(2,)"),
     ("range(9)[2:4] | list", "[2, 3]"), ("'banana'[1:3:1][0]", "a"), ("messages[-1:][0].content[2:]", "nana")],
)  # fmt: skip
def test_slices(expression, value):
    assert ChatTemplate("{{ " + expression + " }}").render(MESSAGES) == value


if __name__ == "__main__":
    serve()


def test_methods_of_texts_in_loops_that_set_variables():
    source = (
        "{% for m in messages %}{% set t = m.content.replace('a', 'b', 1) %}{% set u = '{}-{x}'.format(t, x=1) %}"
        "{{ u }}{% endfor %}"
    )
    assert ChatTemplate(source).render([{"role": "user", "content": "aa"}]) == "ba-1"
