"""A builder for every kernel: inputs, and what its oracle makes of them. ``TABLE`` names them all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from harness import GENERIC, Setup
from setups_attention import setup_attention, setup_rope, setup_store_kv, setup_view_outputs
from setups_experts import (
    setup_add_expert_rows,
    setup_choose_experts,
    setup_expert_matmul,
    setup_gather_rows,
    setup_merge_experts,
    setup_sort_entries,
    setup_weigh_entries,
)
from setups_products import setup_embed, setup_head_matmul, setup_matmul, setup_quantize_q8
from setups_recurrent import setup_causal_conv, setup_decay, setup_delta_rule
from setups_rows import (
    setup_activation,
    setup_add_table,
    setup_combine,
    setup_copy_columns,
    setup_copy_heads,
    setup_gated,
    setup_head_norm,
    setup_layer_norm,
    setup_rms_norm,
    setup_scale,
    setup_scale_rows,
    setup_select_rows,
    setup_softcap,
    setup_swiglu_oai,
    setup_text_means,
)
from setups_streams import setup_add_to_streams, setup_keep_greatest, setup_match_magnitude, setup_mix_streams

from gumba.kernels import jit
from gumba.kernels.op import Kernel
from gumba.quants import FORMATS
from gumba.simd.isa import Isa

#: Every kernel of ``gumba.kernels``, by module and name: how its inputs and its oracle's answer are made.
TABLE: dict[str, Callable[[Isa], Setup]] = {
    "attention.attention": setup_attention,
    "attention.store_kv": setup_store_kv,
    "activations.activation": setup_activation,
    "activations.gated": setup_gated,
    "activations.softcap": setup_softcap,
    "activations.swiglu_oai": setup_swiglu_oai,
    "elementwise.add_table": setup_add_table,
    "elementwise.combine": setup_combine,
    "elementwise.copy_heads": setup_copy_heads,
    "elementwise.copy_columns": setup_copy_columns,
    "elementwise.scale": setup_scale,
    "elementwise.scale_rows": setup_scale_rows,
    "elementwise.select_rows": setup_select_rows,
    "embed.embed": setup_embed,
    "experts.add_expert_rows": setup_add_expert_rows,
    "experts.choose_experts": setup_choose_experts,
    "experts.expert_matmul": setup_expert_matmul,
    "experts.gather_rows": setup_gather_rows,
    "experts.merge_experts": setup_merge_experts,
    "experts.weigh_entries": setup_weigh_entries,
    "experts.sort_entries": setup_sort_entries,
    "matmul.head_matmul": setup_head_matmul,
    "matmul.matmul": setup_matmul,
    "norms.head_norm": setup_head_norm,
    "norms.layer_norm": setup_layer_norm,
    "norms.rms_norm": setup_rms_norm,
    "outputs.view_outputs": setup_view_outputs,
    "q8.quantize_q8": setup_quantize_q8,
    "recurrent.causal_conv": setup_causal_conv,
    "recurrent.decay": setup_decay,
    "recurrent.delta_rule": setup_delta_rule,
    "rope.rope": setup_rope,
    "streams.add_to_streams": setup_add_to_streams,
    "streams.keep_greatest": setup_keep_greatest,
    "streams.match_magnitude": setup_match_magnitude,
    "streams.mix_streams": setup_mix_streams,
    "text_means.text_means": setup_text_means,
}


ALL_FORMATS = list(FORMATS.values())


def counts() -> tuple[int, int]:
    """(compiled, loaded) when a kernel that is new to this process, scale, was run and found right."""
    setup = setup_scale(GENERIC)
    setup.kernel = Kernel(setup.kernel.function, "")
    compiled, loaded = jit.stats.compiled, jit.stats.loaded
    np.testing.assert_array_equal(setup.run(), setup.expected)
    return jit.stats.compiled - compiled, jit.stats.loaded - loaded
