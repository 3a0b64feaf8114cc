"""The tables of one vocabulary for constrained generation, built once per tokenizer on first use."""

from __future__ import annotations

import importlib
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from gumba.errors import RequestError
from gumba.tokenizer.tokenizer import Tokenizer
from gumba.tokenizer.vocabulary import TokenType

llguidance: Any
try:
    llguidance = importlib.import_module("llguidance")
except ImportError:
    llguidance = None


def library() -> Any:
    """The ``llguidance`` package. Raises RequestError naming the extra if it is not installed."""
    if llguidance is None:
        raise RequestError(
            "structured_outputs: needs the package llguidance, which is not installed: pip install 'gumba[structured]'"
        )
    return llguidance


class VocabularyTables:
    """The tables of a vocabulary that the grammar library reads.

    ``tokenizer``: its prefix tree of the tokens' bytes. ``text_bits`` and ``end_bits``: uint32 [ceil(n_vocab / 32)], bit
    ``i % 32`` of word ``i // 32`` for tokens that stand for text, and for those that end a generation. ``compiled``: the
    constraints compiled last, the latest at the end, guarded by ``lock``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        module = library()
        n_vocab = tokenizer.n_vocab
        if not tokenizer.eog_ids:
            raise RequestError(
                "structured_outputs: the model's vocabulary has no end-of-generation token, so no text could be complete"
            )
        ends = sorted(tokenizer.eog_ids)
        self.n_vocab = n_vocab
        self.eog_ids = tokenizer.eog_ids
        # Tokens that the answer's text omits cannot be part of it; a marker in the middle would also drop a space.
        hidden = {token for token in range(n_vocab) if _hidden(tokenizer, token)} | set(ends)
        pieces = [b"" if token in hidden else tokenizer.token_bytes(token) for token in range(n_vocab)]
        text = np.array([bool(piece) for piece in pieces])
        self.text_bits = _bits(text)
        end = np.zeros(n_vocab, np.bool_)
        end[ends] = True
        self.end_bits = _bits(end)
        for token in hidden:  # these names never match text: the library treats special tokens separately
            pieces[token] = b"<|hidden_%d|>" % token
        source = _Source(ends[0], pieces, sorted(hidden))
        self.compiled: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
        self.lock = threading.Lock()
        self.tokenizer = module.LLTokenizer(module.TokenizerWrapper(source), n_vocab=n_vocab, eos_token=ends)


class _Source:
    """The attributes that the library reads from a tokenizer."""

    bos_token_id = None

    def __init__(self, eos_token_id: int, tokens: list[bytes], special_token_ids: list[int]) -> None:
        self.eos_token_id = eos_token_id
        self.tokens = tokens
        self.special_token_ids = special_token_ids

    def __call__(self, text: bytes | str) -> list[int]:
        """Token ids of a text; the library calls it only to skip ahead over forced tokens, which is off here."""
        return []


def _hidden(tokenizer: Tokenizer, token: int) -> bool:
    if tokenizer.is_special(token):
        return True
    # SentencePiece drops a space that begins the token after a user-defined one: text could come out changed.
    return tokenizer.add_space_prefix and tokenizer.token_type(token) == TokenType.USER_DEFINED


def _bits(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    packed = np.zeros((len(flags) + 31) // 32 * 4, np.uint8)
    octets = np.packbits(flags, bitorder="little")
    packed[: len(octets)] = octets
    return packed.view("<u4").astype(np.uint32)


_lock = threading.Lock()
_locks: weakref.WeakKeyDictionary[Tokenizer, threading.Lock] = weakref.WeakKeyDictionary()
_tables: weakref.WeakKeyDictionary[Tokenizer, VocabularyTables] = weakref.WeakKeyDictionary()


def vocabulary_tables(tokenizer: Tokenizer) -> VocabularyTables:
    """The tables of a tokenizer, cached for its lifetime. Thread-safe; they are built once."""
    with _lock:
        tables = _tables.get(tokenizer)
        lock = _locks.setdefault(tokenizer, threading.Lock())
    if tables is not None:
        return tables
    with lock:
        tables = _tables.get(tokenizer)
        if tables is None:
            tables = VocabularyTables(tokenizer)
            with _lock:
                _tables[tokenizer] = tables
    return tables
