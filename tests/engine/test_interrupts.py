"""Ctrl-C at any moment: the engine stays whole, no page is lost, and other requests go on."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import numpy as np
import pytest
from fake_model import END, N_VOCAB, FakeModel

from gumba.engine.engine import Engine
from gumba.engine.interrupts import Held
from gumba.engine.sequence import Generation
from gumba.params import SamplingParams

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals to oneself are POSIX")


class Letters:
    def push(self, token: int) -> str:
        return "x"

    def finish(self) -> str:
        return ""


def request(start: int, count: int) -> Generation:
    params = SamplingParams(max_tokens=30, temperature=0)
    tokens = list(range(start, start + count))
    return Generation(tokens, params, seed=1, decoder=Letters(), end_ids=frozenset({END}), capacity=64)


def test_repeated_interrupts_leave_the_engine_whole() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    flat = np.zeros(N_VOCAB, np.float32)
    chance, struck, end = random.Random(5), 0, time.monotonic() + 4.0
    while time.monotonic() < end:
        model = FakeModel(n_pages=40, logits=lambda history: flat)
        engine = Engine(model, N_VOCAB, max_sequences=8)
        mine, other = request(1, 5), request(50, 7)
        engine.submit([other])
        stop, delay = threading.Event(), chance.uniform(0.0, 0.004)

        def strike(stop: threading.Event = stop, delay: float = delay) -> None:
            time.sleep(delay)
            while not stop.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.0004)

        striker = threading.Thread(target=strike)
        striker.start()
        try:
            try:
                engine.submit([mine])
                while not mine.done:
                    engine.next_event(mine)
            finally:
                stop.set()
        except KeyboardInterrupt:
            struck += 1
        while striker.is_alive():
            try:
                stop.set()
                striker.join()
            except KeyboardInterrupt:
                struck += 1
        engine.discard([mine])
        done = threading.Thread(target=engine.finish, args=([other],), daemon=True)
        done.start()
        done.join(5.0)
        assert not done.is_alive(), "another thread's request hangs"
        assert other.error is None and other.finish_reason is not None
        engine.discard([other])
        assert model.kv.n_free == model.kv.n_pages
        closing = threading.Thread(target=engine.close, daemon=True)
        closing.start()
        closing.join(5.0)
        assert not closing.is_alive(), "close() hangs"
    assert struck > 20


def test_close_in_a_signal_handler() -> None:
    """The handler returns at once; the step that it interrupted ends, and closes the model."""
    model = FakeModel(n_pages=8)
    engine = Engine(model, N_VOCAB, max_sequences=2)
    sequence = request(1, 5)
    engine.submit([sequence])
    before = signal.signal(signal.SIGTERM, lambda *_: engine.close())
    model.before = lambda _: os.kill(os.getpid(), signal.SIGTERM)
    try:
        engine.finish([sequence])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sequence.finish_reason == "cancelled"
    assert engine._model_closed
    engine.close()


def test_held_interrupts_come_after() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []
    with pytest.raises(KeyboardInterrupt), Held():
        with Held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        seen.append("inner ended")
        time.sleep(0.01)
        seen.append("outer ended")
    assert seen == ["inner ended", "outer ended"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
