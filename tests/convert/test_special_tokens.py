"""Special and added tokens of a checkpoint's files, and in the GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gumba import GGUFFile, Tokenizer
from gumba.chat.template import ChatTemplate
from gumba.errors import ConvertError, TokenizerError
from gumba_convert import convert, export
from gumba_convert.gguf_writer import Value, header, i32_array, string, strings, u32
from support.tiny_checkpoints import CONFIG, SPECIAL, VOCAB, added, tokenizer, write_checkpoint

N_ROWS = CONFIG["vocab_size"]
BEYOND = added(N_ROWS, "<image_soft_token>")
LISTED = [added(i, text) for i, text in enumerate(SPECIAL)]


@pytest.mark.parametrize(
    ("files", "role"),
    [
        ({"tokenizer.json": tokenizer(added_tokens=[*LISTED, BEYOND])}, ""),
        ({"tokenizer_config.json": {"added_tokens_decoder": {f"{N_ROWS}": BEYOND}, "eos_token": "<|im_end|>"}}, ""),
        ({"added_tokens.json": {"<image_soft_token>": N_ROWS}}, ""),
        (  # in the vocabulary too, and the end of a text by its name
            {
                "tokenizer.json": tokenizer(
                    added_tokens=[*LISTED, BEYOND], model={"vocab": VOCAB | {"<image_soft_token>": N_ROWS}}
                ),
                "tokenizer_config.json": {"eos_token": "<image_soft_token>"},
                "added_tokens.json": {"<image_soft_token>": N_ROWS},
            },
            " (eos_token)",
        ),
    ],
)
def test_an_added_token_without_a_row_is_omitted(tmp_path: Path, files: dict[str, Any], role: str) -> None:
    """As llama.cpp's converter does ("ignore token: id is out of range"); transformers 5.24 loads such a checkpoint."""
    config = {"tokenizer_config.json": {"eos_token": "<|im_end|>"}}
    write_checkpoint(tmp_path / "hf", files=config)
    convert(tmp_path / "hf", tmp_path / "without.gguf")
    write_checkpoint(tmp_path / "hf", files=config | files)
    report = convert(tmp_path / "hf", tmp_path / "with.gguf")
    message = f"'<image_soft_token>'{role} has id {N_ROWS}, but the model's embedding has {N_ROWS} rows: it is omitted"
    assert [warning for warning in report.warnings if "omitted" in warning] == [f"added token {message}"]
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()


@pytest.mark.parametrize("turned", [False, True])
def test_two_added_tokens_of_one_text(tmp_path: Path, turned: bool) -> None:
    """tokenizers 0.23.3 encodes to the lower id, and has no text of the other, in any order of the list."""
    twice = [added(N_ROWS - 2, "<stop>"), added(N_ROWS - 1, "<stop>")]
    files = {"tokenizer.json": tokenizer(added_tokens=[*LISTED, *(twice[::-1] if turned else twice)])}
    write_checkpoint(tmp_path / "hf", files=files)
    report = convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert f"token {N_ROWS - 1} gets no text: '<stop>' is already token {N_ROWS - 2}" in report.warnings
    made = Tokenizer.from_gguf(tmp_path / "out.gguf")
    assert made.encode("<stop>", parse_special=True) == [N_ROWS - 2]


def test_an_added_token_that_the_vocabulary_has_under_another_id(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {f"{N_ROWS - 1}": {"content": "abc", "special": False}}}
    write_checkpoint(tmp_path / "hf", files={"tokenizer_config.json": config})
    report = convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert f"token {N_ROWS - 1} gets no text: 'abc' is already token {VOCAB['abc']}" in report.warnings
    assert Tokenizer.from_gguf(tmp_path / "out.gguf").encode("abc") == [VOCAB["abc"]]


def test_unreadable_vocabularies_are_not_written(tmp_path: Path) -> None:
    """U+2581 in an added token becomes a space: two texts that were different become one."""
    alike = [added(N_ROWS - 2, "\u2581x", False), added(N_ROWS - 1, " x", False)]
    write_checkpoint(tmp_path / "hf", files={"tokenizer.json": tokenizer(added_tokens=[*LISTED, *alike])})
    with pytest.raises(
        ConvertError, match=r"no file is written.*out\.gguf: tokenizer\.ggml\.tokens: tokens .* are both"
    ):
        convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_chat_template_that_does_not_compile_causes_a_warning(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "{% if"}, {"name": "tool_use", "template": "{{ messages"}]
    write_checkpoint(tmp_path / "hf", files={"tokenizer_config.json": {"chat_template": templates}})
    warnings = convert(tmp_path / "hf", tmp_path / "out.gguf").warnings
    assert [("wrong in line 1" in warning, "'tool_use'" in warning) for warning in warnings] == [
        (True, False),
        (True, True),
    ]


# The ends of a text: what transformers 5.24's generate() stops at.

STOP, OTHER = N_ROWS - 1, N_ROWS - 2
ADDED = tokenizer(added_tokens=[*LISTED, added(STOP, "<stop>"), added(OTHER, "<other>", False)])


@pytest.mark.parametrize(
    ("generation", "config", "ends", "warned"),
    [
        ({"eos_token_id": [2, STOP]}, {}, {2, STOP}, ["<stop>"]),
        ({}, {"eos_token_id": [2, STOP, OTHER]}, {2, STOP, OTHER}, ["<other>", "<stop>"]),
        ({"eos_token_id": STOP}, {"text_config": {"eos_token_id": OTHER}}, {2, STOP, OTHER}, ["<other>", "<stop>"]),
        ({"eos_token_id": [2, 1, 0]}, {}, {0, 1, 2}, ["<|im_start|>"]),  # "<|end|>" is known by its text
        ({"eos_token_id": [2]}, {}, {2}, []),
        ({"eos_token_id": None}, {}, {2}, []),
    ],
)
def test_every_end_of_a_text(
    tmp_path: Path, generation: dict[str, Any], config: dict[str, Any], ends: set[int], warned: list[str]
) -> None:
    files = {"tokenizer.json": ADDED, "generation_config.json": generation}
    text_config = {"text_config": CONFIG | config["text_config"]} if "text_config" in config else {}
    write_checkpoint(tmp_path / "hf", files=files, config=config | text_config)
    report = convert(tmp_path / "hf", tmp_path / "out.gguf")
    known = {0, 2}  # <|end|> and <|im_end|>, which readers know by their texts
    assert Tokenizer.from_gguf(tmp_path / "out.gguf").eog_ids == ends | known
    stops = [warning for warning in report.warnings if warning.startswith("gumba stops at")]
    assert len(stops) == bool(warned) and all(text in stops[0] for text in warned)
    with GGUFFile(tmp_path / "out.gguf") as file:
        assert ("gumba.tokenizer.eog_token_ids" in file.metadata) == bool(warned)
    export(tmp_path / "out.gguf", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"]
    assert set(back if isinstance(back, list) else [back]) >= ends - known


def test_ends_that_are_not_tokens(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", files={"generation_config.json": {"eos_token_id": [N_ROWS, "2", -1]}})
    warnings = convert(tmp_path / "hf", tmp_path / "out.gguf").warnings
    assert warnings == tuple(
        f"eos_token_id {i!r} in generation_config.json is not a token and is omitted" for i in (N_ROWS, "2")
    )


SAMPLING = [
    ({"repetition_penalty": 1.5}, {"penalty_repeat": 1.5, "penalty_last_n": -1}, ""),
    ({"repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": [], "do_sample": True, "max_length": 20}, {}, ""),
    ({"min_p": 0.25, "temperature": 0.5}, {"min_p": 0.25, "temp": 0.5}, ""),
    (
        {"num_beams": 4, "length_penalty": 0.5, "no_repeat_ngram_size": 3, "bad_words_ids": [[1]], "max_length": 64},
        {},
        "num_beams 4, no_repeat_ngram_size 3, bad_words_ids [[1]], length_penalty 0.5, max_length 64;",
    ),
    ({"max_length": 4096, "length_penalty": 0.5, "forced_bos_token_id": 0}, {}, " forced_bos_token_id 0;"),
    ({"repetition_penalty": "much"}, {}, "repetition_penalty 'much';"),
    ({"do_sample": False, "stop_strings": ["x"]}, {}, "do_sample False, stop_strings ['x'];"),
]


@pytest.mark.parametrize(("generation", "keys", "warned"), SAMPLING)
def test_sampler_settings(tmp_path: Path, generation: dict[str, Any], keys: dict[str, Any], warned: str) -> None:
    """Settings with a key are written; others that change a text are named in one line."""
    write_checkpoint(tmp_path / "hf", files={"generation_config.json": generation})
    report = convert(tmp_path / "hf", tmp_path / "out.gguf")
    prefix = "general.sampling."
    with GGUFFile(tmp_path / "out.gguf") as file:
        found = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    assert found == keys
    named = [warning for warning in report.warnings if warning.startswith("generation_config.json sets")]
    assert len(named) == bool(warned) and all(warned in warning for warning in named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"temperature": NaN, "top_p": -1}', ["temp is nan", "top_p is -1"]),
        ('{"temperature": "0.7", "min_p": Infinity}', ["temp is '0.7'", "min_p is inf"]),
        ('{"top_k": 1e400, "temperature": true}', ["top_k is inf", "temp is True"]),
        ('{"top_k": 1000000000000000000000, "top_p": [0.5]}', ["top_k is 1000000000000000000000", "top_p is [0.5]"]),
    ],
)
def test_invalid_sampler_settings(tmp_path: Path, text: str, named: list[str]) -> None:
    write_checkpoint(tmp_path / "hf", files={"generation_config.json": text})
    warnings = convert(tmp_path / "hf", tmp_path / "out.gguf").warnings
    assert sorted(warnings) == sorted(f"generation_config.json: {each}, not a valid value: omitted" for each in named)
    with GGUFFile(tmp_path / "out.gguf") as file:
        assert not [key for key in file.metadata if key.startswith("general.sampling.")]


# Texts of special tokens in chat templates: transformers 5.24's tokenizer.special_tokens_map.

TEMPLATE = "{{ bos_token }}U:{{ messages[0].content }}{{ eos_token }}{% if pad_token is defined %}P{% endif %}"
GIVEN = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


@pytest.mark.parametrize(
    ("settings", "listed", "text"),
    [
        (GIVEN, None, "<|im_start|>U:hi<|im_end|>"),
        (GIVEN | {"bos_token": None}, None, "U:hi<|im_end|>"),
        (GIVEN | {"bos_token": None, "eos_token": None}, None, "U:hi"),
        (GIVEN | {"bos_token": None}, {"bos_token": "<|end|>"}, "<|end|>U:hi<|im_end|>"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, None, "U:hi"),
        ({"tokenizer_class": "TokenizersBackend"}, {"eos_token": {"content": "<|end|>"}}, "U:hi<|end|>"),
        ({"tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<|im_end|>"}, None, "U:hi<|im_end|>"),
        (GIVEN | {"eos_token": "<unheard of>"}, None, "<|im_start|>U:hi<unheard of>"),
        (GIVEN | {"pad_token": "<|end|>"}, None, "<|im_start|>U:hi<|im_end|>P"),
    ],
)
def test_special_tokens_in_a_chat_template(
    tmp_path: Path, settings: dict[str, Any], listed: dict[str, Any] | None, text: str
) -> None:
    """In all cases config.json has the ids of BOS and EOS."""
    files = {"tokenizer_config.json": settings | {"chat_template": TEMPLATE}, "special_tokens_map.json": listed}
    write_checkpoint(tmp_path / "hf", files=files)
    report = convert(tmp_path / "hf", tmp_path / "out.gguf")
    with GGUFFile(tmp_path / "out.gguf") as file:
        template = ChatTemplate.from_gguf(file, Tokenizer.from_gguf(file))
        assert ("gumba.chat_template.undefined" in file.metadata) == any("is undefined" in w for w in report.warnings)
    assert template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False) == text


def test_a_template_without_special_tokens_needs_no_key(tmp_path: Path) -> None:
    for name, settings in (("a", {"bos_token": "<|im_start|>"}), ("b", {"bos_token": None})):
        write_checkpoint(
            tmp_path / "hf", files={"tokenizer_config.json": settings | {"chat_template": "{{ messages }}"}}
        )
        assert convert(tmp_path / "hf", tmp_path / f"{name}.gguf").warnings == ()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gumba.tokenizer.eog_token_ids", i32_array([3])),
        ("gumba.tokenizer.eog_token_ids", i32_array([-1])),
        ("gumba.tokenizer.eog_token_ids", strings(["a"])),
        ("gumba.tokenizer.eog_token_ids", string("a")),
        ("gumba.chat_template.undefined", strings(["eot_token"])),
        ("gumba.chat_template.undefined", u32(1)),
        ("gumba.chat_template.bos_token", u32(1)),
    ],
)
def test_bad_keys_are_named(tmp_path: Path, key: str, value: Value) -> None:
    base = {
        "general.architecture": string("llama"),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.tokens": strings(["a", "b", "c"]),
        "tokenizer.ggml.merges": strings([]),
    }
    (tmp_path / "x.gguf").write_bytes(header(base | {key: value}, []))
    with pytest.raises(TokenizerError, match=key):
        Tokenizer.from_gguf(tmp_path / "x.gguf")
