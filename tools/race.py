"""Race gumba against its peers on this machine, in turn, and write BENCHMARKS.md.

    python tools/make_big_gguf.py big-q4_0.gguf --type q4_0
    python tools/race.py --q4_0 smollm2-q4_0.gguf --q8_0 smollm2-q8_0.gguf --big big-q4_0.gguf \\
        --peer-python ../llama/bin/python --peer-python-avx2 ../llama-avx2/bin/python \\
        --openvino-python ../openvino/bin/python --ik-bench ../ik_llama.cpp/build/bin/llama-bench \\
        --threads 2 --date 2026-11-21 --write
    python tools/race.py ... --rows deep big --reuse --write          some rows anew, the others as they were
    python tools/make_embedders.py MINILM embedders --python ../st/bin/python
    python tools/race.py --rows embeddings --embedders embedders --embed-python ../st/bin/python --rounds 1 --reuse --write

Every measurement is a child process of its own, and the engines take turns (A B C, A B C, ...): same file, same threads,
same token counts. Reported are medians over the rounds, with the lowest and highest, and the ratio of the medians: absolute
figures move between runs of a shared machine, ratios within one run much less. Every row keeps the day and the commands
that it comes from, in benchmarks.json beside BENCHMARKS.md; ``--reuse`` starts from that file.

gumba's figures come from ``gumba bench`` and ``gumba run``, llama.cpp's from tools/llama_peer.py, run by a Python that has
llama-cpp-python built for this processor (``CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python
llama-cpp-python``), OpenVINO's from tools/openvino_peer.py, ik_llama.cpp's from its llama-bench. A peer that is not given,
or cannot do a row, has no figure there. Run it with the Python that has gumba, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engines import (
    EMBEDDERS,
    ENGINES,
    GUMBA,
    LLAMA,
    ONNX,
    ONNX_INT8,
    OPENVINO,
    PROMPT,
    Sizes,
    about,
    bench,
    embed,
    gumba,
    peer,
)

ROOT = Path(__file__).parent.parent
#: The context whose memory is measured: filled but for one token, for which llama.cpp would take another page.
MEMORY_CONTEXT = 2048


@dataclass(frozen=True)
class Target:
    """What gumba is to reach; None and False ask for nothing."""

    of_llama: float | None = None  # times llama.cpp's figure
    above_openvino: bool = False
    of_onnx: float | None = None  # times faster than onnxruntime in float32, and faster than its int8
    at_least: float | None = None
    at_most: float | None = None

    def words(self) -> str:
        """For the table."""
        parts = [f"{self.of_llama:g} x llama.cpp"] if self.of_llama is not None else []
        parts += ["above OpenVINO"] if self.above_openvino else []
        parts += [f"{self.of_onnx:g} x onnxruntime, above its int8"] if self.of_onnx is not None else []
        parts += [f"at least {self.at_least:g}"] if self.at_least is not None else []
        parts += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        return ", ".join(parts)

    def met(self, medians: dict[str, float]) -> bool | None:
        """Whether the target is met; None without a target, or if the figure that it is compared with was not measured."""
        ours = medians[GUMBA]
        checks = []
        if self.of_llama is not None:
            checks.append(ours >= self.of_llama * medians[LLAMA] if LLAMA in medians else None)
        if self.above_openvino:
            checks.append(ours > medians[OPENVINO] if OPENVINO in medians else None)
        if self.of_onnx is not None:
            known = ONNX in medians and ONNX_INT8 in medians
            checks.append(ours <= min(medians[ONNX] / self.of_onnx, medians[ONNX_INT8]) if known else None)
        if self.at_least is not None:
            checks.append(ours >= self.at_least)
        if self.at_most is not None:
            checks.append(ours <= self.at_most)
        if not checks or None in checks:
            return False if False in checks else None
        return all(checks)


@dataclass
class Row:
    """One line of the table: what is measured, and each engine's figure of every round."""

    what: str
    unit: str
    target: Target = field(default_factory=Target)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, engine: str, figure: float | None) -> None:
        """Add a figure, where there is one."""
        if figure is not None:
            self.figures.setdefault(engine, []).append(figure)

    @property
    def medians(self) -> dict[str, float]:
        return {engine: statistics.median(figures) for engine, figures in self.figures.items()}

    def markdown(self, engines: Sequence[str] = ENGINES, reference: str = LLAMA) -> str:
        """The line in Markdown; the ratio says how many times better gumba is, whichever way better is."""
        medians = self.medians
        ratio = ""
        if reference in medians:
            better = medians[GUMBA] / medians[reference]
            ratio = f"{better if self.unit == 'tokens/s' else 1 / better:.2f}"
        met = {True: "yes", False: "**no**", None: ""}[self.target.met(medians)]
        cells = [spread(self.figures.get(engine, [])) for engine in engines]
        return f"| {self.what}, {self.unit} | {' | '.join(cells)} | {ratio} | {self.target.words()} | {met} |"


def spread(figures: Sequence[float]) -> str:
    """Median and, with several rounds, lowest and highest."""
    if not figures:
        return "-"

    def short(x: float) -> str:
        return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"

    middle = short(statistics.median(figures))
    return middle if len(figures) == 1 else f"{middle} ({short(min(figures))}-{short(max(figures))})"


@dataclass
class Race:
    """One job's results: rows that come from the same processes, and the commands and the machine they come from."""

    rows: list[Row]
    rounds: int = 0
    date: str = ""
    commands: list[str] = field(default_factory=list)
    remark: str = ""
    machine: str = ""

    def ran(self, command: str) -> None:
        """Remember a command, once."""
        if command not in self.commands:
            self.commands.append(command)


# The jobs --------------------------------------------------------------------------------------------------------------


def throughput(
    options: argparse.Namespace, race: Race, model: Path, sizes: Sizes, prefill: Row | None, decode: Row | None,
    isa: str = "", engines: Sequence[str] = ENGINES,
) -> None:  # fmt: skip
    """Every engine in turn, ``race.rounds`` times."""
    for _ in range(race.rounds):
        for engine in engines:
            found = bench(engine, options, model, sizes, isa)
            if found is None:
                continue
            race.ran(found.command)
            for row, figure in ((prefill, found.prefill), (decode, found.decode)):
                if row is not None and figure is not None:
                    row.note(engine, figure)
                    tell(row, engine)


def race_q4_0(options: argparse.Namespace, rounds: int) -> Race:
    """The small model in q4_0."""
    prefill = Row("SmolLM2 135M q4_0, prompt of 512", "tokens/s", Target(of_llama=2.2, above_openvino=True))
    decode = Row("SmolLM2 135M q4_0, 64 tokens one by one", "tokens/s", Target(of_llama=1.4))
    race = Race([prefill, decode], rounds)
    throughput(options, race, options.q4_0, Sizes(), prefill, decode)
    return race


def race_q8_0(options: argparse.Namespace, rounds: int) -> Race:
    """The small model in q8_0."""
    prefill = Row("SmolLM2 135M q8_0, prompt of 512", "tokens/s", Target(of_llama=3, above_openvino=True))
    decode = Row("SmolLM2 135M q8_0, 64 tokens one by one", "tokens/s", Target(of_llama=1.3))
    race = Race([prefill, decode], rounds)
    throughput(options, race, options.q8_0, Sizes(), prefill, decode)
    return race


def race_deep(options: argparse.Namespace, rounds: int) -> Race:
    """After 6144 tokens. Filling that context is most of the time: two rounds, one measured repetition in each."""
    prefill = Row("q4_0, prompt of 512 after 6144", "tokens/s", Target(of_llama=3))
    decode = Row("q4_0, 64 tokens one by one after 6144", "tokens/s", Target(of_llama=3))
    race = Race([prefill, decode], min(rounds, 2))
    throughput(options, race, options.q4_0, Sizes(depth=6144, repeat=1), prefill, decode)
    return race


def race_batch(options: argparse.Namespace, rounds: int) -> Race:
    """Several sequences at once: from 8 on at least twice llama.cpp's batched decoding."""
    numbers = (4, 8, 16, 32)
    rows = [
        Row(
            f"q4_0, {number} sequences at once from an empty context, 64 steps",
            "tokens/s",
            Target(of_llama=2) if number >= 8 else Target(),
        )
        for number in numbers
    ]
    race = Race(rows, rounds)
    for number, row in zip(numbers, rows):
        throughput(options, race, options.q4_0, Sizes(prompt=0, sequences=number, repeat=2), None, row)
    return race


def race_big(options: argparse.Namespace, rounds: int) -> Race:
    """The shape of Llama 3.2 1B, and how near its decode comes to the memory's speed, measured in the same process."""
    prefill = Row("1.2 B shape q4_0, prompt of 512", "tokens/s", Target(of_llama=2.2))
    steps = Row("1.2 B shape q4_0, 32 tokens one by one", "tokens/s")
    share = Row("1.2 B shape q4_0, decode: of the read limit", "%", Target(at_least=90))
    race = Race([prefill, steps, share], min(rounds, 2))
    throughput(options, race, options.big, Sizes(gen=32, repeat=1), prefill, steps)
    for _ in range(2 * rounds):  # a shared machine's memory may change its speed within one of them
        ended = gumba(
            "bench", options.big, "--prompt", 0, "--gen", 16, "--repeat", 5, "--threads", options.threads, "--profile",
            "--json",
        )  # fmt: skip
        race.ran(ended.command)
        found = ended.json()
        limit, reached = found["limits"]["all"]["memory_gb_s"], found["decode"]["memory_gb_s"]
        share.note(GUMBA, 100 * reached / limit)
        race.remark = (
            f"In the last round decode read {reached:.1f} GB/s of weights and KV cache; the limit was {limit:.1f}."
        )
        tell(share, GUMBA)
    return race


def race_shapes(options: argparse.Namespace, rounds: int) -> Race:
    """Other architectures in the sizes of published models, which not every engine has."""
    race = Race([], rounds)
    for model in options.shapes:
        prefill = Row(f"{model.stem} shape q4_0, prompt of 512", "tokens/s", Target(of_llama=2))
        decode = Row(f"{model.stem} shape q4_0, 64 tokens one by one", "tokens/s", Target(of_llama=1.2))
        race.rows += [prefill, decode]
        throughput(options, race, model, Sizes(repeat=2), prefill, decode, engines=(GUMBA, LLAMA))
    return race


def race_avx2(options: argparse.Namespace, rounds: int) -> Race:
    """Both engines with no more than AVX2."""
    prefill = Row("AVX2 only, q4_0, prompt of 512", "tokens/s", Target(of_llama=1.5))
    decode = Row("AVX2 only, q4_0, 64 tokens one by one", "tokens/s")
    race = Race([prefill, decode], rounds)
    throughput(options, race, options.q4_0, Sizes(), prefill, decode, isa="avx2")
    return race


def race_start(options: argparse.Namespace, rounds: int) -> Race:
    """From starting the process to its end with one token: the first time ever (kernels are compiled), and later."""
    later = Row("later start, to one token", "s", Target(at_most=0.6))
    first = Row("first start ever, to one token", "s", Target(at_most=12))
    race = Race([later, first], rounds)
    command = ["run", options.q4_0, "-p", PROMPT, "-n", 1, "--temp", 0, "--threads", options.threads]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for row in (first, later):
                ended = gumba(*command, GUMBA_CACHE_DIR=cache)
                row.note(GUMBA, ended.wall_s)
                tell(row, GUMBA)
                race.ran(ended.command)
        ended = peer(
            options.peer_python, "llama_peer.py", "start", model=str(options.q4_0), text=PROMPT, threads=options.threads
        )
        later.note(LLAMA, ended.wall_s)
        tell(later, LLAMA)
        race.ran(ended.command)
    return race


def race_memory(options: argparse.Namespace, rounds: int) -> Race:
    """Peak resident memory with a full context, beyond the file's size and the KV cache."""
    beyond = Row("peak memory at context 2048, beyond file and KV cache", "MB", Target(at_most=150))
    whole = Row("peak memory at context 2048, in all", "MB")
    race = Race([beyond, whole], 1)
    sizes = Sizes(prompt=MEMORY_CONTEXT - 1, gen=0, repeat=1)
    kv_mb = None
    for engine in (GUMBA, LLAMA):
        found = bench(engine, options, options.q4_0, sizes)
        if found is None:
            continue
        kv_mb = found.kv_mb or kv_mb  # both keep float16 for the same tokens
        race.ran(found.command)
        whole.note(engine, found.rss_mb)
        if kv_mb is not None:
            beyond.note(engine, found.rss_mb - options.q4_0.stat().st_size / 1e6 - kv_mb)
            tell(beyond, engine)
    race.remark = f"The file has {options.q4_0.stat().st_size / 1e6:.0f} MB, the KV cache {kv_mb or 0:.0f} MB."
    return race


def race_convert(options: argparse.Namespace, rounds: int) -> Race:
    """A Hugging Face folder to a GGUF file; of llama.cpp only the second step (from f16), which its library can do."""
    race = Race([], rounds, remark="llama.cpp's figure is its second step alone, from a GGUF file in f16.")
    with tempfile.TemporaryDirectory() as folder:
        f16, ours, theirs = (Path(folder) / name for name in ("f16.gguf", "ours.gguf", "theirs.gguf"))
        gumba("convert", options.hf_folder, "-o", f16, "--type", "f16")
        for kind in ("q4_0", "q8_0"):
            time_row = Row(f"Hugging Face folder of SmolLM2 135M to {kind}", "s")
            memory_row = Row(f"peak memory of that, {kind}", "MB")
            race.rows += [time_row, memory_row]
            for _ in range(rounds):
                ours.unlink(missing_ok=True)
                mine = gumba("convert", options.hf_folder, "-o", ours, "--type", kind)
                order = {"model": str(f16), "out": str(theirs), "type": kind, "threads": options.threads}
                other = peer(options.peer_python, "llama_peer.py", "quantize", **order)
                for engine, ended in ((GUMBA, mine), (LLAMA, other)):
                    time_row.note(engine, ended.wall_s)
                    memory_row.note(engine, ended.rss_mb)
                    tell(time_row, engine)
                    race.ran(ended.command)
    return race


def race_embeddings(options: argparse.Namespace, rounds: int) -> Race:
    """Vectors of 500 short texts and of 100 texts of 400 tokens, by the models that tools/make_embedders.py makes."""
    race, least = Race([], rounds), dict[str, float]()
    for model in sorted({file.name.rpartition("-")[0] for file in options.embedders.glob("*.gguf")}):
        rows = {
            (kind, texts, clock): Row(f"{model} {kind}, {title}, {clock}", "s", Target(of_onnx=3))
            for kind in ("q8_0", "f16")
            for texts, title in (("short", "500 short texts"), ("long", "100 texts of 400 tokens"))
            for clock in ("wall", "CPU")
        }
        race.rows += rows.values()
        for _ in range(rounds):
            vectors = {}
            for engine, own in ((GUMBA, "q8_0"), (GUMBA, "f16"), *((name, "") for name in EMBEDDERS[1:])):
                found, command, vectors[f"{engine} {own}".strip()] = embed(engine, options, model, own)
                race.ran(command)
                for (kind, texts, clock), row in rows.items():
                    if own in ("", kind):
                        row.note(engine, found[texts][clock])
                        tell(row, engine)
            for name, made in vectors.items():
                cosine = float((made * vectors[EMBEDDERS[1]]).sum(axis=1).min())
                least[name] = min(cosine, least.get(name, 1.0))
    cosines = ", ".join(f"{name} {cosine:.5f}" for name, cosine in least.items())
    race.remark = f"Least cosine to the vectors of {EMBEDDERS[1]}: {cosines}."
    return race


#: By the name that ``--rows`` takes: the job, and the option without which it cannot run.
JOBS: dict[str, tuple[Callable[[argparse.Namespace, int], Race], str]] = {
    "q4_0": (race_q4_0, "q4_0"),
    "q8_0": (race_q8_0, "q8_0"),
    "deep": (race_deep, "q4_0"),
    "batch": (race_batch, "q4_0"),
    "big": (race_big, "big"),
    "shapes": (race_shapes, "shapes"),
    "avx2": (race_avx2, "peer_python_avx2"),
    "start": (race_start, "q4_0"),
    "memory": (race_memory, "q4_0"),
    "convert": (race_convert, "hf_folder"),
    "embeddings": (race_embeddings, "embedders"),
}


def tell(row: Row, engine: str) -> None:
    """Say on stderr what was just measured."""
    print(f"{row.what}, {row.unit}: {engine} {spread(row.figures[engine][-1:])}", file=sys.stderr, flush=True)


# The report ------------------------------------------------------------------------------------------------------------


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


INTRODUCTION = """\
Written by tools/race.py, never by hand. The engines take turns in one run, each measurement in a process of its own, with
the same file, threads and token counts; figures are medians (lowest-highest of the rounds), and the ratio says how many
times better gumba is: more tokens per second, less time, less memory. Rows that stand together come from one run; the shared
machine's speed, its memory's above all, moves between runs. "-": not measured, or the engine's tool cannot measure it."""

HOW = """\
- Tokens per second: the bare forward pass after a warm-up, no sampling, median of the repetitions in a process. OpenVINO's
  pipeline tells the time to the first token and per token after it (sampling included); after 6144 tokens its prefill is
  the difference of two prompts. ik_llama.cpp's llama-bench repacks weights at run time (-rtr 1) and reports means.
- Starts are whole processes, from the command to its end after one token. gumba's very first start compiles its kernels for
  this processor; they are kept.
- Memory is the peak resident set of a process that fills its context with one prompt.
- The read limit is measured just before and after every decode pass, in the same process, by `gumba bench --profile`: plain
  vector reads on all threads.
- Embeddings: tokenizing included, after a warm-up; CPU seconds are those of all threads. tools/embedding_peer.py says how each
  engine is used, tools/make_embedders.py how the models are made.
- The 1.2 B shape has the sizes of Llama 3.2 1B and random weights (tools/make_big_gguf.py), the others those of the models
  that they are named after."""


def report(races: dict[str, Race], engines: dict[str, str], machine: str) -> str:
    """The whole of BENCHMARKS.md."""
    ordered = [(name, races[name]) for name in JOBS if name in races]
    tables = []
    for columns, reference in ((ENGINES, LLAMA), (EMBEDDERS, ONNX)):
        rows = [row for name, race in ordered for row in race.rows if (name == "embeddings") == (columns is EMBEDDERS)]
        head = f"| | {' | '.join(columns)} | ratio to {reference} | target | met? |\n|{' --- |' * (len(columns) + 4)}"
        tables += ["\n".join([head, *(row.markdown(columns, reference) for row in rows)])] if rows else []
    sources = []
    for name, race in ordered:
        elsewhere = race.machine and race.machine != machine
        remark = (f" On {race.machine}." if elsewhere else "") + (f" {race.remark}" if race.remark else "")
        commands = "\n".join(f"  - `{command}`" for command in race.commands)
        sources.append(f"- **{name}**, {race.date or 'undated'}, rounds: {race.rounds}.{remark}\n{commands}")
    parts = ["# Benchmarks", INTRODUCTION, "\n".join([f"- {machine}", *(f"- {text}" for text in engines.values())])]
    parts += [*tables, "## How", HOW, "## Where each row comes from", "\n".join(sources)]
    return "\n\n".join(parts) + "\n"


def save(path: Path, races: dict[str, Race], engines: dict[str, str], machine: str) -> None:
    """Keep everything that BENCHMARKS.md is written from."""
    kept = {"machine": machine, "engines": engines, "races": {name: asdict(race) for name, race in races.items()}}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def restore(path: Path) -> tuple[dict[str, Race], dict[str, str]]:
    """What ``save`` kept: the races and the engines' versions."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    races = {}
    for name, race in kept["races"].items():
        rows = [Row(**{**row, "target": Target(**row["target"])}) for row in race["rows"]]
        races[name] = Race(**{"machine": kept["machine"], **race, "rows": rows})
    return races, kept["engines"]


# The command -----------------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--q4_0", type=Path, metavar="MODEL", help="SmolLM2 135M in q4_0")
    parser.add_argument("--q8_0", type=Path, metavar="MODEL", help="SmolLM2 135M in q8_0")
    parser.add_argument("--big", type=Path, metavar="MODEL", help="what tools/make_big_gguf.py writes")
    parser.add_argument("--shapes", nargs="+", type=Path, metavar="MODEL", help="what it writes with other shapes")
    parser.add_argument("--peer-python", help="the Python that has llama-cpp-python")
    parser.add_argument("--peer-python-avx2", help="one whose llama-cpp-python is built for AVX2 and no more")
    parser.add_argument("--openvino-python", help="the Python that has openvino-genai")
    parser.add_argument("--ik-bench", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--ik-version", default="", help="which ik_llama.cpp that is: it does not know itself")
    parser.add_argument("--hf-folder", type=Path, help="also time the conversion of this folder")
    parser.add_argument("--embedders", type=Path, help="the folder that tools/make_embedders.py wrote")
    parser.add_argument("--embed-python", help="the Python that has sentence-transformers and onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine (default 3; long rows take 2)")
    parser.add_argument("--rows", nargs="+", choices=JOBS, metavar="ROWS", help=f"only these of {', '.join(JOBS)}")
    parser.add_argument("--reuse", action="store_true", help="keep what benchmarks.json has of the other rows")
    parser.add_argument("--date", default="", help="stands with the rows that are measured")
    parser.add_argument("--write", action="store_true", help="write BENCHMARKS.md and benchmarks.json; otherwise print")
    return parser.parse_args()


def main() -> None:
    """Race, then write or print."""
    options = parse()
    kept = ROOT / "benchmarks.json"
    races, engines = restore(kept) if options.reuse and kept.exists() else ({}, {})
    machine = f"{processor()}, threads: {options.threads}; Python {platform.python_version()}"
    found = {engine: about(engine, options) for engine in (*ENGINES, ONNX)}
    engines |= {engine: text for engine, text in found.items() if text is not None}
    for name, (job, needs) in JOBS.items():
        if (options.rows is None or name in options.rows) and getattr(options, needs) is not None:
            races[name] = job(options, options.rounds)
            races[name].date, races[name].machine = options.date, machine
            if options.write:
                save(kept, races, engines, machine)
    text = report(races, engines, machine)
    if options.write:
        (ROOT / "BENCHMARKS.md").write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
