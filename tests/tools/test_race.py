"""tools/race.py without racing: medians, ratios, targets, what is kept and what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import race


def row(unit: str = "tokens/s", **figures: list[float]) -> object:
    names = {"ours": "gumba", "llama": "llama.cpp", "openvino": "OpenVINO GenAI"}
    made = race.Row("prompt", unit, race.Target(of_llama=2.2, above_openvino=True))
    for engine, values in figures.items():
        for value in values:
            made.note(names[engine], value)
    return made


@pytest.mark.parametrize(
    ("figures", "met"),
    [
        ({"ours": [2200.0], "llama": [1000.0], "openvino": [2199.0]}, True),
        ({"ours": [2200.0], "llama": [1000.0], "openvino": [2200.0]}, False),
        ({"ours": [2199.0], "llama": [1000.0], "openvino": [1.0]}, False),
        ({"ours": [2199.0], "llama": [1000.0]}, False),
        ({"ours": [2200.0], "llama": [1000.0]}, None),
        ({"ours": [1.0, 2200.0, 3000.0], "llama": [1000.0, 5000.0, 0.1], "openvino": [1.0]}, True),
    ],
)
def test_targets_are_held_against_medians(figures: dict, met: bool | None) -> None:
    made = row(**figures)
    assert made.target.met(made.medians) is met


def test_embeddings_are_compared_with_both_kinds_of_weights() -> None:
    made = race.Row("short texts", "s", race.Target(of_onnx=3))
    for engine, seconds in zip(race.EMBEDDERS, (1.0, 9.0, 3.0, 1.0)):
        made.note(engine, seconds)
    assert made.target.met(made.medians) is True
    assert made.target.met(made.medians | {"onnxruntime": 2.9}) is False
    assert made.target.met(made.medians | {"onnxruntime int8": 0.9}) is False
    assert made.target.met({"gumba": 1.0, "onnxruntime": 3.0}) is None
    assert made.markdown(race.EMBEDDERS, race.ONNX) == (
        "| short texts, s | 1.00 | 9.00 | 3.00 | 1.00 | 3.00 | 3 x onnxruntime, above its int8 | yes |"
    )


def test_bounds_that_stand_alone() -> None:
    assert race.Target(at_most=0.6).met({"gumba": 0.6}) is True
    assert race.Target(at_most=0.6).met({"gumba": 0.61}) is False
    assert race.Target(at_least=90).met({"gumba": 89.9}) is False
    assert race.Target().met({"gumba": 1.0}) is None


def test_a_line_of_the_table() -> None:
    made = row(ours=[300.0, 100.0, 230.0], llama=[100.0], openvino=[50.0])
    assert made.markdown() == (
        "| prompt, tokens/s | 230 (100-300) | 100 | 50.0 | - | 2.30 | 2.2 x llama.cpp, above OpenVINO | yes |"
    )
    slower = race.Row("start", "s", race.Target(at_most=0.6))
    slower.note("gumba", 0.75)
    slower.note("llama.cpp", 0.25)
    slower.note("OpenVINO GenAI", None)
    assert slower.markdown() == "| start, s | 0.75 | 0.25 | - | - | 0.33 | at most 0.6 | **no** |"


def test_rows_survive_the_file_they_are_kept_in(tmp_path: Path) -> None:
    races = {
        "start": race.Race([race.Row("start", "s", race.Target(at_most=1.0))], 1, "2026-01-01", ["gumba run"], "Fine."),
        "q4_0": race.Race([row(ours=[1.0, 2.0], llama=[3.0])], 2, "", ["gumba bench"]),
    }
    races["start"].rows[0].note("gumba", 0.5)
    embeddings = race.Row("embeddings", "s", race.Target(of_onnx=3))
    embeddings.note("gumba", 1.5)
    races["embeddings"] = race.Race([embeddings], 1)
    race.save(tmp_path / "kept.json", races, {"gumba": "gumba 1"}, "a machine")
    again, engines = race.restore(tmp_path / "kept.json")
    assert again == races and engines == {"gumba": "gumba 1"}
    assert json.loads((tmp_path / "kept.json").read_text())["machine"] == "a machine"
    text = race.report(again, engines, "a machine")
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 7
    assert lines.index(races["q4_0"].rows[0].markdown()) < lines.index(races["start"].rows[0].markdown())
    assert "- **start**, 2026-01-01, rounds: 1. Fine." in lines and "  - `gumba run`" in lines


def test_a_race_on_another_machine_names_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    race.save(kept, {"start": race.Race([], 1, "2026-01-01", machine="an older one")}, {}, "a machine")
    again, engines = race.restore(kept)
    assert "- **start**, 2026-01-01, rounds: 1. On an older one." in race.report(again, engines, "a machine")
    assert " On " not in race.report(again, engines, "an older one").rpartition("##")[2]
    before = json.loads(kept.read_text())
    del before["races"]["start"]["machine"]  # a file of an earlier version of this tool
    kept.write_text(json.dumps(before))
    assert race.restore(kept)[0]["start"].machine == "a machine"


def test_commands_show_no_folders() -> None:
    engines = sys.modules["engines"]
    order = json.dumps({"model": "/home/me/models/x.gguf", "prompt": 512})
    assert engines.shown(["/usr/bin/python3", "/a/b/llama_peer.py", "bench", order]) == (
        'python3 llama_peer.py bench \'{"model": "x.gguf", "prompt": 512}\''
    )
