"""Byte-level BPE that is stored as ranks alone: tiktoken's files (Qwen-1, GLM-4) and Mistral's tekken.json.

A token's rank says when it is made, not of which two. That is found by merging the token's own bytes with the tokens of
lower rank: what is left before the last step are its two parts.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from gumba.errors import ConvertError
from gumba.text.byte_bpe import BYTE_TO_CHARACTER
from gumba_convert.checkpoint import Checkpoint
from gumba_convert.special_tokens import SpecialTokens, added_tokens
from gumba_convert.tokens import CONTROL, NORMAL, Vocabulary, add, padding

QWEN_FILE, TEKKEN_FILE, GLM_FILE = "qwen.tiktoken", "tekken.json", "tokenizer.model"
#: What Qwen-1's tokenizer adds after the last rank (its code has them, no file of the checkpoint does).
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_LONGEST = 1024  # bytes of one token; merging them takes the square of it
#: The patterns of Mistral's files, and GGUF's name for all of them.
_TEKKEN_PATTERN_START = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"


def is_tiktoken(data: bytes) -> bool:
    """Whether a file holds lines of base64 and rank."""
    first = data[:8192].split(b"\n", 1)[0].split(b" ")
    return len(first) == 2 and first[1].strip().isdigit() and bool(first[0])


def parse_tiktoken(data: bytes, where: str) -> list[bytes]:
    """The tokens of a tiktoken file in order of rank.

    Raises:
        ConvertError: a line is not a token in base64 and its rank, or the ranks are not 0, 1, 2 ...
    """
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        text, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
            tokens[int(rank)] = token
        except (binascii.Error, ValueError):
            raise ConvertError(f"{where}: line {number}, {line[:80]!r}, is not a token in base64 and a rank") from None
    if sorted(tokens) != list(range(len(tokens))) or not tokens:
        raise ConvertError(f"{where}: the ranks are not 0, 1, 2 ... each once")
    return [tokens[rank] for rank in range(len(tokens))]


def merges_of(tokens: list[bytes], where: str) -> list[tuple[bytes, bytes]]:
    """The merges that make the tokens, in order of rank; a token that no two others make gets none.

    Raises:
        ConvertError: a token stands twice, is empty or longer than any in use.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        twice = next(token for rank, token in enumerate(tokens) if ranks[token] != rank)
        raise ConvertError(f"{where}: the token {twice!r:.80} stands there twice")
    merges = []
    for rank, token in enumerate(tokens):
        if not 0 < len(token) <= _LONGEST:
            raise ConvertError(f"{where}: the token of rank {rank} has {len(token)} bytes")
        parts = _parts(token, rank, ranks)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """What merging with the tokens below `rank` makes of a token's bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
        if best >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def spelled(token: bytes) -> str:
    """A token's bytes as GGUF's text."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)


def _vocabulary(
    ranked: list[bytes], first: int, n_rows: int, pre: str, special: SpecialTokens, where: str
) -> Vocabulary:
    """A vocabulary with the ranked tokens from the id `first` on."""
    if first + len(ranked) > n_rows:
        raise ConvertError(f"{where}: {first + len(ranked)} tokens, but the model's embedding has {n_rows} rows")
    tokens, types = padding(n_rows)
    tokens[first : first + len(ranked)] = map(spelled, ranked)
    types[first : first + len(ranked)] = NORMAL
    merges = [f"{spelled(left)} {spelled(right)}" for left, right in merges_of(ranked, where)]
    special.add.setdefault("bos", False)
    return Vocabulary("gpt2", pre, tokens, types, special, merges=merges)


def qwen(checkpoint: Checkpoint, data: bytes, n_rows: int, special: SpecialTokens) -> Vocabulary:
    """Qwen-1's vocabulary, from `qwen.tiktoken`."""
    where = f"{checkpoint.folder / QWEN_FILE}"
    ranked = parse_tiktoken(data, where)
    vocabulary = _vocabulary(ranked, 0, n_rows, "qwen2", special, where)
    named = _QWEN_SPECIAL[: n_rows - len(ranked)]
    added = {len(ranked) + i: {"content": text, "special": True} for i, text in enumerate(named)}
    add(vocabulary.tokens, vocabulary.types, added)
    for kind, text in (
        ("bos", "<|endoftext|>"),
        ("eos", "<|endoftext|>"),
        ("unk", "<|endoftext|>"),
        ("eot", "<|im_end|>"),
    ):
        if text in named:
            special.ids.setdefault(kind, len(ranked) + named.index(text))
    return vocabulary


def glm(
    checkpoint: Checkpoint, data: bytes, config: dict[str, Any], n_rows: int, special: SpecialTokens, pre: str | None
) -> Vocabulary:
    """GLM-4's vocabulary: `tokenizer.model` in tiktoken's form; what is added stands in tokenizer_config.json."""
    where = f"{checkpoint.folder / GLM_FILE}"
    # tiktoken takes a word that is a token whole: so does "glm4".
    vocabulary = _vocabulary(parse_tiktoken(data, where), 0, n_rows, pre or "glm4", special, where)
    added = added_tokens({}, config, where)
    add(vocabulary.tokens, vocabulary.types, added)
    places = {token["content"]: i for i, token in added.items()}
    for kind, text in (("eos", "<|endoftext|>"), ("unk", "<|endoftext|>"), ("eot", "<|user|>")):
        if text in places:
            special.ids.setdefault(kind, places[text])
    return vocabulary


def tekken(checkpoint: Checkpoint, data: dict[str, Any], n_rows: int, special: SpecialTokens) -> Vocabulary:
    """Mistral's vocabulary, from `tekken.json`: special tokens first, then tokens by rank."""
    where = f"{checkpoint.folder / TEKKEN_FILE}"
    config, listed = data.get("config"), data.get("vocab")
    n_special = config.get("default_num_special_tokens") if isinstance(config, dict) else None
    size = config.get("default_vocab_size") if isinstance(config, dict) else None
    pattern = config.get("pattern") if isinstance(config, dict) else None
    if type(n_special) is not int or type(size) is not int or not isinstance(listed, list) or n_special < 0:
        raise ConvertError(f"{where}: not a tekken tokenizer: no config with sizes, or no vocab")
    if not isinstance(pattern, str) or not pattern.startswith(_TEKKEN_PATTERN_START):
        raise ConvertError(f"{where}: unknown pattern {pattern!r:.300}")
    ranked = []
    for rank, entry in enumerate(listed[: max(size - n_special, 0)]):
        try:
            ranked.append(base64.b64decode(entry["token_bytes"], validate=True))
        except (TypeError, KeyError, ValueError):
            raise ConvertError(f"{where}: the entry of rank {rank}, {entry!r:.120}, has no token in base64") from None
    vocabulary = _vocabulary(ranked, n_special, n_rows, "tekken", special, where)
    names = data.get("special_tokens") or []
    placed = {e["rank"]: e["token_str"] for e in names if isinstance(e, dict) and {"rank", "token_str"} <= e.keys()}
    placed = {i: t for i, t in placed.items() if type(i) is int and 0 <= i < n_special and isinstance(t, str)}
    placed = placed or dict(enumerate(_TEKKEN_SPECIAL[:n_special]))
    for i in range(n_special):
        vocabulary.tokens[i], vocabulary.types[i] = placed.get(i, f"<SPECIAL_{i}>"), CONTROL
    for kind, text in (("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>")):
        if text in placed.values():
            special.ids.setdefault(kind, next(i for i, each in placed.items() if each == text))
    special.add["bos"] = "bos" in special.ids
    if len(set(vocabulary.tokens)) != n_rows:
        raise ConvertError(f"{where}: a special token has the text of another token")
    return vocabulary


#: The special tokens of the first tekken files, which do not name them.
_TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
)  # fmt: skip
