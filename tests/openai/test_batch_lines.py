"""The lines of a batch: parsing of requests, and the JSON of responses."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from gumba.openai.batch_lines import Line


def test_log_probabilities_are_shaped_as_openai_does() -> None:
    logprobs = [SimpleNamespace(logprob=-0.5, top=((65, -0.5), (195, -2.0)))]
    choice = SimpleNamespace(
        text="A", token_ids=[65], finish_reason="stop", logprobs=logprobs, reasoning=None, tool_calls=()
    )
    output: Any = SimpleNamespace(outputs=[choice], prompt_tokens=1)
    common: dict[str, Any] = {"model": "m", "created": 0, "token_bytes": lambda token: bytes([token])}
    line = Line(1, b"")
    [chat] = json.loads(line.response([output], chat=True, **common))["response"]["body"]["choices"]
    first = {"token": "A", "logprob": -0.5, "bytes": [65]}
    second = {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -2.0, "bytes": [195]}
    assert chat["logprobs"] == {"content": [{**first, "top_logprobs": [first, second]}]}
    [text] = json.loads(line.response([output], chat=False, **common))["response"]["body"]["choices"]
    assert text["logprobs"] == {
        "tokens": ["A"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"A": -0.5, "\N{REPLACEMENT CHARACTER}": -2.0}],
    }
