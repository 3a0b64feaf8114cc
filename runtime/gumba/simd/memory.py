"""Scalar loads, stores and atomics at raw addresses, for compiled functions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

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


def _pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, I64.as_pointer())


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at ``address`` (sequentially consistent: not read before an earlier atomic change is visible to all)."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.load_atomic(_pointer(b, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx: Any, address: Any, value: Any) -> Any:
    """Store an int64 at ``address`` (release)."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        b.store_atomic(args[1], _pointer(b, args[0]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at ``address``; returns what was there before (sequentially consistent)."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", _pointer(b, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_exchange(typingctx: Any, address: Any, value: Any) -> Any:
    """Replace the int64 at ``address``; returns what was there before (sequentially consistent)."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("xchg", _pointer(b, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_replace(typingctx: Any, address: Any, old: Any, new: Any) -> Any:
    """Store ``new`` at ``address`` if ``old`` is there; whether it was (sequentially consistent)."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        made = b.cmpxchg(_pointer(b, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return b.extract_value(made, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def spin_hint(typingctx: Any) -> Any:
    """Tell the processor that this is a waiting loop (x86 ``pause``, Arm ``yield``); nothing elsewhere."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        if b.module.triple.startswith(("x86_64", "i386", "i686")):
            Simd(b).call("llvm.x86.sse2.pause", ir.VoidType())
        elif b.module.triple.startswith(("aarch64", "arm64")):
            Simd(b).call("llvm.aarch64.hint", ir.VoidType(), Simd(b).constant(1, I32))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_address(typingctx: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call the C function ``void f(int64, int64, int64, int64)`` at an address."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * 4)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return types.void(*([types.int64] * 5)), codegen


@intrinsic
def call_pointer_int(typingctx: Any, function: Any, pointer: Any, number: Any) -> Any:
    """Call the C function ``int f(void *, int)`` at an address (also right for functions that take fewer arguments)."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(I32, [byte_pointer, I32])
        number = builder.trunc(args[2], I32)
        made = builder.call(
            builder.inttoptr(args[0], kind.as_pointer()), [builder.inttoptr(args[1], byte_pointer), number]
        )
        return builder.sext(made, I64)

    return types.int64(types.int64, types.int64, types.int64), codegen


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
