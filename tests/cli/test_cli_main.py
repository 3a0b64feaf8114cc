"""The command line in general: help, exit codes, and errors of one line."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gumba._version import __version__
from gumba.cli.commands import COMMANDS
from gumba.cli.interrupts import AtOnce, Ending
from gumba.cli.main import main
from gumba.errors import ModelError

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


def one_line(err: str) -> str:
    """The message of a failed command, which is one line."""
    assert re.fullmatch(r"gumba: error: [^\n]+\n", err), err
    return err


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_help_with_examples(gumba: Callable, name: str) -> None:
    result = gumba(name, "--help")
    assert result.code == 0
    assert f"usage: gumba {name}" in result.out and f"examples:\n  gumba {name}" in result.out
    assert not result.err


def test_help_names_every_command(gumba: Callable) -> None:
    result = gumba("--help")
    assert result.code == 0
    listed = [line.split()[0] for line in result.out.partition("commands:")[2].splitlines() if line.split()]
    assert [name for name in NAMES if name not in listed] == []


def test_the_docs_name_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `gumba {name}" not in page] == []


def test_every_command_that_takes_a_model_takes_its_revision() -> None:
    from argparse import _SubParsersAction

    from gumba.cli.commands import build_parser

    (commands,) = [action for action in build_parser()._actions if isinstance(action, _SubParsersAction)]
    without = [n for n, parser in commands.choices.items() if "--revision" not in parser._option_string_actions]
    assert without == ["models"]


def test_version(gumba_process: Callable) -> None:
    result = gumba_process("--version")
    assert (result.code, result.out, result.err) == (0, f"gumba {__version__}\n", "")


def test_help_and_files_need_no_compiler(tiny: Path) -> None:
    """Commands without a model do not import numba, which takes long."""
    code = (
        "import sys; from gumba.cli.main import main\n"
        "assert main(['inspect', sys.argv[1]]) == 0\n"
        "assert main(['pull', '--list']) == 0\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tiny)], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["run", "--max-tokns", "3"], "did you mean --max-tokens?"),
        (["rnu"], "did you mean run? (see gumba --help)"),
        (["convert", "x", "-o", "y", "--type", "q40"], "did you mean q4_0?"),
        (["run", "smollm2-135m-instuct", "-p", "x"], "; did you mean smollm2-135m-instruct?"),
        (["run", "x.gguf", "hello", "-p", "x"], "several prompts"),
        (["run", "Why is the sky blue?"], "'Why is the sky blue?' was read as MODEL"),
        (["--foo"], "unrecognized arguments: --foo (see gumba --help)"),
        (["run", "--tmep"], "unrecognized arguments: --tmep; did you mean --temp? (see gumba run --help)"),
        (["run", "-p", "x", "--temp", "warm"], "argument --temp: 'warm' is not a number"),
        (["run", "-p", "x", "--temp", "nan"], "argument --temp: nan is out of range"),
        (["run", "-p", "x", "--temp", "-1"], "argument --temp: -1 is out of range: it must be from 0 to 100"),
        (["run", "-p", "x", "--top-p", "1.5"], "it must be from 0 to 1"),
        (["run", "-p", "x", "-n", "0"], "argument -n: 0 is out of range"),
        (["run", "-p", "x", "-n", "ten"], "'ten' is not a whole number"),
        (["run", "-p", "x", "--threads", "0"], "argument -t/--threads: 0 is out of range"),
        (["run", "-p", "x", "--threads", "513"], "argument -t/--threads: 513 is out of range"),
        (["run", "-p", "x", "--seed", str(2**64)], "out of range"),
        (["run", "-p", "x", "-f", "y"], "-p or with -f"),
        (["run", "-p", ""], "the prompt is empty"),
        (["run"], "no prompt: expected PROMPT after MODEL, -p TEXT"),
        (["run", "-p", "-"], "the prompt is empty"),
        (["run", "-p", "x", "--system", "y"], "--system needs --chat"),
        (["run", "-f", "/nonexistent/prompt.txt"], "/nonexistent/prompt.txt cannot be read"),
        (["run", "absent", "-p", "x"], "absent: HF_HUB_OFFLINE is set"),
        (["run", "no/such/file.gguf", "-p", "x"], "there is no local file or folder no/such/file.gguf"),
        (["run", "/nonexistent/model.gguf", "-p", "x"], "/nonexistent/model.gguf: no such file"),
        (["run", "bad\nname", "-p", "x"], r"bad\nname"),
        (["inspect", "/"], "config.json"),
        (["chat", "absent"], "absent: HF_HUB_OFFLINE is set"),
        (["tokenize", "absent", "x"], "absent: HF_HUB_OFFLINE is set"),
        (["tokenize", "absent", "x", "-f", "y"], "as an argument or with -f"),
        (["bench", "absent"], "absent: HF_HUB_OFFLINE is set"),
        (["bench", "x.gguf", "--prompt", "0", "--gen", "0"], "nothing to measure"),
        (["bench", "x.gguf", "--prompt", "-1"], "out of range"),
        (["perplexity", "absent", "x.txt"], "absent: HF_HUB_OFFLINE is set"),
        (["pull", "absent"], "absent: HF_HUB_OFFLINE is set"),
        (["convert", "x"], "-o/--output"),
        (["convert", "x", "-o", "y.gguf", "--type", "q2"], "q2"),
        (["export", "absent", "-o", "y"], "absent: HF_HUB_OFFLINE is set"),
    ],
)
def test_bad_input_is_one_line_and_code_2(gumba: Callable, args: list[str], says: str) -> None:
    result = gumba(*args)
    assert result.code == 2
    assert says in one_line(result.err)
    assert result.out == ""


@pytest.mark.parametrize("command", [["run", "-p", "x"], ["inspect"], ["tokenize"], ["bench"]], ids=lambda c: c[0])
def test_bad_files_are_one_line_and_code_2(
    gumba_process: Callable, tiny: Path, tmp_path: Path, command: list[str]
) -> None:
    whole = tiny.read_bytes()
    for name, data in {"empty": b"", "text": b"hello", "cut": whole[:5000], "short": whole[:-1]}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        result = gumba_process(command[0], path, *command[1:])
        assert result.code == 2, (name, result)
        assert str(path) in one_line(result.err)
        assert result.out == ""


def test_messages_name_options(gumba: Callable, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gumba.cli.options import MAX_THREADS as OPTION_MAX_THREADS
    from gumba.runner.load import MAX_THREADS

    assert OPTION_MAX_THREADS == MAX_THREADS
    assert "gumba: error: -c/--ctx is 4000: the model supports a context of at most" in one_line(
        gumba("run", tiny, "-p", "x", "-c", 4000).err
    )
    err = one_line(gumba("run", tiny, "-p", "x" * 100, "-c", 64).err)
    assert "ask for more context with -c N" in err and "n_ctx" not in err

    def fail(*args: object, **options: object) -> None:
        raise ModelError("/models/n_ctx: n_ctx is the name of a folder")

    monkeypatch.setattr("gumba.cli.inspect.find_model", fail)
    assert "/models/n_ctx: n_ctx is" in gumba("inspect", "x").err


def test_a_message_is_one_line_whatever_it_contains(gumba: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ModelError("tensor 'a\nb\x1b[31m' is wrong")

    monkeypatch.setattr("gumba.cli.inspect.find_model", fail)
    result = gumba("inspect", "x")
    assert (result.code, result.err) == (2, "gumba: error: tensor 'a\\nb\\x1b[31m' is wrong\n")


def test_ctrl_c_is_130_without_a_traceback(gumba: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gumba.cli.inspect.find_model", interrupt)
    result = gumba("inspect", "x")
    assert (result.code, result.out, result.err) == (130, "", "")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(
    "module", ["argparse", "gumba.cli.batch", "gumba.llm.llm", "gumba.models.registry", "gumba.models.llama"]
)
def test_ctrl_c_during_an_import_that_raises_another_error(
    gumba_process: Callable, tiny: Path, tmp_path: Path, module: str
) -> None:
    """Python's compiler turns it into a SyntaxError, numpy into an ImportError."""
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import os, signal, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == '{module}':\n"
        "            try: os.kill(os.getpid(), signal.SIGINT)\n"
        "            except KeyboardInterrupt: raise SyntaxError from None\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from gumba.cli.main import main\n"
        "sys.exit(main())\n"
    )
    result = gumba_process("run", tiny, "-p", "x", program=[str(script)])
    assert (result.code, result.out, result.err) == (130, "", "")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_terminated_process_cleans_up(gumba_process: Callable, tmp_path: Path, name: str, code: int) -> None:
    script = tmp_path / "ended.py"
    script.write_text(
        "import os, signal, sys; from gumba.cli import inspect; from gumba.cli.main import main\n"
        "def ended(*_):\n"
        f"    try: os.kill(os.getpid(), signal.{name})\n"
        "    finally: print('cleaned up')\n"
        "inspect.find_model = ended\n"
        "sys.exit(main())\n"
    )
    result = gumba_process("inspect", "x", program=[str(script)])
    assert (result.code, result.out, result.err) == (code, "cleaned up\n", "")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_handlers_are_restored(gumba: Callable, tiny: Path) -> None:
    """A program that runs a command in its process keeps its handlers, and ignored signals stay ignored."""
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert gumba("inspect", tiny).code == 0
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    with Ending(), AtOnce():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_during_generation(gumba_process: Callable, tiny: Path, tmp_path: Path) -> None:
    """The signal comes after the first token; nothing is printed, and there is no traceback."""
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import os, signal, sys; from gumba.cli import run; from gumba.cli.main import main\n"
        "watch = run.Answer.watch\n"
        "def interrupted(self, stream):\n"
        "    for text in watch(self, stream):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        yield text\n"
        "run.Answer.watch = interrupted\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    result = gumba_process("run", tiny, "-p", "hello", "--json", program=[str(script)])
    assert (result.code, result.out, result.err) == (130, "", "")


@pytest.mark.skipif(os.name != "posix", reason="pipes differ elsewhere")
def test_a_closed_pipe_is_silent(tiny: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gumba", "inspect", str(tiny)]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("start", ["runpy.run_module('gumba', run_name='__main__')", "gumba.cli.main.main()"])
@pytest.mark.parametrize("module", ["argparse", "gumba.cli.commands", "gumba.sampling_params"])
def test_ctrl_c_during_imports_is_130_without_a_traceback(
    gumba_process: Callable, tmp_path: Path, start: str, module: str
) -> None:
    script = tmp_path / "interrupted.py"
    ending = "import gumba.cli.main; sys.exit(gumba.cli.main.main())" if start.startswith("gumba") else start
    script.write_text(
        "import runpy, sys\n"
        f"sys.modules.pop('{module}', None)\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == '{module}': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        f"{ending}\n"
    )
    result = gumba_process("run", "-p", "x", program=[str(script)])
    assert (result.code, result.out, result.err) == (130, "", "")


@pytest.mark.skipif(os.name != "posix", reason="shells differ elsewhere")
@pytest.mark.parametrize("name", NAMES)
def test_closed_standard_streams(tiny: Path, tmp_path: Path, home: Path, name: str) -> None:
    """No traceback, and no file gets the descriptor of a closed stream."""
    text = tmp_path / "text.txt"
    text.write_text("hello world, so many letters. " * 20, encoding="utf-8")
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"prompt": "hello"}', encoding="utf-8")
    source = tmp_path / "empty"
    source.mkdir()
    arguments = {
        "run": f"{tiny} -p hello -n 2 -t 1",
        "chat": f"{tiny} -n 2 -t 1",
        "batch": f"{requests} {tiny} -o {tmp_path}/%s.jsonl -n 2 -t 1",
        "pull": "--list",
        "models": "",
        "inspect": f"{tiny}",
        "tokenize": f"{tiny} hello",
        "embed": f"{tiny} hello -t 1",
        "convert": f"{source} -o {tmp_path}/out.gguf",
        "export": f"{tiny} -o {tmp_path}/%s",
        "bench": f"{tiny} --prompt 4 --gen 1 --repeat 1 -t 1",
        "compile": f"{tiny}",
        "perplexity": f"{tiny} {text} --ctx 16 -t 1",
    }[name]
    code = 2 if name == "convert" else 0
    for closing, expected in ((">&-", 2), ("<&- 2>&-", code)):
        target = "first" if expected == 2 else "second"
        command = f"{sys.executable} -m gumba {name} {arguments.replace('%s', target)} {closing}"
        result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
        assert result.returncode == expected, (closing, result)
        if closing == ">&-":
            assert "stdout is closed" in one_line(result.stderr)
        elif name in ("inspect", "models", "tokenize", "run", "bench", "perplexity", "pull", "compile"):
            assert result.stdout


def test_main_takes_its_arguments_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gumba", "pull", "--list"])
    assert main() == 0


def test_progress_without_a_terminal_is_an_occasional_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line for short work, a few lines for an hour."""
    from gumba import progress

    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    loud, quiet = progress.Progress("windows"), progress.Progress("windows", quiet=True)
    for second in range(3600):
        clock[0] = 100.0 + second
        for bar in (loud, quiet):
            bar("load" if second < 5 else "windows", second, 3600)
        if second == 9:
            assert capsys.readouterr().err == ""
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "gumba: windows 0%, 29:55 left, 10 of 3600"
    assert len(lines) < 12


def test_progress_without_a_total(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from gumba import progress

    monkeypatch.setattr(progress.time, "monotonic", iter([1.0, 100.0]).__next__)
    bar = progress.Progress()
    for i in (1, 2):
        bar("compiling kernels", 0, figure=str(i))
    assert capsys.readouterr().err == "gumba: compiling kernels 2\n"


def test_progress_counts_down_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar is redrawn between calls; the time left stays above zero; a cleared bar is not redrawn."""
    from gumba import progress

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_TICK_S", 0.001)
    clock = [10.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = progress.Progress()

    def drawn() -> str:
        terminal.seek(0)
        terminal.truncate()
        until = time.perf_counter() + 10
        while not terminal.getvalue() and time.perf_counter() < until:
            time.sleep(0.001)
        return terminal.getvalue().split("\r")[1].rstrip()

    with bar.ticking():
        bar("compile", 0, 1.0)
        clock[0] = 12.0
        bar("compile", 0.2, 1.0, rare=True)
        clock[0] = 15.0
        drawn()  # one that was under way
        assert drawn() == "compile  [####....................]  20%  0:05 left"
        clock[0] = 60.0
        drawn()
        assert drawn() == "compile  [####....................]  20%  0:01 left"
        bar.clear()
        terminal.seek(0)
        terminal.truncate()
    bar._redraw()
    assert terminal.getvalue() == ""


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_progress_on_a_terminal_without_a_size() -> None:
    """As in containers: the bar has 80 columns, and disappears at the end."""
    import pty

    terminal, stderr = pty.openpty()
    code = "from gumba.progress import Progress\nwith Progress() as bar: bar('load', 0.5, 1.0)"
    subprocess.run([sys.executable, "-c", code], stderr=stderr, check=True, timeout=60)
    drawn = os.read(terminal, 10_000).decode()
    os.close(stderr)
    os.close(terminal)
    assert drawn.split("\r")[1] == "load  [############............]  50%"
    assert drawn.split("\r")[-2].strip() == drawn.split("\r")[-1] == ""


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, "windows  perplexity 17.7438  [####....................]  20%  0:08 left  1 of 5"),
        (70, "windows  perplexity 17.7438  20%  0:08 left  1 of 5"),
        (40, "windows  perplexity 17.7438  20%"),
        (30, "windows  perplexity 17.7438"),
        (9, "windows"),
    ],
)
def test_progress_never_cuts_figures(monkeypatch: pytest.MonkeyPatch, columns: int, line: str) -> None:
    from gumba import progress

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(progress.time, "monotonic", iter([10.0, 12.0]).__next__)
    bar = progress.Progress("windows")
    bar("windows", 0, 5)
    terminal.seek(0)
    terminal.truncate()
    bar("windows", 1, 5, figure="perplexity 17.7438")
    assert terminal.getvalue().strip("\r ") == line
