"""What gumba computes from a model file beside what llama.cpp computes from it: on the same tokens of a real text.

    python tools/quality.py q4_k_m.gguf q6_k.gguf --text english.txt de.txt page.1.gz --peer-python ../llama/bin/python
    python tools/quality.py ours-q4_k_m.gguf theirs-q4_k_m.gguf --reference f16.gguf --text ...

The text is cut into windows of ``--ctx`` tokens, each processed alone, and the second half of each is scored: llama.cpp's
rule. Per file: perplexity of both engines and their ratio, the mean Kullback-Leibler divergence of gumba's predictions from
llama.cpp's (KL, in nats), how often both find the same token likeliest; with ``--reference`` (the float file that the others
were made of, run by llama.cpp), how far each engine is from it. Then ``--gen`` tokens of greedy decoding after each of a few
prompts: how many are equal, where the two part, and by how much each engine's token is ahead of the second best there.

``--text`` takes files of any language, compressed by gzip or not, and uses the first ``--characters`` of each. Exits with 1
when a file's two perplexities differ by more than ``--budget``. Run it with the Python that has gumba.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engines import peer, peer_command
from gumba import GGUFFile
from gumba.runner.load import Chunk, LoadConfig, Model, load_model
from gumba.tokenizer.tokenizer import Tokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Die wichtigsten Städte Deutschlands sind",
    "Once upon a time, in a small village by the sea,",
)
#: Rows of logits whose probabilities are computed at a time, in float64.
ROWS = 16


# Logits ----------------------------------------------------------------------------------------------------------------


class Theirs:
    """llama.cpp's logits of a text's windows, read from a process that computes them."""

    def __init__(self, output: Any) -> None:
        self._output = output
        header = json.loads(output.readline())
        self.windows = np.array(header["windows"], np.int32)
        self.bos: int | None = header["bos"]
        self._shape = (self.windows.shape[1] // 2 - 1, header["n_vocab"])

    def next_window(self) -> np.ndarray:
        """The scored rows of the next window: float32 [ctx/2 - 1, n_vocab]."""
        rows = np.empty(self._shape, np.float32)
        if self._output.readinto(rows.reshape(-1).view(np.uint8).data) != rows.nbytes:
            sys.exit("llama.cpp ended early")
        return rows


@contextmanager
def theirs(python: str, **order: Any) -> Iterator[Theirs]:
    """A process of llama.cpp that computes one file's logits."""
    command, environment = peer_command(python, "llama_peer.py", "logits", order)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        try:
            yield Theirs(process.stdout)
        finally:
            process.kill()


def window_logits(model: Model, ids: np.ndarray) -> np.ndarray:
    """gumba's rows of a window, as ``Theirs.next_window`` has them."""
    first = len(ids) // 2
    pages, state = model.kv.allocate(-(-len(ids) // model.kv.page_tokens)), model.allocate_state()
    try:
        model.forward([Chunk(ids[:first], 0, pages, "none", state=state)])
        return model.forward([Chunk(ids[first:-1], first, pages, "all", state=state)]).copy()
    finally:
        model.kv.release(pages)
        model.release_state(state)


def greedy(model: Model, prompt: Sequence[int], gen: int) -> tuple[list[int], list[float]]:
    """The likeliest ``gen`` tokens, one by one, and how far each is ahead of the second best."""
    ids: list[int] = []
    margins: list[float] = []
    pages = model.kv.allocate(-(-(len(prompt) + gen) // model.kv.page_tokens))
    state, step, position = model.allocate_state(), list(prompt), 0
    try:
        while len(ids) < gen:
            row = model.forward([Chunk(step, position, pages, "last", state=state)])[0]
            position += len(step)
            second, best = np.partition(row, -2)[-2:]
            ids.append(int(row.argmax()))
            margins.append(float(best - second))
            step = ids[-1:]
    finally:
        model.kv.release(pages)
        model.release_state(state)
    return ids, margins


# Figures ---------------------------------------------------------------------------------------------------------------


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """float32 [n, n_vocab] -> float64, the logarithm of the softmax of each row."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


@dataclass
class Figures:
    """Of each scored token: the loss of each engine, the divergence and the agreement of each pair."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    divergences: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    agreements: dict[tuple[str, str], list[bool]] = field(default_factory=dict)

    def add(self, rows: Mapping[str, np.ndarray], targets: np.ndarray) -> None:
        """Score a window: the rows of each engine, the first one's being what the others are compared with, and so on."""
        for start in range(0, len(targets), ROWS):
            some = targets[start : start + ROWS, None]
            logs = {name: log_probabilities(logits[start : start + ROWS]) for name, logits in rows.items()}
            for name, log in logs.items():
                self.losses.setdefault(name, []).extend(-np.take_along_axis(log, some, 1)[:, 0])
            names = list(logs)
            for i, a in enumerate(names):
                weights = np.exp(logs[a])
                for b in names[i + 1 :]:
                    divergence = (weights * (logs[a] - logs[b])).sum(axis=1)
                    self.divergences.setdefault((a, b), []).extend(divergence)
                    same = logs[a].argmax(axis=1) == logs[b].argmax(axis=1)
                    self.agreements.setdefault((a, b), []).extend(same)

    def perplexity(self, name: str) -> float:
        return float(np.exp(np.mean(self.losses[name])))

    def ratio(self, name: str, other: str) -> tuple[float, float]:
        """Perplexity of ``name`` over that of ``other``, and one standard error of it."""
        off = np.subtract(self.losses[name], self.losses[other])
        ratio = float(np.exp(off.mean()))
        return ratio, float(ratio * off.std(ddof=1) / np.sqrt(len(off)))

    def report(self) -> dict[str, Any]:
        """Everything, for JSON."""
        pairs = {f"{a} to {b}": pair for pair in self.divergences for a, b in [pair]}
        return {
            "perplexity": {name: self.perplexity(name) for name in self.losses},
            "ratio": dict(zip(("value", "error"), self.ratio("gumba", "llama.cpp"))),
            "kl": {name: float(np.mean(self.divergences[pair])) for name, pair in pairs.items()},
            "kl_99": {name: float(np.quantile(self.divergences[pair], 0.99)) for name, pair in pairs.items()},
            "same_best": {name: float(np.mean(self.agreements[pair])) for name, pair in pairs.items()},
            "scored": len(self.losses["gumba"]),
        }


def parting(ours: tuple[list[int], list[float]], others: Mapping[str, Any]) -> dict[str, Any]:
    """Where two greedy answers part: the number of equal tokens before, and the margins of the two that differ."""
    ids, margins = ours
    equal = next((k for k, (a, b) in enumerate(zip(ids, others["ids"])) if a != b), len(ids))
    found: dict[str, Any] = {"gumba": ids, "llama.cpp": others["ids"], "equal": equal}
    if equal < len(ids):
        found["margins"] = {"gumba": margins[equal], "llama.cpp": others["margins"][equal]}
    return found


# The command -----------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, path: Path, text: str) -> dict[str, Any]:
    """All figures of one file."""
    common = {"file": text, "ctx": options.ctx, "threads": options.threads}
    with ExitStack() as stack:
        file = stack.enter_context(GGUFFile(path))
        tokenizer = Tokenizer.from_gguf(file)
        model = load_model(file, LoadConfig(n_ctx=2048, kv_type=options.kv_type, n_threads=options.threads))
        stack.callback(model.close)
        peers = {}
        if options.reference is not None:
            peers["reference"] = stack.enter_context(
                theirs(options.peer_python, model=str(options.reference), **common)
            )
        peers["llama.cpp"] = stack.enter_context(theirs(options.peer_python, model=str(path), **common))
        windows, bos = peers["llama.cpp"].windows, peers["llama.cpp"].bos
        tokens = tokenizer.encode(Path(text).read_bytes().decode())
        found: dict[str, Any] = {"same_tokens": windows.reshape(-1).tolist() == tokens[: windows.size]}
        figures = Figures()
        for window in windows:
            rows = {name: source.next_window() for name, source in peers.items()}
            targets = window[len(window) // 2 + 1 :].copy()
            if bos is not None:
                window[0] = bos
            rows["gumba"] = window_logits(model, window)
            figures.add(rows, targets)
        found |= figures.report()
        if options.gen:
            order = {"model": str(path), "texts": PROMPTS, "gen": options.gen, "threads": options.threads}
            answers = peer(options.peer_python, "llama_peer.py", "greedy", **order).json()["texts"]
            found["greedy"] = [parting(greedy(model, answer["prompt"], options.gen), answer) for answer in answers]
    return found


def tell(name: str, found: Mapping[str, Any]) -> None:
    """Print one file's figures."""
    perplexities = ", ".join(f"{engine} {value:.4f}" for engine, value in found["perplexity"].items())
    ratio = found["ratio"]
    print(
        f"{name}: perplexity {perplexities} ({found['scored']} tokens); "
        f"gumba / llama.cpp {ratio['value']:.5f} +- {ratio['error']:.5f}"
    )
    for pair, kl in found["kl"].items():
        print(f"  {pair}: KL {kl:.6f} (99 %: {found['kl_99'][pair]:.5f}), same best {found['same_best'][pair]:.2%}")
    if not found["same_tokens"]:
        print("  gumba's tokenizer cuts this text otherwise; llama.cpp's tokens were used")
    for prompt, answer in zip(PROMPTS, found.get("greedy", ())):
        equal, n = answer["equal"], len(answer["gumba"])
        line = f"  {prompt!r}: {equal} of {n} greedy tokens equal"
        if equal < n:
            ahead = ", ".join(
                f"{engine} takes {answer[engine][equal]} by {margin:.3f}"
                for engine, margin in answer["margins"].items()
            )
            line += f"; then {ahead}"
        print(line)
    sys.stdout.flush()


def assembled(paths: Sequence[Path], characters: int) -> str:
    """The first ``characters`` of each file, one after another."""
    parts = []
    for path in paths:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")
        parts.append(text[:characters])
    return "\n\n".join(parts)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="GGUF files")
    parser.add_argument("--text", nargs="+", type=Path, required=True, metavar="FILE", help="UTF-8 texts, .gz or plain")
    parser.add_argument("--characters", type=int, default=1 << 30, help="use so much of each text (default: all)")
    parser.add_argument("--peer-python", required=True, help="PYTHON that has llama-cpp-python, or PYTHON,FOLDER")
    parser.add_argument("--reference", type=Path, metavar="MODEL", help="the float file that the models were made of")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a window, at most 1024 (default 512)")
    parser.add_argument("--gen", type=int, default=64, help="greedy tokens after each prompt (default 64; 0: none)")
    parser.add_argument("--kv-type", help="gumba's KV cache (default: its own choice)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.005, help="greatest relative difference (0.005 is 0.5 %%)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures and token ids to FILE")
    return parser.parse_args()


def main() -> None:
    """Measure and compare."""
    options = parse()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_bytes(assembled(options.text, options.characters).encode())
        for path in options.models:
            results[path.name] = measure(options, path, str(text))
            tell(path.name, results[path.name])
            if options.json is not None:
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    apart = [name for name, found in results.items() if not abs(found["ratio"]["value"] - 1) <= options.budget]
    if apart:
        sys.exit(f"perplexities further apart than {options.budget:.1%}: {', '.join(apart)}")


if __name__ == "__main__":
    main()
