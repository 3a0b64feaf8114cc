"""What each kernel computes, in slow and obvious NumPy. Layouts are written out here once more, from their documentation."""

from __future__ import annotations

import math

import numpy as np

from gumba.simd.isa import Isa

PAGE_TOKENS = 64


def quantize_q8(x: np.ndarray) -> np.ndarray:
    """float32 [n, 32 k] -> uint8 [n, k, 64]: exactly the blocks that ``kernels.activations_q8`` describes, for finite x."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=2)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    q = np.rint(blocks * inverse[..., None]).astype(np.int32)
    sums = q.reshape(*q.shape[:2], 2, 16).sum(axis=3).astype(np.int32)
    total = sums.sum(axis=2).astype(np.int32)
    out = np.zeros((*largest.shape, 64), np.uint8)
    out[..., 0:32] = q.astype(np.int8).view(np.uint8)
    scale = largest * np.float32(1 / 127)
    for at, field in (
        (32, scale), (36, scale * total.astype(np.float32)), (40, -8 * total), (44, -128 * total),
        (48, -32 * sums[..., 0]), (52, -32 * sums[..., 1]),
        (56, scale * sums[..., 0].astype(np.float32)), (60, scale * sums[..., 1].astype(np.float32)),
    ):  # fmt: skip
        out[..., at : at + 4] = np.ascontiguousarray(field)[..., None].view(np.uint8)
    return out


def dequantize_q8(blocks: np.ndarray) -> np.ndarray:
    """uint8 [n, k, 64] -> float64 [n, 32 k]."""
    q = np.ascontiguousarray(blocks[..., :32]).view(np.int8).astype(np.float64)
    scale = np.ascontiguousarray(blocks[..., 32:36]).view(np.float32).astype(np.float64)
    return (q * scale).reshape(len(blocks), -1)


def matmul(x: np.ndarray, w: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    """float64 [n, columns], [rows, columns] -> [n, rows]."""
    out = x.astype(np.float64) @ w.astype(np.float64).T
    return out if residual is None else out + residual


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """float64 of x / sqrt(mean(x^2) + eps) * weight, row by row."""
    x = x.astype(np.float64)
    return np.asarray(x / np.sqrt((x * x).mean(axis=1, keepdims=True) + np.float32(eps)) * weight)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """float64 of (x - mean) / sqrt(variance + eps) * weight + bias, row by row."""
    x = x.astype(np.float64)
    off = x - x.mean(axis=1, keepdims=True)
    return np.asarray(off / np.sqrt((off * off).mean(axis=1, keepdims=True) + np.float32(eps)) * weight + bias)


def activate(kind: str, x: np.ndarray) -> np.ndarray:
    """float64 of the functions by their definitions."""
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):  # e^710 and more is infinite: then the result is 0, as it must be
        if kind == "silu":
            return np.asarray(x / (1 + np.exp(-x)))
        if kind == "gelu":
            return np.asarray([v / 2 * math.erfc(-v / math.sqrt(2)) for v in x.flat]).reshape(x.shape)
        if kind == "gelu_tanh":  # 1 + tanh(y) = 2 / (1 + e^-2y)
            return np.asarray(x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
        if kind == "gelu_quick":
            return np.asarray(x / (1 + np.exp(-1.702 * x)))
        if kind == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-x)))
    return np.asarray({"relu": np.maximum(x, 0), "relu2": np.maximum(x, 0) ** 2, "tanh": np.tanh(x)}[kind])


def swiglu_oai(gate: np.ndarray, up: np.ndarray, alpha: float, limit: float) -> np.ndarray:
    gate, up = np.minimum(gate.astype(np.float64), limit), np.clip(up.astype(np.float64), -limit, limit)
    return np.asarray(gate / (1 + np.exp(-alpha * gate)) * (up + 1))


def combine(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float32: one rounding."""
    return np.asarray(x + y if kind == "add" else x * y)


def select_rows(x: np.ndarray, chosen: list[int]) -> np.ndarray:
    return np.asarray(x[chosen])


def embed(w: np.ndarray, tokens: list[int]) -> np.ndarray:
    return np.asarray(w[tokens])


def rope(x: np.ndarray, positions: list[int], frequencies: np.ndarray, neox: bool) -> np.ndarray:
    """float64 [n, heads, head_dim]: pairs turn as complex numbers; what lies behind the pairs stays."""
    out = x.astype(np.float64)
    half = len(frequencies)
    for t, position in enumerate(positions):
        for i, frequency in enumerate(frequencies):
            a, b = (i, half + i) if neox else (2 * i, 2 * i + 1)
            turned = (out[t, :, a] + 1j * out[t, :, b]) * np.exp(1j * position * frequency)
            out[t, :, a], out[t, :, b] = turned.real, turned.imag
    return out


def store_kv(
    page: np.ndarray, place: int, k: np.ndarray, v: np.ndarray, v_offset: int, v_row: int, dtype: np.dtype
) -> None:
    """One token's keys and values, float32 [heads, head_dim] and [heads, v_dim], into a page, uint8 [bytes of a layer]."""
    heads, head_dim = k.shape
    size = dtype.itemsize
    keys = page[: heads * head_dim * PAGE_TOKENS * size].view(dtype).reshape(heads, head_dim, PAGE_TOKENS)
    values = page[v_offset : v_offset + heads * PAGE_TOKENS * v_row * size].view(dtype)
    keys[:, :, place] = k
    values.reshape(heads, PAGE_TOKENS, v_row)[:, place, : v.shape[1]] = v


def store_kv_q8_0(page: np.ndarray, place: int, k: np.ndarray, v: np.ndarray, v_offset: int, isa: Isa) -> None:
    """The same for pages of q8_0: keys packed like the rows of a weight matrix, values token by token."""
    heads, lanes = len(k), isa.lanes
    k_blocks, v_blocks = (-(-x.shape[1] // 32) for x in (k, v))
    keys = page[: heads * k_blocks * 34 * 64].reshape(heads, 64 // lanes, k_blocks, 34 * lanes)
    values = page[v_offset : v_offset + heads * v_blocks * 34 * 64].reshape(heads, v_blocks, 34 * 64)
    group, lane = divmod(place, lanes)
    for x, is_key in ((k, True), (v, False)):
        n_blocks = k_blocks if is_key else v_blocks
        padded = np.zeros((heads, n_blocks * 32), np.float32)
        padded[:, : x.shape[1]] = x
        made = quantize_q8(padded)
        with np.errstate(over="ignore"):
            scales = made[..., 32:36].view(np.float32)[..., 0].astype(np.float16)
        for h in range(heads):
            for b in range(n_blocks):
                q = made[h, b, :32]
                if is_key:
                    keys[h, group, b, 2 * lane : 2 * lane + 2] = scales[h, b].reshape(1).view(np.uint8)
                    words = keys[h, group, b, 2 * lanes :].reshape(8, lanes, 4)
                    words[:, lane] = q.reshape(8, 4) ^ (0 if isa.dot_signed is not None else 128)
                else:
                    values[h, b, 32 * place : 32 * place + 32] = q
                    values[h, b, 2048 + 2 * place : 2050 + 2 * place] = scales[h, b].reshape(1).view(np.uint8)


def through_bf16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def store_kv_bf16(page: np.ndarray, place: int, k: np.ndarray, v: np.ndarray, v_offset: int, v_row: int) -> None:
    """The same for pages of bfloat16: keys in pairs of elements, values in pairs of tokens."""
    heads, head_dim = k.shape
    pairs = -(-head_dim // 2)
    halves = [(through_bf16(x).view(np.uint32) >> 16).astype(np.uint16) for x in (k, v)]
    keys = page[: heads * pairs * 256].view(np.uint16).reshape(heads, pairs, 64, 2)
    values = page[v_offset : v_offset + heads * 64 * v_row * 2].view(np.uint16).reshape(heads, 32, v_row, 2)
    for i in range(2 * pairs):
        keys[:, i // 2, place, i % 2] = halves[0][:, i] if i < head_dim else 0
    values[:, place // 2, : v.shape[1], place % 2] = halves[1]


def through_q8(x: np.ndarray, half: bool) -> np.ndarray:
    """float32 [..., n] as it comes back from int8 blocks of 32, whose scales are float16 when ``half``."""
    n = x.shape[-1]
    padded = np.zeros((int(np.prod(x.shape[:-1])), -(-n // 32) * 32), np.float32)
    padded[:, :n] = x.reshape(-1, n)
    made = quantize_q8(padded)
    scales = np.ascontiguousarray(made[..., 32:36]).view(np.float32)
    if half:
        scales = scales.astype(np.float16).astype(np.float32)
    values = made[..., :32].view(np.int8).astype(np.float64) * scales
    return np.asarray(values.reshape(len(padded), -1)[:, :n].reshape(x.shape))


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, first_position: int, scale: float, *, window: int = 0, cap: float = 0.0,
    sinks: np.ndarray | None = None, slopes: np.ndarray | None = None, causal: bool = True, chunk: int = 0,
    bias: np.ndarray | None = None, answer: int | None = None, cross: int | None = None,
) -> np.ndarray:  # fmt: skip
    """float64 [n, heads, v_dim] for queries at ``first_position`` ...; k, v: [context, kv_heads, head_dim or v_dim].

    ``bias``: [heads, 2 * reach + 1], of keys ``reach`` before the query up to as many after it; ``answer``, ``cross``: tokens
    of the source, where only keys after it, or only its own, are seen.
    """
    n, heads, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros((n, heads, v.shape[2]))
    keys = np.arange(len(k))
    for t in range(n):
        position = first_position + t
        seen = keys <= position if causal else keys >= 0
        if window:
            seen &= np.abs(keys - position) < window
        if chunk:
            seen &= keys // chunk == position // chunk
        if answer is not None:
            seen &= keys >= answer
        if cross is not None:
            seen = keys < cross
        for h in range(heads):
            scores = k[seen, h // group].astype(np.float64) @ q[t, h].astype(np.float64) * scale
            if cap:
                scores = cap * np.tanh(scores / cap)
            if slopes is not None:
                scores = scores - slopes[h] * np.abs(keys[seen] - position)
            if bias is not None:
                reach = bias.shape[1] // 2
                scores = scores + bias[h, np.clip(keys[seen] - position, -reach, reach) + reach]
            top = max(scores.max(), sinks[h]) if sinks is not None else scores.max()
            weights = np.exp(scores - top)
            total = weights.sum() + (np.exp(sinks[h] - top) if sinks is not None else 0)
            out[t, h] = weights / total @ v[seen, h // group].astype(np.float64)
    return out


def choose_experts(
    logits: np.ndarray,
    n_used: int,
    weights: str,
    normalized: bool,
    bias: np.ndarray | None,
    factor: float,
    groups: tuple[int, int] = (1, 1),
) -> tuple[np.ndarray, np.ndarray]:
    """Experts int [n, n_used], best first, and their weights, float64."""
    x = logits.astype(np.float64)
    keys = (1 / (1 + np.exp(-x)) if weights == "sigmoid" else x) + (0 if bias is None else bias)
    grouped = np.sort(keys.reshape(len(keys), groups[0], -1), axis=2)
    of_group = grouped[:, :, -2:].sum(axis=2) if weights == "sigmoid" else grouped[:, :, -1]
    best = np.argsort(-of_group, axis=1, kind="stable")[:, : groups[1]]
    out = np.ones((len(keys), groups[0]), bool)
    np.put_along_axis(out, best, False, axis=1)
    keys = np.where(np.repeat(out, grouped.shape[2], axis=1), -np.inf, keys)
    chosen = np.argsort(-keys, axis=1, kind="stable")[:, :n_used]
    if weights == "sigmoid":
        made = np.take_along_axis(1 / (1 + np.exp(-x)), chosen, 1)
    else:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        made = np.take_along_axis(e / e.sum(axis=1, keepdims=True), chosen, 1)
    if normalized or weights == "softmax_chosen":
        made = made / made.sum(axis=1, keepdims=True)
    return chosen, made * factor
