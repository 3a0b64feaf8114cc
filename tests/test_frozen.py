"""A program frozen with PyInstaller: in a read-only installation kernels compile once, or come with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gumba import LLM, SamplingParams, _pyinstaller
from gumba.jit import kernel_cache

MODEL = Path(__file__).parent / "data" / "model_plain.gguf"
PROMPT = [1, 2, 3]

PROGRAM = """
import json, sys
from gumba import LLM, SamplingParams

if __name__ == "__main__":
    with LLM(sys.argv[1], n_threads=2) as llm:
        [output] = llm.generate([json.loads(sys.argv[2])], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    from gumba.jit import jit, kernel_cache
    folder = kernel_cache.cache_folder()
    print(json.dumps({
        "tokens": output.token_ids, "compiled": jit.stats.compiled, "loaded": jit.stats.loaded,
        "key": kernel_cache.sources_hash(), "cache": folder and str(folder), "numba": "numba" in sys.modules,
        "frozen": sys.frozen,
    }))
"""


def test_pyinstaller_is_told_of_the_hook() -> None:
    """The entry point names an existing folder with a hook that uses PyInstaller's functions only."""
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pyinstaller40]\nhook-dirs = "gumba._pyinstaller:hook_dirs"\n' in project
    [folder] = _pyinstaller.hook_dirs()
    hook = Path(folder, "hook-gumba.py").read_text(encoding="utf-8")
    compile(hook, "hook-gumba.py", "exec")
    assert "COMPILED_FOLDERS" in hook


def state(folder: Path) -> dict[str, str]:
    """Every file of a folder with its contents."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def start(app: Path, tmp_path: Path, **env: str) -> dict[str, Any]:
    """The program's report. It has no Python, and no cache but the user's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GUMBA", "PYTHON")) or k == "GUMBA_ISA"}
    home = {name: str(tmp_path / "user") for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")}
    command = [str(next(app.glob("program*"))), str(MODEL), json.dumps(PROMPT)]
    done = subprocess.run(command, env={**kept, **home, **env}, cwd=tmp_path, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the frozen program, read-only (unless the user is root)."""
    assert find_spec("PyInstaller") is not None, "pip install '.[test,freeze]'"
    folder = tmp_path_factory.mktemp("freeze")
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", "program.py"]
    [hooks] = _pyinstaller.hook_dirs()  # for a checkout that is not installed
    subprocess.run([*command, "--additional-hooks-dir", hooks], cwd=folder, check=True, timeout=1200)
    app = folder / "dist" / "program"
    for path in [app, *app.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    return app


@pytest.mark.freeze
def test_kernels_are_compiled_once_into_the_users_cache(app: Path, tmp_path: Path) -> None:
    before = state(app)
    first, second = start(app, tmp_path), start(app, tmp_path)
    with LLM(MODEL) as llm:
        expected = llm.generate([PROMPT], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))[0].token_ids
    assert first["tokens"] == second["tokens"] == expected
    assert first["frozen"] and first["key"] == kernel_cache.sources_hash()
    assert Path(first["cache"]).is_relative_to(tmp_path / "user")
    assert first["compiled"] > 5 and first["numba"]
    assert (second["compiled"], second["loaded"], second["numba"]) == (0, first["compiled"], False)
    assert state(app) == before


@pytest.mark.freeze
def test_shipped_kernels_need_no_cache_and_no_compiler(app: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gumba", "compile", str(MODEL), "--output", str(tmp_path / "made")]
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    app.chmod(0o755)
    shipped = app / "gumba-kernels"
    shutil.copytree(tmp_path / "made", shipped)
    app.chmod(0o555)
    before = state(app)
    try:
        found = start(app, tmp_path, GUMBA_CACHE_DIR="")
        assert (found["compiled"], found["cache"], found["numba"]) == (0, None, False)
        assert found["loaded"] > 5 and state(app) == before
        assert not (tmp_path / "user").exists()
    finally:
        app.chmod(0o755)
        shutil.rmtree(shipped)
