"""Every kernel against its oracle, in one run and in shares, on every instruction set that it is made for."""

from __future__ import annotations

import ast
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import gumba.backends.cpu.kernels
from gumba.backends.cpu.kernels import record
from gumba.backends.cpu.kernels.record import Kernel, f4, share
from gumba.simd.isa import Isa
from support import kernel_setups
from support.kernel_harness import GENERIC, ISAS, ISAS_BUT_BF16, Setup, isa_id, read_of_isa

#: Kernels that are no operations of a model, with their oracles in a file of their own.
ELSEWHERE = {
    "roofline.dot_int8",
    "roofline.fma_float32",
    "roofline.pairs_bf16",
    "roofline.read_memory",
}  # test_roofline.py


def declared() -> set[str]:
    """``module.name`` of every function in gumba.backends.cpu.kernels that is decorated with ``@kernel``."""
    found = set()
    for path in Path(gumba.backends.cpu.kernels.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", ()):
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if "kernel" in (getattr(called, "id", ""), getattr(called, "attr", "")):
                    found.add(f"{path.stem}.{node.name}")
    return found


def test_every_kernel_has_an_oracle() -> None:
    assert declared() == set(kernel_setups.TABLE) | ELSEWHERE
    assert len(declared()) >= 10


def isas_of(name: str) -> list[Isa]:
    """The instruction sets that a kernel is code of its own for."""
    module = importlib.import_module(f"gumba.backends.cpu.kernels.{name.split('.')[0]}")
    return ISAS if read_of_isa(module) & {"dot_bf16", "round_bf16"} else ISAS_BUT_BF16


@pytest.mark.parametrize(
    "name, isa", [(name, isa) for name in sorted(kernel_setups.TABLE) for isa in isas_of(name)], ids=isa_id
)
def test_kernel_computes_what_its_oracle_does(name: str, isa: Isa) -> None:
    make: Callable[[Isa], Setup] = kernel_setups.TABLE[name]
    setup = make(isa)
    assert setup.kernel.name.split("[")[0] == name.split(".")[1]
    setup.check()


def test_a_step_without_rows_writes_nothing() -> None:
    for name, make in kernel_setups.TABLE.items():
        setup = make(GENERIC)
        before = setup.out.tobytes()
        setup.batch.words[[record.N_TOKENS // 8, record.N_TILES // 8, record.N_OUTPUTS // 8, record.N_RUNS // 8]] = 0
        for n_threads in (1, 3):
            setup.run(n_threads)
            assert setup.out.tobytes() == before, name


def test_cache_names_differ() -> None:
    """Two kernels of one name would take each other's machine code from the cache."""
    names = [name.split(".")[1] for name in kernel_setups.TABLE]
    assert len(names) == len(set(names))


# How an operation is declared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 1000, 2**40])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 16])
def test_shares_cover_everything_once(n: int, n_threads: int) -> None:
    bounds = [share.py_func(n, thread, n_threads) for thread in range(n_threads + 1)]
    assert bounds[0] == 0 and bounds[-1] == n
    sizes = [high - low for low, high in itertools.pairwise(bounds)]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 0


def _takes_two(batch, thread, n_threads, count, scale: f4):  # type: ignore[no-untyped-def]
    """Never compiled."""


def test_words_are_the_arguments_in_order() -> None:
    kernel = Kernel(_takes_two, "")
    assert kernel.words({"scale": 1.0, "count": 5}) == [5, 0x3F800000]
    assert kernel.words({"count": -1, "scale": -2.5}) == [-1, 0xC0200000]


@pytest.mark.parametrize(
    "values", [{}, {"count": 1}, {"count": 1, "scale": 1.0, "more": 2}, {"Count": 1, "scale": 1.0}]
)
def test_words_want_every_argument_and_no_other(values: dict[str, int | float]) -> None:
    with pytest.raises(ValueError, match="_takes_two"):
        Kernel(_takes_two, "").words(values)


def test_a_kernel_has_as_many_arguments_as_a_record() -> None:
    scope: dict[str, Callable[..., None]] = {}
    for n in (record.MAX_ARGUMENTS, record.MAX_ARGUMENTS + 1):
        exec(f"def k{n}(batch, thread, n_threads, {', '.join(f'a{i}' for i in range(n))}): pass", scope)
    Kernel(scope[f"k{record.MAX_ARGUMENTS}"], "")
    with pytest.raises(ValueError, match="arguments"):
        Kernel(scope[f"k{record.MAX_ARGUMENTS + 1}"], "")
