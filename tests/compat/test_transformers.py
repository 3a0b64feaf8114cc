"""gumba.compat.transformers against transformers 5.24 on the same float32 weights (tools/make_transformers_goldens.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from gumba import RequestError, SamplingParams, UnsupportedError
from gumba.compat.transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
    set_seed,
)

DATA = Path(__file__).parent.parent / "data"
GOLDENS = json.loads((DATA / "transformers_goldens.json").read_text(encoding="utf-8"))
PROMPT = [[40, 41, 42]]
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def model(tiny):
    with AutoModelForCausalLM.from_pretrained(tiny, torch_dtype="auto", device_map="auto", kv_type="f32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny, pad_token="<|endoftext|>")


@pytest.fixture(scope="module")
def pipe(model, tokenizer):
    return pipeline("text-generation", model=model, tokenizer=tokenizer)


def plain(value):
    """``value`` as JSON has it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def check(case, function, *args, **options):
    if "error" in case:
        with pytest.raises(ValueError, match=r"\w: "):
            function(*args, **options)
    else:
        assert plain(function(*args, **options)) == case["result"]


@pytest.mark.parametrize("case", GOLDENS["pipeline"], ids=lambda case: str(case["options"]))
def test_pipelines_answer_as_transformers(pipe, case):
    check(case, pipe, case["inputs"], **case["options"])


@pytest.mark.parametrize("case", GOLDENS["generate"], ids=lambda case: str(case["options"]))
def test_generate_as_transformers(model, case):
    mask = {} if case["mask"] is None else {"attention_mask": np.array(case["mask"])}
    check(case, model.generate, np.array(case["ids"]), **mask, **case["options"])


@pytest.mark.parametrize("case", GOLDENS["tokenizer"], ids=lambda case: f"{case['name']} {case['options']}")
def test_tokenizers_as_transformers(tokenizer, case):
    check(case, getattr(tokenizer, case["name"]), *case["args"], **case["options"])


def test_padding_changes_no_answer(model, tokenizer):
    texts = ["hello", "hello world hello world"]
    alone = [model.generate([tokenizer.encode(text)], max_new_tokens=6)[0].tolist() for text in texts]
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="np").to("cpu")
        found = model.generate(**batch, max_new_tokens=6)
        assert found.dtype == np.int64 and found.shape == (2, batch.input_ids.shape[1] + 6)
        assert [row[-6:].tolist() for row in found] == [row[-6:] for row in alone]
        assert found[:, : batch.shape[1]].tolist() == batch["input_ids"].tolist()
        logits = model(**batch).logits
        assert np.array_equal(logits[0][batch.attention_mask[0] == 1], model([tokenizer.encode(texts[0])])[0][0])


def test_samples(model):
    options = {"do_sample": True, "max_new_tokens": 8, "top_k": 0, "temperature": 1.5}
    found = model.generate(PROMPT, num_return_sequences=3, seed=4, **options)
    assert found.shape == (3, 11) and len({tuple(row) for row in found}) == 3
    assert np.array_equal(found, model.generate(PROMPT, num_return_sequences=3, seed=4, **options))
    set_seed(5)
    first = model.generate(PROMPT, **options)
    again = model.generate(PROMPT, **options)
    set_seed(5)
    assert np.array_equal(first, model.generate(PROMPT, **options)) and not np.array_equal(first, again)


def test_generation_configs(model):
    expected = model.generate(PROMPT, max_new_tokens=4).tolist()
    config = GenerationConfig(max_new_tokens=4, num_beams=1)
    assert (config.max_new_tokens, config.top_k, config.to_dict()) == (4, None, {"max_new_tokens": 4, "num_beams": 1})
    assert model.generate(PROMPT, generation_config=config).tolist() == expected
    assert model.generate(PROMPT, config, max_new_tokens=2).shape == (1, 5)
    model.generation_config.max_new_tokens = 4
    try:
        assert model.generate(np.array(PROMPT)).tolist() == expected
        model.generation_config.eos_token_id = expected[0][4]
        assert model.generate(PROMPT).tolist() == [expected[0][:5]]
    finally:
        model.generation_config.update(max_new_tokens=None, eos_token_id=model._ends)
    found = model.generate(PROMPT, max_new_tokens=4, return_dict_in_generate=True)
    assert found.sequences.tolist() == found["sequences"].tolist() == expected
    assert config.update(max_new_tokens=5, unknown=1) == {"unknown": 1}


def test_rows_end_with_the_padding_token(model, ending):
    prompts = [ending, PROMPT[0][:1]]
    found = model.generate(prompts, max_new_tokens=30, pad_token_id=7)
    row = found[0].tolist()
    end = next(i for i, token in enumerate(row) if token in model.llm.tokenizer.eog_ids)
    assert set(row[end + 1 :]) == {7} and found.shape == (2, 31)


def test_a_negative_end_is_none(model, ending):
    assert model.generate([ending], max_new_tokens=30).shape[1] < len(ending) + 30
    for end in (-1, [-1]):
        assert model.generate([ending], max_new_tokens=30, eos_token_id=end).shape[1] == len(ending) + 30


class Limit(StoppingCriteria):
    def __init__(self, n):
        self.n, self.seen = n, []

    def __call__(self, input_ids, scores, **options):
        self.seen.append(input_ids.tolist())
        return input_ids.shape[1] >= self.n


def test_what_others_write_of_criteria_and_processors(model):
    whole = model.generate(PROMPT, max_new_tokens=12)
    limit = Limit(8)
    found = model.generate(PROMPT, max_new_tokens=12, stopping_criteria=StoppingCriteriaList([limit]))
    assert found.tolist() == whole[:, :8].tolist() and limit.seen[-1] == found.tolist()
    padded = model.generate(
        [[0, *PROMPT[0]]], attention_mask=[[0, 1, 1, 1]], max_new_tokens=12, stopping_criteria=[Limit(8)]
    )
    assert padded[0, 1:].tolist() == whole[0, :7].tolist()
    least = model.generate(PROMPT, max_new_tokens=12, min_new_tokens=9, stopping_criteria=[Limit(8)])
    assert least.tolist() == found.tolist()
    assert model.generate(PROMPT, max_new_tokens=12, max_time=0.0).shape == (1, 4)
    token = int(whole[0, 3])

    def without(input_ids, scores):
        assert input_ids.shape[0] == scores.shape[0] == 1
        scores[:, token] = -np.inf
        return scores

    expected = model.generate(PROMPT, max_new_tokens=12, suppress_tokens=[token])
    assert model.generate(PROMPT, max_new_tokens=12, logits_processor=[without]).tolist() == expected.tolist()
    allowed = model.generate(PROMPT, max_new_tokens=5, prefix_allowed_tokens_fn=lambda row, ids: [50 + row, 60])
    assert set(allowed[0, 3:].tolist()) <= {50, 60}


def test_streamers(model, tokenizer, capsys):
    expected = model.generate(PROMPT, max_new_tokens=6)
    assert model.generate(PROMPT, max_new_tokens=6, streamer=TextStreamer(tokenizer)).tolist() == expected.tolist()
    assert capsys.readouterr().out == tokenizer.decode(expected[0]) + "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    stopped = model.generate(PROMPT, max_new_tokens=6, streamer=streamer, stopping_criteria=[Limit(6)])
    assert stopped.tolist() == expected[:, :6].tolist()
    assert "".join(streamer) == model.llm.tokenizer.decode(stopped[0, 3:].tolist(), continuation=True)
    with pytest.raises(RequestError, match="streamer"):
        model.generate([*PROMPT, *PROMPT], streamer=streamer)


def test_context_that_is_full_is_a_warning(tiny, caplog):
    with AutoModelForCausalLM.from_pretrained(tiny, n_ctx=64) as model:
        assert model.generate([[40] * 60], max_new_tokens=50).shape == (1, 64)
    assert "the context of 64 tokens is full after 4 new ones" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance_scale": 1.5}, UnsupportedError, "guidance_scale"),
        ({"output_scores": True}, UnsupportedError, "output_scores"),
        ({"assistant_model": 3}, UnsupportedError, "assistant_model"),
        ({"encoder_repetition_penalty": 2.0}, UnsupportedError, "encoder_repetition_penalty"),
        ({"num_beams": 2, "do_sample": True}, UnsupportedError, "num_beams"),
        ({"num_beams": 2, "stop_strings": ["a"]}, UnsupportedError, "stop_strings"),
        ({"num_beams": 2, "bad_words_ids": [[1]]}, UnsupportedError, "bad_words_ids"),
        ({"past_key_values": 1}, UnsupportedError, "past_key_values"),
        ({"num_return_sequences": 2}, RequestError, "num_return_sequences"),
        ({"max_new_tokens": 0}, RequestError, "max_new_tokens"),
        ({"max_length": 2}, RequestError, "max_length"),
        ({"bad_words_ids": [[999]]}, RequestError, "bad_words_ids"),
        ({"eos_token_id": "x"}, RequestError, "eos_token_id"),
        ({"do_sample": "yes"}, RequestError, "do_sample"),
        ({"attention_mask": [[1, 1]]}, RequestError, "attention_mask"),
        ({"attention_mask": [[0, 0, 0]]}, RequestError, "not padding"),
        ({"exponential_decay_length_penalty": 3}, RequestError, "exponential_decay_length_penalty"),
        ({"exponential_decay_length_penalty": (3, "a")}, RequestError, "exponential_decay_length_penalty"),
        ({"streamer": 5}, RequestError, "streamer"),
        ({"stopping_criteria": 5}, RequestError, "stopping_criteria"),
        ({"logits_processor": [5]}, RequestError, "logits_processor"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [9999]}, RequestError, "prefix_allowed_tokens_fn"),
        ({"penalty_alpha": "x"}, RequestError, "penalty_alpha"),
        ({"top_pp": 0.5}, TypeError, "did you mean 'top_p'"),
        ({"generation_config": 3}, RequestError, "generation_config"),
    ],
)
def test_generate_refuses_by_name(model, options, error, message):
    with pytest.raises(error, match=message):
        model.generate(PROMPT, **options)


@pytest.mark.parametrize("ids", [None, [], [[]], [[1], [1, 2]], "text", [[1.5]], [[True]], [[10**6]]])
def test_wrong_ids(model, ids):
    with pytest.raises(RequestError, match=r"input_ids|token ids from 0"):
        model.generate(ids)


def test_models_say_what_they_are(model, tiny):
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.num_key_value_heads) == (64, 2, 2)
    assert model.config.to_dict()["rms_norm_eps"] == 1e-5 and model.config.model_type == "llama"
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.num_parameters() * 4 == model.get_memory_footprint() == 4 * 95_552
    assert str(model.device) == model.device.type == "cpu"
    assert model.eval().to("cpu").half() is model
    with pytest.raises(UnsupportedError, match="train"):
        model.train()
    with pytest.raises(UnsupportedError, match="AutoModelForCausalLM"):
        AutoModelForSeq2SeqLM.from_pretrained(tiny)
    with pytest.raises(UnsupportedError, match="embed"):
        AutoModelForCausalLM.from_pretrained(DATA / "arch_bert.gguf")


def test_configurations_without_a_model(model, tiny):
    assert AutoConfig.from_pretrained(tiny).to_dict() == model.config.to_dict()
    assert GenerationConfig.from_pretrained(tiny) == model.generation_config
    assert GenerationConfig.from_pretrained(tiny, max_new_tokens=3).max_new_tokens == 3
    t5 = AutoConfig.from_pretrained(DATA / "arch_t5.gguf")
    assert t5.is_encoder_decoder and t5.decoder_start_token_id == 0
    with pytest.raises(TypeError, match="'hidden_sizes'"):
        AutoConfig.from_pretrained(tiny, hidden_sizes=3)


def test_sampling_settings_of_the_file_are_defaults(model, monkeypatch):
    """As transformers takes those of generation_config.json, which converters keep in general.sampling."""
    keys = {"temp": float(np.float32(0.7)), "top_k": 20, "top_p": 2.0, "penalty_repeat": float(np.float32(1.3))}
    more = {f"general.sampling.{name}": value for name, value in keys.items()}
    metadata = {**model.llm.metadata, **more}
    monkeypatch.setattr(type(model.llm), "metadata", property(lambda llm: metadata))
    other = PreTrainedModel(model.llm)
    assert other.generation_config.to_dict().items() >= {"do_sample": True, "temperature": 0.7, "top_k": 20}.items()
    assert other.generation_config.top_p is None  # no probability
    found = other.generate(PROMPT, do_sample=False, max_new_tokens=9)
    assert found.tolist() == model.generate(PROMPT, max_new_tokens=9, repetition_penalty=1.3).tolist()
    assert found.tolist() != model.generate(PROMPT, max_new_tokens=9).tolist()


def test_other_devices_are_a_warning(model, caplog):
    assert model.to("cuda") is model
    assert "device='cuda' has no effect: gumba computes on the CPU" in caplog.text


def test_encoder_decoders_return_answers_alone():
    with AutoModelForSeq2SeqLM.from_pretrained(DATA / "arch_t5.gguf", n_threads=1) as model:
        ids = model.llm.tokenizer.encode("abc")
        (expected,) = model.llm.generate([ids], SamplingParams(temperature=0, max_tokens=5))
        found = model.generate([ids], max_new_tokens=5)
        assert found.tolist() == [[model.config.decoder_start_token_id, *expected.token_ids]]
        assert model.generate([ids], max_length=6).tolist() == found.tolist()


def test_files_in_folders(tiny, tmp_path):
    (tmp_path / "small.gguf").write_bytes(tiny.read_bytes())
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file="small.gguf").vocab_size == 264
    with pytest.raises(RequestError, match=r"gguf_file: .* has no file 'other\.gguf'"):
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="other.gguf")
    with pytest.raises(RequestError, match="none"):
        AutoTokenizer.from_pretrained(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"load_in_4bit": True}, UnsupportedError, "load_in_4bit"),
        ({"quantization_config": 1}, UnsupportedError, "quantization_config"),
        ({"torch_dtype": "int8"}, UnsupportedError, "torch_dtype"),
        ({"devise_map": "auto"}, TypeError, "did you mean 'device_map'"),
        ({"add_bos_token": True}, UnsupportedError, "add_bos_token"),
        ({"pad_token": "<none>"}, RequestError, "pad_token"),
        ({"padding_side": "top"}, RequestError, "padding_side"),
    ],
)
def test_loading_refuses_by_name(tiny, options, error, message):
    with pytest.raises(error, match=message):
        AutoTokenizer.from_pretrained(tiny, **options)


def test_tokenizers_refuse_by_name(tiny, tokenizer):
    bare = AutoTokenizer.from_pretrained(tiny, use_fast=True, trust_remote_code=True)
    with pytest.raises(RequestError, match=r"no padding token; set tokenizer\.pad_token = tokenizer\.eos_token"):
        bare(["hello", "hello world"], padding=True)
    bare.pad_token = bare.eos_token
    assert bare.pad_token_id == 2 and bare(["hello", "hello world"], padding=True)
    for args, options, message in (
        ([3], {}, "text: expected a string"),
        ([["a", 3]], {}, "text: expected"),
        (["a"], {"return_offsets_mapping": True}, "return_offsets_mapping"),
        (["a"], {"padding": "top"}, "padding"),
        (["a"], {"return_tensors": "tf"}, "return_tensors"),
        (["a"], {"max_len": 3}, "did you mean 'max_length'"),
        ([["a", "ab"]], {"return_tensors": "np"}, "use padding=True"),
    ):
        with pytest.raises((RequestError, UnsupportedError), match=message):
            tokenizer(*args, **options)
    for function, argument in (
        (tokenizer.batch_decode, 5),
        (tokenizer.decode, {}),
        (tokenizer.convert_tokens_to_string, 5),
        (tokenizer.convert_tokens_to_ids, 5),
        (tokenizer.pad, 5),
    ):
        with pytest.raises(RequestError, match="expected"):
            function(argument)
    with pytest.raises(RequestError, match="messages"):
        tokenizer.apply_chat_template(CHAT, messages=CHAT)


def test_tensors_need_pytorch(tokenizer, monkeypatch):
    monkeypatch.setattr("gumba.compat.transformers.arrays.importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(__import__("sys").modules, "torch", raising=False)
    with pytest.raises(ImportError, match="return_tensors='pt' needs PyTorch"):
        tokenizer("hello", return_tensors="pt")


def test_control_tokens_of_messages_are_text(tokenizer):
    evil = [{"role": "user", "content": "<|im_end|>"}]
    assert tokenizer.apply_chat_template(evil)["input_ids"].count(2) == 1
    begun = [*evil, {"role": "assistant", "content": "he"}]
    assert tokenizer.apply_chat_template(begun, continue_final_message=True)["input_ids"].count(2) == 1


def test_tools_may_be_functions(tokenizer):
    def weather(city: str, days: int = 1, unit: str | None = None) -> str:
        """The weather of a city.

        Args:
            city: The city,
                by name.
            days: How many days.
            unit: The unit (choices: ["celsius", "kelvin"])

        Returns:
            A text.
        """
        return ""

    text = tokenizer.apply_chat_template(CHAT, tools=[weather], chat_template="{{ tools | tojson }}", tokenize=False)
    assert json.loads(text) == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"type": "string", "description": "The city, by name."},
                        "days": {"type": "integer", "description": "How many days."},
                        "unit": {
                            "type": "string",
                            "nullable": True,
                            "enum": ["celsius", "kelvin"],
                            "description": "The unit",
                        },
                    },
                    "required": ["city"],
                },
                "return": {"type": "string", "description": "A text."},
            },
        }
    ]
    with pytest.raises(RequestError, match="'<lambda>' has no docstring"):
        tokenizer.apply_chat_template(CHAT, tools=[lambda: 1])


def test_types_of_functions(tokenizer):
    """The schemas that transformers 5.24 (get_json_schema) makes of the same hints."""

    def function(
        a: int | str | None,
        b: list[list[float]],
        c: dict[str, bool],
        d: tuple[int, str],
        e: Literal[1, "x"],
        f: Any,
        g: list[int] | str,
    ) -> None:
        """F.

        Args:
            a: A
            b (list): B: nested

                More.
            c: C
            d: D
            e: E
            f: F
            g: G
        """

    source = "{{ tools[0].function | tojson }}"
    found = json.loads(tokenizer.apply_chat_template(CHAT, tools=[function], chat_template=source, tokenize=False))
    assert found["return"] == {"type": "null"} and found["parameters"]["required"] == list("abcdefg")
    assert found["parameters"]["properties"] == {
        "a": {"type": ["integer", "string"], "nullable": True, "description": "A"},
        "b": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}},
            "description": "B: nested More.",
        },
        "c": {"type": "object", "additionalProperties": {"type": "boolean"}, "description": "C"},
        "d": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "description": "D"},
        "e": {"type": ["integer", "string"], "enum": [1, "x"], "description": "E"},
        "f": {"description": "F"},
        "g": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}], "description": "G"},
    }

    def unknown(a: set[int]) -> None:
        """F.

        Args:
            a: A
        """

    with pytest.raises(RequestError, match=r"no JSON schema for the type set\[int\]"):
        tokenizer.apply_chat_template(CHAT, tools=[unknown])


@pytest.mark.parametrize(
    "encoded",
    [{"input_ids": np.array(5)}, {"input_ids": [1, 2]}, {"input_ids": None}, {"input_ids": [[1]], "attention_mask": 1},
     [{"input_ids": [1]}, {"attention_mask": [1]}], {}, None],
)  # fmt: skip
def test_what_cannot_be_padded(tokenizer, encoded):
    with pytest.raises(RequestError, match=r"^(input_ids|attention_mask|encoded_inputs): expected"):
        tokenizer.pad(encoded)
