"""The look-alike as the module llama_cpp: what can be imported from it, and what is refused by name."""

from __future__ import annotations

import subprocess
import sys
import typing

import pytest

from gumba import UnsupportedError
from gumba.compat import llama_cpp
from gumba.compat.llama_cpp import Llama, llama_types

#: Names that applications import, by module of llama-cpp-python 0.3.36.
NAMES = {
    "": "Llama LlamaGrammar LlamaCache LlamaRAMCache LlamaDiskCache LlamaState LlamaTokenizer LlamaDraftModel "
    "LogitsProcessorList StoppingCriteriaList MinTokensLogitsProcessor BaseLlamaCache BaseLlamaTokenizer __version__ "
    "GGML_TYPE_Q4_0 GGML_TYPE_Q8_0 GGML_TYPE_COUNT LLAMA_ROPE_SCALING_TYPE_YARN LLAMA_POOLING_TYPE_MEAN LLAMA_SPLIT_MODE_ROW "
    "LLAMA_TOKEN_ATTR_CONTROL LLAMA_FTYPE_MOSTLY_Q4_K_M ChatCompletion ChatCompletionChunk CreateCompletionResponse "
    "ChatCompletionRequestMessage ChatCompletionTool CompletionChunk Embedding llama_types llama_chat_format",
    "llama_types": "ChatCompletionMessageToolCall ChatCompletionRequestAssistantMessage CreateChatCompletionStreamResponse "
    "ChatCompletionRequestMessageContentPart ChatCompletionLogprobToken ChatCompletionToolChoiceOption JsonType",
    "llama_chat_format": "LlamaChatCompletionHandler LlamaChatCompletionHandlerRegistry ChatFormatter ChatFormatterResponse "
    "Jinja2ChatFormatter Llava15ChatHandler Llava16ChatHandler MoondreamChatHandler NanoLlavaChatHandler MiniCPMv26ChatHandler "
    "Llama3VisionAlphaChatHandler Llama3VisionAlpha Qwen25VLChatHandler ObsidianChatHandler MTMDChatHandler Gemma4ChatHandler "
    "register_chat_format register_chat_completion_handler format_chatml format_llama2 get_chat_completion_handler "
    "hf_autotokenizer_to_chat_formatter hf_tokenizer_config_to_chat_completion_handler chatml_function_calling "
    "guess_chat_format_from_gguf_metadata chat_formatter_to_chat_completion_handler functionary_chat_handler",
    "llama_tokenizer": "BaseLlamaTokenizer LlamaTokenizer LlamaHFTokenizer",
    "llama_grammar": "LlamaGrammar json_schema_to_gbnf JSON_GBNF JSON_ARR_GBNF LIST_GBNF LLAMA_GRAMMAR_DEFAULT_ROOT",
    "llama_speculative": "LlamaDraftModel LlamaPromptLookupDecoding",
    "llama_cache": "LlamaCache LlamaRAMCache LlamaDiskCache BaseLlamaCache",
    "llama_cpp": "GGML_TYPE_F16 LLAMA_DEFAULT_SEED LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED llama_token_to_piece",
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_install_makes_it_the_module_llama_cpp():
    imports = "".join(
        f"from llama_cpp{f'.{module}' if module else ''} import {', '.join(names.split())}\n"
        for module, names in NAMES.items()
    )
    code = f"""
import gumba.compat.llama_cpp as ours
assert ours.install() is ours and ours.install() is ours
{imports}
import llama_cpp, llama_cpp.llama_types, llama_cpp.llama_cpp, importlib.util
assert llama_cpp is ours and llama_cpp.llama_types is ours.llama_types and llama_cpp.Llama is ours.Llama
assert importlib.util.find_spec("llama_cpp") is not None
print("done", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)"""
    assert run(code) == "done 15\n"


def test_install_refuses_to_take_the_place_of_another():
    code = """
import sys, types
sys.modules["llama_cpp"] = types.SimpleNamespace(__file__="elsewhere.py")
import gumba.compat.llama_cpp as ours
try: ours.install()
except ImportError as error: print(type(error).__name__, error)
print(sys.modules["llama_cpp"] is ours)"""
    assert run(code) == (
        "InstallError llama_cpp: another module is already imported (elsewhere.py): call install() first\nFalse\n"
    )


def test_star_imports_have_no_functions_of_llama_cpp():
    assert len(set(llama_cpp.__all__)) == len(llama_cpp.__all__)
    assert all(hasattr(llama_cpp, name) for name in llama_cpp.__all__)


def test_types_resolve():
    for name in llama_cpp.__all__:
        value = getattr(llama_types, name, None)
        if typing.is_typeddict(value):
            assert set(typing.get_type_hints(value)) == set(value.__annotations__)


def test_functions_of_llama_cpp_are_refused_by_name(tiny):
    for module in (llama_cpp, llama_cpp.llama_cpp):
        with pytest.raises(UnsupportedError, match=r"llama_cpp\.llama_batch_init: gumba does not provide"):
            module.llama_batch_init(1, 0, 1)
        with pytest.raises(UnsupportedError, match=r"llama_cpp\.llama_token_data: "):
            module.llama_token_data.from_buffer(b"")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llama_cpp.nothing
    with pytest.raises(UnsupportedError, match=r"gumba has no llama\.cpp context"):
        _ = Llama(tiny, vocab_only=True).ctx


def test_the_vocabulary_as_outlines_reads_it(tiny):
    import ctypes

    llama = Llama(tiny, vocab_only=True)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    small = (ctypes.c_char * 3)()
    for token in range(llama.n_vocab()):
        piece = llama.detokenize([token], special=True)
        n = llama_cpp.llama_token_to_piece(vocab, token, small, 3, 0, True)
        assert (small[:n] if n >= 0 else n) == (piece if len(piece) <= 3 else -len(piece))
