"""Byte-level BPE from rank files: tiktoken's (Qwen-1, GLM-4, Llama 3) and Mistral's tekken.json.

A rank gives the order of merges, but not the two parts of each. They are found by merging the token's own bytes with the tokens
of lower rank: the two parts before the last step. Then the tiktoken library encodes a text with the same ranks, and the
converted vocabulary must give the same ids. Files are parsed here, because the library's loader keeps copies by path in the
temporary folder, which could be those of an earlier file.
"""

from __future__ import annotations

import base64
import binascii

from gumba.errors import ConvertError, TokenizerError
from gumba.gguf.parser import Header
from gumba.tokenizer.byte_bpe import BYTE_TO_CHARACTER
from gumba.tokenizer.tokenizer import Tokenizer
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.gguf_writer import header, string
from gumba_convert.vocabulary.pre_tokenizer_probe import PROBE
from gumba_convert.vocabulary.pre_tokenizers import to_json
from gumba_convert.vocabulary.special_tokens import AddedToken, SpecialTokens, added_tokens
from gumba_convert.vocabulary.tokens import CONTROL, NORMAL, Vocabulary, add, padding

QWEN_FILE, TEKKEN_FILE, MODEL_FILE = "qwen.tiktoken", "tekken.json", "tokenizer.model"
#: Special tokens of Llama 3 after the last rank, from Meta's code, and those that 3.1 names.
_LLAMA3_NAMED = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
_LLAMA31_NAMED = _LLAMA3_NAMED | {4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}
_LLAMA3_SPECIAL = 256
#: Special tokens of Qwen-1 after the last rank; they are in its code, not in a file of the checkpoint.
_QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_MAX_TOKEN_BYTES = 1024  # merging takes quadratic time
#: The start of the patterns in Mistral's files; GGUF has one name, "tekken", for all of them.
_TEKKEN_PATTERN_START = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"


def is_tiktoken(data: bytes) -> bool:
    """Whether a file has lines of a base64 token and a rank."""
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
    """The merges that form the tokens, in order of rank; a token that no two others form has none.

    Raises:
        ConvertError: a token occurs twice, is empty, or is longer than any in use.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        twice = next(token for rank, token in enumerate(tokens) if ranks[token] != rank)
        raise ConvertError(f"{where}: the token {twice!r:.80} occurs twice")
    merges = []
    for rank, token in enumerate(tokens):
        if not 0 < len(token) <= _MAX_TOKEN_BYTES:
            raise ConvertError(f"{where}: the token of rank {rank} has {len(token)} bytes")
        parts = _parts(token, rank, ranks)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def _parts(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    """The parts of a token's bytes after merging with the tokens below `rank`, at most to two parts."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best, at = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
        if best >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def gguf_text(token: bytes) -> str:
    """GGUF's text of a token's bytes."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)


def _vocabulary(
    ranked: list[bytes], first: int, n_rows: int, pre: str, special: SpecialTokens, where: str
) -> Vocabulary:
    """A vocabulary with the ranked tokens at ids from `first` on."""
    if first + len(ranked) > n_rows:
        raise ConvertError(f"{where}: {first + len(ranked)} tokens, but the model's embedding has {n_rows} rows")
    tokens, types = padding(n_rows)
    tokens[first : first + len(ranked)] = map(gguf_text, ranked)
    types[first : first + len(ranked)] = NORMAL
    merges = [f"{gguf_text(left)} {gguf_text(right)}" for left, right in merges_of(ranked, where)]
    special.add.setdefault("bos", False)
    return Vocabulary("gpt2", pre, tokens, types, special, merges=merges)


def qwen(checkpoint: Checkpoint, data: bytes, n_rows: int, special: SpecialTokens) -> Vocabulary:
    """Qwen-1's vocabulary, from `qwen.tiktoken`."""
    where = f"{checkpoint.folder / QWEN_FILE}"
    ranked = parse_tiktoken(data, where)
    vocabulary = _vocabulary(ranked, 0, n_rows, "qwen2", special, where)
    named = _QWEN_SPECIAL[: n_rows - len(ranked)]
    added: dict[int, AddedToken] = {
        len(ranked) + i: {"content": text, "special": True, "flags": 0} for i, text in enumerate(named)
    }
    add(vocabulary.tokens, vocabulary.types, added)
    for kind, text in (
        ("bos", "<|endoftext|>"),
        ("eos", "<|endoftext|>"),
        ("unk", "<|endoftext|>"),
        ("eot", "<|im_end|>"),
    ):
        if text in named:
            special.ids.setdefault(kind, len(ranked) + named.index(text))
    _compare(ranked, 0, _pattern("qwen2"), vocabulary, where)
    return vocabulary


def from_model(
    checkpoint: Checkpoint, data: bytes, config: JsonObject, n_rows: int, special: SpecialTokens, pre: str | None
) -> Vocabulary:
    """A vocabulary from `tokenizer.model` in tiktoken's form: GLM-4's or Llama 3's, by config.json.

    Raises:
        ConvertError: the file is malformed, or belongs to another family, whose pattern no file names, and `pre` is None.
    """
    where = f"{checkpoint.folder / MODEL_FILE}"
    kind = str(checkpoint.config.get("model_type"))
    llama = kind in ("llama", "mllama")
    if pre is None and not llama and not kind.startswith(("chatglm", "glm")):
        raise ConvertError(
            f"{where}: a tiktoken file, which does not define the pre-tokenizer, of model_type {kind!r:.80}; known are Llama 3's "
            "and GLM-4's. Take the model's tokenizer.json, or name the pre-tokenizer (--pre-tokenizer, pre_tokenizer=)"
        )
    # tiktoken keeps a word that is a token whole, as "glm4" and "llama-bpe" do.
    ranked = parse_tiktoken(data, where)
    vocabulary = _vocabulary(ranked, 0, n_rows, pre or ("llama-bpe" if llama else "glm4"), special, where)
    added = added_tokens({}, config, where) or (_llama3_tokens(checkpoint, len(ranked), n_rows) if llama else {})
    add(vocabulary.tokens, vocabulary.types, added)
    ids = {token["content"]: i for i, token in added.items()}
    roles = {"eos": "<|endoftext|>", "unk": "<|endoftext|>", "eot": "<|user|>"}
    if llama:
        roles = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "eot": "<|eot_id|>", "eom": "<|eom_id|>"}
        special.add["bos"] = special.add["bos"] or roles["bos"] in ids
    for role, text in roles.items():
        if text in ids:
            special.ids.setdefault(role, ids[text])
    _compare(ranked, 0, _pattern(vocabulary.pre), vocabulary, where)
    return vocabulary


def _llama3_tokens(checkpoint: Checkpoint, first: int, n_rows: int) -> dict[int, AddedToken]:
    """Llama 3's special tokens; from 3.1 on (recognized by its RoPE scaling) more of them have names."""
    scaling = checkpoint.config.get("rope_scaling") or checkpoint.config.get("rope_parameters")
    kind = (scaling.get("rope_type") or scaling.get("type")) if isinstance(scaling, dict) else None
    named = _LLAMA31_NAMED if kind == "llama3" else _LLAMA3_NAMED
    reserved = iter(range(_LLAMA3_SPECIAL))
    names = [named.get(i) or f"reserved_special_token_{next(reserved)}" for i in range(_LLAMA3_SPECIAL)]
    return {
        first + i: {"content": f"<|{name}|>", "special": True, "flags": 0}
        for i, name in enumerate(names[: n_rows - first])
    }


def _pattern(pre: str) -> str | None:
    """The pattern of a pre-tokenizer with a single one; None for others."""
    steps = to_json(pre).get("pretokenizers", [])
    patterns = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]
    return patterns[0] if len(patterns) == 1 and len(steps) == 2 and not steps[1].get("use_regex") else None


def _compare(ranked: list[bytes], first: int, pattern: str | None, vocabulary: Vocabulary, where: str) -> None:
    """Compare the ids of a text between the tiktoken library and the converted vocabulary.

    Raises:
        ConvertError: the ids differ.
    """
    if pattern is None:
        return
    import tiktoken

    ranks = {token: rank for rank, token in enumerate(ranked)}
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise ConvertError(f"{where}: not every byte is a token")
    theirs = tiktoken.Encoding("theirs", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    head = header({"general.architecture": string("llama"), **vocabulary.metadata()}, [])
    try:
        ours = Tokenizer.from_gguf(Header(where, head, len(head)))
    except TokenizerError as error:
        raise ConvertError(f"{error}") from None
    expected = [first + rank for rank in theirs.encode_ordinary(PROBE)]
    if ours.encode(PROBE, add_special=False) != expected:
        raise ConvertError(f"{where}: the ids differ from tiktoken's with the pattern {pattern!r:.300}")


def tekken(checkpoint: Checkpoint, data: JsonObject, n_rows: int, special: SpecialTokens) -> Vocabulary:
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
    texts = {e["rank"]: e["token_str"] for e in names if isinstance(e, dict) and {"rank", "token_str"} <= e.keys()}
    texts = {i: t for i, t in texts.items() if type(i) is int and 0 <= i < n_special and isinstance(t, str)}
    texts = texts or dict(enumerate(_TEKKEN_SPECIAL[:n_special]))
    for i in range(n_special):
        vocabulary.tokens[i], vocabulary.types[i] = texts.get(i, f"<SPECIAL_{i}>"), CONTROL
    for kind, text in (("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>")):
        if text in texts.values():
            special.ids.setdefault(kind, next(i for i, other in texts.items() if other == text))
    special.add["bos"] = "bos" in special.ids
    if len(set(vocabulary.tokens)) != n_rows:
        raise ConvertError(f"{where}: a special token has the text of another token")
    _compare(ranked, n_special, pattern, vocabulary, where)
    return vocabulary


#: The special tokens of the first tekken files, which do not name them.
_TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
)  # fmt: skip
