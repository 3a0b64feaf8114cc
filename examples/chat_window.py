"""A small chat window: pick a model, chat with it, stop it. Needs only gumba and Python's own tkinter.

    python examples/chat_window.py [MODEL.gguf]

The window never waits for the model: ``Chat`` computes in a thread of its own and puts events into a queue that the window
polls thirty times a second. ``Chat`` does not depend on the toolkit; use it unchanged with another one.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gumba import LLM, GumbaError, SamplingParams
from gumba.store import DEFAULT_MODEL, models_folder, pulled

#: Events: "loading" (fraction in ``value``), "loaded" (the model's name in ``text``), "text" (a piece of an answer), "done" (an
#: answer has ended; why in ``text``), "error" (message in ``text``).
Kind = Literal["loading", "loaded", "text", "done", "error"]


@dataclass(frozen=True)
class Event:
    kind: Kind
    text: str = ""
    value: float = 0.0


class Chat:
    """One conversation with one model at a time. Every method returns at once; results arrive in ``events``."""

    def __init__(self, open_model: Callable[..., LLM] = LLM, params: SamplingParams | None = None) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        #: The conversation so far, without the system message. Only the thread changes it.
        self.messages: list[dict[str, str]] = []
        self._open_model = open_model
        self._params = params or SamplingParams(max_tokens=1024)
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._closed = False
        self._llm: LLM | None = None
        self._thread = threading.Thread(target=self._work, name="chat", daemon=True)
        self._thread.start()

    def load(self, path: Path) -> None:
        """Load another model, and start a new conversation."""
        self.stop()
        self._commands.put(lambda: self._load(path))

    def send(self, text: str, system: str = "") -> None:
        """Answer ``text``: events "text" for its pieces, then "done" (or "error")."""
        self._commands.put(lambda: self._answer(text, system))

    def clear(self) -> None:
        """Clear the conversation."""
        self.stop()
        self._commands.put(self.messages.clear)

    def stop(self) -> None:
        """Stop the current answer. Its text so far stays in the conversation."""
        self._stopped.set()
        llm = self._llm
        if llm is not None:
            llm.cancel()  # during a long prefill there is no token after which to check
        self._commands.put(self._stopped.clear)

    def close(self) -> None:
        """Stop everything and free the model."""
        self._closed = True
        self.stop()
        self._commands.put(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end after ``close``."""
        self._thread.join(timeout)

    def _work(self) -> None:
        while (command := self._commands.get()) is not None:
            try:
                command()
            except _StoppedError:
                self._emit("done", "stopped")
            except (GumbaError, OSError, MemoryError) as error:
                self._emit("error", str(error) or type(error).__name__)
        if self._llm is not None:
            self._llm.close()

    def _emit(self, kind: Kind, text: str = "", value: float = 0.0) -> None:
        self.events.put(Event(kind, text, value))

    def _load(self, path: Path) -> None:
        self.messages.clear()
        if self._llm is not None:
            self._llm.close()
            self._llm = None
        self._llm = self._open_model(path, progress=self._loading)
        self._emit("loaded", path.name)

    def _loading(self, fraction: float) -> None:
        if self._closed:
            raise _StoppedError
        self._emit("loading", value=fraction)

    def _answer(self, text: str, system: str) -> None:
        if self._llm is None:
            self._emit("error", "no model is loaded yet")
            return
        messages = [*self.messages, {"role": "user", "content": text}]
        before = [{"role": "system", "content": system}] if system.strip() else []
        answer, ended = "", "stopped"
        stream: Any = self._llm.chat_stream([*before, *messages], self._params)
        try:
            for step in stream:
                if self._stopped.is_set():
                    break
                if step.text:  # a token may be a part of a character
                    answer += step.text
                    self._emit("text", step.text)
                if step.finish_reason is not None:
                    ended = {"cancelled": "stopped", "length": "cut off"}.get(step.finish_reason, "")
        finally:
            stream.close()
        if answer or ended != "stopped":  # stopped before the first word: the message is dropped, too
            self.messages[:] = [*messages, {"role": "assistant", "content": answer}]
        self._emit("done", ended)


class _StoppedError(Exception):
    """Stops loading after the window was closed."""


class Window:
    """The widgets. ``tk`` is the module tkinter, ``models`` are offered in the list of models."""

    def __init__(self, tk: Any, chat: Chat, models: list[Path]) -> None:
        from tkinter import filedialog, scrolledtext, ttk

        self._chat, self._dialog, self._models = chat, filedialog, list(models)
        self.root = tk.Tk()
        self.root.title("gumba")
        self.root.geometry("760x560")
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        top = ttk.Frame(self.root, padding=6)
        top.pack(fill="x")
        self.model = ttk.Combobox(top, state="readonly", values=[path.name for path in models])
        self.model.pack(side="left", fill="x", expand=True)
        self.model.bind("<<ComboboxSelected>>", lambda _: self.load(self._models[self.model.current()]))
        ttk.Button(top, text="Open…", command=self._pick).pack(side="left", padx=4)
        ttk.Button(top, text="New chat", command=self.clear).pack(side="left")
        line = ttk.Frame(self.root, padding=(6, 0))
        line.pack(fill="x")
        ttk.Label(line, text="System prompt").pack(side="left")
        self.system = ttk.Entry(line)
        self.system.pack(side="left", fill="x", expand=True, padx=4)
        bottom = ttk.Frame(self.root, padding=6)
        bottom.pack(side="bottom", fill="x")
        self.status = ttk.Label(self.root, text="Choose a model (gumba pull fetches one).", padding=(6, 0))
        self.status.pack(side="bottom", fill="x")
        self.entry = tk.Text(bottom, height=3, wrap="word")
        self.entry.pack(side="left", fill="x", expand=True)
        self.entry.bind("<Return>", self._on_return)
        self.button = ttk.Button(bottom, text="Send", command=self.send, state="disabled")
        self.button.pack(side="left", padx=4)
        self.text = scrolledtext.ScrolledText(self.root, wrap="word", state="disabled")
        self.text.tag_configure("user", font=("TkDefaultFont", 10, "bold"))
        self.text.pack(fill="both", expand=True, padx=6, pady=6)
        self.generating = False
        self._polling = self.root.after(33, self._poll)

    def load(self, path: Path) -> None:
        """Load the model at ``path``."""
        if path not in self._models:
            self._models.append(path)
            self.model["values"] = [model.name for model in self._models]
        self.model.current(self._models.index(path))
        self._ready(False)
        self._write(clear=True)
        self._chat.load(path)

    def send(self) -> None:
        """Send the text, or stop the current answer."""
        if self.generating:
            self._chat.stop()
            return
        text = self.entry.get("1.0", "end").strip()
        if not text or str(self.button["state"]) == "disabled":
            return
        self.entry.delete("1.0", "end")
        self._write(f"{text}\n", "user")
        self._chat.send(text, self.system.get())
        self.generating = True
        self.button["text"] = "Stop"
        self.status["text"] = "Generating…"

    def clear(self) -> None:
        """Start a new conversation."""
        self._chat.clear()
        self._write(clear=True)

    def close(self) -> None:
        """Close the window; the thread frees the model."""
        self.root.after_cancel(self._polling)
        self._chat.close()
        self.root.destroy()

    def _poll(self) -> None:
        """Show the events since the last poll."""
        while True:
            try:
                event = self._chat.events.get_nowait()
            except queue.Empty:
                break
            self._show(event)
        self._polling = self.root.after(33, self._poll)

    def _show(self, event: Event) -> None:
        if event.kind == "loading":
            self.status["text"] = f"Loading… {event.value:.0%}"
        elif event.kind == "loaded":
            self.status["text"] = f"{event.text} is ready."
            self._ready(True)
        elif event.kind == "text":
            self._write(event.text)
        elif event.kind in ("done", "error"):
            if self.generating:
                self._write("\n\n")
            self.generating = False
            self.button["text"] = "Send"
            self.status["text"] = event.text[:1].upper() + event.text[1:]

    def _ready(self, ready: bool) -> None:
        self.button["state"] = "normal" if ready else "disabled"

    def _write(self, text: str = "", tag: str = "", *, clear: bool = False) -> None:
        self.text["state"] = "normal"
        if clear:
            self.text.delete("1.0", "end")
        self.text.insert("end", text, tag)
        self.text["state"] = "disabled"
        self.text.see("end")

    def _pick(self) -> None:
        name = self._dialog.askopenfilename(filetypes=[("GGUF models", "*.gguf"), ("All files", "*")])
        if name:
            self.load(Path(name))

    def _on_return(self, event: Any) -> str | None:
        if event.state & 1:  # Shift: a line break
            return None
        if not self.generating:
            self.send()
        return "break"


def offered(given: list[Path]) -> list[Path]:
    """The models for the list, the one to begin with first: those named at the start, then those that were pulled."""
    usual = pulled(DEFAULT_MODEL)
    return list(dict.fromkeys([*given, *([usual] if usual else []), *sorted(models_folder().glob("*.gguf"))]))


def main(argv: list[str]) -> int:
    """Open the window."""
    try:
        import tkinter as tk
    except ImportError:
        sys.stderr.write(
            "This Python has no tkinter. Install it (Debian, Ubuntu: apt install python3-tk; Fedora: dnf install "
            "python3-tkinter; Homebrew: brew install python-tk), or take a Python from python.org.\n"
        )
        return 2
    models = offered([Path(name) for name in argv])
    chat = Chat()
    try:
        window = Window(tk, chat, models)
    except tk.TclError as error:
        sys.stderr.write(f"There is no screen to open a window on: {error}\n")
        return 2
    if models:
        window.load(models[0])
    window.root.mainloop()
    chat.join(10)
    return 0


if __name__ == "__main__":
    import multiprocessing

    multiprocessing.freeze_support()  # frozen, a process of multiprocessing's is this program started again
    sys.exit(main(sys.argv[1:]))
