"""gumba compile: other processes find all kernels in the cache."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gumba.jit import kernel_cache

#: What shows after an edit, even one that is taken back: nothing that a process compiles from then on is kept.
EDITED = "gumba's sources were edited while this test ran"
CHILD = """
import json, sys
from gumba import LLM, SamplingParams
with LLM(sys.argv[1], n_threads=2) as llm:
    text = llm.generate("hello", SamplingParams(max_tokens=2, seed=1))[0].text
    llm.generate("hello", SamplingParams(max_tokens=1, seed=1, top_k=0, top_p=0.9))
from gumba.jit import jit
print(json.dumps([jit.stats.compiled, jit.stats.loaded > 8, "numba" in sys.modules]))
"""


def test_a_model_then_runs_without_compiler(
    gumba_process: Callable, tiny: Path, nearly_full_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing kernels are compiled; then the model finds all kernels in the cache."""
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(nearly_full_cache))
    monkeypatch.setenv("GUMBA_ISA", "generic")
    sources = kernel_cache._sources_state()
    first, second = gumba_process("compile", str(tiny)), gumba_process("compile", str(tiny))
    if kernel_cache._sources_state() != sources:
        pytest.skip(EDITED)
    assert first.code == second.code == 0 and str(nearly_full_cache) in first.out
    assert first.out.startswith("1 of") and second.out.startswith("0 of")
    ran = subprocess.run([sys.executable, "-c", CHILD, str(tiny)], stdout=subprocess.PIPE, check=True, timeout=120)
    assert json.loads(ran.stdout) == [0, True, False]


def test_kernels_for_an_application(gumba_process: Callable, tiny: Path, generic_kernels: Path, tmp_path: Path) -> None:
    """All kernels of the model, compiled now or earlier, are in a folder named after the hash of their sources."""
    result = gumba_process("compile", str(tiny), "--output", str(tmp_path / "again"), GUMBA_ISA="generic")
    assert result.code == 0 and str(tmp_path / "again") in result.out
    folders = generic_kernels, tmp_path / "again" / generic_kernels.name
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second and len(first) > 8
    (tmp_path / "file").touch()
    result = gumba_process("compile", str(tiny), "--output", str(tmp_path / "file"), GUMBA_ISA="generic")
    assert result.code == 2 and "cannot write kernels into" in result.err


#: Loads and runs a model, and compares what that calls for with what it says it will need.
NEEDED = """
import sys
from pathlib import Path
from gumba.backends.cpu.kernels import record
from gumba.jit import jit
made, make = [], jit._make
jit._make = lambda function, signature, name, *how: (made.append(name), make(function, signature, name, *how))[1]
jit.is_kept = record.is_kept = lambda name, signature: False
from gumba.runner import aot
top_k = int(sys.argv[2])
functions = aot.first_functions(Path(sys.argv[1]), None, top_k=top_k)
needed = {each.name if isinstance(each, jit.Entry) else f"kernel.{each.name}" for each in functions}
from gumba import LLM, SamplingParams
with LLM(sys.argv[1], n_threads=2) as llm:
    llm.generate("hello", SamplingParams(max_tokens=2, seed=1, top_k=top_k))
decoders = [name for name in made if name.startswith("quants.") and "_finite" not in name]  # of vectors
made = set(made) - set(decoders)
assert made == needed, (made - needed, needed - made)
"""


@pytest.mark.parametrize("top_k", [0, 40])
def test_functions_of_the_first_answer(tiny: Path, top_k: int) -> None:
    """No other function is compiled, and every counted one is called."""
    subprocess.run([sys.executable, "-c", NEEDED, str(tiny), str(top_k)], check=True, timeout=120)


def test_a_file_that_cannot_run_needs_nothing(tmp_path: Path) -> None:
    from gumba.runner.aot import first_functions

    (tmp_path / "bad.gguf").write_bytes(b"GGUF but no more")
    assert first_functions(tmp_path / "bad.gguf", None) == []


def test_kernels_compiled_later_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cache miss compiles all known functions; later ones are counted one by one."""
    from gumba.cli.open_model import Compilation
    from gumba.jit import jit
    from gumba.progress import Progress

    class Function:
        name = "f"

        def __init__(self, name: str) -> None:
            self.py_func = type(name, (), {})

        def compile(self) -> None:
            jit.stats.compiled += 0

    said: list[tuple[float, str]] = []
    bar = Progress()
    monkeypatch.setattr(Progress, "__call__", lambda *a, figure, rare: said.append((round(a[2], 2), figure)))
    functions: Any = [Function("attention"), Function("rope")]
    compilation = Compilation(bar, lambda: functions, quiet=True)
    for _ in range(2):
        with compilation.watching():
            pass
    assert said == [(0, "1 of 2"), (0.9, "2 of 2"), (1, "2 of 2"), (0, "3 of 3")]


def test_a_full_disk_is_no_success(gumba: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gumba.jit.kernel_cache import cache_folder, write
    from gumba.runner import aot

    def compile_all(path: object, report: object, *, portable: bool) -> int:
        folder = cache_folder()
        assert folder is not None
        monkeypatch.setattr(kernel_cache, "write_file", full)
        for name in "abcde":
            write(folder / name, b"code")
        return 7

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(aot, "compile_all", compile_all)
    monkeypatch.setattr(kernel_cache, "_warned", set())
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(tmp_path))
    cache_folder.cache_clear()
    result = gumba("compile")
    cache_folder.cache_clear()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("gumba: error: could not write 5 of 7 compiled functions to ")
    assert result.err.endswith(": No space left on device\n")


def test_without_a_cache(gumba_process: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUMBA_CACHE_DIR", "")
    result = gumba_process("compile")
    assert result.code == 2 and "no kernel cache" in result.err


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the system knows every user's folder")
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, gumba: Callable) -> None:
    """No HOME, and no entry in the list of users: one line."""
    import pwd

    def unknown(*_: object) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "GUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    kernel_cache.cache_folder.cache_clear()
    result = gumba("compile")
    kernel_cache.cache_folder.cache_clear()
    assert (result.code, result.out) == (2, "") and result.err.count("\n") == 1
    assert result.err.startswith("gumba: error: no kernel cache to compile into: the user's cache folder")
