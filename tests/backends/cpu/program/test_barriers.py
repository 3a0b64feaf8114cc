"""Where a program waits: enough for any timing of the threads, and no more than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba.backends.cpu.kernels.record import SPLIT_FACTOR
from gumba.backends.cpu.program import memory_plan
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.runner.load import Chunk
from gumba.simd.detect import current
from support import programs
from support.programs import GOLDENS, batch, named, phases, two_norms, walk

WIDTH = 128
TOKENS = np.arange(11, dtype=np.int32) * 3
OUTPUTS = np.array([10, 0, 7], np.int32)


def barriers(records: np.ndarray) -> list[bool]:
    return [bool(b) for b in records[:, 1]]


def test_where_a_program_waits() -> None:
    program = Program(current(), 3, 16)
    logits, at = two_norms(program, named("q4_0"))
    records = program.finish([logits])
    after = barriers(records)
    names = [operation.kernel.name.split("[")[0] for operation in program.operations]
    assert names == ["embed", "rms_norm", "quantize_q8", "matmul", "matmul", "matmul", "gated", "quantize_q8", "matmul",
                     "combine", "gated", "select_rows", "rms_norm", "quantize_q8", "matmul"]  # fmt: skip
    assert after[0], "embed splits tokens, the norm blocks"
    assert not after[at["norm"]], "norm and quantization give each thread the same blocks"
    assert after[at["first product"] - 1], "a product reads all columns of its input"
    assert not after[at["first product"]] and not after[at["first product"] + 1], "products of one input do not wait"
    assert after[at["last product"]]
    assert not after[at["swiglu"]] and after[at["swiglu"] + 1]
    assert after[at["bias"] - 1], "a product splits rows of weights, the addition splits blocks"
    assert not after[at["bias"]], "addition and activation split alike"
    assert after[at["select"] - 1], "selected rows may be anybody's"
    assert after[at["select"]], "a norm reads whole rows, which several threads have copied"
    assert after[-1], "a step is over when every thread has ended"
    assert sum(after) == 9
    assert [operation.phase for operation in program.operations] == [
        phase for phase, members in enumerate(phases(records)) for _ in members
    ]


@pytest.mark.parametrize("format", ["q4_0", "f32", "f16"])
@pytest.mark.parametrize("n_threads", [2, 3, 5])
def test_any_timing_gives_the_same(format: str, n_threads: int) -> None:
    """Threads that run as far ahead as barriers let them, in several orders."""
    program = Program(current(), n_threads, 16)
    logits, _ = two_norms(program, named(format))
    any_timing(program, logits, n_threads)


def any_timing(program: Program, result: Buffer, n_threads: int) -> None:
    records = program.finish([result])
    words = batch(len(TOKENS), TOKENS, OUTPUTS)
    alone = records.copy()
    alone[:, 1] = 1
    walk(alone, words, 1, [0])
    expected = program.rows(result).copy()
    used = len(OUTPUTS) if result.count else len(TOKENS)
    for order in (range(n_threads), range(n_threads)[::-1], [*range(1, n_threads), 0]):
        program._arena[:] = 0xFF  # NaN: what is read too early shows
        walk(records, words, n_threads, list(order))
        got = program.rows(result)
        np.testing.assert_array_equal(got[:used, : result.width], expected[:used, : result.width])


@pytest.mark.parametrize("format", ["f32", "q4_0"])
def test_a_product_of_a_product_waits(format: str) -> None:
    """Both split their rows alike, but the second reads what all threads have made."""
    program = Program(current(), 3, 16)
    x = program.embed(programs.matrix(named("f32"), 50, WIDTH))
    y = program.matmul(programs.matrix(named(format), WIDTH, WIDTH, 1), x)
    z = program.matmul(programs.matrix(named(format), WIDTH, WIDTH, 2), y)
    any_timing(program, z, 3)


def test_a_residual_of_an_equal_product_does_not_wait() -> None:
    """A product adds, row for row, what an earlier one of as many rows has made: the same thread's work."""
    program = Program(current(), 3, 16)
    x = program.embed(programs.matrix(named("f32"), 50, WIDTH))
    y = program.matmul(programs.matrix(named("f32"), WIDTH, WIDTH, 1), x)
    z = program.matmul(programs.matrix(named("f32"), WIDTH, WIDTH, 2), x, residual=y)
    any_timing(program, z, 3)
    assert barriers(program.finish([z])) == [True, False, True]


def test_a_row_is_not_overwritten_while_others_read_it() -> None:
    """A norm reads whole rows; turning them in place afterwards must wait for all who still read."""
    program = Program(current(), 3, 16)
    x = program.embed(programs.matrix(named("f32"), 50, WIDTH))
    program.rms_norm(x, np.ones(WIDTH, np.float32), 1e-5)
    program.rope(x, 2, 64, 64, program.constant(np.ones(64)))
    assert barriers(program.finish([x])) == [True, True, True]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_any_timing_gives_the_same_logits(path: Path) -> None:
    """Whole models: two steps of two sequences, the records walked by one thread that plays three."""
    n_threads = 3
    model = programs.load(path, n_threads=1, kv_tokens=512, max_batch_tokens=96)
    other = programs.load(path, n_threads=n_threads, kv_tokens=512, max_batch_tokens=96)
    try:
        vocabulary = model.config.n_vocab
        for order in (range(n_threads), range(n_threads)[::-1]):
            tables = [(m.kv.allocate(2), m.kv.allocate(1)) for m in (model, other)]
            for at, sizes in ((0, (70, 9)), (70, (5, 1))):
                logits = []
                for m, (long, short) in zip((model, other), tables):
                    chunks = [
                        Chunk([i * 7 % vocabulary for i in range(sizes[0])], at, long, "all"),
                        Chunk([i * 5 % vocabulary for i in range(sizes[1])], 9 if at else 0, short, "last"),
                    ]
                    if m is other:
                        play(m, n_threads, list(order))
                    logits.append(m.forward(chunks).copy())
                np.testing.assert_array_equal(logits[1], logits[0])
            for m, (long, short) in zip((model, other), tables):
                m.kv.release([*long, *short])
    finally:
        model.close()
        other.close()


def play(model: object, n_threads: int, order: list[int]) -> None:
    """From here on one thread plays the model's team, in ``order``."""

    class Player:
        def run(self, records: np.ndarray, words: np.ndarray) -> None:
            model._runner._program._arena[:] = 0xFF  # type: ignore[attr-defined]
            walk(records, words, n_threads, order)

        def close(self) -> None:
            team.close()

    team = model._runner._team  # type: ignore[attr-defined]
    model._runner._team = Player()  # type: ignore[attr-defined]


def test_shares_are_cut_where_all_operations_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a small step only where a chunk is worth it, at most into MAX_CHUNKS; a kernel with memory for each thread never."""
    monkeypatch.setattr(memory_plan, "CHUNK_BYTES", 1000)
    program = Program(current(), 2, 16)
    logits, _ = two_norms(program, named("f32"), 64)
    records = program.finish([logits])
    found = {}
    for members in phases(records):
        names = " ".join(program.operations[i].kernel.name.split("[")[0] for i in members)
        weights = sum(program.operations[i].work.weights for i in members)
        word = int(records[members[0], SPLIT_FACTOR])
        found[names] = (weights, 1 << (word & 3), 1 << (word >> 8 & 3))
        assert not records[members[1:], SPLIT_FACTOR].any(), "it stands with the phase's first operation"
    assert found["embed"][1:] == (1, 1)
    assert found["rms_norm"][1:] == (1, 8)
    assert 16 * 1000 <= found["matmul"][0] < 24 * 1000 and found["matmul"][1:] == (8, 8)
    assert found["matmul matmul matmul"][0] >= 2000 * 8 and found["matmul matmul matmul"][1:] == (8, 8)
    monkeypatch.setattr(memory_plan, "CHUNK_BYTES", 3000)
    again = program.finish([logits])
    assert [1 << (int(w) & 3) for w in again[:, SPLIT_FACTOR] if w][-1] == 2, (
        "three chunks of 3000 bytes for each thread, cut into two"
    )
