"""Which instruction sets there are, which of them this processor has, and which one is in use.

``GUMBA_ISA`` selects another set than the processor's best, so that every set can be tested on one machine.
"""

from __future__ import annotations

import functools
import os

from gumba.errors import EngineError
from gumba.simd import avx2, avx512_amx, avx512_bf16, avx512_vnni, avx_vnni, generic, neon, neon_base, neon_i8mm
from gumba.simd.isa import Isa
from gumba.simd.processor import features, request_tiles

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
    if name and name not in names:
        raise EngineError(f"GUMBA_ISA={name}: expected one that this processor has: {', '.join(names)}")
    isa = known()[name or names[0]]
    if isa.matrix_unit is None or request_tiles():
        return isa
    if name:
        raise EngineError(
            f"GUMBA_ISA={name}: the system refuses AMX's tiles to this process, as it does where a thread has a small alternate "
            "signal stack (of a crash handler, for one): load the model before, or use avx512_vnni"
        )
    # The same bits, and where there is AMX also faster than with bfloat16 (see avx512_amx).
    return next(known()[n] for n in names if known()[n].matrix_unit is None and known()[n].dot_bf16 is None)


def current() -> Isa:
    """The instruction set in use: the processor's best, or the one that ``GUMBA_ISA`` names."""
    return _choose(os.environ.get("GUMBA_ISA", "").strip().lower())
