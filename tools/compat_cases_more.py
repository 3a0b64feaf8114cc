"""More calls that tools/compat_check.py makes: log-probabilities, conversations, and what lies below completions."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np

from compat_cases import CHAT, CITY, TOOL, case, llama, plain, shape

PARIS = [{"role": "user", "content": "What is the capital of France?"}]

# ------------------------------------------------------------------------------------------------ log-probabilities


@case
def logprobs(lib: Any, path: str) -> Any:
    return plain(llama(lib, path, logits_all=True)(CITY, max_tokens=6, temperature=0, logprobs=2))


@case
def logprobs_stream(lib: Any, path: str) -> Any:
    chunks = llama(lib, path, logits_all=True)(CITY, max_tokens=4, temperature=0, logprobs=2, stream=True)
    return [plain(chunk) for chunk in chunks]


@case
def logprobs_echo(lib: Any, path: str) -> Any:
    answer = llama(lib, path, logits_all=True)(CITY, max_tokens=3, temperature=0, logprobs=1, echo=True)
    return answer["choices"][0]["logprobs"]


@case
def logprobs_echo_form(lib: Any, path: str) -> Any:
    answer = llama(lib, path, logits_all=True)(CITY, max_tokens=3, temperature=0, logprobs=1, echo=True)
    found = answer["choices"][0]["logprobs"]
    return [found["tokens"][:7], found["text_offset"][:7], found["token_logprobs"][0], found["top_logprobs"][0]]


@case
def logprobs_refused(lib: Any, path: str) -> Any:
    return llama(lib, path)(CITY, max_tokens=1, logprobs=1)


@case
def chat_logprobs(lib: Any, path: str) -> Any:
    model = llama(lib, path, logits_all=True)
    answer = model.create_chat_completion(CHAT, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2)
    return answer["choices"][0]["logprobs"]


# ----------------------------------------------------------------------------------------------------------- chat


@case
def chat(lib: Any, path: str) -> Any:
    return plain(llama(lib, path).create_chat_completion(CHAT, max_tokens=24, temperature=0))


@case
def chat_of_several_turns(lib: Any, path: str) -> Any:
    messages = [
        {"role": "system", "content": "Answer briefly."}, *CHAT, {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "And another?"},
    ]  # fmt: skip
    return plain(llama(lib, path).create_chat_completion(messages, max_tokens=12, temperature=0))


@case
def chat_types(lib: Any, path: str) -> Any:
    return shape(llama(lib, path).create_chat_completion(CHAT, max_tokens=2))


@case
def chat_stop(lib: Any, path: str) -> Any:
    return plain(llama(lib, path).create_chat_completion(CHAT, max_tokens=30, temperature=0, stop=[":"]))


@case
def chat_without_limit(lib: Any, path: str) -> Any:
    answer = llama(lib, path).create_chat_completion(
        [{"role": "user", "content": "What is 2 + 2?"}], temperature=0, max_tokens=None
    )
    return answer["choices"][0]["finish_reason"]


@case
def chat_stream(lib: Any, path: str) -> Any:
    return [
        plain(each) for each in llama(lib, path).create_chat_completion(CHAT, max_tokens=6, temperature=0, stream=True)
    ]


@case
def chat_json(lib: Any, path: str) -> Any:
    answer = llama(lib, path).create_chat_completion(
        [{"role": "user", "content": 'Answer with {"a": 1} as JSON.'}],
        response_format={"type": "json_object"}, temperature=0, max_tokens=100,
    )  # fmt: skip
    choice = answer["choices"][0]
    return choice["message"]["content"].lstrip()[:1] if choice["finish_reason"] == "length" else "an object"


@case
def chat_json_schema(lib: Any, path: str) -> Any:
    answer = llama(lib, path).create_chat_completion(
        CHAT, temperature=0, max_tokens=60,
        response_format={"type": "json_object", "schema": TOOL["function"]["parameters"]},  # type: ignore[index]
    )  # fmt: skip
    return sorted(json.loads(answer["choices"][0]["message"]["content"]))


def calls(message: Any) -> Any:
    """A call without its identifier and arguments, which are checked to be as the tool wants them."""
    for call in message["tool_calls"]:
        call.pop("id")
        call["function"]["arguments"] = sorted(json.loads(call["function"]["arguments"]))
    message["function_call"]["arguments"] = sorted(json.loads(message["function_call"]["arguments"]))
    return message


@case
def chat_tool_call(lib: Any, path: str) -> Any:
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = llama(lib, path).create_chat_completion(
        CHAT, tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=60
    )
    return [answer["choices"][0]["finish_reason"], calls(answer["choices"][0]["message"]), sorted(answer)]


@case
def chat_function_call(lib: Any, path: str) -> Any:
    answer = llama(lib, path).create_chat_completion(
        CHAT, functions=[TOOL["function"]], function_call={"name": "weather"}, temperature=0, max_tokens=60
    )
    return calls(answer["choices"][0]["message"])


@case
def chat_tool_call_stream(lib: Any, path: str) -> Any:
    choice = {"type": "function", "function": {"name": "weather"}}
    chunks = list(
        llama(lib, path).create_chat_completion(
            CHAT, tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=60, stream=True
        )
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    text = "".join(delta["tool_calls"][0]["function"]["arguments"] for delta in deltas if delta["tool_calls"])
    return [
        deltas[0],
        deltas[-1],
        chunks[-1]["choices"][0]["finish_reason"],
        sorted(json.loads(text)),
        sorted(chunks[1]),
    ]


@case
def chat_tool_unknown(lib: Any, path: str) -> Any:
    choice = {"type": "function", "function": {"name": "nothing"}}
    return llama(lib, path).create_chat_completion(CHAT, tools=[TOOL], tool_choice=choice)


@case
def chat_tools_left_open(lib: Any, path: str) -> Any:
    answer = llama(lib, path).create_chat_completion(
        CHAT, tools=[TOOL], tool_choice="auto", temperature=0, max_tokens=4
    )
    return sorted(answer["choices"][0]["message"])


@case
def chat_format_by_name(lib: Any, path: str) -> Any:
    model = llama(lib, path, chat_format="chatml")
    return plain(
        model.create_chat_completion([{"role": "system", "content": "Hi."}, *PARIS], max_tokens=12, temperature=0)
    )


@case
def chat_format_unknown(lib: Any, path: str) -> Any:
    return llama(lib, path, chat_format="no-such-format").create_chat_completion(CHAT)


@case
def chat_handler(lib: Any, path: str) -> Any:
    model = lib.Llama(path, n_ctx=64, verbose=False, chat_handler=lambda **options: sorted(options))
    return model.create_chat_completion(CHAT)


@case
def chat_malformed_messages(lib: Any, path: str) -> Any:
    return llama(lib, path).create_chat_completion([{"content": "no role"}])


# ------------------------------------------------------------------------------------------------------- lower level


@case
def generate(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    prompt = model.tokenize(CITY.encode())
    found = [token for token, _ in zip(model.generate(prompt, temp=0), range(8))]
    return [found, model.n_tokens >= len(prompt)]


@case
def generate_stopping_criteria(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    criteria = lib.StoppingCriteriaList([lambda input_ids, logits: len(input_ids) >= 9])
    return list(model.generate(model.tokenize(CITY.encode()), temp=0, stopping_criteria=criteria))


@case
def generate_send(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    tokens = model.generate(model.tokenize(CITY.encode()), temp=0)
    first = next(tokens)
    found = [first, tokens.send(model.tokenize(b" and the capital of Italy is")), next(tokens)]
    tokens.close()
    return found


@case
def generate_past_the_context(lib: Any, path: str) -> Any:
    return len(list(llama(lib, path).generate([5] * 250, temp=0)))


@case
def eval_and_sample(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    model.reset()
    model.eval(model.tokenize(CITY.encode()))
    found = []
    for _ in range(6):
        found.append(model.sample(temp=0))
        model.eval(found[-1:])
    return [found, model.n_tokens, list(model.eval_tokens)]


@case
def eval_past_the_context(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    model.reset()
    return model.eval([5] * 300)


@case
def scores(lib: Any, path: str) -> Any:
    model = llama(lib, path, logits_all=True)
    model.reset()
    model.eval(model.tokenize(CITY.encode()))
    rows = model.scores[: model.n_tokens]
    return [list(model.scores.shape), str(rows.dtype), rows.argmax(axis=1).tolist(), len(model.eval_logits)]


@case
def input_ids(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    model.reset()
    model.eval([1, 2, 3])
    return [model.input_ids.shape, str(model.input_ids.dtype), model.input_ids[: model.n_tokens].tolist()]


@case
def state(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    model.reset()
    model.eval(model.tokenize(CITY.encode()))
    saved = model.save_state()
    model.reset()
    model.eval([7, 8, 9])
    model.load_state(saved)
    first = list(model.eval_tokens)
    tokens = [token for token, _ in zip(model.generate(first, temp=0), range(4))]
    return [type(saved).__name__, saved.n_tokens, first, tokens]


@case
def caches(lib: Any, path: str) -> Any:
    model = llama(lib, path)
    model.set_cache(lib.LlamaRAMCache(capacity_bytes=1 << 20))
    texts = [model(CITY, max_tokens=4, temperature=0)["choices"][0]["text"] for _ in range(2)]
    model.set_cache(None)
    return [texts, lib.LlamaCache is lib.LlamaRAMCache]


@case
def statics(lib: Any, path: str) -> Any:
    values = lib.Llama.logits_to_logprobs(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, -np.inf]], np.float32))
    prefix = lib.Llama.longest_token_prefix
    return [np.round(values, 4).tolist(), prefix([1, 2, 3], [1, 2, 4, 5]), prefix([], [1]), prefix([1], [1])]


@case
def embed_refused(lib: Any, path: str) -> Any:
    return llama(lib, path).create_embedding("a text")


@case
def embedding(lib: Any, path: str) -> Any:
    answer = llama(lib, path, embedding=True).create_embedding(["a text", "another"])
    return [shape(answer), answer["usage"], len(answer["data"][0]["embedding"])]


def larger(vectors: Any) -> Any:
    """Vectors whose components are about 1, so that the tolerance says something."""
    return (np.array(vectors) * np.shape(vectors)[-1] ** 0.5).tolist()


@case
def embedding_of_a_text(lib: Any, path: str) -> Any:
    return larger(llama(lib, path, embedding=True).embed("a text", normalize=True))


@case
def embedding_pooled(lib: Any, path: str) -> Any:
    pools = [lib.LLAMA_POOLING_TYPE_MEAN, lib.LLAMA_POOLING_TYPE_CLS, lib.LLAMA_POOLING_TYPE_LAST]
    models = [llama(lib, path, embedding=True, pooling_type=pool) for pool in pools]
    found = [model.embed(["a text", "another one"], normalize=True, return_count=True) for model in models]
    return [[larger(vectors), count] for vectors, count in found]


@case
def embedding_lengths(lib: Any, path: str) -> Any:
    model = llama(lib, path, embedding=True, pooling_type=lib.LLAMA_POOLING_TYPE_MEAN)
    vector = model.embed("a text")
    return round(float(np.linalg.norm(vector)) / 10)


@case
def embedding_too_long(lib: Any, path: str) -> Any:
    return llama(lib, path, embedding=True).embed("one two " * 200, truncate=False)


@case
def pickling(lib: Any, path: str) -> Any:
    return pickle.loads(pickle.dumps(llama(lib, path))).n_ctx()


@case
def close_twice(lib: Any, path: str) -> Any:
    model = lib.Llama(path, n_ctx=64, verbose=False)
    model.close()
    return model.close()
