"""A model that is its own oracle: logits are a function of the token history that it reads back through the pages."""

from __future__ import annotations

import random
import zlib
from types import SimpleNamespace

import numpy as np

from gumba.errors import ResourceError

#: Bytes, an end-of-generation token, a special token, and tokens of several bytes.
PIECES = [bytes([i]) for i in range(256)] + [b"", b"", b"the ", b" cat", "€".encode(), b"st", b"op", b"xyz"]
END, MARK, EURO, ST, OP, XYZ = 256, 257, 260, 261, 262, 263
N_VOCAB = len(PIECES)
N_EMBD = 12


class FakeTokenizer:
    """Byte tokens, with the members that the engine and StreamDecoder need of a tokenizer."""

    n_vocab = N_VOCAB
    eog_ids = frozenset({END})

    def encode(self, text, add_special=True, parse_special=False):
        return list(text.encode())

    def token_id(self, text):
        return None

    def check_id(self, token):
        assert 0 <= token < N_VOCAB
        return token

    def pieces(self, ids, skip_special=False, continuation=False):
        return [PIECES[token] for token in ids]


def hashed_logits(history):
    """Deterministic logits, different for every history; END is never likely."""
    rng = np.random.default_rng(zlib.crc32(np.asarray(history, np.int64).tobytes()))
    logits = (rng.standard_normal(N_VOCAB) * 3).astype(np.float32)
    logits[END] = -30
    return logits


def hashed_hidden(history):
    """Deterministic hidden states, different for every history, which depend mostly on the last token: some are similar."""
    rng = np.random.default_rng(zlib.crc32(np.asarray(history, np.int64).tobytes()) + 1)
    same = np.random.default_rng(history[-1] % 16).standard_normal(N_EMBD)
    return (same + 0.3 * rng.standard_normal(N_EMBD)).astype(np.float32)


def scripted(*tokens, start):
    """Logits that make greedy generation after a prompt of ``start`` tokens return ``tokens``, then END."""
    script = [*tokens, END]

    def logits(history):
        out = np.zeros(N_VOCAB, np.float32)
        out[script[min(max(len(history) - start, 0), len(script) - 1)]] = 10
        return out

    return logits


class FakeKV:
    """A KV cache whose pages store tokens; a page without owners loses them. With ``n_window_pages``, it has a window pool."""

    def __init__(self, n_pages, page_tokens=4, *, n_window_pages=0, window=0):
        self.n_pages, self.page_tokens = n_pages, page_tokens
        self.window_pool, self.window = FakeKV(n_window_pages, page_tokens) if n_window_pages else None, window
        self.store = np.full((n_pages, page_tokens), -1)
        self.free = list(range(n_pages))[::-1]
        self.owner_counts = [0] * n_pages
        self.copies = 0

    @property
    def n_free(self):
        return len(self.free)

    def first_read(self, position):
        return max(0, position - self.window + 1) // self.page_tokens

    def allocate(self, n):
        if n > len(self.free):
            raise ResourceError(f"{n} pages wanted, {len(self.free)} free")
        # From the middle, so that block tables are not simply ascending.
        pages = [self.free.pop(len(self.free) // 2) for _ in range(n)]
        for page in pages:
            assert self.owner_counts[page] == 0
            self.owner_counts[page] = 1
        return pages

    def share(self, pages):
        assert len(set(pages)) == len(pages)
        for page in pages:
            assert self.owner_counts[page] > 0
            self.owner_counts[page] += 1

    def release(self, pages):
        assert len(set(pages)) == len(pages)
        for page in pages:
            assert self.owner_counts[page] > 0
            self.owner_counts[page] -= 1
            if not self.owner_counts[page]:
                self.store[page] = -1
                self.free.append(page)

    def owners(self, page):
        return self.owner_counts[page]

    def copy(self, source, target):
        assert self.owner_counts[source] and self.owner_counts[target] == 1
        self.store[target] = self.store[source]
        self.copies += 1


class FakeStates:
    """State slots that store all tokens that went into the state."""

    def __init__(self, n_slots):
        self.n_slots, self.free = n_slots, list(range(n_slots))
        self.taken = [None] * n_slots

    @property
    def n_free(self):
        return len(self.free)

    @property
    def lengths(self):
        return [len(taken or ()) for taken in self.taken]

    def allocate(self):
        slot = self.free.pop(len(self.free) // 2)
        assert self.taken[slot] is None
        self.taken[slot] = []
        return slot

    def release(self, slot):
        assert self.taken[slot] is not None
        self.taken[slot] = None
        self.free.append(slot)

    def copy(self, source, target):
        assert self.taken[target] is not None
        self.taken[target] = self.taken[source][:]

    def take_in(self, slot, position, tokens, history):
        """Advance a state by ``tokens``; ``history``: all tokens in the pages, these included."""
        if not position:
            self.taken[slot] = []
        assert self.taken[slot] == history[:position], "the state is of other tokens"
        self.taken[slot] += tokens


class FakeModel:
    """A model that checks all chunks; ``before(model)`` is called at the start of every forward."""

    config = SimpleNamespace(
        architecture="fake",
        n_vocab=N_VOCAB,
        n_embd=N_EMBD,
        max_ctx=1 << 20,
        causal=True,
        n_types=1,
        n_labels=0,
        labels=(),
        pooling="",
        start_token=None,
    )
    n_threads = 1

    def __init__(self, *, n_ctx=64, n_pages=64, page_tokens=4, max_batch_tokens=16, logits=hashed_logits, before=None,
                 n_window_pages=0, window=0, n_states=0):  # fmt: skip
        self.states = FakeStates(n_states) if n_states else None
        self.n_ctx, self.kv = n_ctx, FakeKV(n_pages, page_tokens, n_window_pages=n_window_pages, window=window)
        self.max_batch_tokens, self.logits, self.before = max_batch_tokens, logits, before
        self.steps: list[list[tuple[int, int]]] = []
        self.rows = np.empty((0, N_VOCAB), np.float32)
        self.hidden = np.empty((0, N_EMBD), np.float32)
        self.closed = 0
        self.shared_writes: list[tuple[tuple[int, int], int]] = []

    def forward(self, chunks):
        assert not self.closed
        self.rows.fill(np.nan)  # a row is a view that is valid until the next forward
        if self.before:
            self.before(self)
        page_tokens = self.kv.page_tokens
        pages = [page for chunk in chunks for page in chunk.pages]
        assert not set(pages) & set(self.kv.free), "a free page is used"
        for chunk in chunks:
            for page in chunk.pages[chunk.position // page_tokens :]:
                assert pages.count(page) == 1, "a page of two sequences is written"
        assert 0 < sum(len(chunk.tokens) for chunk in chunks) <= self.max_batch_tokens
        self.steps.append([(chunk.position, len(chunk.tokens)) for chunk in chunks])
        rows, hidden = [], []
        for chunk in chunks:
            end = chunk.position + len(chunk.tokens)
            assert len(chunk.tokens) and end <= self.n_ctx
            assert len(chunk.pages) == -(-end // page_tokens), "the block table does not cover the chunk exactly"
            if self.kv.window_pool is not None:
                self.check_window(chunk, end)
            history = []
            for position in range(end):
                at = chunk.pages[position // page_tokens], position % page_tokens
                if position >= chunk.position:
                    if self.kv.owner_counts[at[0]] > 1:
                        # A cached page may be written only after the tokens that it is cached for.
                        self.shared_writes.append((at, chunk.tokens[position - chunk.position]))
                    self.kv.store[at] = chunk.tokens[position - chunk.position]
                assert self.kv.store[at] >= 0, "a position is read before it is written"
                history.append(int(self.kv.store[at]))
            if self.states is not None:
                assert [other.state for other in chunks].count(chunk.state) == 1, "two sequences have the same slot"
                self.states.take_in(chunk.state, chunk.position, chunk.tokens, history)
            wanted = {"none": [], "last": [end], "all": range(chunk.position + 1, end + 1)}[chunk.outputs]
            rows += [self.logits(history[:length]) for length in wanted]
            hidden += [hashed_hidden(history[:length]) for length in wanted]
        self.hidden.fill(np.nan)
        self.hidden = np.array(hidden, np.float32).reshape(len(rows), N_EMBD)
        self.rows = np.array(rows, np.float32).reshape(len(rows), N_VOCAB)
        return self.rows

    def check_window(self, chunk, end):
        """Check the window pages: those that the window reaches hold the same tokens as the other pages."""
        window_pool, first = self.kv.window_pool, self.kv.first_read(chunk.position)
        assert len(chunk.window_pages) == len(chunk.pages) and set(chunk.window_pages[:first]) <= {-1}, (
            "pages before the window are kept"
        )
        assert -1 not in chunk.window_pages[first:] and not set(chunk.window_pages) & set(window_pool.free), (
            "a free page is used"
        )
        for position in range(chunk.position, end):
            page = chunk.window_pages[position // window_pool.page_tokens]
            window_pool.store[page, position % window_pool.page_tokens] = chunk.tokens[position - chunk.position]
        for position in range(max(0, chunk.position - self.kv.window + 1), chunk.position):
            index, place = divmod(position, window_pool.page_tokens)
            assert window_pool.store[chunk.window_pages[index], place] == self.kv.store[chunk.pages[index], place] >= 0

    def close(self):
        self.closed += 1


def echo(period, wrong):
    """Logits that mostly repeat the token ``period`` places before; one time in ``wrong``, another one."""

    def logits(history):
        out = hashed_logits(history)
        if zlib.crc32(np.asarray(history, np.int32).tobytes()) % wrong:
            out[history[-period] if len(history) >= period else history[0]] = 20
        return out

    return logits


def prompts_of(seed, count=4):
    rng = random.Random(seed)
    return [rng.choices(range(97, 107), k=rng.randrange(1, 30)) for _ in range(count)]
