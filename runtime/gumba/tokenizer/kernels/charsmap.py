"""SentencePiece's text normalizer: the longest strings that a table knows become what it has for them.

The table ("precompiled_charsmap") is a double-array trie and its replacements, each ended by a NUL (Kudo and Richardson
2018; the trie is darts-clone's). A unit of 32 bits, at index i:

- bits 0-7 and 31: the byte that leads to this node (bit 31 is set in units that hold a value);
- bit 8: whether a string ends here; its value, an offset into the replacements, is in the unit at ``i ^ base``;
- bits 10-30: the base, times 256 when bit 9 is set; the child for byte c is at ``i ^ base ^ c``.
"""

from __future__ import annotations

from gumba.jit.jit import entry, inline


@inline
def _base(unit):
    return (unit >> 10) << ((unit & 0x200) >> 6)


@entry("i8(u1[::1], u4[::1], u1[::1], u1[::1])")
def normalize(text, trie, replacements, out):
    """Write the normalized text to ``out``, as much as finds room there.

    Args: text uint8[bytes], UTF-8; trie uint32[units], not empty; replacements uint8[bytes], the last one 0; out
    uint8[room]. Returns the length of the normalized text, or -1 when the trie points outside of itself or of the
    replacements.
    """
    count = 0
    at = 0
    while at < text.size:
        length = 0
        replacement = 0
        node = _base(int(trie[0]))
        end = at
        while end < text.size and text[end] != 0:
            node ^= text[end]
            if node >= trie.size:
                return -1
            unit = int(trie[node])
            if unit & 0x800000FF != text[end]:
                break
            end += 1
            node ^= _base(unit)
            if unit & 0x100:
                if node >= trie.size:
                    return -1
                length = end - at
                replacement = int(trie[node]) & 0x7FFFFFFF
        if length > 0:
            if replacement >= replacements.size:
                return -1
            while replacements[replacement] != 0:
                if count < out.size:
                    out[count] = replacements[replacement]
                count += 1
                replacement += 1
            at += length
        else:
            if count < out.size:
                out[count] = text[at]
            count += 1
            at += 1
    return count
