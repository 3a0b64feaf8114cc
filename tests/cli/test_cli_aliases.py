"""Options of other programs have their meaning, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gumba.cli.aliases import translate
from gumba.cli.commands import _commands, build_parser
from gumba.cli.options import sampling_params

COMMANDS = _commands(build_parser())


def words(line: str) -> str:
    return " ".join(translate(line.split(), COMMANDS))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        # llama.cpp
        ("run -m a.gguf -p x -n 3 -c 64", "run a.gguf -p x -n 3 -c 64"),
        ("run -hf owner/name:Q4_K_M -p x", "run owner/name:Q4_K_M -p x"),
        ("run --model=a.gguf --predict 3 --n-predict=4", "run a.gguf -n 3 -n 4"),
        ("run a.gguf -ngl 0 -s 7 -r END -cnv -sys Hi", "run a.gguf --seed 7 --stop END --chat --system Hi"),
        ("run a.gguf --no-display-prompt --jinja -jf s.json", "run a.gguf --json-schema=@s.json"),
        ("run a.gguf --grammar-file g.gbnf --ctx-size 64", "run a.gguf --grammar=@g.gbnf --ctx 64"),
        ("bench -m a.gguf -p 16 -n 4 -r 2", "bench a.gguf --prompt 16 --gen 4 --repeat 2"),
        ("perplexity -m a.gguf -f t.txt", "perplexity a.gguf t.txt"),
        ("tokenize -m a.gguf -p hello", "tokenize a.gguf hello"),
        ("embed -m a.gguf -p hello", "embed a.gguf hello"),
        ("batch r.jsonl -m a.gguf -o o.jsonl", "batch r.jsonl -o o.jsonl a.gguf"),
        ("run a.gguf -fa -b 512 -ub 128 --numa distribute -st", "run a.gguf"),
        ("run a.gguf -fa on --flash-attn auto -fa=0 -p x", "run a.gguf -p x"),
        ("run a -n -1 --n-predict -2 --seed -1 -s -1 -t -1 --predict=-1 x", "run a x"),
        ("run a -n 3 --repeat-last-n -1", "run a -n 3 --repeat-last-n -1"),
        # ollama
        ("run a --verbose --hidethinking --keepalive 5m hi", "run a --reasoning hide hi"),
        # transformers and SWIFT
        ("run --model_id_or_path a --max_new_tokens 3", "run a -n 3"),
        ("run --model-id-or-path a --max-new-tokens=3", "run a -n 3"),
        ("run a --top_p 0.5 --top_k=4 --repetition_penalty 1.1", "run a --top-p 0.5 --top-k=4 --repeat-penalty 1.1"),
        ("run a --do_sample false", "run a --temp 0"),
        ("run a --do_sample=true --temperature 0.2", "run a --temp 0.2"),
        ("run a --do-sample --num_beams 1 --stream true", "run a"),
        ("run a --do_sample False --temperature 0.5 hi", "run a --temp 0.5 hi --temp 0"),
        ("run a --trust_remote_code true hi", "run a hi"),
        ("run a --trust-remote-code hi true", "run a hi true"),
        ("run a -fa on hi -fa", "run a hi"),
        # qwen.cpp and llama.cpp's converter
        ("convert -i folder -t q4_0 -o out.gguf", "convert folder --type q4_0 -o out.gguf"),
        ("convert folder -t 4 --outtype f16 --outfile=o", "convert folder -t 4 --type f16 --output=o"),
        # what is gumba's own, and what is no option
        ("run a -p --", "run a -p --"),
        ("run a -p --model=b", "run a -p --model=b"),
        ("run a --system_prompt -ngl=9 --chat hi", "run a --system -ngl=9 --chat hi"),
        ("run a -t 2 -f x", "run a -t 2 -f x"),
        ("run a -- -m b", "run a -- -m b"),
        ("embed a --file x -", "embed a --file x -"),
        ("run a --no_such 1", "run a --no_such 1"),
        ("pull x --jinja", "pull x --jinja"),
        ("nothing -m a", "nothing -m a"),
        ("", ""),
    ],
)
def test_options_of_other_programs(given: str, meant: str) -> None:
    assert words(given) == meant


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run a -p x -ngl 99", "-ngl 99: gumba runs on the CPU only"),
        ("run a --num_beams 4", "--num_beams 4: beam search is available from Python only: LLM.beam_search"),
        ("run a --stream false", "--stream false: "),
        ("run a --do_sample=maybe", "--do_sample: expected true or false, found 'maybe'"),
        ("run a -i", "-i: to chat with a model, use gumba chat"),
        ("run a --lora x", "--lora: gumba does not load adapters"),
        ("run a -m", "argument -m: expected one argument"),
        ("run a -e -p x", "-e: escape sequences in the prompt are not processed"),
        ("chat a -st", "-st: for a single answer, use gumba run MODEL PROMPT"),
        ("run a hi --format json", "--format: for an answer in JSON, use --json-schema"),
        ("run a hi --think=false", "--think: for templates that support it, use --template-arg"),
        ("run a --rope-freq-base 1", "--rope-freq-base: the model file sets how positions are computed"),
        ("list", "; to list models, use gumba pull --list (see"),
        ("serve", "; this version has no HTTP server (see"),
        ("./b.gguf", "; did you mean gumba run ./b.gguf? (see"),
        ("run a --model_type qwen", "--model_type: the model's files state"),
        ("convert -i a -t q9 -o b", "argument --type: invalid choice: 'q9'"),
        ("run a b --model c -p x", "several prompts"),
        ("embed -m a --model b text", "several models: a, b"),
    ],
)
def test_unsupported_options_are_refused_by_name(gumba: Callable, line: str, message: str) -> None:
    result = gumba(*line.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("gumba: error: ") and message in result.err and result.err.count("\n") == 1


def test_prompts_after_the_model(gumba: Callable, tiny: Path) -> None:
    """They are joined to one text, wherever they stand; piped text is appended on a new line."""

    def prompt(*args: object, stdin: str = "") -> str:
        result = gumba("run", *args, "-n", 1, "--json", "-q", stdin=stdin)
        assert result.code == 0, result.err
        return str(json.loads(result.out)["prompt"])

    assert prompt(tiny, "hello") == "hello"
    assert prompt(tiny, "--temp", 0, "hello", "you") == "hello you"
    assert prompt("-m", tiny, "hello") == "hello"
    assert prompt(tiny, "hello", stdin="one\ntwo\n") == "hello\none\ntwo"
    assert prompt(tiny, stdin="one\ntwo\n") == "one\ntwo"
    assert prompt(tiny, "-p", "hello", stdin="not read") == "hello"


def test_types_in_capitals() -> None:
    convert = build_parser().parse_args(["convert", "a", "-o", "b", "--type", "Q8_0"])
    assert (convert.type, build_parser().parse_args(["run", "--kv-type", "F16"]).kv_type) == ("q8_0", "f16")


def test_samplers_and_end_of_text_of_llama_cpp() -> None:
    params = sampling_params(
        build_parser().parse_args(["run", "--samplers", "penalties;typ_p;temperature", "--ignore-eos"])
    )
    assert params.samplers == ("penalties", "typical_p", "temperature") and params.ignore_eos


def test_an_empty_continuation_by_a_chat_model_is_explained(gumba: Callable, tiny: Path) -> None:
    empty = ("--grammar", 'root ::= ""', "-n", 4)
    hint = "--chat answers the prompt as a message"
    assert hint in gumba("run", tiny, "-p", "hello", *empty).err
    assert hint not in gumba("run", tiny, "hello", *empty).err
    assert hint not in gumba("run", tiny, "-p", "hello", *empty, "-q").err
    assert hint not in gumba("run", tiny, "-p", "hello", "-n", 4, "--ignore-eos").err


def test_a_misspelled_file_suggests_an_existing_one(gumba: Callable, tiny: Path) -> None:
    assert "did you mean" not in gumba("inspect", tiny.with_name("other.gguf")).err  # only the suffix is the same
    result = gumba("inspect", tiny.with_name("tny.gguf"))
    assert result.code == 2 and result.err.endswith(f"no such file; did you mean {tiny}?\n")
