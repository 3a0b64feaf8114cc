"""Perplexity of gumba and of llama.cpp on the same model files and the same text.

    python tools/quality.py q4_0.gguf q8_0.gguf --text page.txt --peer-python ../llama/bin/python --threads 2

gumba's figure comes from ``gumba perplexity --json``, llama.cpp's from tools/llama_peer.py: both cut the text into
windows of ``--ctx`` tokens, put BOS in place of each window's first token where the model adds one, and score the
second half. Exits with 1 when a file's two figures differ by more than ``--budget``. Run it with the Python that has
gumba.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PEER = Path(__file__).with_name("llama_peer.py")


def last_json(command: list[str]) -> dict[str, Any]:
    """Run ``command`` and read the JSON object on its last line."""
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="GGUF files")
    parser.add_argument("--text", type=Path, required=True, help="a UTF-8 text of many thousand words")
    parser.add_argument("--peer-python", required=True, help="the Python that has llama-cpp-python")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.005, help="greatest relative difference (0.005 is 0.5 %%)")
    options = parser.parse_args()
    failed = False
    for model in options.models:
        order = {"model": str(model), "file": str(options.text), "ctx": options.ctx, "threads": options.threads}
        theirs = last_json([options.peer_python, str(PEER), "perplexity", json.dumps(order)])
        ours = last_json(
            [
                *(sys.executable, "-m", "gumba", "perplexity", str(model), str(options.text)),
                *("--ctx", str(options.ctx), "--threads", str(options.threads), "--json"),
            ]
        )
        ratio = ours["perplexity"] / theirs["perplexity"]
        failed |= not abs(ratio - 1) <= options.budget
        print(
            f"{model.name}: gumba {ours['perplexity']:.4f}, llama.cpp {theirs['perplexity']:.4f} "
            f"(+- {theirs['error']:.2f}, {theirs['windows']} windows of {options.ctx}), ratio {ratio:.5f}",
            flush=True,
        )
    if failed:
        sys.exit(f"further apart than {options.budget:.1%}")


if __name__ == "__main__":
    main()
