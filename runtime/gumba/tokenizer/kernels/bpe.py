"""Byte-pair merging over token pairs: vocabulary and merge tables, and the merge loop.

A vocabulary is one buffer of token texts and an array of offsets. Two open-addressing hash tables are built over it:

- token table, ``int32[capacity]``: id of the token whose text hashes there, or -1.
- pair table, ``int64[capacity, 2]``: row (left id << 32 | right id, rank << 32 | merged id), or (-1, _) when empty.

Both capacities are powers of two, at least twice the number of entries. Hashes are keyed by an odd multiplier that the
caller draws at random, because files are untrusted and could otherwise be written to collide.

The merge loop is that of the original BPE encoder (Sennrich et al. 2016, GPT-2): always the pair of lowest rank, the
leftmost one of equals. A heap of (rank, position) over a linked list makes it O(n log n) for one chunk of n bytes; an
entry whose pair has since changed is recognised by its rank, which names one pair only.
"""

from __future__ import annotations

from gumba.jit.heap import sift
from gumba.jit.jit import entry, inline

#: Why ``index_merges`` refused a merge: index into this tuple.
MERGE_FAULTS = (
    "is not two tokens separated by one space",
    "has a left part that is not a token",
    "has a right part that is not a token",
    "makes a text that is not a token",
)

_NO_PAIR = 1 << 31  # rank of a position at which nothing can merge; every real rank is lower


@inline
def _hash(data, begin, end, state, multiplier):
    """Extend hash ``state`` over ``data[begin:end]``."""
    for i in range(begin, end):
        state = (state ^ data[i]) * multiplier
        state ^= state >> 31
    return state


@inline
def _same(a, a_begin, b, b_begin, length):
    for i in range(length):  # noqa: SIM110 (a generator does not compile)
        if a[a_begin + i] != b[b_begin + i]:
            return False
    return True


@inline
def _find(table, tokens, offsets, data, begin, end, multiplier):
    """Id of the token with the text ``data[begin:end]``, or -1."""
    mask = table.size - 1
    slot = _hash(data, begin, end, multiplier, multiplier) & mask
    while table[slot] >= 0:
        token = table[slot]
        first = offsets[token]
        if offsets[token + 1] - first == end - begin and _same(tokens, first, data, begin, end - begin):
            return token
        slot = (slot + 1) & mask
    return -1


@inline
def _is_joined(tokens, offsets, token, data, begin, gap, end):
    """Whether a token's text is ``data[begin:gap] + data[gap + 1:end]``."""
    if token + 1 >= offsets.size:
        return False
    first = offsets[token]
    return (
        offsets[token + 1] - first == end - begin - 1
        and _same(tokens, first, data, begin, gap - begin)
        and _same(tokens, first + gap - begin, data, gap + 1, end - gap - 1)
    )


@inline
def _find_joined(table, tokens, offsets, data, begin, gap, end, multiplier):
    """Id of the token with the text ``data[begin:gap] + data[gap + 1:end]``, or -1."""
    mask = table.size - 1
    state = _hash(data, begin, gap, multiplier, multiplier)
    slot = _hash(data, gap + 1, end, state, multiplier) & mask
    while table[slot] >= 0:
        if _is_joined(tokens, offsets, table[slot], data, begin, gap, end):
            return table[slot]
        slot = (slot + 1) & mask
    return -1


@inline
def _find_pair(pairs, key, multiplier):
    """Row of the pair ``key`` in the pair table, or -1."""
    mask = pairs.shape[0] - 1
    row = ((key * multiplier) >> 32) & mask
    while pairs[row, 0] != key:
        if pairs[row, 0] < 0:
            return -1
        row = (row + 1) & mask
    return row


@entry("i8(u1[::1], i8[::1], i8, i4[::1])")
def index_tokens(tokens, offsets, multiplier, table):
    """Fill the token ``table`` (all -1, with room); empty texts are left out.

    Args: tokens uint8[bytes], all texts; offsets int64[n + 1]; multiplier, odd; table int32[capacity].
    Returns the id of the first token whose text an earlier one has, or -1.
    """
    mask = table.size - 1
    for token in range(offsets.size - 1):
        begin, end = offsets[token], offsets[token + 1]
        if begin == end:
            continue
        if _find(table, tokens, offsets, tokens, begin, end, multiplier) >= 0:
            return token
        slot = _hash(tokens, begin, end, multiplier, multiplier) & mask
        while table[slot] >= 0:
            slot = (slot + 1) & mask
        table[slot] = token
    return -1


@entry("i8(i4[::1], u1[::1], i8[::1], u1[::1], i8[::1], i8, i8[:, ::1])")
def index_merges(table, tokens, offsets, merges, bounds, multiplier, pairs):
    """Fill the ``pairs`` table (first column all -1, with room) from merges written "left right", in order of rank.

    A pair that is listed twice keeps its first rank. Vocabularies mostly list tokens in the order of the merges that make
    them, so the token after the last one made is tried before the table: half the time of a lookup on a big vocabulary.
    Args: table, tokens, offsets as ``index_tokens`` left them; merges uint8[bytes] and bounds int64[m + 1], as
    ``GGUFArray.string_view`` gives them: merge i is ``merges[bounds[i] : bounds[i + 1] - 8]``.
    Returns -1, or 4 * index + fault (see MERGE_FAULTS) of the first merge that is wrong.
    """
    mask = pairs.shape[0] - 1
    merged = -1
    for rank in range(bounds.size - 1):
        begin, end = bounds[rank], bounds[rank + 1] - 8
        gap = -1
        for i in range(begin + 1, end - 1):
            if merges[i] == 32:
                if gap >= 0:
                    return 4 * rank
                gap = i
        if gap < 0:
            return 4 * rank
        left = _find(table, tokens, offsets, merges, begin, gap, multiplier)
        if left < 0:
            return 4 * rank + 1
        right = _find(table, tokens, offsets, merges, gap + 1, end, multiplier)
        if right < 0:
            return 4 * rank + 2
        if _is_joined(tokens, offsets, merged + 1, merges, begin, gap, end):
            merged += 1
        elif merged < 0 or not _is_joined(tokens, offsets, merged, merges, begin, gap, end):
            merged = _find_joined(table, tokens, offsets, merges, begin, gap, end, multiplier)
        if merged < 0:
            return 4 * rank + 3
        key = (left << 32) | right
        row = ((key * multiplier) >> 32) & mask
        while pairs[row, 0] >= 0 and pairs[row, 0] != key:
            row = (row + 1) & mask
        if pairs[row, 0] < 0:
            pairs[row, 0] = key
            pairs[row, 1] = (rank << 32) | merged
    return -1


@inline
def _push(heap, size, entry_):
    """Add to a binary min-heap of ``size`` entries."""
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        if heap[parent] <= entry_:
            break
        heap[child] = heap[parent]
        child = parent
    heap[child] = entry_


@inline
def _pop(heap, size):
    """Take the least entry of a binary min-heap of ``size`` entries; the caller counts one entry less."""
    least = heap[0]
    heap[0] = heap[size - 1]
    sift(heap, 0, size - 1)
    return least


@inline
def _merge_word(begin, n, pairs, multiplier, symbols, following, previous, ranks, merged, heap):
    """Merge the ``n`` symbols of one word in place; ``following`` chains those that are left, ending with n."""
    size = 0
    for i in range(n):
        following[i] = i + 1
        previous[i] = i - 1
        ranks[i] = _NO_PAIR
        if i + 1 < n and symbols[i] >= 0 and symbols[i + 1] >= 0:
            row = _find_pair(pairs, (symbols[i] << 32) | symbols[i + 1], multiplier)
            if row >= 0:
                ranks[i] = pairs[row, 1] >> 32
                merged[i] = pairs[row, 1] & 0xFFFFFFFF
                _push(heap, size, (ranks[i] << 32) | i)
                size += 1
    while size > 0:
        least = _pop(heap, size)
        size -= 1
        i = least & 0xFFFFFFFF
        if ranks[i] != least >> 32:
            continue
        gone = following[i]
        symbols[i] = merged[i]
        ranks[gone] = _NO_PAIR
        ranks[i] = _NO_PAIR
        after = following[gone]
        following[i] = after
        if after < n:
            previous[after] = i
        for left in (previous[i], i):
            if left < 0:
                continue
            right = following[left]
            ranks[left] = _NO_PAIR
            if right < n and symbols[left] >= 0 and symbols[right] >= 0:
                row = _find_pair(pairs, (symbols[left] << 32) | symbols[right], multiplier)
                if row >= 0:
                    ranks[left] = pairs[row, 1] >> 32
                    merged[left] = pairs[row, 1] & 0xFFFFFFFF
                    _push(heap, size, (ranks[left] << 32) | left)
                    size += 1


@inline
def _put(n, symbols, following, out, count):
    """Write what ``_merge_word`` has left of a word behind ``count`` numbers of ``out``; how many are there then."""
    i = 0
    while i < n:
        out[count] = symbols[i]
        count += 1
        i = following[i]
    return count


@entry(
    "i8(u1[::1], i8[::1], i4[::1], u1[:, ::1], i8[:, ::1], i8, i4[::1], u1[::1], i8[::1], u1[::1], i8[::1], u1[::1],"
    "i4[::1])"
)
def encode_words(
    text, ends, byte_ids, byte_texts, pairs, multiplier, table, tokens, offsets, whole, scratch, word_bytes, out
):
    """Token ids of all words of a text.

    Args:
        text: uint8[bytes], the words one after another; ends: int64[words], where each of them ends.
        byte_ids: int64[256], token of each single byte, -1 when it has none.
        byte_texts: uint8[256, 3], how a token text spells each byte in UTF-8: its length, then its bytes.
        pairs, multiplier: as ``index_merges`` left them.
        table, tokens, offsets: as ``index_tokens`` left them; whole: uint8[tokens], 1 for tokens that a word with just
            their text becomes whatever its merges give.
        scratch: int64[7 * longest word]; word_bytes: uint8[2 * longest word to be looked up whole]; out: int32[bytes].
    Returns how many ids were written to ``out``; a byte without a token is written as -1 - byte.
    """
    room = scratch.size // 7
    symbols, following, previous = scratch[:room], scratch[room : 2 * room], scratch[2 * room : 3 * room]
    ranks, merged, heap = scratch[3 * room : 4 * room], scratch[4 * room : 5 * room], scratch[5 * room :]
    longest_whole = word_bytes.size >> 1
    count = 0
    begin = 0
    for word in range(ends.size):
        n = ends[word] - begin
        if 0 < n <= longest_whole:
            length = 0
            for i in range(begin, begin + n):
                for j in range(byte_texts[text[i], 0]):
                    word_bytes[length] = byte_texts[text[i], 1 + j]
                    length += 1
            token = _find(table, tokens, offsets, word_bytes, 0, length, multiplier)
            if token >= 0 and whole[token]:
                out[count] = token
                count += 1
                begin += n
                continue
        for i in range(n):
            symbols[i] = byte_ids[text[begin + i]]
            if symbols[i] < 0:
                symbols[i] = -1 - text[begin + i]
        _merge_word(begin, n, pairs, multiplier, symbols, following, previous, ranks, merged, heap)
        count = _put(n, symbols, following, out, count)
        begin += n
    return count


@entry("i8(i4[::1], i8[::1], i8[:, ::1], i8, i8[::1], i4[::1])")
def merge_words(text, ends, pairs, multiplier, scratch, out):
    """Token ids of all words of a text that is given as symbols already.

    Args:
        text: int32[symbols], the words one after another: token ids, or negative numbers, which nothing merges with and
            which are copied; ends: int64[words], where each word ends.
        pairs, multiplier: as ``index_merges`` left them.
        scratch: int64[7 * longest word]; out: int32[symbols].
    Returns how many ids were written to ``out``.
    """
    room = scratch.size // 7
    symbols, following, previous = scratch[:room], scratch[room : 2 * room], scratch[2 * room : 3 * room]
    ranks, merged, heap = scratch[3 * room : 4 * room], scratch[4 * room : 5 * room], scratch[5 * room :]
    count = 0
    begin = 0
    for word in range(ends.size):
        n = ends[word] - begin
        for i in range(n):
            symbols[i] = text[begin + i]
        _merge_word(begin, n, pairs, multiplier, symbols, following, previous, ranks, merged, heap)
        count = _put(n, symbols, following, out, count)
        begin += n
    return count
