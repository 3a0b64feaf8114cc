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
turns it off. No global numba setting is touched: gumba lives inside other people's applications.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.core.ccallback
import platformdirs
from numba.core import sigutils
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

from gumba._version import __version__
from gumba.errors import EngineError

log = logging.getLogger("gumba")

#: Rooms of the package whose sources may hold compiled code.
KERNEL_ROOMS = ("kernels", "program", "quants", "simd")

#: numba's settings (environment variables of the same name) that change the code it makes.
_SETTINGS = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX")

#: Never ``fastmath=True``: masks need infinities, and every sum keeps its written order.
FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

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
_lock = threading.RLock()


@functools.cache
def sources_hash() -> str:
    """Hash of gumba's version and of every source that compiled code can come from."""
    digest = hashlib.sha256(f"{__version__}|{numba.__version__}|{sys.version_info[:2]}".encode())
    package = Path(__file__).parent.parent
    for room in KERNEL_ROOMS:
        for path in sorted((package / room).glob("**/*.py")):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def _private(folder: Path) -> bool:
    """Whether ``folder`` is a real folder that only this user can write (always true where owners do not exist)."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return info.st_uid == os.getuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _in_safe_hands(folder: Path) -> bool:
    """Whether nobody else can put other folders in the place of those in ``folder`` (its group is trusted, if it has one)."""
    info = folder.stat()
    if not hasattr(os, "getuid"):
        return True
    owned = info.st_uid in (0, os.getuid())
    return owned and (not info.st_mode & stat.S_IWOTH or bool(info.st_mode & stat.S_ISVTX))


@functools.cache
def cache_folder() -> Path | None:
    """The folder of compiled kernels for these sources, created when missing; None when there is nowhere safe to write."""
    setting = os.environ.get("GUMBA_CACHE_DIR")
    if setting == "":
        return None
    try:
        root = Path(setting) if setting else Path(platformdirs.user_cache_dir("gumba", appauthor=False))
        root = root.expanduser().resolve()  # a relative path must not mean another folder after a change of directory
        folder = root / "kernels" / sources_hash()
        for each in (folder.parent, folder):  # one by one: folders that ``parents`` makes do not get the mode
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each, safe in ((root, _in_safe_hands), (folder.parent, _private), (folder, _private)):
            if not safe(each):
                log.warning("kernel cache %s is not private to this user: kernels are compiled in memory", each)
                return None
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:
        log.warning("no kernel cache (%s): kernels are compiled in memory", error)
        return None
    return folder


def prune_cache(keep: int = 3) -> None:
    """Delete all but the ``keep`` most recently used cache folders (each gumba version or edit makes one)."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        others = sorted(folder.parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in [p for p in others if p != folder][keep - 1 :]:
            for file in old.iterdir():
                file.unlink(missing_ok=True)
            old.rmdir()


def _read_own(path: Path) -> bytes:
    """The bytes of a plain file of this user's; OSError for a link, or for what others own or can write."""
    with os.fdopen(
        os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)), "rb"
    ) as file:
        info = os.fstat(file.fileno())
        strange = hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
        if not stat.S_ISREG(info.st_mode) or strange:
            raise PermissionError("it is not a plain file that only this user can write")
        return file.read()


class _KernelCache:
    """Stands in for numba's per-function cache (the two methods that dispatchers and cfuncs call)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _path(self, folder: Path, sig: Any, codegen: Any) -> Path:
        settings = [getattr(numba.core.config, name, None) for name in _SETTINGS]
        key = hashlib.sha256(repr((self.name, sig, codegen.magic_tuple(), settings)).encode()).hexdigest()[:16]
        return folder / f"{self.name.split('[')[0]}-{key}"

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        target_context.refresh()
        folder = cache_folder()
        if folder is not None:
            path = self._path(folder, sig, target_context.codegen())
            try:
                data = _read_own(path)
                if hashlib.sha256(data[32:]).digest() == data[:32]:
                    began = time.perf_counter()
                    result = CompileResult._rebuild(target_context, *pickle.loads(data[32:]))
                    stats.loaded += 1
                    stats.load_s += time.perf_counter() - began
                    return result
                log.warning("kernel cache: %s is damaged and is made anew", path)
            except FileNotFoundError:
                pass
            except Exception as error:  # whatever a damaged or foreign file does, compiling anew is right
                log.warning("kernel cache: %s cannot be used (%s) and is made anew", path, error)
        if stats.compiled == 0:
            on_first_compile()
        return None

    def save_overload(self, sig: Any, result: CompileResult) -> None:
        stats.compiled += 1
        if stats.compiled == 1:
            prune_cache()
        folder = cache_folder()
        if folder is None:
            return
        payload = dumps(result._reduce())
        path = self._path(folder, sig, result.codegen)
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as file:
                temporary = Path(file.name)
                file.write(hashlib.sha256(payload).digest() + payload)
            temporary.replace(path)
        except OSError as error:
            log.warning("kernel cache: cannot write %s (%s)", path, error)
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@functools.cache
def _process_token(pid: int) -> str:
    return os.urandom(8).hex()


def _name_apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``function`` a name that no other process gives, so that its machine code has one too.

    numba tells functions of one name apart by a number that counts from 1 in every process. Two kernels of one factory
    that two processes compiled and cached would carry the same symbols, and in a process that loads both, one would run
    the other's code.
    """
    function.__qualname__ += f"_{_process_token(os.getpid())}"
    return function


def _check_compiler() -> None:
    if numba.core.config.DISABLE_JIT:
        raise EngineError("NUMBA_DISABLE_JIT is set: gumba's kernels exist only as compiled code")


def inline(function: Callable[..., Any]) -> Dispatcher:
    """A function called only from other compiled functions; compiled together with its caller."""
    return numba.njit(**FLAGS)(_name_apart(function))


class Entry:
    """A compiled function that Python calls; compiled or loaded on first use. Releases the GIL while it runs."""

    def __init__(self, function: Callable[..., Any], signature: str, variant: str) -> None:
        self.name = f"{function.__module__.removeprefix('gumba.')}.{function.__name__}[{variant}]"
        self.py_func = function
        self.signature = signature
        self._dispatcher: Dispatcher | None = None
        functools.update_wrapper(self, function)

    def compile(self) -> Dispatcher:
        """The compiled dispatcher, made on the first call."""
        with _lock:
            if self._dispatcher is None:
                _check_compiler()
                dispatcher = numba.njit(**FLAGS)(_name_apart(self.py_func))
                dispatcher._cache = _KernelCache(self.name)
                began, compiled = time.perf_counter(), stats.compiled
                dispatcher.compile(self.signature)
                if stats.compiled > compiled:
                    stats.compile_s += time.perf_counter() - began
                self._dispatcher = dispatcher
        return self._dispatcher

    def __call__(self, *args: Any) -> Any:
        return (self._dispatcher or self.compile())(*args)


def entry(signature: str, *, variant: str = "") -> Callable[[Callable[..., Any]], Entry]:
    """A function that Python calls, with one fixed numba ``signature``.

    ``variant`` tells apart the functions that one factory makes (it must name everything that the closure varies).
    """
    return lambda function: Entry(function, signature, variant)


def compile_cfunc(function: Callable[..., Any], signature: str, name: str) -> Any:
    """Compile ``function`` to a C function, or take it from the cache; ``.address`` of the result is its address."""
    with _lock:
        _check_compiler()
        args, result = sigutils.normalize_signature(signature)
        made = numba.core.ccallback.CFunc(_name_apart(function), (args, result), locals={}, options=dict(FLAGS))
        made._cache = _KernelCache(name)
        began, compiled = time.perf_counter(), stats.compiled
        made.compile()
        if stats.compiled > compiled:
            stats.compile_s += time.perf_counter() - began
        return made
