"""Kernels as object files: what one is made for, how it is kept in a file, and how it gets into this process's memory.

A kernel file is a SHA-256 of the payload, then the payload: a line of JSON about an object file, and the object file. Its name
tells what it was compiled for: the processor and numba's settings. One that is damaged or foreign is as good as none.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gumba.jit import kernel_cache

#: Numba's settings (NUMBA_ and the name in the environment) that change the code it makes, and their usual values.
_SETTINGS: dict[str, str | None] = {
    "CPU_NAME": None, "CPU_FEATURES": None, "OPT": "3", "BOUNDSCHECK": "0", "DEBUGINFO_DEFAULT": "0", "LOOP_VECTORIZE": "1",
    "SLP_VECTORIZE": "0", "ENABLE_AVX": "1",
}  # fmt: skip


def compiler_settings() -> dict[str, str | None]:
    """Numba's settings that change its code: as its configuration says, or as it would read them when it is imported."""
    config = sys.modules.get("numba.core.config")
    values = {name: getattr(config, name, None) if config else os.environ.get(f"NUMBA_{name}") for name in _SETTINGS}
    if values["CPU_NAME"] == "generic" and values["CPU_FEATURES"] is None:
        values["CPU_FEATURES"] = ""  # as numba takes it
    return {name: _written(value, _SETTINGS[name]) for name, value in values.items()}


def _written(value: object, default: str | None) -> str | None:
    """A setting as one would write it; None for what numba takes anyway, so that it is the same before and after its import."""
    text = {"True": "1", "False": "0"}.get(str(value), str(value)).removeprefix("_OptLevel(").removesuffix(")")
    return None if text in ("None", default) else text


@functools.cache
def _processor() -> tuple[str, str, str]:
    """What LLVM calls this processor, and all of its features."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), features.flatten()


class Loader:
    """Puts object files into this process's memory. Its engines are never freed: addresses stay good."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        self._llvm = llvm
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._engines: list[llvm.ExecutionEngine] = []

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


loader: Callable[[], Loader] = functools.cache(Loader)


class Compiled:
    """A function in machine code: ``address`` is that of a C function."""

    def __init__(self, address: int) -> None:
        self.address = address


#: The start of a kernel file, after the hash of all that follows: a line of JSON, then the object file.
MAGIC = b"gumba kernel 1\n"

#: How object files start: ELF, Mach-O, COFF for x86-64 and for Arm. LLVM ends the process when it is given anything else.
_OBJECT_FILES = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\x64\x86", b"\x64\xaa")


def kernel_path(folder: Path, name: str, signature: str) -> Path:
    """The file in ``folder`` of the kernel ``name``, compiled for this processor with numba's settings as they are."""
    key = hashlib.sha256(repr((name, signature, _processor(), compiler_settings())).encode()).hexdigest()[:16]
    return folder / f"{name.split('[')[0]}-{key}"


def load_kernel(path: Path, name: str, read: Callable[[Path], bytes] = kernel_cache.read_own) -> Compiled | None:
    """The function in a kernel file; None when there is no such file, or not one that can be used."""
    try:
        data = read(path)
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise ValueError("it is damaged")
        if not data.startswith(MAGIC, 32):
            raise ValueError("it is not a kernel file")
        head, _, code = data[32 + len(MAGIC) :].partition(b"\n")
        facts = json.loads(head)
        if facts["name"] != name:
            raise ValueError(f"it holds {facts['name']}")
        missing = loader().missing(facts["needs"])
        if missing:
            raise ValueError(f"it needs {', '.join(missing)}")
        if not code.startswith(_OBJECT_FILES):
            raise ValueError("it holds no object file")
        return Compiled(loader().load(code, facts["symbol"]))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged or foreign file does, compiling anew is right
        kernel_cache.warn_once(
            "read", "kernel cache: %s cannot be used (%s): it and others like it are made anew", path, error
        )
        return None


def save_kernel(path: Path, name: str, symbol: str, needs: list[str], code: bytes) -> None:
    """Keep the object file ``code`` as a kernel file, where the cache can be written."""
    head = json.dumps({"name": name, "symbol": symbol, "needs": needs})
    payload = MAGIC + head.encode() + b"\n" + code
    kernel_cache.write(path, hashlib.sha256(payload).digest() + payload)
