"""Generation on a model that checks positions and pages, against token-by-token oracles without an engine."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import numpy as np
import pytest

import gumba
import gumba.llm.reloadable_model
from gumba import EngineError, ModelError, RequestError, SamplingParams
from support.fake_model import END, EURO, MARK, N_VOCAB, OP, ST, XYZ, FakeModel, hashed_logits, scripted
from support.generation_oracle import GREEDY, oracle


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 16, 64])
@pytest.mark.parametrize("n_prompt", [1, 3, 4, 5, 16, 17, 40])
def test_tokens_are_those_of_the_oracle(make_llm, n_prompt, max_batch_tokens):
    llm = make_llm(max_batch_tokens=max_batch_tokens)
    prompt = list(range(n_prompt))
    for params in (
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(seed=3, max_tokens=12, repetition_penalty=1.5, repetition_window=9),
    ):
        (result,) = llm.generate([prompt], params)
        assert result.token_ids == oracle(prompt, params, 12)
        assert result.finish_reason == "length" and result.prompt is None and result.prompt_token_ids == prompt
        steps = list(llm.stream(prompt, params))
        assert [step.token_id for step in steps] == result.token_ids
        assert [step.index for step in steps] == list(range(12))
        assert "".join(step.text for step in steps) == result.text
        assert [step.finish_reason for step in steps] == [None] * 11 + ["length"]
        assert result.timings.prompt_tokens == n_prompt and result.timings.generated_tokens == 12
        assert steps[-1].timings.decode_s > 0 and steps[-1].timings.decode_tokens_per_s > 0
        assert all(step.timings is None for step in steps[:-1])


def test_chunked_prefill(make_llm):
    llm = make_llm(max_batch_tokens=16)
    llm.generate([list(range(40))], SamplingParams(max_tokens=3))
    assert llm.model.steps == [[(0, 16)], [(16, 16)], [(32, 8)], [(40, 1)], [(41, 1)]]


def test_decoding_continues_during_another_prefill(make_llm):
    llm = make_llm(max_batch_tokens=8)
    llm.generate([[1, 2], list(range(20))], SamplingParams(max_tokens=4))
    # Every step gives the first sequence one token and the second the rest.
    assert llm.model.steps[:3] == [[(0, 2), (0, 6)], [(2, 1), (6, 7)], [(3, 1), (13, 7)]]


@pytest.mark.parametrize("max_sequences, n_pages", [(1, 64), (4, 64), (32, 200), (32, 16), (32, 20)])
def test_alone_or_in_a_batch(make_llm, max_sequences, n_pages):
    """Same seed, same tokens: with any other requests in the batch, and when sequences are preempted and recomputed."""
    rng = random.Random(n_pages)
    llm = make_llm(max_sequences=max_sequences, n_pages=n_pages)
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(1, 40))] for _ in range(40)]
    params = [SamplingParams(seed=rng.randrange(9), max_tokens=rng.randrange(1, 40)) for _ in prompts]
    results = llm.generate(prompts, params)
    assert llm.kv_usage().in_use == 0
    for prompt, one, result in zip(prompts, params, results):
        assert result.prompt_token_ids == prompt
        assert result.token_ids == oracle(prompt, one, one.max_tokens)
    assert max(map(len, llm.model.steps)) <= max_sequences
    if n_pages == 16:
        computed = sum(count for step in llm.model.steps for _, count in step)
        assert computed > sum(len(r.prompt_token_ids) + len(r.token_ids) - 1 for r in results), "nothing was recomputed"


def test_seeds(make_llm):
    llm = make_llm()
    one, same, other = (llm.generate([[5]], SamplingParams(seed=seed, max_tokens=20))[0] for seed in (1, 1, 2))
    assert one.token_ids == same.token_ids != other.token_ids
    fresh = [result.token_ids for result in llm.generate([[5]] * 4, SamplingParams(max_tokens=20))]
    assert len(set(map(tuple, fresh))) == 4


@pytest.mark.parametrize("n_prompt", [60, 62, 63])
def test_the_end_of_the_context(make_llm, n_prompt):
    llm = make_llm(n_ctx=64, n_pages=16)
    (result,) = llm.generate([[7] * n_prompt], GREEDY)
    assert result.finish_reason == "length" and len(result.token_ids) == 64 - n_prompt


@pytest.mark.parametrize("n_prompt", [64, 65, 1000])
def test_a_prompt_that_fills_the_context_names_both_numbers(make_llm, n_prompt):
    with pytest.raises(RequestError, match=rf"{n_prompt} tokens .* context of 64"):
        make_llm(n_ctx=64).generate([[7] * n_prompt])


def test_fewer_pages_than_the_context_bound_it(make_llm):
    llm = make_llm(n_ctx=64, n_pages=5)
    (result,) = llm.generate([[7] * 3], GREEDY)
    assert result.finish_reason == "length" and len(result.token_ids) == 17
    with pytest.raises(RequestError, match=r"20 tokens .* context of 20"):
        llm.generate([[7] * 20])


def test_end_of_generation_and_stop_tokens(make_llm):
    llm = make_llm(logits=scripted(ord("a"), MARK, ord("b"), start=1))
    (result,) = llm.generate([[1]], GREEDY)
    assert (result.token_ids, result.text, result.finish_reason) == ([97, MARK, 98, END], "ab", "stop")
    (result,) = llm.generate([[1]], SamplingParams(temperature=0, stop_token_ids=[98]))
    assert (result.token_ids, result.text, result.finish_reason) == ([97, MARK, 98], "a", "stop")
    (result,) = llm.generate([[1]], SamplingParams(temperature=0, ignore_eos=True, max_tokens=6))
    assert (len(result.token_ids), result.finish_reason) == (6, "length")


def test_the_stop_reason_is_what_ended_the_answer(make_llm):
    """As vLLM: the stop string or stop token, None for the model's own end and for anything but a stop."""
    llm = make_llm(logits=scripted(*b"a, b", start=1))
    for options, text, reason in (
        ({"stop": ["x", ", "]}, "a", ", "), ({"stop": ",", "include_stop_str_in_output": True}, "a,", ","),
        ({"stop_token_ids": [32]}, "a,", 32), ({"stop": "z"}, "a, b", None), ({"stop": "z", "max_tokens": 2}, "a,", None),
    ):  # fmt: skip
        params = SamplingParams(temperature=0, **options)
        (result,) = llm.generate([[1]], params)
        assert (result.text, result.stop_reason, result.outputs[0].stop_reason) == (text, reason, reason)
        *steps, last = llm.stream([1], params)
        assert last.stop_reason == reason and {step.stop_reason for step in steps} <= {None}


def test_stop_strings_across_tokens(make_llm):
    llm = make_llm(logits=scripted(*b"go s", ST, ST, OP, *b" on", start=1))
    params = SamplingParams(temperature=0, stop="stop")
    steps = list(llm.stream([1], params))
    assert [step.text for step in steps] == ["g", "o", " ", "", "s", "st", ""]
    assert steps[-1].finish_reason == "stop" and steps[-1].token_id == OP
    assert llm.generate([[1]], params)[0].text == "go sst"
    # Withheld text is emitted if it does not become a stop string.
    params = SamplingParams(temperature=0, stop=["stopped", "on!"])
    assert llm.generate([[1]], params)[0].text == "go sststop on"
    params = SamplingParams(temperature=0, stop=["stopped"], max_tokens=7)
    assert llm.generate([[1]], params)[0].text == "go sststop"


def test_streamed_text_is_whole_characters(make_llm):
    euro, smile = "€".encode(), "\U0001f600".encode()
    llm = make_llm(logits=scripted(*euro, EURO, *smile, *euro[:2], *b"x", euro[0], start=1))
    steps = list(llm.stream([1], GREEDY))
    assert [step.text for step in steps] == [
        "",
        "",
        "€",
        "€",
        "",
        "",
        "",
        "\U0001f600",
        "",
        "",
        "\ufffdx",
        "",
        "\ufffd",
    ]
    assert llm.generate([[1]], GREEDY)[0].text == "€€\U0001f600\ufffdx\ufffd"


@pytest.mark.parametrize(
    "tokens",
    [[], [-1], [N_VOCAB], [2**31], [2**63], [1.5], [1.0], [True], [None], ["1"], np.array([1.0]), np.array([[1]]),
     np.array([], np.int64), np.array([-1]), np.array([True]), None, 5, b"ab", {1: 2}, "", [[1]]],
)  # fmt: skip
def test_bad_prompts(make_llm, tokens):
    llm = make_llm()
    before = llm.logits([1, 2, 3])
    with pytest.raises(RequestError, match=r"^prompt: .*(expected|found)"):
        llm.stream(tokens)
    with pytest.raises(RequestError, match=r"expected"):
        llm.generate([tokens])
    if not isinstance(tokens, str):
        with pytest.raises(RequestError, match=r"^tokens: expected"):
            llm.logits(tokens)
    assert np.array_equal(llm.logits([1, 2, 3]), before)


def test_prompts_that_are_fine(make_llm):
    llm = make_llm()
    params = SamplingParams(temperature=0, max_tokens=3)
    texts = {tuple(llm.generate([prompt], params)[0].token_ids) for prompt in ("ab", [97, 98], (97, np.int32(98)))}
    texts |= {tuple(llm.generate(p, params)[0].token_ids) for p in ("ab", ["ab"], [np.array([97, 98], np.uint8)])}
    assert len(texts) == 1
    assert llm.generate([]) == []
    assert llm.generate("ab", params)[0].prompt == "ab"


def test_bad_params(make_llm):
    llm = make_llm()
    with pytest.raises(RequestError, match=r"stop_token_ids: .*found 264"):
        llm.stream("a", SamplingParams(stop_token_ids=[N_VOCAB]))
    with pytest.raises(RequestError, match="params: expected SamplingParams"):
        llm.stream("a", {"top_k": 1})
    with pytest.raises(RequestError, match=r"params: .*\(2\), found 1"):
        llm.generate(["a", "b"], [GREEDY])
    for prompts in (None, 5, 1.5):
        with pytest.raises(RequestError, match=r"^prompts: expected"):
            llm.generate(prompts)
    with pytest.raises(RequestError, match=r"\[\[1, 2\]\]"):
        llm.generate([1, 2])


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_bad_max_sequences(make_llm, value):
    with pytest.raises(RequestError, match="max_sequences"):
        make_llm(max_sequences=value)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 64])
def test_logits(make_llm, n):
    llm = make_llm()
    tokens = list(range(n))
    logits = llm.logits(tokens)
    assert logits.dtype == np.float32 and logits.shape == (n, N_VOCAB)
    assert np.array_equal(logits, [hashed_logits(tokens[: i + 1]) for i in range(n)])
    with pytest.raises(RequestError, match=r"65 tokens .* 64"):
        llm.logits([1] * 65)


def test_logits_beside_a_stream(make_llm):
    llm = make_llm(n_pages=16)
    stream = llm.stream([9], GREEDY)
    first = [next(stream).token_id for _ in range(30)]
    assert np.array_equal(llm.logits(list(range(60)))[-1], hashed_logits(range(60)))
    assert first + [step.token_id for step in stream] == oracle([9], GREEDY, 64)


def test_logits_that_are_not_finite_end_only_their_own_request(make_llm):
    def logits(history):
        return np.full(N_VOCAB, np.nan) if history[0] == 66 and len(history) > 4 else hashed_logits(history)

    llm = make_llm(logits=logits)
    good, bad = llm.stream([1], GREEDY), llm.stream([66], GREEDY)
    seen = [next(good).token_id]
    assert len([next(bad) for _ in range(4)]) == 4
    with pytest.raises(ModelError, match="expected a finite number"):
        next(bad)
    assert seen + [step.token_id for step in good] == oracle([1], GREEDY, 64)
    with pytest.raises(ModelError):
        llm.generate([[1], [66]], GREEDY)
    assert llm.kv_usage().in_use == 0


def test_an_error_of_the_model_reaches_the_caller(make_llm):
    def fail(model):
        if len(model.steps) == 3:
            model.steps.append([])
            raise EngineError("broken")

    llm = make_llm(before=fail)
    with pytest.raises(EngineError, match="broken"):
        llm.generate([[1], [2]], GREEDY)
    assert llm.kv_usage().in_use == 0
    assert llm.generate([[1]], GREEDY)[0].token_ids == oracle([1], GREEDY, 64)


def test_closing(make_llm):
    llm = make_llm(before=lambda model: time.sleep(0.001))
    with llm:
        stream = llm.stream([1])
        next(stream)
        model = llm.model
    assert model.closed == 1 and model.kv.n_free == model.kv.n_pages
    assert list(stream)[-1].finish_reason == "cancelled"
    llm.close()
    assert model.closed == 1
    for call in (lambda: llm.generate(["a"]), lambda: llm.stream("a"), lambda: llm.logits([1]), lambda: llm.chat([])):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_a_vocabulary_larger_than_the_model(make_llm, monkeypatch):
    from support.fake_model import FakeTokenizer

    monkeypatch.setattr(FakeTokenizer, "n_vocab", N_VOCAB + 1)
    with pytest.raises(ModelError, match=f"fake.gguf: .*{N_VOCAB + 1} tokens.*{N_VOCAB}"):
        make_llm()


def test_generation_ends_where_a_multi_token_stop_is_the_first_text(make_llm):
    llm = make_llm(logits=scripted(XYZ, start=1))
    (result,) = llm.generate([[1]], SamplingParams(temperature=0, stop=["y"]))
    assert (result.text, result.finish_reason) == ("x", "stop")


class FakeTemplate:
    """Renders the last message and the arguments it was given."""

    source = ""

    @classmethod
    def from_gguf(cls, gguf, tokenizer):
        assert gguf.metadata["general.name"] == "fake"
        return cls()

    def render(self, messages, add_generation_prompt=True, **kwargs):
        return f"{messages[-1]['content']}|{add_generation_prompt}|{kwargs}"


@pytest.fixture
def chatting(make_llm, monkeypatch):
    """An LLM with a FakeTemplate."""

    def encode_chat(tokenizer, template, messages, add_generation_prompt=True, **kwargs):
        return tokenizer.encode(template.render(messages, add_generation_prompt, **kwargs))

    monkeypatch.setattr("gumba.llm.chat_templates.ChatTemplate", FakeTemplate)
    monkeypatch.setattr("gumba.llm.input_processor.encode_chat", encode_chat)
    return make_llm()


def test_several_conversations_at_once(chatting):
    """As vLLM's ``chat``: a list of conversations gives a list of answers, all as they would be alone."""
    chats = [[{"role": "user", "content": text}] for text in ("hi", "ho", "he")]
    params = [SamplingParams(seed=i, max_tokens=5) for i in range(3)]
    alone = [chatting.chat(chat, one).token_ids for chat, one in zip(chats, params)]
    assert [completion.token_ids for completion in chatting.chat(chats, params)] == alone
    assert [completion.token_ids for completion in asyncio.run(chatting.achat(chats, sampling_params=params))] == alone
    assert [completion.token_ids for completion in chatting.chat(chats[:1], params[0])] == alone[:1]
    with pytest.raises(RequestError, match=r"one SamplingParams per prompt \(3\), found 2"):
        chatting.chat(chats, params[:2])


def test_chat(chatting):
    llm = chatting
    params = SamplingParams(temperature=0, max_tokens=5)
    messages = [{"role": "user", "content": "hi"}]
    result = llm.chat(messages, params)
    assert bytes(result.prompt_token_ids) == b"hi|True|{}"
    assert result.token_ids == oracle(b"hi|True|{}", params, 5) and result.prompt is None
    result = llm.chat(messages, params, template_args={"think": 1, "add_generation_prompt": False})
    assert bytes(result.prompt_token_ids) == b"hi|False|{'think': 1}"
    steps = list(llm.chat_stream(messages, params, template_args={"think": 1, "add_generation_prompt": False}))
    assert [step.token_id for step in steps] == result.token_ids
    variables = {"think": 1, "add_generation_prompt": False}
    assert llm.chat(messages, params, chat_template_kwargs=variables).token_ids == result.token_ids
    assert asyncio.run(llm.achat(messages, params, chat_template_kwargs=variables)).token_ids == result.token_ids
    steps = list(llm.chat_stream(messages, params, chat_template_kwargs=variables))
    assert [step.token_id for step in steps] == result.token_ids

    async def streamed():
        return [step.token_id async for step in llm.achat_stream(messages, params, chat_template_kwargs=variables)]

    assert asyncio.run(streamed()) == result.token_ids
    with pytest.raises(RequestError, match="chat_template_kwargs and template_args are the same setting"):
        llm.chat(messages, template_args={}, chat_template_kwargs={})
    for name in ("template_args", "chat_template_kwargs"):
        for wrong in ("x", [1], 5, {1: 2}):
            with pytest.raises(RequestError, match=f"{name}: expected an object"):
                llm.chat(messages, **{name: wrong})
    with pytest.raises(RequestError, match="template_args: expected an object"):
        llm.conversation(template_args="x")
    with pytest.raises(RequestError, match="template_args: 'messages'"):
        llm.chat(messages, template_args={"messages": []})
    with pytest.raises(RequestError, match=r"messages: 4\d+ tokens .* context of 64"):
        llm.chat([{"role": "user", "content": "x" * 400}])


def test_log_probabilities_come_with_every_token(make_llm):
    llm = make_llm()
    params = SamplingParams(seed=5, max_tokens=8, logprobs=3, repetition_penalty=1.3)
    (result,) = llm.generate([[1, 2, 3]], params)
    answer = result.outputs[0]
    history = [1, 2, 3]
    for token, actual in zip(answer.token_ids, answer.logprobs, strict=True):
        logits = hashed_logits(history).astype(np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert actual.logprob == pytest.approx(expected[token])
        assert [completion for completion, _ in actual.top] == np.argsort(-expected, kind="stable")[:3].tolist()
        assert actual.rank == 1 + (expected > expected[token]).sum()
        history.append(token)
    assert answer.cumulative_logprob == pytest.approx(sum(completion.logprob for completion in answer.logprobs))
    assert [step.logprobs for step in llm.stream([1, 2, 3], params)] == answer.logprobs
    assert llm.generate([[1, 2, 3]], SamplingParams(seed=5, max_tokens=8))[0].logprobs is None


def test_names_of_vllm(make_llm, monkeypatch, capfd):
    """``sampling_params``, ``use_tqdm`` (a bar where stderr is a terminal), ``max_model_len``, the model by ``model``."""
    llm = make_llm()
    params = SamplingParams(temperature=0, max_tokens=5)
    expected = llm.generate([[1], [2]], params)
    results = llm.generate(prompts=[[1], [2]], sampling_params=params, use_tqdm=True)
    assert [completion.token_ids for completion in results] == [completion.token_ids for completion in expected]
    assert capfd.readouterr() == ("", ""), "there is no terminal"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("gumba.progress._INTERVAL_S", 0.0)
    llm.generate([[1], [2]], params, use_tqdm=True)
    assert "generating" in capfd.readouterr().err
    llm.generate([[1], [2]], params)
    assert capfd.readouterr() == ("", "")
    loaded = []
    monkeypatch.setattr(
        gumba.llm.reloadable_model,
        "load_model",
        lambda gguf, settings, **options: loaded.append(settings) or FakeModel(),
    )
    gumba.LLM(model="fake.gguf", max_model_len=48)
    assert loaded[0].n_ctx == 48
    with pytest.raises(RequestError, match="max_model_len and n_ctx are the same setting"):
        gumba.LLM("fake.gguf", max_model_len=48, n_ctx=48)
    with pytest.raises(RequestError, match="max_model_len: expected"):
        gumba.LLM("fake.gguf", max_model_len=0)
    assert repr(llm) == "LLM('fake.gguf', n_ctx=64)"


@pytest.mark.parametrize("how", ["agenerate", "astream", "achat", "achat_stream"])
def test_an_event_loop_runs_while_a_grammar_is_compiled(chatting, monkeypatch, how):
    """Compiling takes tenths of a second with a large vocabulary: another thread does it."""
    where = []

    def compile_constraint(spec, tokenizer):
        where.append(threading.current_thread())
        raise RequestError("compiled")

    monkeypatch.setattr("gumba.sampling.structured.constraints.compile_constraint", compile_constraint)
    params = SamplingParams(structured_outputs={"regex": "a+"})
    messages = [{"role": "user", "content": "hi"}]

    async def main():
        if how in ("agenerate", "achat"):
            await (chatting.agenerate([[1]], params) if how == "agenerate" else chatting.achat(messages, params))
        else:
            stream = chatting.astream([1], params) if how == "astream" else chatting.achat_stream(messages, params)
            async for _ in stream:
                pass

    with pytest.raises(RequestError, match="compiled"):
        asyncio.run(main())
    assert len(where) == 1 and where[0] is not threading.main_thread()


def test_closing_a_constrained_stream_of_an_event_loop_frees_its_pages(make_llm, monkeypatch):
    llm = make_llm(before=lambda model: time.sleep(0.001))
    monkeypatch.setattr("gumba.llm.base.compiles_grammar", lambda params: True)

    async def main():
        stream = llm.astream([1], SamplingParams(temperature=0))
        first = await anext(stream)
        await stream.aclose()
        assert llm.kv_usage().in_use == 0
        return first.token_id

    assert asyncio.run(main()) == oracle([1], SamplingParams(temperature=0), 1)[0]
