"""How an operation of a program is declared, and what it can read besides its own arguments.

A kernel is an ordinary compiled function ``kernel(batch, thread, n_threads, *arguments)``. It does its share of the work
(thread ``thread`` of ``n_threads``) and returns; the executor then meets the other threads at a barrier. Its arguments are
64-bit integers (addresses, counts, strides) or, where annotated ``f4``, 32-bit floats: named words of the operation's record,
which is why a kernel may have more of them than other functions.
Everything that changes from step to step is read from one batch record, so that nothing is rebuilt between steps.

A share is a range of independent output elements: how work is split never changes the order of a sum. So neither the number of
shares matters nor which thread takes which: where a kernel is ``stealable``, the executor may split every thread's share into
chunks, and a thread that has finished its own takes chunks of slower threads. The kernel still sees shares ``thread`` of
``n_threads``, only more of them; each is run once, by one thread at a time.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable
from typing import TypeAlias, cast, overload

from gumba.jit.jit import compile_cfunc, inline, is_kept
from gumba.jit.object_file import Compiled
from gumba.simd.memory import load_f32, load_i64

#: 64-bit words of an operation's record: function address, whether a barrier follows, into how many chunks shares are split from
#: here to the next barrier (``split_factor``; 0: not at all), then the arguments.
RECORD_WORDS = 21
BARRIER, SPLIT_FACTOR = 1, 2
FIRST_ARGUMENT = 3
MAX_ARGUMENTS = RECORD_WORDS - FIRST_ARGUMENT

#: Byte offsets in the batch record (64-bit words).
N_TOKENS = 0  # tokens in this step
TOKENS = 8  # -> int32 [n_tokens], checked token ids
POSITIONS = 16  # -> int32 [n_tokens], position of each token in its sequence
SLOTS = 24  # -> int64 [n_tokens], page * PAGE_TOKENS + place in the page, where the token's key and value go
N_TILES = 32  # runs of consecutive tokens of one sequence, for attention
# -> int64 [n_tiles, TILE_WORDS]: first token, tokens, position of the first, address of the sequence's int32 block table, tokens
# that the sequence has after this step, tokens of its source (of an encoder-decoder: those that the encoder reads), address of
# the block table for layers with a window
TILES = 40
TILE_WORDS = 7
TABLE, SOURCE, WINDOW_TABLE = 24, 40, 48
N_OUTPUTS = 48  # tokens whose logits are needed
OUTPUT_ROWS = 56  # -> int32 [n_outputs]
SPLIT = 64  # attention: parts of the context that threads take apart for this step; 0: none is split
N_RUNS = 72  # of models with states: runs of consecutive tokens of one sequence, each whole
# -> int64 [n_runs, RUN_WORDS]: first token, tokens, position of the first, byte offset of the sequence's slot of states
RUNS = 80
RUN_WORDS = 4
WINDOW_SLOTS = 88  # -> int64 [n_tokens], as SLOTS, in layers with a window
VIEW_WORDS = 12
#: Behind the record of a step's tokens lies one, with the same words, of only those whose logits are needed: for operations on
#: their rows alone, once ``kernels.output_rows`` has filled it.
OUTPUTS_VIEW = 8 * VIEW_WORDS
BATCH_WORDS = 2 * VIEW_WORDS

#: The type of a kernel's arguments that are 32-bit floats.
f4: TypeAlias = float

#: The signature of every kernel: its record, the batch record, thread and number of threads.
_SIGNATURE = "void(i8, i8, i8, i8)"

#: A thread's share may be split into this many chunks at most.
MAX_CHUNKS = 8
#: A step of at least so many tokens is a large one.
LARGE_STEP = 16


def split_factor(small: int, large: int) -> int:
    """The word for: in a small step each thread's share is split into ``small`` chunks, in a large one into ``large``.

    Powers of two, at most MAX_CHUNKS.
    """
    for chunks in (small, large):
        if chunks not in (1, 2, 4, 8):
            raise ValueError(f"{chunks} chunks, expected a power of two up to {MAX_CHUNKS}")
    return (small.bit_length() - 1) | (large.bit_length() - 1) << 8


class Kernel:
    """A compiled operation. ``address`` compiles it (or takes it from the cache) on first use.

    ``stealable``: a thread's share may be split into up to MAX_CHUNKS chunks that other threads may take; not so for a kernel
    that keeps memory for each thread.

    ``inline_first``: the compiler puts its helper functions into one before it simplifies them. LLVM otherwise simplifies each
    one, and again what it has become in each caller, level by level: for attention, with some twenty, three times the work for
    code as fast. Not for products: LLVM's order makes that of Q6_K up to 17 % faster for one token.
    """

    def __init__(
        self, function: Callable[..., object], variant: str, stealable: bool = False, inline_first: bool = False
    ) -> None:
        self.stealable = stealable
        self._inline_first = inline_first
        self.name = f"{function.__name__}[{variant}]" if variant else function.__name__
        self.function = function
        self.py_func = function
        parameters = list(inspect.signature(function).parameters.values())[3:]
        if len(parameters) > MAX_ARGUMENTS:
            raise ValueError(f"{self.name}: more than {MAX_ARGUMENTS} arguments")
        self.arguments = [(p.name, p.annotation == "f4") for p in parameters]
        self._compiled: Compiled | None = None

    @property
    def is_missing(self) -> bool:
        """Whether the function must still be compiled: it is neither loaded nor in a file."""
        return self._compiled is None and not is_kept(f"kernel.{self.name}", _SIGNATURE)

    @property
    def address(self) -> int:
        if self._compiled is None:
            loads = [
                f"{'load_f32' if is_float else 'load_i64'}(op + {8 * (FIRST_ARGUMENT + i)})"
                for i, (_, is_float) in enumerate(self.arguments)
            ]
            source = (
                "def trampoline(op, batch, thread, n_threads):\n"
                f"    kernel(batch, thread, n_threads, {', '.join(loads)})\n"
            )
            scope: dict[str, object] = {
                "__name__": __name__,
                "kernel": inline(self.function),
                "load_i64": load_i64,
                "load_f32": load_f32,
            }
            exec(source, scope)
            self._compiled = compile_cfunc(
                cast("Callable[..., object]", scope["trampoline"]),
                _SIGNATURE,
                f"kernel.{self.name}",
                inline_first=self._inline_first,
            )
        return self._compiled.address

    def compile(self) -> None:
        """Compile or load the function now rather than at the first use of its address."""
        self.address  # noqa: B018 - it does the work

    def words(self, values: dict[str, int | float]) -> list[int]:
        """The arguments as 64-bit record words, in order. ValueError unless every argument is given, and no other."""
        expected = [name for name, _ in self.arguments]
        if set(values) != set(expected):
            raise ValueError(f"{self.name}: arguments {sorted(values)}, expected {sorted(expected)}")
        return [
            struct.unpack("<q", struct.pack("<f4x", values[name]))[0] if is_float else int(values[name])
            for name, is_float in self.arguments
        ]


@overload
def kernel(function: Callable[..., object], /) -> Kernel: ...
@overload
def kernel(
    *, variant: str = "", stealable: bool = False, inline_first: bool = False
) -> Callable[[Callable[..., object]], Kernel]: ...
def kernel(
    function: Callable[..., object] | None = None,
    /,
    *,
    variant: str = "",
    stealable: bool = False,
    inline_first: bool = False,
) -> Kernel | Callable[[Callable[..., object]], Kernel]:
    """Declare an operation. ``variant`` tells apart the kernels that one factory makes; the rest: see ``Kernel``."""
    if function is not None:
        return Kernel(function, variant, stealable)
    return lambda f: Kernel(f, variant, stealable, inline_first)


@inline
def share(n, thread, n_threads):
    """First unit of a thread's share of ``n`` units; the share ends where the next thread's begins."""
    return n * thread // n_threads


@inline
def first_unit(n_rows, n_blocks, thread, n_threads):
    """Row and block of the first unit of a thread's share of rows of ``n_blocks`` units each, and how many units it has."""
    n = n_rows * n_blocks
    first = share(n, thread, n_threads)
    row = first // n_blocks
    return row, first - row * n_blocks, share(n, thread + 1, n_threads) - first


@inline
def next_unit(row, block, n_blocks):
    """The unit after (row, block). Counting is several times faster than dividing a unit's number again each time."""
    block += 1
    if block == n_blocks:
        return row + 1, 0
    return row, block
