"""The registry of architectures: each name leads to the module that has it, with the functions that an architecture has."""

import inspect
import pkgutil
import subprocess
import sys

import pytest

import gumba.models
from gumba.models.registry import ARCHITECTURES

#: The functions of an architecture, and how many parameters they have.
FUNCTIONS = {"read_config": 1, "load_weights": 2, "forward": 3}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_module_has_what_an_architecture_has(name):
    module = ARCHITECTURES[name]
    assert name == module.NAME and module.FAMILIES and module.VERIFIED
    for function, parameters in FUNCTIONS.items():
        assert len(inspect.signature(getattr(module, function)).parameters) == parameters
    if hasattr(module, "encode"):
        assert len(inspect.signature(module.encode).parameters) == 3


def test_each_module_that_has_a_name_is_registered():
    modules = {module.name for module in pkgutil.iter_modules(gumba.models.__path__)} - {"registry"}
    assert {name.replace("-", "_") for name in ARCHITECTURES} == modules


def test_unknown_names_are_not_imported():
    assert "registry" not in ARCHITECTURES and "command_r" not in ARCHITECTURES
    with pytest.raises(KeyError):
        ARCHITECTURES["registry"]


def test_an_architecture_is_imported_when_it_is_used():
    script = (
        "import sys; from gumba.models.registry import ARCHITECTURES; ARCHITECTURES['llama']; "
        "print(*sorted(name for name in sys.modules if name.startswith('gumba.models.')))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["gumba.models.llama", "gumba.models.registry"]
