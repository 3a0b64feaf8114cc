"""The calls that tools/compat_check.py makes to llama-cpp-python and to gumba: loading, tokens, completions, sampling.

Each case is a function of the library (a module) and a model's path that gives something JSON can hold.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CASES: dict[str, Callable[[Any, str], Any]] = {}
CHAT = [{"role": "user", "content": "Name three colours."}]
CITY = "The capital of France is"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
_loaded: dict[str, Any] = {}


def case(function: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    assert function.__name__ not in CASES, function.__name__
    CASES[function.__name__] = function
    return function


def llama(lib: Any, path: str, **options: Any) -> Any:
    """A model, made once for the same options."""
    key = json.dumps(options, sort_keys=True)
    if key not in _loaded:
        _loaded[key] = lib.Llama(path, **{"n_ctx": 256, "verbose": False, "n_threads": 1, "seed": 7, **options})
    return _loaded[key]


def shape(value: Any) -> Any:
    """The keys and types of an answer, to any depth."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return (
        "number" if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) else type(value).__name__
    )


def plain(answer: Any) -> Any:
    """An answer without what is new in each call."""
    return {**answer, "id": answer["id"].split("-")[0], "created": 0, "model": Path(answer["model"]).name}


# ------------------------------------------------------------------------------------------------------- loading


@case
def load_missing_file(lib: Any, path: str) -> Any:
    return lib.Llama("/no/such/file.gguf", verbose=False)


@case
def load_malformed_file(lib: Any, path: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        bad = Path(folder, "bad.gguf")
        bad.write_bytes(b"GGUF" + bytes(60))
        return lib.Llama(str(bad), verbose=False)


@case
def load_keywords(lib: Any, path: str) -> Any:
    model = lib.Llama(
        path, n_gpu_layers=0, main_gpu=0, split_mode=lib.LLAMA_SPLIT_MODE_LAYER, use_mmap=True, use_mlock=False, n_ctx=256,
        n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1, rope_freq_base=0.0, offload_kqv=True, flash_attn=False,
        last_n_tokens_size=32, numa=False, verbose=False, type_k=lib.GGML_TYPE_F16, type_v=lib.GGML_TYPE_F16,
    )  # fmt: skip
    return [model.n_ctx(), model.n_batch, model(CITY, max_tokens=4, temperature=0)["choices"][0]["text"]]


@case
def load_context_of_the_model(lib: Any, path: str) -> Any:
    return llama(lib, path, n_ctx=0).n_ctx()


@case
def load_vocab_only(lib: Any, path: str) -> Any:
    model = lib.Llama(path, vocab_only=True, verbose=False)
    return [model.tokenize(b"Hello world"), model.n_vocab()]


@case
def unknown_keyword(lib: Any, path: str) -> Any:
    return type(lib.Llama(path, vocab_only=True, verbose=False, no_such_keyword=1)).__name__


@case
def numbers(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    return [model.n_ctx(), model.n_vocab(), model.n_embd(), model.token_bos(), model.token_eos(), model.token_nl()]


@case
def metadata(lib: Any, path: str) -> Any:
    return llama(lib, path).metadata


# -------------------------------------------------------------------------------------------------------- tokens


@case
def tokenize(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    texts = [b"Hello, world!", b"", b" two  spaces\n\n", "naïve 東京 🙂".encode(), b"<|im_start|>user", b"\xff\xfe bad"]
    return [
        model.tokenize(text, add_bos=bos, special=special) for text in texts for bos in (0, 1) for special in (0, 1)
    ]


@case
def tokenize_defaults(lib: Any, path: str) -> Any:
    return llama(lib, path).tokenize(b"<|im_end|> a")


@case
def detokenize(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    found = [model.detokenize([token]) for token in range(0, 49152, 97)] + [
        model.detokenize(list(range(30)), special=True)
    ]
    found += [
        model.detokenize(model.tokenize("naïve 東京 🙂".encode())),
        model.detokenize([]),
        model.detokenize([1, 28]),
    ]
    return [each.hex() for each in found]


@case
def tokenizer_object(lib: Any, path: str) -> Any:
    tokenizer = llama(lib, path).tokenizer()
    return [tokenizer.encode("Hi <|im_end|>"), tokenizer.decode(tokenizer.encode("Hi there"))]


# ---------------------------------------------------------------------------------------------------- completions


@case
def completion(lib: Any, path: str) -> Any:
    return plain(llama(lib, path)(CITY, max_tokens=24, temperature=0))


@case
def completion_types(lib: Any, path: str) -> Any:
    return shape(llama(lib, path).create_completion(CITY, max_tokens=2))


@case
def completion_default_length(lib: Any, path: str) -> Any:
    return llama(lib, path)(CITY, temperature=0)["usage"]


@case
def completion_positional(lib: Any, path: str) -> Any:
    return plain(llama(lib, path)(CITY, None, 5, 0.0))


@case
def completion_of_tokens(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    return plain(model(model.tokenize(CITY.encode()), max_tokens=6, temperature=0))


@case
def completion_special_texts(lib: Any, path: str) -> Any:
    return llama(lib, path)("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", max_tokens=8, temperature=0)[
        "usage"
    ]


@case
def completion_echo(lib: Any, path: str) -> Any:
    return plain(llama(lib, path)(CITY, max_tokens=5, temperature=0, echo=True))


@case
def completion_model_name(lib: Any, path: str) -> Any:
    return llama(lib, path)(CITY, max_tokens=1, model="my-model")["model"]


@case
def completion_ends_itself(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    return plain(model("<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n", max_tokens=None, temperature=0))


@case
def completion_stop(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    stops = ["\n", [" States"], ["zzz", "ted"], [], None, ["Paris", "."]]
    return [plain(model(CITY, max_tokens=24, temperature=0, stop=stop)) for stop in stops]


@case
def completion_to_the_end_of_the_context(lib: Any, path: str) -> Any:
    answers = [llama(lib, path)(CITY, max_tokens=count, temperature=0) for count in (None, -1, 0, 9999)]
    return [[each["choices"][0]["finish_reason"], each["usage"]] for each in answers]


@case
def completion_prompt_too_long(lib: Any, path: str) -> Any:
    return llama(lib, path)([5] * 256, max_tokens=1)


@case
def completion_prompt_just_fits(lib: Any, path: str) -> Any:
    return llama(lib, path)([5] * 255, max_tokens=9)["usage"]


@case
def completion_empty_prompt(lib: Any, path: str) -> Any:
    return llama(lib, path)("", max_tokens=4, temperature=0)["usage"]


@case
def completion_suffix(lib: Any, path: str) -> Any:
    return llama(lib, path)(CITY, suffix=" and so on", max_tokens=3, temperature=0)["choices"][0]["text"]


@case
def completion_stream(lib: Any, path: str) -> Any:
    return [plain(chunk) for chunk in llama(lib, path)(CITY, max_tokens=12, temperature=0, stream=True)]


@case
def completion_stream_stop(lib: Any, path: str) -> Any:
    chunks = list(llama(lib, path)(CITY, max_tokens=24, temperature=0, stream=True, stop=["States"]))
    return ["".join(chunk["choices"][0]["text"] for chunk in chunks), chunks[-1]["choices"][0]["finish_reason"]]


@case
def completion_stream_characters(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    processor = force(lib, model.tokenize("naïve 東京 🙂 ok".encode()))
    chunks = list(model(CITY, max_tokens=40, temperature=0, stream=True, stop=["ok"], logits_processor=processor()))
    whole = model(CITY, max_tokens=40, temperature=0, stop=["ok"], logits_processor=processor())
    return ["".join(chunk["choices"][0]["text"] for chunk in chunks), whole["choices"][0]["text"]]


@case
def completion_closed_early(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    stream = model(CITY, max_tokens=50, temperature=0, stream=True)
    first = next(stream)["choices"][0]["text"]
    stream.close()
    return [first, model(CITY, max_tokens=3, temperature=0)["choices"][0]["text"]]


# ------------------------------------------------------------------------------------------------------- sampling


def force(lib: Any, tokens: list[int]) -> Callable[[], Any]:
    """A processor that makes an answer be ``tokens``."""

    def make() -> Any:
        start: list[int] = []

        def processor(input_ids: Any, scores: Any) -> Any:
            start.append(len(input_ids))
            at = len(input_ids) - start[0]
            scores = np.full_like(scores, -100.0)
            scores[tokens[min(at, len(tokens) - 1)]] = 100.0
            return scores

        return lib.LogitsProcessorList([processor])

    return make


@case
def penalties(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    options: list[dict[str, float]] = [{"repeat_penalty": 1.3}, {"frequency_penalty": 1.0}, {"presence_penalty": 1.5}]
    text = "one two three one two three one two"
    return [model(text, max_tokens=8, temperature=0, **each)["choices"][0]["text"] for each in options]


@case
def filters_that_leave_one(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    options: list[dict[str, float]] = [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"typical_p": 1.0, "top_k": 1}]
    return [model(CITY, max_tokens=8, temperature=1.0, **each)["choices"][0]["text"] for each in options]


@case
def same_seed_same_text(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    texts = [model(CITY, max_tokens=16, temperature=1.5, seed=seed)["choices"][0]["text"] for seed in (1, 1, 2, -1)]
    return [texts[0] == texts[1], texts[0] == texts[2]]


@case
def samplers_run(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    options: list[dict[str, Any]] = [
        {"mirostat_mode": 1}, {"mirostat_mode": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.2}, {"typical_p": 0.5},
        {"tfs_z": 0.5}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 2.0}, {"min_p": -0.5},
    ]  # fmt: skip
    return [model(CITY, max_tokens=6, seed=3, **each)["usage"] for each in options]


@case
def logit_bias(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    token = model.tokenize(b" London")[0]
    return model(CITY, max_tokens=3, temperature=0, logit_bias={str(token): 100.0})["choices"][0]["text"]


@case
def logits_processor(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    seen: list[Any] = []

    def processor(input_ids: Any, scores: Any) -> Any:
        seen.append([len(input_ids), str(scores.dtype), scores.shape[0]])
        scores[model.token_eos()] = -np.inf
        return scores

    answer = model(CITY, max_tokens=3, temperature=0, logits_processor=lib.LogitsProcessorList([processor]))
    return [answer["choices"][0]["text"], seen]


@case
def min_tokens_processor(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    processor = lib.LogitsProcessorList([lib.llama.MinTokensLogitsProcessor(20, model.token_eos())])
    prompt = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    return model(prompt, max_tokens=25, temperature=0, logits_processor=processor)["usage"]["completion_tokens"] >= 20


@case
def stopping_criteria(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    criteria = lib.StoppingCriteriaList([lambda input_ids, logits: len(input_ids) >= 10])
    return plain(model(CITY, max_tokens=20, temperature=0, stopping_criteria=criteria))


@case
def grammar_gbnf(lib: Any, path: str) -> Any:
    grammar = lib.LlamaGrammar.from_string('root ::= " Lyon" | " Rome" ("!" | "?")', verbose=False)
    return plain(llama(lib, path)(CITY, max_tokens=9, temperature=0, grammar=grammar))


@case
def grammar_json_schema(lib: Any, path: str) -> Any:
    schema = json.dumps(TOOL["function"]["parameters"])  # type: ignore[index]
    grammar = lib.LlamaGrammar.from_json_schema(schema, verbose=False)
    text = llama(lib, path)("A city as JSON: ", max_tokens=60, temperature=0, grammar=grammar)["choices"][0]["text"]
    return sorted(json.loads(text))


@case
def grammar_malformed(lib: Any, path: str) -> Any:
    grammar = lib.LlamaGrammar.from_string("root ::= nothing-like-it", verbose=False)
    return llama(lib, path)(CITY, max_tokens=2, grammar=grammar)["usage"]
