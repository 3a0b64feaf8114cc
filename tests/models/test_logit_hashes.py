"""Every golden model gives the bits that are recorded, the same on every processor, whatever is moved, renamed or rewritten.

The machine's best instruction set runs by default, and the generic one some cases with every kind of kernel; ``pytest -m isas``
runs all others, for which all kernels are compiled once more. Arm's sets run under emulation, and are held to the same hashes:

    tools/neon_check.sh FOLDER tests/models/test_logit_hashes.py -m "isas or not isas"
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gumba.backends.cpu.kv_pages import PAGE_FORMATS
from gumba.simd import detect
from support import logit_hashes
from support.kernel_harness import FORMS
from support.logit_hashes import CASES, PORTABLE, REWRITTEN, Case, environment, hash_of, names, recorded

#: The instruction set that always runs all cases, and the machine's others.
BEST, *OTHERS = detect.available()
#: The cases that always run on the generic set: every kind of attention, state, mixture and block format.
ON_GENERIC = [
    case
    for case in CASES
    if (case.source in REWRITTEN and case.kind is None) or case.name.lower() in [f"tiny {form}" for form in FORMS]
]
#: Sets with hashes of their own, for models loaded without ``portable``.
OWN = [name for name in names() if name != PORTABLE]
HOW = "cd tests && PYTHONPATH=../tools python -m support.logit_hashes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models in other block formats lie, each written once."""
    return tmp_path_factory.mktemp("rewritten")


def check(case: Case, sets: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case's hash is the recorded one on every instruction set of ``sets``: without ``portable``, the set's own if it has
    hashes of its own."""
    path, recording = case.write(folder), recorded()
    changed = []
    for name in sets:
        key = name if name in OWN else PORTABLE
        expected = recording["hashes"].get(key, {}).get(case.name)
        assert expected is not None, f"no hash is recorded for {key}: `{HOW} --missing` records it"
        monkeypatch.setenv("GUMBA_ISA", name)
        if hash_of(path, case.kv_type, portable=False) != expected:
            changed.append(name)
    if changed:
        where = recording["environments"][changed[0] if changed[0] in OWN else PORTABLE]
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


def test_every_case_is_recorded() -> None:
    """Hashes of sets of other machines are recorded, and this test run, where they are available."""
    cases = {case.name for case in CASES}
    assert len(cases) == len(CASES)
    hashes = recorded()["hashes"]
    assert set(hashes) == {PORTABLE, *(isa.name for isa in detect.known().values() if isa.portable is not None)}
    incomplete = [name for name in names() if set(hashes[name]) != cases]
    assert incomplete == [], f"`{HOW} --missing` records what is missing"
    assert [name for name in hashes if not set(hashes[name]) <= cases] == [], "hashes of cases that do not exist"


def test_portable_sets_have_nothing_of_their_own() -> None:
    """Where a set has instructions whose results are its own, the set beside it has none of them."""
    for isa in detect.known().values():
        portable = isa.portable or isa
        assert portable.portable is None
        assert portable.dot_bf16 is portable.round_bf16 is None, f"{isa.name}: a portable set must name another"
        assert any(set(need) <= set(other) for need in portable.needs for other in isa.needs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_bits_as_recorded(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, [BEST], folder, monkeypatch)


@pytest.mark.parametrize("case", ON_GENERIC, ids=lambda case: case.name)
def test_same_bits_as_recorded_on_the_generic_set(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, ["generic"], folder, monkeypatch)


@pytest.mark.isas
@pytest.mark.skipif(not OTHERS, reason="this machine has no other instruction sets")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_bits_as_recorded_on_lesser_sets(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, OTHERS, folder, monkeypatch)


@pytest.mark.skipif(not OWN, reason="no set of this machine has hashes of its own")
@pytest.mark.parametrize("kv_type", PAGE_FORMATS)
def test_portable_models_give_the_bits_of_all_sets(kv_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a set with bits of its own, which runs as the set beside it: one whose kernels ``-m isas`` takes through all cases."""
    case = next(case for case in CASES if case.source == "tiny" and case.kv_type == kv_type)
    for name in OWN:
        monkeypatch.setenv("GUMBA_ISA", name)
        assert hash_of(case.write(folder), kv_type, portable=True) == recorded()["hashes"][PORTABLE][case.name]


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
    monkeypatch.setattr(logit_hashes, "hash_of", lambda path, kv_type, *, portable: "new")
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
