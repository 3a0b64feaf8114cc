"""Where a program's buffers lie: never two in one place at one time."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from gumba.backends.cpu.packing import ROW_ALIGN
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.errors import ResourceError
from gumba.simd.detect import current
from support import programs
from support.programs import GOLDENS, named, phases, two_norms


def lives(program: Program, records: np.ndarray, kept: Buffer) -> dict[Buffer, tuple[int, int]]:
    """First and last phase in which each buffer is among an operation's arguments."""
    found: dict[int, tuple[Buffer, int, int]] = {}
    for phase, members in enumerate(phases(records)):
        for i in members:
            operation = program.operations[i]
            used = [value for value in operation.arguments.values() if isinstance(value, Buffer)]
            assert {id(b) for b in used} <= {id(b) for b in [*operation.reads, *operation.writes]}
            for b in used:
                first = found[id(b)][1] if id(b) in found else phase
                found[id(b)] = (b, first, phase)
    last = len(phases(records)) - 1
    found[id(kept)] = (kept, found[id(kept)][1], last)
    return {b: (first, end) for b, first, end in found.values()}


def check(program: Program, records: np.ndarray, kept: Buffer) -> int:
    """All pairs; returns how many share memory one after the other."""
    where = lives(program, records, kept)
    begin = int(program._arena.ctypes.data)
    sharing = 0
    for b in where:
        assert b.address % 64 == 0 and b.row_bytes % 64 == 0
        assert begin <= b.address and b.address + b.row_bytes * program.max_rows <= begin + len(program._arena)
    for one, two in itertools.combinations(where, 2):
        apart = one.address + one.row_bytes * program.max_rows <= two.address
        apart |= two.address + two.row_bytes * program.max_rows <= one.address
        together = where[one][0] <= where[two][1] and where[two][0] <= where[one][1]
        assert apart or not together, f"{one.name} and {two.name}"
        sharing += not apart
    return sharing


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
@pytest.mark.parametrize("max_batch_tokens", [1, 96])
def test_buffers_of_a_model_do_not_meet(path: Path, max_batch_tokens: int) -> None:
    model = programs.load(path, n_threads=2, kv_tokens=128, max_batch_tokens=max_batch_tokens)
    try:
        program = model._runner._program
        assert program is not None
        written = program.operations[-1].writes[0]
        assert check(program, model._runner._records, written) > 5, "memory is used again"
        whole = sum(b.row_bytes for b in lives(program, model._runner._records, written)) * program.max_rows
        assert len(program._arena) < whole
    finally:
        model.close()


@pytest.mark.parametrize("format", ["f32", "q4_0"])
def test_buffers_of_a_small_program_do_not_meet(format: str) -> None:
    program = Program(current(), 2, 7)
    logits, _ = two_norms(program, named(format))
    check(program, program.finish([logits]), logits)
    assert program.rows(logits).shape == (7, 128) and logits.width == 70


def test_rows_have_room_for_a_group_of_any_set() -> None:
    program = Program(current(), 1, 4)
    x = program.embed(programs.matrix(named("f32"), 10, 33))
    assert x.width == 33 and x.row_bytes == 4 * ROW_ALIGN


def test_constants_are_padded_with_zeros() -> None:
    program = Program(current(), 1, 1)
    address = program.constant(np.arange(70))
    kept = program._keep[-1]
    assert kept.ctypes.data == address and address % 64 == 0
    np.testing.assert_array_equal(kept, [*range(70), *([0] * 58)])
    program.constant(np.arange(6).reshape(2, 3), pad=False)
    np.testing.assert_array_equal(program._keep[-1], range(6))


def test_too_little_memory_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from gumba.backends.cpu.program import memory_plan

    program = Program(current(), 1, 1 << 16)
    logits, _ = two_norms(program, named("f32"))

    def nothing_left(n_bytes: int, alignment: int = 64) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(memory_plan, "aligned_empty", nothing_left)
    with pytest.raises(ResourceError, match="MB"):
        program.finish([logits])
