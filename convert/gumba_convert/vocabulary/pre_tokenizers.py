r"""Converts between GGUF's names of pre-tokenizers and the steps of tokenizer.json.

GGUF has a name for how text is split before byte-pair merging (`tokenizer.ggml.pre`); tokenizer.json lists a chain of steps. A
chain is recognized by its regular expressions in a normal form: `\p{N}{1}` becomes `\p{N}`, classes are sorted, a possessive
`++` becomes `+`. An unknown chain may still split like a known one: it is compared on a page of difficult text.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from gumba.errors import ConvertError
from gumba.tokenizer.pretokenize import PRE_TOKENIZERS, splitter
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.vocabulary.pre_tokenizer_probe import PROBE

if TYPE_CHECKING:
    import regex

#: A step of a chain: its kind, and its pattern (text) or flag.
Step: TypeAlias = "tuple[Any, ...]"
NAMES = tuple(PRE_TOKENIZERS)
#: Limits for comparing an unknown chain: its steps, the length of their patterns, seconds.
_TRIED = ("split", "digits", "bytes")
_MAX_STEPS, _MAX_PATTERN, _TIMEOUT_S = 16, 20_000, 2.0

# The patterns as in the models' own files.
_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
QWEN2_PATTERN = _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
QWEN35_PATTERN = _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(number: str, contraction: str, after: str = "[\\r\\n/]*") -> str:
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{_UPPER}*{_LOWER}+{contraction}|{before}{_UPPER}+{_LOWER}*{contraction}|{number}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{after}|{_SPACES}"
    )


GPT4O_PATTERN = _cased(r"\p{N}{1,3}", _ANY_CASE + "?")
TEKKEN_PATTERN = _cased(r"\p{N}", "")
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _SPACES
)
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-"
    "\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-"
    "\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-"
    "\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-"
    "\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-"
    "\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_BLOOM_PATTERN = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"

# The chains, each of ("digits", one by one), ("split", pattern), ("next", pattern: a match goes to what follows),
# ("punctuation",) or ("bytes", with GPT-2's pattern).
_BYTES = ("bytes", False)
_DIGITS = ("digits", True)
CHAINS: tuple[tuple[str, tuple[Step, ...]], ...] = (
    ("gpt-2", (("bytes", True),)),
    ("smollm", (_DIGITS, ("bytes", True))),
    ("llama-bpe", (("split", LLAMA3_PATTERN), _BYTES)),
    ("qwen2", (("split", QWEN2_PATTERN), _BYTES)),
    ("qwen35", (("split", QWEN35_PATTERN), _BYTES)),
    ("gpt-4o", (("split", GPT4O_PATTERN), _BYTES)),
    ("tekken", (("split", TEKKEN_PATTERN), _BYTES)),
    (
        "deepseek-v3",
        (
            ("split", r"\p{N}{1,3}"),
            ("split", _HAN_AND_KANA),
            ("split", _DEEPSEEK3_WORDS),
            _BYTES,
        ),
    ),
    (
        "spark2_5",
        (
            ("split", r"\p{N}{1,3}"),
            ("split", _HAN_AND_KANA),
            ("split", _DEEPSEEK3_WORDS.replace(r"+[\r\n]*|\s*[\r\n]+", r"+|[\r\n]")),
            _DIGITS,
            _BYTES,
        ),
    ),
    (
        "deepseek-llm",
        (
            ("split", r"[\r\n]"),
            ("split", _DEEPSEEK_LETTERS),
            ("split", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
            ("split", r"\s+$"),
            ("split", _DEEPSEEK_CJK),
            _DIGITS,
            _BYTES,
        ),
    ),
    (
        "deepseek-coder",
        (
            ("split", r"[\r\n]"),
            ("split", r"\s?\p{L}+"),
            ("split", r"\s?\p{P}+"),
            ("split", _DEEPSEEK_CJK),
            _DIGITS,
            _BYTES,
        ),
    ),
    ("falcon", (("punctuation",), ("bytes", True), ("digits", False), ("split", "[0-9][0-9][0-9]"))),
    ("bloom", (("split", _BLOOM_PATTERN), _BYTES)),
    ("viking", (("split", _BLOOM_PATTERN), _DIGITS, _BYTES)),
    ("superbpe", (("split", r"\p{N}+"), ("split", r"(?=(\d{3})+(?!\d))"), _BYTES)),
    ("tiny_aya", (("split", r"\d{1,3}(?=(?:\d{3})*\b)"), ("split", GPT4O_PATTERN), _BYTES)),
    (
        "jais-2",
        (
            (
                "split",
                _ANY_CASE
                + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)"
                r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
            ),
            _BYTES,
        ),
    ),
    (
        "seed-coder",
        (
            (
                "split",
                _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,
            ),
            _BYTES,
        ),
    ),
    (
        "exaone-moe",
        (
            (
                "split",
                _ANY_CASE
                + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
                r"|\s+(?!\S)|\s+",
            ),
            _BYTES,
        ),
    ),
    (
        "minicpm5",
        (
            ("split", r"\p{N}{1,3}"),
            ("split", _ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|" + _REST),
            _BYTES,
        ),
    ),
    ("laguna", (("next", r"(?:\r?\n)+(?!\r?\n)"), ("split", QWEN2_PATTERN), _BYTES)),
    ("ufakzeka", (("split", r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST), _BYTES)),
    (
        "youtu",
        (
            (
                "split",
                "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            ),
            ("split", _cased(r"\p{N}", _ANY_CASE + "?")),
            _BYTES,
        ),
    ),
    (
        "kimi-k2",
        (
            (
                "split",
                r"[\p{Han}]+|"
                + _cased(r"\p{N}{1,3}", _ANY_CASE + "?", r"[\r\n]*").replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]"),
            ),
            _BYTES,
        ),
    ),
    (
        "default",
        (
            ("split", r"[\p{P}\$\+<=>\^~\|]+"),
            ("split", GPT2_PATTERN),
            ("digits", False),
            ("split", "[0-9][0-9][0-9]"),
            _BYTES,
        ),
    ),
)


def detect(pre_tokenizer: object, *, ignore_merges: bool | None = None) -> tuple[str | None, bool]:
    """GGUF's name for the `pre_tokenizer` of a byte-level BPE tokenizer.json, and whether it is exact.

    None without a matching name. A chain that splits a page of difficult text like a known one gets that one's name, although
    they may differ on other texts (not exact).

    Args:
        ignore_merges: of tokenizer.json; among names that split alike, the one with this setting is chosen.
    """
    steps = _flat(pre_tokenizer)
    if [step.get("type") if isinstance(step, dict) else None for step in steps] == ["WhitespaceSplit"]:
        return "whitespace", True
    chain = tuple(_step(step) for step in steps)
    name = _KNOWN.get(_patterns(chain))
    exact = name is not None
    name = name or _by_comparison(chain)
    if name is not None and ignore_merges is not None and ignore_merges != PRE_TOKENIZERS[name].whole_words:
        twins = (other for other, family in PRE_TOKENIZERS.items() if family.steps == PRE_TOKENIZERS[name].steps)
        name = next((twin for twin in twins if PRE_TOKENIZERS[twin].whole_words == ignore_merges), name)
    return name, exact


def to_json(name: str) -> JsonObject:
    """The `pre_tokenizer` of a tokenizer.json for a GGUF name.

    Raises:
        ConvertError: the name is unknown, or tokenizer.json cannot express it.
    """
    family = PRE_TOKENIZERS.get(name)
    if family is None:
        raise ConvertError(f"unknown pre-tokenizer {name!r}; known are {', '.join(sorted(NAMES))}")
    chain = next((chain for known, chain in CHAINS if PRE_TOKENIZERS[known].steps == family.steps), None)
    if chain is None:
        raise ConvertError(f"the pre-tokenizer {name!r} has no known form in tokenizer.json")
    steps: list[JsonObject] = []
    for kind, *rest in chain:
        if kind == "digits":
            steps.append({"type": "Digits", "individual_digits": rest[0]})
        elif kind == "punctuation":
            steps.append({"type": "Punctuation", "behavior": "Contiguous"})
        elif kind in ("split", "next"):
            behavior = "Isolated" if kind == "split" else "MergedWithNext"
            steps.append({"type": "Split", "pattern": {"Regex": rest[0]}, "behavior": behavior, "invert": False})
        else:
            steps.append(
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": bool(rest[0])}
            )
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _flat(step: object) -> list[object]:
    """The steps of a pre-tokenizer, with nested sequences flattened."""
    inner = step.get("pretokenizers") if isinstance(step, dict) and step.get("type") == "Sequence" else None
    return [leaf for part in inner for leaf in _flat(part)] if isinstance(inner, list) else [step]


def _step(step: object) -> Step:
    if isinstance(step, dict):
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space", True):
            return ("bytes", bool(step.get("use_regex", True)))
        if kind == "Digits":
            return ("digits", bool(step.get("individual_digits")))
        if kind == "Punctuation" and step.get("behavior") == "Contiguous":
            return ("punctuation",)
        pattern = step.get("pattern")
        if kind == "Split" and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            how = step.get("behavior"), bool(step.get("invert"))
            # Isolating each match, or removing what is not matched: equal for patterns that match every character.
            if how in (("Isolated", False), ("Isolated", True), ("Removed", True)):
                return ("split", pattern["Regex"])
            if how == ("MergedWithNext", False):
                return ("next", pattern["Regex"])
    return ("other", str(step)[:200])


_CONTRACTIONS = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?i:'s|'t|'m|'d|'re|'ve|'ll)",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?i:[sdmt]|ll|ve|re)",
    "(?i:'[sdmt]|'ll|'ve|'re)",
)
_TOKEN = re.compile(r"\\[pP]\{\^?\w+\}|\\u[0-9A-Fa-f]{4}|\\x\{[0-9A-Fa-f]+\}|\\.|.", re.DOTALL)
_WHITE = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def _patterns(chain: tuple[Step, ...]) -> tuple[str, ...]:
    """A chain as patterns, each in normal form."""
    patterns: list[str] = []
    for kind, *rest in chain:
        if kind == "digits":
            patterns.append(r"\p{N}" if rest[0] else r"\p{N}+")
        elif kind == "split":
            patterns.append(_normal_form(rest[0]))
        elif kind == "bytes":
            patterns += [_normal_form(GPT2_PATTERN)] if rest[0] else []
        else:
            patterns.append(f"{kind} {_normal_form(rest[0])}" if rest else kind)
    return (*patterns, "bytes") if any(step[0] == "bytes" for step in chain) else tuple(patterns)


def _normal_form(pattern: str) -> str:
    for contractions in _CONTRACTIONS:
        pattern = pattern.replace(contractions, _CONTRACTIONS[0])
    tokens = [_literal(token) for token in _TOKEN.findall(pattern)]
    out: list[str] = []
    i = 0
    while i < len(tokens):
        if tokens[i] == "[":
            text, i = _class(tokens, i)
            out.append(text)
            continue
        out.append(tokens[i])
        i += 1
    text = "".join(out).replace("{1}", "")
    text = re.sub(
        r"(?<!\\)([+*?])\+(?!\(\?!)", r"\1", text
    )  # possessive, except before a look-ahead that backtracks; not {1,3}+, which Oniguruma repeats
    text = re.sub(r"\((?!\?)", "(?:", text)
    text = re.sub(r"\\s\*\[\\n\\r\](?!\+)", lambda match: match[0] + "+", text)
    return text.removesuffix(r"|\s+") if text.endswith(r"|\s+(?!\S)|\s+") else text


def _literal(token: str) -> str:
    """One token of a pattern; characters given by number, or escaped without need, become themselves."""
    if token[:2] in (r"\u", r"\x") and len(token) > 2:
        token = chr(int(token[2:].strip("{}"), 16) % 0x110000)
    return _WHITE.get(token, token)


def _class(tokens: list[str], i: int) -> tuple[str, int]:
    """A character class that begins at `i`, with sorted members, and the index after it."""
    members: list[str] = []
    i += 1
    negated = tokens[i : i + 1] == ["^"]
    i += negated
    while i < len(tokens) and tokens[i] != "]":
        if tokens[i] == "[":
            text, i = _class(tokens, i)
            members.append(text)
            continue
        member = tokens[i]
        member = member[1] if len(member) == 2 and not member[1].isalnum() else member
        if tokens[i + 1 : i + 2] == ["-"] and tokens[i + 2 : i + 3] not in ([], ["]"]):
            last = tokens[i + 2]
            member += "-" + (last[1] if len(last) == 2 and not last[1].isalnum() else last)
            i += 2
        members.append(member)
        i += 1
    ordered = members if "&" in members else sorted(set(members))
    plain = len(ordered) == 1 and not negated and ordered[0].startswith("\\")
    return ordered[0] if plain else f"[{'^' * negated}{''.join(ordered)}]", i + 1


_KNOWN = {_patterns(chain): name for name, chain in reversed(CHAINS)}


def _by_comparison(chain: tuple[Step, ...]) -> str | None:
    """The name that splits the probe like this chain; None without one, or if the chain cannot run or takes too long."""
    import regex

    if len(chain) > _MAX_STEPS or chain[-1][0] != "bytes" or any(step[0] in ("other", "punctuation") for step in chain):
        return None
    pieces, deadline = [PROBE], time.monotonic() + _TIMEOUT_S
    try:
        for kind, *rest in chain:
            if kind == "bytes":
                pattern = GPT2_PATTERN if rest[0] else None
            else:
                pattern = rest[0] if kind == "split" else (r"\p{N}" if rest[0] else r"\p{N}+")
            if pattern is not None and len(pattern) > _MAX_PATTERN:
                return None
            if pattern is not None:
                compiled = regex.compile(pattern, regex.VERSION1)
                pieces = [part for piece in pieces for part in _isolated(compiled, piece, deadline)]
    except (regex.error, TimeoutError, RecursionError, OverflowError):
        return None
    return next((name for name in NAMES if splitter(name)(PROBE) == pieces), None)


def _isolated(pattern: regex.Pattern[str], text: str, deadline: float) -> list[str]:
    parts, begin = [], 0
    for match in pattern.finditer(text, timeout=max(deadline - time.monotonic(), 1e-3)):
        for end in match.span():
            if end > begin:
                parts.append(text[begin:end])
                begin = end
    return [*parts, text[begin:]] if begin < len(text) else parts
