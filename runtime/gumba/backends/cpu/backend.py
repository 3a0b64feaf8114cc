"""The CPU's ``gumba.backends.base.Backend``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from gumba.backends import base
from gumba.backends.cache_shapes import KVShape, StateShape
from gumba.backends.cpu import batch
from gumba.backends.cpu.cache_pages import CPUCachePages
from gumba.backends.cpu.kernels import (
    activations,
    activations_q8,
    attention,
    elementwise,
    embed,
    matmul,
    norms,
    roofline,
)
from gumba.backends.cpu.kernels import rope as rope_kernels
from gumba.backends.cpu.kv_pages import PAGE_FORMATS, PageFormat
from gumba.backends.cpu.packer import CPUPacker
from gumba.backends.cpu.packing import PackedMatrix, interleave
from gumba.backends.cpu.program import executor, timing
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.backends.cpu.program.executor import Team
from gumba.backends.cpu.runner import CPURunner
from gumba.backends.cpu.state_slots import CPUStateSlots, slot_bytes
from gumba.errors import RequestError
from gumba.quants import FORMATS
from gumba.quants._finite import first_not_finite
from gumba.simd import detect


class CPUBackend:
    """The CPU, with the instruction set that is current when this is created (GUMBA_ISA names another).

    ``portable``: without instructions whose results differ from those of other sets.
    """

    name = "cpu"

    def __init__(self, *, portable: bool = False) -> None:
        isa = detect.current()
        self._isa = isa.portable or isa if portable else isa

    @property
    def target(self) -> str:
        """The instruction set."""
        return self._isa.name

    def packer(self, shapes: Iterable[tuple[base.MatrixShape, int]]) -> CPUPacker:
        """A packer for the matrices of a file."""
        return CPUPacker(self._isa, shapes)

    @property
    def default_kv_type(self) -> str:
        """bf16 where the instruction set has bf16 products, else f16."""
        return "bf16" if self._isa.dot_bf16 is not None else "f16"

    @property
    def kv_types(self) -> Sequence[str]:
        """Names of all KV formats."""
        return list(PAGE_FORMATS)

    def kv_format(self, kv_type: object) -> PageFormat:
        """The KV format of that name. Raises RequestError for an unknown one."""
        if not isinstance(kv_type, str) or kv_type not in PAGE_FORMATS:
            raise RequestError(f"kv_type {kv_type!r}: expected one of {', '.join(PAGE_FORMATS)}")
        return PAGE_FORMATS[kv_type]

    def cache_pages(
        self,
        shapes: Sequence[KVShape],
        n_pages: int,
        format: base.KVFormat,
        window_pages: base.CachePages | None = None,
        window: int = 0,
    ) -> CPUCachePages:
        """Zeroed memory for ``n_pages`` pages. Raises MemoryError."""
        beside = cast("CPUCachePages | None", window_pages)
        return CPUCachePages(shapes, n_pages, cast(PageFormat, format), beside, window)

    def state_slot_bytes(self, parts: Sequence[Sequence[StateShape]]) -> int:
        """Size of a slot."""
        return slot_bytes(parts)

    def state_slots(self, parts: Sequence[Sequence[StateShape]], n_slots: int) -> CPUStateSlots:
        """Memory for ``n_slots`` slots. Raises MemoryError."""
        return CPUStateSlots(parts, n_slots)

    def workers(self, n_threads: int, processors: Sequence[int] | None = None) -> Team:
        """Start a team of threads. Raises ResourceError if one cannot be started."""
        return Team(n_threads, processors)

    def program(
        self, sizes: base.ProgramSizes, n_threads: int, pages: base.CachePages, states: base.StateSlots | None = None
    ) -> base.Program:
        """An empty program, whose attention stores keys and values in ``pages`` and whose recurrent states are in ``states``."""
        program = Program(
            self._isa,
            n_threads,
            sizes.max_batch_tokens,
            sizes.max_context,
            kv=cast(CPUCachePages, pages).layouts,
            states=[] if states is None else cast(CPUStateSlots, states).layouts,
        )
        # Sound because a program is given only buffers that it created, and matrices of this backend's packer.
        return cast(base.Program, program)

    def runner(
        self,
        program: base.Program,
        hidden: base.Buffer,
        logits: base.Buffer,
        workers: base.Workers,
        limits: base.StepLimits,
        states: base.StateRuns | None = None,
    ) -> CPURunner:
        """Finish a program: allocate its buffers and prepare it to run. Raises ResourceError, MemoryError."""
        own, team = cast(Program, program), cast(Team, workers)
        return CPURunner(own, cast(Buffer, hidden), cast(Buffer, logits), team, limits, states)

    def functions_of(self, programs: Sequence[base.Program]) -> list[base.Function]:
        """The kernels that these programs run, each once."""
        operations = [op for program in programs for op in cast(Program, program).operations]
        return list({op.kernel.name: op.kernel for op in operations}.values())

    def step_functions(self) -> list[base.Function]:
        """The functions that loading and running any model needs."""
        step = executor.run_step, executor.stop_team, executor.help_team, batch.gather
        return [interleave, first_not_finite, *step]

    def llama_functions(self) -> list[base.Function]:
        """The kernels that Llama-like models and their profiles need, in every block format and KV format."""
        kernels: list[base.Function] = [
            norms.rms_norm, elementwise.combine("add"), elementwise.select_rows, activations.gated(self._isa, "silu"),
            rope_kernels.rope, activations_q8.quantize_q8,
        ]  # fmt: skip
        for pages in PAGE_FORMATS.values():
            kernels += [attention.store_kv(self._isa, pages), attention.attention(self._isa, pages)]
        for format in FORMATS.values():
            kernels += [embed.embed(format, self._isa), matmul.matmul(format, self._isa)]
        tests = roofline.read_memory, roofline.dot_int8, roofline.fma_float32, roofline.pairs_bf16
        return [*kernels, timing.stamp, *(test(self._isa) for test in tests)]


if TYPE_CHECKING:  # mypy checks here that these classes have the methods of ``gumba.backends.base``

    def _fits(program: Program, memory: tuple[CPUCachePages, CPUStateSlots], runner: CPURunner, team: Team) -> None:
        backend: base.Backend = CPUBackend()
        operations: base.Operations[Buffer, PackedMatrix] = program
        pages: base.CachePages = memory[0]
        slots: base.StateSlots = memory[1]
        run: base.Runner = runner
        workers: base.Workers = team
        del backend, operations, pages, slots, run, workers
