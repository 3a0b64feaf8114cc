"""The examples of README.md and docs/: each block of Python runs by itself, each command has options that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from gumba.cli.commands import build_parser
from gumba.store import DEFAULT_MODEL, KNOWN

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
]
#: Their examples are parts of files and commands for a contributor's checkout.
CONTRIBUTING = sorted((ROOT / "docs" / "contributing").glob("*.md"))


def blocks(language):
    """The fenced blocks of a language: (page and line, text)."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match.group(1), id=f"{page.name}:{line}"))
    return found


@pytest.fixture(scope="module")
def pulled(real_model, tmp_path_factory):
    """A GUMBA_HOME with the default model."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    shutil.copyfile(real_model, home / "models" / KNOWN[DEFAULT_MODEL].filename)
    return home


@pytest.mark.model
@pytest.mark.parametrize("code", blocks("python"))
def test_every_block_of_python_runs_by_itself_and_prints(code, pulled, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GUMBA_HOME", str(pulled))
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    try:
        exec(compile(code, "example", "exec"), namespace)
        assert capsys.readouterr().out.strip() or "print(" not in code
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
            del sys.modules[name]  # one block registers it
        for value in namespace.values():
            if hasattr(value, "close") and not isinstance(value, type):
                value.close()


@pytest.mark.parametrize("code", blocks("sh"))
def test_every_command_has_the_options_of_its_examples(code):
    commands = [part for line in code.splitlines() for part in line.split(" && ")]
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "gumba":
            build_parser().parse_args(words[1:])


def test_the_two_commands_of_the_set_up_are_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "python3 -m venv .venv && . .venv/bin/activate && pip install . && gumba run" in text
    assert "pip install '.[test]' && python tools/test" in text


@pytest.mark.parametrize("page", PAGES + CONTRIBUTING, ids=lambda page: page.name)
def test_links_to_other_files_are_not_broken(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_first_screen_of_the_readme():
    """What it is, one command, one example, one table: in 40 lines."""
    first = "".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)[:40])
    assert "```sh" in first and "```python" in first and "| --- |" in first
