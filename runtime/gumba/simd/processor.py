"""What the processor offers that code is compiled for."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

from gumba.jit.object_file import compiler_settings

#: Of Linux on x86-64: the system call arch_prctl, its codes to get the processor states that a process may request, and to
#: request one, and the number of the tiles' state.
_ARCH_PRCTL, _GET_SUPPORTED, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1021, 0x1023, 18


def _machine() -> str:
    return platform.machine().lower()


def _arch_prctl(code: int, argument: object) -> bool:
    """Whether the system call was successful."""
    if not sys.platform.startswith("linux") or _machine() not in ("x86_64", "amd64"):
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, code, argument) == 0)


def offers_tiles() -> bool:
    """Whether the system gives tiles to processes that request them."""
    states = ctypes.c_uint64()
    return _arch_prctl(_GET_SUPPORTED, ctypes.byref(states)) and bool(states.value >> _TILE_DATA & 1)


@functools.cache
def request_tiles() -> bool:
    """Request the tiles, for all threads of this process; whether it has them.

    Linux refuses them to a process that has a thread with a small alternate signal stack, and later refuses such stacks (8 KB)
    to a process that has them: so this is for processes that are about to use them.
    """
    return _arch_prctl(_REQUEST_PERMISSION, _TILE_DATA)


@functools.cache
def features() -> frozenset[str]:
    """The LLVM feature names of the processor that code is generated for: those that numba hands to LLVM.

    ``NUMBA_CPU_FEATURES`` replaces the processor's own, ``NUMBA_CPU_NAME=generic`` leaves none of them, ``NUMBA_ENABLE_AVX=0``
    those without AVX; any other ``NUMBA_CPU_NAME`` only tunes. 64-bit Arm has NEON by definition, but not every system
    reports its other features: Apple's processors are known by name (M1: dot products; since M2: also integer matrix products).
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
    if "amx-tile" in have and not offers_tiles():
        have.discard("amx-tile")
    if _machine() in ("aarch64", "arm64"):
        have.add("neon")
    return frozenset(have)


def has_fma() -> bool:
    """Whether it multiplies and adds float32 vectors with one rounding: x86 since 2013, and every 64-bit Arm."""
    return not features().isdisjoint({"fma", "neon"})
