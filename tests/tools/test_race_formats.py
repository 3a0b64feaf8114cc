"""tools/race_formats.py without racing: what is kept between calls, medians and tables."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import race_formats


def test_figures_add_up_over_calls_and_make_tables(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    for prefill in (100.0, 300.0, 200.0):
        results = race_formats.Results(kept)
        results.note("big-q4_k", "gumba", prefill=prefill, decode=50.0)
        results.note("big-q4_k", "gumba, q4_0", prefill=250.0, decode=40.0)
        results.note("big-q4_k", "llama.cpp", prefill=80.0, decode=None)
    results.note("big-q4_k", "gumba", share=91.4)
    results.note("big-q4_k, avx2", "gumba", prefill=10.0, decode=5.0)
    again = race_formats.Results(kept)
    assert again.files == results.files
    again.begin({"machine": "a machine", "threads": 2}, {"gumba": "gumba 1"})
    again.refuse("big-q4_k", "ik_llama.cpp", "unknown type")
    lines = race_formats.report(again).splitlines()
    assert lines[:2] == ["- a machine, threads: 2", "- gumba 1"]
    assert lines[-1] == "- ik_llama.cpp has no figure of big-q4_k: unknown type"
    rows = [line for line in lines if line.startswith("| big")]
    assert rows == [
        "| big-q4_k | 200 | 0.80 | 80.0 | 2.50 |",
        "| big-q4_k | 50.0 | 1.25 | 91 | - | - |",
        "| big-q4_k, avx2 | 10.0 | - |",
        "| big-q4_k, avx2 | 5.0 | - | - |",
    ]


def test_figures_of_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    results = race_formats.Results(kept)
    results.begin({"machine": "a machine", "threads": 2}, {"gumba": "gumba 1"})
    results.note("big-q4_k", "gumba", prefill=1.0)
    race_formats.Results(kept).begin({"machine": "a machine", "threads": 2}, {"gumba": "gumba 1", "llama.cpp": "b1"})
    with pytest.raises(SystemExit, match="threads: 2 there, 1 now"):
        race_formats.Results(kept).begin({"machine": "a machine", "threads": 1}, {})
    with pytest.raises(SystemExit, match="gumba: 'gumba 1' there, 'gumba 2' now"):
        race_formats.Results(kept).begin({}, {"gumba": "gumba 2"})


@pytest.mark.parametrize("text", ["llama.cpp", "=python", "llama.cpp="])
def test_a_peer_needs_a_name_and_a_python(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=PYTHON"):
        race_formats.named(text)
    assert race_formats.named("ik=python,folder") == ("ik", "python,folder")
