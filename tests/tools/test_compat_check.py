"""What the comparison with llama-cpp-python takes for the same."""

from __future__ import annotations

import compat_check as check


def test_values():
    assert check.equal({"a": [1, -0.5, None]}, {"a": [1, -0.6, None]})
    for ours, theirs in (({"a": 1}, {"a": 1, "b": 2}), ([1], [1, 2]), (-0.5, -1.5), (1, 2), ("a", "b"), (None, 0.0)):
        assert not check.equal(ours, theirs)


def test_errors():
    both = {"error": check.kinds(UnicodeError()), "text": ""}
    value = {"error": ["ValueError"], "text": ""}
    assert both["error"] == ["UnicodeError", "ValueError"]
    assert check.agree(both, value) and not check.agree(value, both)
    assert not check.agree(value, {"value": 1}) and not check.agree(None, value)


def test_every_expected_difference_is_a_case():
    assert set(check.EXPECTED) <= set(check.CASES) and len(check.CASES) > 70
