"""The one place that decides how Python becomes machine code, and when: compiled now, or taken from the cache.

Three decorators, all lazy (nothing is compiled at import):

- ``@inline``: a function called only from other compiled functions.
- ``@entry("i8(u8, i8)")``: a function called from Python. Compiled on its first call, or taken from the cache.
- ``@kernel``: an operation of a program (``gumba.backends.cpu.program``), reached through a raw function address.

Compiled code may live only in the folders named in ``kernel_cache.COMPILED_FOLDERS``; the cache key holds a hash of all their
sources, so an edit in any of them, a callee in another file included, makes new code. (numba's own ``cache=True`` looks only
at the file of the outer function, and never hits for kernels that a factory makes around an ``@intrinsic``.)

Compiled kernels are files (``gumba.jit.object_file``) in the user's cache (``gumba.jit.kernel_cache``). A frozen application may
bring kernels along (``gumba.jit.bundled``), which come first; where there is neither, kernels are compiled in memory.
The compiler itself is in ``gumba.jit.codegen``. No global numba setting is touched: gumba lives inside other people's
applications.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from gumba.errors import EngineError, ResourceError
from gumba.jit import bundled, kernel_cache
from gumba.jit.object_file import Compiled, kernel_path, load_kernel, loader, save_kernel
from gumba.memory import address_space_left, shortage

if TYPE_CHECKING:
    import numpy as np
    from llvmlite import ir
    from numba.core.base import BaseContext
    from numba.core.dispatcher import Dispatcher
    from numba.core.types import Type
    from numba.core.typing import Context
    from numba.core.typing.templates import Signature

    from gumba.jit.codegen import CodeGenerator

log = logging.getLogger("gumba")

R = TypeVar("R")


@contextlib.contextmanager
def _collecting_less() -> Iterator[None]:
    """Run the garbage collector less often: numba's front end makes many objects that live until it ends (5 % faster)."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 20_000) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def _log_first() -> Iterator[None]:
    if stats.compiled == 0:
        log.info("compiling kernels for this processor; they are kept")
    yield


#: A context entered while a kernel is compiled in this process. On entry it may compile kernels itself, this one among them; for
#: those it is not entered again.
watching: Callable[[], contextlib.AbstractContextManager[None]] = _log_first


class CompileStats:
    """What this process compiled and what it took from the cache."""

    def __init__(self) -> None:
        self.compiled = 0
        self.loaded = 0
        self.compile_s = 0.0


stats = CompileStats()
_lock = threading.RLock()

#: Address space that the compiler may take: to be imported, and for a kernel. (Measured: 300 MB, and 32 MB for the largest.)
_COMPILER_BYTES, _KERNEL_BYTES = 400 << 20, 96 << 20


#: Kernels compiled on entry to ``watching``, by name and signature; None outside of it.
_meanwhile: dict[tuple[str, str], Compiled] | None = None


@contextlib.contextmanager
def _watched(name: str, signature: str) -> Iterator[Compiled | None]:
    """Enter ``watching``; the kernel if that compiled it, else None."""
    global _meanwhile
    if _meanwhile is not None:
        yield None
        return
    _meanwhile = {}
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(watching())
            compiled = _meanwhile.get((name, signature))
        finally:
            _meanwhile = None
        yield compiled


def is_kept(name: str, signature: str) -> bool:
    """Whether this kernel has an object file, shipped or cached."""
    folders = [kernel_cache.cache_folder()]
    with contextlib.suppress(FileNotFoundError):
        folders += bundled.shipped_folders(kernel_cache.sources_hash())
    return any(kernel_path(folder, name, signature).is_file() for folder in folders if folder is not None)


def _load(path: Path, name: str, read: Callable[[Path], bytes] = kernel_cache.read_own) -> Compiled | None:
    loaded = load_kernel(path, name, read)
    stats.loaded += loaded is not None
    return loaded


def _make(function: Callable[..., object], signature: str, name: str, inline_first: bool = False) -> Compiled:
    """Load a function of numbers from the shipped kernels or the cache, or compile it and cache it."""
    with contextlib.suppress(FileNotFoundError):  # no sources: cache_folder says so
        for shipped in bundled.shipped_folders(kernel_cache.sources_hash()):
            loaded = _load(kernel_path(shipped, name, signature), name, Path.read_bytes)
            if loaded is not None:
                return loaded
    folder = kernel_cache.cache_folder()
    path = None if folder is None else kernel_path(folder, name, signature)
    if path is not None:
        kernel_cache.kept.append(path)
        loaded = _load(path, name)
        if loaded is not None:
            return loaded
    _check_memory()
    with _watched(name, signature) as compiled:
        return _compile(function, signature, name, path, inline_first) if compiled is None else compiled


def _check_memory() -> None:
    """Raise ResourceError if too little memory is left to compile: LLVM would abort the process."""
    need, left = _KERNEL_BYTES if "numba" in sys.modules else _COMPILER_BYTES, address_space_left()
    if left is not None and left < need:
        raise ResourceError(shortage("compiling kernels may need", need))


def _compile(
    function: Callable[..., object], signature: str, name: str, path: Path | None, inline_first: bool
) -> Compiled:
    """Compile a function of numbers, and save it at ``path``."""
    began = time.perf_counter()
    from gumba.jit import codegen

    symbol = "gumba_" + os.urandom(8).hex()  # no other file, of this process or another, has it
    with _collecting_less():
        code, needs = codegen.compile_object(function, signature, symbol, inline_first)
    missing = loader().missing(needs)
    if missing:
        raise EngineError(f"the compiled code of {name} needs {', '.join(missing)}, which this process does not have")
    compiled = Compiled(loader().load(code, symbol))
    stats.compiled += 1
    stats.compile_s += time.perf_counter() - began
    if stats.compiled == 1:
        kernel_cache.prune_cache()
    if path is not None:
        save_kernel(path, name, symbol, needs, code)
    if _meanwhile is not None:
        _meanwhile[name, signature] = compiled
    return compiled


class Inline(Generic[R]):
    """A function called only from other compiled functions. While they are compiled, numba treats it as one of its own."""

    def __init__(self, function: Callable[..., R]) -> None:
        self.py_func = function
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _helper(self) -> Dispatcher:
        from gumba.jit import codegen

        return codegen.helper(self.py_func)

    @property
    def _numba_type_(self) -> Type:
        return self._helper._numba_type_

    def __call__(self, *args: object) -> R:
        """The uncompiled function."""
        return self.py_func(*args)


def inline(function: Callable[..., R]) -> Inline[R]:
    """A function called only from other compiled functions; compiled together with its caller."""
    return Inline(function)


class Intrinsic(Generic[R]):
    """A function of compiled functions that numba's intrinsic would make.

    ``define(typing_context, *arguments)`` gives its signature and the generator of its code.
    """

    def __init__(self, define: Callable[..., tuple[Signature, CodeGenerator]]) -> None:
        self._define = define
        functools.update_wrapper(self, define)

    @functools.cached_property
    def _numba_type_(self) -> Type:
        from gumba.jit import codegen

        return codegen.intrinsic_type(self._define)

    def __call__(self, *args: object) -> R:
        raise TypeError(f"{self._define.__name__} can be called only from compiled functions")


#: A lazy ``numba.extending.intrinsic``: the definition runs, and imports what it needs, when something is compiled.
intrinsic = Intrinsic

#: Types of numbers. The only other result is void.
_NUMBERS: dict[str, type[ctypes._SimpleCData[Any]]] = {
    "i8": ctypes.c_int64,
    "f8": ctypes.c_double,
    "f4": ctypes.c_float,
}
_ELEMENTS = {
    "i1": "int8", "i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16", "u4": "uint32", "f4": "float32", "f8": "float64",
}  # fmt: skip


def _parse(signature: str) -> tuple[str, list[tuple[str, int]]]:
    """The result type, and each argument's type and number of dimensions, of ``"i8(f4[::1], i8[:, ::1], f8)"``."""
    result, _, rest = signature.partition("(")
    arguments: list[tuple[str, int]] = []
    for word in rest.rstrip(")").replace("[:, ::1]", "[2").replace("[::1]", "[1").split(","):
        element, _, dimensions = word.strip().partition("[")
        if element:
            arguments.append((element, int(dimensions or 0)))
    return result.strip(), arguments


class Entry:
    """A compiled function that Python calls; compiled or loaded on first use. Releases the GIL while it runs.

    An array argument must be C-contiguous and have exactly the signature's type; TypeError if not.
    """

    def __init__(self, function: Callable[..., object], signature: str, variant: str) -> None:
        self.name = f"{function.__module__.removeprefix('gumba.')}.{function.__name__}[{variant}]"
        self.py_func = function
        self.signature = signature
        self._result, self._arguments = _parse(signature)
        self._call: Callable[..., Any] | None = None
        functools.update_wrapper(self, function)

    def compile(self) -> None:
        """Compile or load it now rather than on the first call."""
        with _lock:
            if self._call is None:
                words, kinds = self._flat()
                compiled = _make(self._trampoline(words), self._flat_signature, self.name)
                kind = ctypes.CFUNCTYPE(_NUMBERS.get(self._result), *(_NUMBERS[k] for k in kinds))
                self._call = kind(compiled.address)

    @property
    def _flat_signature(self) -> str:
        return f"{self._result}({', '.join(self._flat()[1])})"

    @property
    def is_missing(self) -> bool:
        """Whether the kernel must still be compiled: it is neither loaded nor in a file."""
        return self._call is None and not is_kept(self.name, self._flat_signature)

    def _flat(self) -> tuple[list[list[str]], list[str]]:
        """For each argument the names of the numbers that it is passed as; the types of all numbers."""
        names = [[f"a{i}"] + [f"a{i}_{d}" for d in range(n)] for i, (_, n) in enumerate(self._arguments)]
        kinds = [k for e, n in self._arguments for k in (["i8"] * (1 + n) if n else [e])]
        return names, kinds

    def _trampoline(self, names: list[list[str]]) -> Callable[..., object]:
        """A function of numbers: an array is passed as its address and shape."""
        scope: dict[str, object] = {"__name__": __name__, "function": inline(self.py_func)}
        passed = []
        for own, (element, dimensions) in zip(names, self._arguments):
            scope[f"{element}_{dimensions}"] = array_at(element, dimensions) if dimensions else None
            passed.append(f"{element}_{dimensions}({', '.join(own)})" if dimensions else own[0])
        exec(
            f"def trampoline({', '.join(n for own in names for n in own)}):\n    return function({', '.join(passed)})\n",
            scope,
        )
        return cast("Callable[..., object]", scope["trampoline"])

    @property
    def bare(self) -> Callable[..., Any]:
        """The compiled function itself, for callers on a hot path: it takes numbers only, and arrays as address and shape."""
        if self._call is None:
            self.compile()
        assert self._call is not None
        return self._call

    def __call__(self, *args: Any) -> Any:
        call = self._call or self.bare
        if len(args) != len(self._arguments):
            raise TypeError(f"{self.name} takes {len(self._arguments)} arguments, not {len(args)}")
        flat: list[object] = []
        for value, (element, dimensions) in zip(args, self._arguments):
            if dimensions == 0:
                flat.append(value)
                continue
            if value.dtype != _ELEMENTS[element] or value.ndim != dimensions or not value.flags.c_contiguous:
                raise TypeError(f"{self.name}: expected C-contiguous {_ELEMENTS[element]} of {dimensions} dimensions, "
                                f"not {value.dtype} {list(value.shape)}")  # fmt: skip
            flat.append(value.__array_interface__["data"][0])
            flat += value.shape
        return call(*flat)


@functools.cache
def array_at(element: str, dimensions: int = 1) -> Intrinsic[Any]:
    """A function ``(address, *shape)`` of compiled functions: the C-contiguous array there. Nothing is checked."""
    names = ", ".join(f"n{d}" for d in range(dimensions))
    scope: dict[str, Any] = {"define": _define_array, "element": element, "dimensions": dimensions}
    exec(f"def array(typingctx, address, {names}):\n    return define(element, dimensions)\n", scope)
    return Intrinsic(scope["array"])


def _define_array(element: str, dimensions: int) -> tuple[Signature, CodeGenerator]:
    from numba import types
    from numba.np import arrayobj

    kind = getattr(types, _ELEMENTS[element])
    array = types.Array(kind, dimensions, "C")

    def codegen(context: BaseContext, builder: ir.IRBuilder, sig: Signature, args: Sequence[ir.Value]) -> ir.Value:
        strides = [context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind)))]
        for size in reversed(args[2:]):
            strides.insert(0, builder.mul(strides[0], size))
        value = arrayobj.make_array(array)(context, builder)
        arrayobj.populate_array(
            value,
            data=builder.inttoptr(args[0], context.get_data_type(kind).as_pointer()),
            shape=list(args[1:]),
            strides=strides,
            itemsize=strides[-1],
            meminfo=None,
        )
        return value._getvalue()

    return array(*[types.int64] * (1 + dimensions)), codegen


@functools.cache
def record_at(layout: np.dtype[np.void]) -> Intrinsic[Any]:
    """A function ``(address)`` of compiled functions: the record of the structured dtype ``layout`` there.

    Its fields are attributes, read from memory where they are used. Nothing is checked.
    """

    def define(typingctx: Context, address: Type) -> tuple[Signature, CodeGenerator]:
        from numba import types
        from numba.np import numpy_support

        kind = numpy_support.from_dtype(layout)

        def codegen(context: BaseContext, builder: ir.IRBuilder, sig: Signature, args: Sequence[ir.Value]) -> ir.Value:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), codegen

    return Intrinsic(define)


def entry(signature: str, *, variant: str = "") -> Callable[[Callable[..., object]], Entry]:
    """A function that Python calls. ``signature`` in numba's notation: i8, f4, f8 and C-contiguous arrays of 1 or 2 dimensions.

    ``variant`` tells apart the functions that one factory makes (it must name everything that the closure varies).
    """
    return lambda function: Entry(function, signature, variant)


def compile_cfunc(
    function: Callable[..., object], signature: str, name: str, *, inline_first: bool = False
) -> Compiled:
    """Compile ``function`` (of numbers) to a C function, or take it from the cache; ``.address`` of the result is its address.

    ``inline_first``: see ``Kernel``.
    """
    with _lock:
        return _make(function, signature, name, inline_first)
