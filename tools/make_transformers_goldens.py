"""Make tests/data/transformers_goldens.json: what transformers 5.24 answers where gumba has its interface.

    PYTHONPATH=tests python -c "from support import tiny_chat; import pathlib; tiny_chat.write(pathlib.Path('tiny.gguf'))"
    gumba export tiny.gguf -o FOLDER --dtype float32
    python tools/make_transformers_goldens.py FOLDER      # needs torch, transformers

The model is the tiny chat model of tests/support/tiny_chat.py with its float32 weights. Each case is a function, its arguments
and its result, as JSON has them; one that raises ValueError has an "error" instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "tests" / "data"
TEXT, CHAT = "hello world", [{"role": "user", "content": "hello"}]
BEGUN = [*CHAT, {"role": "assistant", "content": "he"}]
GREEDY = {"do_sample": False, "max_new_tokens": 12}
LONG = "hello hello hello world hello"

PIPELINE: list[tuple[Any, dict[str, Any]]] = [
    (TEXT, GREEDY),
    (TEXT, {**GREEDY, "return_full_text": False}),
    ([TEXT, "w"], {**GREEDY, "batch_size": 2}),
    (TEXT, {**GREEDY, "return_tensors": True}),
    (TEXT, {"do_sample": False, "max_length": 20}),
    (TEXT, {"do_sample": False, "max_length": 4}),
    (TEXT, {"do_sample": False, "max_new_tokens": 4, "max_length": 7}),
    (LONG, {"do_sample": False, "max_new_tokens": 4, "max_length": 7, "truncation": True}),
    (TEXT, {**GREEDY, "prefix": "hello "}),
    (TEXT, {"do_sample": False, "max_length": 14, "prefix": "hello "}),
    (TEXT, {**GREEDY, "repetition_penalty": 1.7}),
    (TEXT, {**GREEDY, "no_repeat_ngram_size": 1}),
    (TEXT, {**GREEDY, "max_new_tokens": 40, "min_new_tokens": 30}),
    (TEXT, {"do_sample": False, "max_length": 60, "min_length": 50}),
    (TEXT, {**GREEDY, "num_beams": 4}),
    (TEXT, {**GREEDY, "num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0}),
    (TEXT, {**GREEDY, "num_beams": 3, "num_return_sequences": 3, "length_penalty": -1.0, "early_stopping": True}),
    (TEXT, {**GREEDY, "num_beams": 2, "num_return_sequences": 3}),
    (TEXT, {**GREEDY, "num_return_sequences": 2}),
    (CHAT, GREEDY),
    ([CHAT, CHAT], GREEDY),
    (CHAT, {**GREEDY, "return_full_text": False}),
    (BEGUN, GREEDY),
    (BEGUN, {**GREEDY, "continue_final_message": False}),
    (TEXT, {**GREEDY, "return_full_text": True, "return_tensors": True}),
]

#: Prompts as lists of ids, attention masks, keywords.
BEAMS = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 2, "pad_token_id": 0, "eos_token_id": 2}
GENERATE: list[tuple[list[list[int]], list[list[int]] | None, dict[str, Any]]] = [
    ([[40, 41, 42]], None, {}),
    ([[40, 41, 42]], None, {"max_length": 9}),
    ([[40, 41, 42]], None, {"max_length": 3}),
    ([[0, 0, 40, 41], [70, 71, 72, 73]], [[0, 0, 1, 1], [1, 1, 1, 1]], {"max_new_tokens": 10, "pad_token_id": 0}),
    ([[0, 0, 40, 41], [70, 71, 72, 73]], None, {"max_new_tokens": 10, "pad_token_id": 0}),
    ([[0, 0, 40, 41], [70, 71, 72, 73]], None, {"max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": 0}),
    ([[0, 0, 40, 41]], [[0, 0, 1, 1]], {"max_length": 9, "pad_token_id": 0}),
    ([[0, 40, 41], [70, 71, 72]], [[0, 1, 1], [1, 1, 1]], BEAMS),
    ([[40, 41, 42]], None, {"max_new_tokens": 12, "repetition_penalty": 1.6, "no_repeat_ngram_size": 2}),
    ([[40, 41, 42]], None, {"max_new_tokens": 12, "bad_words_ids": [[13], [250, 251]]}),
    ([[40, 41, 42]], None, {"max_new_tokens": 12, "suppress_tokens": [13, 14, 200, 201, 202, 203]}),
    ([[40, 41, 42]], None, {"max_new_tokens": 12, "begin_suppress_tokens": list(range(3, 120))}),
    ([[40, 41, 42]], None, {"max_new_tokens": 6, "forced_eos_token_id": 2}),
    ([[40]], None, {"max_new_tokens": 6, "forced_bos_token_id": 99}),
    ([[40, 41, 42]], None, {"max_new_tokens": 12, "sequence_bias": [[[50], 9.0], [[50, 60], 30.0]]}),
    ([[40, 41, 42]], None, {"max_new_tokens": 40, "exponential_decay_length_penalty": [4, 1.9], "repetition_penalty": 1.3}),
]  # fmt: skip

TOKENIZER: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("__call__", [TEXT], {}),
    ("__call__", ["<|im_start|>hello<|im_end|>"], {}),
    ("__call__", [[TEXT, "w"]], {"padding": True}),
    ("__call__", [[TEXT, "w"]], {"padding": "max_length", "max_length": 12, "padding_side": "left"}),
    ("__call__", [[TEXT, "w"]], {"padding": "longest", "pad_to_multiple_of": 8}),
    ("__call__", [[LONG, "w"]], {"padding": "max_length", "max_length": 4, "truncation": True}),
    ("__call__", [[LONG, "w"]], {"padding": True, "max_length": 4}),
    ("__call__", [LONG], {"max_length": 4}),
    ("__call__", [LONG], {"max_length": 4, "truncation": True, "return_special_tokens_mask": True, "return_length": True}),
    ("__call__", [""], {}),
    ("encode", [TEXT], {"add_special_tokens": False}),
    ("decode", [[40, 41, 1, 42]], {}),
    ("decode", [[40, 41, 1, 42]], {"skip_special_tokens": True}),
    ("batch_decode", [[[40, 1], [41]]], {"skip_special_tokens": True}),
    ("convert_tokens_to_ids", ["<|im_end|>"], {}),
    ("convert_tokens_to_ids", [["hell", "<|im_start|>"]], {}),
    ("convert_ids_to_tokens", [[1, 40, 263]], {}),
    ("convert_ids_to_tokens", [[1, 40, 263]], {"skip_special_tokens": True}),
    ("tokenize", [TEXT], {}),
    ("apply_chat_template", [CHAT], {"tokenize": False}),
    ("apply_chat_template", [CHAT], {"tokenize": False, "add_generation_prompt": True}),
    ("apply_chat_template", [CHAT], {"add_generation_prompt": True}),
    ("apply_chat_template", [CHAT], {"return_dict": False}),
    ("apply_chat_template", [BEGUN], {"tokenize": False, "continue_final_message": True}),
    ("apply_chat_template", [BEGUN], {"continue_final_message": True, "return_dict": False}),
    ("apply_chat_template", [[CHAT, BEGUN]], {"padding": True}),
    ("apply_chat_template", [CHAT], {"chat_template": "{{ messages[0].content }}{{ more }}", "more": "!", "tokenize": False}),
    ("pad", [{"input_ids": [[40], [41, 42]]}], {}),
]  # fmt: skip


def plain(value: Any) -> Any:
    """``value`` as JSON has it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "items"):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def outcome(function: Any, *args: Any, **options: Any) -> dict[str, Any]:
    """The result, or the error."""
    try:
        return {"result": plain(function(*args, **options))}
    except ValueError as error:
        return {"error": type(error).__name__}


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer.pad_token = "<|endoftext|>"
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    cases: dict[str, list[Any]] = {"pipeline": [], "generate": [], "tokenizer": []}
    for inputs, options in PIPELINE:
        cases["pipeline"].append({"inputs": inputs, "options": options, **outcome(pipe, inputs, **options)})
    for ids, mask, options in GENERATE:
        given = dict(options)
        if "sequence_bias" in given:
            given["sequence_bias"] = {tuple(tokens): bias for tokens, bias in given["sequence_bias"]}
        if "exponential_decay_length_penalty" in given:
            given["exponential_decay_length_penalty"] = tuple(given["exponential_decay_length_penalty"])
        if mask is not None:
            given["attention_mask"] = torch.tensor(mask)
        found = outcome(model.generate, torch.tensor(ids), do_sample=False, **given)
        cases["generate"].append({"ids": ids, "mask": mask, "options": options, **found})
    tokenizer.padding_side = "right"  # which the pipeline has changed
    for name, args, options in TOKENIZER:
        found = outcome(getattr(tokenizer, name), *args, **options)
        cases["tokenizer"].append({"name": name, "args": args, "options": options, **found})
    rows = {kind: ",\n".join(map(json.dumps, found)) for kind, found in cases.items()}
    text = ",\n".join(f'"{kind}": [\n{lines}\n]' for kind, lines in rows.items())
    (DATA / "transformers_goldens.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
