"""Too little memory: one message that says so, and a KV cache of the size that there is memory for."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gumba.models.registry
import gumba.runner.load
from gumba import backends, memory
from gumba.errors import ConvertError, GumbaError, ResourceError
from gumba.gguf import GGUFFile
from gumba.jit import jit
from gumba.memory import lacks_memory, no_memory, shortage
from gumba.runner import memory_budget
from gumba.runner.kv_cache import KVCache
from gumba.runner.load import LoadConfig

PATH = Path(__file__).parent.parent / "data" / "arch_qwen3.gguf"


def raised(*errors: BaseException) -> BaseException:
    """The last of ``errors``, each raised while the one before was handled."""
    context: BaseException | None = None
    for error in errors:
        error.__context__ = context
        context = error
    return errors[-1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ImportError("libopenblas.so: failed to map segment from shared object"), True),
        (RuntimeError("can't start new thread"), True),
        (GumbaError("failed to map segment"), False),  # what a file says is no sign
        (raised(OSError("x.so: failed to map segment from shared object"), OSError("no libllvmlite.so")), True),
        (raised(MemoryError(), ConvertError("cannot write x")), True),
        (raised(KeyError("x"), ConvertError("cannot write x")), False),
        (None, False),
    ],
)
def test_what_comes_from_a_lack_of_memory(error: BaseException | None, expected: bool) -> None:
    assert lacks_memory(error) is expected


def test_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 5 << 20)
    assert shortage("the table needs", 7 << 20) == "not enough memory: the table needs 7 MB, and 5 MB are available"
    assert no_memory() == "not enough memory: 5 MB are available"
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert shortage("the table needs", 7 << 20) == "not enough memory: the table needs 7 MB"
    assert no_memory() == "not enough memory"


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let KV caches of more than so many pages fail."""

    def limit(n_pages: int) -> None:
        class Limited(gumba.runner.load.KVCache):
            def __init__(self, backend: Any, shapes: Any, count: int, *rest: Any) -> None:
                if count > n_pages:
                    raise ResourceError(f"{count} pages")
                super().__init__(backend, shapes, count, *rest)

        monkeypatch.setattr(gumba.runner.load, "KVCache", Limited)

    return limit


def n_pages(**options: Any) -> int:
    with GGUFFile(PATH) as gguf:
        model = gumba.runner.load.load_model(gguf, LoadConfig(n_threads=1, **options))
        model.close()
        return model.kv.n_pages


def test_a_kv_cache_shrinks_to_what_there_is(most: Callable[[int], None], caplog: pytest.LogCaptureFixture) -> None:
    wanted = n_pages(n_ctx=256)
    assert wanted == 16
    most(9)
    assert n_pages(n_ctx=256) == 8
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "not enough memory for a KV cache of 1024 tokens: it holds 512 (kv_memory, or --kv-memory of a command, sets its size)"
    ]


@pytest.mark.parametrize("options", [{"kv_tokens": 1024}, {"kv_memory": 1 << 20}])
def test_one_whose_size_is_named_does_not(most: Callable[[int], None], options: dict[str, int]) -> None:
    most(9)
    with pytest.raises(ResourceError, match="pages"):
        n_pages(n_ctx=256, **options)


def test_it_is_never_too_small_for_anything(most: Callable[[int], None]) -> None:
    most(3)
    with pytest.raises(ResourceError, match="4 pages"):
        n_pages(n_ctx=256)


def test_little_memory_is_not_promised_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what the weights leave, where a whole context takes more than an eighth of all."""
    page_bytes = KVCache.bytes_per_page(config().kv_shapes, backends.get().kv_format("f16"))
    left = PATH.stat().st_size + 4 * page_bytes
    monkeypatch.setattr(memory_budget, "MIN_PAGES", 1)
    monkeypatch.setattr(memory_budget, "available_memory", lambda: left)
    assert n_pages(n_ctx=256, kv_type="f16") == 2
    monkeypatch.setattr(memory_budget, "available_memory", lambda: 0)
    assert n_pages(n_ctx=256, kv_type="f16") == 1


def config() -> Any:
    with GGUFFile(PATH) as gguf:
        return gumba.models.registry.architecture(gguf).read_config(gguf)


def test_the_compiler_is_not_started_where_it_would_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "address_space_left", lambda: 90 << 20)
    with pytest.raises(ResourceError, match="compiling kernels may need"):
        jit._check_memory()
    for left in (None, 1 << 30):
        monkeypatch.setattr(jit, "address_space_left", lambda left=left: left)
        jit._check_memory()


CHILD = """
import resource, sys
from gumba.memory import address_space_left
assert address_space_left() is None
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20, resource.RLIM_INFINITY))
assert 0 <= address_space_left() < int(sys.argv[1]) << 20
from gumba.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space can be limited on Linux")
def test_a_process_of_limited_memory_says_so() -> None:
    """From far too little to enough, in steps: one line each, and never a traceback or a signal."""
    codes = []
    for megabytes in (40, 220, 300, 380, 2000):
        command = [
            sys.executable,
            "-c",
            CHILD,
            str(megabytes),
            "run",
            str(PATH),
            "-p",
            "hello",
            "-n",
            "1",
            "-q",
            "-t",
            "1",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        codes.append(done.returncode)
        if done.returncode:
            assert done.stderr.startswith("gumba: error: ") and done.stderr.count("\n") == 1, done.stderr
            assert "memory" in done.stderr, done.stderr
    assert codes[0] == 2 and codes[-1] == 0 and set(codes) == {0, 2}
