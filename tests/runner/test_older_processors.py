"""Whole models on processors lesser than this one: another process compiles for the features that are named to it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support import tiny_models
from support.tiny_models import write_model

pytestmark = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="names x86 features")

KINDS = ["Q4_0"]
BASE = "+cx8,+mmx,+fxsr,+sse,+sse2"
SSE4 = f"{BASE},+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
#: Name of the processor for LLVM: its features, the set that must be chosen.
PROCESSORS = {
    "x86-64": (BASE, "generic"),
    "haswell": (f"{SSE4},+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+xsave", "avx2"),
}


@pytest.mark.parametrize("name", ["x86-64", pytest.param("haswell", marks=pytest.mark.isas)])
def test_same_bits_as_here(name: str, tmp_path: Path) -> None:
    """A processor without fused multiply-add computes through float64; its numbers are those of this one's best set."""
    features, chosen = PROCESSORS[name]
    probe = [
        sys.executable,
        "-c",
        "from gumba.simd import detect; print(detect.current().name, detect.available()[-1])",
    ]
    lesser = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    lesser.pop("GUMBA_ISA", None)
    found = subprocess.run(probe, check=True, env=lesser, timeout=600, capture_output=True, text=True).stdout
    assert found.split() == [chosen, "generic"]

    files = [str(write_model(tmp_path / f"{kind}.gguf", kind)) for kind in KINDS]
    logits = []
    for i, environment in enumerate((lesser, os.environ)):
        out = str(tmp_path / f"{i}.npz")
        subprocess.run([sys.executable, tiny_models.__file__, out, *files], check=True, env=environment, timeout=600)
        with np.load(out) as made:
            logits.append({kind: made[kind] for kind in KINDS})
    for kind in KINDS:
        assert np.isfinite(logits[0][kind]).all()
        np.testing.assert_array_equal(logits[0][kind].view(np.int32), logits[1][kind].view(np.int32))
