"""Which GGUF pre-tokenizer a tokenizer.json asks for, and back.

GGUF names the way text is cut before byte-pair merging (`tokenizer.ggml.pre`); tokenizer.json spells it out as a chain
of steps. A chain is recognised by its own regular expressions, so that nothing has to be run or hashed.
"""

from __future__ import annotations

from typing import Any

from gumba.errors import ConvertError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
QWEN2_PATTERN = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Chains of steps, each ("digits",), ("split", pattern) or ("bytes", uses the GPT-2 pattern), and their GGUF names.
CHAINS = {
    (("bytes", True),): "gpt-2",
    (("split", GPT2_PATTERN), ("bytes", False)): "gpt-2",
    (("digits",), ("bytes", True)): "smollm",
    (("split", LLAMA3_PATTERN), ("bytes", False)): "llama-bpe",
    (("split", QWEN2_PATTERN), ("bytes", False)): "qwen2",
}
NAMES = ("default", *dict.fromkeys(CHAINS.values()))


def detect(pre_tokenizer: Any, where: str) -> str:
    """GGUF's name for the `pre_tokenizer` of a byte-level BPE tokenizer.json.

    Raises:
        ConvertError: no name fits; the message shows the chain and says how to override.
    """
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    chain = tuple(_step(step) for step in (steps if isinstance(steps, list) else [pre_tokenizer]))
    name = CHAINS.get(chain)
    if name is None:
        raise ConvertError(
            f"{where}: unknown pre-tokenizer {' + '.join(map(str, chain))}; known are {', '.join(NAMES)}. "
            "If it is one of them in another spelling, name it (pre_tokenizer=NAME)"
        )
    return name


def _step(step: Any) -> tuple[Any, ...]:
    if isinstance(step, dict):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space", True):
            return ("bytes", bool(step.get("use_regex", True)))
        if kind == "Digits" and step.get("individual_digits"):
            return ("digits",)
        pattern = step.get("pattern")
        if kind == "Split" and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            how = step.get("behavior"), bool(step.get("invert"))
            # Keeping each match apart, or dropping all that is not matched: the same for patterns that match anything.
            if how in (("Isolated", False), ("Removed", True)):
                return ("split", pattern["Regex"])
    return ("other", str(step)[:200])


def spell(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json for a GGUF name.

    Raises:
        ConvertError: the name is unknown.
    """
    chain = next((chain for chain, known in CHAINS.items() if known == ("gpt-2" if name == "default" else name)), None)
    if chain is None:
        raise ConvertError(f"unknown pre-tokenizer {name!r}; known are {', '.join(NAMES)}")
    steps: list[dict[str, Any]] = []
    for kind, *rest in chain:
        if kind == "digits":
            steps.append({"type": "Digits", "individual_digits": True})
        elif kind == "split":
            split = {"type": "Split", "pattern": {"Regex": rest[0]}, "behavior": "Isolated", "invert": False}
            steps.append(split)
        else:
            steps.append(
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": bool(rest[0])}
            )
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
