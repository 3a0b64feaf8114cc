"""Scalar loads, stores and atomics at raw addresses, for compiled functions."""

from __future__ import annotations

from llvmlite import ir

from gumba.simd.value import F32, I8, I16, I32, I64, Simd, Value, simd_function


@simd_function("i8(i8)")
def load_i64(s: Simd, address: Value) -> Value:
    return s.load(address, I64)


@simd_function("i8(i8)")
def load_i32(s: Simd, address: Value) -> Value:
    return s.load(address, I32).to(I64)


@simd_function("i8(i8)")
def load_i16(s: Simd, address: Value) -> Value:
    return s.load(address, I16).to(I64)


@simd_function("i8(i8)")
def load_i8(s: Simd, address: Value) -> Value:
    return s.load(address, I8).to(I64)


@simd_function("f4(i8)")
def load_f32(s: Simd, address: Value) -> Value:
    return s.load(address, F32)


@simd_function("void(i8, f4)")
def store_f32(s: Simd, address: Value, value: Value) -> None:
    s.store(address, value)


@simd_function("void(i8, i8)")
def store_i64(s: Simd, address: Value, value: Value) -> None:
    s.store(address, value)


@simd_function("void(i8, i8)")
def store_i32(s: Simd, address: Value, value: Value) -> None:
    s.store(address, value.to(I32))


@simd_function("void(i8, i8)")
def store_i16(s: Simd, address: Value, value: Value) -> None:
    s.store(address, value.to(I16))


@simd_function("void(i8, i8)")
def store_i8(s: Simd, address: Value, value: Value) -> None:
    s.store(address, value.to(I8))


def _pointer(s: Simd, address: Value) -> ir.Value:
    return s.b.inttoptr(address.ir, I64.as_pointer())


@simd_function("i8(i8)")
def atomic_load(s: Simd, address: Value) -> Value:
    """The int64 at ``address`` (sequentially consistent: not read before an earlier atomic change is visible to all)."""
    return Value(s.b, s.b.load_atomic(_pointer(s, address), "seq_cst", 8))


@simd_function("void(i8, i8)")
def atomic_store(s: Simd, address: Value, value: Value) -> None:
    """Store an int64 at ``address`` (release)."""
    s.b.store_atomic(value.ir, _pointer(s, address), "release", 8)


@simd_function("i8(i8, i8)")
def atomic_add(s: Simd, address: Value, value: Value) -> Value:
    """Add to the int64 at ``address``; returns what was there before (sequentially consistent)."""
    return Value(s.b, s.b.atomic_rmw("add", _pointer(s, address), value.ir, "seq_cst"))


@simd_function("i8(i8, i8)")
def atomic_exchange(s: Simd, address: Value, value: Value) -> Value:
    """Replace the int64 at ``address``; returns what was there before (sequentially consistent)."""
    return Value(s.b, s.b.atomic_rmw("xchg", _pointer(s, address), value.ir, "seq_cst"))


@simd_function("b1(i8, i8, i8)")
def atomic_replace(s: Simd, address: Value, old: Value, new: Value) -> Value:
    """Store ``new`` at ``address`` if ``old`` is there; whether it was (sequentially consistent)."""
    result = s.b.cmpxchg(_pointer(s, address), old.ir, new.ir, "seq_cst", "seq_cst")
    return Value(s.b, s.b.extract_value(result, 1))


@simd_function("void()")
def spin_hint(s: Simd) -> None:
    """Tell the processor that this is a waiting loop (x86 ``pause``, Arm ``yield``); nothing elsewhere."""
    if s.b.module.triple.startswith(("x86_64", "i386", "i686")):
        s.call("llvm.x86.sse2.pause", ir.VoidType())
    elif s.b.module.triple.startswith(("aarch64", "arm64")):
        s.call("llvm.aarch64.hint", ir.VoidType(), s.constant(1, I32))


@simd_function("void(i8, i8, i8, i8, i8)")
def call_address(s: Simd, function: Value, a: Value, b: Value, c: Value, d: Value) -> None:
    """Call the C function ``void f(int64, int64, int64, int64)`` at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 4)
    s.b.call(s.b.inttoptr(function.ir, kind.as_pointer()), [a.ir, b.ir, c.ir, d.ir])


@simd_function("i8(i8, i8, i8)")
def call_pointer_int(s: Simd, function: Value, pointer: Value, number: Value) -> Value:
    """Call the C function ``int f(void *, int)`` at an address (also right for functions that take fewer arguments)."""
    byte_pointer = I8.as_pointer()
    kind = ir.FunctionType(I32, [byte_pointer, I32])
    address = s.b.inttoptr(function.ir, kind.as_pointer())
    result = s.b.call(address, [s.b.inttoptr(pointer.ir, byte_pointer), number.to(I32).ir])
    return Value(s.b, result).to(I64)


__all__ = [
    "atomic_add",
    "atomic_exchange",
    "atomic_load",
    "atomic_replace",
    "atomic_store",
    "call_address",
    "call_pointer_int",
    "load_f32",
    "load_i8",
    "load_i16",
    "load_i32",
    "load_i64",
    "spin_hint",
    "store_f32",
    "store_i8",
    "store_i16",
    "store_i32",
    "store_i64",
]
