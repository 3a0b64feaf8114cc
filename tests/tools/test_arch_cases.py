"""The goldens' table, the registries and the lists in the docs say the same."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

import arch_numpy
import write_models_page
from arch_cases import CASES
from gumba import GGUFFile
from gumba.models.registry import ARCHITECTURES
from gumba_convert import families

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
#: llama.cpp knows some sizes of these models itself, which a golden does not have: compared by hand, on larger files.
BY_HAND = ("gemma3n",)
#: Bytes of a golden model at most.
MOST = 400_000


@functools.cache
def architecture(case_name: str) -> str:
    with GGUFFile(DATA / f"arch_{case_name}.gguf") as file:
        return file.require("general.architecture", str)


def test_every_case_has_its_files_and_no_other_lie_there() -> None:
    names = [f"arch_{case.name}" for case in CASES]
    assert len(set(names)) == len(names)
    for suffix in (".gguf", ".npz"):
        assert {path.stem for path in DATA.glob(f"arch_*{suffix}")} == set(names)
    assert [path.name for path in DATA.glob("arch_*") if path.stat().st_size > MOST] == []


def test_every_architecture_is_run_by_a_case_and_every_case_is_run() -> None:
    """test_architectures.py and test_encoders.py run the files of all architectures in the registry, and no others."""
    assert {architecture(case.name) for case in CASES} == set(ARCHITECTURES)


def test_every_family_of_checkpoints_has_a_case() -> None:
    """By the class that the case's checkpoint names; what is rewritten as another family has that one's name."""
    modules = {module.__name__.rpartition(".")[2]: module for module in families.MODULES}
    own = {"JinaBert": "JinaBertModel"}
    made = set()
    for case in CASES:
        name = own.get(case.family, case.family + case.head)
        made.add(modules[case.remote] if case.remote else families.FAMILIES[name])
    assert sorted(module.__name__ for module in families.MODULES if module not in made) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_said_to_be_verified_was(name: str) -> None:
    """A case of it was compared with transformers, or with a forward of our own, and by which tokens with llama.cpp."""
    cases = [case for case in CASES if architecture(case.name) == name]
    own = all(case.family in arch_numpy.OWN for case in cases)
    wanted = {"a plain NumPy forward" if own else "transformers"}
    if any(case.n_llama for case in cases) or name in BY_HAND:
        wanted.add("llama.cpp")
    assert set(ARCHITECTURES[name].VERIFIED) == wanted


def test_the_page_of_models() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == write_models_page.page(page), "run python tools/write_models_page.py"


def test_models_that_the_readme_names() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"- Models: (.*?) and others: \[docs/models\.md\]\(docs/models\.md\)", readme, re.DOTALL)
    assert found is not None
    known = " ".join(module.FAMILIES for module in ARCHITECTURES.values()).lower()
    names = [name.strip() for name in re.split(r",|\band\b", found[1])]
    assert len(names) > 10
    for name in names:
        if name[:1].isdigit():  # "OLMo 2 and 3"
            continue
        assert re.sub(r"\W", "", name.split()[0].lower()) in re.sub(r"[^\w ]", "", known), name
