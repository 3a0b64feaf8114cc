"""A prompt's last token written anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gumba import LLM, RequestError, SamplingParams, StructuredOutputsParams, Tokenizer
from gumba.sampling.token_healing import HealedDecoder, Healing, PrefixIndex, healable, prefix_index
from gumba.tokenizer.vocabulary import TokenType
from support import tiny_chat

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("name", ["smollm", "qwen2", "sentencepiece", "gpt_2"])
def test_masks_are_those_of_the_obvious_loop(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(DATA / f"tokenizer_{name}.gguf")
    rng = np.random.default_rng(1)
    texts = [
        tokenizer.token_bytes(i) if tokenizer.token_type(i) in (TokenType.NORMAL, TokenType.BYTE) else b""
        for i in range(tokenizer.n_vocab)
    ]
    for token in rng.integers(0, tokenizer.n_vocab, 60):
        wanted = texts[token]
        if not wanted:
            continue
        bits = np.unpackbits(prefix_index(tokenizer).mask(wanted).view(np.uint8), bitorder="little")
        expected = {
            i
            for i, text in enumerate(texts)
            if text and i not in tokenizer.eog_ids and (text.startswith(wanted) or wanted.startswith(text))
        }
        assert set(np.flatnonzero(bits).tolist()) == expected and len(bits) >= tokenizer.n_vocab


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny_chat.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.mark.parametrize("seed", range(12))
def test_prompt_and_answer_are_the_text_of_the_tokens(llm: LLM, seed: int) -> None:
    prompt = ["hello wor", "once upo", "a b", "the c"][seed % 4]
    params = SamplingParams(seed=seed, temperature=2.0, top_k=0, max_tokens=12, token_healing=True, n=2, logprobs=0)
    (result,) = llm.generate([prompt], params)
    ids = llm.tokenizer.encode(prompt)
    healed = healable(llm.tokenizer, ids)
    assert healed and result.prompt_token_ids == ids[:-1]
    for each in result.outputs:
        tokens = [token for token in each.token_ids if token not in llm.tokenizer.eog_ids]
        whole = b"".join(map(llm.tokenizer.token_bytes, tokens)).decode("utf-8", "replace")
        assert whole.startswith(healed)
        if all(not llm.tokenizer.is_special(token) for token in tokens):
            assert each.text == whole[len(healed) :]
    steps = list(llm.stream(prompt, params))
    for each in result.outputs:
        assert "".join(step.text for step in steps if step.choice == each.index) == each.text


def test_pieces_shorter_than_the_token() -> None:
    tokenizer = Tokenizer.from_gguf(DATA / "tokenizer_smollm.gguf")
    token = max(range(tokenizer.n_vocab), key=lambda i: len(tokenizer.token_bytes(i)) * (not tokenizer.is_special(i)))
    wanted = tokenizer.token_bytes(token)
    healing = Healing(tokenizer, wanted)
    other = healing.fork()
    generated = b""
    while (mask := healing.mask()) is not None:
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        shortest = min(np.flatnonzero(bits).tolist(), key=lambda i: len(tokenizer.token_bytes(i)))
        healing.accept(shortest)
        generated += tokenizer.token_bytes(shortest)
    assert generated.startswith(wanted) and other.mask() is not None


def test_a_piece_after_which_nothing_fits_is_not_allowed() -> None:
    class Vocabulary:
        texts = (b"a", b"abc", b"ab", b"cd", b"bcx", b"x")
        n_vocab, eog_ids = len(texts), frozenset({5})

        def token_bytes(self, token: int) -> bytes:
            return self.texts[token]

        def token_type(self, token: int) -> TokenType:
            return TokenType.NORMAL

    def allowed(wanted: bytes) -> set[int]:
        mask = PrefixIndex(Vocabulary()).mask(wanted)  # type: ignore[arg-type]
        return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())

    assert allowed(b"abc") == {0, 1, 2}  # a bcx, abc, ab cd
    assert allowed(b"abcd") == {2}  # not abc: nothing begins with d
    assert allowed(b"abcdc") == {2}  # ab cd cd


def test_a_stop_token_is_not_written_anew(llm: LLM) -> None:
    ids = llm.tokenizer.encode("hello wor")
    params = SamplingParams(seed=1, max_tokens=5, token_healing=True, stop_token_ids=[ids[-1]])
    assert llm.generate(["hello wor"], params)[0].prompt_token_ids == ids


def test_texts_are_cut_once() -> None:
    class Pieces:
        texts = iter(["", "ab", "cd", "ef"])

        def push(self, token: int) -> str:
            return next(self.texts)

        def finish(self) -> str:
            return next(self.texts)

    decoder = HealedDecoder(Pieces(), 3)
    assert [decoder.push(0), decoder.push(0), decoder.push(0), decoder.finish()] == ["", "", "d", "ef"]


def test_what_is_not_healed(llm: LLM) -> None:
    one = llm.tokenizer.encode("a", add_special=False)[:1]
    params = SamplingParams(seed=1, max_tokens=5, token_healing=True)
    assert llm.generate([one], params)[0].prompt_token_ids == one
    ended = [*one, *sorted(llm.tokenizer.eog_ids)[:1]]
    assert llm.generate([ended], params)[0].prompt_token_ids == ended
    with pytest.raises(RequestError, match="token_healing"):
        SamplingParams(token_healing=True, structured_outputs=StructuredOutputsParams(regex="a"))
