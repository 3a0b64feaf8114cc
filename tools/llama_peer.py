"""llama.cpp's side of the races: one measurement per process, through llama-cpp-python's low-level API.

Run by the Python that has llama-cpp-python (tools/race.py and tools/quality.py do it); needs numpy beside it.

    python llama_peer.py bench '{"model": "x.gguf", "prompt": 512, "gen": 64, "depth": 0, "sequences": 1, ...}'
    python llama_peer.py start '{"model": "x.gguf", "text": "The capital of France is", "threads": 2}'
    python llama_peer.py logits '{"model": "x.gguf", "file": "text.txt", "ctx": 512, "threads": 2}'
    python llama_peer.py greedy '{"model": "x.gguf", "texts": ["The capital of France is"], "gen": 64, "threads": 2}'
    python llama_peer.py quantize '{"model": "f16.gguf", "out": "q.gguf", "type": "q4_0", "threads": 2}'
    python llama_peer.py tensor_types '{"model": "f16.gguf", "types": {"q4_k_m": 15}}'
    python llama_peer.py about '{}'

Each prints one JSON object; what ``logits`` prints before, it says itself. Settings are llama-bench's: batches of at most
2048 tokens in pieces of 512, automatic flash attention, float16 KV cache, no sampling inside what is timed.
"""

from __future__ import annotations

import ctypes
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np

MAX_BATCH = 2048

#: llama.cpp's whole-file types (llama_ftype), by name: "f16", "q4_k_m".
FILE_TYPES = {
    name.removeprefix("LLAMA_FTYPE_MOSTLY_").lower(): number
    for name, number in vars(llama_cpp).items()
    if name.startswith("LLAMA_FTYPE_MOSTLY_")
}


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _silent(level: int, text: bytes, user_data: Any) -> None:
    """Swallow llama.cpp's log."""


class Peer:
    """A loaded model and a context."""

    def __init__(self, path: str, *, threads: int, n_ctx: int, sequences: int = 1) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        began = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = n_ctx
        parameters.n_batch = 2048
        parameters.n_ubatch = 512
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {n_ctx} tokens")
        self.load_s = time.perf_counter() - began
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)
        views = [np.ctypeslib.as_array(field, (MAX_BATCH,)) for field in (self.batch.token, self.batch.pos)]
        self.tokens, self.positions = views
        self.wanted = np.ctypeslib.as_array(self.batch.logits, (MAX_BATCH,))
        for k in range(MAX_BATCH):
            self.batch.n_seq_id[k] = 1

    def decode(self, tokens: Any, positions: Any, sequences: int | range, wanted: Any) -> None:
        """One ``llama_decode``, waited for: token ids, their positions, whether each one's logits are wanted.

        ``sequences`` is the one sequence of all tokens, or a range with the sequence of each.
        """
        n = self.batch.n_tokens = len(tokens)
        self.tokens[:n], self.positions[:n], self.wanted[:n] = tokens, positions, wanted
        owners = sequences if isinstance(sequences, range) else [sequences] * n
        for k in range(n):
            self.batch.seq_id[k][0] = owners[k]
        result = llama_cpp.llama_decode(self.context, self.batch)
        if result != 0:
            sys.exit(f"llama_decode failed with {result}")
        llama_cpp.llama_synchronize(self.context)

    def feed(self, tokens: np.ndarray, position: int, sequence: int = 0) -> None:
        """Process ``tokens`` of one sequence from ``position`` on; logits of the last one only."""
        for start in range(0, len(tokens), MAX_BATCH):
            part = tokens[start : start + MAX_BATCH]
            at = np.arange(len(part))
            self.decode(part, position + start + at, sequence, at == len(part) - 1)

    def forget(self, sequence: int, position: int) -> None:
        """Drop what the KV cache holds of ``sequence`` from ``position`` on."""
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, position, -1)

    def logits(self, row: int) -> np.ndarray:
        """Logits of output ``row`` (-1: the last) of the latest decode, float32 [n_vocab], copied."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.array(np.ctypeslib.as_array(pointer, (self.n_vocab,)))

    def tokenize(self, text: str) -> np.ndarray:
        """Token ids of ``text``, with the special tokens that the model adds."""
        data = text.encode()
        room = len(data) + 16
        tokens = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, room, True, False)
        return np.array(tokens[:n], np.int32)


def timed(work: Callable[[], None]) -> float:
    """Seconds that ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bench(order: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of a prompt and of single steps after ``depth`` tokens; medians of ``repeat`` runs."""
    n_prompt, n_gen, depth, sequences = (order[key] for key in ("prompt", "gen", "depth", "sequences"))
    room = -(-(depth + max(n_prompt, n_gen) + 1) // 256) * 256
    peer = Peer(order["model"], threads=order["threads"], n_ctx=room * sequences, sequences=sequences)
    tokens = np.random.default_rng(0).integers(0, peer.n_vocab, depth + n_prompt + n_gen)

    def prompt() -> None:
        peer.feed(tokens[depth : depth + n_prompt], depth)

    def generate() -> None:
        for k in range(n_gen):
            step = np.full(sequences, tokens[depth + n_prompt + k])
            peer.decode(step, depth + k, range(sequences), True)

    prefill, decode = [], []
    peer.feed(tokens[: min(n_prompt, 64)], 0)  # warm-up
    peer.forget(0, 0)
    for sequence in range(sequences if n_gen else 1):
        peer.feed(tokens[:depth], 0, sequence)
    for k in range(order["repeat"] + 1):  # the first round is warm-up too
        spent = timed(prompt) if n_prompt else 0.0
        peer.forget(0, depth)
        if k and n_prompt:
            prefill.append(n_prompt / spent)
        spent = timed(generate) if n_gen else 0.0
        for sequence in range(sequences):
            peer.forget(sequence, depth)
        if k and n_gen:
            decode.append(n_gen * sequences / spent)
    return {
        "prefill_tokens_per_s": statistics.median(prefill) if prefill else None,
        "decode_tokens_per_s": statistics.median(decode) if decode else None,
        "load_s": peer.load_s,
    }


def start(order: dict[str, Any]) -> dict[str, Any]:
    """The likeliest token after ``text``: what a command that generates one token does."""
    peer = Peer(order["model"], threads=order["threads"], n_ctx=order.get("ctx", 2048))
    tokens = peer.tokenize(order["text"])
    peer.feed(tokens, 0)
    piece = ctypes.create_string_buffer(256)
    token = int(peer.logits(-1).argmax())
    n = llama_cpp.llama_token_to_piece(peer.vocab, token, piece, 256, 0, True)
    return {"token": token, "text": piece.raw[:n].decode(errors="replace")}


def logits(order: dict[str, Any]) -> dict[str, Any]:
    """Logits of the second half of each window of a text: what perplexity by the rule of llama.cpp's own tool is made of.

    The text is cut into windows of ``ctx`` tokens, each processed alone; where the model adds a BOS token it takes the
    place of the window's first token; positions ctx/2 .. ctx-2 predict a token of the window. The first line of the output
    is a JSON object with the windows' tokens, then come float32 [windows, ctx/2 - 1, n_vocab] in bytes.
    """
    n_ctx = order["ctx"]
    peer = Peer(order["model"], threads=order["threads"], n_ctx=n_ctx)
    with open(order["file"], encoding="utf-8", newline="") as file:  # noqa: PTH123
        tokens = peer.tokenize(file.read())
    windows = tokens[: len(tokens) // n_ctx * n_ctx].reshape(-1, n_ctx)
    if not len(windows):
        sys.exit(f"{order['file']} has only {len(tokens)} tokens: at least {n_ctx} are needed")
    adds_bos = llama_cpp.llama_vocab_get_add_bos(peer.vocab)
    bos = llama_cpp.llama_vocab_bos(peer.vocab) if adds_bos else None
    print(json.dumps({"windows": windows.tolist(), "bos": bos, "n_vocab": peer.n_vocab}), flush=True)
    first = n_ctx // 2
    for window in windows:
        if bos is not None:
            window[0] = bos
        llama_cpp.llama_memory_clear(peer.memory, True)
        for at in range(0, n_ctx, MAX_BATCH):
            positions = np.arange(at, min(at + MAX_BATCH, n_ctx))
            peer.decode(window[positions], positions, 0, positions >= first)
            for position in positions[(positions >= first) & (positions < n_ctx - 1)]:
                sys.stdout.buffer.write(peer.logits(int(position) - at).data)
    sys.stdout.buffer.flush()
    return {}


def greedy(order: dict[str, Any]) -> dict[str, Any]:
    """The likeliest ``gen`` tokens after each of ``texts``, one by one, and how far each is ahead of the second best."""
    peer = Peer(order["model"], threads=order["threads"], n_ctx=2048)
    found = []
    for text in order["texts"]:
        prompt = peer.tokenize(text)
        llama_cpp.llama_memory_clear(peer.memory, True)
        ids: list[int] = []
        margins: list[float] = []
        step = prompt
        for k in range(order["gen"]):
            peer.feed(step, len(prompt) + k - 1 if k else 0)
            row = peer.logits(-1)
            second, best = np.partition(row, -2)[-2:]
            ids.append(int(row.argmax()))
            margins.append(float(best - second))
            step = np.array(ids[-1:], np.int32)
        found.append({"prompt": prompt.tolist(), "ids": ids, "margins": margins})
    return {"texts": found}


def quantize(order: dict[str, Any]) -> dict[str, Any]:
    """Quantize a float file, as llama-quantize does.

    ``pure``: all matrices in one type. ``importance``: columns of each matrix by its name, all of which get the importance 1.
    """
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = order["threads"]
    parameters.ftype = FILE_TYPES[order["type"]]
    parameters.pure = order.get("pure", False)
    columns = order.get("importance", {})
    if columns:
        ones = (ctypes.c_float * max(columns.values()))(*[1.0] * max(columns.values()))
        entries = [llama_cpp.llama_model_imatrix_data(name.encode(), ones, n) for name, n in columns.items()]
        last = llama_cpp.llama_model_imatrix_data(None, None, 0)
        parameters.imatrix = (llama_cpp.llama_model_imatrix_data * (len(columns) + 1))(*entries, last)
    failed: list[int] = []
    files = order["model"].encode(), order["out"].encode()
    spent = timed(lambda: failed.append(llama_cpp.llama_model_quantize(*files, ctypes.byref(parameters))))
    if failed != [0]:
        sys.exit(f"llama_model_quantize failed for {order['type']}")
    return {"quantize_s": spent}


def tensor_types(order: dict[str, Any]) -> dict[str, Any]:
    """What quantizing a file would make of each tensor, by file type: its block format, or "-" where it is copied."""
    log: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
    def keep(level: int, text: bytes, user_data: Any) -> None:
        log.append(text.decode())

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    found = {}
    for name, number in order["types"].items():
        log.clear()
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype, parameters.dry_run = number, True
        llama_cpp.llama_model_quantize(order["model"].encode(), b"", ctypes.byref(parameters))
        lines = re.findall(r"\[ *\d+/ *\d+\] (\S+) .*size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?", "".join(log))
        found[name] = {tensor: kind.lower() or "-" for tensor, kind in lines}
    return found


def about(order: dict[str, Any]) -> dict[str, Any]:
    """Which llama.cpp this is."""
    return {
        "version": f"llama-cpp-python {llama_cpp.__version__}",
        "features": llama_cpp.llama_print_system_info().decode(),
    }


JOBS = {
    "bench": bench,
    "start": start,
    "logits": logits,
    "greedy": greedy,
    "quantize": quantize,
    "tensor_types": tensor_types,
    "about": about,
}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
