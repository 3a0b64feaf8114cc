"""Mixtures of experts: sizes, metadata, and tensors of stacked expert matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.decoder import Decoder
from gumba_convert.common.table import Layer
from gumba_convert.gguf_writer import Value, u32

MAX_EXPERTS = 4096


@dataclass(frozen=True)
class Experts:
    """Number of experts, number used per token, and the width of an expert."""

    n: int
    n_used: int
    n_ff: int


def read_experts(
    reader: ConfigReader,
    key: str,
    *,
    n: int | None = None,
    n_used: int | None = None,
    used_key: str = "num_experts_per_tok",
    n_ff: int,
) -> Experts:
    """The sizes; `key` holds the number of experts (or transformers 5's common `num_local_experts` does), `n` and
    `n_used` are the family's defaults.

    Raises:
        ConvertError: a key is missing or wrong, or a token would use more experts than there are.
    """
    if not reader.has(key):
        key = "num_local_experts"
    count, used = reader.integer(key, n), reader.integer(used_key, n_used)
    if count > MAX_EXPERTS:
        raise reader.fail(key, f"is {count}; at most {MAX_EXPERTS} are supported")
    if used > count:
        raise reader.fail(used_key, f"is {used}, more than the {count} experts")
    return Experts(count, used, n_ff)


def expert_metadata(architecture: str, experts: Experts, *, width: bool = False) -> dict[str, Value]:
    """The numbers of experts; with `width`, also their feed-forward width."""
    values = {
        f"{architecture}.expert_count": u32(experts.n),
        f"{architecture}.expert_used_count": u32(experts.n_used),
    }
    if width:
        values[f"{architecture}.expert_feed_forward_length"] = u32(experts.n_ff)
    return values


def separate_experts(
    layer: Layer,
    d: Decoder,
    experts: Experts,
    inner: str,
    *,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> None:
    """Experts of three matrices each, named `inner.NUMBER.NAME`; `names` of gate, up and down.

    Some checkpoints have two tensors for all experts instead: `inner.gate_up_proj`, gate before up, and `inner.down_proj`.
    """
    if layer.has(f"{inner}.gate_up_proj"):
        fused_experts(layer, d, experts, f"{inner}.gate_up_proj", f"{inner}.down_proj")
        return
    gate, up = (experts.n_ff, d.n_embd), (experts.n_ff, d.n_embd)
    for ours, theirs, shape in zip(("gate", "up", "down"), names, (gate, up, gate[::-1])):
        parts = [f"{inner}.{i}.{theirs}.weight" for i in range(experts.n)]
        layer.tensor(f"ffn_{ours}_exps.weight", parts, shape)


def fused_experts(layer: Layer, d: Decoder, experts: Experts, gate_up: str, down: str) -> None:
    """Experts in two tensors: [experts, gate and up, embedding] and [experts, embedding, width]; or each matrix transposed."""
    n, n_ff = experts.n, experts.n_ff
    if (layer.shape(gate_up), layer.shape(down)) == ((n, d.n_embd, 2 * n_ff), (n, n_ff, d.n_embd)):
        for i, name in enumerate(("gate", "up")):
            own = slice(i * n_ff, (i + 1) * n_ff)
            shape = (n, d.n_embd, 2 * n_ff)
            layer.tensor(f"ffn_{name}_exps.weight", gate_up, shape, columns=own, transposed=True)
        layer.tensor("ffn_down_exps.weight", down, (n, n_ff, d.n_embd), transposed=True)
        return
    both = np.arange(n * 2 * n_ff).reshape(n, 2, n_ff)
    for i, name in enumerate(("gate", "up")):
        layer.tensor(
            f"ffn_{name}_exps.weight",
            gate_up,
            (n, 2 * n_ff, d.n_embd),
            rows=both[:, i].reshape(-1),
            written=(n, n_ff, d.n_embd),
        )
    layer.tensor("ffn_down_exps.weight", down, (n, d.n_embd, n_ff))
