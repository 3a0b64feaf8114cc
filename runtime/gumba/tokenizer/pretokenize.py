r"""Pre-tokenizers: how a text is cut into words before byte-pair merging, by the name in ``tokenizer.ggml.pre``.

A pre-tokenizer is one or several steps: the first cuts the text, each further one the pieces of the previous one, so that the
end of a piece is the end of the text for its pattern. Steps are written as in the models' tokenizer.json files. llama.cpp
simplifies Unicode categories for its regex engine in some patterns, and so cuts differently between marks (Devanagari, Thai)
or between letters of both cases outside of ASCII: here "gpt-4o", "tekken", "kimi-k2", "youtu", "tiny_aya" and similar ones
follow the model, as do "deepseek-llm" (single digits) and "laguna" (lines start with the end of the previous one).

Runs are possessive (``++``) wherever the pattern that follows cannot take back from them: no backtracking, linear time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gumba.errors import TokenizerError

Cut = Callable[[str], list[str]]

_MAX_CACHED_LENGTH, _MAX_CACHED = 24, 1 << 14  # characters of a cached text, and number of cached texts


@dataclass(frozen=True)
class Words:
    """A step whose pattern matches every character of every text: its matches are the pieces."""

    pattern: str

    def compiled(self) -> Cut:
        """The step as a function from a text to its pieces."""
        cut: Cut = _regex(self.pattern).findall
        return cut


@dataclass(frozen=True)
class Isolate:
    """A step whose pieces are the matches of its pattern and the texts between them."""

    pattern: str

    def compiled(self) -> Cut:
        """The step as a function from a text to its pieces."""
        split = _regex(f"({self.pattern})").split
        return lambda text: list(filter(None, split(text)))


@dataclass(frozen=True)
class Thousands:
    """A step that cuts runs of digits in threes from their right ends, "12345" into "12" and "345".

    ``alone``: runs are also cut from what stands around them.
    """

    pattern: str
    alone: bool = True

    def compiled(self) -> Cut:
        """The step as a function from a text to its pieces."""
        runs = _regex(self.pattern).finditer

        def cut(text: str) -> list[str]:
            pieces, begin = [], 0
            for run in runs(text):
                first, last = run.span()
                threes = range(last - (last - first) // 3 * 3, last, 3)
                for at in ([first] if self.alone else []) + [*threes] + ([last] if self.alone else []):
                    if at > begin:
                        pieces.append(text[begin:at])
                        begin = at
            return [*pieces, text[begin:]] if begin < len(text) else pieces

        return cut


Step = Words | Isolate | Thousands


@dataclass(frozen=True)
class PreTokenizer:
    """``steps``: see above; ``whole_words``: a word that is itself a token is taken without merging ("ignore_merges");
    ``add_bos``, ``add_sep``: what the family does unless the file says otherwise; ``characters``: merging begins with
    characters, not with bytes, and U+2581 stands for the space; ``spaces``: white space is part of words, or else it only
    parts them (and is lost)."""

    steps: tuple[Step, ...]
    whole_words: bool = False
    add_bos: bool = False
    add_sep: bool = False
    characters: bool = False
    spaces: bool = True


def _family(*steps: Step | str, **options: Any) -> PreTokenizer:
    """A family; the last step may be given as its pattern alone, that of its words."""
    return PreTokenizer(tuple(Words(step) if isinstance(step, str) else step for step in steps), **options)


_CONTRACTION = r"'(?:[stmd]|re|ve|ll)"
_ANY_CASE_CONTRACTION = r"'(?:[sS\u017FtTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"  # U+017F is an s that is long

#: The pattern of GPT-2.
_GPT2_WORDS = rf"{_CONTRACTION}| ?\p{{L}}++| ?\p{{N}}++| ?[^\s\p{{L}}\p{{N}}]++|\s+(?!\S)|\s++"
_GPT2 = _family(_GPT2_WORDS)

#: GPT-2's, inside the pieces left between single digits: one pattern, which looks ahead for the digit.
_SMOLLM = _family(
    rf"{_CONTRACTION}| ?\p{{L}}++|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]++|\s+(?![^\s\p{{N}}])|\s++",
)

#: GPT-2's, inside the pieces left between runs of punctuation; then numbers apart from the space before them, and ASCII
#: digits in threes. One pattern: where a piece would end, the look-ahead names what would begin the next.
_PUNCTUATION = r"\p{P}$+<=>\^~|"
_DEFAULT = _family(
    rf"[{_PUNCTUATION}]++| ?\p{{L}}++|[0-9]{{3}}|(?:(?![0-9]{{3}})\p{{N}})++"
    rf"| ?[^\s\p{{L}}\p{{N}}{_PUNCTUATION}]++|\s+(?![^\s{_PUNCTUATION}])|\s++",
)
_FALCON = _family(Isolate(r"[\p{P}$+<=>\^~|`]++"), _GPT2_WORDS, Isolate("[0-9][0-9][0-9]"))

_SPACES = r"\s*[\r\n]++|\s+(?!\S)|\s++"


def _tiktoken_words(
    number: str,
    *,
    contraction: str = _ANY_CASE_CONTRACTION + "|",
    letters: str = r"\p{L}++",
    other: str = r"\s\p{L}\p{N}",
    after: str = r"[\r\n]*+",
    spaces: str = _SPACES,
) -> str:
    """GPT-4's pattern (cl100k), of which most later ones are variations."""
    return rf"{contraction}[^\r\n\p{{L}}\p{{N}}]?{letters}|{number}| ?[^{other}]++{after}|{spaces}"


_LLAMA3_WORDS = _tiktoken_words(r"\p{N}{1,3}+")
_QWEN2_WORDS = _tiktoken_words(r"\p{N}")
_LLAMA3 = _family(_LLAMA3_WORDS, whole_words=True, add_bos=True)
_CL100K = _family(_LLAMA3_WORDS)
_GLM4 = _family(_LLAMA3_WORDS, whole_words=True)
_QWEN2 = _family(_QWEN2_WORDS)
_QWEN35 = _family(_tiktoken_words(r"\p{N}", letters=r"[\p{L}\p{M}]++", other=r"\s\p{L}\p{M}\p{N}"))
#: Searches a run of whitespace for a newline only from its start, so that a long run takes linear time.
_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = _family(_tiktoken_words(r"\p{N}{1,3}+", spaces=rf"(?<![^\S\r\n])\s*[\r\n]++|{_CASCADE}|\s{{1,2}}(?!\S)|\s"))
_SEED_CODER = _family(_tiktoken_words(r"\p{N}", other=r"\s\p{L}\p{N}\r\n", after=""))
_UFAKZEKA = _family(_tiktoken_words(r"\p{N}", contraction=""))
_MINICPM5 = _family(Isolate(r"\p{N}{1,3}+"), _tiktoken_words(r"\p{N}++"), whole_words=True)
#: Lines, each with the ends of lines before it.
_LAGUNA = _family(r"(?:\r?\n)++(?:(?!\r?\n).)*+|(?:(?!\r?\n).)++", _QWEN2_WORDS)
_EXAONE_MOE = _family(_tiktoken_words(r"\p{N}", letters=r"(?:\p{L}\p{M}*+(?: \p{L}\p{M}*+)*+)++", after=r"[\r\n/]?"))


def _cased_words(number: str, *, contraction: str = "", without: str = "", after: str = r"[\r\n/]*+") -> str:
    """The pattern of GPT-4o (o200k): a word is capitals, then small letters; ``without`` names letters left out."""
    upper, lower = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
    upper, lower = (f"[[{letters}]--{without}]" if without else f"[{letters}]" for letters in (upper, lower))
    before, contraction = r"[^\r\n\p{L}\p{N}]?", f"(?:{contraction})?" if contraction else ""
    return (
        rf"{before}{upper}*{lower}++{contraction}|{before}{upper}++{lower}*+{contraction}|{number}"
        rf"| ?[^\s\p{{L}}\p{{N}}]++{after}|{_SPACES}"
    )


_GPT4O_WORDS = _cased_words(r"\p{N}{1,3}+", contraction=_ANY_CASE_CONTRACTION)
_GPT4O = _family(_GPT4O_WORDS)
_TEKKEN = _family(_cased_words(r"\p{N}"), whole_words=True, add_bos=True)
_KIMI_K2 = _family(
    # Set difference needs version 1 of the pattern language, in which nothing else here reads otherwise.
    r"(?V1)\p{Han}++|"
    + _cased_words(r"\p{N}{1,3}+", contraction=_ANY_CASE_CONTRACTION, without=r"\p{Han}", after=r"[\r\n]*+")
)
_TINY_AYA = _family(Thousands(r"(?<!\d)\d++(?![\p{L}\p{M}\p{Pc}\u00B2\u00B3\u00B9\u00BC-\u00BE])"), _GPT4O_WORDS)
_YOUTU = _family(
    Isolate(
        r"[\uAC00-\uD7A3\u3131-\u318E]++|[\uFF01\u2026\u201C\u201D\u2018\u2019\u2014\uFF1A\uFF1B\uFF0C\u3001-\u303F"
        r"\uFE30-\uFE4F]++|[\u3105-\u312F]++|[\u4E00-\u9FA5\u3040-\u30FF]++"
    ),
    _cased_words(r"\p{N}", contraction=_ANY_CASE_CONTRACTION),
    whole_words=True,
)

_DEEPSEEK_CJK = Isolate(r"[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]++")
#: Letters of scripts with two cases.
_CASED_LETTERS = (
    r"A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373\u0376\u0377"
    r"\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F\u0531-\u0556"
    r"\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77\u1D79-\u1D9A"
    r"\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4"
    r"\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC"
    r"\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F"
    r"\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B"
    r"\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A"
    r"\U00010400-\U0001044F\U000104B0-\U000104D3\U000104D8-\U000104FB\U00010C80-\U00010CB2\U00010CC0-\U00010CF2"
    r"\U000118A0-\U000118DF\U0001E900-\U0001E943"
)
_DEEPSEEK_LLM = _family(
    Isolate(r"[\r\n]"),
    Isolate(rf"\s?[{_CASED_LETTERS}]++"),
    Isolate(r"\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]++"),
    Isolate(r"(?<!\s)\s++\Z"),
    _DEEPSEEK_CJK,
    Isolate(r"\p{N}"),
)
_DEEPSEEK_CODER = _family(
    Isolate(r"[\r\n]"), Isolate(r"\s?\p{L}++"), Isolate(r"\s?\p{P}++"), _DEEPSEEK_CJK, Isolate(r"\p{N}")
)


def _deepseek3_words(spaces: str = rf"[\r\n]*+|{_SPACES}") -> Isolate:
    symbol_and_letters = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]\^_`{|}~][A-Za-z]++"
    letters = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]++"
    return Isolate(rf"{symbol_and_letters}|{letters}| ?[\p{{P}}\p{{S}}]++{spaces}")


_NUMBERS_IN_THREES, _HAN_AND_KANA = Isolate(r"\p{N}{1,3}+"), Isolate(r"[\u4E00-\u9FA5\u3040-\u30FF]++")
_DEEPSEEK3 = _family(_NUMBERS_IN_THREES, _HAN_AND_KANA, _deepseek3_words())
_SPARK2_5 = _family(_NUMBERS_IN_THREES, _HAN_AND_KANA, _deepseek3_words(r"|[\r\n]|\s+(?!\S)|\s++"), Isolate(r"\p{N}"))
_AFMOE = _family(
    Thousands(r"\p{N}++"),
    Isolate(
        r"[\u4E00-\u9FFF\u3400-\u4DBF\u8C48-\uFAFF\u3040-\u30FF\uFF65-\uFF9F\u2F00-\u2FDF\u0E40-\u0EFF\u1780-\u17FF"
        r"\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF\uAC00-\uD7AF\u1100-\u11FF]++"
    ),
    _deepseek3_words(),
)

_BLOOM_WORDS = Isolate(r" ?[^(\s|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)]++")
_BLOOM = _family(_BLOOM_WORDS)
_VIKING = _family(_BLOOM_WORDS, Isolate(r"\p{N}"))
_SUPERBPE = _family(Isolate(r"\p{N}++"), Thousands(r"\d++", alone=False))
_CHAMELEON = _family(
    Isolate("<sentinel:[0-9]+>"),
    Isolate("IMGIMG[A-I]{1,4}Z"),
    Isolate(r"[\t\n]|    |  "),
    Isolate(r"\p{N}"),
    Isolate(r"[\p{P}!-/:-@\[-`{-~]"),
    _GPT2_WORDS,
    add_bos=True,
)
_GEMMA4 = _family(r"[^\n]++|\n++", characters=True, add_bos=True)

_FAMILIES: tuple[tuple[PreTokenizer, str], ...] = (
    (_DEFAULT, "default"),
    (
        _GPT2,
        "gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert jina-es jina-de "
        "jina-v2-es jina-v2-de",
    ),
    (_family(_GPT2_WORDS, add_sep=True), "jina-v1-en jina-v2-code roberta-bpe"),
    (_LLAMA3, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (_CL100K, "dbrx smaug-bpe chatglm-bpe"),
    (_GLM4, "glm4 glm5"),
    (
        _QWEN2,
        "qwen2 deepseek-r1-qwen stablelm2 kormo f2llmv2 openpangu megrez hunyuan solar-open grok-2 bailingmoe bailingmoe2 "
        "llada-moe",
    ),
    (_SMOLLM, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (_QWEN35, "qwen35"),
    (_DEEPSEEK3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (_DEEPSEEK_LLM, "deepseek-llm"),
    (_DEEPSEEK_CODER, "deepseek-coder"),
    (_FALCON, "falcon"),
    (_GPT4O, "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (_family(_GPT4O_WORDS, whole_words=True), "granite-embed-multi-97m"),
    (_TEKKEN, "tekken"),
    (_KIMI_K2, "kimi-k2"),
    (_TINY_AYA, "tiny_aya cohere2moe"),
    (_YOUTU, "youtu"),
    (_JAIS2, "jais-2"),
    (_SEED_CODER, "seed-coder"),
    (_UFAKZEKA, "ufakzeka"),
    (_MINICPM5, "minicpm5"),
    (_LAGUNA, "laguna"),
    (_EXAONE_MOE, "exaone-moe"),
    (_SPARK2_5, "spark2_5"),
    (_AFMOE, "afmoe"),
    (_BLOOM, "bloom poro-chat gpt3-finnish"),
    (_VIKING, "viking"),
    (_SUPERBPE, "superbpe"),
    (_CHAMELEON, "chameleon"),
    (_GEMMA4, "gemma4 granite-embed-multi-311m"),
    (_family(r"[^\n]++|\n++", characters=True), "sarvam-moe"),
    (_family(r"[^\p{White_Space}]++", characters=True, spaces=False), "whitespace"),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: family for family, names in _FAMILIES for name in names.split()}


def _regex(pattern: str) -> Any:
    import regex

    return regex.compile(pattern, regex.DOTALL | (0 if "(?V1)" in pattern[:6] else regex.VERSION0))


@functools.cache
def splitter(name: str) -> Cut:
    """What cuts a text into the words of a pre-tokenizer; they are together the text, but for "whitespace".

    Raises TokenizerError for an unknown name, listing the known ones.
    """
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(f"tokenizer.ggml.pre: unknown pre-tokenizer {name!r:.80}; known are {known}")
    return _chained([step.compiled() for step in PRE_TOKENIZERS[name].steps])


def _chained(steps: list[Cut]) -> Cut:
    if len(steps) == 1:
        return steps[0]
    first, rest = steps[0], _with_cache(_chained(steps[1:]))
    return lambda text: [word for piece in first(text) for word in rest(piece)]


def _with_cache(cut: Cut) -> Cut:
    """``cut`` with a cache of short texts: most words of a text occur many times."""
    known: dict[str, list[str]] = {}

    def cached(text: str) -> list[str]:
        if len(text) > _MAX_CACHED_LENGTH:
            return cut(text)
        pieces = known.get(text)
        if pieces is None:
            if len(known) >= _MAX_CACHED:
                known.clear()
            pieces = known[text] = cut(text)
        return pieces

    return cached
