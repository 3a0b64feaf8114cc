"""A builder for every kernel: inputs, and what its oracle makes of them. ``TABLE`` names them all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gumba.backends.cpu.kernels.record import Kernel
from gumba.jit import jit
from gumba.quants import FORMATS
from gumba.simd.isa import Isa
from support.kernel_harness import GENERIC, Setup
from support.kernel_setups_altup import (
    setup_add_to_streams,
    setup_keep_greatest,
    setup_match_magnitude,
    setup_mix_streams,
)
from support.kernel_setups_attention import setup_attention, setup_rope, setup_store_kv, setup_view_outputs
from support.kernel_setups_delta_net import setup_causal_conv, setup_decay, setup_delta_rule
from support.kernel_setups_matmul import setup_embed, setup_head_matmul, setup_matmul, setup_quantize_q8
from support.kernel_setups_moe import (
    setup_add_expert_rows,
    setup_choose_experts,
    setup_expert_matmul,
    setup_gather_rows,
    setup_merge_experts,
    setup_scale_expert_rows,
    setup_sort_entries,
    setup_weigh_entries,
)
from support.kernel_setups_rows import (
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

#: Every kernel of ``gumba.backends.cpu.kernels``, by module and name: how its inputs and its oracle's answer are made.
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
    "moe.add_expert_rows": setup_add_expert_rows,
    "moe.choose_experts": setup_choose_experts,
    "moe.expert_matmul": setup_expert_matmul,
    "moe.gather_rows": setup_gather_rows,
    "moe.merge_experts": setup_merge_experts,
    "moe.scale_expert_rows": setup_scale_expert_rows,
    "moe.weigh_entries": setup_weigh_entries,
    "moe.sort_entries": setup_sort_entries,
    "matmul.head_matmul": setup_head_matmul,
    "matmul.matmul": setup_matmul,
    "norms.head_norm": setup_head_norm,
    "norms.layer_norm": setup_layer_norm,
    "norms.rms_norm": setup_rms_norm,
    "output_rows.view_outputs": setup_view_outputs,
    "activations_q8.quantize_q8": setup_quantize_q8,
    "causal_conv.causal_conv": setup_causal_conv,
    "delta_net.decay": setup_decay,
    "delta_net.delta_rule": setup_delta_rule,
    "rope.rope": setup_rope,
    "altup.add_to_streams": setup_add_to_streams,
    "altup.keep_greatest": setup_keep_greatest,
    "altup.match_magnitude": setup_match_magnitude,
    "altup.mix_streams": setup_mix_streams,
    "mean_pooling.text_means": setup_text_means,
}


ALL_FORMATS = list(FORMATS.values())


def counts() -> tuple[int, int]:
    """(compiled, loaded) when a kernel that is new to this process, scale, was run and found right."""
    setup = setup_scale(GENERIC)
    setup.kernel = Kernel(setup.kernel.function, "")
    compiled, loaded = jit.stats.compiled, jit.stats.loaded
    np.testing.assert_array_equal(setup.run(), setup.expected)
    return jit.stats.compiled - compiled, jit.stats.loaded - loaded
