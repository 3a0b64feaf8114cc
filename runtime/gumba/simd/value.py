"""Vector arithmetic inside numba: LLVM values with operators, so that a micro-kernel reads as arithmetic.

A micro-kernel is a Python function that runs once, while code is generated. Its first argument is a ``Simd``; the others are
``Value``s standing for run-time numbers. Plain Python loops in it are the unrolling; ``simd.loop`` is a loop at run time::

    @simd_function("void(i8, i8, i8)")
    def scale(s, x, out, n):                       # n vectors of 16 floats
        with s.loop(n) as i:
            s.store(out + i * 64, s.load(x + i * 64, F32, 16) * 2.0)

Addresses and counts are 64-bit integers (``i8`` in the signature), floats are 32-bit (``f4``). Nothing is checked here:
everything is checked before it reaches a kernel (sizes when a program is written, indices when a request is accepted).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from llvmlite import ir

from gumba.jit.jit import Intrinsic

if TYPE_CHECKING:
    from numba.core.base import BaseContext
    from numba.core.typing.templates import Signature

    from gumba.jit.codegen import CodeGenerator

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_FLOATS = (ir.HalfType, ir.FloatType, ir.DoubleType)
_NUMBA = {"i8": "int64", "i4": "int32", "f4": "float32", "b1": "boolean", "void": "void"}


def vector(element: ir.Type, lanes: int) -> ir.Type:
    """The LLVM type of ``lanes`` elements; a plain scalar for one lane."""
    return ir.VectorType(element, lanes) if lanes > 1 else element


def _element(type_: ir.Type) -> ir.Type:
    return type_.element if isinstance(type_, ir.VectorType) else type_


def _lanes(type_: ir.Type) -> int:
    return type_.count if isinstance(type_, ir.VectorType) else 1


def _declared(builder: ir.IRBuilder, kind: ir.FunctionType, name: str) -> ir.Function:
    """The function ``name`` of the module under construction, declared on its first use."""
    function = builder.module.globals.get(name)
    return ir.Function(builder.module, kind, name) if function is None else function


class Value:
    """One LLVM value, scalar or vector. Python numbers mix in as constants; operators act lane by lane."""

    __slots__ = ("b", "ir")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.b = builder
        self.ir = value

    @property
    def type(self) -> ir.Type:
        return self.ir.type

    @property
    def lanes(self) -> int:
        return _lanes(self.ir.type)

    @property
    def is_float(self) -> bool:
        return isinstance(_element(self.ir.type), _FLOATS)

    def _other(self, other: Value | int | float) -> ir.Value:
        if isinstance(other, Value):
            return other.ir
        number = float(other) if self.is_float else int(other)
        return ir.Constant(self.type, [number] * self.lanes if self.lanes > 1 else number)

    def _with(self, value: ir.Value) -> Value:
        return Value(self.b, value)

    def __add__(self, o: Value | int | float) -> Value:
        return self._with((self.b.fadd if self.is_float else self.b.add)(self.ir, self._other(o)))

    def __sub__(self, o: Value | int | float) -> Value:
        return self._with((self.b.fsub if self.is_float else self.b.sub)(self.ir, self._other(o)))

    def __mul__(self, o: Value | int | float) -> Value:
        return self._with((self.b.fmul if self.is_float else self.b.mul)(self.ir, self._other(o)))

    def __truediv__(self, o: Value | int | float) -> Value:
        return self._with(self.b.fdiv(self.ir, self._other(o)))

    def __and__(self, o: Value | int) -> Value:
        return self._with(self.b.and_(self.ir, self._other(o)))

    def __or__(self, o: Value | int) -> Value:
        return self._with(self.b.or_(self.ir, self._other(o)))

    def __xor__(self, o: Value | int) -> Value:
        return self._with(self.b.xor(self.ir, self._other(o)))

    def __lshift__(self, o: Value | int) -> Value:
        return self._with(self.b.shl(self.ir, self._other(o)))

    def __rshift__(self, o: Value | int) -> Value:
        """Logical shift: zeros come in from the left."""
        return self._with(self.b.lshr(self.ir, self._other(o)))

    def shift_right_signed(self, bits: int) -> Value:
        """Arithmetic shift: copies of the sign come in from the left."""
        return self._with(self.b.ashr(self.ir, self._other(bits)))

    def compare(self, operator: str, o: Value | int | float) -> Value:
        """Lane-wise comparison (integers signed, floats ordered), for ``Simd.select``."""
        compare = self.b.fcmp_ordered if self.is_float else self.b.icmp_signed
        return self._with(compare(operator, self.ir, self._other(o)))

    def to(self, element: ir.Type) -> Value:
        """Convert the numbers: between integers (signed), between floats, or between the two (towards zero)."""
        source, target = _element(self.type), vector(element, self.lanes)
        if source == element:
            return self
        b, to_float = self.b, isinstance(element, _FLOATS)
        if not self.is_float and not to_float:
            return self._with(b.sext(self.ir, target) if element.width > source.width else b.trunc(self.ir, target))
        if not self.is_float:
            return self._with(b.sitofp(self.ir, target))
        if not to_float:
            return self._with(b.fptosi(self.ir, target))
        sizes = [F16, F32, F64]
        wider = sizes.index(element) > sizes.index(source)
        return self._with(b.fpext(self.ir, target) if wider else b.fptrunc(self.ir, target))

    def unsigned_to(self, element: ir.Type) -> Value:
        """Widen integers, filling with zeros."""
        return self._with(self.b.zext(self.ir, vector(element, self.lanes)))

    def bits(self, element: ir.Type, lanes: int) -> Value:
        """The same bits read as another type."""
        return self._with(self.b.bitcast(self.ir, vector(element, lanes)))


class Variable:
    """A value that changes from one turn of a run-time loop to the next (LLVM keeps it in a register)."""

    __slots__ = ("b", "slot")

    def __init__(self, builder: ir.IRBuilder, initial: Value) -> None:
        self.b = builder
        with builder.goto_entry_block():
            self.slot = builder.alloca(initial.type)
        self.set(initial)

    def get(self) -> Value:
        return Value(self.b, self.b.load(self.slot))

    def set(self, value: Value) -> None:
        self.b.store(value.ir, self.slot)


class Simd:
    """What a micro-kernel can do besides the operators of ``Value``."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def constant(self, number: float | Sequence[float], element: ir.Type, lanes: int = 1) -> Value:
        """A constant: one number for all lanes, or one per lane."""
        if lanes > 1 and not isinstance(number, Sequence):
            number = [number] * lanes
        return Value(self.b, ir.Constant(vector(element, lanes), number))

    def zero(self, element: ir.Type, lanes: int = 1) -> Value:
        return self.constant(0.0 if isinstance(element, _FLOATS) else 0, element, lanes)

    def memory(self, n_bytes: int) -> Value:
        """Address of ``n_bytes`` on the stack, 64-byte aligned."""
        with self.b.goto_entry_block():
            memory = self.b.alloca(ir.ArrayType(I8, n_bytes))
        memory.align = 64
        return Value(self.b, self.b.ptrtoint(memory, I64))

    def variable(self, initial: Value) -> Variable:
        return Variable(self.b, initial)

    def load(self, address: Value, element: ir.Type, lanes: int = 1) -> Value:
        """``lanes`` elements from an address of any alignment."""
        value = self.b.load(self.b.inttoptr(address.ir, vector(element, lanes).as_pointer()))
        value.align = 1
        return Value(self.b, value)

    def table(self, name: str, words: Sequence[int]) -> Value:
        """The address of constant 32-bit ``words``, which become part of the code under ``name``."""
        table = self.b.module.globals.get(name)
        if table is None:
            kind = ir.ArrayType(I32, len(words))
            table = ir.GlobalVariable(self.b.module, kind, name)
            table.linkage, table.global_constant, table.unnamed_addr, table.align = "internal", True, True, 64
            table.initializer = ir.Constant(kind, list(words))
        return Value(self.b, self.b.ptrtoint(table, I64))

    def store(self, address: Value, value: Value) -> None:
        self.b.store(value.ir, self.b.inttoptr(address.ir, value.type.as_pointer())).align = 1

    def prefetch(self, address: Value, level: int = 1) -> None:
        """Prefetch the cache line at ``address``, which need not exist, to the first- or second-level cache: nothing waits."""
        read, keep, data = (self.constant(n, I32) for n in (0, 4 - level, 1))
        self.call("llvm.prefetch.p0", ir.VoidType(), self.pointer(address), read, keep, data)

    def pointer(self, address: Value) -> Value:
        """An address as what LLVM's intrinsics take."""
        return Value(self.b, self.b.inttoptr(address.ir, I8.as_pointer()))

    def splat(self, value: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == 1:
            return value
        kind = vector(value.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value.ir, ir.Constant(I32, 0))
        picks = ir.Constant(vector(I32, lanes), [0] * lanes)
        return Value(self.b, self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), picks))

    def shuffle(self, value: Value, picks: Sequence[int]) -> Value:
        """The lanes named by ``picks``, in that order."""
        undefined = ir.Constant(value.type, ir.Undefined)
        mask = ir.Constant(vector(I32, len(picks)), list(picks))
        return Value(self.b, self.b.shuffle_vector(value.ir, undefined, mask))

    def concatenate(self, a: Value, b: Value) -> Value:
        """The lanes of ``a``, then those of ``b``."""
        mask = ir.Constant(ir.VectorType(I32, a.lanes + b.lanes), list(range(a.lanes + b.lanes)))
        return Value(self.b, self.b.shuffle_vector(a.ir, b.ir, mask))

    def interleave(self, a: Value, b: Value, high: bool) -> Value:
        """The low (or high) halves of ``a`` and ``b``, their lanes in turn."""
        half = a.lanes // 2
        picks = [side * a.lanes + half * high + i for i in range(half) for side in (0, 1)]
        return Value(self.b, self.b.shuffle_vector(a.ir, b.ir, ir.Constant(vector(I32, a.lanes), picks)))

    def from_lanes(self, lanes: Sequence[Value]) -> Value:
        """A vector of these scalars."""
        result = ir.Constant(vector(lanes[0].type, len(lanes)), ir.Undefined)
        for i, lane in enumerate(lanes):
            result = self.b.insert_element(result, lane.ir, ir.Constant(I32, i))
        return Value(self.b, result)

    def lane(self, value: Value, index: int) -> Value:
        return Value(self.b, self.b.extract_element(value.ir, ir.Constant(I32, index)))

    def select(self, condition: Value, yes: Value, no: Value) -> Value:
        return Value(self.b, self.b.select(condition.ir, yes.ir, no.ir))

    def call(self, name: str, result: ir.Type, *args: Value) -> Value:
        """Call an LLVM intrinsic by its mangled name."""
        signature = ir.FunctionType(result, [a.type for a in args])
        function = _declared(self.b, signature, name)
        return Value(self.b, self.b.call(function, [a.ir for a in args]))

    def _unary(self, name: str, *args: Value) -> Value:
        kind = args[0].type
        suffix = f"v{args[0].lanes}f32" if args[0].lanes > 1 else "f32"
        return self.call(f"llvm.{name}.{suffix}", kind, *args)

    def fma(self, a: Value, x: Value, acc: Value) -> Value:
        """``a * x + acc`` in float32 with one rounding, by the instruction (``gumba.simd.fma`` where there is none)."""
        return self._unary("fma", a, x, acc)

    def any(self, condition: Value) -> Value:
        """Whether a lane-wise comparison holds in any lane."""
        if condition.lanes == 1:
            return condition
        return self.call(f"llvm.vector.reduce.or.v{condition.lanes}i1", ir.IntType(1), condition)

    def maximum(self, a: Value, b: Value) -> Value:
        return self.select(a.compare(">", b), a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        return self.select(a.compare("<", b), a, b)

    def absolute(self, a: Value) -> Value:
        return self._unary("fabs", a)

    def sqrt(self, a: Value) -> Value:
        return self._unary("sqrt", a)

    def reduce(self, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Combine all lanes to one number, in a fixed order: halves onto each other (the lane count is a power of two)."""
        while value.lanes > 1:
            half = value.lanes // 2
            if half == 1:
                return combine(self.lane(value, 0), self.lane(value, 1))
            value = combine(self.shuffle(value, range(half)), self.shuffle(value, range(half, 2 * half)))
        return value

    @contextlib.contextmanager
    def loop(self, count: Value, start: int = 0, step: int = 1) -> Iterator[Value]:
        """A run-time loop; yields the index (64-bit)."""
        from numba.core import cgutils

        first, by = ir.Constant(I64, start), ir.Constant(I64, step)
        with cgutils.for_range_slice(self.b, first, count.ir, by, intp=I64) as (index, _):
            yield Value(self.b, index)

    @contextlib.contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        with self.b.if_then(condition.ir):
            yield


def simd_function(signature: str) -> Callable[[Callable[..., Value | None]], Intrinsic[Any]]:
    """Make a micro-kernel callable from compiled functions. ``signature``: ``"result(type, ...)"`` of i8, i4, f4, b1, void.

    The Python function gets a ``Simd`` and one ``Value`` per argument, and returns a ``Value`` (or None for void). It runs
    when something that calls it is compiled.
    """
    result, _, rest = signature.partition("(")
    arguments = [_NUMBA[name.strip()] for name in rest.rstrip(")").split(",") if name.strip()]
    returned = _NUMBA[result.strip()]

    def decorate(function: Callable[..., Value | None]) -> Intrinsic[Any]:
        def codegen(
            context: BaseContext, builder: ir.IRBuilder, signature_: Signature, args: Sequence[ir.Value]
        ) -> ir.Value:
            value = function(Simd(builder), *(Value(builder, a) for a in args))
            return context.get_dummy_value() if value is None else value.ir

        def typed() -> tuple[Signature, CodeGenerator]:
            from numba import types

            return getattr(types, returned)(*(getattr(types, name) for name in arguments)), codegen

        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        scope: dict[str, object] = {"__name__": __name__, "typed": typed}
        exec(f"def {function.__name__}(typingctx, {names}):\n    return typed()", scope)
        return Intrinsic(cast("Callable[..., tuple[Signature, CodeGenerator]]", scope[function.__name__]))

    return decorate
