"""Where compiled code may be, and what may decide how it is compiled.

The kernel cache's key is a hash of the sources in COMPILED_FOLDERS: code compiled from a file elsewhere would be found again
after an edit of that file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import gumba
from gumba.jit.kernel_cache import COMPILED_FOLDERS

PACKAGE = Path(gumba.__path__[0])
#: What makes a function compiled, or part of a compiled one.
COMPILING = {
    "inline",
    "entry",
    "codec_entry",
    "intrinsic",
    "kernel",
    "simd_function",
    "array_at",
    "record_at",
    "compile_cfunc",
}
#: The only file that says how numba compiles, and those that may name numba besides it: what generates code for it.
FLAGS = "jit/codegen.py"
NUMBA_USERS = {FLAGS, "jit/jit.py", "quants/_compiled.py", "simd/value.py"}
#: Where numba is imported for its version.
NUMBA_ELSEWHERE = {"jit/kernel_cache.py"}
#: Numba's own decorators and options, which would bring settings of their own.
OF_NUMBA = {"njit", "jit", "cfunc", "vectorize", "guvectorize", "generated_jit", "prange"}
OPTIONS = {"fastmath", "boundscheck", "error_model", "nogil", "nopython"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def is_compiled(tree: ast.Module) -> bool:
    """Whether a file has a function that is called as, or decorated with, what compiles."""
    for node in ast.walk(tree):
        names = [node.func] if isinstance(node, ast.Call) else getattr(node, "decorator_list", [])
        if any((getattr(name, "id", None) or getattr(name, "attr", None)) in COMPILING for name in names):
            return True
    return False


def folder_of(name: str) -> str | None:
    return next((folder for folder in COMPILED_FOLDERS if name.startswith(folder + "/")), None)


def test_the_folders_named_are_those_with_compiled_code() -> None:
    compiled = [name for name, tree in sources() if is_compiled(tree)]
    assert [name for name in compiled if folder_of(name) is None] == []
    assert {folder_of(name) for name in compiled} == set(COMPILED_FOLDERS)
    assert len(compiled) >= 40


def test_no_folder_lies_in_another() -> None:
    assert [(a, b) for a in COMPILED_FOLDERS for b in COMPILED_FOLDERS if a.startswith(b + "/")] == []


def test_one_file_decides_how_numba_compiles() -> None:
    """Numba's decorators and their options are nowhere: all code is compiled with the FLAGS of jit/codegen.py."""
    users, violations = set(), []
    for name, tree in sources():
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(module.split(".")[0] == "numba" for module in modules):
                users.add(name)
                names = [alias.name for alias in node.names]  # type: ignore[union-attr]
                violations += [f"{name}: {used}" for used in names if used in OF_NUMBA]
            elif isinstance(node, ast.keyword) and node.arg in OPTIONS:
                violations.append(f"{name}: {node.arg}=")
            elif (
                isinstance(node, ast.Attribute)
                and getattr(node.value, "id", "") in ("numba", "nb")
                and node.attr in OF_NUMBA
            ):
                violations.append(f"{name}: numba.{node.attr}")
    assert violations == []
    assert users - NUMBA_USERS == NUMBA_ELSEWHERE
    assert users >= NUMBA_USERS
    flags = (PACKAGE / FLAGS).read_text(encoding="utf-8")
    assert "FLAGS: dict[str, bool | str] = {" in flags and '"fastmath"' not in flags
