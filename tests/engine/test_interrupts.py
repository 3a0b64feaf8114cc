"""Ctrl-C at any moment: the engine stays usable, no page is lost, and other requests continue."""

from __future__ import annotations

import os
import queue
import random
import signal
import threading
import time

import numpy as np
import pytest

from gumba.engine.engine import Engine
from gumba.engine.generation import Generation
from gumba.sampling.sampler_state import SamplerState
from gumba.sampling_params import SamplingParams
from support.fake_model import END, N_VOCAB, FakeModel

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(os.name != "posix", reason="signals to oneself are POSIX"),
]


class Letters:
    def push(self, token: int) -> str:
        return "x"

    def finish(self) -> str:
        return ""


def request(start: int, count: int) -> Generation:
    params = SamplingParams(max_tokens=30, temperature=0)
    tokens = list(range(start, start + count))
    state = SamplerState(params, N_VOCAB, tokens)
    return Generation(tokens, params, seed=1, sampling=state, decoder=Letters(), end_ids=frozenset({END}), n_ctx=64)


def test_interrupts_at_any_moment_leave_the_engine_usable() -> None:
    armed, struck = [False], [0]

    def strike_once(number: int, frame: object) -> None:
        if armed[0]:
            armed[0] = False
            struck[0] += 1
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, strike_once)
    flat = np.zeros(N_VOCAB, np.float32)
    chance, end = random.Random(5), time.monotonic() + 4.0
    while time.monotonic() < end:
        model = FakeModel(n_pages=40, logits=lambda history: flat, before=lambda model: time.sleep(0.0001))
        engine = Engine(model, N_VOCAB, max_sequences=8)
        mine, other = request(1, 5), request(50, 7)
        others: queue.SimpleQueue[object] = queue.SimpleQueue()
        other.deliver = others.put
        engine.submit([other])
        striker = threading.Timer(chance.uniform(0.0, 0.01), os.kill, (os.getpid(), signal.SIGINT))
        try:
            armed[0] = True
            striker.start()
            for _ in engine.stream([mine]):
                pass
            armed[0] = False
        except KeyboardInterrupt:
            pass
        striker.join()
        assert others.get(timeout=5.0) is other, "another request hangs"
        assert other.error is None and other.finish_reason == "length"
        engine.discard([mine])  # the interrupt may have come before the stream could do so itself
        assert engine.kv_usage().in_use == 0
        closing = threading.Thread(target=engine.close, daemon=True)
        closing.start()
        closing.join(5.0)
        assert not closing.is_alive(), "close() hangs"
        assert model.kv.n_free == model.kv.n_pages
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert struck[0] > 20


@pytest.mark.parametrize("at_step", range(6))
def test_an_interrupt_ends_the_callers_own_requests_alone(at_step: int) -> None:
    """Ctrl-C during any step of a blocking call cancels its requests; others continue."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(model: FakeModel) -> None:
        if len(model.steps) == at_step:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)

    model = FakeModel(n_pages=40, max_batch_tokens=8, before=interrupt)
    engine = Engine(model, N_VOCAB, max_sequences=8)
    other = request(3, 1)
    others: queue.SimpleQueue[object] = queue.SimpleQueue()
    other.deliver = others.put
    engine.submit([other])
    with pytest.raises(KeyboardInterrupt):
        engine.finish([request(0, 20), request(1, 2)])
        time.sleep(5)
    assert others.get(timeout=5.0) is other and other.finish_reason == "length"
    alone = request(3, 1)
    engine.finish([alone])
    assert other.tokens == alone.tokens and engine.kv_usage().in_use == 0
    engine.close()


def test_closing_in_a_signal_handler() -> None:
    """The handler waits for the current step, and no longer."""
    model = FakeModel(n_pages=8)
    engine = Engine(model, N_VOCAB, max_sequences=2)
    sequence = request(1, 5)
    before = signal.signal(signal.SIGTERM, lambda *_: engine.close())
    model.before = lambda _: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.05))
    try:
        engine.finish([sequence])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sequence.finish_reason == "cancelled"
    assert model.closed == 1 and len(model.steps) < 30
    engine.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_a_step_raises_reaches_its_requests_and_no_others(kind: type[BaseException]) -> None:
    def fail(model: FakeModel) -> None:
        if len(model.steps) == 2:
            model.steps.append([])
            raise kind(3)

    model = FakeModel(n_pages=40, before=fail)
    engine = Engine(model, N_VOCAB, max_sequences=8)
    with pytest.raises(kind):
        engine.finish([request(1, 5)])
    later = request(1, 5)
    engine.finish([later])
    assert later.finish_reason == "length" and engine.kv_usage().in_use == 0
    engine.close()
