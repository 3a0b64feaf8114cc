"""The interface of backends: every architecture loads and steps on one that computes nothing and has no CPU kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gumba import GGUFFile, backends
from gumba.backends import cache_shapes, operations
from gumba.backends.base import Chunk, ExpertMatrices, MatrixShape
from gumba.backends.cache_shapes import ConvState, DeltaState, KVShape
from gumba.backends.cpu.kernels import activations, causal_conv, recurrent_state
from gumba.errors import ResourceError
from gumba.quants import get
from gumba.runner.load import LoadConfig, load_model
from support.recording_backend import RecordingBackend
from support.recording_program import RecordedBuffer, RecordedMatrix, RecordingProgram
from support.tiny_models import DATA

FILES = sorted(DATA.glob("arch_*.gguf"))
RUNTIME = Path(backends.__file__).parent.parent


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> RecordingBackend:
    made = RecordingBackend()
    monkeypatch.setattr(backends, "get", lambda name="cpu", *, portable=False: made)
    return made


@pytest.mark.parametrize("path", FILES, ids=[path.stem.removeprefix("arch_") for path in FILES])
def test_every_architecture_runs(path: Path, backend: RecordingBackend) -> None:
    """Its program, its encoder's, its weights and its memory: through the interface alone, with all shapes right."""
    with GGUFFile(path) as file:
        model = load_model(file, LoadConfig(n_threads=2, max_sequences=1))
        tensors = {name: tensor.shape for name, tensor in file.tensors.items()}
    config, kv = model.config, model.kv
    pages = kv.allocate(2)
    window = [] if kv.window_pool is None else kv.window_pool.allocate(2)
    state = model.allocate_state()
    chunks = [Chunk([1, 2, 3, 4], 0, pages, "all", state, 0 if config.start_token is None else 2, window)]
    logits = model.forward(chunks)
    rows = 4 if config.start_token is None else 2
    width = config.n_labels or (config.n_embd if not config.causal else config.n_vocab)
    assert logits.shape == (rows, width) and model.hidden.shape == (rows, config.n_embd)
    names = [each.name for each in model.operations]
    assert names.count("attention") >= sum(shape.n_kv_heads > 0 for shape in kv.memory.layers)  # type: ignore[attr-defined]
    assert model.forward_timed(chunks).shape == (len(names),)
    (packer,) = backend.packers
    matrices = sum(int(np.prod(shape[:-1])) for shape in tensors.values() if len(shape) in (2, 3))
    assert 0 < sum(packer.packed.values()) <= packer.room == matrices
    model.close()


def test_it_keeps_what_pages_and_slots_hold(backend: RecordingBackend) -> None:
    with GGUFFile(DATA / "arch_qwen35.gguf") as file:
        model = load_model(file, LoadConfig(n_threads=1, n_states=2))
    page, other = model.kv.allocate(2)
    data = bytes(range(256)) * (model.kv.part_bytes[False] // 256)
    model.kv.write(page, data, windowed=False)
    model.kv.copy(page, other)
    assert model.kv.read(other, windowed=False) == data
    states = model.states
    assert states is not None
    first, second = states.allocate(), states.allocate()
    states.write(first, bytes([7]) * states.slot_bytes, 5)
    states.copy(first, second)
    assert set(states.read(second)) == {7} and states.lengths[second] == 5
    model.close()


def test_threads_end_where_a_program_does_not_fit(backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(backend, "runner", fail)
    with GGUFFile(DATA / "arch_t5.gguf") as file, pytest.raises(ResourceError, match="not enough memory"):
        load_model(file, LoadConfig(n_threads=2, kv_tokens=64))
    assert [team.closed for team in backend.teams] == [True]


WITHOUT_CPU = """
import sys
sys.modules["gumba.backends.cpu"] = None  # importing it, or anything in it, raises ImportError
from pathlib import Path
from gumba import GGUFFile, backends
from support.recording_backend import RecordingBackend
backends.get = lambda name="cpu", *, portable=False: RecordingBackend()
from gumba.backends.base import Chunk
from gumba.runner.load import LoadConfig, load_model
for path in sys.argv[1:]:
    with GGUFFile(Path(path)) as file:
        model = load_model(file, LoadConfig(n_threads=1))
    source = 0 if model.config.start_token is None else 1
    model.forward([Chunk([1, 2], 0, model.kv.allocate(1), "last", model.allocate_state(), source)])
    model.close()
assert not [name for name in sys.modules if name.startswith("gumba.backends.cpu.")]
"""


def test_no_part_of_the_cpu_backend_is_needed() -> None:
    paths = [
        str(DATA / f"arch_{name}.gguf") for name in ("llama_mistral", "gemma3n", "qwen35", "bert", "t5", "deepseek2")
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", WITHOUT_CPU, *filter(os.path.exists, paths)], env=environment, check=True)


@pytest.mark.parametrize("folder", ["models", "layers", "loading", "runner"])
def test_nothing_else_names_the_cpu_backend(folder: str) -> None:
    named = [
        path.name for path in (RUNTIME / folder).glob("*.py") if "backends.cpu" in path.read_text(encoding="utf-8")
    ]
    assert named == []


def test_limits_that_all_backends_share() -> None:
    """What files are checked against is what the CPU's kernels can do."""
    assert cache_shapes.MAX_CONV_TAPS == causal_conv.MAX_TAPS
    assert cache_shapes.DELTA_DIM_MULTIPLE == recurrent_state.COLUMNS
    assert tuple(activations.KINDS) == operations.ACTIVATIONS


def test_an_unknown_backend() -> None:
    assert backends.get("cpu").name == backends.get().name == "cpu"
    with pytest.raises(ValueError, match="'gpu'"):
        backends.get("gpu")


def matrix(rows: int, columns: int) -> RecordedMatrix:
    return RecordedMatrix(get("f32"), rows, columns)


def test_shapes_that_do_not_fit_are_refused() -> None:
    """What the recording program lets through would be worth nothing if it let everything through."""
    p = RecordingProgram(40, [KVShape(2, 8, 8), KVShape(1, 8, 4, window=9)], [(ConvState(32, 3), DeltaState(2, 32))])
    x, narrow = p.embed(matrix(50, 32)), p.embed(matrix(50, 16))
    chosen = p.select_outputs(x)
    table = p.rope_table(np.zeros(4), 1.0, neox=True)
    row = np.ones(16, np.float32)
    up, down = ExpertMatrices([matrix(8, 32)] * 4), ExpertMatrices([matrix(32, 8)] * 4)
    wrong: list[Callable[[], object]] = [
        lambda: p.matmul(matrix(8, 16), x),
        lambda: p.matmul(matrix(32, 32), x, residual=narrow),
        lambda: p.matmul(matrix(32, 32), x, residual=chosen),
        lambda: p.matmul(matrix(32, 32), x, bias=row),
        lambda: p.head_matmul([matrix(8, 16)] * 3, x),
        lambda: p.head_matmul([matrix(8, 16), matrix(4, 16)], x),
        lambda: p.rms_norm(x, row, 1e-5),
        lambda: p.layer_norm(x, None, row, 1e-5),
        lambda: p.head_norm(x, None, 1e-5, 3, 8),
        lambda: p.rope(x, 4, 8, 6, table),
        lambda: p.rope(x, 3, 8, 8, table),
        lambda: p.rope_table(np.zeros(4), 1.0, neox=True, factors=row),
        lambda: p.attention(x, None, None, 0, 1.0),
        lambda: p.attention(x, x, narrow, 0, 1.0),
        lambda: p.attention(x, narrow, None, 0, 1.0),
        lambda: p.attention(chosen, narrow, narrow, 0, 1.0),
        lambda: p.attention(x, p.slice(x, 0, 8), p.slice(x, 0, 4), 1, 1.0),
        lambda: p.attention(x, p.slice(x, 0, 8), p.slice(x, 0, 4), 1, 1.0, window=10),
        lambda: p.attention(x, narrow, narrow, 0, 1.0, window=3, chunk=3),
        lambda: p.attention(x, narrow, narrow, 0, 1.0, sinks=row),
        lambda: p.store_kv(x, x, 0),
        lambda: p.activation(x, "swish"),
        lambda: p.gated(x, narrow, "silu"),
        lambda: p.add(x, chosen),
        lambda: p.add_row(x, row),
        lambda: p.scale_rows(x, narrow),
        lambda: p.add_positions(x, np.ones((39, 32), np.float32)),
        lambda: p.add_types(x, np.ones((2, 16), np.float32), 50),
        lambda: p.slice(x, 20, 13),
        lambda: p.join_heads(2, [(x, 0, 8, 25)]),
        lambda: p.text_means(chosen),
        lambda: p.causal_conv(x, np.ones((32, 4), np.float32), 0),
        lambda: p.delta_rule(x, x, narrow, narrow, 32, 0, 1),
        lambda: p.moe(x, narrow, up, up, down, 1, "silu"),
        lambda: p.moe(x, p.slice(x, 0, 4), up, down, down, 1, "silu"),
        lambda: p.moe(x, p.slice(x, 0, 4), None, up, down, 5, "silu"),
        lambda: p.stack_streams([x, narrow]),
        lambda: p.mix_streams(p.stack_streams([x, x]), x),
        lambda: p.add_to_streams(p.stack_streams([x, x]), x, [1.0]),
        lambda: p.match_magnitude(x, narrow, 1e-5),
    ]
    for call in wrong:
        with pytest.raises(ValueError):
            call()
    before = len(p.operations)
    assert isinstance(p.moe(x, p.slice(x, 0, 4), up, up, down, 2, p.swiglu), RecordedBuffer)
    assert len(p.operations) > before


def test_weights_arrive_once(backend: RecordingBackend) -> None:
    packer = backend.packer([(MatrixShape(get("f32"), 20, 8), 2)])
    one = packer.allocate(MatrixShape(get("f32"), 20, 8))
    for first, last in packer.row_runs(one):
        packer.pack(one, first, np.zeros((last - first, 32), np.uint8))
    assert packer.packed == {id(one): 20} and packer.room == 40
