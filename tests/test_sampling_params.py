"""Every field of the parameter classes at its bounds and beyond, and with wrong types."""

from __future__ import annotations

import dataclasses
import fractions
import json
import math

import numpy as np
import pytest

from gumba import BeamSearchParams, RequestError, SamplingParams, StructuredOutputsParams
from gumba.sampling_params import SAMPLERS
from support import sampling_oracle

HUGE = 10**400
COUNT = 2**31 - 1
REGEX = StructuredOutputsParams(regex="a+")


def processor(ids, logits):
    return logits


def counts(low, high=COUNT):
    return [low, high, np.int64(low)], [low - 1, high + 1, None, *NOT_A_COUNT]


def ranges(low, high):
    return [low, float(high), np.float32((low + high) / 2)], [low - 0.001, high + 0.001, *NOT_A_NUMBER]


BOOLEANS = ([True, False], [0, 1, None, "yes"])
STRINGS = (["x", [], ["a", "bc"], ("é",)], ["", [""], [1], 5, b"x", ["a", None], {"a": 1}])
NOT_A_COUNT = [True, 1.0, "1", [1], math.nan, b"1", HUGE]
NOT_A_NUMBER = [True, "1", [1], None, math.nan, math.inf, -math.inf, HUGE, fractions.Fraction(HUGE), 1j]
NOT_IDS = ["12", [-1], [1.5], [True], [None], 5, ["1"], [2**63], b"12"]
#: Field: values that are accepted, values that are rejected.
FIELDS = {
    "max_tokens": ([None, 1, COUNT, np.int64(5)], [0, -1, COUNT + 1, *NOT_A_COUNT]),
    "min_tokens": counts(0),
    "n": counts(1, 1024),
    "best_of": ([None, 1, 1024], [0, 1025, *NOT_A_COUNT]),
    "temperature": ([0, 0.0, 1, 100, 5e-324, fractions.Fraction(1, 2)], ranges(0, 100)[1]),
    "dynatemp_range": ranges(0, 100),
    "dynatemp_exponent": ranges(0, 100),
    "top_k": counts(-1),
    **{field: ranges(low, high) for o in sampling_oracle.FILTERS.values() for field, (low, high) in o.ranges.items()},
    "mirostat": counts(0, 2),
    "mirostat_tau": ranges(0, 100),
    "mirostat_eta": ranges(0, 10),
    "min_keep": counts(0),
    "repetition_penalty": ([0.01, 1, 100], [0, 0.0099, 100.001, *NOT_A_NUMBER]),
    "frequency_penalty": ranges(-100, 100),
    "presence_penalty": ranges(-100, 100),
    "repetition_window": counts(-1),
    "dry_multiplier": ranges(0, 100),
    "dry_base": ranges(1, 100),
    "dry_allowed_length": counts(0),
    "dry_range": counts(-1),
    "dry_sequence_breakers": STRINGS,
    "no_repeat_ngram_size": counts(0),
    "logit_bias": (
        [{}, {5: 1.5, 2: -1}, {0: -math.inf}, {np.int64(1): np.float32(2)}, [(1, 1e6), (0, -1e6)],
         {"5": 3, "0": -1.5, 2: 1}],
        [5, "ab", {-1: 1}, {1.5: 1}, {True: 1}, {1: math.inf}, {1: math.nan}, {1: 1.1e6}, {1: None}, [1], [(1,)],
         [(1, 1), (1, 2)], {"1": 1, 1: 2}, {"-1": 1}, {"x": 1}, {"\u00b2": 1}, {"9" * 30: 1}, {1: np.ones(2)}],
    ),
    "bad_words": STRINGS,
    "allowed_token_ids": ([None, [0, 5], np.array([1, 2])], [[], *NOT_IDS]),
    "logits_processors": ([[], [processor], (processor, print)], [processor, "ab", [None], ["x"], {1: 2}]),
    "samplers": (
        [None, [], ["min_p"], ["temperature", "top_k"], list(SAMPLERS)],
        ["top_k", ["nothing"], ["top_k", "top_k"], [None], 5, {"top_k": 1}, [1], ["typ_p", "typical_p"], [np.ones(2)]],
    ),
    "seed": ([None, 0, 2**64 - 1], [-1, 2**64, *NOT_A_COUNT]),
    "stop": STRINGS,
    "include_stop_str_in_output": BOOLEANS,
    "stop_token_ids": ([[], [0, 5], np.array([1, 2])], NOT_IDS),
    "ignore_eos": BOOLEANS,
    "skip_special_tokens": BOOLEANS,
    "logprobs": ([None, 0, 1000], [-1, 1001, *NOT_A_COUNT]),
    "prompt_logprobs": ([None, 0, 1000], [-1, 1001, *NOT_A_COUNT]),
    "priority": counts(-COUNT - 1),
    "structured_outputs": ([None, REGEX, {"regex": "a+"}], ["a+", True, {"yaml": "a"}, [REGEX], {1: 2}]),
    "prompt_lookup_tokens": counts(0, 1024),
    "cache_prompt": BOOLEANS,
    "token_healing": BOOLEANS,
    "context_shift": BOOLEANS,
    "n_keep": counts(-1),
}  # fmt: skip
BEAM_FIELDS = {
    "beam_width": counts(1, 1024),
    "n": ([1, 8], [0, 9, *NOT_A_COUNT]),
    "length_penalty": ranges(-100, 100),
    "early_stopping": ([True, False, "never"], [None, 1, "always", np.ones(2)]),
    "num_groups": ([1, 2, 8], [0, 3, 16, *NOT_A_COUNT]),
    "diversity_penalty": ranges(0, 100),
}
SHARED = {field.name for field in dataclasses.fields(BeamSearchParams)} - set(BEAM_FIELDS)


def test_the_tables_have_every_field():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(FIELDS) >= SHARED


def expected(field, value):
    """The field's value after passing ``value``."""
    if field in ("stop", "bad_words", "dry_sequence_breakers"):
        return (value,) if isinstance(value, str) else tuple(value)
    if field == "logit_bias":
        return tuple(sorted((int(token), float(bias)) for token, bias in dict(value).items()))
    if field == "top_k":
        return max(value, 0)  # vLLM's -1 is off too
    if field == "structured_outputs" and isinstance(value, dict):
        return StructuredOutputsParams(**value)
    if value is None or field not in ("stop_token_ids", "allowed_token_ids", "samplers", "logits_processors"):
        return value
    return tuple(value)


@pytest.mark.parametrize("field, value", [(field, value) for field, (good, _) in FIELDS.items() for value in good])
def test_accepted(field, value):
    rest = {"best_of": {"n": 1}}.get(field, {})
    params = SamplingParams(**{field: value}, **rest)
    found = getattr(params, field)
    assert found == expected(field, value)
    assert type(found) in (int, float, bool, tuple, type(None), StructuredOutputsParams)
    if field in ("stop_token_ids", "allowed_token_ids"):
        assert all(type(each) is int for each in found or ())
    assert dataclasses.replace(params) == params and isinstance(hash(params), int)


@pytest.mark.parametrize("field, value", [(field, value) for field, (_, bad) in FIELDS.items() for value in bad])
def test_rejected_by_name(field, value):
    with pytest.raises(RequestError, match=rf"^{field}: expected .*, found ") as caught:
        SamplingParams(**{field: value})
    assert len(str(caught.value)) < 250


def test_fields_that_limit_each_other():
    assert SamplingParams(n=3, best_of=3).best_of == 3
    with pytest.raises(RequestError, match="best_of: expected at least n 3, found 2"):
        SamplingParams(n=3, best_of=2)
    assert SamplingParams(min_tokens=5, max_tokens=5).min_tokens == 5
    with pytest.raises(RequestError, match="min_tokens: expected at most max_tokens 5, found 6"):
        SamplingParams(min_tokens=6, max_tokens=5)


def test_names_of_llama_cpp_for_samplers():
    order = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temp"]
    found = SamplingParams(samplers=order).samplers
    assert found == ("penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")


def test_defaults_are_those_of_llama_cpp():
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.95, 0.05)
    assert (params.repetition_penalty, params.repetition_window, params.max_tokens) == (1.0, 64, None)
    assert (params.frequency_penalty, params.presence_penalty, params.typical_p, params.top_n_sigma) == (0, 0, 1, -1)
    assert (params.dynatemp_range, params.dynatemp_exponent, params.min_keep) == (0, 1, 0)
    assert (params.xtc_probability, params.xtc_threshold) == (0, 0.1)
    assert (params.dry_multiplier, params.dry_base, params.dry_allowed_length, params.dry_range) == (0, 1.75, 2, -1)
    assert params.dry_sequence_breakers == ("\n", ":", '"', "*")
    assert (params.mirostat, params.mirostat_tau, params.mirostat_eta) == (0, 5, 0.1)


def test_frozen_and_hashable():
    params = SamplingParams(stop=["a"], stop_token_ids=[1], logit_bias={3: 1, 2: 0.5}, logits_processors=[processor])
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_k = 1
    same = SamplingParams(stop="a", stop_token_ids=(1,), logit_bias={2: 0.5, 3: 1.0}, logits_processors=(processor,))
    assert params == same and hash(params) == hash(same)
    assert hash(BeamSearchParams(beam_width=2)) == hash(BeamSearchParams(beam_width=2))
    assert hash(StructuredOutputsParams(json={"type": "object"})) == hash(
        StructuredOutputsParams(json='{"type": "object"}')
    )


@pytest.mark.parametrize("field, value", [(field, value) for field, (good, _) in BEAM_FIELDS.items() for value in good])
def test_beams_accepted(field, value):
    params = BeamSearchParams(**{"beam_width": 8, field: value})
    assert getattr(params, field) == value
    assert dataclasses.replace(params) == params


@pytest.mark.parametrize("field, value", [(field, value) for field, (_, bad) in BEAM_FIELDS.items() for value in bad])
def test_beams_rejected_by_name(field, value):
    with pytest.raises(RequestError, match=rf"^{field}: expected .*, found "):
        BeamSearchParams(**{"beam_width": 8, field: value})


@pytest.mark.parametrize("field", sorted(SHARED))
def test_beams_check_what_they_share_with_sampling(field):
    good, bad = FIELDS[field]
    for value in good:
        assert getattr(BeamSearchParams(beam_width=1, **{field: value}), field) == expected(field, value)
    for value in bad:
        with pytest.raises(RequestError, match=rf"^{field}: expected .*, found "):
            BeamSearchParams(beam_width=1, **{field: value})


SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": ["é", None]}}}


@pytest.mark.parametrize(
    "field, value, found",
    [
        ("json", SCHEMA, json.dumps(SCHEMA, ensure_ascii=False)),
        ("json", '{"type": "number"}', '{"type": "number"}'),
        ("json", True, "true"),
        ("regex", "[a-z]+", "[a-z]+"),
        ("choice", ["yes", "no"], ("yes", "no")),
        ("choice", "yes", ("yes",)),
        ("grammar", 'root ::= "a"', 'root ::= "a"'),
        ("json_object", True, True),
    ],
)
def test_structured_outputs_accepted(field, value, found):
    params = StructuredOutputsParams(**{field: value})
    assert getattr(params, field) == found
    assert dataclasses.replace(params) == params
    assert SamplingParams(structured_outputs=params).structured_outputs is params


@pytest.mark.parametrize(
    "field, value",
    [
        ("json", False),
        ("json", "{"),
        ("json", "5"),
        ("json", 5),
        ("json", {"a": math.nan}),
        ("json", {"a": object()}),
        ("json", [1]),
        ("regex", ""),
        ("regex", 5),
        ("regex", b"a"),
        ("choice", []),
        ("choice", [""]),
        ("choice", [1]),
        ("choice", {"a": 1}),
        ("grammar", ""),
        ("grammar", ["a"]),
        ("json_object", 1),
    ],
)
def test_structured_outputs_rejected_by_name(field, value):
    with pytest.raises(RequestError, match=rf"^{field}: expected .*, found "):
        StructuredOutputsParams(**{field: value})


@pytest.mark.parametrize(
    "given, found",
    [
        ({}, "none"),
        ({"json_object": False}, "none"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice"),
        ({"json": True, "json_object": True}, "json and json_object"),
    ],
)
def test_exactly_one_structure(given, found):
    with pytest.raises(RequestError, match=f"structured_outputs: expected exactly one of json, .*, found {found}$"):
        StructuredOutputsParams(**given)


def test_structured_outputs_as_a_dict_are_checked():
    for given, says in (
        ({}, "exactly one of"),
        ({"json": 5}, "json: expected"),
        ({"regex": "a", "choice": "b"}, "regex and"),
    ):
        with pytest.raises(RequestError, match=says):
            SamplingParams(structured_outputs=given)


def test_vllms_detokenize_must_be_true():
    assert SamplingParams(detokenize=True) == SamplingParams()
    assert dataclasses.replace(SamplingParams(detokenize=True), n=2).n == 2
    for wrong in (False, None, 1):
        with pytest.raises(RequestError, match=r"^detokenize: expected True, found .*outputs always have a text"):
            SamplingParams(detokenize=wrong)


@pytest.mark.parametrize("name", ["stop", "stop_token_ids", "bad_words", "logit_bias", "logits_processors"])
def test_none_is_an_empty_list(name):
    """vLLM's default."""
    assert SamplingParams(**{name: None}) == SamplingParams()


@pytest.mark.parametrize(
    "name", ["stop", "stop_token_ids", "bad_words", "logit_bias", "logits_processors", "samplers", "allowed_token_ids"]
)
def test_arrays_without_dimensions_are_not_lists(name):
    with pytest.raises(RequestError, match=f"^{name}: expected"):
        SamplingParams(**{name: np.array(0.5)})
