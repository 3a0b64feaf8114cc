"""Norm, activation function, addition, row copies, embedding, rotation: shapes and values beyond the common case."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from gumba.backends.cpu.kernels import activations
from gumba.backends.cpu.kernels.rope import cos_sin_table
from gumba.simd import maths
from gumba.simd.isa import Isa
from support import kernel_oracles, kernel_setups
from support.kernel_harness import GENERIC, ISAS, ISAS_BUT_BF16, isa_id, isas_with, of_formats, read_of_isa, same_bits
from support.kernel_setups_rows import ACTIVATION_ERROR

ISA = ISAS[0]
#: Those with activation functions of their own.
FLOAT_ISAS = isas_with(read_of_isa(activations, maths))


@pytest.mark.parametrize("width", [1, 7, 16, 31, 33, 64, 65, 575])
def test_rms_norm_of_any_width(width: int) -> None:
    kernel_setups.setup_rms_norm(ISA, width=width).check()


@pytest.mark.parametrize("n", [1, 2, 63])
def test_rms_norm_of_any_number_of_rows(n: int) -> None:
    whole = kernel_setups.setup_rms_norm(ISA, n=n, width=96)
    got = whole.check()
    for row in (0, n - 1):
        alone = kernel_setups.setup_rms_norm(ISA, n=n, width=96)
        alone.arguments["x"] += row * whole.arguments["stride"]
        alone.batch.words[0] = 1
        np.testing.assert_array_equal(same_bits(alone.run()[0]), same_bits(got[row]))


def test_rms_norm_uses_eps() -> None:
    for eps in (1e-6, 0.1, 100.0):
        kernel_setups.setup_rms_norm(ISA, eps=eps).check()
    tiny = kernel_setups.setup_rms_norm(ISA, eps=1e-5, scale=1e-30)
    np.testing.assert_allclose(tiny.run(), tiny.expected, rtol=1e-6)
    assert (kernel_setups.setup_rms_norm(ISA, scale=0.0).run() == 0).all()


@pytest.mark.parametrize("width", [1, 7, 16, 31, 33, 64, 65, 575])
def test_layer_norm_of_any_width(width: int) -> None:
    kernel_setups.setup_layer_norm(ISA, width=width).check()


def test_layer_norm_of_numbers_far_from_zero() -> None:
    """The mean is subtracted before anything is squared."""
    kernel_setups.setup_layer_norm(ISA, width=575, around=1000.0).check()
    kernel_setups.setup_layer_norm(ISA, eps=10.0).check()


@pytest.mark.parametrize("of_each", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("head_dim, n_heads", [(1, 64), (7, 3), (16, 4), (31, 2), (64, 1), (80, 5), (128, 2)])
def test_head_norm_of_any_size(head_dim: int, n_heads: int, centred: bool, of_each: bool) -> None:
    """Nothing behind a row is touched: 64 of 1, 4 of 16, and 128s are rows without padding."""
    setup = kernel_setups.setup_head_norm(ISA, head_dim, n_heads, centred, of_each)
    setup.check()
    setup.batch.words[0] = 4
    setup.run()
    assert np.isnan(setup.out[4]).all() and np.isnan(setup.out[:4, n_heads * head_dim :]).all()


def test_columns_are_copied_from_anywhere() -> None:
    for first, width in ((0, 1), (0, 64), (1, 64), (63, 65), (100, 28), (5, 31)):
        kernel_setups.setup_copy_columns(ISA, first, width).check()


@pytest.mark.parametrize("kind", sorted(ACTIVATION_ERROR))
@pytest.mark.parametrize("isa", FLOAT_ISAS, ids=isa_id)
def test_activations(isa: Isa, kind: str) -> None:
    """On a fine grid; where results vanish; and numbers that are none."""
    grid = np.linspace(-9, 9, 60001)
    near = np.concatenate([sign * 10.0 ** np.arange(-30, 1) for sign in (-1, 1)])
    kernel_setups.setup_activation(isa, kind, np.concatenate([grid, near])[None, :].astype(np.float32)).check()
    kernel_setups.setup_gated(isa, kind).check()
    far = np.array([[20.0, 80, 1e4, 1e18, 0.0, -20, -80, -1e4, -1e18]], np.float32)
    got = kernel_setups.setup_activation(isa, kind, far).run()
    np.testing.assert_allclose(got, kernel_oracles.activate(kind, far), rtol=1e-6, atol=1e-15)
    assert np.isnan(
        kernel_setups.setup_activation(isa, kind, np.array([[np.nan, 1.0]], np.float32)).run()
    ).tolist() == [[True, False]]


@pytest.mark.parametrize("isa", FLOAT_ISAS, ids=isa_id)
def test_softcap_near_and_far(isa: Isa) -> None:
    for cap, spread in ((30.0, 1e-6), (30.0, 1.0), (50.0, 1e3), (0.5, 1.0)):
        kernel_setups.setup_softcap(isa, cap, spread).check()


@pytest.mark.parametrize("isa", FLOAT_ISAS, ids=isa_id)
def test_swiglu_oai_limits(isa: Isa) -> None:
    for alpha, limit in ((1.702, 7.0), (1.0, 0.25)):
        kernel_setups.setup_swiglu_oai(isa, alpha, limit).check()


@pytest.mark.parametrize("isa", FLOAT_ISAS, ids=isa_id)
def test_swiglu_far_from_zero(isa: Isa) -> None:
    gate = np.array([[0.0, -0.0, 80.0, 1e30, 1e-30, -1e-30, -10.0, -80.0, 3.4e38]], np.float32)
    setup = kernel_setups.setup_gated(isa, gate=gate)
    setup.tolerance = 1e-6 * np.abs(setup.expected) + 1e-30
    setup.check()
    below = kernel_setups.setup_gated(isa, gate=np.array([[-88.0, -100.0, -1e4, -3e38]], np.float32))
    with np.errstate(over="ignore"):
        assert np.abs(below.run()).max() <= 12, "e^88 stands for all that is beyond"
        assert np.abs(below.run()[0, :3]).max() < 1e-30
    assert np.isnan(kernel_setups.setup_gated(isa, gate=np.array([[np.nan, 1.0]], np.float32)).run()).tolist() == [
        [True, False]
    ]


@pytest.mark.parametrize("chosen", [(), (0,), (8,), tuple(range(9)), (4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4)])
def test_select_rows_of_any_choice(chosen: tuple[int, ...]) -> None:
    setup = kernel_setups.setup_select_rows(ISA, chosen) if chosen else kernel_setups.setup_select_rows(ISA, (1,))
    if not chosen:
        setup.batch.words[6] = 0
        assert (setup.run() == 0).all()
        return
    setup.check()


@pytest.mark.parametrize("width", [1, 32, 33, 200])
def test_copies_and_sums_of_any_width(width: int) -> None:
    for kind in ("add", "multiply"):
        for row in (True, False):
            kernel_setups.setup_combine(ISA, kind, width=width, n=3, row=row).check()
    kernel_setups.setup_scale(ISA, width=width, n=3).check()
    kernel_setups.setup_scale_rows(ISA, width=width, n=3).check()
    kernel_setups.setup_add_table(ISA, width=width).check()
    kernel_setups.setup_add_table(ISA, width=width, of_types=True).check()
    kernel_setups.setup_select_rows(ISA, width=width).check()
    kernel_setups.setup_text_means(ISA, width=width).check()


@pytest.mark.parametrize("format, isa", of_formats(kernel_setups.ALL_FORMATS, ISAS_BUT_BF16), ids=isa_id)
def test_embedding_rows_are_the_decoded_weights(format: ModuleType, isa: Isa) -> None:
    """Exactly: a product and a sum of the decoder round as here."""
    kernel_setups.setup_embed(isa, format).check()


@pytest.mark.parametrize("n_rows", [6, 16, 65])
def test_embedding_of_few_and_many_rows(n_rows: int) -> None:
    kernel_setups.setup_embed(ISA, n_rows=n_rows).check()


# Rotary positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize(
    "rope_dim, head_dim", [(2, 2), (6, 8), (8, 8), (10, 24), (16, 16), (18, 64), (30, 30), (64, 64), (128, 130)]
)
def test_rope_of_any_width(rope_dim: int, head_dim: int, neox: bool) -> None:
    """Half of 6, 10, 18 and 30 is odd; elements behind ``rope_dim`` keep their bits."""
    setup = kernel_setups.setup_rope(ISA, rope_dim, head_dim, neox=neox)
    before = setup.view(setup.out).copy().reshape(6, 3, head_dim)[:, :, rope_dim:]
    got = setup.check().reshape(6, 3, head_dim)
    np.testing.assert_array_equal(same_bits(got[:, :, rope_dim:]), same_bits(before))
    np.testing.assert_array_equal(got[0], setup.expected[0].reshape(3, head_dim).astype(np.float32))  # position 0


def test_rope_does_not_touch_the_padding() -> None:
    for neox in (False, True):
        setup = kernel_setups.setup_rope(ISA, 18, 18, neox=neox)
        setup.run()
        assert np.isnan(setup.out[:, 54:]).all()


def test_rope_is_the_same_for_a_token_alone() -> None:
    setup = kernel_setups.setup_rope(ISA, 20, 24)
    whole = setup.run()
    setup.batch.words[0] = 1
    np.testing.assert_array_equal(same_bits(setup.run()[0]), same_bits(whole[0]))
    shifted = kernel_setups.setup_rope(ISA, 20, 24)
    shifted.arguments["x"] += 2 * shifted.arguments["stride"]
    shifted.batch.words[0], shifted.batch.words[2] = 1, shifted.batch.words[2] + 8  # the third token, with its position
    np.testing.assert_array_equal(same_bits(shifted.run()[2]), same_bits(whole[2]))


@pytest.mark.parametrize("neox", [False, True])
def test_rope_table_layout(neox: bool) -> None:
    frequencies = np.array([1.0, 0.25, 0.001])
    table = cos_sin_table(frequencies, 40, 1.5, neox)
    assert table.shape == (40, 2, 6) and table.dtype == np.float32
    for position in (0, 1, 39):
        for i, frequency in enumerate(frequencies):
            a, b = (i, 3 + i) if neox else (2 * i, 2 * i + 1)
            cos, sin = 1.5 * np.cos(position * frequency), 1.5 * np.sin(position * frequency)
            np.testing.assert_allclose(table[position, 0, [a, b]], [cos, cos], rtol=1e-6)
            np.testing.assert_allclose(table[position, 1, [a, b]], [-sin, sin], rtol=1e-6)


def test_rope_scale_multiplies_queries() -> None:
    frequencies = np.array([0.5, 0.125])
    assert np.array_equal(cos_sin_table(frequencies, 9, 2.0, True), 2 * cos_sin_table(frequencies, 9, 1.0, True))


def test_generic_and_best_round_alike_where_no_set_differs() -> None:
    """Norm, rotation, addition and copies are one code for all sets."""
    for make in (
        kernel_setups.setup_rms_norm,
        kernel_setups.setup_layer_norm,
        kernel_setups.setup_head_norm,
        kernel_setups.setup_rope,
        kernel_setups.setup_combine,
    ):
        assert make(ISA).kernel is make(GENERIC).kernel


@pytest.mark.parametrize("n_heads, width, step", [(1, 1, 0), (4, 32, 32), (16, 128, 192), (3, 65, 0), (128, 7, 9)])
def test_parts_of_heads_of_any_size(n_heads: int, width: int, step: int) -> None:
    kernel_setups.setup_copy_heads(ISA, n_heads, width, step).check()


@pytest.mark.parametrize("width, n_taps", [(1, 1), (32, 4), (33, 2), (160, 3), (5, 16)])
def test_convolutions_of_any_size(width: int, n_taps: int) -> None:
    for silu in (False, True):
        kernel_setups.setup_causal_conv(ISA, width, n_taps, silu).check()
