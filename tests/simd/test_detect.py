"""Which instruction set is used: the processor's best, or the one that GUMBA_ISA names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gumba.errors import EngineError
from gumba.simd import detect
from gumba.simd import processor as host


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No choice is made outside, or remembered from one test to the next."""
    monkeypatch.delenv("GUMBA_ISA", raising=False)
    detect._choose.cache_clear()
    yield
    detect._choose.cache_clear()


def test_generic_is_everywhere_and_last() -> None:
    assert detect.available()[-1] == "generic"
    assert list(detect.known())[-1] == "generic"
    assert all(name == one.name for name, one in detect.known().items())


def test_best_without_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in (None, "", "  "):
        if nothing is not None:
            monkeypatch.setenv("GUMBA_ISA", nothing)
        assert detect.current().name == detect.available()[0]


def test_choice_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in detect.available():
        for written in (name, name.upper(), f" {name} "):
            monkeypatch.setenv("GUMBA_ISA", written)
            assert detect.current() is detect.known()[name]


@pytest.mark.parametrize("name", ["sse9", "avx", "best", "0"])
def test_unknown_name_lists_what_there_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUMBA_ISA", name)
    with pytest.raises(EngineError) as error:
        detect.current()
    assert f"GUMBA_ISA={name}" in str(error.value)
    assert all(there in str(error.value) for there in detect.available())


def test_known_but_not_on_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "features", lambda: frozenset({"avx2", "fma", "f16c"}))
    assert detect.available() == ["avx2", "generic"]
    assert detect.current().name == "avx2"
    for name in ("avx512_vnni", "neon"):
        monkeypatch.setenv("GUMBA_ISA", name)
        with pytest.raises(EngineError, match=r"avx2, generic$"):
            detect.current()


@pytest.mark.parametrize(
    "features, expected",
    [
        ((), ["generic"]),
        (("avx2",), ["generic"]),
        (("neon",), ["neon_base", "generic"]),
        (("neon", "dotprod"), ["neon", "neon_base", "generic"]),
        (("neon", "dotprod", "i8mm"), ["neon_i8mm", "neon", "neon_base", "generic"]),
        (("neon", "i8mm"), ["neon_base", "generic"]),
        (("sse3", "ssse3", "sse4.1", "sse4.2", "avx"), ["generic"]),
        (("avx2", "fma", "f16c", "avxvnni"), ["avx_vnni", "avx2", "generic"]),
        (("avx2", "fma", "f16c", "avx512vnni", "avx512bw", "avx512vl"), ["avx512_vnni", "avx_vnni", "avx2", "generic"]),
        (
            ("avx2", "fma", "f16c", "avx512vnni", "avx512bw", "avx512vl", "amx-tile", "amx-int8"),
            ["avx512_amx", "avx512_vnni", "avx_vnni", "avx2", "generic"],
        ),
        (("avx2", "fma", "f16c", "avx512bw", "avx512vl"), ["avx2", "generic"]),
    ],
)
def test_sets_by_feature(features: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "features", lambda: frozenset(features))
    assert detect.available() == expected


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., frozenset[str]]:
    """``features()`` on a machine with this architecture and processor name, whose system tells these features."""
    import llvmlite.binding as llvm
    from numba.core import config

    def features(machine: str, name: str, told: str, **settings: object) -> frozenset[str]:
        monkeypatch.setattr(host, "_machine", lambda: machine)
        monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: name)
        there = {feature.lstrip("-"): not feature.startswith("-") for feature in told.split()}
        monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: there)
        for setting in ("CPU_FEATURES", "CPU_NAME"):
            monkeypatch.setattr(config, setting, settings.get(setting))
        monkeypatch.setattr(config, "ENABLE_AVX", settings.get("ENABLE_AVX", 1))
        return host.features.__wrapped__()

    return features


def test_features_follow_what_numba_compiles_for(processor: Callable[..., frozenset[str]]) -> None:
    told = "sse4.1 avx avx2 fma f16c avx512vl -avxvnni"
    assert processor("x86_64", "znver4", told) == {"sse4.1", "avx", "avx2", "fma", "f16c", "avx512vl"}
    assert processor("x86_64", "znver4", told, CPU_FEATURES="+avx2,-fma,+f16c") == {"avx2", "f16c"}
    assert processor("x86_64", "znver4", told, CPU_NAME="generic", CPU_FEATURES="") == set()
    assert processor("x86_64", "znver4", told, CPU_NAME="haswell") == processor("x86_64", "znver4", told)
    assert processor("x86_64", "znver4", told, ENABLE_AVX=0) == {"sse4.1", "fma", "f16c"}


@pytest.mark.parametrize("granted", [False, True])
def test_tiles_are_the_systems_to_give(
    granted: bool, processor: Callable[..., frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gumba.simd.processor.offers_tiles", lambda: granted)
    found = processor("x86_64", "sapphirerapids", "avx2 amx-tile amx-int8")
    assert found == ({"avx2", "amx-int8", "amx-tile"} if granted else {"avx2", "amx-int8"})


SAPPHIRE_RAPIDS = frozenset(
    ["avx2", "fma", "f16c", "avx512vnni", "avx512bw", "avx512vl", "avx512bf16", "amx-tile", "amx-int8"]
)


@pytest.mark.parametrize("granted", [False, True])
def test_results_do_not_depend_on_whether_the_system_grants_tiles(
    granted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "features", lambda: SAPPHIRE_RAPIDS)
    monkeypatch.setattr(detect, "request_tiles", lambda: granted)
    assert detect.available()[:3] == ["avx512_amx", "avx512_bf16", "avx512_vnni"]
    assert detect.current().name == ("avx512_amx" if granted else "avx512_vnni")
    monkeypatch.setenv("GUMBA_ISA", "avx512_amx")
    if not granted:
        with pytest.raises(EngineError, match=r"system refuses AMX's tiles.*use avx512_vnni"):
            detect.current()
    monkeypatch.setenv("GUMBA_ISA", "avx512_bf16")
    assert detect.current().name == "avx512_bf16"


def test_listing_the_sets_requests_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with tiles may no longer have signal stacks of 8 KB, which some crash handlers use."""
    monkeypatch.setattr(detect, "request_tiles", lambda: pytest.fail("requested"))
    host.features.cache_clear()
    names = detect.available()
    monkeypatch.setenv("GUMBA_ISA", names[-1])
    assert detect.current().name == names[-1]


def test_no_tiles_are_requested_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the system call means another one there."""
    monkeypatch.setattr(host, "_machine", lambda: "aarch64")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("called"))
    assert not host.offers_tiles() and not host.request_tiles.__wrapped__()


def test_features_of_arm(processor: Callable[..., frozenset[str]]) -> None:
    """Neon always; Apple's processors, whose system tells nothing, by name."""
    assert processor("aarch64", "cortex-a72", "neon crc") == {"neon", "crc"}
    assert processor("aarch64", "neoverse-n1", "neon dotprod") == {"neon", "dotprod"}
    assert processor("arm64", "apple-m1", "") == {"neon", "dotprod"}
    assert processor("arm64", "apple-m3", "") == {"neon", "dotprod", "i8mm"}
    assert processor("aarch64", "generic", "", CPU_NAME="generic", CPU_FEATURES="") == {"neon"}
