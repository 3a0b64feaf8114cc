"""The engines that tools/race.py compares, each measured in a child process."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOOLS = Path(__file__).parent
PROMPT = "The capital of France is"

GUMBA, LLAMA, OPENVINO, IK = "gumba", "llama.cpp", "OpenVINO GenAI", "ik_llama.cpp"
ENGINES = (GUMBA, LLAMA, OPENVINO, IK)
ONNX, ONNX_INT8 = "onnxruntime", "onnxruntime int8"
#: Those that make vectors of texts.
EMBEDDERS = (GUMBA, "sentence-transformers", ONNX, ONNX_INT8)


@dataclass(frozen=True)
class Ended:
    """How one child process ended: its output, seconds from start to end, peak resident memory in MB, what it was."""

    output: str
    wall_s: float
    rss_mb: float
    command: str

    def json(self) -> Any:
        """The JSON value in its output: on the last line, or all of it."""
        text = self.output.strip()
        return json.loads(text if text.startswith("[") else text.splitlines()[-1])


def shown(command: Sequence[str]) -> str:
    """A command as anyone could type it: without this machine's folders."""
    words = [re.sub(r'/[^\s",:=]*/', "", word) for word in command]
    return " ".join(f"'{word}'" if re.search(r'[\s"]', word) else word for word in words)


def child(command: Sequence[str], **environment: str) -> Ended:
    """Run ``command`` to its end; exit with its complaint when it fails."""
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"exit code {process.returncode} of: {' '.join(command)}")
        output.seek(0)
        text = output.read().decode(errors="replace")
    unit = 1 if sys.platform == "darwin" else 1024
    set_by_us = [
        f"{name}={value}" for name, value in environment.items() if name not in ("GUMBA_CACHE_DIR", "PYTHONPATH")
    ]
    return Ended(text, wall_s, usage.ru_maxrss * unit / 1e6, " ".join([*set_by_us, shown(command)]))


@dataclass(frozen=True)
class Sizes:
    """What is measured: a prompt of ``prompt`` tokens and ``gen`` single steps, of ``sequences``, after ``depth`` tokens."""

    prompt: int = 512
    gen: int = 64
    depth: int = 0
    sequences: int = 1
    repeat: int = 3


@dataclass(frozen=True)
class Found:
    """One measurement: tokens per second (None where there is none), peak memory in MB, the command."""

    prefill: float | None
    decode: float | None
    rss_mb: float
    kv_mb: float | None
    command: str


def gumba(*arguments: object, **environment: str) -> Ended:
    """Run one command of gumba."""
    return child([sys.executable, "-m", "gumba", *map(str, arguments)], **environment)


def peer_command(python: str, script: str, job: str, order: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The command of one job of a peer's script, and what to set in its environment.

    ``python``: the Python that has the peer, or "PYTHON,FOLDER" where the peer lies in a folder of its own.
    """
    python, _, folder = python.partition(",")
    return [python, str(TOOLS / script), job, json.dumps(order)], {"PYTHONPATH": folder} if folder else {}


def peer(python: str, script: str, job: str, **order: Any) -> Ended:
    """Run one job of a peer's script: see ``peer_command``."""
    command, environment = peer_command(python, script, job, order)
    return child(command, **environment)


def bench(engine: str, options: argparse.Namespace, model: Path, sizes: Sizes, isa: str = "") -> Found | None:
    """One measurement by one engine; None where it is not there or cannot do it. ``isa``: only what "avx2" has."""
    order = {"model": str(model), "threads": options.threads, **vars(sizes)}
    if engine == GUMBA:
        arguments = [part for name, value in vars(sizes).items() for part in (f"--{name}", value)]
        environment = {"GUMBA_ISA": isa} if isa else {}
        ended = gumba("bench", model, *arguments, "--threads", options.threads, "--json", **environment)
    elif engine == LLAMA:
        python = options.peer_python_avx2 if isa else options.peer_python
        if python is None:
            return None
        ended = peer(python, "llama_peer.py", "bench", **order)
    elif engine == OPENVINO:
        if options.openvino_python is None or isa or sizes.sequences > 1:
            return None
        ended = peer(options.openvino_python, "openvino_peer.py", "bench", **order)
    else:
        if options.ik_bench is None or isa or sizes.sequences > 1:
            return None
        return _ik_bench(options, model, sizes)
    found = ended.json()
    return Found(
        found["prefill_tokens_per_s"], found["decode_tokens_per_s"], ended.rss_mb, found.get("kv_mb"), ended.command
    )


def embed(engine: str, options: argparse.Namespace, model: str, kind: str) -> tuple[Any, str, np.ndarray]:
    """What ``embedding_peer.py bench`` found for one engine, its command, and the vectors. ``kind``: of gumba's GGUF file."""
    file = options.embedders / (f"{model}-{kind}.gguf" if engine == GUMBA else model)
    python = sys.executable if engine == GUMBA else options.embed_python
    with tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors.npy"
        order = {"engine": engine, "model": str(file), "threads": options.threads, "vectors": str(vectors)}
        ended = peer(python, "embedding_peer.py", "bench", **order)
        return ended.json(), ended.command, np.load(vectors)


def _ik_bench(options: argparse.Namespace, model: Path, sizes: Sizes) -> Found:
    """ik_llama.cpp's own llama-bench, weights repacked at run time (-rtr 1), its fastest way.

    After a context it can time single steps only (-gp), and each repetition processes the context anew: one must do.
    """
    command = [options.ik_bench, "-m", str(model), "-t", str(options.threads), "-rtr", "1", "-o", "json"]
    if sizes.depth:
        command += ["-p", "0", "-n", "0", "-gp", f"{sizes.depth},{sizes.gen}", "-r", "1"]
    else:
        command += ["-p", str(sizes.prompt), "-n", str(sizes.gen), "-r", str(sizes.repeat)]
    ended = child(command)
    speeds = {bool(test["n_gen"]): float(test["avg_ts"]) for test in ended.json()}
    return Found(speeds.get(False), speeds.get(True), ended.rss_mb, None, ended.command)


def about(engine: str, options: argparse.Namespace) -> str | None:
    """Which engine this is, in words; None where it is not there."""
    if engine == GUMBA:
        return ", ".join(f"{name} {version(name)}" for name in ("gumba", "numba", "llvmlite", "numpy"))
    if engine == LLAMA and options.peer_python is not None:
        found = peer(options.peer_python, "llama_peer.py", "about").json()
        return f"{found['version']}, built for this processor: {found['features'].strip().rstrip('|').strip()}"
    if engine == OPENVINO and options.openvino_python is not None:
        return str(peer(options.openvino_python, "openvino_peer.py", "about").json()["version"])
    if engine == IK and options.ik_bench is not None:
        return f"{IK} {options.ik_version}".strip() + ", llama-bench -rtr 1"
    if engine == ONNX and options.embed_python is not None:
        return str(peer(options.embed_python, "embedding_peer.py", "about").json()["version"])
    return None
