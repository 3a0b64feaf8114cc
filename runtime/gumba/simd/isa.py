"""What one instruction set offers to the kernels, and how the processor's own is chosen.

Only these primitives differ between processors; everything else is written once on top of them. Each set is one file that
makes one ``Isa``. ``GUMBA_ISA`` forces a lesser set than the processor's best, so that every path is tested on one machine.

An integer dot product starts from ``start`` (32-bit lanes) and adds, in each lane, the products of groups of four bytes:
``weights`` times ``acts``, each a list of registers of ``4 * lanes`` bytes. Its result is exact, so it is the same on all sets.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gumba.errors import EngineError
from gumba.simd.value import F16, F32, I16, I32, Simd, Value

#: dot(s, start, weights, acts, w_max): w_max bounds the weights' absolute value.
Dot = Callable[[Simd, Value, Sequence[Value], Sequence[Value], int], Value]
#: dot_tile(s, starts, weights, acts, w_max, signed): one result per start; ``acts`` are the addresses of as many tokens' bytes.
DotTile = Callable[[Simd, Sequence[Value], Sequence[Value], Sequence[Value], int, bool], list[Value]]


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    ``lanes``: 32-bit lanes of its register. ``needs``: one tuple of LLVM feature names per sufficient combination.
    ``dot_unsigned``: weights 0..255 (0..w_max) times signed activations. ``dot_signed``: both signed; None where only the
    unsigned form is fast: 8-bit weights are then stored with 128 added. ``has_fma``, ``has_f16``: fused multiply-add, and
    half-precision conversion in hardware. ``tiles``: numbers of tokens that a matrix product takes at once, largest first.
    ``dot_tile``: the dot products of a whole tile of tokens with the same weights, where that is faster than one by one.
    ``dot_bf16``, ``round_bf16``: what ``pair_dot`` and ``to_bf16`` do, where there are instructions for it.
    """

    name: str
    lanes: int
    needs: tuple[tuple[str, ...], ...]
    dot_unsigned: Dot
    dot_signed: Dot | None
    has_fma: bool
    has_f16: bool
    tiles: tuple[int, int, int, int]
    dot_tile: DotTile | None = None
    dot_bf16: Callable[[Simd, Value, Value, Value], Value] | None = None
    round_bf16: Callable[[Simd, Value], Value] | None = None

    def multiply_add(self, s: Simd, a: Value, x: Value, acc: Value) -> Value:
        """``a * x + acc`` in float32: one rounding where the set has it, two elsewhere."""
        return s.fma(a, x, acc) if self.has_fma else a * x + acc

    def from_f16(self, s: Simd, half: Value) -> Value:
        """float16 to float32, exact (also infinities, NaN and subnormals)."""
        if self.has_f16:
            return half.to(F32)
        n = half.lanes
        bits = half.bits(I16, n).unsigned_to(I32)
        magnitude = ((bits & 0x7FFF) << 13).bits(F32, n) * float(2.0**112)
        infinite = magnitude.compare(">=", 65536.0)
        magnitude = s.select(infinite, (magnitude.bits(I32, n) | 0x7F800000).bits(F32, n), magnitude)
        return (magnitude.bits(I32, n) | ((bits & 0x8000) << 16)).bits(F32, n)

    def to_bf16(self, s: Simd, value: Value) -> Value:
        """float32 to bfloat16 (as 16-bit integers), to nearest even. NaN stays NaN; subnormals may become zero."""
        if self.round_bf16 is not None and value.lanes == self.lanes:
            return self.round_bf16(s, value)
        bits = value.bits(I32, value.lanes)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return s.select(value.compare("==", value), rounded, s.constant(0x7FC0, I32, value.lanes)).to(I16)

    def pair_dot(self, s: Simd, acc: Value, a: Value, b: Value) -> Value:
        """``acc`` (float32) plus, in each lane, the two products of pairs of bfloat16; a, b: pairs as 32-bit integers."""
        if self.dot_bf16 is not None:
            return self.dot_bf16(s, acc, a, b)
        n = acc.lanes
        for part in (lambda x: x << 16, lambda x: x & -65536):
            acc = self.multiply_add(s, part(a).bits(F32, n), part(b).bits(F32, n), acc)
        return acc

    def to_f16(self, s: Simd, value: Value) -> Value:
        """float32 to float16, to nearest even; too large becomes infinity."""
        if self.has_f16:
            return value.to(F16)
        n = value.lanes
        bits = value.bits(I32, n)
        magnitude = bits & 0x7FFFFFFF
        # Normal results: round at bit 13 by adding half of it (and one more when the kept part is odd).
        rounded = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13
        # Subnormal results: adding 0.5 leaves their bits, rounded by the addition itself, at the bottom of the sum.
        small = (magnitude.bits(F32, n) + 0.5).bits(I32, n) - 0x3F000000
        result = s.select(magnitude.compare("<", 113 << 23), small, rounded)
        result = s.select(magnitude.compare(">=", 0x477FF000), s.constant(0x7C00, I32, n), result)
        result = s.select(magnitude.compare(">", 0x7F800000), s.constant(0x7E00, I32, n), result)
        return (result | ((bits >> 16) & 0x8000)).to(I16).bits(F16, n)


def known() -> dict[str, Isa]:
    """All instruction sets by name, best first within each processor family."""
    from gumba.simd import avx2, avx512_bf16, avx512_vnni, avx_vnni, generic, neon, neon_base, neon_i8mm

    sets = (
        avx512_bf16.ISA,
        avx512_vnni.ISA,
        avx_vnni.ISA,
        avx2.ISA,
        neon_i8mm.ISA,
        neon.ISA,
        neon_base.ISA,
        generic.ISA,
    )
    return {isa.name: isa for isa in sets}


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

    from gumba.jit.object_file import compiler_settings

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
