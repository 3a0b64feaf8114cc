"""Loads a model: reads and packs its weights, allocates its KV cache, and has its architecture write the program."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from gumba import backends
from gumba.backends.base import Backend, Buffer, Chunk, Function, Program, ProgramSizes, StepLimits, Workers
from gumba.errors import RequestError, ResourceError
from gumba.gguf import GGUFFile
from gumba.host import can_pin_threads, default_threads, parse_affinity
from gumba.loading.config import Config
from gumba.loading.weight_loader import Loader
from gumba.memory import shortage
from gumba.models import registry
from gumba.models.registry import Architecture, architecture
from gumba.runner.encoder_decoder import EncoderDecoder
from gumba.runner.kv_cache import KVCache
from gumba.runner.memory_budget import MIN_PAGES, PageBudget, state_slots
from gumba.runner.model import Model, ModelParts
from gumba.runner.state_pool import StatePool

log = logging.getLogger("gumba")

#: Maximum of the default context length, which is the model's training context otherwise.
DEFAULT_CONTEXT = 4096
MAX_THREADS = 512


def load_model(
    gguf: GGUFFile,
    *,
    n_ctx: int | None = None,
    max_batch_tokens: int = 512,
    kv_tokens: int | None = None,
    kv_memory: int | None = None,
    kv_type: str | None = None,
    n_states: int | None = None,
    portable: bool = False,
    n_threads: int | None = None,
    team: Workers | None = None,
    max_sequences: int = 0,
    progress: Callable[[float], Any] | None = None,
) -> Model:
    """Read a model's weights, pack them for this processor, and write its program.

    Args:
        gguf: The model file.
        n_ctx: Maximum number of tokens of a sequence; None: the training context, at most 4096.
        max_batch_tokens: Maximum number of tokens in one step. Models with an encoder, which reads a text in one step, use
            ``n_ctx`` if that is more.
        kv_tokens: Size of the KV cache in tokens, for all sequences together.
        kv_memory: Size of the KV cache in bytes. Without either: DEFAULT_SEQUENCES sequences of ``n_ctx`` tokens, or as many
            (at least one) as fit into an eighth of the available memory.
        kv_type: Data type of the KV cache: "f16", "bf16", "f32" or "q8_0" (8.5 bits per element); None: bf16 on processors
            with bf16 arithmetic, else f16.
        n_states: Number of slots for recurrent states, checkpoints of cached prefixes included; None: MAX_STATES, more if
            they are small, or as many as fit into an eighth of the available memory.
        portable: Whether results have the same bits on every processor: f16 pages by default, and no instructions whose
            results differ from those of others.
        n_threads: Compute threads; None: one per core that this process may use.
        team: Threads of another model to compute with instead. They must outlive this model, and the two models must not
            compute at the same time.
        max_sequences: Number of sequences that must fit into the window pool (``KVCache.window_pool``), which layers with a
            sliding window get if that saves memory; 0: no window pool.
        progress: Called with 0.0 to 1.0 while the weights are read.

    The environment variable GUMBA_AFFINITY ("0-3,8", or "all") pins all threads but the caller's to processors.

    Raises ModelError (UnsupportedError) for a file that gumba cannot run, ResourceError for too little memory, RequestError for
    arguments out of range.
    """
    module = architecture(gguf)
    config = module.read_config(gguf)
    n_ctx = _context(config, n_ctx)
    _check("max_batch_tokens", max_batch_tokens, 1 << 16)
    for name, value, most in (
        ("kv_tokens", kv_tokens, 1 << 30), ("kv_memory", kv_memory, 1 << 50), ("n_states", n_states, 1 << 20)
    ):  # fmt: skip
        if value is not None:
            _check(name, value, most)
    if team is not None:
        n_threads = team.n_threads
    elif n_threads is None:
        n_threads = default_threads()
    _check("n_threads", n_threads, MAX_THREADS)
    if not config.causal or config.start_token is not None:  # an encoder computes a whole text in one step
        max_batch_tokens = max(max_batch_tokens, n_ctx)
    processors = _processors()
    backend = backends.get(portable=portable)
    if kv_type is None:
        kv_type = backend.default_kv_type
    shapes, format = config.kv_shapes, backend.kv_format(kv_type)
    budget = PageBudget(shapes, n_ctx, max_batch_tokens, format, max_sequences if config.causal else 0)
    n_states, states_bytes = state_slots(backend, config.state_parts, n_states, kv_memory)
    sized = kv_tokens is not None or kv_memory is not None
    if kv_tokens is None:
        n_pages = budget.n_pages(kv_memory, states_bytes, gguf.file_size)
        kv_tokens = n_pages * format.page_tokens
    else:
        n_pages = -(-kv_tokens // format.page_tokens)
    sizes = ProgramSizes(min(max_batch_tokens, max(n_ctx, kv_tokens)), n_ctx)

    def assemble(n_pages: int) -> Model:
        kv = KVCache(backend, shapes, n_pages, kv_type, budget.window_pages(n_pages))
        states = StatePool(backend, config.state_parts, n_states) if n_states else None
        programs = _programs(backend, module, config, weights, sizes, n_threads, kv, states)
        workers = backend.workers(n_threads, processors) if team is None else team
        limits = StepLimits(config.n_vocab * config.n_types, n_ctx, sizes.max_batch_tokens, kv)
        try:
            runner, *encoders = [backend.runner(*program, workers, limits, states) for program in programs]
        except BaseException:
            if team is None:
                workers.close()
            raise
        parts = ModelParts(config, runner, kv, states, workers, team is None, limits, backend.target, weights)
        if not encoders:
            return Model(parts)
        return EncoderDecoder(Model(replace(parts, runner=encoders[0], owns_workers=False)), parts)

    try:
        weights = _weights(backend, gguf, module, config, n_threads, progress)
        return assemble(n_pages) if sized else _with_fewer_pages(assemble, n_pages, format.page_tokens)
    except MemoryError:
        need = f"the weights and, for a context of {n_ctx} tokens, tables and cache need more than"
        raise ResourceError(f"{gguf.path}: {shortage(need, gguf.file_size)}") from None


def _with_fewer_pages(assemble: Callable[[int], Model], n_pages: int, page_tokens: int) -> Model:
    """``assemble(n_pages)``; if memory does not suffice, with half as many pages, and so on down to MIN_PAGES."""
    wanted = n_pages
    while True:
        try:
            model = assemble(n_pages)
        except (MemoryError, ResourceError):
            if n_pages <= MIN_PAGES:
                raise
            n_pages = max(MIN_PAGES, n_pages // 2)
            continue
        if n_pages < wanted:
            log.warning(
                "not enough memory for a KV cache of %d tokens: it holds %d (kv_memory, --kv-memory of commands, names its size)",
                wanted * page_tokens,
                n_pages * page_tokens,
            )
        return model


def _programs(
    backend: Backend,
    module: Architecture,
    config: Config,
    weights: Any,
    sizes: ProgramSizes,
    n_threads: int,
    kv: KVCache,
    states: StatePool | None,
) -> list[tuple[Program, Buffer, Buffer]]:
    """The model's program and, for an encoder-decoder, the encoder's; each with its hidden states and logits."""
    program = backend.program(sizes, n_threads, kv.memory, None if states is None else states.memory)
    programs = [(program, *module.forward(program, config, weights))]
    if config.start_token is not None:
        reader = backend.program(sizes, n_threads, kv.memory)
        hidden = cast(registry.EncoderDecoder, module).encode(reader, config, weights)
        programs.append((reader, hidden, hidden))
    return programs


def functions_of(backend: Backend, gguf: GGUFFile, kv_type: str) -> list[Function]:
    """The compiled functions that a model needs with a KV cache of ``kv_type``; its matrices are not read.

    Raises as ``load_model`` for a file that gumba cannot run.
    """
    module = architecture(gguf)
    config = module.read_config(gguf)
    with Loader(gguf, backend, 1) as loader:
        weights = module.load_weights(loader, config)
    kv = KVCache(backend, config.kv_shapes, 1, kv_type)
    sizes = ProgramSizes(1, min(config.n_ctx_train, kv.page_tokens))
    states = StatePool(backend, config.state_parts, 1) if any(config.state_parts) else None
    programs = _programs(backend, module, config, weights, sizes, 1, kv, states)
    return backend.functions_of([program for program, _, _ in programs])


#: Packed weights of loaded models, by file and device, so that models of one file share them; and locks, held while packing.
_in_use: weakref.WeakValueDictionary[object, Any] = weakref.WeakValueDictionary()
_packing: weakref.WeakValueDictionary[object, Any] = weakref.WeakValueDictionary()
_guard = threading.Lock()


def _renew_guard() -> None:
    """Replace the lock in a forked child: another thread of the parent may have held it."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


def _weights(
    backend: Backend,
    gguf: GGUFFile,
    module: Architecture,
    config: Config,
    n_threads: int,
    progress: Callable[[float], Any] | None,
) -> Any:
    """A model's packed weights, which all loaded models of one file share: they are read-only."""
    key = (gguf.identity, backend.name, backend.target)
    with _guard:
        lock = _packing.setdefault((os.getpid(), key), threading.Lock())
    with lock:
        weights = _in_use.get(key)
        if weights is None:
            with Loader(gguf, backend, n_threads, progress) as loader:
                weights = module.load_weights(loader, config)
                loader.run()
            _in_use[key] = weights
        elif progress is not None:
            progress(1.0)
    return weights


def _processors() -> list[int] | None:
    """The processors that GUMBA_AFFINITY pins threads to; None if it is not set, or threads cannot be pinned."""
    setting = os.environ.get("GUMBA_AFFINITY", "").strip()
    if not setting:
        return None
    if not can_pin_threads():
        log.warning("GUMBA_AFFINITY is set, but threads cannot be pinned to processors on this system")
        return None
    return parse_affinity(setting)


def _context(config: Config, n_ctx: int | None) -> int:
    """The context length: ``n_ctx``, or the training context, at most DEFAULT_CONTEXT. Raises RequestError."""
    if n_ctx is None:
        n_ctx = min(config.n_ctx_train, DEFAULT_CONTEXT)
    if type(n_ctx) is int and n_ctx > config.max_ctx:
        raise RequestError(f"n_ctx is {n_ctx}: the model supports a context of at most {config.max_ctx} tokens")
    _check("n_ctx", n_ctx, config.max_ctx)
    return n_ctx


def _check(name: str, value: int, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise RequestError(f"{name} is {value!r}, expected an integer from 1 to {most}")


__all__ = ["Chunk", "Model", "load_model"]
