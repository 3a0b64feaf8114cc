"""The example with a window: what its thread does, without a window; and the window, where a display can be had."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gumba import LLM, SamplingParams
from gumba.store import DEFAULT_MODEL, KNOWN

SOURCE = Path(__file__).parents[2] / "examples" / "chat_window.py"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("chat_window", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chat_window"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["chat_window"]


@pytest.fixture
def chat(example: ModuleType) -> Iterator[Any]:
    chat = example.Chat(params=SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    yield chat
    chat.close()
    chat.join(60)
    assert not chat._thread.is_alive()


class Slow(LLM):
    """A model that takes 10 s to fill its context."""

    def chat_stream(self, *args: Any, **options: Any) -> Any:
        for step in super().chat_stream(*args, **options):
            time.sleep(0.04)
            yield step


def until(chat: Any, *kinds: str) -> tuple[str, Any]:
    """The text up to an event of one of these kinds, and that event."""
    text = ""
    while True:
        event = chat.events.get(timeout=120)
        if event.kind in kinds:
            return text, event
        text += event.text


def test_a_conversation(chat: Any, tiny: Path) -> None:
    chat.load(tiny)
    assert until(chat, "loaded", "error")[1].text == "tiny.gguf"
    chat.send("hi", "be kind")
    first, event = until(chat, "done", "error")
    chat.send("hello")
    second, _ = until(chat, "done", "error")
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    history = [{"role": "user", "content": "hi"}]
    with LLM(tiny) as llm:
        assert (event.kind, first) == (
            "done",
            llm.chat([{"role": "system", "content": "be kind"}, *history], params).text,
        )
        history += [{"role": "assistant", "content": first}, {"role": "user", "content": "hello"}]
        assert second == llm.chat(history, params).text
    assert chat.messages == [*history, {"role": "assistant", "content": second}]
    chat.clear()
    chat.send("hi", "be kind")
    assert until(chat, "done", "error")[0] == first


def test_stopping_keeps_the_text_so_far(example: ModuleType, tiny: Path) -> None:
    """The answer would go on to the end of the context."""
    chat = example.Chat(open_model=Slow, params=SamplingParams(temperature=0, ignore_eos=True))
    chat.load(tiny)
    until(chat, "loaded")
    chat.send("hi")
    first = until(chat, "text")[1].text
    chat.stop()
    rest, event = until(chat, "done", "error")
    assert (event.kind, event.text) == ("done", "stopped")
    assert chat.messages[-1] == {"role": "assistant", "content": first + rest}
    chat.send("x")  # the stop was for the one before
    assert until(chat, "text")[1].kind == "text"
    chat.close()
    chat.join(60)
    assert not chat._thread.is_alive()


def test_stopping_before_the_first_word_leaves_nothing(example: ModuleType, tiny: Path) -> None:
    """The message is dropped, too; and no "text" event is empty."""
    reading, stopped = threading.Event(), threading.Event()

    class Waiting(LLM):
        def chat_stream(self, *args: Any, **options: Any) -> Any:
            stream = super().chat_stream(*args, **options)
            reading.set()
            assert stopped.wait(60)
            yield from stream

    chat = example.Chat(open_model=Waiting, params=SamplingParams(max_tokens=40, temperature=2, top_k=0, seed=3))
    chat.load(tiny)
    until(chat, "loaded")
    chat.send("hi")
    assert reading.wait(60)
    chat.stop()
    stopped.set()
    assert until(chat, "done", "error") == ("", example.Event("done", "stopped"))
    assert chat.messages == []
    chat.send("hi")
    pieces = []
    while (event := chat.events.get(timeout=60)).kind == "text":
        pieces.append(event.text)
    assert event.kind == "done" and all(pieces)
    assert chat.messages[-1]["content"] == "".join(pieces) != ""
    chat.close()
    chat.join(60)


def test_errors_are_shown_and_the_chat_continues(chat: Any, tiny: Path, tmp_path: Path) -> None:
    chat.send("hi")
    assert "no model" in until(chat, "error")[1].text
    chat.load(tmp_path / "none.gguf")
    assert "none.gguf" in until(chat, "error")[1].text
    chat.load(tiny)
    until(chat, "loaded")
    chat.send("y" * 5000)
    assert "leave no room in the context" in until(chat, "error", "done")[1].text
    assert chat.messages == []
    chat.send("hi")
    assert until(chat, "done", "error")[1].kind == "done"


def test_nothing_waits_for_the_model(example: ModuleType) -> None:
    """Every method returns while the model loads, and closing stops the loading."""
    started, seen = threading.Event(), threading.Event()

    def slowly(path: Path, *, progress: Any) -> Any:
        started.set()
        assert seen.wait(60)
        progress(0.5)

    chat = example.Chat(open_model=slowly)
    chat.load(Path("x.gguf"))
    assert started.wait(60)
    chat.send("hi")
    chat.stop()
    chat.clear()
    chat.close()
    seen.set()
    chat.join(60)
    assert not chat._thread.is_alive()


def with_path(folder: Path) -> dict[str, str]:
    """An environment in which Python finds the modules in ``folder`` first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def test_without_tkinter(tmp_path: Path) -> None:
    (tmp_path / "tkinter.py").write_text("raise ImportError('no')", encoding="utf-8")
    code = f"import runpy; runpy.run_path({str(SOURCE)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=with_path(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.startswith("This Python has no tkinter. Install it")


WINDOW = """
import sys, time, tkinter as tk
from pathlib import Path
from chat_window import Chat, Window
from gumba import LLM, SamplingParams

class Slow(LLM):
    def chat_stream(self, *args, **options):
        for step in super().chat_stream(*args, **options):
            time.sleep(0.04)
            yield step

chat = Chat(open_model=Slow, params=SamplingParams(temperature=0, ignore_eos=True))
window = Window(tk, chat, [])
def until(ready):
    end = time.monotonic() + 100
    while not ready():
        assert time.monotonic() < end, window.status["text"]
        window.root.update()
def shown():
    return window.text.get("1.0", "end").strip()
window.load(Path(sys.argv[1]))
assert str(window.button["state"]) == "disabled"
until(lambda: str(window.button["state"]) == "normal")
window.entry.insert("1.0", "hello")
window.send()
assert window.button["text"] == "Stop" and shown() == "hello"
until(lambda: len(shown()) > 10)
window.send()
until(lambda: not window.generating)
assert window.button["text"] == "Send" and window.status["text"] == "Stopped", window.status["text"]
assert chat.messages[0] == {"role": "user", "content": "hello"} and len(chat.messages) == 2
window.clear()
assert not shown()
window.close()
chat.join(60)
"""


def test_the_pulled_model_comes_first(example: ModuleType, home: Path) -> None:
    """After those that are named at the start."""
    assert example.offered([]) == []
    (home / "models").mkdir(parents=True)
    for name in ("a.gguf", "b.gguf"):
        (home / "models" / name).touch()
    others = [home / "models" / "a.gguf", home / "models" / "b.gguf"]
    assert example.offered([]) == others
    assert example.offered([Path("x.gguf"), others[1]]) == [Path("x.gguf"), others[1], others[0]]
    usual = home / "models" / KNOWN[DEFAULT_MODEL].filename
    with usual.open("wb") as file:
        file.truncate(KNOWN[DEFAULT_MODEL].n_bytes)
    assert example.offered([]) == [usual, *others]


@pytest.mark.skipif(not shutil.which("xvfb-run"), reason="there is no display, and no Xvfb to make one")
def test_the_window(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("tkinter")
    script = tmp_path / "drive.py"
    script.write_text(WINDOW, encoding="utf-8")
    command = ["xvfb-run", "-a", sys.executable, str(script), str(tiny)]
    done = subprocess.run(command, env=with_path(SOURCE.parent), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr + done.stdout
