"""Architectures, one file each, named as GGUF's ``general.architecture``; and how a file becomes a model that runs."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gumba.backends.cpu.kernels.record import Kernel
from gumba.backends.cpu.kv_pages import PAGE_TOKENS
from gumba.backends.cpu.program.builder import Buffer, Program
from gumba.backends.cpu.program.executor import Team
from gumba.errors import ModelError, RequestError, ResourceError, UnsupportedError
from gumba.gguf import GGUFFile
from gumba.host import can_pin_threads, default_threads, parse_affinity
from gumba.loading.config import Config
from gumba.loading.weight_loader import Loader
from gumba.memory import available_memory, shortage
from gumba.models import (
    baichuan,
    bert,
    chatglm,
    cohere2,
    command_r,
    deepseek2,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    gemma_embedding,
    glm4,
    gpt2,
    gpt_oss,
    gptneox,
    granite,
    granitemoe,
    internlm2,
    jina_bert_v2,
    jina_bert_v3,
    lfm2,
    llama,
    llama4,
    modern_bert,
    mpnet,
    nomic_bert,
    olmo2,
    phi2,
    phi3,
    qwen,
    qwen2,
    qwen2moe,
    qwen2vl,
    qwen3,
    qwen3moe,
    qwen3vl,
    qwen3vlmoe,
    qwen35,
    qwen35moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    t5,
    t5encoder,
)
from gumba.runner.encoder_decoder import EncoderDecoder
from gumba.runner.kv_cache import KVCache, KVShape
from gumba.runner.model import Chunk, Model, token_ids
from gumba.runner.state_pool import States
from gumba.simd import detect
from gumba.simd.isa import Isa

log = logging.getLogger("gumba")

#: Every architecture that runs, by its name in files.
ARCHITECTURES: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        llama, llama4, qwen, qwen2, qwen2moe, qwen2vl, qwen3, qwen3moe, qwen3vl, qwen3vlmoe,
        chatglm, glm4, gemma, gemma2, gemma3, gemma3n, gemma4, phi2, phi3, gpt2,
        gptneox, starcoder2, stablelm, falcon, internlm2, olmo2, baichuan, granite, granitemoe, smollm3, exaone4,
        command_r, cohere2, deepseek2, gpt_oss, lfm2, qwen35, qwen35moe, seed_oss,
        bert, mpnet, nomic_bert, jina_bert_v2, jina_bert_v3, modern_bert, gemma_embedding,
        t5, t5encoder,
    )
}  # fmt: skip

#: Context when none is asked for: the model's own, but no more than this.
DEFAULT_CONTEXT = 4096
MAX_THREADS = 512
#: Sequences of the whole context that the KV cache has room for, where memory allows. It takes memory only as it fills.
USUAL_CONTEXTS = 4
#: Pages that a KV cache has where the memory does not allow one whole context, and no size is named.
LEAST_PAGES = 4
#: Slots for recurrent states, where memory allows; of small ones more, but in no more than so many bytes. They take memory only
#: when used.
MOST_STATES, MOST_SMALL_STATES, STATES_BYTES = 128, 4096, 256 << 20
#: A pool of pages for layers with a window holds so many times what whole contexts need there, for many short sequences and for
#: what requests have in common.
WINDOW_POOL_FACTOR = 2


def architecture(gguf: GGUFFile) -> ModuleType:
    """The module of a file's architecture. Raises UnsupportedError listing the known ones."""
    name = gguf.require("general.architecture", str)
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedError(f"{gguf.path}: architecture {name!r} is not known; this version runs: {known}")
    return ARCHITECTURES[name]


def load_model(
    gguf: GGUFFile,
    *,
    n_ctx: int | None = None,
    max_batch_tokens: int = 512,
    kv_tokens: int | None = None,
    kv_memory: int | None = None,
    kv_type: str | None = None,
    n_states: int | None = None,
    n_threads: int | None = None,
    team: Team | None = None,
    max_sequences: int = 0,
    progress: Callable[[float], Any] | None = None,
) -> Model:
    """Read a model's weights, pack them for this processor, and write its program.

    ``n_ctx``: most tokens of a sequence (None: the model's own, at most 4096); ``max_batch_tokens``: most tokens of a step, or
    ``n_ctx`` if that is more and the model has an encoder, which computes all of a text in one step;
    ``kv_tokens``: tokens that the KV cache holds, all sequences together; ``kv_memory``: as many as fit so many bytes (neither:
    USUAL_CONTEXTS sequences of ``n_ctx``, or as many, but at least one, as fit an eighth of the memory there is); ``kv_type``:
    "f16", "bf16", "f32" or "q8_0" (8.5 bits per element), None for bf16 on processors that multiply it and else f16;
    ``n_states``: of a model with recurrent layers, how many sequences' states it holds, those kept for others to begin with
    among them (None: MOST_STATES, of small ones more, or as many as fit an eighth of the memory there is);
    ``n_threads``: None for as many as this process may use; ``team``: another model's threads to compute with instead, never at
    the same time; it must outlive this model; ``max_sequences``: layers with a window may have a smaller pool of pages of their
    own (``KVCache.window_pool``) where that saves memory, with room for so many sequences at once (0: they may not);
    ``progress``: called with 0.0 to 1.0 while reading.

    The environment variable GUMBA_AFFINITY ("0-3,8", or "all") ties the threads beside the caller's to processors.

    Raises ModelError (UnsupportedError) for what is not a model that can run, ResourceError for too little memory,
    RequestError for arguments out of range.
    """
    module = architecture(gguf)
    config = module.read_config(gguf)
    if n_ctx is None:
        n_ctx = min(config.n_ctx_train, DEFAULT_CONTEXT)
    if type(n_ctx) is int and n_ctx > config.n_ctx_most:
        raise RequestError(f"n_ctx is {n_ctx}: the model was made for a context of {config.n_ctx_most} tokens at most")
    _check("n_ctx", n_ctx, config.n_ctx_most)
    _check("max_batch_tokens", max_batch_tokens, 1 << 16)
    if kv_tokens is not None:
        _check("kv_tokens", kv_tokens, 1 << 30)
    if kv_memory is not None:
        _check("kv_memory", kv_memory, 1 << 50)
    if n_states is not None:
        _check("n_states", n_states, 1 << 20)
    if team is not None:
        n_threads = team.n_threads
    elif n_threads is None:
        n_threads = default_threads()
    _check("n_threads", n_threads, MAX_THREADS)
    if not config.causal or config.start_token is not None:  # all of a text, or of a source, is computed in one step
        max_batch_tokens = max(max_batch_tokens, n_ctx)
    processors = _processors()
    chosen = detect.current()
    if kv_type is None:
        kv_type = usual_kv_type()
    pools = _Pools(kv_shapes(config), n_ctx, max_batch_tokens, kv_type, max_sequences if config.causal else 0)
    n_states, states_bytes = _n_states(config, n_states, kv_memory)
    sized = kv_tokens is not None or kv_memory is not None
    n_pages = (
        pools.n_pages(kv_memory, states_bytes, gguf.file_size) if kv_tokens is None else -(-kv_tokens // PAGE_TOKENS)
    )
    kv_tokens = n_pages * PAGE_TOKENS if kv_tokens is None else kv_tokens
    max_batch_tokens = min(max_batch_tokens, max(n_ctx, kv_tokens))

    def made(n_pages: int) -> Model:
        kv = KVCache(pools.shapes, n_pages, kv_type, pools.window_pages(n_pages))
        states = States(config.state_parts, n_states) if n_states else None
        sizes = n_threads, max_batch_tokens, n_ctx
        (program, outputs), *source = _programs(module, config, weights, chosen, sizes, kv, states)
        threads = Team(n_threads, processors) if team is None else team
        owns_team = team is None
        if not source:
            return Model(config, program, outputs, kv, threads, n_ctx, weights, owns_team=owns_team, states=states)
        encoder = Model(config, *source[0], kv, threads, n_ctx, weights, owns_team=False)
        return EncoderDecoder(encoder, config, program, outputs, kv, threads, n_ctx, weights, owns_team=owns_team)

    try:
        weights = _weights(gguf, module, config, chosen, n_threads, progress)
        return made(n_pages) if sized else _smaller(made, n_pages)
    except MemoryError:
        need = f"the weights and, for a context of {n_ctx} tokens, tables and cache need more than"
        raise ResourceError(f"{gguf.path}: {shortage(need, gguf.file_size)}") from None


def _smaller(made: Callable[[int], Model], n_pages: int) -> Model:
    """``made(n_pages)``, or with as many pages fewer as the memory there is calls for, down to LEAST_PAGES."""
    wanted = n_pages
    while True:
        try:
            model = made(n_pages)
        except (MemoryError, ResourceError):
            if n_pages <= LEAST_PAGES:
                raise
            n_pages = max(LEAST_PAGES, n_pages // 2)
            continue
        if n_pages < wanted:
            log.warning(
                "not enough memory for a KV cache of %d tokens: it holds %d (kv_memory, --kv-memory of commands, names its size)",
                wanted * PAGE_TOKENS,
                n_pages * PAGE_TOKENS,
            )
        return model


def _programs(
    module: ModuleType,
    config: Any,
    weights: Any,
    chosen: Isa,
    sizes: tuple[int, int, int],
    kv: KVCache,
    states: States | None,
) -> list[tuple[Program, tuple[Buffer, Buffer]]]:
    """The model's program, and that of its encoder if that is another, with what they compute.

    ``sizes``: threads, tokens of a step, tokens of a sequence.
    """
    program = Program(chosen, *sizes, states=states.layouts if states else [])
    made = [(program, module.forward(program, config, weights, kv.layouts, sizes[2]))]
    if config.start_token is not None:
        source = Program(chosen, *sizes)
        hidden = module.encode(source, config, weights, kv.layouts)
        made.append((source, (hidden, hidden)))
    return made


def usual_kv_type() -> str:
    """The default data type of the KV cache: the one that this processor computes with fastest."""
    return "bf16" if detect.current().dot_bf16 is not None else "f16"


def kernels_of(gguf: GGUFFile, kv_type: str) -> list[Kernel]:
    """The kernels that a file's model runs with a KV cache of ``kv_type``; its matrices are not read.

    Raises what ``load_model`` does for a file that cannot run.
    """
    module, chosen = architecture(gguf), detect.current()
    config = module.read_config(gguf)
    with Loader(gguf, chosen, 1) as loader:
        weights = module.load_weights(loader, config)
    kv = KVCache(kv_shapes(config), 1, kv_type)
    sizes = 1, 1, min(config.n_ctx_train, PAGE_TOKENS)
    states = States(config.state_parts, 1) if _n_states(config, None, None)[0] else None
    made = _programs(module, config, weights, chosen, sizes, kv, states)
    return list({op.kernel.name: op.kernel for program, _ in made for op in program.operations}.values())


def kv_shapes(config: Config) -> list[KVShape]:
    """What each layer keeps of a token."""
    return config.kv_shapes


class _Pools:
    """How many pages there are, for all layers and for those with a window.

    ``n_ctx``, ``n_step``: most tokens of a sequence and of a step.
    """

    def __init__(self, shapes: list[KVShape], n_ctx: int, n_step: int, kv_type: str, n_sequences: int) -> None:
        self.shapes = shapes
        self._n_ctx = n_ctx
        window = max((shape.window for shape in shapes), default=0) if n_sequences else 0
        #: For so many sequences at once, a page each to grow into.
        self._least = n_sequences * (-(-window // PAGE_TOKENS) + 2) if window else 0
        #: Pages that a sequence has at once for the layers with a window.
        self._each = -(-(window + n_step) // PAGE_TOKENS) + 1 if window else 0
        self._page_bytes = KVCache.bytes_per_page([shape for shape in shapes if not (window and shape.window)], kv_type)
        self._window_bytes = KVCache.bytes_per_page(shapes, kv_type) - self._page_bytes

    def window_pages(self, n_pages: int) -> int:
        """Pages of the pool for layers with a window, beside ``n_pages`` for the others; 0 where one pool for all is as small."""
        if not self._each:
            return 0
        count = max(self._least, WINDOW_POOL_FACTOR * self._each * (1 + -(-n_pages * PAGE_TOKENS // self._n_ctx)))
        return count if count < n_pages else 0

    def _bytes(self, n_pages: int) -> int:
        return n_pages * self._page_bytes + (self.window_pages(n_pages) or n_pages) * self._window_bytes

    def n_pages(self, kv_memory: int | None, states_bytes: int, weights_bytes: int) -> int:
        """Pages where the caller names no number. Raises RequestError when ``kv_memory`` is too little for any.

        ``states_bytes``: of that memory, what the recurrent states take. ``weights_bytes``: what the weights are going to take
        of the memory there is.
        """
        most, there_is = -(-USUAL_CONTEXTS * self._n_ctx // PAGE_TOKENS), available_memory()
        least = -(-self._n_ctx // PAGE_TOKENS)
        if kv_memory is not None:
            wanted = self._bytes(1) + states_bytes
            if kv_memory < wanted:
                states = " and the states of two sequences" if states_bytes else ""
                raise RequestError(
                    f"kv_memory is {kv_memory}, expected at least {wanted}, for {PAGE_TOKENS} tokens{states}"
                )
            return self._fitting(kv_memory - states_bytes, 1, 1 << 24)
        if there_is is None:
            return least
        least = self._fitting((there_is - weights_bytes) // 2, min(least, LEAST_PAGES), least)
        return self._fitting(there_is // 8, least, most)

    def _fitting(self, n_bytes: int, least: int, most: int) -> int:
        """The largest number of pages from ``least`` to ``most`` that fits ``n_bytes``; ``least`` where none does."""
        while least < most:
            middle = (least + most + 1) // 2
            if self._bytes(middle) <= n_bytes:
                least = middle
            else:
                most = middle - 1
        return least


def _n_states(config: Config, n_states: int | None, kv_memory: int | None) -> tuple[int, int]:
    """Slots for recurrent states, and their bytes; none for a model without recurrent layers.

    ``n_states``: as asked for; None: as many as fit a quarter of ``kv_memory``, or an eighth of what the machine has to spare.
    """
    parts: list[tuple[int, ...]] = config.state_parts
    if not any(parts):
        return 0, 0
    each = States.bytes_per_slot(parts)
    if n_states is None:
        there_is = available_memory()
        n_states = most = max(MOST_STATES, min(STATES_BYTES // each, MOST_SMALL_STATES))
        if kv_memory is not None:
            n_states = kv_memory // 4 // each
        elif there_is is not None:
            n_states = there_is // 8 // each
        n_states = max(2, min(most, n_states))
    return n_states, n_states * each


#: Packed weights of models that are in use, by file and instruction set; and who packs some just now, by process.
_in_use: weakref.WeakValueDictionary[object, Any] = weakref.WeakValueDictionary()
_packing: weakref.WeakValueDictionary[object, Any] = weakref.WeakValueDictionary()
_guard = threading.Lock()


def _renew_guard() -> None:
    """In a forked child: somebody may have held it at that moment."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


def _weights(
    gguf: GGUFFile,
    module: ModuleType,
    config: Any,
    chosen: Isa,
    n_threads: int,
    progress: Callable[[float], Any] | None,
) -> Any:
    """A model's weights; the same ones for all models of a file that are in use at a time. Nobody changes them."""
    key = (gguf.identity, chosen.name)
    with _guard:
        lock = _packing.setdefault((os.getpid(), key), threading.Lock())
    with lock:
        weights = _in_use.get(key)
        if weights is None:
            with Loader(gguf, chosen, n_threads, progress) as loader:
                weights = module.load_weights(loader, config)
                loader.run()
            _in_use[key] = weights
        elif progress is not None:
            progress(1.0)
    return weights


def _processors() -> list[int] | None:
    """The processors that GUMBA_AFFINITY ties threads to; None where it is not set, or where threads cannot be tied."""
    setting = os.environ.get("GUMBA_AFFINITY", "").strip()
    if not setting:
        return None
    if not can_pin_threads():
        log.warning("GUMBA_AFFINITY is set, but threads cannot be tied to processors on this system")
        return None
    return parse_affinity(setting)


def _check(name: str, value: int, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise RequestError(f"{name} is {value!r}, expected an integer from 1 to {most}")


__all__ = ["ARCHITECTURES", "Chunk", "Model", "ModelError", "architecture", "load_model", "token_ids"]
