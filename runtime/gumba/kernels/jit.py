"""The one place that decides how Python becomes machine code: compiler flags, and the cache of compiled kernels.

Three decorators, all lazy (nothing is compiled at import):

- ``@inline``: a function called only from other compiled functions.
- ``@entry("i8(u8, i8)")``: a function called from Python. Compiled on its first call, or taken from the cache.
- ``@kernel``: an operation of a program (see ``gumba.program``), reached through a raw function address.

Compiled code may live only in the rooms named in ``KERNEL_ROOMS``; the cache key holds a hash of all their sources, so an
edit in any of them, a callee in another file included, makes new code. (numba's own ``cache=True`` looks only at the file
of the outer function, and never hits for kernels that a factory makes around an ``@intrinsic``.)

The cache is a folder of one file per kernel: a SHA-256 of the payload, then the payload (a pickle of machine code). It is
private to the user (mode 0700, owner checked), each file appears whole or not at all, a damaged file is compiled anew, and
where no folder can be had kernels are simply compiled in memory. ``GUMBA_CACHE_DIR`` moves it; ``GUMBA_CACHE_DIR=`` (empty)
turns it off. A frozen application may bring kernels along (``gumba.kernels.shipping``), which come first.
No global numba setting is touched: gumba lives inside other people's applications.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.util
import json
import logging
import os
import re
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import platformdirs

from gumba._version import __version__
from gumba.errors import EngineError
from gumba.kernels import shipping

log = logging.getLogger("gumba")

#: Rooms of the package whose sources may hold compiled code.
KERNEL_ROOMS = ("kernels", "program", "quants", "simd")

#: Numba's settings (NUMBA_ and the name in the environment) that change the code it makes, and their usual values.
_SETTINGS: dict[str, str | None] = {
    "CPU_NAME": None, "CPU_FEATURES": None, "OPT": "3", "BOUNDSCHECK": "0", "DEBUGINFO_DEFAULT": "0", "LOOP_VECTORIZE": "1",
    "SLP_VECTORIZE": "0", "ENABLE_AVX": "1",
}  # fmt: skip


@contextlib.contextmanager
def _collecting_less() -> Iterator[None]:
    """Let the garbage collector run less often: numba's front end makes many objects that live until it ends (5 % faster)."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 20_000) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


#: Called with no arguments before the first kernel that is really compiled in this process.
on_first_compile: Callable[[], None] = lambda: log.info("compiling kernels for this processor (once)")  # noqa: E731


class CompileStats:
    """What this process compiled and what it took from the cache."""

    def __init__(self) -> None:
        self.compiled = 0
        self.loaded = 0
        self.compile_s = 0.0
        self.load_s = 0.0


stats = CompileStats()
#: The files in the cache of the kernels that this process has.
kept: list[Path] = []
_lock = threading.RLock()


def _numba_version() -> bytes:
    """What tells versions of numba apart, found without importing it where it lies in a folder."""
    spec = importlib.util.find_spec("numba")
    if spec is not None and spec.origin is not None:
        with contextlib.suppress(OSError):
            return (Path(spec.origin).parent / "_version.py").read_bytes()
    import numba

    return str(numba.__version__).encode()


def _sources_state() -> list[tuple[str, int, int]]:
    """Size and time of every source that compiled code can come from."""
    package = Path(__file__).parent.parent
    found = []
    for room in KERNEL_ROOMS:
        for path in (package / room).glob("**/*.py"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((str(path), status.st_size, status.st_mtime_ns))
    return sorted(found)


#: When this module was imported, which all others with compiled code import first: what they were made of. Code that was
#: imported before an edit and compiled after it must not be kept for those who come from the new sources.
_imported = _sources_state()


@functools.cache
def sources_hash() -> str:
    """Hash of gumba's version and of every source that compiled code can come from.

    Raises FileNotFoundError where they are not on disk: what is not known cannot tell old kernels from new ones.
    """
    digest = hashlib.sha256(f"{__version__}|{llvmlite.__version__}|{sys.version_info[:2]}".encode() + _numba_version())
    package = Path(__file__).parent.parent
    for room in KERNEL_ROOMS:
        sources = sorted((package / room).glob("**/*.py"))
        if not sources:
            raise FileNotFoundError(f"there are no sources in {package / room}")
        for path in sources:
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def _private(folder: Path) -> bool:
    """Whether ``folder`` is a real folder that only this user, or the system's, can write (true where owners do not exist)."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return info.st_uid in (0, os.getuid()) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _in_safe_hands(folder: Path) -> bool:
    """Whether nobody else can put other folders in the place of those in ``folder`` (its group is trusted, if it has one)."""
    info = folder.stat()
    if not hasattr(os, "getuid"):
        return True
    owned = info.st_uid in (0, os.getuid())
    return owned and (not info.st_mode & stat.S_IWOTH or bool(info.st_mode & stat.S_ISVTX))


@functools.cache
def cache_folder() -> Path | None:
    """The folder of compiled kernels for these sources, created when missing; None when there is no safe one.

    It may be one that can only be read (``cache_writable``): that of an image, say.
    """
    setting = os.environ.get("GUMBA_CACHE_DIR")
    if setting == "":
        return None
    try:
        root = Path(setting) if setting else Path(platformdirs.user_cache_dir("gumba", appauthor=False))
        root = root.expanduser().resolve()  # a relative path must not mean another folder after a change of directory
        folder = root / "kernels" / sources_hash()
        for each in (folder.parent, folder):  # one by one: folders that ``parents`` makes do not get the mode
            if not each.is_dir():
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each, safe in ((root, _in_safe_hands), (folder.parent, _private), (folder, _private)):
            if not safe(each):
                log.warning("kernel cache %s is not private to this user: kernels are compiled in memory", each)
                return None
    except (OSError, RuntimeError) as error:
        log.warning("no kernel cache (%s): kernels are compiled in memory", error)
        return None
    with contextlib.suppress(OSError):  # one that can only be read
        os.utime(folder)  # in use, for ``prune_cache``, also by those who find all kernels there
    return folder


def cache_writable() -> bool:
    """Whether compiled kernels can be kept."""
    folder = cache_folder()
    return folder is not None and _writable(folder)


@functools.cache
def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.warning("kernel cache %s cannot be written (%s): what it lacks is compiled in memory", folder, error)
        return False
    return True


def prune_cache(keep: int = 3) -> None:
    """Delete all but the ``keep`` most recently used cache folders (each gumba version or edit makes one).

    Nothing else that may lie there: only folders and files with the names that this module gives.
    """
    folder = cache_folder()
    if folder is None or not cache_writable():
        return
    others = []
    with contextlib.suppress(OSError):
        for each in folder.parent.iterdir():
            with contextlib.suppress(OSError):
                info = each.lstat()
                if each != folder and stat.S_ISDIR(info.st_mode) and re.fullmatch(r"[0-9a-f]{20}", each.name):
                    others.append((info.st_mtime_ns, each))
    for _, old in sorted(others, reverse=True)[keep - 1 :]:
        with contextlib.suppress(OSError):
            for file in old.iterdir():
                if re.fullmatch(r"\.new-.*|.*-[0-9a-f]{16}", file.name) and stat.S_ISREG(file.lstat().st_mode):
                    file.unlink(missing_ok=True)
            old.rmdir()


def _read_own(path: Path) -> bytes:
    """The bytes of a plain file of this user's; OSError for a link, or for what others own or can write."""
    with os.fdopen(
        os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)), "rb"
    ) as file:
        info = os.fstat(file.fileno())
        strange = hasattr(os, "getuid") and (
            info.st_uid not in (0, os.getuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )
        if not stat.S_ISREG(info.st_mode) or strange:
            raise PermissionError("it is not a plain file that only this user can write")
        return file.read()


def compiler_settings() -> dict[str, str | None]:
    """Numba's settings that change its code: as its configuration says, or as it would read them when it is imported."""
    config = sys.modules.get("numba.core.config")
    values = {name: getattr(config, name, None) if config else os.environ.get(f"NUMBA_{name}") for name in _SETTINGS}
    if values["CPU_NAME"] == "generic" and values["CPU_FEATURES"] is None:
        values["CPU_FEATURES"] = ""  # as numba takes it
    return {name: _written(value, _SETTINGS[name]) for name, value in values.items()}


def _written(value: Any, default: str | None) -> str | None:
    """A setting as one would write it; None for what numba takes anyway, so that it is the same before and after its import."""
    text = {"True": "1", "False": "0"}.get(str(value), str(value)).removeprefix("_OptLevel(").removesuffix(")")
    return None if text in ("None", default) else text


@functools.cache
def _processor() -> tuple[str, str, str]:
    """What LLVM calls this processor, and all of its features."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), features.flatten()


class _Loader:
    """Puts object files into this process's memory. Its engines are never freed: addresses stay good."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        self._llvm: Any = llvm
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._engines: list[Any] = []

    def missing(self, needed: list[str]) -> list[str]:
        """The names that this process does not have."""
        return [name for name in needed if self._llvm.address_of_symbol(name) is None]

    def load(self, code: bytes, symbol: str) -> int:
        """The address of the function ``symbol`` of an object file. Raises RuntimeError for what is none."""
        llvm = self._llvm
        target = llvm.Target.from_triple(llvm.get_process_triple())
        # One engine for each file: names of different files cannot get in each other's way.
        machine = target.create_target_machine(codemodel="jitdefault", jit=True)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        address: int = engine.get_function_address(symbol)
        if not address:
            raise RuntimeError(f"it has no function {symbol}")
        self._engines.append(engine)
        return address


_loader: Callable[[], _Loader] = functools.cache(_Loader)


class Compiled:
    """A function in machine code: ``address`` is that of a C function."""

    def __init__(self, address: int) -> None:
        self.address = address


#: The start of a kernel file, after the hash of all that follows: a line of JSON, then the object file.
_MAGIC = b"gumba kernel 1\n"

#: How object files start: ELF, Mach-O, COFF for x86-64 and for Arm. LLVM ends the process when it is given anything else.
_OBJECT_FILES = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\x64\x86", b"\x64\xaa")


def _kernel_path(folder: Path, name: str, signature: str) -> Path:
    key = hashlib.sha256(repr((name, signature, _processor(), compiler_settings())).encode()).hexdigest()[:16]
    return folder / f"{name.split('[')[0]}-{key}"


def _load(path: Path, name: str, read: Callable[[Path], bytes] = _read_own) -> Compiled | None:
    """The function in a kernel file; None when there is no such file, or not one that can be used."""
    try:
        data = read(path)
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            log.warning("kernel cache: %s is damaged and is made anew", path)
            return None
        if not data.startswith(_MAGIC, 32):
            raise ValueError("it is not a kernel file")
        began = time.perf_counter()
        head, _, code = data[32 + len(_MAGIC) :].partition(b"\n")
        facts = json.loads(head)
        if facts["name"] != name:
            raise ValueError(f"it holds {facts['name']}")
        missing = _loader().missing(facts["needs"])
        if missing:
            raise ValueError(f"it needs {', '.join(missing)}")
        if not code.startswith(_OBJECT_FILES):
            raise ValueError("it holds no object file")
        made = Compiled(_loader().load(code, facts["symbol"]))
        stats.loaded += 1
        stats.load_s += time.perf_counter() - began
        return made
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged or foreign file does, compiling anew is right
        log.warning("kernel cache: %s cannot be used (%s) and is made anew", path, error)
        return None


def _save(path: Path, facts: dict[str, Any], code: bytes) -> None:
    if not cache_writable():
        return
    if _sources_state() != _imported:
        log.info("kernel cache: gumba's sources have changed since they were imported; %s is not kept", path.name)
        return
    payload = _MAGIC + json.dumps(facts).encode() + b"\n" + code
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(payload).digest() + payload)
        temporary.replace(path)
    except OSError as error:
        log.warning("kernel cache: cannot write %s (%s)", path, error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _make(function: Callable[..., Any], signature: str, name: str) -> Compiled:
    """Take a function of numbers from what is shipped or from the cache, or compile it and put it there."""
    with contextlib.suppress(FileNotFoundError):  # no sources: cache_folder says so
        for shipped in shipping.shipped_folders(sources_hash()):
            found = _load(_kernel_path(shipped, name, signature), name, Path.read_bytes)
            if found is not None:
                return found
    folder = cache_folder()
    path = None if folder is None else _kernel_path(folder, name, signature)
    if path is not None:
        kept.append(path)
        found = _load(path, name)
        if found is not None:
            return found
    if stats.compiled == 0:
        on_first_compile()
    began = time.perf_counter()
    from gumba.kernels import codegen

    symbol = "gumba_" + os.urandom(8).hex()  # no other file, of this process or another, has it
    with _collecting_less():
        code, needs = codegen.compile_object(function, signature, symbol)
    missing = _loader().missing(needs)
    if missing:
        raise EngineError(f"the compiled code of {name} needs {', '.join(missing)}, which this process does not have")
    made = Compiled(_loader().load(code, symbol))
    stats.compiled += 1
    stats.compile_s += time.perf_counter() - began
    if stats.compiled == 1:
        prune_cache()
    if path is not None:
        _save(path, {"name": name, "symbol": symbol, "needs": needs}, code)
    return made


class Inline:
    """A function called only from other compiled functions. Numba sees it as one of its own, once something is compiled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        functools.update_wrapper(self, function)

    @functools.cached_property
    def _helper(self) -> Any:
        from gumba.kernels import codegen

        return codegen.helper(self.py_func)

    @property
    def _numba_type_(self) -> Any:
        return self._helper._numba_type_

    def __call__(self, *args: Any) -> Any:
        """The uncompiled function."""
        return self.py_func(*args)


def inline(function: Callable[..., Any]) -> Inline:
    """A function called only from other compiled functions; compiled together with its caller."""
    return Inline(function)


class Intrinsic:
    """A function of compiled functions whose code ``define(typing_context, *arguments)`` generates (see numba's intrinsic)."""

    def __init__(self, define: Callable[..., Any]) -> None:
        self._define = define
        functools.update_wrapper(self, define)

    @functools.cached_property
    def _numba_type_(self) -> Any:
        from gumba.kernels import codegen

        return codegen.intrinsic_type(self._define)


#: A lazy ``numba.extending.intrinsic``: the definition runs, and imports what it needs, when something is compiled.
intrinsic = Intrinsic

_NUMBERS = {"i8": ctypes.c_int64, "f8": ctypes.c_double, "f4": ctypes.c_float, "void": None}
_ELEMENTS = {
    "i1": "int8", "i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16", "u4": "uint32", "f4": "float32", "f8": "float64",
}  # fmt: skip


def _parse(signature: str) -> tuple[str, list[tuple[str, int]]]:
    """The result, and of each argument its type and number of dimensions, of ``"i8(f4[::1], i8[:, ::1], f8)"``."""
    result, _, rest = signature.partition("(")
    found: list[tuple[str, int]] = []
    for word in rest.rstrip(")").replace("[:, ::1]", "[2").replace("[::1]", "[1").split(","):
        element, _, dimensions = word.strip().partition("[")
        if element:
            found.append((element, int(dimensions or 0)))
    return result.strip(), found


class Entry:
    """A compiled function that Python calls; compiled or loaded on first use. Releases the GIL while it runs.

    An array argument is C-contiguous and of just the type that the signature says; TypeError if it is not.
    """

    def __init__(self, function: Callable[..., Any], signature: str, variant: str) -> None:
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
                made = _make(self._trampoline(words), f"{self._result}({', '.join(kinds)})", self.name)
                kind = ctypes.CFUNCTYPE(_NUMBERS[self._result], *(_NUMBERS[k] for k in kinds))
                self._call = kind(made.address)

    def _flat(self) -> tuple[list[list[str]], list[str]]:
        """For each argument the names of the numbers it is passed as, and the types of them all."""
        names = [[f"a{i}"] + [f"a{i}_{d}" for d in range(n)] for i, (_, n) in enumerate(self._arguments)]
        kinds = [k for e, n in self._arguments for k in (["i8"] * (1 + n) if n else [e])]
        return names, kinds

    def _trampoline(self, names: list[list[str]]) -> Callable[..., Any]:
        """A function of numbers: an array is passed as its address and shape."""
        scope: dict[str, Any] = {"__name__": __name__, "function": inline(self.py_func)}
        passed = []
        for own, (element, dimensions) in zip(names, self._arguments):
            scope[f"{element}_{dimensions}"] = array_at(element, dimensions) if dimensions else None
            passed.append(f"{element}_{dimensions}({', '.join(own)})" if dimensions else own[0])
        exec(
            f"def trampoline({', '.join(n for own in names for n in own)}):\n    return function({', '.join(passed)})\n",
            scope,
        )
        made: Callable[..., Any] = scope["trampoline"]
        return made

    @property
    def bare(self) -> Any:
        """The compiled function itself, for callers in a hurry: of numbers only, and arrays must be given as numbers."""
        self.compile()
        return self._call

    def __call__(self, *args: Any) -> Any:
        if self._call is None:
            self.compile()
        call: Any = self._call
        if len(args) != len(self._arguments):
            raise TypeError(f"{self.name} takes {len(self._arguments)} arguments, not {len(args)}")
        flat: list[Any] = []
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
def array_at(element: str, dimensions: int = 1) -> Intrinsic:
    """A function ``(address, *shape)`` of compiled functions: the C-contiguous array there. Nothing is checked."""
    names = ", ".join(f"n{d}" for d in range(dimensions))
    scope: dict[str, Any] = {"define": _define_array, "element": element, "dimensions": dimensions}
    exec(f"def array(typingctx, address, {names}):\n    return define(element, dimensions)\n", scope)
    return Intrinsic(scope["array"])


def _define_array(element: str, dimensions: int) -> Any:
    from numba import types
    from numba.np import arrayobj

    kind: Any = getattr(types, _ELEMENTS[element])
    array = types.Array(kind, dimensions, "C")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        strides = [context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind)))]
        for size in reversed(args[2:]):
            strides.insert(0, builder.mul(strides[0], size))
        made: Any = arrayobj.make_array(array)(context, builder)  # type: ignore[no-untyped-call]
        arrayobj.populate_array(  # type: ignore[no-untyped-call]
            made,
            data=builder.inttoptr(args[0], context.get_data_type(kind).as_pointer()),
            shape=list(args[1:]),
            strides=strides,
            itemsize=strides[-1],
            meminfo=None,
        )
        return made._getvalue()

    return array(*[types.int64] * (1 + dimensions)), codegen


def entry(signature: str, *, variant: str = "") -> Callable[[Callable[..., Any]], Entry]:
    """A function that Python calls. ``signature`` in numba's notation: i8, f4, f8 and C-contiguous arrays of 1 or 2 dimensions.

    ``variant`` tells apart the functions that one factory makes (it must name everything that the closure varies).
    """
    return lambda function: Entry(function, signature, variant)


def compile_cfunc(function: Callable[..., Any], signature: str, name: str) -> Compiled:
    """Compile ``function`` (of numbers) to a C function, or take it from the cache; ``.address`` of the result is its address."""
    with _lock:
        return _make(function, signature, name)
