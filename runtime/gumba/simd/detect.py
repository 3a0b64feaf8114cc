"""Which instruction sets there are, which of them this processor has, and which one is in use.

``GUMBA_ISA`` selects a lesser set than the processor's best, so that every path is tested on one machine.
"""

from __future__ import annotations

import functools
import os
import platform

from gumba.errors import EngineError
from gumba.jit.object_file import compiler_settings
from gumba.simd import avx2, avx512_bf16, avx512_vnni, avx_vnni, generic, neon, neon_base, neon_i8mm
from gumba.simd.isa import Isa

#: Every instruction set by name, best first within each processor family.
_SETS = {
    isa.name: isa
    for isa in (
        avx512_bf16.ISA,
        avx512_vnni.ISA,
        avx_vnni.ISA,
        avx2.ISA,
        neon_i8mm.ISA,
        neon.ISA,
        neon_base.ISA,
        generic.ISA,
    )
}


def known() -> dict[str, Isa]:
    """All instruction sets by name, best first within each processor family."""
    return dict(_SETS)


def _machine() -> str:
    return platform.machine().lower()


@functools.cache
def features() -> frozenset[str]:
    """The LLVM feature names of the processor that code is generated for: those that numba hands to LLVM.

    ``NUMBA_CPU_FEATURES`` replaces the processor's own, ``NUMBA_CPU_NAME=generic`` leaves none of them, ``NUMBA_ENABLE_AVX=0``
    those without AVX; any other ``NUMBA_CPU_NAME`` only tunes. 64-bit Arm has NEON by definition, but not every system
    tells what else: Apple's processors are known by name (M1: dot products, from M2 on also integer matrix products).
    """
    import llvmlite.binding as llvm

    settings = compiler_settings()
    forced = settings["CPU_FEATURES"]
    if forced is not None:
        have = {f[1:] for f in forced.split(",") if f.startswith("+")}
    else:
        have = {name for name, there in llvm.get_host_cpu_features().items() if there}
        if settings["ENABLE_AVX"] is not None:
            have = {name for name in have if not name.startswith("avx")}
        name = settings["CPU_NAME"] or llvm.get_host_cpu_name()
        if name.startswith("apple-m"):
            have |= {"dotprod"} if name == "apple-m1" else {"dotprod", "i8mm"}
    if _machine() in ("aarch64", "arm64"):
        have.add("neon")
    return frozenset(have)


def available() -> list[str]:
    """Names of the sets that this processor can run, best first."""
    have = features()
    return [n for n, isa in known().items() if any(have.issuperset(need) for need in isa.needs)]


@functools.cache
def _choose(name: str) -> Isa:
    names = available()
    if not name:
        return known()[names[0]]
    if name not in names:
        raise EngineError(f"GUMBA_ISA={name}: expected one that this processor has: {', '.join(names)}")
    return known()[name]


def current() -> Isa:
    """The instruction set in use: the processor's best, or the one that ``GUMBA_ISA`` names."""
    return _choose(os.environ.get("GUMBA_ISA", "").strip().lower())
