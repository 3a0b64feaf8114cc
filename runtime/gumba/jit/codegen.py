"""Compiling one function to an object file: numba's front end, one run of LLVM's passes, nothing of numba left in the result.

Imported only when something must be compiled: a process whose kernels are all in the cache never imports numba.

Numba's own ``njit`` optimises and emits every helper function by itself and once more in each of its callers, with wrappers
for Python around each. Here helpers are only translated to LLVM's language; the passes run once, over a whole kernel with its
helpers inside, whose other symbols become private. The C function around it ignores numba's status, because kernels raise
nothing: so an object file refers to nothing but C's mathematical library (and memcpy and the like).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numba
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import sigutils, types
from numba.core.base import BaseContext
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult, Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.typing import Context
from numba.core.typing.templates import AbstractTemplate, Signature

from gumba.errors import EngineError

#: Generates the code of a call: (context, builder, signature, arguments) -> result.
CodeGenerator: TypeAlias = Callable[[BaseContext, ir.IRBuilder, Signature, Sequence[ir.Value]], ir.Value]

#: Never ``fastmath=True``: masks need infinities, and every sum keeps its written order.
FLAGS: dict[str, bool | str] = {
    "nopython": True,
    "nogil": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


class _Library(JITCodeLibrary):
    """A function in LLVM's language, linked with its helpers; neither optimised nor emitted."""

    def _optimize_functions(self, ll_module: llvm.ModuleRef) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def emit(self, symbol: str, inline_first: bool) -> tuple[bytes, list[str]]:
        """The object file, with ``symbol`` as its only name, and the names that it needs from outside."""
        self._ensure_finalized()
        module = self._final_module
        for value in [*module.functions, *module.global_variables]:
            if not value.is_declaration and value.name != symbol:
                value.linkage = "internal"
        if inline_first:
            for function in module.functions:
                if not function.is_declaration and function.name != symbol:
                    function.add_function_attribute("alwaysinline")
        passes, builder = self._codegen._module_pass_manager()
        passes.run(module, builder)
        module.verify()
        values = [*module.functions, *module.global_variables]
        needed = [v.name for v in values if v.is_declaration and not v.name.startswith("llvm.")]
        return self._codegen._tm.emit_object(module), needed


_context: BaseContext = cpu_target.target_context
_typing: Context = cpu_target.typing_context


class _HelperCompiler(_FunctionCompiler):
    """Compiles to a ``_Library``, and registers that with numba: no Python function is built from it."""

    def _compile_core(self, args: tuple[types.Type, ...], return_type: types.Type) -> CompileResult:
        flags = Flags()
        _Helper.targetdescr.options.parse_as_flags(flags, FLAGS)
        flags.no_compile = True
        library = _Library(_context.codegen(), self.py_func.__qualname__)
        compiled = compile_extra(_typing, _context, self.py_func, args, return_type, flags, {}, library=library)
        if compiled.typing_error is not None:
            raise compiled.typing_error
        _context.insert_user_function(library, compiled.fndesc, [library])
        return compiled


class _Helper(CPUDispatcher):
    """A function that other compiled functions call."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function, targetoptions=FLAGS)
        self._compiler = _HelperCompiler(function, self.targetdescr, FLAGS, {}, Compiler)

    def add_overload(self, compiled: CompileResult) -> None:
        self.overloads[compiled.signature.args] = compiled

    def get_overload(self, signature: Signature) -> JITCodeLibrary:
        """What the context knows the function by."""
        return self.overloads[tuple(sigutils.normalize_signature(signature)[0])].library


def helper(function: Callable[..., object]) -> _Helper:
    """What numba takes for a function that is called only from compiled functions (its ``_numba_type_`` refers to it weakly)."""
    return _Helper(function)


def intrinsic_type(define: Callable[..., tuple[Signature, CodeGenerator]]) -> types.Function:
    """Numba's type of a function that ``define(typing_context, *arguments)`` gives as (signature, code generator).

    Numba's own ``intrinsic`` puts generators into registries that all contexts of the process share, and starts them up.
    """
    known: dict[tuple[types.Type, ...], Signature] = {}
    generators: dict[tuple[types.Type, ...], CodeGenerator] = {}

    class Template(AbstractTemplate):
        key = define

        def generic(self, args: tuple[types.Type, ...], kws: dict[str, types.Type]) -> Signature:
            if args not in known:
                known[args], generator = define(self.context, *args)
                generators[known[args].args] = generator
                _context.insert_func_defn([(generator, generator, known[args].args)])
            return known[args]

        def get_impl_key(self, sig: Signature) -> CodeGenerator:
            return generators[sig.args]

    return types.Function(Template)


def parse_signature(signature: str) -> tuple[tuple[types.Type, ...], types.Type]:
    """Argument types and result type of a signature in numba's notation."""
    arguments, result = sigutils.normalize_signature(signature)
    return arguments, result


def compile_object(
    function: Callable[..., object], signature: str, symbol: str, inline_first: bool
) -> tuple[bytes, list[str]]:
    """An object file with the C function ``symbol``, and the names it needs. ``signature``: of numbers (and void) only.

    ``inline_first``: see ``Kernel``.
    """
    if numba.core.config.DISABLE_JIT:
        raise EngineError("NUMBA_DISABLE_JIT is set: gumba's kernels exist only as compiled code")
    with global_compiler_lock:
        arguments, result = parse_signature(signature)
        _context.refresh()
        _typing.refresh()
        compiled = _Helper(function)._compiler.compile(arguments, result)
        _add_c_function(compiled, symbol)
        library: _Library = compiled.library
        return library.emit(symbol, inline_first)


def _add_c_function(compiled: CompileResult, symbol: str) -> None:
    """Add a C function that calls numba's (which returns a status, and its result through a pointer)."""
    call_conv, description = _context.call_conv, compiled.fndesc
    module = _context.create_module("c_function")
    kind = call_conv.get_function_type(description.restype, description.argtypes)
    inner = ir.Function(module, kind, description.llvm_func_name)
    values = [_context.get_value_type(t) for t in description.argtypes]
    is_void = description.restype in (types.void, types.none)
    returned = ir.VoidType() if is_void else _context.get_value_type(description.restype)
    outer = ir.Function(module, ir.FunctionType(returned, values), symbol)
    builder = ir.IRBuilder(outer.append_basic_block("entry"))
    _, result = call_conv.call_function(builder, inner, description.restype, description.argtypes, outer.args)
    if is_void:
        builder.ret_void()
    else:
        builder.ret(result)
    compiled.library._finalized = False
    compiled.library.add_ir_module(module)
