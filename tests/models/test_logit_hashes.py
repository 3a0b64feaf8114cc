"""Every golden model gives the bits that are recorded: whatever is moved, renamed or rewritten, no result changes.

The machine's best instruction set and the generic one run by default; ``pytest -m isas`` runs the others, for which all kernels
are compiled once more. Arm's sets run under emulation:

    tools/neon_check.sh FOLDER tests/models/test_logit_hashes.py -m "isas or not isas"
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gumba.simd import detect
from support import logit_hashes
from support.logit_hashes import CASES, Case, environment, hash_of, recorded

#: The instruction sets that always run, and the machine's others.
FIRST = list(dict.fromkeys([detect.available()[0], "generic"]))
OTHERS = [name for name in detect.available() if name not in FIRST]
HOW = "cd tests && python -m support.logit_hashes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models in other block formats lie, each written once."""
    return tmp_path_factory.mktemp("rewritten")


def check(case: Case, names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case's hash is the recorded one on every instruction set of ``names``."""
    path, recording = case.write(folder), recorded()
    changed = []
    for name in names:
        expected = recording["hashes"].get(name, {}).get(case.name)
        assert expected is not None, f"no hash is recorded for {name}: `{HOW} --missing` records it"
        monkeypatch.setenv("GUMBA_ISA", name)
        if hash_of(path, case.kv_type) != expected:
            changed.append(name)
    if changed:
        where = recording["environments"][changed[0]]
        here = environment()
        other = {key: f"{value} here, {where[key]} recorded" for key, value in here.items() if where[key] != value}
        pytest.fail(
            f"{case.name}: other bits than recorded on {', '.join(changed)}. "
            + (
                f"The recording is of another compiler or machine ({other}): look whether it holds there. "
                if other
                else ""
            )
            + f"Where a change of results is intended, `{HOW}` records them anew, "
            f"with the argument {case.source} only this model's",
            pytrace=False,
        )


def test_every_case_is_recorded_on_every_instruction_set() -> None:
    """Of this machine: those of others are recorded, and this test run, where they are available."""
    names = {case.name for case in CASES}
    assert len(names) == len(CASES)
    hashes = recorded()["hashes"]
    assert set(hashes) == set(detect.known())
    incomplete = [name for name in detect.available() if set(hashes[name]) != names]
    assert incomplete == [], f"`{HOW} --missing` records what is missing"
    assert [name for name in hashes if not set(hashes[name]) <= names] == [], "hashes of cases that do not exist"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_bits_as_recorded(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, FIRST, folder, monkeypatch)


@pytest.mark.isas
@pytest.mark.skipif(not OTHERS, reason="this machine has no other instruction sets")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_bits_as_recorded_on_lesser_sets(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, OTHERS, folder, monkeypatch)


@pytest.mark.parametrize(
    ("sources", "missing", "expected"),
    [
        ((), False, ["new"] * 3),
        ((), True, ["old", "old", "new"]),
        ({"arch_a"}, False, ["new", "old", None]),
        ({"arch_b"}, True, ["old", "old", "new"]),
    ],
)
def test_recording(
    sources: set[str], missing: bool, expected: list[str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three cases, the last without a hash: all, those of the named sources, and of these only the ones without."""
    cases = [Case("arch_a"), Case("tiny", "F16"), Case("arch_b")]
    monkeypatch.setattr(logit_hashes, "RECORDING", tmp_path / "hashes.json")
    monkeypatch.setattr(logit_hashes, "CASES", cases)
    monkeypatch.setattr(logit_hashes, "write_model", lambda path, kind: path)
    monkeypatch.setattr(logit_hashes, "hash_of", lambda path, kv_type: "new")
    monkeypatch.setenv("GUMBA_ISA", "generic")  # ``record`` sets it
    before = {
        "environments": {"generic": {}},
        "hashes": {"generic": {"arch_a": "old", "tiny F16": "old", "gone": "old"}},
    }
    (tmp_path / "hashes.json").write_text(json.dumps(before), encoding="utf-8")
    logit_hashes.record(["generic"], sources, missing=missing)
    found = recorded()
    assert found["hashes"]["generic"] == {case.name: word for case, word in zip(cases, expected) if word}
    assert bool(found["environments"]["generic"]) == (not sources and not missing)
