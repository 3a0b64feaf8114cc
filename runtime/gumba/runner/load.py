"""Loads a model: reads and packs its weights, allocates its KV cache, and has its architecture write the program."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

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
from gumba.runner.load_config import DEFAULT, LoadConfig
from gumba.runner.memory_budget import MIN_PAGES, PageBudget, state_slots
from gumba.runner.model import Model, ModelParts
from gumba.runner.state_pool import StatePool

log = logging.getLogger("gumba")

#: Maximum of the default context length, which is the model's training context otherwise.
DEFAULT_CONTEXT = 4096
MAX_THREADS = 512


def load_model(
    gguf: GGUFFile,
    settings: LoadConfig = DEFAULT,
    *,
    team: Workers | None = None,
    progress: Callable[[float], object] | None = None,
) -> Model:
    """Read a model's weights, pack them for this processor, and write its program.

    Args:
        gguf: The model file.
        settings: Sizes, the type of the KV cache, threads.
        team: Threads of another model to compute with instead. They must outlive this model, and the two models must not
            compute at the same time.
        progress: Called with 0.0 to 1.0 while the weights are read.

    The environment variable GUMBA_AFFINITY ("0-3,8", or "all") pins all threads but the caller's to processors.

    Raises ModelError (UnsupportedError) for a file that gumba cannot run, ResourceError for too little memory, RequestError for
    settings out of range.
    """
    module = architecture(gguf)
    config = module.read_config(gguf)
    _check_settings(settings)
    n_ctx = _context(config, settings.n_ctx)
    n_threads = _threads(settings.n_threads, team)
    processors = _processors()
    backend = backends.get(portable=settings.portable)
    sizes = _sizes(backend, gguf, config, settings, n_ctx)
    try:
        weights = _weights(backend, gguf, module, config, n_threads, progress)
        builder = _Builder(backend, module, config, weights, sizes, n_threads, processors, team)
        if settings.kv_tokens is not None or settings.kv_memory is not None:
            return builder.model(sizes.n_pages)
        return _with_fewer_pages(builder.model, sizes.n_pages, sizes.page_tokens)
    except MemoryError:
        need = f"the weights and, for a context of {n_ctx} tokens, tables and cache need more than"
        raise ResourceError(f"{gguf.path}: {shortage(need, gguf.file_size)}") from None


@dataclass(frozen=True)
class _Sizes:
    """What a model's memory is allocated for: ``n_pages`` of its KV cache, or fewer if memory does not suffice."""

    kv_type: str
    page_tokens: int
    budget: PageBudget
    n_pages: int
    n_states: int
    program: ProgramSizes


def _sizes(backend: Backend, gguf: GGUFFile, config: Config, settings: LoadConfig, n_ctx: int) -> _Sizes:
    """The sizes that ``settings`` and the available memory give. Raises RequestError."""
    max_batch_tokens = settings.max_batch_tokens
    if not config.causal or config.start_token is not None:  # an encoder computes a whole text in one step
        max_batch_tokens = max(max_batch_tokens, n_ctx)
    kv_type = backend.default_kv_type if settings.kv_type is None else settings.kv_type
    format = backend.kv_format(kv_type)
    n_sequences = settings.max_sequences if config.causal else 0
    budget = PageBudget(config.kv_shapes, n_ctx, max_batch_tokens, format, n_sequences)
    n_states, states_bytes = state_slots(backend, config.state_parts, settings.n_states, settings.kv_memory)
    kv_tokens = settings.kv_tokens
    if kv_tokens is None:
        n_pages = budget.n_pages(settings.kv_memory, states_bytes, gguf.file_size)
        kv_tokens = n_pages * format.page_tokens
    else:
        n_pages = -(-kv_tokens // format.page_tokens)
    program = ProgramSizes(min(max_batch_tokens, max(n_ctx, kv_tokens)), n_ctx)
    return _Sizes(kv_type, format.page_tokens, budget, n_pages, n_states, program)


@dataclass(frozen=True)
class _Builder:
    """Builds a model around packed weights: allocates its KV cache and states, writes its programs, starts its threads."""

    backend: Backend
    module: Architecture
    config: Config
    weights: object
    sizes: _Sizes
    n_threads: int
    processors: list[int] | None
    team: Workers | None

    def model(self, n_pages: int) -> Model:
        """The model, with ``n_pages`` pages. Raises MemoryError, ResourceError."""
        backend, config, sizes = self.backend, self.config, self.sizes
        kv = KVCache(backend, config.kv_shapes, n_pages, sizes.kv_type, sizes.budget.window_pages(n_pages))
        states = StatePool(backend, config.state_parts, sizes.n_states) if sizes.n_states else None
        programs = _programs(backend, self.module, config, self.weights, sizes.program, self.n_threads, kv, states)
        workers = backend.workers(self.n_threads, self.processors) if self.team is None else self.team
        limits = StepLimits(
            config.n_vocab * config.n_types, sizes.program.max_context, sizes.program.max_batch_tokens, kv
        )
        try:
            runner, *encoders = [backend.runner(*program, workers, limits, states) for program in programs]
        except BaseException:
            if self.team is None:
                workers.close()
            raise
        parts = ModelParts(config, runner, kv, states, workers, self.team is None, limits, backend.target, self.weights)
        if not encoders:
            return Model(parts)
        return EncoderDecoder(Model(replace(parts, runner=encoders[0], owns_workers=False)), parts)


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
                "not enough memory for a KV cache of %d tokens: it holds %d "
                "(kv_memory, or --kv-memory of a command, sets its size)",
                wanted * page_tokens,
                n_pages * page_tokens,
            )
        return model


def _programs(
    backend: Backend,
    module: Architecture,
    config: Config,
    weights: object,
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
_in_use: weakref.WeakValueDictionary[object, object] = weakref.WeakValueDictionary()
_packing: weakref.WeakValueDictionary[object, threading.Lock] = weakref.WeakValueDictionary()
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
    progress: Callable[[float], object] | None,
) -> object:
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


def _threads(n_threads: int | None, team: Workers | None) -> int:
    """The number of compute threads. Raises RequestError."""
    if team is not None:
        return team.n_threads
    if n_threads is None:
        n_threads = default_threads()
    _check("n_threads", n_threads, MAX_THREADS)
    return n_threads


def _context(config: Config, n_ctx: int | None) -> int:
    """The context length: ``n_ctx``, or the training context, at most DEFAULT_CONTEXT. Raises RequestError."""
    if n_ctx is None:
        n_ctx = min(config.n_ctx_train, DEFAULT_CONTEXT)
    if type(n_ctx) is int and n_ctx > config.max_ctx:
        raise RequestError(f"n_ctx is {n_ctx}: the model supports a context of at most {config.max_ctx} tokens")
    _check("n_ctx", n_ctx, config.max_ctx)
    return n_ctx


def _check_settings(settings: LoadConfig) -> None:
    """Raise RequestError for a size that is out of range whatever the model."""
    _check("max_batch_tokens", settings.max_batch_tokens, 1 << 16)
    for name, value, most in (
        ("kv_tokens", settings.kv_tokens, 1 << 30),
        ("kv_memory", settings.kv_memory, 1 << 50),
        ("n_states", settings.n_states, 1 << 20),
    ):
        if value is not None:
            _check(name, value, most)


def _check(name: str, value: int, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise RequestError(f"{name} is {value!r}, expected an integer from 1 to {most}")


__all__ = ["Chunk", "LoadConfig", "Model", "load_model"]
