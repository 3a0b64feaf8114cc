"""Race gumba against llama.cpp on this machine, in turn, and write BENCHMARKS.md.

    python tools/race.py q4_0.gguf q8_0.gguf --peer-python ../llama/bin/python --threads 2 \\
        --depths 0 2048 6144 --sequences 1 8 --hf-folder SmolLM2 --date 2026-11-21 --write

Every measurement is a child process of its own, and the engines take turns (A B A B ...): same file, same threads,
same token counts. Reported are medians over the rounds, with the lowest and highest, and the ratio of the medians:
absolute figures move between runs of a shared machine, ratios within one run much less. gumba's figures come from
``gumba bench`` and ``gumba run``, llama.cpp's from tools/llama_peer.py, run by the Python that has llama-cpp-python,
built for this processor (``CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python``).

Run it with the Python that has gumba, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEER = Path(__file__).with_name("llama_peer.py")
PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Ended:
    """How one child process ended: its output, seconds from start to end, peak resident memory in MB."""

    output: str
    wall_s: float
    rss_mb: float

    def json(self) -> dict[str, Any]:
        """The JSON object on its last line."""
        result: dict[str, Any] = json.loads(self.output.strip().splitlines()[-1])
        return result


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
    return Ended(text, wall_s, usage.ru_maxrss * unit / 1e6)


def gumba(*arguments: object, **environment: str) -> Ended:
    """Run one command of gumba."""
    return child([sys.executable, "-m", "gumba", *map(str, arguments)], **environment)


def peer(options: argparse.Namespace, job: str, **order: Any) -> Ended:
    """Run one job of tools/llama_peer.py."""
    return child([options.peer_python, str(PEER), job, json.dumps({**order, "threads": options.threads})])


@dataclass
class Line:
    """One line of a table: what is measured, and each round's figure of both engines."""

    what: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def row(self) -> str:
        """The line in Markdown; the ratio says how many times better gumba is, whichever way better is."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs) if self.theirs else None
        if theirs is None:
            ratio = ""
        elif self.unit == "tokens/s":
            ratio = f"{ours / theirs:.2f}"
        else:
            ratio = f"{theirs / ours:.2f}"
        return f"| {self.what}, {self.unit} | {spread(self.ours)} | {spread(self.theirs)} | {ratio} |"


def spread(figures: list[float]) -> str:
    """Median and, with several rounds, lowest and highest."""
    if not figures:
        return ""

    def short(x: float) -> str:
        return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"

    middle = short(statistics.median(figures))
    return middle if len(figures) == 1 else f"{middle} ({short(min(figures))}-{short(max(figures))})"


def alternate(rounds: int, ours: Callable[[], None], theirs: Callable[[], None]) -> None:
    """A B, A B, ...: both engines in turn, ``rounds`` times."""
    for _ in range(rounds):
        ours()
        theirs()


def race_throughput(options: argparse.Namespace, model: Path, depth: int, sequences: int) -> list[Line]:
    """Prompt and generation after ``depth`` tokens; peak memory when it is the plain case."""
    where = f" after {depth}" if depth else ""
    beside = f", {sequences} sequences at once" if sequences > 1 else ""
    prefill = Line(f"prompt of {options.prompt}{where}", "tokens/s")
    decode = Line(f"{options.gen} tokens one by one{where}{beside}", "tokens/s")
    memory = Line("peak memory of that process", "MB")
    sizes = {"prompt": options.prompt, "gen": options.gen, "depth": depth, "sequences": sequences}
    sizes["repeat"] = options.repeat

    def note(ended: Ended, side: str) -> None:
        figures = ended.json()
        getattr(prefill, side).append(figures["prefill_tokens_per_s"])
        getattr(decode, side).append(figures["decode_tokens_per_s"])
        getattr(memory, side).append(ended.rss_mb)

    arguments = [part for name, value in sizes.items() for part in (f"--{name}", value)]
    alternate(
        options.rounds,
        lambda: note(gumba("bench", model, *arguments, "--threads", options.threads, "--json"), "ours"),
        lambda: note(peer(options, "bench", model=str(model), **sizes), "theirs"),
    )
    if sequences > 1:
        return [decode]
    return [prefill, decode] if depth else [prefill, decode, memory]


def race_start(options: argparse.Namespace, model: Path) -> list[Line]:
    """From starting the process to its end with one token: the first time ever (kernels are compiled), and later."""
    first, later = Line("first start ever, to one token", "s"), Line("later start, to one token", "s")
    command = ["run", model, "-p", PROMPT, "-n", 1, "--temp", 0, "--threads", options.threads]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as cache:
            first.ours.append(gumba(*command, GUMBA_CACHE_DIR=cache).wall_s)
            later.ours.append(gumba(*command, GUMBA_CACHE_DIR=cache).wall_s)

    def theirs() -> None:
        wall_s = peer(options, "start", model=str(model), text=PROMPT).wall_s
        later.theirs.append(wall_s)

    alternate(options.rounds, ours, theirs)
    return [first, later]


def race_conversion(options: argparse.Namespace, kind: str) -> list[Line]:
    """A Hugging Face folder to a GGUF file; of llama.cpp only the second step (from f16), which its library can do."""
    whole = Line(f"Hugging Face folder to {kind}", "s")
    memory = Line(f"peak memory, folder to {kind}", "MB")
    with tempfile.TemporaryDirectory() as folder:
        f16, ours, theirs = (Path(folder) / name for name in ("f16.gguf", "ours.gguf", "theirs.gguf"))
        gumba("convert", options.hf_folder, "-o", f16, "--type", "f16")

        def convert() -> None:
            ours.unlink(missing_ok=True)
            ended = gumba("convert", options.hf_folder, "-o", ours, "--type", kind)
            whole.ours.append(ended.wall_s)
            memory.ours.append(ended.rss_mb)

        def second_step() -> None:
            ended = peer(options, "quantize", model=str(f16), out=str(theirs), type=kind)
            whole.theirs.append(ended.wall_s)
            memory.theirs.append(ended.rss_mb)

        alternate(options.rounds, convert, second_step)
    return [whole, memory]


def processor() -> str:
    """The processor's name, and what tells apart those that share a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def command_line(arguments: Iterable[str], options: argparse.Namespace) -> str:
    """The command as anyone could type it: file names without this machine's folders."""
    shown = []
    for word in arguments:
        if word == options.peer_python:
            shown.append("PEER_PYTHON")
        else:
            shown.append(Path(word).name if os.sep in word else word)
    return " ".join(["python tools/race.py", *shown])


def report(options: argparse.Namespace, tables: dict[str, list[Line]]) -> str:
    """The whole of BENCHMARKS.md."""
    about = peer(options, "about").json()
    versions = ", ".join(f"{name} {version(name)}" for name in ("gumba", "numba", "llvmlite", "numpy"))
    parts = [
        "# Benchmarks",
        "Written by tools/race.py, never by hand. gumba and llama.cpp take turns in one run, each measurement in a "
        "process of its own; figures are medians (lowest-highest of the rounds), and the ratio says how many times "
        "better gumba is: more tokens per second, less time, less memory.",
        f"- {options.date or 'undated'}, {processor()}, threads: {options.threads}, rounds: {options.rounds}\n"
        f"- {versions}, Python {platform.python_version()}\n"
        f"- {about['version']}, built for this processor: {about['features'].strip().rstrip('|').strip()}\n"
        f"- `{command_line(sys.argv[1:], options)}`",
        "Starts are whole Python processes on both sides, from the command to its end after one token. gumba's very "
        "first start compiles its kernels for this processor; they are kept. Memory is the peak resident set of the "
        "process that measured the prompt and the tokens.",
    ]
    if options.hf_folder:
        parts.append(
            "Conversion: gumba goes from the Hugging Face folder to the quantized file in one command; llama.cpp's "
            "figure is its second step alone (f16 GGUF to quantized)."
        )
    for title, lines in tables.items():
        head = "| | gumba | llama.cpp | ratio |\n| --- | --- | --- | --- |"
        parts.append(f"## {title}")
        parts.append("\n".join([head, *(line.row() for line in lines)]))
    return "\n\n".join(parts) + "\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="GGUF files")
    parser.add_argument("--peer-python", required=True, help="the Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--depths", type=int, nargs="+", default=[0], help="tokens of context before what is timed")
    parser.add_argument(
        "--sequences", type=int, nargs="+", default=[1], help="how many generate at once (at depth 128)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine")
    parser.add_argument(
        "--repeat", type=int, default=3, help="measurements within one turn, of which the median counts"
    )
    parser.add_argument("--hf-folder", type=Path, help="also time the conversion of this folder to q4_0 and q8_0")
    parser.add_argument("--no-start", action="store_true", help="leave out the starts")
    parser.add_argument("--date", help="stands in BENCHMARKS.md")
    parser.add_argument("--write", action="store_true", help="write BENCHMARKS.md; otherwise print it")
    return parser.parse_args()


def main() -> None:
    """Race, then write or print."""
    options = parse()
    tables: dict[str, list[Line]] = {}

    def add(title: str, lines: list[Line]) -> None:
        tables.setdefault(title, []).extend(lines)
        for line in lines:
            print(title, line.row(), file=sys.stderr, flush=True)

    for model in options.models:
        title = f"{model.name}, {model.stat().st_size / 1e6:.0f} MB"
        for depth in options.depths:
            add(title, race_throughput(options, model, depth, 1))
        for sequences in options.sequences:
            if sequences > 1:
                add(title, race_throughput(options, model, 128, sequences))
        if not options.no_start:
            add(title, race_start(options, model))
    if options.hf_folder:
        for kind in ("q4_0", "q8_0"):
            add(f"Converting {options.hf_folder.name}", race_conversion(options, kind))
    text = report(options, tables)
    if options.write:
        (ROOT / "BENCHMARKS.md").write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
