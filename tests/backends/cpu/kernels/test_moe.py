"""Choosing experts, sorting what is sent to them, and their products, beyond the common case."""

from __future__ import annotations

import numpy as np
import pytest

from gumba.backends.cpu.kernels.moe import WEIGHTS
from gumba.quants import BlockFormat
from gumba.simd.isa import Isa
from support import kernel_setups
from support.kernel_harness import ISAS, KINDS_OF_FORMATS, isa_id, same_bits

ISA = ISAS[0]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("weights", sorted(WEIGHTS))
def test_weights_of_every_kind(weights: str, normalized: bool, biased: bool) -> None:
    for n_experts, n_used in ((13, 4), (8, 8), (1, 1), (128, 8)):
        kernel_setups.setup_choose_experts(ISA, weights, normalized, biased, n_experts, n_used).check()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("weights", sorted(WEIGHTS))
def test_only_the_best_groups_take_part(weights: str, biased: bool) -> None:
    for n_experts, n_used, groups in ((12, 4, (3, 2)), (12, 2, (6, 1)), (8, 3, (8, 5)), (256, 8, (8, 4))):
        kernel_setups.setup_choose_experts(ISA, weights, True, biased, n_experts, n_used, 20, groups).check()


def test_weights_of_experts_with_factors_of_their_own() -> None:
    kernel_setups.setup_choose_experts(ISA, "softmax", True, scaled=True).check()


def test_of_equal_experts_the_first_are_chosen() -> None:
    setup = kernel_setups.setup_choose_experts(ISA, n_experts=6, n_used=3, n=1)
    logits = setup.keep[0]
    assert isinstance(logits, np.ndarray)
    logits[0, :6] = [1, 2, 1, 2, 1, 2]
    assert setup.run()[0, :3].tolist() == [1, 3, 5]
    logits[0, :6] = 0
    assert setup.run()[0].tolist() == pytest.approx([0, 1, 2, *[2.5 / 6] * 3])


@pytest.mark.parametrize("weights", sorted(WEIGHTS))
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_choose_an_expert_that_exists(number: float, weights: str) -> None:
    setup = kernel_setups.setup_choose_experts(ISA, weights, n_experts=6, n_used=4, n=3)
    logits = setup.keep[0]
    assert isinstance(logits, np.ndarray)
    logits[0, :6], logits[1, 2], logits[2, 0] = number, number, number
    with np.errstate(invalid="ignore"):
        chosen = setup.run()[:, :4]
    for row in chosen:
        assert len(set(row)) == 4 and set(row) <= set(range(6))


@pytest.mark.parametrize("n, n_experts, n_used", [(1, 1, 1), (1, 64, 8), (200, 4, 2), (5, 128, 8), (33, 3, 3)])
def test_entries_of_any_number(n: int, n_experts: int, n_used: int) -> None:
    for make in (
        kernel_setups.setup_sort_entries,
        kernel_setups.setup_gather_rows,
        kernel_setups.setup_merge_experts,
        kernel_setups.setup_add_expert_rows,
        kernel_setups.setup_scale_expert_rows,
        kernel_setups.setup_weigh_entries,
    ):
        make(ISA, n, n_experts, n_used).check()
    kernel_setups.setup_merge_experts(ISA, n, n_experts, n_used, weighted=False).check()


@pytest.mark.parametrize("format", KINDS_OF_FORMATS, ids=isa_id)
def test_products_of_every_format(format: BlockFormat) -> None:
    kernel_setups.setup_expert_matmul(ISA, format).check()


@pytest.mark.parametrize("isa", ISAS, ids=isa_id)
@pytest.mark.parametrize("n, n_experts, n_used", [(1, 9, 2), (300, 3, 1)])
def test_products_of_few_and_many_tokens(isa: Isa, n: int, n_experts: int, n_used: int) -> None:
    kernel_setups.setup_expert_matmul(isa, n=n, n_experts=n_experts, n_used=n_used).check()


@pytest.mark.parametrize("width", [1, 32, 64, 65])
def test_sums_of_any_width(width: int) -> None:
    kernel_setups.setup_merge_experts(ISA, width=width).check()


def test_a_token_alone_has_the_same_bits() -> None:
    setup = kernel_setups.setup_merge_experts(ISA)
    whole = setup.run()
    setup.batch.words[0] = 1
    np.testing.assert_array_equal(same_bits(setup.run()[0]), same_bits(whole[0]))
