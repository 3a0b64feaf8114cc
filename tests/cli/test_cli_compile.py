"""gumba compile: what it leaves for other processes to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gumba.kernels import cache

#: What shows after an edit, even one that is taken back: nothing that a process compiles from then on is kept.
EDITED = "gumba's sources were edited while this test ran"
CHILD = """
import json, sys
from gumba import LLM, SamplingParams
with LLM(sys.argv[1], n_threads=2) as llm:
    text = llm.generate("hello", SamplingParams(max_tokens=2, seed=1))[0].text
    llm.generate("hello", SamplingParams(max_tokens=1, seed=1, top_k=0, top_p=0.9))
from gumba.kernels import jit
print(json.dumps([jit.stats.compiled, jit.stats.loaded > 8, "numba" in sys.modules]))
"""


def test_a_model_then_runs_without_compiler(
    gumba_process: Callable, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("GUMBA_ISA", "generic")
    sources = cache._sources_state()
    first, second = gumba_process("compile", str(tiny)), gumba_process("compile", str(tiny))
    if cache._sources_state() != sources:
        pytest.skip(EDITED)
    assert first.code == second.code == 0 and str(tmp_path) in first.out
    assert not first.out.startswith("0 of") and second.out.startswith("0 of")
    ran = subprocess.run([sys.executable, "-c", CHILD, str(tiny)], stdout=subprocess.PIPE, check=True, timeout=120)
    assert json.loads(ran.stdout) == [0, True, False]


def test_kernels_to_ship(gumba_process: Callable, tiny: Path, tmp_path: Path) -> None:
    """Those of the model, whether they were compiled just now or before, under the hash of their sources."""
    from gumba.kernels.cache import sources_hash

    made = [tmp_path / "first", tmp_path / "second"]
    for folder in made:
        result = gumba_process("compile", str(tiny), "--output", str(folder), GUMBA_ISA="generic")
        assert result.code == 0 and str(folder) in result.out
    first, second = ({path.name: path.read_bytes() for path in (each / sources_hash()).iterdir()} for each in made)
    assert first == second and len(first) > 8
    (tmp_path / "file").touch()
    result = gumba_process("compile", str(tiny), "--output", str(tmp_path / "file"), GUMBA_ISA="generic")
    assert result.code == 2 and "cannot write kernels into" in result.err


def test_without_a_cache(gumba_process: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUMBA_CACHE_DIR", "")
    result = gumba_process("compile")
    assert result.code == 2 and "no kernel cache" in result.err
