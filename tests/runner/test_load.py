"""Loading: weights on all threads and shared between models of a file; the progress callback; interruption; changed files."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gumba.runner.load
from gumba import GGUFFile, backends
from gumba.backends.cpu import packing
from gumba.errors import GGUFError, RequestError, ResourceError
from gumba.loading import weight_loader
from gumba.runner.load import LoadConfig, Model
from gumba.simd.detect import current
from support.tiny_models import DATA, GOLDENS, load, logits_of, prompt, write_model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf", "Q4_0")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tiny models come in many."""
    monkeypatch.setattr(packing, "CHUNK_BYTES", 4096)


def helpers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("gumba-load")]


def packed(model: Model) -> dict[str, np.ndarray]:
    """Every matrix of a model."""
    weights = model._weights
    found = {"token_embd": weights.token_embd.data, "output": weights.output.data}
    for i, layer in enumerate(weights.layers):
        found |= {f"{i}.{n}": m.data for n, m in vars(layer).items() if isinstance(m, packing.PackedMatrix)}
    return found


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "F16"])
def test_every_matrix_is_its_tensor(n_threads: int, kind: str, tmp_path: Path) -> None:
    """Against each tensor packed by itself."""
    path = write_model(tmp_path / "model.gguf", kind)
    model = load(path, n_threads=n_threads)
    try:
        found = packed(model)
        with GGUFFile(path) as file:
            for name, data in found.items():
                tensor = file.tensors[f"{name if not name[0].isdigit() else 'blk.' + name}.weight"]
                format = weight_loader.block_format(file, tensor)
                raw = tensor.data.reshape(tensor.shape[0], -1)
                expected = packing.pack_matrix(
                    format, *tensor.shape, lambda first, n, raw=raw: raw[first : first + n], current()
                )
                np.testing.assert_array_equal(data, expected.data, err_msg=name)
                assert not data.flags.writeable and data.ctypes.data % 64 == 0
        spans = sorted((d.ctypes.data, d.ctypes.data + d.nbytes) for d in found.values())
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert spans[-1][1] - spans[0][0] < sum(d.nbytes for d in found.values()) + 64 * len(found), "one run of memory"
    finally:
        model.close()


def test_a_second_model_shares_the_weights(path: Path) -> None:
    ids = prompt(40)
    first = load(path, n_threads=1)
    expected = logits_of(first, ids, 40)
    told: list[float] = []
    second = load(path, n_threads=2, progress=told.append)
    addresses = {name: data.ctypes.data for name, data in packed(first).items()}
    assert {name: data.ctypes.data for name, data in packed(second).items()} == addresses
    assert told == [1.0]
    first.close()
    np.testing.assert_array_equal(logits_of(second, ids, 7), expected)
    link = path.with_name("link.gguf")
    link.symlink_to(path)
    third = load(link, n_threads=1)
    assert third._weights is second._weights, "the same file by another name"
    second.close()
    third.close()


def test_the_last_one_frees_them(path: Path) -> None:
    models = [load(path, n_threads=1) for _ in range(2)]
    before = len(gumba.runner.load._in_use)
    models[0].close()
    gc.collect()
    assert len(gumba.runner.load._in_use) == before
    models[1].close()
    gc.collect()
    assert len(gumba.runner.load._in_use) == before - 1


@pytest.mark.parametrize("how", ["replaced", "touched", "copied"])
def test_another_file_is_loaded_anew(how: str, path: Path) -> None:
    first = load(path, n_threads=1)
    if how == "touched":
        os.utime(path, ns=(1, 1))
    else:
        copy = path.with_name("copy.gguf")
        copy.write_bytes(path.read_bytes())
        os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        path = copy.replace(path) if how == "replaced" else copy
    second = load(path, n_threads=1)
    assert packed(second)["output"].ctypes.data != packed(first)["output"].ctypes.data
    first.close()
    second.close()


def test_another_instruction_set_has_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(path, n_threads=1)
    monkeypatch.setenv("GUMBA_ISA", "generic")
    second = load(path, n_threads=1)
    assert second._weights is not first._weights
    first.close()
    second.close()


def test_loading_at_the_same_time_packs_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = weight_loader.Loader.run

    def run(self: weight_loader.Loader) -> None:
        runs.append(1)
        real(self)

    monkeypatch.setattr(weight_loader.Loader, "run", run)
    models: list[Model] = []
    threads = [threading.Thread(target=lambda: models.append(load(path, n_threads=2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1 and len({id(model._weights) for model in models}) == 1
    for model in models:
        model.close()


def test_a_file_replaced_between_opening_and_loading(path: Path) -> None:
    """What was checked is not what would be read."""
    with GGUFFile(path) as file:
        copy = path.with_name("copy.gguf")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
        with pytest.raises(GGUFError, match="changed or replaced"):
            gumba.runner.load.load_model(file, LoadConfig(n_threads=2))
    assert not helpers()


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_file_rewritten_while_it_is_loaded(path: Path, n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors would be some of one model and some of another; no model gets them, not even later."""
    data = path.read_bytes()
    times, pack = path.stat(), weight_loader.Loader._pack

    def rewrite(self: weight_loader.Loader, *piece: Any) -> None:
        pack(self, *piece)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(bytes([data[-1] ^ 1]))

    with GGUFFile(path) as file:
        monkeypatch.setattr(weight_loader.Loader, "_pack", rewrite)
        with pytest.raises(GGUFError, match="changed"):
            gumba.runner.load.load_model(file, LoadConfig(n_ctx=64, n_threads=n_threads))
        monkeypatch.undo()
        with pytest.raises(GGUFError, match="changed"):
            gumba.runner.load.load_model(file, LoadConfig(n_ctx=64, n_threads=n_threads))
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    load(path).close()


@pytest.mark.skipif(os.name != "posix", reason="the time of the last change of any kind is POSIX")
def test_a_file_rewritten_with_its_old_time_is_another_model(path: Path) -> None:
    """As ``cp -p`` and ``rsync -t --inplace`` do it."""
    first = load(path)
    data, times = bytearray(path.read_bytes()), path.stat()
    data[-3] ^= 1
    with path.open("r+b") as file:
        file.write(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = load(path)
    assert first._weights is not second._weights
    first.close()
    second.close()


@pytest.mark.parametrize("n_threads", [1, 3])
def test_progress_grows_to_the_end(n_threads: int, path: Path) -> None:
    told: list[tuple[float, int]] = []
    load(path, n_threads=n_threads, progress=lambda done: told.append((done, threading.get_ident()))).close()
    fractions = [done for done, _ in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and all(0 < done <= 1 for done in fractions)
    assert {ident for _, ident in told} == {threading.get_ident()}, "on the caller's thread"
    assert len(told) > 5 or n_threads > 1, "the others may have been faster"


@pytest.mark.parametrize("n_threads, when", [(1, 3), (4, 1)])
def test_interrupted(n_threads: int, when: int, path: Path) -> None:
    """Ctrl-C in the middle: no thread, no open handle (a warning would be an error), no half of a model is left."""
    calls: list[float] = []

    def interrupt(done: float) -> None:
        calls.append(done)
        if len(calls) == when:
            raise KeyboardInterrupt

    before = set(gumba.runner.load._in_use)
    with pytest.raises(KeyboardInterrupt):
        load(path, n_threads=n_threads, progress=interrupt)
    gc.collect()
    assert len(calls) == when and not helpers() and set(gumba.runner.load._in_use) == before
    load(path, n_threads=n_threads).close()


def test_interrupting_stops_the_others_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends the piece that it is at, and takes no other."""
    real, pieces = packing.pack, []

    def pack(*args: Any) -> None:
        pieces.append(args)
        time.sleep(0.02)
        real(*args)

    def interrupt(done: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing, "pack", pack)
    load(path, n_threads=1).close()
    gc.collect()
    whole = len(pieces)
    pieces.clear()
    with pytest.raises(KeyboardInterrupt):
        load(path, n_threads=3, progress=interrupt)
    assert whole > 60 and len(pieces) < whole / 3


@pytest.mark.parametrize("who", ["the caller", "a helper"])
def test_an_error_while_packing_is_raised(who: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = packing.pack
    failed = threading.Event()

    def pack(*args: Any) -> None:
        if threading.current_thread().name.startswith("gumba-load") == (who == "a helper"):
            failed.set()
            raise MemoryError
        failed.wait(10)
        real(*args)

    monkeypatch.setattr(packing, "pack", pack)
    with pytest.raises(ResourceError, match="memory"):
        load(path, n_threads=2)
    assert failed.is_set() and not helpers()


def test_a_file_that_ends_too_early(path: Path) -> None:
    size = path.stat().st_size
    with GGUFFile(path) as file:
        os.truncate(path, size - 1000)
        with pytest.raises(GGUFError):
            gumba.runner.load.load_model(file, LoadConfig(n_threads=2))
    assert not helpers()


def test_fewer_threads_than_given_will_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only while loading: a team's threads are needed, one by one."""
    real: Callable[[threading.Thread], None] = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "gumba-load-2":
            raise RuntimeError("can't start new thread")
        real(self)

    expected = load(GOLDENS[0], n_threads=1)
    bits = {name: data.copy() for name, data in packed(expected).items()}
    expected.close()
    gc.collect()
    monkeypatch.setattr(threading.Thread, "start", start)
    model = load(GOLDENS[0], n_threads=4)
    for name, data in packed(model).items():
        np.testing.assert_array_equal(data, bits[name])
    model.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a thread's processors are read as on Linux")
def test_threads_are_tied_as_the_environment_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = max(os.sched_getaffinity(0))
    monkeypatch.setenv("GUMBA_AFFINITY", str(last))
    known = {thread.native_id for thread in threading.enumerate()}
    model = load(path, n_threads=3)
    try:
        logits_of(model, prompt(3), 1)  # by now they have begun
        tied = [t.native_id for t in threading.enumerate() if t.native_id not in known]
        assert len(tied) == 2
        until = time.perf_counter() + 10
        while any(os.sched_getaffinity(t or 0) != {last} for t in tied) and time.perf_counter() < until:
            time.sleep(0.001)
        assert all(os.sched_getaffinity(t or 0) == {last} for t in tied)
    finally:
        model.close()
    monkeypatch.setenv("GUMBA_AFFINITY", "nonsense")
    with pytest.raises(RequestError, match="GUMBA_AFFINITY"):
        load(path)


def test_where_threads_cannot_be_tied(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GUMBA_AFFINITY", "all")
    monkeypatch.setattr(gumba.runner.load, "can_pin_threads", lambda: False)
    load(path, n_threads=2).close()
    assert "GUMBA_AFFINITY" in caplog.text


ARCHITECTURE_FILES = sorted(DATA.glob("arch_*.gguf"))


@pytest.mark.parametrize(
    "path", ARCHITECTURE_FILES, ids=[path.stem.removeprefix("arch_") for path in ARCHITECTURE_FILES]
)
def test_the_kernels_of_a_file_are_known_before_it_is_read(path: Path) -> None:
    """What ``gumba compile MODEL`` compiles is what the model runs."""
    with GGUFFile(path) as file:
        known = {kernel.name for kernel in gumba.runner.load.functions_of(backends.get(), file, "f32")}
        model = gumba.runner.load.load_model(file, LoadConfig(n_threads=1, kv_type="f32"))
    try:
        operations = [*model.operations, *getattr(getattr(model, "encoder", None), "operations", [])]
        assert {operation.kernel.name for operation in operations} == known
    finally:
        model.close()
