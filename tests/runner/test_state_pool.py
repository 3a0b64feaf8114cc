"""Recurrent states: who has which slot, and what a model refuses; copies go on as their originals would."""

from __future__ import annotations

import numpy as np
import pytest

from gumba import backends
from gumba.backends.cache_shapes import DeltaState
from gumba.errors import EngineError, RequestError, ResourceError
from gumba.runner import memory_budget
from gumba.runner.load import Chunk, Model
from gumba.runner.state_pool import StatePool
from support.tiny_models import DATA, load, logits_of, stored

PATH = DATA / "arch_qwen35.gguf"


def test_slots_are_handed_out_and_taken_back() -> None:
    states = StatePool(backends.get(), [(DeltaState(3, 1), DeltaState(1, 10)), (), (DeltaState(1, 4),)], 3)
    assert states.slot_bytes == 64 + 448 + 64
    assert [len(layer) for layer in states.memory.layouts] == [2, 0, 1]
    assert (np.diff([*states.memory.layouts[0], *states.memory.layouts[2]]) == [64, 448]).all()
    taken = [states.allocate() for _ in range(3)]
    assert sorted(taken) == [0, 1, 2] and states.n_free == 0
    with pytest.raises(ResourceError, match="3 slots"):
        states.allocate()
    states.release(taken[1])
    assert states.n_free == 1
    for wrong in (taken[1], -1, 3):
        assert not states.owns(wrong)
        for call in (states.release, states.read, lambda slot: states.copy(slot, taken[0])):
            with pytest.raises(EngineError, match="is not allocated"):
                call(wrong)
    assert states.allocate() == taken[1]
    states.close()
    for call in (lambda _: states.allocate(), states.read):
        with pytest.raises(EngineError, match="closed"):
            call(taken[0])


def test_what_is_copied_or_written_is_what_was_there() -> None:
    states = StatePool(backends.get(), [(DeltaState(20, 1),), (DeltaState(7, 1),)], 4)
    first, second = states.allocate(), states.allocate()
    data = bytes(range(1, states.slot_bytes + 1))
    states.write(first, data, 9)
    assert states.read(first) == data and states.lengths[first] == 9
    assert states.read(second) == bytes(states.slot_bytes)
    states.copy(first, second)
    assert states.read(second) == data and states.lengths[second] == 9
    with pytest.raises(RequestError, match="expected 192"):
        states.write(first, data[1:], 9)
    states.release(second)
    assert states.lengths[states.allocate()] == 0


@pytest.fixture(scope="module")
def model() -> Model:
    return load(PATH, n_threads=2, n_states=4)


def test_a_copy_goes_on_as_the_original_would(model: Model) -> None:
    tokens, _ = stored(PATH)
    whole = logits_of(model, tokens, len(tokens))
    states = model.states
    assert states is not None
    pages, others = model.kv.allocate(2), model.kv.allocate(2)
    one, other = states.allocate(), states.allocate()
    cut = 66
    model.forward([Chunk(tokens[:cut], 0, pages, "none", state=one)])
    states.copy(one, other)
    model.forward([Chunk([5, 6, 7], cut, pages, "none", state=one)])  # the original goes on differently
    model.kv.copy(pages[1], others[1])
    assert np.array_equal(
        model.forward([Chunk(tokens[cut:], cut, [pages[0], others[1]], "all", state=other)]), whole[cut:]
    )
    saved = states.read(other)
    assert states.lengths[other] == len(tokens)
    # A slot that was used is as good as new at position 0.
    assert np.array_equal(model.forward([Chunk(tokens, 0, others, "all", state=one)]), whole)
    assert states.read(one) == saved
    model.kv.release(pages + others)
    states.release(one)
    states.release(other)


def test_wrong_slots_are_refused_and_nothing_is_computed(model: Model) -> None:
    tokens, _ = stored(PATH)
    states = model.states
    assert states is not None
    pages = model.kv.allocate(2)
    taken = states.allocate()
    model.forward([Chunk(tokens[:5], 0, pages[:1], "none", state=taken)])
    before = states.read(taken)
    good = Chunk(tokens[5:7], 5, pages[:1], "none", state=taken)
    wrong = [
        [good._replace(state=-1)],
        [good._replace(state=4)],
        [good._replace(state=1 << 70)],
        [good._replace(state=np.int64(taken))],
        [good._replace(state=next(slot for slot in range(4) if not states.owns(slot)))],
        [good, Chunk([1], 0, pages[1:], "none", state=taken)],
    ]
    for chunks in wrong:
        with pytest.raises(RequestError, match=r"slot .* for recurrent states"):
            model.forward(chunks)
    for position in (4, 6):
        with pytest.raises(RequestError, match=f"position {position}: the state in slot {taken} is that of 5"):
            model.forward([good._replace(position=position)])
    with pytest.raises(RequestError):
        model.forward([good._replace(tokens=[-1])])
    assert states.read(taken) == before and states.lengths[taken] == 5
    model.forward([good])
    assert states.lengths[taken] == 7
    assert len(model.forward([good._replace(tokens=[], position=7)])) == len(model.forward([])) == 0
    assert states.lengths[taken] == 7
    model.kv.release(pages)
    states.release(taken)


def test_a_model_without_states_has_none() -> None:
    model = load(DATA / "arch_qwen3.gguf", n_threads=1)
    assert model.states is None and model.allocate_state() == -1
    model.release_state(-1)
    model.close()


def test_close_lets_go(model: Model) -> None:
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.allocate_state()


@pytest.mark.parametrize("there_is, expected", [(None, 4096), (1 << 40, 4096), (400_000_000, 1284), (1, 2)])
def test_as_many_slots_as_there_is_memory_for(
    there_is: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_budget, "available_memory", lambda: there_is)
    model = load(PATH, n_threads=1, kv_tokens=64)
    assert model.states is not None
    assert model.states.slot_bytes == 2 * 4 * (3 * 256 + 4 * 32 * 32) and model.states.n_slots == expected
    model.close()
    model = load(PATH, n_threads=1, kv_memory=4_000_000)
    assert model.states is not None and model.states.n_slots == 1_000_000 // model.states.slot_bytes
    assert 3_900_000 < model.states.n_bytes + model.kv.n_pages * model.kv.page_bytes <= 4_000_000
    model.close()
    with pytest.raises(RequestError, match=r"kv_memory is 20000, expected at least .* and the states of two sequences"):
        load(PATH, n_threads=1, kv_memory=20_000)
    for wrong in (0, 1 << 21, 2.0):
        with pytest.raises(RequestError, match="n_states"):
            load(PATH, n_threads=1, n_states=wrong)
