"""The layers of pyproject.toml, which import-linter checks: they have every module of the packages, so that none is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Modules without a layer: the names that a package offers, a re-export of compat, and the hook that PyInstaller runs.
WITHOUT = {"__init__", "pipelines", "_pyinstaller"}


def contract(name: str) -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return text.partition(f'name = "{name}')[2].partition("[[tool.")[0]


def layers(name: str, prefix: str) -> set[str]:
    listed = re.search(r"^layers = \[\n(.*?)^\]", contract(name), re.MULTILINE | re.DOTALL)
    assert listed is not None
    names = re.findall(r"[\w.]+", listed[1])
    return {part.removeprefix(prefix) for part in names if "." not in part.removeprefix(prefix)}


@pytest.mark.parametrize(
    ("package", "name", "prefix"),
    [
        ("runtime/gumba", "Layers: ", "gumba."),
        ("convert/gumba_convert", "Layers of the converter", ""),
    ],
)
def test_every_module_has_a_layer(package: str, name: str, prefix: str) -> None:
    modules = {path.stem for path in (ROOT / package).glob("*.py")}
    modules |= {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert len(modules) >= 9
    assert layers(name, prefix) - {"gumba_convert"} == modules - WITHOUT


def test_all_above_the_backends_but_bench_is_kept_from_the_cpus() -> None:
    ordered = re.findall(r"gumba\.(\w+)", contract("Layers: ").partition("layers = [")[2])
    above = set(ordered[: ordered.index("backends")]) - {"__main__", "bench"}
    kept = set(re.findall(r'"gumba\.(\w+)"', contract("Backends: ").partition("forbidden_modules")[0]))
    assert above <= kept
