"""Every golden model gives the bits that are recorded: whatever is moved, renamed or rewritten, no result changes.

The machine's best instruction set and the generic one run by default; ``pytest -m isas`` runs the others, for which all kernels
are compiled once more. Arm's sets run under emulation:

    tools/neon_check.sh FOLDER tests/models/test_logit_hashes.py -m "isas or not isas"
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gumba.simd import detect
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
            + f"Where a change of results is intended, `{HOW}` records them anew",
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
