"""The matrix product: every format on every instruction set, and the same bits however the work is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from gumba.backends.cpu.kernels.embed import embed
from gumba.backends.cpu.kernels.matmul import TOKEN_BLOCK, matmul
from gumba.quants import BlockFormat, DotFormat, FloatFormat, get
from gumba.quants._registers import BlockRegisters
from gumba.simd.isa import Isa
from gumba.simd.value import Simd, Value
from support import kernel_oracles, kernel_setups
from support.kernel_harness import (
    GENERIC,
    ISAS,
    ISAS_BUT_BF16,
    KINDS_OF_FORMATS,
    Batch,
    Setup,
    address,
    isa_id,
    of_formats,
    packed,
    random_rows,
    rng_of,
    rows,
    same_bits,
    set_iq1_m_scales,
)

every = pytest.mark.parametrize("isa", ISAS, ids=isa_id)
#: Products of integers: sets that differ in those of bfloat16 share their code.
every_of_integers = pytest.mark.parametrize("isa", ISAS_BUT_BF16, ids=isa_id)
DOT_FORMATS = [format for format in kernel_setups.ALL_FORMATS if isinstance(format, DotFormat)]
FLOAT_FORMATS = [format for format in kernel_setups.ALL_FORMATS if isinstance(format, FloatFormat)]
f32, q4_0, q4_1 = get("f32"), get("q4_0"), get("q4_1")


def test_formats_of_both_kinds_are_here() -> None:
    assert {format.name for format in FLOAT_FORMATS} >= {"f32", "f16", "bf16"}
    assert {format.name for format in DOT_FORMATS} >= {"q4_0", "q4_1", "q8_0", "q6_k", "mxfp4"}
    assert len(FLOAT_FORMATS) + len(DOT_FORMATS) == len(kernel_setups.ALL_FORMATS)


@pytest.mark.parametrize(
    "format, isa", of_formats(DOT_FORMATS, ISAS_BUT_BF16) + of_formats(FLOAT_FORMATS, ISAS), ids=isa_id
)
def test_every_format_on_every_instruction_set(format: BlockFormat, isa: Isa) -> None:
    """37 rows are no multiple of any number of lanes; weights are random bits."""
    most = 20 if isa.matrix_unit is None else 2 * isa.matrix_unit.tokens + 5
    many = kernel_setups.setup_matmul(isa, format, n=most).check()
    for n in (*range(1, 21), most):
        setup = kernel_setups.setup_matmul(isa, format, n=most)
        got = setup.run(batch=Batch(n))
        np.testing.assert_array_equal(same_bits(got[:n]), same_bits(many[:n]), err_msg=f"{n} tokens")
        assert np.isnan(got[n:]).all(), "rows past the last token are not touched"
        alone = one_token(setup, n - 1)
        np.testing.assert_array_equal(same_bits(alone), same_bits(many[n - 1]), err_msg=f"token {n - 1} alone")


def one_token(setup: Setup, token: int) -> np.ndarray:
    """The results of a run over that one token."""
    whole = dict(setup.arguments)
    for name, stride in (("x", "x_stride"), ("out", "out_stride"), ("residual", "out_stride")):
        if whole[name]:
            setup.arguments[name] = whole[name] + token * whole[stride]
    got = setup.run(batch=Batch(1))[token]
    setup.arguments.update(whole)
    return got


@every
@pytest.mark.parametrize("format", [q4_1, f32], ids=isa_id)
def test_without_a_residual(format: BlockFormat, isa: Isa) -> None:
    plain = kernel_setups.setup_matmul(isa, format, residual=False).check()
    added = kernel_setups.setup_matmul(isa, format, residual=True)
    residual = added.expected - kernel_setups.setup_matmul(isa, format, residual=False).expected
    np.testing.assert_array_equal(added.run(), plain + residual.astype(np.float32))


@pytest.mark.parametrize("n_rows", [1, 3, 4, 5, 15, 16, 17, 64, 65])
def test_any_number_of_rows(n_rows: int) -> None:
    for isa in {ISAS[0].name: ISAS[0], "generic": GENERIC}.values():
        kernel_setups.setup_matmul(isa, q4_1, n=3, n_rows=n_rows).check()


def test_columns_of_one_block_and_of_many() -> None:
    for columns in (32, 64, 1504):
        kernel_setups.setup_matmul(ISAS[0], q4_1, columns=columns).check()
    for columns in (1, 2, 33, 1000):
        kernel_setups.setup_matmul(ISAS[0], f32, columns=columns).check()


@pytest.mark.parametrize("format", [q4_1, f32], ids=isa_id)
def test_more_tokens_than_a_token_block(format: BlockFormat) -> None:
    setup = kernel_setups.setup_matmul(ISAS[0], format, n=2 * TOKEN_BLOCK + 7)
    whole = setup.check()
    for token in (0, TOKEN_BLOCK - 1, TOKEN_BLOCK, 2 * TOKEN_BLOCK + 6):
        np.testing.assert_array_equal(same_bits(one_token(setup, token)), same_bits(whole[token]))


@pytest.mark.parametrize("name", ["q4_1", "q8_0", "q5_0", "q6_k"])
def test_the_residual_is_added_once(name: str) -> None:
    """Also to sums that are continued from one run of expanded blocks to the next, with tiles of every size."""
    whole = kernel_setups.setup_matmul(ISAS[0], get(name), n=37, columns=9 * 256).check()
    few = kernel_setups.setup_matmul(ISAS[0], get(name), n=3, columns=9 * 256).check()
    assert whole.shape == (37, 37) and few.shape == (3, 37)


@pytest.mark.parametrize("format, isa", of_formats(DOT_FORMATS, ISAS_BUT_BF16), ids=isa_id)
def test_the_largest_numbers_do_not_overflow(format: BlockFormat, isa: Isa) -> None:
    """All weights at one end of their range, all activations at 127 or -127."""
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        for sign in (1, -1):
            setup = extremes(format, isa, byte, sign)
            got = setup.run()
            np.testing.assert_allclose(got, setup.expected, rtol=1e-5, err_msg=f"{byte:#x} {sign}")


def extremes(format: BlockFormat, isa: Isa, byte: int, sign: int) -> Setup:
    columns, n_rows = 512, 20
    blocks = np.empty((n_rows, columns // format.block_size), format.dtype)
    blocks.view(np.uint8)[:] = byte
    for name in format.dtype.names:
        if format.dtype[name].base == np.dtype("<f2"):
            blocks[name] = 0.5
    if "e" in format.dtype.names:
        blocks["e"] = 127
    if format.name == "iq1_m":
        set_iq1_m_scales(blocks, 0.5)
    raw = blocks.view(np.uint8)
    n = 5 if isa.matrix_unit is None else 2 * isa.matrix_unit.tokens + 5
    x = np.full((n, columns), sign * 127, np.float32)
    held = kernel_oracles.quantize_q8(x)
    w = packed(format, raw, columns, isa)
    out = rows(np.zeros((len(x), n_rows), np.float32))
    arguments = {"count": 0, "x": address(held), "x_stride": held.strides[0], "w": w.address,
                 "group_bytes": w.group_bytes, "n_blocks": w.n_blocks, "n_groups": w.n_groups,
                 "out": address(out), "out_stride": out.strides[0], "residual": 0}  # fmt: skip
    dense = np.asarray(format.dequantize(raw)).reshape(n_rows, columns)
    expected = kernel_oracles.matmul(x, dense, None)
    return Setup(matmul(format, isa), arguments, Batch(len(x)), out, lambda a: a[:, :n_rows], expected, keep=[held, w])


@every_of_integers
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_through(bad: float, isa: Isa) -> None:
    """A token with a NaN or an infinity has no finite results; its neighbours do not notice."""
    from gumba.backends.cpu.kernels import activations_q8

    x = np.ones((3, 160), np.float32)
    clean = kernel_setups.setup_quantize_q8(isa, x.copy())
    x[1, 77] = bad
    dirty = kernel_setups.setup_quantize_q8(isa, x)
    assert dirty.kernel is activations_q8.quantize_q8
    product = kernel_setups.setup_matmul(isa, q4_1, n=3)
    results = []
    for quantized in (clean, dirty):
        quantized.run()
        product.arguments["x"] = address(quantized.out)
        results.append(product.run())
    np.testing.assert_array_equal(results[1][[0, 2]], results[0][[0, 2]])
    assert np.isfinite(results[0]).all() and not np.isfinite(results[1][1]).any()


def two_blocks(format: DotFormat) -> DotFormat:
    """Blocks of two of ``format``'s blocks, packed as one: its ``unpack`` yields twice."""
    size, n_bytes = format.type_size, format.packed_block_bytes
    first, second = format.pack_fields, [field._replace(offset=size + field.offset) for field in format.pack_fields]

    def unpack(s: Simd, isa: Isa, address: Value) -> Iterator[BlockRegisters]:
        yield from format.unpack(s, isa, address)
        yield from format.unpack(s, isa, address + n_bytes * isa.lanes)

    return replace(
        format, name=f"two_{format.name}", block_size=2 * format.block_size, type_size=2 * size,
        dtype=np.dtype((np.void, 2 * size)), pack_fields=(*first, *second), packed_block_size=64, unpack=unpack,
    )  # fmt: skip


@pytest.mark.parametrize("format, isa", of_formats([q4_0, q4_1], ISAS_BUT_BF16), ids=isa_id)
def test_a_block_of_several_parts(format: DotFormat, isa: Isa) -> None:
    """Packed as blocks of 64, the same bytes give the same bits: products and embedding rows."""
    parts = two_blocks(format)
    for make, kernel, seed in (
        (kernel_setups.setup_matmul, matmul(parts, isa), 2),
        (kernel_setups.setup_embed, embed(parts, isa), 7),
    ):
        setup = make(isa, format, columns=192)
        expected = setup.check()
        w = packed(parts, random_rows(format, 37, 192, rng_of(seed)), 192, isa)
        setup.kernel = kernel
        setup.arguments |= {"w": w.address, "group_bytes": w.group_bytes, "n_blocks": w.n_blocks}
        np.testing.assert_array_equal(same_bits(setup.run()), same_bits(expected))


@pytest.mark.parametrize("format", KINDS_OF_FORMATS, ids=isa_id)
def test_heads_with_matrices_of_their_own(format: BlockFormat) -> None:
    for n, n_heads, n_rows in ((1, 1, 1), (3, 16, 64), (2 * TOKEN_BLOCK + 7, 2, 5)):
        kernel_setups.setup_head_matmul(ISAS[0], format, n, n_heads, n_rows).check()
