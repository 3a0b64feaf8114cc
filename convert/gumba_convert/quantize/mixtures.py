"""llama.cpp's choice of a block format for each matrix, by file type, role of the matrix and sizes of the model.

A mixture gives more bits to the matrices whose rounding harms a model most: the output matrix, the values of attention
(few, and summed over many tokens) and ``ffn_down``, there in the first and last eighth of the layers and every third one
between. The rules are those of llama.cpp's quantizer (``llama-quant.cpp``, July 2026) without an importance matrix, its
oddities included:

- a model without a matrix named ``output.weight`` counts as tied, an encoder without any output too: its token embedding gets
  the output's format, and so do the per-layer embeddings of Gemma 3n and Gemma 4;
- fused query, key and value matrices follow the rule for values (a rule of their own is written there, but never reached);
- the rules count calls in the order of the layers' numbers, except for encoder-decoders (``enc.blk.0``), where the order is that
  of the names as text, so layer 10 precedes layer 2;
- Falcon has other ranges of layers, models of exactly 8 experts keep attention in more bits, and models of 80 layers with
  grouped queries count as "70B", whose value matrices, small as they are, get at least 5 bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

#: (architecture, layers) of the models that llama.cpp calls 70B.
SEVENTY_B = (("llama", 80), ("qwen2", 80))
#: File types of the formats with a table of 16 numbers.
IQ4 = ("iq4_nl", "iq4_xs")
#: File types that keep attention's output in 5 bits where there are 8 experts.
FIVE_BIT_OUTPUT_OF_8_EXPERTS = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", *IQ4)
#: File types of about 2 bits and less, whose token embedding has more.
FOUR_BIT_EMBEDDING = ("tq1_0", "tq2_0", "q2_0")


class Role(Enum):
    """What a matrix is for, as far as the rules distinguish."""

    OUTPUT = auto()
    EMBEDDING = auto()
    VALUE = auto()
    KEY = auto()
    ATTENTION_OUTPUT = auto()
    DOWN = auto()
    OTHER = auto()


#: Part of the name -> role; the first that occurs decides.
_ROLES = (
    ("attn_qkv.weight", Role.VALUE),
    ("attn_kv_b.weight", Role.VALUE),
    ("attn_v.weight", Role.VALUE),
    ("attn_k.weight", Role.KEY),
    ("attn_q.weight", Role.OTHER),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.OTHER),
    ("ffn_gate", Role.OTHER),
    ("ffn_down", Role.DOWN),
)
_BLOCK = re.compile(r"blk\.(\d+)")


def role(name: str) -> Role:
    """The role of the matrix with this GGUF name."""
    if name == "output.weight":
        return Role.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return Role.EMBEDDING
    return next((role for part, role in _ROLES if part in name), Role.OTHER)


def in_order(names: Sequence[str]) -> list[str]:
    """Names in the order in which the rules count them: by layer, then as text; what is of no layer comes first."""

    def key(name: str) -> tuple[int, str]:
        match = _BLOCK.match(name)
        return (int(match[1]) if match else -1, name)

    return sorted(names, key=key)


def takes_more_bits(layer: int, n_layers: int) -> bool:
    """Whether a layer is of the first or last eighth, or every third between."""
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2


@dataclass(frozen=True)
class Sizes:
    """What the rules ask about a model: ``heads_per_kv``: query heads for each KV head, rounded down."""

    architecture: str
    n_layers: int
    n_experts: int
    n_heads: int
    n_kv_heads: int

    @property
    def heads_per_kv(self) -> int:
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        grouped = self.architecture != "llama" or self.n_heads != self.n_kv_heads
        return (self.architecture, self.n_layers) in SEVENTY_B and grouped and self.n_experts != 8

    @property
    def is_falcon(self) -> bool:
        return self.architecture == "falcon"


class Mixture:
    """The rules for one file of the type ``file_type``, whose matrices have the format ``default`` unless a rule says otherwise.

    ``names``: of all tensors of the file. ``choose`` is called once for each matrix, in the order of ``in_order``.
    """

    def __init__(self, file_type: str, default: str, sizes: Sizes, names: Sequence[str]) -> None:
        self._type, self._default, self._sizes = file_type, default, sizes
        self._tied = "output.weight" not in names
        self._n_values = sum(role(name) is Role.VALUE for name in names)
        self._values = self._downs = 0

    def choose(self, name: str, shape: Sequence[int], block_size: int) -> str:
        """The format of a matrix, or of those of experts (``shape``: their number, rows, columns).

        ``block_size``: that of the default format.
        """
        kind = role(name)
        if self._type == "mxfp4_moe":
            return "mxfp4" if len(shape) == 3 and shape[0] > 1 and kind is not Role.OUTPUT else "q8_0"
        if kind is Role.OUTPUT or (kind is Role.EMBEDDING and self._tied):
            return self._output(shape[-1], block_size)
        if kind is Role.EMBEDDING and self._type in FOUR_BIT_EMBEDDING:
            return "q4_k"
        if kind is Role.VALUE:
            self._values += 1
            return self._value(self._values - 1)
        if kind is Role.DOWN:
            self._downs += 1
            match = _BLOCK.match(name) if self._sizes.n_experts > 1 else None  # experts: several matrices in a layer
            return self._down(int(match[1]) if match else self._downs - 1)
        if kind is Role.KEY and self._sizes.n_experts == 8:
            return "q8_0"
        if kind is Role.ATTENTION_OUTPUT:
            return self._attention_output()
        return self._default

    def _output(self, columns: int, block_size: int) -> str:
        if self._sizes.is_falcon or columns % block_size:
            return "q8_0"
        return "q8_0" if self._default == "q8_0" else "q6_k"

    def _value(self, layer: int) -> str:
        sizes, chosen = self._sizes, self._default
        if sizes.n_experts == 8:
            return "q8_0"
        if self._type == "q2_k":
            chosen = "q4_k" if sizes.heads_per_kv >= 4 else "q3_k"
        elif self._type == "q3_k_m":
            chosen = "q5_k" if layer < 2 else "q4_k"
        elif self._type == "q3_k_l":
            chosen = "q5_k"
        elif self._type == "q4_k_s":
            chosen = "q5_k" if layer < 4 else "q4_k"
        elif self._type in ("q4_k_m", "q5_k_m") and takes_more_bits(layer, self._n_values):
            chosen = "q6_k"
        elif self._type in IQ4 and sizes.heads_per_kv >= 4:
            chosen = "q5_k"
        return "q5_k" if sizes.is_70b and chosen in ("q3_k", "q4_k") else chosen

    def _down(self, layer: int) -> str:
        n_layers, falcon = self._sizes.n_layers, self._sizes.is_falcon
        more = takes_more_bits(layer, n_layers)
        if self._type == "q2_k":
            return "q3_k"
        if self._type == "q3_k_m":
            if layer < n_layers // 16:
                return "q5_k"
            return "q4_k" if more or not falcon else "q3_k"
        if self._type == "q3_k_l":
            return "q4_k" if falcon else "q5_k"
        if (self._type in IQ4 or (self._type == "q4_k_s" and not falcon)) and layer < n_layers // 8:
            return "q5_k"
        if self._type == "q4_k_m" and falcon:
            return "q6_k" if layer < n_layers // 16 else "q5_k" if more else "q4_k"
        if self._type in ("q4_k_m", "q5_k_m") and more:
            return "q6_k"
        return self._default

    def _attention_output(self) -> str:
        if self._sizes.is_falcon:
            return "q4_k" if self._type == "q3_k_l" else self._default
        if self._sizes.n_experts == 8:
            return "q5_k" if self._type in FIVE_BIT_OUTPUT_OF_8_EXPERTS else self._default
        return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(self._type, self._default)
