"""Race gumba against llama.cpp on files of many block formats, in slices, and print the tables.

    python tools/make_big_gguf.py big-q4_0.gguf --type q4_0       (and so on: SHAPE-TYPE.gguf)
    python tools/race_formats.py --files big-q4_k.gguf big-q5_k.gguf --keep races.json --rounds 3 \\
        --peer "llama.cpp=../llama/bin/python" --peer "ik_llama.cpp=../llama/bin/python,../ik"
    python tools/race_formats.py --files big-q4_k.gguf --keep races.json --isa avx2 --peer "llama.cpp=PYTHON,FOLDER"
    python tools/race_formats.py --keep races.json                the tables of all that was measured so far
    python tools/race_formats.py --keep docs/benchmark-formats.json --write docs/benchmark-formats.md

Every measurement is a process of its own, and the engines take turns, ``--rounds`` times: gumba, gumba on the q4_0 file of
the same shape (SHAPE-q4_0.gguf beside the file), then each peer. Figures are medians over the rounds. ``--keep`` takes them
up between calls, so that a race may be run in slices of a few minutes; more rounds of a file add to those it has. A file of
``--share-from`` MB or more also gets the share of the read limit that gumba's decode reaches, both measured in one process.

A peer is NAME=PYTHON or NAME=PYTHON,FOLDER: the Python that has numpy and llama-cpp-python (or, for a NAME that begins with
ik, ik-llama-cpp-python), and the folder where that package lies otherwise. A file that a peer refuses has no figure there.
Run it with the Python that has gumba, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines import GUMBA, about, gumba, peer
from race import processor

#: gumba on the q4_0 file of the same shape.
BASE = "gumba, q4_0"
PARTS = ("prefill", "decode")


class Results:
    """Figures of all files so far: by file and instruction set, then engine, prefill or decode, one per round."""

    def __init__(self, kept: Path | None) -> None:
        self._path = kept
        self.about: dict[str, Any] = {"engines": {}, "conditions": {}, "refused": {}}
        self.files: dict[str, dict[str, Any]] = {}
        if kept is not None and kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
            self.about, self.files = found["about"], found["files"]

    def begin(self, conditions: Mapping[str, Any], engines: Mapping[str, str]) -> None:
        """Begin a slice. Figures of other conditions, or of another version of an engine, do not go into one table."""
        for kind, found in (("conditions", conditions), ("engines", engines)):
            for name, value in found.items():
                before = self.about[kind].setdefault(name, value)
                if before != value:
                    raise SystemExit(
                        f"{self._path}: {name}: {before!r} there, {value!r} now: keep these figures in another file"
                    )

    def refuse(self, key: str, engine: str, reason: str) -> None:
        """Keep why a peer has no figure."""
        self.about["refused"].setdefault(key, {})[engine] = reason
        print(f"{key}: {engine}: {reason}", file=sys.stderr, flush=True)
        self.save()

    def note(self, key: str, engine: str, **figures: float | None) -> None:
        """Add one measurement, and keep it."""
        engines = self.files.setdefault(key, {})
        for name, figure in figures.items():
            if figure is not None:
                engines.setdefault(engine, {}).setdefault(name, []).append(figure)
        shown = ", ".join(f"{name} {figure:.1f}" for name, figure in figures.items() if figure is not None)
        print(f"{key}: {engine} {shown}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        """Write the file that the next call continues."""
        if self._path is not None:
            text = json.dumps({"about": self.about, "files": self.files}, indent=1)
            self._path.write_text(text + "\n", encoding="utf-8")

    def median(self, key: str, engine: str, name: str) -> float | None:
        """Of all rounds; None where there is none."""
        figures = self.files[key].get(engine, {}).get(name)
        return statistics.median(figures) if figures else None


def script_of(name: str) -> str:
    """The script that measures the peer of this name."""
    return "ik_peer.py" if name.startswith("ik") else "llama_peer.py"


def race_file(options: argparse.Namespace, results: Results, path: Path) -> None:
    """All rounds of one file."""
    key = f"{path.stem}, {options.isa}" if options.isa else path.stem
    environment = {"GUMBA_ISA": options.isa}
    sizes = ("--prompt", options.prompt, "--gen", options.gen, "--repeat", options.repeat)
    order = {"prompt": options.prompt, "gen": options.gen, "repeat": options.repeat, "depth": 0, "sequences": 1}
    base = path.with_name(f"{path.stem.rpartition('-')[0]}-q4_0.gguf")
    ours = {GUMBA: path} | ({BASE: base} if base != path and base.exists() else {})
    for _ in range(options.rounds):
        for engine, model in ours.items():
            command = ("bench", model, *sizes, "--threads", options.threads, "--json")
            found = gumba(*command, **environment).json()
            results.note(key, engine, prefill=found["prefill_tokens_per_s"], decode=found["decode_tokens_per_s"])
        for name, python in options.peer.items():
            try:
                found = peer(python, script_of(name), "bench", model=str(path), threads=options.threads, **order).json()
            except SystemExit as failure:  # a type that it does not know, for one
                results.refuse(key, name, str(failure).partition(" of: ")[0])
                continue
            results.note(key, name, prefill=found["prefill_tokens_per_s"], decode=found["decode_tokens_per_s"])
        if path.stat().st_size >= options.share_from * 1e6:
            command = ("bench", path, "--prompt", 0, "--gen", 16, "--repeat", 5, "--threads", options.threads)
            found = gumba(*command, "--profile", "--json", **environment).json()
            limit = found["limits"]["all"]["memory_gb_s"]
            results.note(key, GUMBA, share=100 * found["decode"]["memory_gb_s"] / limit, limit_gb_s=limit)


# The tables ------------------------------------------------------------------------------------------------------------


def short(figure: float | None, digits: int | None = None) -> str:
    """Three digits or so; "-" for none."""
    if figure is None:
        return "-"
    return f"{figure:.{digits}f}" if digits is not None else f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}"


def over(a: float | None, b: float | None) -> str:
    """Their ratio."""
    return short(a / b, 2) if a is not None and b else "-"


def table(results: Results, part: str, keys: Sequence[str]) -> str:
    """Markdown: gumba's tokens per second, its ratio to q4_0 of the same shape, then each peer's, and the ratio to it."""
    names = {name: None for key in keys for name in results.files[key] if name not in (GUMBA, BASE)}
    own = ["of the read limit, %"] if part == "decode" else []
    heads = ["file", GUMBA, "to its q4_0", *own]
    for name in names:
        heads += [name, "ratio"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for key in keys:
        ours, base = (results.median(key, engine, part) for engine in (GUMBA, BASE))
        cells = [key, short(ours), over(ours, base)]
        cells += [short(results.median(key, GUMBA, "share"), 0)] if own else []
        for name in names:
            theirs = results.median(key, name, part)
            cells += [short(theirs), over(ours, theirs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


INTRODUCTION = """\
# Benchmarks of block formats

Written by tools/race_formats.py, never by hand. Tokens per second with the same file, threads and token counts for every engine;
each measurement is a process of its own, and the engines take turns. "Ratio" says how many times faster gumba is; "to its q4_0",
how its speed compares with that on the q4_0 file of the same shape; "of the read limit", what decoding reads of weights and cache
per second, as a share of plain vector reads by all threads, measured just before and after in the same process. Files named big-*
have the sizes of Llama 3.2 1B (tools/make_big_gguf.py), the others those of their models; q*_k files hold that type alone,
q4_k_m llama.cpp's mixture. The shared machine's speed moves between rows."""


def report(results: Results) -> str:
    """All tables: of each instruction set prefill, then decode."""
    conditions = dict(results.about["conditions"])
    machine = conditions.pop("machine", "")
    facts = [", ".join([machine, *(f"{name}: {value}" for name, value in conditions.items())])]
    facts += results.about["engines"].values()
    parts = ["\n".join(f"- {fact}" for fact in facts)]
    isas = {key.partition(", ")[2]: None for key in results.files}
    for isa in isas:
        keys = [key for key in results.files if key.partition(", ")[2] == isa]
        for part in PARTS:
            title = f"{part}, tokens/s" + (f", {isa}" if isa else "")
            parts.append(f"{title}\n\n{table(results, part, keys)}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for key, engines in results.about["refused"].items():
        for engine, reason in engines.items():
            reasons.setdefault((engine, reason), []).append(key)
    lines = [f"- {engine} has no figure of {', '.join(keys)}: {why}" for (engine, why), keys in reasons.items()]
    return "\n\n".join([*parts, "\n".join(lines)] if lines else parts) + "\n"


def versions(options: argparse.Namespace) -> dict[str, str]:
    """Which engines these are."""
    found = {GUMBA: about(GUMBA, options) or ""}
    for name, python in options.peer.items():
        facts: Mapping[str, str] = peer(python, script_of(name), "about").json()
        found[name + (f", {options.isa}" if options.isa else "")] = (
            f"{name}: {facts['version']}: {facts['features'].strip().rstrip('|').strip()}"
        )
    return found


def named(text: str) -> tuple[str, str]:
    """NAME=PYTHON of the command line."""
    name, equals, python = text.partition("=")
    if not (name and equals and python):
        raise argparse.ArgumentTypeError(f"expected NAME=PYTHON or NAME=PYTHON,FOLDER, not {text!r}")
    return name, python


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", type=Path, default=[], metavar="MODEL", help="SHAPE-TYPE.gguf files")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="JSON with the figures of all calls")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables to a file, with an introduction")
    parser.add_argument("--peer", action="append", type=named, default=[], metavar="NAME=PYTHON[,FOLDER]")
    parser.add_argument("--isa", default="", help="what GUMBA_ISA is set to; the peers must be built for it")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine (default 3)")
    parser.add_argument("--repeat", type=int, default=1, help="runs in a process, whose median counts (default 1)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default 512)")
    parser.add_argument("--gen", type=int, default=64, help="single steps (default 64)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share-from", type=float, default=300, help="MB of a file that no cache holds (default 300)")
    options = parser.parse_args()
    options.peer = dict(options.peer)
    return options


def main() -> None:
    """Race what is named, then print everything."""
    options = parse()
    results = Results(options.keep)
    if options.files:
        conditions = {name: getattr(options, name) for name in ("threads", "prompt", "gen")}
        results.begin({"machine": f"{processor()}; Python {platform.python_version()}"} | conditions, versions(options))
    for path in options.files:
        race_file(options, results, path)
    if options.write is not None:
        options.write.write_text(f"{INTRODUCTION}\n\n{report(results)}", encoding="utf-8")
    elif results.files:
        print(report(results))


if __name__ == "__main__":
    main()
