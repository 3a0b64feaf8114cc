"""Commands and input of ``gumba chat``: files, forks, settings, continued lines and the history."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gumba import LLM, SamplingParams
from gumba.cli import chat_input as lines
from gumba.cli.terminal import without_controls
from gumba.errors import RequestError

GREEDY = SamplingParams(max_tokens=8, temperature=0)
ARGS = ("-n", 8, "--temp", 0)
posix = pytest.mark.skipif(os.name != "posix", reason="terminals and file modes are POSIX here")


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny) as llm:
        yield llm


def answers(llm: LLM, *messages: str, params: SamplingParams = GREEDY, system: str | None = None) -> list[str]:
    """The model's answers to these messages of one conversation."""
    talk = llm.conversation(params=params, system=system)
    return [talk.send(text).text for text in messages]


def out(*texts: str) -> str:
    return "".join(text + "\n" for text in texts)


def script(*lines: object) -> str:
    return "".join(f"{line}\n" for line in lines)


# ------------------------------------------------------------------------------------------------------------ files


def test_save_and_load(gumba: Callable, tiny: Path, llm: LLM, tmp_path: Path) -> None:
    """The conversation continues in another process with its settings; a second ``/save`` replaces the file."""
    file = tmp_path / "a talk.session"
    first, second, third = answers(llm, "hello", "more", "again")
    said = gumba("chat", tiny, *ARGS, stdin=script("hello", f"/save {file}", "more", f"/save {file}"))
    assert (said.code, said.out) == (0, out(first, second))
    assert re.search(r"^saved: 2 messages, \d+\.\d kB$", said.err, re.M)
    found = gumba("chat", tiny, stdin=script("other things", "/clear", f"/load {file}", "again", "/history"))
    assert found.code == 0 and found.out.endswith(out(third))
    assert "loaded: 4 messages" in found.err
    shown = without_controls(
        f"user: hello\nassistant: {first}\nuser: more\nassistant: {second}\nuser: again\nassistant: {third}\n"
    )
    assert shown in found.err


def test_save_does_not_overwrite_other_files(gumba: Callable, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("dear all")
    for name, says in (
        (file, "is not a saved conversation: it is not overwritten"),
        (tmp_path, "Is a directory"),
        ("", "/save: expected a file name"),
        (tmp_path / "none" / "a", "cannot be written"),
    ):
        result = gumba("chat", tiny, stdin=script(f"/save {name}"))
        assert result.code == 2 and says in result.err
        assert result.err.count("\n") == 1
    assert file.read_text() == "dear all"


def test_load_reports_errors(gumba: Callable, tiny: Path, llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "a"
    llm.save_session(file, [1], {"kind": "conversation", "version": 1, "messages": [5]})
    for name, says in (
        (file, r"messages\[0\]: expected a mapping [^\n]*, found 5"),
        (tiny, "not a session file"),
        (tmp_path / "none", "cannot be read"),
        ("", "/load: expected a file name"),
    ):
        result = gumba("chat", tiny, stdin=script(f"/load {name}"))
        assert result.code == 2 and re.fullmatch(rf"gumba: error: [^\n]*{says}[^\n]*\n", result.err)


# ------------------------------------------------------------------------------------------------------------ forks


def test_forks(gumba: Callable, tiny: Path, llm: LLM) -> None:
    first, second = answers(llm, "hello", "more")
    other = answers(llm, "hello", "something else")[1]
    last = answers(llm, "hello", "more", "again")[2]
    result = gumba(
        "chat", tiny, *ARGS,
        stdin=script(
            "hello", "/fork try", "something else", "/switch main", "more", "/fork", "/undo", "/forks", "/switch main", "again"
        ),
    )  # fmt: skip
    assert (result.code, result.out) == (0, out(first, other, second, last))
    assert "  main: 4 messages\n  try: 4 messages\n* fork1: 2 messages\n" in result.err
    assert 'now in "fork1"; /switch main goes back\n' in result.err


def test_invalid_forks(gumba: Callable, tiny: Path) -> None:
    for line, says in (
        ("/fork main", 'a conversation "main" exists already'),
        ("/switch other", 'no conversation "other"'),
        ("/switch", 'no conversation ""'),
    ):
        result = gumba("chat", tiny, stdin=script(line))
        assert (result.code, result.out) == (2, "") and says in result.err


# --------------------------------------------------------------------------------------------------------- settings


def test_settings(gumba: Callable, tiny: Path, llm: LLM) -> None:
    wild = SamplingParams(max_tokens=6, temperature=3, top_k=0, top_p=1, min_p=0, seed=5)
    result = gumba(
        "chat", tiny, *ARGS,
        stdin=script(
            "/set temp 3", "/set top-k 0", "/set parameter top_p 1", "/set min_p 0", "/seed 5", "/set n 6", "hello",
            "/clear", "/temp 0", "/set max_tokens 8", "/set seed none", "/show", "hello",
            "/clear", '/set stop ["\\u0001", "x"]', "/set stop", "/set temperature default", "/set temperature",
        ),
    )  # fmt: skip
    assert (result.code, result.out) == (0, out(*answers(llm, "hello", params=wild), *answers(llm, "hello")))
    for line in ("temperature 0.0", "seed none", "max_tokens 8", "top_k 0", r'stop ["\u0001", "x"]', "temperature 0.8"):
        assert f"\n{line}\n" in "\n" + result.err.replace("\\\\", "\\")
    assert "dry_base" not in result.err


def test_settings_by_the_names_of_options(gumba: Callable, tiny: Path) -> None:
    """Errors use the names of /set."""
    given = ("-n 6", "--repeat-last-n 9", "typical 0.5", "mirostat-ent 4", "--keep 2", "lookup 3", "n-predict 7")
    names = ("max_tokens", "repetition_window", "typical_p", "mirostat_tau", "n_keep", "prompt_lookup_tokens")
    lines = [f"/set {each}" for each in (*given, *names)]
    said = gumba("chat", tiny, stdin=script(*lines)).err.splitlines()
    assert said == [
        "max_tokens 7", "repetition_window 9", "typical_p 0.5", "mirostat_tau 4.0", "n_keep 2", "prompt_lookup_tokens 3"
    ]  # fmt: skip
    said = gumba("chat", tiny, stdin="/set wit 3\n").err
    assert ", max_tokens, " in said and "-n" not in said
    assert "max_tokens: expected an integer" in gumba("chat", tiny, stdin="/set -n 0\n").err


def test_settings_that_are_lists_and_objects(gumba: Callable, tiny: Path, llm: LLM) -> None:
    for typed, found in (
        ("samplers top_k, temperature", '["top_k", "temperature"]'),
        ("samplers min_p", '["min_p"]'),
        ('samplers ["min_p"]', '["min_p"]'),
        ("samplers none", "none"),
        ("stop_token_ids 5,7", "[5, 7]"),
        ("allowed_token_ids 5", "[5]"),
        ("stop a, b", '["a, b"]'),
        ('stop ["a", "b"]', '["a", "b"]'),
        ('logit_bias {"5": -2}', "[[5, -2.0]]"),
        ('structured_outputs {"choice": ["yes", "no"]}', '{"choice": ["yes", "no"]}'),
    ):
        name = typed.partition(" ")[0]
        assert gumba("chat", tiny, stdin=script(f"/set {typed}", f"/set {name}")).err == f"{name} {found}\n"
    for typed in ("samplers top_k;temperature", "stop_token_ids 5,x"):
        assert gumba("chat", tiny, stdin=script(f"/set {typed}")).code == 2
    biased = SamplingParams(max_tokens=8, temperature=0, logit_bias={262: 1000})
    result = gumba("chat", tiny, *ARGS, stdin=script('/set logit_bias {"262": 1000}', "hello"))
    assert result.out == out(*answers(llm, "hello", params=biased)) != out(*answers(llm, "hello"))


def test_commands_are_confirmed_at_a_terminal_only(
    gumba: Callable, tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    from gumba.cli.chat import Talk

    talk = Talk(llm, GREEDY, confirming=True)
    for line, says in (
        ("/set temp 0.5", "temperature 0.5\n"),
        ("/temp 0", "temperature 0.0\n"),
        ("/set -n default", "max_tokens none\n"),
        ("/set max_tokens 2", "max_tokens 2\n"),
        ("/clear", "0 messages forgotten\n"),
        ("/system Be kind.", "the system message is set; 0 messages forgotten\n"),
    ):
        assert talk.take(line)
        assert capsys.readouterr().err == says
    assert talk.take("hello") and capsys.readouterr().err == "[cut off after 2 tokens: max_tokens (-n)]\n"
    assert talk.take("/undo") and capsys.readouterr().err == 'removed: "hello"\n'
    assert talk.take("hello") and capsys.readouterr()
    assert talk.take("/clear") and capsys.readouterr().err == "2 messages forgotten\n"
    assert talk.take("hello") and capsys.readouterr()
    assert talk.take("/set system Be rude.")
    assert capsys.readouterr().err == "the system message is set; 2 messages forgotten\n"
    lines = script("/set temp 0.5", "/system Be kind.", "/clear", "hello", "/undo")
    assert gumba("chat", tiny, "-n", 1, stdin=lines).err == "[cut off after 1 token: max_tokens (-n)]\n"


def test_the_system_message_by_set(gumba: Callable, tiny: Path, llm: LLM) -> None:
    told = answers(llm, "hello", system="Be kind.")
    assert gumba("chat", tiny, *ARGS, stdin=script("hi", "/set system Be kind.", "hello")).out.endswith(out(*told))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/set temperature hot", "temperature: expected a number from 0 to 100, found 'hot'"),
        ("/set top_k -4", "top_k: expected an integer"),
        ("/set wit 3", 'no setting "wit": expected one of allowed_token_ids, bad_words'),
        ("/set template_args 3", 'no setting "template_args"'),
        ("/set --No-Thing 3", 'no setting "--No-Thing"'),
        ("/set", 'no setting ""'),
        ("/set best_of 3", 'no setting "best_of"'),
        ("/set logprobs 3", 'no setting "logprobs"'),
        ("/set structured_outputs 3", "structured_outputs: expected an object"),
        ("/seed x", "seed: expected an integer"),
        ("/set logit_bias [[1]]", "logit_bias: expected"),
    ],
)
def test_invalid_settings(gumba: Callable, tiny: Path, line: str, says: str) -> None:
    result = gumba("chat", tiny, stdin=script(line))
    assert (result.code, result.out) == (2, "")
    assert says in result.err and result.err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- probabilities


def test_probabilities(gumba: Callable, tiny: Path, llm: LLM) -> None:
    """stdout has the same answer; stderr has a line per token, with the probabilities of the model's logits."""
    messages = [{"role": "user", "content": "hello"}]
    found = llm.chat(messages, GREEDY)
    ids = [*found.prompt_token_ids, *found.token_ids]
    logits = llm.logits(ids).astype(np.float64)[len(found.prompt_token_ids) - 1 : -1]
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    result = gumba(
        "chat", tiny, *ARGS, stdin=script("/probs 2", "hello", "/probs", "/clear", "hello", "/probs 0", "/regen")
    )
    switched = gumba("chat", tiny, stdin=script("/probs on", "/probs ON", "/probs off", "/probs off")).err
    on, off = "token probabilities: on, with the 3 likeliest\n", "token probabilities: off\n"
    assert switched == on * 2 + off * 2
    shown = gumba("chat", tiny, *ARGS, stdin=script("/probs", "hello", "/probs off", "/show")).err
    assert "\ntemperature 0.0\n" in shown and "logprobs" not in shown
    assert (result.code, result.out) == (0, out(*[found.text] * 3))
    rows = re.findall(r'^ *([\d.]+)%  (".*?")(  of (".*?") ([\d.]+)%, (".*?") ([\d.]+)%)?$', result.err, re.M)
    assert len(rows) == 2 * len(found.token_ids) == 16
    for row, chance, token in zip(rows, [*chances] * 2, found.token_ids * 2):
        assert float(row[0]) == pytest.approx(100 * chance[token], abs=0.06)
    for row, chance in zip(rows[:8], chances):
        best = np.sort(chance)[::-1]
        assert row[1] == row[3]  # greedy: the likeliest is the one that was taken
        assert [float(row[4]), float(row[6])] == pytest.approx(list(100 * best[:2]), abs=0.06)
    assert all(row[2] == "" for row in rows[8:])
    for wrong in ("21", "-1", "x", "9" * 5000):
        result = gumba("chat", tiny, stdin=script(f"/probs {wrong}"))
        assert result.code == 2 and "/probs: expected a number from 0 to 20" in result.err


@posix
def test_probabilities_are_coloured_at_a_terminal(tiny: Path, home: Path) -> None:
    with Terminal(tiny, "-q", *ARGS, "--no-history") as terminal:
        terminal.type(b"hello\n")
        assert b"\x1b[3" not in terminal.wait_for(b"cut off")
        terminal.wait_for(b"> ")
        terminal.type(b"/probs 0\n")
        terminal.wait_for(b"> ")
        terminal.type(b"hello\n")
        assert re.search(rb"\x1b\[3[1236]m[^\x1b]+\x1b\[0m", terminal.wait_for(b"cut off"))


# ------------------------------------------------------------------------------------------- lines and their history


def typed(monkeypatch: pytest.MonkeyPatch, *given: str, interactive: bool = False) -> list[tuple[str, bool]]:
    """The messages in these lines, at a terminal or from a pipe."""
    left = iter(given)
    if interactive:

        def answer(prompt: str) -> str:
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", answer)
    else:

        class Pipe:
            def readline(self) -> bytes:
                return next((line.encode() + b"\n" for line in left), b"")

        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Pipe()))
    return list(iter(lines.Lines(interactive).read, None))


def test_piped_bytes_that_are_not_utf_8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"caf\xc3\xa9\r\ncaf\xe9\n")))
    read = lines.Lines(False).read
    assert read() == ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", False)
    with pytest.raises(RequestError, match="line 2 of stdin is not UTF-8 text"):
        read()


@pytest.mark.parametrize("interactive", [False, True])
def test_continued_lines(monkeypatch: pytest.MonkeyPatch, interactive: bool) -> None:
    for given, expected in (
        (["a", "", "  ", "b"], [("a", False), ("b", False)]),
        (["a\\", "", "b"], [("a\n", False), ("b", False)]),
        (["a\\", "b\\", "c", "d"], [("a\nb\nc", False), ("d", False)]),
        (['"""a', "", ' b\\', 'c"""', "d"], [("a\n\n b\\\nc", True), ("d", False)]),
        (['"""', "/exit", '"""', "d"], [("/exit", True), ("d", False)]),
        (['"""a"""', '"""a""" b', 'c"""'], [("a", True), ('a""" b\nc', True)]),
        (['  """ a """  ', "d"], [(" a ", True), ("d", False)]),
        (['/system """Be', 'kind."""', "d"], [("/system Be\nkind.", False), ("d", False)]),
        (['"""', '"""', "d"], [("d", False)]),
        (['"""', "a"], [("a\n", True)]),
        (["a\\"], [("a\n", False)]),
        (['a """b', 'c"""'], [('a """b', False), ('c"""', False)]),
        (['a\\', '"""b', "c"], [('a\n"""b', False), ("c", False)]),
    ):  # fmt: skip
        assert typed(monkeypatch, *given, interactive=interactive) == expected, given


def test_ctrl_c_discards_the_lines_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    given: Iterator[str | type[BaseException]] = iter(['"""a', "b", KeyboardInterrupt, "c", EOFError])

    def answer(prompt: str) -> str:
        assert prompt == ("... " if line in ('"""a', "b") else "> ")
        found = following()
        if not isinstance(found, str):
            raise found
        return found

    line: object = None

    def following() -> str | type[BaseException]:
        nonlocal line
        line = next(given)
        return line  # type: ignore[return-value]

    monkeypatch.setattr("builtins.input", answer)
    assert list(iter(lines.Lines(True).read, None)) == [("c", False)]


def test_quoted_messages(gumba: Callable, tiny: Path, llm: LLM) -> None:
    expected = answers(llm, "hello\nyou"), answers(llm, "/exit"), answers(llm, "hello", system="Be\nkind.")
    given = ('"""hello', 'you"""', "/clear", '"""', "/exit", '"""', '/system """Be', 'kind."""', "hello", "/system")
    result = gumba("chat", tiny, *ARGS, stdin=script(*given))
    assert (result.code, result.out) == (0, out(*(texts[0] for texts in expected)))
    assert "\nBe\nkind.\n" in result.err


class Editor:
    """Replaces readline."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add_history(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_history_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    class Editor:
        def add_history(self, line: str) -> None:
            raise AssertionError(line)

    os.mkfifo(tmp_path / "history")
    lines.History(tmp_path / "history", Editor()).keep("hello")


def test_lines_are_kept_between_runs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat_history"
    history = lines.History(path, Editor())
    for line in ("one", "one", "", "  ", "tw\u00f6", "one", "x" * (lines.MAX_CHARACTERS + 1), "bad\udcff"):
        history.keep(line)
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    editor = Editor()
    again = lines.History(path, editor)
    assert editor.lines == ["one", "tw\u00f6", "one", "bad?"]
    again.keep("bad?")
    assert path.read_text(encoding="utf-8") == script("one", "tw\u00f6", "one", "bad?")


def test_the_history_is_short_printable_and_private(tmp_path: Path) -> None:
    path = tmp_path / "chat_history"
    many = [f"line {i}" for i in range(lines.MAX_LINES + 50)]
    path.write_bytes(script("\x1b[31mred\x07", *many, "\x1b[31mred\x07").encode() + b"\xff\n")
    path.chmod(0o644)
    editor = Editor()
    lines.History(path, editor)
    expected = [*many[-lines.MAX_LINES + 2 :], "[31mred", "\ufffd"]
    assert editor.lines == expected
    assert path.read_text(encoding="utf-8") == script(*expected)
    assert [each.name for each in tmp_path.iterdir() if each.name != "gumba-home"] == ["chat_history"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.mkdir()
    lines.History(path, editor).keep("one")  # nowhere to keep it: nothing is said
    assert len(editor.lines) == len(expected)


# --------------------------------------------------------------------------------------------------------- terminals


class Terminal:
    """``gumba chat`` at a terminal of its own."""

    def __init__(self, *args: object) -> None:
        import pty

        self._master, slave = pty.openpty()
        own = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"  # so that Ctrl-C is a signal
        start = f"{own}; from gumba.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", start, "chat", *map(str, args)]
        env = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=env
        )
        os.close(slave)
        self.seen = b""
        self._deadline = time.monotonic() + 60

    def wait_for(self, text: bytes) -> bytes:
        """Read on until ``text`` has come; what came before it."""
        while text not in self.seen:
            left = max(0.0, self._deadline - time.monotonic())
            assert select.select([self._master], [], [], left)[0], (text, self.seen)
            try:
                self.seen += os.read(self._master, 65536)
            except OSError:  # the other end is closed
                pytest.fail(f"gumba ended ({self.process.wait(30)}) before {text!r} came: {self.seen!r}")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def __enter__(self) -> Terminal:
        self.wait_for(b"> ")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@posix
def test_a_terminal_remembers_lines(tiny: Path, home: Path) -> None:
    """The arrow key shows the last line of the last run; ``--no-history`` neither reads nor writes the file."""
    kept = home / "state" / "chat_history"
    with Terminal(tiny, "-n", 2, "-q") as terminal:
        terminal.type(b"/stats\n")
        terminal.wait_for(b"no answer yet")
        terminal.wait_for(b"> ")
        terminal.type(b"\x04")
        assert terminal.process.wait(30) == 0
    assert kept.read_text() == "/stats\n"
    with Terminal(tiny, "-n", 2, "-q") as terminal:
        terminal.type(b"\x1b[A\n")
        terminal.wait_for(b"no answer yet")
        terminal.wait_for(b"> ")
        terminal.type(b"/forks\n")
        terminal.wait_for(b"main: 0 messages")
        terminal.wait_for(b"> ")
    assert kept.read_text() == "/stats\n/forks\n"
    with Terminal(tiny, "-n", 2, "-q", "--no-history") as terminal:
        terminal.type(b"\x1b[A/history\n")
        terminal.wait_for(b"no message yet")
        terminal.wait_for(b"> ")
    assert kept.read_text() == "/stats\n/forks\n"


def test_a_pipe_is_not_remembered(gumba: Callable, tiny: Path, home: Path) -> None:
    assert gumba("chat", tiny, stdin="/stats\n").code == 0
    assert not (home / "state").exists()


@posix
def test_ctrl_c_at_a_terminal(tiny: Path, home: Path) -> None:
    """Ctrl-C during an answer keeps the conversation with the text so far, and it continues."""
    with Terminal(tiny, "-q", "--temp", 0, "--no-history") as terminal:
        terminal.type(b"/set ignore_eos true\n")
        terminal.wait_for(b"> ")
        for attempt in range(100):  # an answer takes a moment: sooner or later Ctrl-C comes within one
            terminal.type(b"hello\n")
            terminal.wait_for(b"hello\r\n")
            time.sleep(0.002 * (attempt % 20))
            terminal.type(b"\x03/forks\n")
            stopped = b"[stopped]" in terminal.wait_for(b"main: ")
            kept = terminal.wait_for(b" messages")  # 0: Ctrl-C came before the message was sent
            terminal.wait_for(b"> ")
            if stopped and kept == b"2":
                break
            terminal.type(b"/clear\n")
            terminal.wait_for(b"> ")
        else:
            pytest.fail("no answer could be stopped")
        terminal.type(b"/set max_tokens 2\n")
        terminal.wait_for(b"\nmax_tokens 2\r\n")
        terminal.wait_for(b"> ")
        terminal.type(b"more\n")
        terminal.wait_for(b"cut off after 2 tokens")
        terminal.type(b"/forks\n")
        terminal.wait_for(b"main: 4 messages")
        assert terminal.process.poll() is None


def test_ctrl_c_before_the_first_token(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is kept without an answer; /regen answers it."""
    from gumba.cli import chat

    def strike(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    talk = chat.Talk(llm, GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(llm._engine, "take", strike)
        assert talk.take("hello")
    assert talk.conversation.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": ""}]
    assert capsys.readouterr().err == " [stopped]\n"
    assert talk.take("/regen")
    assert talk.conversation.messages[1]["content"] == answers(llm, "hello")[0]
