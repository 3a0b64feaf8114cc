"""OpenVINO GenAI's side of the races: one measurement per process, on the GGUF file itself.

Run by the Python that has openvino-genai (tools/race.py does it):

    python openvino_peer.py bench '{"model": "x.gguf", "prompt": 512, "gen": 64, "depth": 0, "repeat": 3, "threads": 2}'
    python openvino_peer.py about '{}'

Each prints one JSON object. The pipeline is OpenVINO's default one for a processor. Prompts are random token ids, new ones
each time, so that nothing comes from a prefix cache; their number and that of generated tokens is checked in the results.
A pipeline tells the time to the first token and, from there on, the time per token: prefill is the prompt's tokens over
the former (after ``depth`` tokens: over the difference of two prompts), decode one over the latter.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai


class Peer:
    """A loaded pipeline."""

    def __init__(self, path: str, threads: int) -> None:
        self._pipe = genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        self._random = np.random.default_rng(0)

    def run(self, prompt: int, gen: int) -> tuple[float, float]:
        """Seconds to the first token after ``prompt`` tokens, and per token after it, ``gen`` tokens in all."""
        ids = self._random.integers(300, 40000, (1, prompt), dtype=np.int64)
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = gen, True, False
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        found = self._pipe.generate(inputs, config).perf_metrics
        counts = (found.get_num_input_tokens(), found.get_num_generated_tokens())
        if counts != (prompt, gen):
            sys.exit(f"OpenVINO processed {counts} tokens, {(prompt, gen)} were requested")
        return found.get_ttft().mean / 1e3, found.get_tpot().mean / 1e3


def bench(order: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of a prompt and of single steps after ``depth`` tokens (at least 1); medians of ``repeat`` runs."""
    n_prompt, n_gen, depth, repeat = (order[key] for key in ("prompt", "gen", "depth", "repeat"))
    peer = Peer(order["model"], order["threads"])
    peer.run(n_prompt or 1, 2)  # warm-up
    prefill, decode = [], []
    for _ in range(repeat):
        first_s, each_s = peer.run(max(depth, 1), n_gen + 1)
        decode.append(1 / each_s)
        if n_prompt:
            whole_s, _ = peer.run(depth + n_prompt, 1 if depth else 2)
            prefill.append(n_prompt / (whole_s - first_s if depth else whole_s))
    return {
        "prefill_tokens_per_s": statistics.median(prefill) if prefill else None,
        "decode_tokens_per_s": statistics.median(decode),
    }


def about(order: dict[str, Any]) -> dict[str, Any]:
    """Which OpenVINO this is."""
    return {"version": f"OpenVINO GenAI {genai.__version__}"}


JOBS = {"bench": bench, "about": about}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
