"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from gumba import store
from support import tiny_chat

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs like that, and children inherit it: those that are to be interrupted never would be.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup does the same with this one

#: No test asks a real hub: those that need one have it on the loopback interface.
os.environ["HF_HUB_OFFLINE"] = "1"
#: Looked up before any test gets a home of its own.
_REAL_MODEL = os.environ.get("GUMBA_TEST_MODEL") or store.pulled(store.DEFAULT_MODEL)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Tests by the thousand live until the end: the garbage collector does not look through them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first: the last minutes should not be one process's."""
    items.sort(key=lambda item: item.get_closest_marker("freeze") is None)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GUMBA_HOME of the test's own: no test sees, or touches, the user's models."""
    path = tmp_path / "gumba-home"
    monkeypatch.setenv("GUMBA_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a tiny chat model with random weights and a context of 256 tokens."""
    return tiny_chat.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct in Q4_1: the file GUMBA_TEST_MODEL names, or the one that `gumba pull` has fetched."""
    if not _REAL_MODEL:
        pytest.skip("no real model here: `gumba pull` fetches it, or GUMBA_TEST_MODEL names it")
    path = Path(_REAL_MODEL)
    if not path.is_file():
        pytest.fail(f"GUMBA_TEST_MODEL names no file: {path}")
    return path
