"""Llama behaves as llama-cpp-python documents it; what it computes is what LLM computes."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gumba import EngineError, GumbaError, RequestError, SamplingParams, UnsupportedError
from gumba.compat import llama_cpp
from gumba.compat.llama_cpp import Llama, LlamaGrammar, LlamaRAMCache, LlamaTokenizer
from gumba.compat.llama_cpp.options import check_overrides
from gumba.gguf import GGUFFile

PROMPT = "hello world"
LOGGER = "gumba"


def greedy(llm, prompt, n, **options):
    """LLM's answer to a text whose control tokens are read."""
    ids = llm.tokenizer.encode(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
    return llm.generate([ids], SamplingParams(temperature=0, max_tokens=n, **options))[0]


def ended(llm, result):
    """Tokens of an answer without the one that ended it."""
    return [token for token in result.token_ids if token not in llm.tokenizer.eog_ids]


def text_of(llm, tokens):
    """As bytes that make no character are left out."""
    return llm.tokenizer.decode_bytes(tokens, True).decode("utf-8", "ignore")


# -------------------------------------------------------------------------------------------------------- loading


def test_missing_and_malformed_files_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match="Model path does not exist") as missing:
        Llama(str(tmp_path / "none.gguf"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ValueError, match=r"bad\.gguf") as malformed:
        Llama(bad)
    assert isinstance(missing.value, GumbaError) and isinstance(malformed.value, GumbaError)


def test_options_without_effect_are_accepted_and_logged(tiny, caplog, capfd):
    with caplog.at_level(logging.INFO, logger=LOGGER):
        model = Llama(str(tiny), vocab_only=True, n_ctx=0, n_gpu_layers=-1, use_mlock=True, flash_attn=True)
    said = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert [text.partition("=")[0] for text in said] == ["n_gpu_layers", "use_mlock", "flash_attn"]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        Llama(str(tiny), vocab_only=True, n_ctx=0, n_gpu_layers=-1, verbose=False, rope_freq_base=0.0)
    assert "has no effect" not in caplog.text
    assert capfd.readouterr().out == ""
    assert model.n_vocab() == 264


@pytest.mark.parametrize(
    "option",
    [
        {"lora_path": "x"},
        {"rope_freq_base": 1e6},
        {"kv_overrides": {"a": 1}},
        {"type_k": 2},
        {"type_k": 1, "type_v": 8},
    ],
)
def test_options_that_would_change_results_are_refused(tiny, option):
    with pytest.raises(UnsupportedError, match=next(iter(option))) as error:
        Llama(tiny, **option)
    assert isinstance(error.value, ValueError)


def test_unknown_keywords_are_ignored_with_a_warning(tiny, caplog):
    Llama(tiny, vocab_only=True, n_contexts=1, device=None, temperature=0.7)
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warned == [
        "Llama(): unknown keyword n_contexts=1 is ignored",
        "Llama(): unknown keyword temperature=0.7 is ignored",
    ]


def test_values_that_are_the_files_own_change_nothing(tiny, caplog):
    with GGUFFile(tiny) as file:
        name = file.metadata["general.architecture"]
        base = file.metadata.get(f"{name}.rope.freq_base", 10000.0)
    own = {"rope_freq_base": float(base), "rope_freq_scale": 1, "rope_scaling_type": 0, "attention_type": 0}
    own["kv_overrides"] = {"general.architecture": name, f"{name}.context_length": 256}
    Llama(tiny, vocab_only=True, seed=None, lora_path="", lora_base=None, **own)
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    for option in ({"rope_freq_base": base * 2}, {"rope_freq_scale": 0.5}, {"rope_scaling_type": 2}, {"attention_type": 1},
                   {"kv_overrides": {f"{name}.context_length": 255}}, {"lora_path": "a.gguf"}, {"yarn_orig_ctx": 64},
                   {"rope_freq_base": True}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(option))}: gumba does not support it"):
            Llama(tiny, vocab_only=True, **option)


def test_langchains_defaults_keep_what_the_file_says(tmp_path, tiny, caplog):
    """LangChain gives rope_freq_base=10000.0 for every model."""
    check_overrides({"rope_freq_base": 10000.0, "rope_freq_scale": 1.0}, {
        "general.architecture": "llama", "llama.rope.freq_base": "100000.000000", "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": "4.000000",
    })  # fmt: skip
    assert [each.getMessage() for each in caplog.records] == [
        "rope_freq_base=10000.0 has no effect: gumba keeps the value of the file, 100000.0",
        "rope_freq_scale=1.0 has no effect: gumba keeps the value of the file, 0.25",
    ]


@pytest.mark.parametrize("prompt", [b"Hello", bytearray(b"a"), memoryview(b"a"), 5, None, {1: 2}, {1, 2}])
def test_a_prompt_that_is_neither_text_nor_tokens_is_a_type_error(llama, prompt):
    with pytest.raises(TypeError, match="prompt: expected text or a list of token ids") as error:
        llama(prompt, max_tokens=1)
    assert isinstance(error.value, GumbaError)


def test_text_where_bytes_belong_and_the_other_way_round(llama, tiny):
    with pytest.raises(TypeError, match="text: expected bytes, found 'hello'"):
        llama.tokenize("hello")
    with Llama(tiny, n_ctx=64, embedding=True) as embedding, pytest.raises(TypeError, match="input: expected text"):
        embedding.embed([b"hello"])


@pytest.mark.parametrize(
    "option", [{"seed": "a"}, {"seed": 1.5}, {"n_ctx": None}, {"n_ctx": True}, {"type_k": [1]}, {"model_path": 5}]
)
def test_options_of_the_wrong_type_are_type_errors(tiny, option):
    with pytest.raises(TypeError, match=f"{next(iter(option))}.*: expected .*, found") as error:
        Llama(**{"model_path": tiny, "vocab_only": True, **option})
    assert isinstance(error.value, GumbaError)


@pytest.mark.parametrize(
    "option",
    [
        {"temp": "a"}, {"temp": None}, {"top_k": None}, {"top_p": True}, {"grammar": "root ::= 'a'"}, {"logit_bias": [1]},
        {"logits_processor": 5}, {"max_tokens": "5"}, {"max_tokens": 1.5}, {"stop": 5}, {"stop": [b"x"]}, {"seed": "a"},
        {"stopping_criteria": 5},
    ],
)  # fmt: skip
def test_arguments_of_the_wrong_type_are_type_errors(llama, option):
    given = {"temperature" if name == "temp" else name: value for name, value in option.items()}
    with pytest.raises(TypeError, match=f"{next(iter(option))}: expected .*, found") as error:
        llama("h", **{"max_tokens": 1, **given})
    assert isinstance(error.value, GumbaError)


def test_numbers_of_numpy_are_numbers(llama):
    plain = llama("h", max_tokens=3, temperature=0.5, seed=3)
    given = llama("h", max_tokens=np.int64(3), temperature=np.float64(0.5), seed=np.uint32(3))
    assert given["choices"] == plain["choices"]


class Upper(llama_cpp.BaseLlamaTokenizer):
    """The file's own tokenizer, which reads upper case."""

    def __init__(self, tokenizer):
        self.own = tokenizer

    def tokenize(self, text, add_bos=True, special=True):
        return self.own.tokenize(text.upper(), add_bos, special)

    def detokenize(self, tokens, prev_tokens=None, special=False):
        return self.own.detokenize(tokens, prev_tokens, special).lower()


def test_a_tokenizer_of_ones_own_reads_prompts(tiny, llama):
    upper = Upper(llama_cpp.LlamaTokenizer(Llama(tiny, vocab_only=True)))
    with Llama(tiny, n_ctx=128, tokenizer=upper) as model:
        assert model.tokenize(b"ab") == llama.tokenize(b"AB", special=False)
        assert model.detokenize(llama.tokenize(b"AB")) == b"ab"
        ours = model("ab", max_tokens=4, temperature=0)
        theirs = llama("AB", max_tokens=4, temperature=0)
        assert ours["choices"][0]["text"] == theirs["choices"][0]["text"]
        assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


class HFTokenizer:
    """What is used of a tokenizer of transformers."""

    def encode(self, text, add_special_tokens):
        return [1] * add_special_tokens + list(text.encode())

    def decode(self, ids, skip_special_tokens):
        return bytes(each for each in ids if each > 1 or not skip_special_tokens).decode()


def test_tokenizers_of_transformers():
    tokenizer = llama_cpp.LlamaHFTokenizer(HFTokenizer())
    assert tokenizer.tokenize("hé".encode()) == [1, 104, 195, 169]
    assert tokenizer.tokenize(b"h", add_bos=False) == [104]
    assert tokenizer.detokenize([195, 169], prev_tokens=[1, 104]) == "é".encode()
    assert tokenizer.detokenize([1, 104], special=True) == b"\x01h"


def test_sizes(tiny, llama, caplog):
    assert (llama.n_ctx(), llama.n_vocab(), llama.n_embd()) == (128, 264, 64)
    assert (llama.token_bos(), llama.token_eos()) == (1, 2)
    assert llama.detokenize([llama.token_nl()]) == b"\n"
    assert Llama(tiny, n_ctx=0, vocab_only=True).n_ctx() == 256
    assert Llama(tiny, n_ctx=1000, vocab_only=True).n_ctx() == 256
    assert "trained for 256" in caplog.text
    caplog.clear()
    assert Llama(tiny, vocab_only=True).n_ctx() == 256
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING], "a warning without a cause"
    assert Llama(tiny, n_ctx=64, type_k=llama_cpp.GGML_TYPE_F32).n_ctx() == 64


def test_metadata_are_strings(llama):
    assert llama.metadata["general.name"] == "Tiny chat"
    assert llama.metadata["llama.context_length"] == "256"
    assert llama.metadata["llama.attention.layer_norm_rms_epsilon"] == "0.000010"
    assert llama.metadata["tokenizer.ggml.add_bos_token"] == "false"
    assert "tokenizer.ggml.tokens" not in llama.metadata
    assert all(type(value) is str for value in llama.metadata.values())


def test_vocab_only_has_no_weights(tiny):
    model = Llama(tiny, vocab_only=True)
    assert (
        model.tokenize(b"hello")
        == model.tokenizer().encode("hello")
        == LlamaTokenizer.from_ggml_file(tiny).encode("hello")
    )
    with pytest.raises(EngineError, match="vocab_only"):
        model("hello")
    model.close()


def test_from_pretrained(tiny, monkeypatch):
    assert Llama.from_pretrained(str(tiny), vocab_only=True).model_path == str(tiny)  # what gumba run would take
    fetched = []

    def fetch_file(*args, **places):
        fetched.append((*args, places))
        return tiny

    monkeypatch.setattr("gumba.hub.fetch.fetch_file", fetch_file)
    model = Llama.from_pretrained("ada/tiny", "*q8_0.gguf", ["*-2.gguf"], local_dir="here", vocab_only=True)
    places = {"local_dir": "here", "cache_dir": None}
    assert fetched == [("ada/tiny", "*q8_0.gguf", places), ("ada/tiny", "*-2.gguf", places)]
    assert model.model_path == str(tiny)


# --------------------------------------------------------------------------------------------------------- tokens


def test_tokens_and_bytes(llama, llm):
    text = "hello <|im_end|> é"
    assert llama.tokenize(text.encode()) == llm.tokenizer.encode(text)
    assert llama.tokenize(text.encode(), special=True) == llm.tokenizer.encode(text, parse_special=True)
    ids = llama.tokenize(text.encode(), special=True)
    assert llama.detokenize(ids) == "hello  é".encode()
    assert llama.detokenize(ids, special=True) == text.encode()
    assert llama.detokenize(ids[-1:]) == "é".encode()[-1:]
    assert llama.tokenize(b"a\xff") == llama.tokenize("a�".encode())
    assert llama.tokenizer().decode(ids[:-1]) == "hello  "
    with pytest.raises(RequestError):
        llama.detokenize([264])


# ----------------------------------------------------------------------------------------------------- completions


def test_completion(llama, llm):
    answer = llama(PROMPT, max_tokens=12, temperature=0)
    expected = greedy(llm, PROMPT, 12)
    tokens = ended(llm, expected)
    prompt_tokens = len(llm.tokenizer.encode(PROMPT))
    assert answer == {
        "id": answer["id"],
        "object": "text_completion",
        "created": answer["created"],
        "model": llama.model_path,
        "choices": [
            {
                "text": text_of(llm, tokens),
                "index": 0,
                "logprobs": None,
                "finish_reason": expected.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(tokens),
            "total_tokens": prompt_tokens + len(tokens),
        },
    }
    assert answer["id"].startswith("cmpl-") and type(answer["created"]) is int
    assert list(llama.eval_tokens) == [*expected.prompt_token_ids, *tokens]


def test_completion_defaults(llama):
    assert llama(PROMPT, seed=1)["usage"]["completion_tokens"] <= 16
    assert llama(PROMPT, None, 2, 0.0, model="mine")["model"] == "mine"


def test_prompts_of_tokens_and_empty_ones(llama, llm):
    ids = llama.tokenize(PROMPT.encode())
    assert llama(ids, max_tokens=5, temperature=0)["choices"] == llama(PROMPT, max_tokens=5, temperature=0)["choices"]
    assert llama("", max_tokens=2, temperature=0)["usage"]["prompt_tokens"] == 1
    assert llama("<|im_start|>hello", max_tokens=1)["usage"]["prompt_tokens"] == 2


def test_echo_and_suffix(llama):
    text = llama(PROMPT, max_tokens=5, temperature=0)["choices"][0]["text"]
    assert llama(PROMPT, max_tokens=5, temperature=0, echo=True)["choices"][0]["text"] == PROMPT + text
    assert llama(PROMPT, suffix=" end", max_tokens=5, temperature=0)["choices"][0]["text"] == text + " end"
    ids = llama.tokenize(PROMPT.encode())
    assert llama(ids, max_tokens=5, temperature=0, echo=True)["choices"][0]["text"] == PROMPT + text


def test_the_end_of_generation_is_no_part_of_the_answer(llama, llm, ending):
    expected = greedy(llm, ending, 40)
    answer = llama(ending, max_tokens=40, temperature=0)
    assert expected.token_ids[-1] in llm.tokenizer.eog_ids
    assert answer["choices"][0]["text"] == text_of(llm, expected.token_ids)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(expected.token_ids) - 1
    tokens = llama.generate(ending, temp=0)
    assert [next(tokens) for _ in range(len(expected.token_ids) + 1)][:-1] == expected.token_ids
    tokens.close()


@pytest.mark.parametrize("max_tokens", [None, 0, -1, 9999])
def test_to_the_end_of_the_context(llama, llm, max_tokens):
    usage = llama(PROMPT, max_tokens=max_tokens, temperature=0)["usage"]
    expected = greedy(llm, PROMPT, 9999)
    assert usage["completion_tokens"] == len(ended(llm, expected))
    assert expected.finish_reason == "stop" or usage["total_tokens"] == 128


def test_prompts_that_do_not_fit(llama):
    with pytest.raises(ValueError, match=r"Requested tokens \(128\) exceed context window of 128"):
        llama([5] * 128)
    assert llama([5] * 127, max_tokens=9)["usage"]["completion_tokens"] <= 1


def test_stop_strings(llama):
    whole = llama(PROMPT, max_tokens=30, temperature=0)["choices"][0]["text"]
    stop = whole[6:8]
    for given in (stop, [stop], ("never there", stop)):
        choice = llama(PROMPT, max_tokens=30, temperature=0, stop=given)["choices"][0]
        assert choice["text"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"
        chunks = list(llama(PROMPT, max_tokens=30, temperature=0, stop=given, stream=True))
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    held = whole[-1] + "never there"  # text that might become a stop string comes at the end
    assert llama(PROMPT, max_tokens=30, temperature=0, stop=held)["choices"][0]["text"] == whole
    chunks = list(llama(PROMPT, max_tokens=30, temperature=0, stop=held, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    with pytest.raises(ValueError, match="stop"):
        llama(PROMPT, stop=[""])


def test_streaming(llama):
    whole = llama(PROMPT, max_tokens=20, temperature=0)
    chunks = list(llama(PROMPT, max_tokens=20, temperature=0, stream=True))
    *parts, last = [chunk["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in parts) == whole["choices"][0]["text"]
    assert all(part["text"] and part["finish_reason"] is None for part in parts)
    assert last == {"text": "", "index": 0, "logprobs": None, "finish_reason": whole["choices"][0]["finish_reason"]}
    assert len({chunk["id"] for chunk in chunks}) == 1 and "usage" not in chunks[0]
    stream = llama(PROMPT, max_tokens=20, temperature=0, stream=True)
    next(stream)
    stream.close()
    assert llama(PROMPT, max_tokens=20, temperature=0)["choices"] == whole["choices"]


def test_only_whole_characters_come(tiny, llama):
    """The euro sign, byte by byte, one step short: what is no character is left out."""
    from gumba.compat.llama_cpp.completion import Pieces

    euro = llama.tokenize("€a".encode())
    pieces = Pieces(llama.llm.tokenizer, [], strip=False)
    assert [pieces.push(token) for token in euro] == ["", "", "€", "a"]
    assert pieces.push(euro[0]) == "" and pieces.finish() == ""


def test_seeds(tiny, llama):
    def text(**options):
        return llama(PROMPT, max_tokens=12, temperature=1.5, **options)["choices"][0]["text"]

    assert text(seed=1) == text(seed=1) != text(seed=2)
    llama.set_seed(9)
    chain = [text(), text()]
    llama.set_seed(9)
    assert [text(), text()] == chain and chain[0] != chain[1]
    llama.set_seed(-1)
    assert len({text() for _ in range(4)}) > 1


def test_filters_out_of_range_are_off_and_greedy_ones_greedy(llama):
    best = llama(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]
    for option in ({"top_k": 1}, {"top_p": 0.0}, {"top_p": -1.0}, {"min_p": 1.0}, {"min_p": 7.0}):
        assert llama(PROMPT, max_tokens=8, temperature=1.0, **option)["choices"][0]["text"] == best
    for option in ({"top_k": -1}, {"top_p": 2.0}, {"min_p": -1.0}, {"tfs_z": 0.3}, {"temperature": -1.0}):
        assert llama(PROMPT, max_tokens=2, seed=1, **option)["usage"]["completion_tokens"] <= 2


def test_threads_may_share_it(llama):
    prompts = [f"{PROMPT} {i}" for i in range(6)]
    alone = [llama(prompt, max_tokens=12, temperature=0)["choices"] for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: llama(prompt, max_tokens=12, temperature=0)["choices"], prompts))
    assert together == alone


# ----------------------------------------------------------------------------------------------------- lower level


def test_generate_is_endless_and_fills_the_state(llama, llm):
    ids = llama.tokenize(PROMPT.encode())
    tokens = llama.generate(ids, temp=0)
    found = [next(tokens) for _ in range(10)]
    assert found == greedy(llm, ids, 10, ignore_eos=True).token_ids
    assert list(llama.eval_tokens) == [*ids, *found[:-1]]
    tokens.close()
    with pytest.raises(RuntimeError, match="context"):
        for _ in llama.generate([5] * 120, temp=0):
            pass


def test_tokens_can_be_sent(llama, llm):
    ids, more = llama.tokenize(PROMPT.encode()), llama.tokenize(b" hello")
    tokens = llama.generate(ids, temp=0)
    first = next(tokens)
    second = tokens.send(more)
    assert [second] == greedy(llm, [*ids, first, *more], 1, ignore_eos=True).token_ids
    tokens.close()


def test_generate_goes_on_from_the_state_without_reset(llama, llm):
    llama.reset()
    llama.eval([5, 6, 7])
    tokens = llama.generate([8], temp=0, reset=False)
    assert [next(tokens)] == greedy(llm, [5, 6, 7, 8], 1, ignore_eos=True).token_ids
    tokens.close()


def test_eval_and_sample(llama, llm):
    ids = llama.tokenize(PROMPT.encode())
    llama.reset()
    llama.eval(ids)
    found = []
    for _ in range(4):
        found.append(llama.sample(temp=0))
        llama.eval(found[-1:])
    expected = greedy(llm, ids, 5, ignore_eos=True).token_ids
    assert found == expected[:4] and llama.n_tokens == len(ids) + 4
    assert llama.sample(temp=0, idx=len(ids) - 1) == expected[0]
    assert llama.sample(temp=0) == expected[4]
    assert llama.n_tokens == len(ids) + 4
    with pytest.raises(RuntimeError, match="context"):
        llama.eval([5] * 128)
    with pytest.raises(ValueError, match="264"):
        llama.eval([264])
    llama.reset()
    with pytest.raises(ValueError):
        llama.sample()


def test_scores_are_the_logits(tiny, llama, llm):
    llama.reset()
    llama.eval([5, 6, 7])
    assert llama.scores.shape == (128, 264) and llama.scores.dtype == np.float32
    np.testing.assert_array_equal(llama.scores[:3], llm.logits([5, 6, 7]))
    assert not llama.scores[3:].any()
    llama.eval([8])
    np.testing.assert_array_equal(np.array(llama.eval_logits, np.float32), llm.logits([5, 6, 7, 8]))
    llama.n_tokens = 3
    llama.eval([9])
    np.testing.assert_array_equal(llama.scores[:4], llm.logits([5, 6, 7, 9]))
    llama.n_tokens = 2
    assert llama.scores[1].any() and not llama.scores[2:].any()
    llama.eval([7, 9])
    np.testing.assert_array_equal(llama.scores[:4], llm.logits([5, 6, 7, 9]))
    with Llama(tiny, n_ctx=64) as last:
        last.eval([5, 6])
        np.testing.assert_array_equal(np.array(last.eval_logits, np.float32), llm.logits([5, 6])[-1:])
        assert not last.scores.any()


def test_states(llama):
    llama.reset()
    llama.eval([5, 6, 7])
    saved = llama.save_state()
    assert saved.n_tokens == 3 and saved.llama_state_size > 0
    llama.eval([8])
    llama.load_state(saved)
    assert list(llama.eval_tokens) == [5, 6, 7]
    wrong = copy.copy(saved)
    wrong.input_ids = np.array([5, 6, 999])
    with pytest.raises(ValueError, match="999"):
        llama.load_state(wrong)


def test_caches_are_accepted(llama):
    cache = LlamaRAMCache(capacity_bytes=1 << 20)
    llama.set_cache(cache)
    assert llama(PROMPT, max_tokens=2, temperature=0) and llama.cache is cache
    assert cache.cache_size == 0 and [1, 2] not in cache
    with pytest.raises(KeyError):
        cache[[1, 2]]
    llama.set_cache(None)


def test_log_softmax_and_prefixes():
    values = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, -np.inf]], np.float32)
    expected = np.log(np.exp(values.astype(float)) / np.exp(values.astype(float)).sum(-1, keepdims=True) + 1e-300)
    found = Llama.logits_to_logprobs(values)
    np.testing.assert_allclose(found[np.isfinite(found)], expected[np.isfinite(found)], atol=1e-6)
    assert found.dtype == np.float32 and found[1, 2] == -np.inf
    assert Llama.longest_token_prefix([1, 2, 3], [1, 2, 4]) == 2 == Llama.longest_token_prefix([1, 2], [1, 2, 4])
    assert Llama.longest_token_prefix([], [1]) == 0


def test_embeddings(tiny, llama, llm):
    texts = ["hello world", "hell"]
    tokens = [llm.tokenizer.encode(text) for text in texts]
    with pytest.raises(RuntimeError, match="embedding=True"):
        llama.embed("hello")
    with Llama(tiny, n_ctx=64, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN) as model:
        vectors = llm.embed(texts, pooling="mean", normalize=False).tolist()
        assert model.embed(texts) == vectors and model.embed(texts[0]) == vectors[0]
        assert model.embed(texts, normalize=True) == llm.embed(texts, pooling="mean").tolist()
        total = sum(map(len, tokens))
        assert model.create_embedding(texts, model="mine") == {
            "object": "list",
            "data": [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)],
            "model": "mine",
            "usage": {"prompt_tokens": total, "total_tokens": total},
        }
        assert model.embed("hello " * 40) == model.embed(" ".join(["hello"] * 40))  # both cut to n_batch
        with pytest.raises(ValueError, match="exceed batch size of 64"):
            model.embed("hello " * 40, truncate=False)
    with Llama(tiny, n_ctx=64, embedding=True) as model:  # no pooling: a vector for each token
        states = [
            llm.embed([tokens[0][: i + 1]], pooling="last", normalize=False)[0].tolist() for i in range(len(tokens[0]))
        ]
        assert model.embed(texts)[0] == states and model.embed(texts[0], return_count=True) == (states, len(states))
    with (
        Llama(tiny, n_ctx=64, embedding=True, pooling_type=4) as model,
        pytest.raises(UnsupportedError, match="pooling_type"),
    ):
        model.embed("hello")


def test_pickling_is_refused_and_closing_final(tiny):
    model = Llama(tiny, n_ctx=64)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(model)
    model.close()
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model("hello")


def test_grammars_are_checked_when_made(tmp_path):
    with pytest.raises(ValueError, match="GBNF"):
        LlamaGrammar.from_string("")
    with pytest.raises(ValueError, match="JSON schema"):
        LlamaGrammar.from_json_schema("{")
    with pytest.raises(ValueError, match=r"none\.gbnf"):
        LlamaGrammar.from_file(tmp_path / "none.gbnf")
    (tmp_path / "a.gbnf").write_text('root ::= "a"')
    assert LlamaGrammar.from_file(tmp_path / "a.gbnf").structured_outputs().grammar == 'root ::= "a"'
    assert LlamaGrammar.from_json_schema('{"type": "object"}').structured_outputs().json == '{"type": "object"}'


# ------------------------------------------------------------------------------------------- what applications read


def test_keywords_of_older_versions_have_no_effect(tiny):
    with Llama(tiny, n_ctx=64, n_batch=32, f16_kv=True, n_parts=-1, low_vram=False, mul_mat_q=True) as llama:
        assert (llama.context_params.n_ctx, llama.context_params.n_batch, llama.n_threads > 0) == (64, 32, True)
        assert llama.model_params.vocab_only is False


def test_a_draft_model_of_ones_own_changes_nothing(tiny, llm):
    class Draft(llama_cpp.llama_speculative.LlamaDraftModel):
        def __call__(self, input_ids, /, **kwargs):
            raise AssertionError("never called")

    with Llama(tiny, n_ctx=128, draft_model=Draft()) as llama:
        answer = llama(PROMPT, max_tokens=6, temperature=0)
    assert answer["choices"][0]["text"] == text_of(llm, ended(llm, greedy(llm, PROMPT, 6)))


def test_the_grammar_of_json(llama):
    grammar = LlamaGrammar.from_string(llama_cpp.llama_grammar.JSON_GBNF)
    for seed in range(8):
        answer = llama("a", max_tokens=100, temperature=2.0, seed=seed, grammar=grammar)["choices"][0]
        assert answer["finish_reason"] == "length" or isinstance(json.loads(answer["text"]), dict)
        assert answer["text"].startswith("{")


def test_answers_in_the_classes_of_openai(llama, monkeypatch):
    messages = [{"role": "user", "content": "hello"}]
    monkeypatch.setitem(sys.modules, "openai.types.chat", None)
    with pytest.raises(ImportError, match="pip install openai") as missing:
        llama.create_chat_completion_openai_v1(messages, max_tokens=3)
    assert isinstance(missing.value, GumbaError)
    for name in ("openai", "openai.types", "openai.types.chat"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    chat = sys.modules["openai.types.chat"]
    chat.ChatCompletion, chat.ChatCompletionChunk = types.SimpleNamespace, types.SimpleNamespace
    answer = llama.create_chat_completion_openai_v1(messages, max_tokens=3, temperature=0)
    assert answer.object == "chat.completion" and answer.choices[0]["message"]["role"] == "assistant"
    chunks = list(llama.create_chat_completion_openai_v1(messages, max_tokens=3, temperature=0, stream=True))
    text = "".join(chunk.choices[0]["delta"].get("content", "") for chunk in chunks)
    assert text == answer.choices[0]["message"]["content"] and chunks[0].object == "chat.completion.chunk"
