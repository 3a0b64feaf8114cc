"""Kernels that different processes compiled and cached do not get in each other's way when one process loads both.

The names of compiled functions hold a number that counts from 1 in every process. Without more in the name, two kernels
of one factory, cached by two processes, have the same name, and a process that loads both runs one of them twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CHILD = """
import ctypes, json, sys
from gumba.jit.jit import compile_cfunc, entry, inline, stats

# Too long to be inlined where it is called twice: so it stays a function, found by its name.
BODY = "".join(f"    y = (y ^ (y >> {i % 13 + 1})) * {2 * i + 3} + x\\n" for i in range(120))

def make(k):
    scope = {"k": k, "__name__": __name__}
    exec("def inner(x):\\n    y = x + k\\n" + BODY + "    return k if y != 0 else -k\\n", scope)
    inner = inline(scope["inner"])

    @entry("i8(i8)", variant=str(k))
    def outer(x):
        return inner(x) + inner(x + 1)

    def trampoline(x):
        return inner(x) + inner(x + 1)

    made = compile_cfunc(trampoline, "i8(i8)", f"trampoline[{k}]")
    return [outer(1), ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(made.address)(1)]

print(json.dumps({"results": [make(int(k)) for k in sys.argv[1:]], "compiled": stats.compiled, "loaded": stats.loaded}))
"""


def test_kernels_of_one_name_from_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD, encoding="utf-8")

    def child(*factors: int) -> dict[str, object]:
        command = [sys.executable, str(script), *map(str, factors)]
        environment = {**os.environ, "GUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=120)
        result: dict[str, object] = json.loads(done.stdout)
        return result

    assert child(10) == {"results": [[20, 20]], "compiled": 2, "loaded": 0}
    assert child(20) == {"results": [[40, 40]], "compiled": 2, "loaded": 0}
    assert child(10, 20) == {"results": [[20, 20], [40, 40]], "compiled": 0, "loaded": 4}
    assert child(20, 10) == {"results": [[40, 40], [20, 20]], "compiled": 0, "loaded": 4}
