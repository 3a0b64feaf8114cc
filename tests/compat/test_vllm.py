"""Keywords and prompts as vLLM has them: what they do here, and what is refused (names: vLLM's LLM and EngineArgs, 0.16)."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from gumba import LLM, BeamSearchParams, RequestError, ResourceError, SamplingParams, UnsupportedError
from gumba.llm.engine_args import ALLOWED, RENAMED, WITHOUT_EFFECT

GREEDY = SamplingParams(temperature=0, max_tokens=6)


class Dtype:
    """As torch.float16: its text is its name."""

    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "auto"},
        {"dtype": "half"},
        {"dtype": Dtype("torch.bfloat16")},
        {"dtype": None, "quantization": None, "tokenizer_mode": "slow"},
        {
            "trust_remote_code": True,
            "enforce_eager": True,
            "swap_space": 4,
            "disable_log_stats": True,
            "task": "generate",
        },
        {"quantization": "gguf", "load_format": "gguf", "device": "cpu", "tensor_parallel_size": 1, "hf_overrides": {}},
        {"download_dir": "models", "kv_cache_dtype": "auto", "hf_token": True},
        {"gpu_memory_utilization": 0.5},
        {"gpu_memory_utilization": 1},
    ],
)
def test_what_changes_nothing_is_taken(tiny, llm, options):
    with LLM(model=str(tiny), max_model_len=128, tokenizer=str(tiny), **options) as other:
        assert other.generate(["hello"], GREEDY)[0].token_ids == llm.generate(["hello"], GREEDY)[0].token_ids


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "int8"}, UnsupportedError, "dtype: .*found 'int8'"),
        ({"dtype": Dtype("torch.float64")}, UnsupportedError, "dtype: .*torch.float64"),
        ({"dtype": 16}, UnsupportedError, "dtype"),
        ({"quantization": "awq"}, UnsupportedError, "quantization: .*'awq'"),
        ({"tensor_parallel_size": 2}, UnsupportedError, "tensor_parallel_size: .*found 2"),
        ({"tensor_parallel_size": True}, UnsupportedError, "tensor_parallel_size"),
        ({"kv_cache_dtype": "fp8"}, UnsupportedError, "kv_cache_dtype: .*kv_type"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, UnsupportedError, "rope_scaling"),
        ({"hf_overrides": {"max_position_embeddings": 9}}, UnsupportedError, "hf_overrides"),
        ({"enable_lora": True}, UnsupportedError, "enable_lora"),
        ({"device": "cuda"}, UnsupportedError, "device"),
        ({"tokenizer_mode": "mistral"}, UnsupportedError, "tokenizer_mode"),
        ({"speculative_config": {"method": "eagle", "model": "m"}}, UnsupportedError, "speculative_config"),
        ({"gpu_memory_utilization": 0}, RequestError, "gpu_memory_utilization: expected a number above 0"),
        ({"gpu_memory_utilization": 1.5}, RequestError, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": "0.5"}, RequestError, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 0.5, "kv_tokens": 64}, RequestError, "gpu_memory_utilization and kv_tokens"),
        ({"max_num_seqs": 2, "max_sequences": 3}, RequestError, "max_num_seqs and max_sequences are the same setting"),
        ({"seed": -1}, RequestError, "seed"),
        ({"enable_prefix_caching": "no"}, RequestError, "enable_prefix_caching"),
        ({"revision": 3}, RequestError, "revision"),
        ({"progress": True}, RequestError, "progress: expected a function, found True"),
        ({"revision": "a", "tokenizer_revision": "b"}, UnsupportedError, "tokenizer_revision"),
        ({"gpu_memory_utilisation": 0.5}, TypeError, "did you mean 'gpu_memory_utilization'"),
        ({"n_contex": 64}, RequestError, "'n_contex'; did you mean 'n_ctx'"),
        ({"zzzz": 1}, TypeError, "argument 'zzzz'$"),
    ],
)
def test_what_would_change_results_is_refused_by_name(tiny, options, error, message):
    with pytest.raises(error, match=message):
        LLM(tiny, **options)


def test_every_keyword_has_one_meaning():
    assert not (set(RENAMED) & WITHOUT_EFFECT or set(RENAMED) & set(ALLOWED) or WITHOUT_EFFECT & set(ALLOWED))


def test_other_names_of_keywords(tiny):
    options = {"max_num_seqs": 3, "max_num_batched_tokens": 48, "kv_cache_dtype": Dtype("torch.float32")}
    with LLM(tiny, speculative_config={"model": tiny, "num_speculative_tokens": 2}, **options) as llm:
        assert (llm.model.max_batch_tokens, llm.model.kv.kv_type) == (48, "f32")
        assert llm.generate(["hello"], GREEDY)[0].token_ids


def test_another_tokenizer_is_a_warning(tiny, caplog):
    with caplog.at_level(logging.WARNING, "gumba"), LLM(tiny, tokenizer="owner/name") as llm:
        assert llm.tokenizer.n_vocab
    assert "tokenizer='owner/name' is ignored: gumba uses the tokenizer of the model file" in caplog.text


def test_the_kv_cache_takes_a_share_of_the_memory(tiny, monkeypatch):
    size = tiny.stat().st_size
    pages = []
    for available in (size + (64 << 20), size + (32 << 20)):
        monkeypatch.setattr("gumba.llm.engine_args.available_memory", lambda: available)  # noqa: B023
        with LLM(tiny, gpu_memory_utilization=1.0, kv_type="f16") as llm:
            pages.append(llm.kv_usage().pages)
    page = 64 * 2 * 2 * 2 * 16 * 2  # tokens, keys and values, layers, heads, their width, bytes
    assert pages == [(64 << 20) // page, (32 << 20) // page]
    monkeypatch.setattr("gumba.llm.engine_args.available_memory", lambda: size)
    with pytest.raises(ResourceError, match=r"gpu_memory_utilization: 0\.5 of "):
        LLM(tiny, gpu_memory_utilization=0.5)


def test_a_seed_of_the_model_repeats_all_its_requests(tiny):
    found = []
    for _ in range(2):
        with LLM(tiny, seed=7) as llm:
            params = SamplingParams(temperature=2.0, top_k=0, min_p=0, max_tokens=12)
            found.append([each.token_ids for each in llm.generate(["hello", "hello"], params)])
    assert found[0] == found[1] and found[0][0] != found[0][1]


def test_requests_share_no_pages_without_prefix_caching(tiny):
    prompt = list(range(3, 160))
    with LLM(tiny, enable_prefix_caching=False) as llm:
        for _ in range(2):
            (result,) = llm.generate([prompt], GREEDY)
            assert result.timings.cached_tokens == 0
            llm.beam_search([prompt], BeamSearchParams(beam_width=2, max_tokens=2))
            llm.embed([prompt])
        assert llm.kv_usage().kept == 0


def test_prompts_as_dictionaries_and_token_ids(llm):
    ids = llm.tokenizer.encode("hello")
    (expected,) = llm.generate(["hello"], GREEDY)
    for prompts in ({"prompt": "hello"}, [{"prompt": "hello"}], [{"prompt_token_ids": ids, "prompt": "hello"}]):
        assert [each.prompt for each in llm.generate(prompts, GREEDY)] == ["hello"]
        assert llm.generate(prompts, GREEDY)[0].token_ids == expected.token_ids
    (result,) = llm.generate([{"prompt_token_ids": np.array(ids), "multi_modal_data": None}], GREEDY)
    assert (result.prompt, result.prompt_token_ids, result.token_ids) == (None, ids, expected.token_ids)
    assert llm.generate(prompt_token_ids=ids, sampling_params=GREEDY)[0].token_ids == expected.token_ids
    both = llm.generate(["hello", "w"], GREEDY, prompt_token_ids=[ids, ids[:1]])
    assert [each.prompt for each in both] == ["hello", "w"]
    assert [each.prompt_token_ids for each in both] == [ids, ids[:1]]
    assert next(llm.stream({"prompt": "hello"}, GREEDY)).token_id == expected.token_ids[0]
    assert llm.embed([{"prompt": "hello"}]).tolist() == llm.embed(["hello"]).tolist()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"prompt": 3}, "expected a text in 'prompt'"),
        ({}, "expected a text in 'prompt'"),
        ([{"prompt": "a", "multi_modal_data": {"image": "x"}}], "found 'multi_modal_data'"),
        ([{"prompt": "a", "cache_salt": "x"}], "found 'cache_salt'"),
        ([{"prompt_token_ids": [10**6]}], "token ids from 0"),
        (None, "found None"),
        (np.array(3), "expected a text or a list of prompts"),
    ],
)
def test_wrong_prompts(llm, prompts, message):
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, GREEDY)


@pytest.mark.parametrize("token_ids", [5, "abc", ["a"], [{"prompt": "a"}], [[1], "a"], [1.5], {1: 2}, np.array(3)])
def test_wrong_token_ids(llm, token_ids):
    with pytest.raises(RequestError, match=r"prompt_token_ids|prompt: expected"):
        llm.generate(prompt_token_ids=token_ids, sampling_params=GREEDY)


@pytest.mark.parametrize("wrong", ["no", 1, None, np.array([True, False])])
def test_options_of_embed_of_the_wrong_type(llm, wrong):
    with pytest.raises(RequestError, match="truncate: expected True or False"):
        llm.embed("hello", truncate=wrong)
    if wrong is not None:
        with pytest.raises(RequestError, match="prompt: the model has no prompt"):
            llm.embed("hello", prompt=wrong)
        with pytest.raises(RequestError, match="pooling: expected"):
            llm.embed("hello", pooling=wrong)


def test_as_many_token_ids_as_prompts(llm):
    with pytest.raises(RequestError, match=r"prompt_token_ids: expected one list per prompt \(2\), found 1"):
        llm.generate(["a", "b"], GREEDY, prompt_token_ids=[[3]])
