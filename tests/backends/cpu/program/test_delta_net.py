"""What does not fit is refused when a program is written. What is computed: test_kernels.py and test_architectures.py."""

from __future__ import annotations

import numpy as np
import pytest

from gumba.backends.cpu.program.builder import Program
from gumba.simd.detect import current
from support.programs import matrix, named


def test_wrong_shapes_are_refused() -> None:
    p = Program(current(), 1, 8, states=[(64, 128)])
    x = p.embed(matrix(named("f32"), 20, 128))
    gates = p.matmul(matrix(named("f32"), 2, 128), x)
    taps, row = np.zeros((128, 3), np.float32), np.zeros(2, np.float32)
    last = p.select_outputs(x)
    before = len(p.operations)
    wrong = [
        lambda: p.causal_conv(x, taps[:96], 0),
        lambda: p.causal_conv(last, taps, 0),
        lambda: p.decay(gates, row[:1], row),
        lambda: p.decay(gates, row, row[:1]),
        lambda: p.delta_rule(x, x, gates, gates, 48, 0, 1),  # no whole blocks of columns
        lambda: p.delta_rule(x, x, gates, gates, 128, 0, 1),  # no room for queries and keys
        lambda: p.delta_rule(x, x, gates, x, 64, 0, 1),
        lambda: p.delta_rule(x, x, gates, gates, 32, 0, 1),  # 4 heads, 2 gates
    ]
    for call in wrong:
        with pytest.raises(ValueError):
            call()
    assert p.delta_rule(x, x, gates, gates, 64, 0, 1).width == 128
    assert len(p.operations) == before + 1  # a delta_rule that fits
