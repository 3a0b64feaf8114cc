"""Which instruction sets there are, which of them this processor has, and which one is in use.

``GUMBA_ISA`` selects another set than the processor's best, so that every set can be tested on one machine.
"""

from __future__ import annotations

import functools
import os

from gumba.errors import EngineError
from gumba.simd import avx2, avx512_amx, avx512_bf16, avx512_vnni, avx_vnni, generic, neon, neon_base, neon_i8mm
from gumba.simd.isa import Isa
from gumba.simd.processor import features

#: Every instruction set by name, best first within each processor family.
_SETS = {
    isa.name: isa
    for isa in (
        avx512_amx.ISA,
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
