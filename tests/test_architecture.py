"""docs/architecture.md and the pages that name source files: the files exist, and a request takes the way that is described."""

from __future__ import annotations

import ast
import re
import sys
import threading
from pathlib import Path
from types import FrameType

import pytest

import gumba
from gumba import SamplingParams

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / "architecture.md", DOCS / "glossary.md", *sorted((DOCS / "contributing").glob("*.md"))]
#: Paths in the pages are relative to one of these.
ROOTS = [ROOT, ROOT / "runtime" / "gumba", ROOT / "convert" / "gumba_convert"]
#: The most hops from ``LLM.generate`` to a kernel, and the most files on the way with those of both.
MAX_HOPS, MAX_FILES = 10, 9


def source(path: str) -> Path | None:
    return next((root / path for root in ROOTS if (root / path).is_file()), None)


def definitions(path: Path) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def request_path() -> list[tuple[str, str]]:
    """The steps of the section "A request": (path, function)."""
    section = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("## A request")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([\w/]+\.py)`, `([\w.]+)`", section, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_source_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    outside_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    paths = re.findall(r"`([\w/.-]+\.py)`", outside_code)
    missing = [path for path in paths if "NAME" not in path and source(path) is None]
    assert missing == []


def test_the_functions_that_the_page_names_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for path, name in re.findall(r"`([\w/]+\.py)`, `([\w.]+)`", text):
        file = source(path)
        assert file is not None and name in definitions(file), (path, name)


def test_a_request_takes_the_way_that_the_page_describes() -> None:
    """Each function of the list is called, in this order, and only by others of the list or by the engine's loop.

    The last one is machine code, which no profiler sees.
    """
    path = request_path()
    assert ("engine/scheduler.py", "Scheduler.schedule") in path  # which is no hop
    assert len(path) - 2 <= MAX_HOPS and len({file for file, _ in path}) <= MAX_FILES
    package = Path(gumba.__file__).parent  # which may be an installed copy
    functions = [(str(package / file), name.rpartition(".")[2]) for file, name in path[:-1]]
    loop = [(str(package / "engine/core.py"), name) for name in ("run", "_process_inbox", "_step")]
    callers: dict[tuple[str, str], tuple[str, str]] = {}

    def profile(frame: FrameType, event: str, _: object) -> None:
        function = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and function in functions and function not in callers:
            caller = frame.f_back
            while caller is not None and caller.f_code.co_name.startswith("<"):  # a comprehension
                caller = caller.f_back
            assert caller is not None
            callers[function] = caller.f_code.co_filename, caller.f_code.co_name

    threading.setprofile(profile)
    try:
        with gumba.LLM(ROOT / "tests" / "data" / "model_plain.gguf", n_threads=1) as llm:
            sys.setprofile(profile)
            try:
                llm.generate(["a"], SamplingParams(max_tokens=1, temperature=0))
            finally:
                sys.setprofile(None)
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    assert list(callers) == functions
    del callers[functions[0]]
    assert [caller for caller in callers.values() if caller not in (*functions, *loop)] == []
