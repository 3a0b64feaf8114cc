"""Every field of SamplingParams at its bounds and beyond, and with wrong types."""

from __future__ import annotations

import dataclasses
import fractions
import math

import numpy as np
import pytest

from gumba import RequestError, SamplingParams

HUGE = 10**400
COUNT = 2**31 - 1
GOOD = {
    "max_tokens": [None, 1, COUNT, np.int64(5)],
    "temperature": [0, 0.0, 1, 100, np.float32(0.5), 5e-324, fractions.Fraction(1, 2)],
    "top_k": [0, 1, COUNT],
    "top_p": [0, 1, 0.5],
    "min_p": [0, 1, 0.5],
    "repetition_penalty": [0.01, 1, 100],
    "repetition_window": [-1, 0, COUNT],
    "seed": [None, 0, 2**64 - 1],
    "stop": ["x", [], ["a", "bc"], ("é",)],
    "stop_token_ids": [[], [0, 5], np.array([1, 2])],
    "ignore_eos": [True, False],
}
NOT_A_COUNT = [True, 1.0, "1", [1], math.nan, b"1", HUGE]
NOT_A_NUMBER = [True, "1", [1], None, math.nan, math.inf, -math.inf, HUGE, fractions.Fraction(HUGE), 1j]
BAD = {
    "max_tokens": [0, -1, COUNT + 1, *NOT_A_COUNT],
    "temperature": [-0.001, 100.001, *NOT_A_NUMBER],
    "top_k": [-1, COUNT + 1, None, *NOT_A_COUNT],
    "top_p": [-0.001, 1.001, *NOT_A_NUMBER],
    "min_p": [-0.001, 1.001, *NOT_A_NUMBER],
    "repetition_penalty": [0, 0.0099, 100.001, *NOT_A_NUMBER],
    "repetition_window": [-2, COUNT + 1, None, *NOT_A_COUNT],
    "seed": [-1, 2**64, *NOT_A_COUNT],
    "stop": ["", [""], [1], None, 5, b"x", ["a", None], {"a": 1}],
    "stop_token_ids": ["12", [-1], [1.5], [True], [None], None, 5, ["1"], [2**63], b"12"],
    "ignore_eos": [0, 1, None, "yes"],
}


def test_the_tables_name_every_field():
    assert set(GOOD) == set(BAD) == {field.name for field in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in GOOD.items() for value in values])
def test_accepted(field, value):
    found = getattr(SamplingParams(**{field: value}), field)
    if field == "stop":
        assert found == ((value,) if isinstance(value, str) else tuple(value))
    elif field == "stop_token_ids":
        assert found == tuple(value) and all(type(each) is int for each in found)
    else:
        assert found == value
        assert type(found) in (int, float, bool, type(None))


@pytest.mark.parametrize("field, value", [(field, value) for field, values in BAD.items() for value in values])
def test_rejected_by_name(field, value):
    with pytest.raises(RequestError, match=rf"^{field}: expected .*, found ") as caught:
        SamplingParams(**{field: value})
    assert len(str(caught.value)) < 200


def test_defaults_are_those_of_llama_cpp():
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.95, 0.05)
    assert (params.repetition_penalty, params.repetition_window, params.max_tokens) == (1.0, 64, None)


def test_frozen_and_hashable():
    params = SamplingParams(stop=["a"], stop_token_ids=[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 1
    assert hash(params) == hash(SamplingParams(stop="a", stop_token_ids=(1,)))
