"""Parameters that the engine does not act on yet: asking for one is an error, not a surprise."""

from __future__ import annotations

from gumba.errors import UnsupportedError
from gumba.params import SamplingParams

PENDING = ("structured_outputs",)
_NONE = SamplingParams()


def supported(params: SamplingParams) -> SamplingParams:
    """``params``, all of which the engine acts on. Raises UnsupportedError, naming one that it does not know."""
    for name in PENDING:
        if getattr(params, name) != getattr(_NONE, name):
            raise UnsupportedError(f"{name}: this version of gumba does not support it yet")
    return params
