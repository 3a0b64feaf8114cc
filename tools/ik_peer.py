"""ik_llama.cpp's side of tools/race_formats.py: one measurement per process, through ik-llama-cpp-python's low-level API.

    python ik_peer.py bench '{"model": "x.gguf", "prompt": 512, "gen": 64, "repeat": 3, "threads": 2}'
    python ik_peer.py about '{}'

Each prints one JSON object. Weights are repacked as they are loaded (llama-bench's -rtr 1), flash attention is on, the KV
cache float16: its fastest way. Prompt and single steps both start from an empty context.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from ik_llama_cpp import _ctypes_api as ik

BATCH = 512


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, user_data: Any) -> None:
    """Swallow ik_llama.cpp's log."""


class Peer:
    """A loaded model and a context."""

    def __init__(self, path: str, threads: int, n_ctx: int) -> None:
        ik._lib.llama_log_set(_silent, None)
        ik.llama_backend_init()
        parameters = ik.llama_model_default_params()
        parameters.repack_tensors = True
        parameters.use_mmap = False  # what is repacked is not mapped
        model = ik.llama_model_load_from_file(path.encode(), parameters)
        if not model:
            sys.exit(f"ik_llama.cpp cannot load {path}")
        settings = ik.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = n_ctx, 2048, BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn = True
        self.context = ik.llama_init_from_model(model, settings)
        if not self.context:
            sys.exit(f"ik_llama.cpp cannot make a context of {n_ctx} tokens")
        self.n_vocab = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(model))
        self.batch = ik.llama_batch_init(BATCH, 0, 1)

    def decode(self, tokens: np.ndarray, position: int) -> None:
        """One ``llama_decode`` of tokens from ``position`` on; the last one's logits are wanted and waited for."""
        n = self.batch.n_tokens = len(tokens)
        for k in range(n):
            self.batch.token[k], self.batch.pos[k], self.batch.logits[k] = int(tokens[k]), position + k, k == n - 1
            self.batch.n_seq_id[k], self.batch.seq_id[k][0] = 1, 0
        result = ik.llama_decode(self.context, self.batch)
        if result != 0:
            sys.exit(f"llama_decode failed with {result}")
        ik.llama_get_logits_ith(self.context, n - 1)

    def clear(self) -> None:
        """Empty the KV cache."""
        ik.llama_kv_cache_clear(self.context)


def timed(work: Callable[[], None]) -> float:
    """Seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bench(order: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of a prompt and of single steps; medians of ``repeat`` runs after one that does not count."""
    n_prompt, n_gen = order["prompt"], order["gen"]
    peer = Peer(order["model"], order["threads"], -(-(max(n_prompt, n_gen) + 1) // 256) * 256)
    tokens = np.random.default_rng(0).integers(0, peer.n_vocab, n_prompt + n_gen)

    def prompt() -> None:
        for start in range(0, n_prompt, BATCH):
            peer.decode(tokens[start : min(start + BATCH, n_prompt)], start)

    def generate() -> None:
        for k in range(n_gen):
            peer.decode(tokens[n_prompt + k : n_prompt + k + 1], k)

    speeds: dict[str, list[float]] = {"prefill": [], "decode": []}
    for k in range(order["repeat"] + 1):
        for name, n, work in (("prefill", n_prompt, prompt), ("decode", n_gen, generate)):
            peer.clear()
            spent = timed(work) if n else 0.0
            if k and n:
                speeds[name].append(n / spent)
    return {f"{name}_tokens_per_s": statistics.median(x) if x else None for name, x in speeds.items()}


def about(order: dict[str, Any]) -> dict[str, Any]:
    """Which ik_llama.cpp this is, and what it was built for."""
    ik._lib.llama_print_system_info.restype = ctypes.c_char_p
    return {
        "version": f"ik-llama-cpp-python {version('ik-llama-cpp-python')}",
        "features": ik._lib.llama_print_system_info().decode(),
    }


JOBS = {"bench": bench, "about": about}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
