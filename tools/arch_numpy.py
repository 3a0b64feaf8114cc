"""Reference models in plain float64 NumPy for architectures that transformers lacks: the oracle of their golden files.

Each function takes a case's settings and a source of random parameters (name, shape) -> values, and the tokens of a text;
it returns config.json, the checkpoint's tensors, and the logits of every token [n_tokens, n_vocab], of an encoder the last hidden
states [n_tokens, width]. The names and shapes of parameters decide how they are drawn: see `weights` of make_arch_goldens.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Parameters = Callable[[str, tuple[int, ...]], np.ndarray]
Model = tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution's share below it."""
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def slopes(n_heads: int) -> list[float]:
    """ALiBi's: a geometric series for a power of two; for other numbers the one below it, and every other of the one above."""
    whole = 2 ** int(math.log2(n_heads))
    series = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    return series if whole == n_heads else series + slopes(2 * whole)[0::2][: n_heads - whole]


def jina_bert(settings: dict[str, Any], parameters: Parameters, tokens: np.ndarray) -> Model:
    """Jina Embeddings 2. `layout`: "first" (gated_layers), "second" (up_gated_layer, norms on Q and K), or "original"."""
    layout, width, inner = settings["layout"], settings["hidden_size"], settings["intermediate_size"]
    n_heads, eps, size = settings["num_attention_heads"], 1e-12, width // settings["num_attention_heads"]
    tensors: dict[str, np.ndarray] = {}

    def take(name: str, *shape: int) -> np.ndarray:
        tensors[name] = parameters(name, shape).astype(np.float32)
        return tensors[name].astype(np.float64)

    def linear(x: np.ndarray, name: str, rows: int, *, bias: bool = True) -> np.ndarray:
        found = x @ take(f"{name}.weight", rows, x.shape[-1]).T
        return found + take(f"{name}.bias", rows) if bias else found

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(x, take(f"{name}.weight", width), take(f"{name}.bias", width), eps)

    x = take("embeddings.word_embeddings.weight", settings["vocab_size"], width)[tokens]
    x = norm(x + take("embeddings.token_type_embeddings.weight", 2, width)[0], "embeddings.LayerNorm")
    places = np.arange(len(tokens))
    away = np.abs(places[:, None] - places[None, :]) * settings.get("alibi", 1.0)
    for i in range(settings["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        inside = layer + "attention.self."
        q, k, v = (linear(x, inside + name, width) for name in ("query", "key", "value"))
        if layout == "second":
            q, k = norm(q, inside + "layer_norm_q"), norm(k, inside + "layer_norm_k")
        heads = []
        for h, slope in enumerate(slopes(n_heads)):
            own = slice(h * size, (h + 1) * size)
            heads.append(softmax(q[:, own] @ k[:, own].T / math.sqrt(size) - slope * away) @ v[:, own])
        attended = linear(np.concatenate(heads, axis=1), layer + "attention.output.dense", width)
        h = norm(attended + x, layer + "attention.output.LayerNorm")
        if layout == "first":
            both = linear(h, layer + "mlp.gated_layers", 2 * inner, bias=False)
            x = norm(
                linear(gelu(both[:, :inner]) * both[:, inner:], layer + "mlp.wo", width) + h, layer + "mlp.layernorm"
            )
        elif layout == "second":
            h = norm(h + x, layer + "layer_norm_1")
            both = linear(h, layer + "mlp.up_gated_layer", 2 * inner, bias=False)
            down = linear(both[:, :inner] * gelu(both[:, inner:]), layer + "mlp.down_layer", width)
            x = norm(down + h, layer + "layer_norm_2")
        else:
            up = gelu(linear(h, layer + "intermediate.dense", inner))
            x = norm(linear(up, layer + "output.dense", width) + h, layer + "output.LayerNorm")
    config = {key: value for key, value in settings.items() if key not in ("layout", "alibi")}
    config |= {"architectures": ["JinaBertModel"], "model_type": "bert", "position_embedding_type": "alibi"}
    config |= {"feed_forward_type": "original" if layout == "original" else "geglu", "hidden_act": "gelu"}
    return config | {"layer_norm_eps": eps, "type_vocab_size": 2, "emb_pooler": "mean"}, tensors, x


OWN = {"JinaBert": jina_bert}
