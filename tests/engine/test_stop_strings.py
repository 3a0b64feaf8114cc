"""Stop strings, against a character-by-character oracle, however the text is cut into pieces."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gumba.engine.stop_strings import StopStrings


def oracle(text, stops):
    """The text before the stop string that is complete first, and whether there was one."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(
    st.lists(st.text("ab", max_size=5), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
@example(["xabcd"], ["xabcd", "b"])
@example(["a", "a", "b"], ["aab", "ab"])
def test_same_text_whatever_the_pieces(pieces, stops):
    text = "".join(pieces)
    expected, stopped = oracle(text, stops)
    checker = StopStrings(stops)
    shown = ""
    seen = ""
    for piece in pieces:
        shown += checker.push(piece)
        seen += piece
        # Text is withheld exactly if further text could make it part of a stop string.
        before, done = oracle(seen, stops)
        held = max((n for stop in stops for n in range(len(stop)) if before.endswith(stop[:n])), default=0)
        assert shown == (before if done else before[: len(before) - held])
    assert checker.stopped == stopped
    assert shown + checker.flush() == expected


def test_without_stop_strings_nothing_is_withheld():
    checker = StopStrings([])
    assert checker.push("abc") == "abc" and checker.flush() == ""
