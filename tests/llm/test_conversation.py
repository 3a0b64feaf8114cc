"""Conversation: its messages after every outcome of a turn, and resuming a saved one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gumba import LLM, Conversation, RequestError, ResourceError, SamplingParams, StructuredOutputsParams
from gumba.llm.conversation import params_of, settings_of

PARAMS = SamplingParams(seed=4, max_tokens=10, temperature=2.0, top_k=0, min_p=0.0, top_p=1.0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny) as llm:
        yield llm
        assert llm.kv_usage().in_use == 0


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_turns_are_those_of_chat(llm: LLM) -> None:
    talk = llm.conversation(system="Be kind.", params=PARAMS)
    assert isinstance(talk, Conversation)
    expected: list[dict[str, str]] = [{"role": "system", "content": "Be kind."}]
    for text in ("hello", "more"):
        expected.append(user(text))
        found = llm.chat(expected, PARAMS)
        if text == "hello":
            assert talk.send(text).token_ids == found.token_ids
        else:
            steps = list(talk.stream(text))
            assert [step.token_id for step in steps] == found.token_ids
            assert "".join(step.text for step in steps) == found.text
        expected.append(answer(found.text))
        assert talk.messages == expected
    talk.clear()
    assert talk.messages == expected[:1]


def test_template_args_reach_the_template(llm: LLM) -> None:
    plain = Conversation(llm, params=PARAMS).send("hello")
    bare = Conversation(llm, params=PARAMS, template_args={"add_generation_prompt": False}).send("hello")
    assert len(bare.prompt_token_ids) < len(plain.prompt_token_ids)


def test_the_system_message(llm: LLM) -> None:
    talk = Conversation(llm, params=PARAMS)
    assert talk.system is None and talk.messages == []
    talk.send("hello")
    turn = talk.messages[:]
    for system in ("Be kind.", "Be brief.", None):
        talk.system = system
        assert talk.system == system
        assert talk.messages == [*([{"role": "system", "content": system}] if system else []), *turn]


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_closed_stream_keeps_its_text_so_far(llm: LLM, taken: int) -> None:
    talk = Conversation(llm, params=PARAMS)
    stream = talk.stream("hello")
    text = "".join(next(stream).text for _ in range(taken))
    if taken:
        assert talk.messages == [user("hello")]
    stream.close()
    assert talk.messages == ([user("hello"), answer(text)] if taken else [])
    assert llm.kv_usage().in_use == 0
    assert talk.send("more").prompt_token_ids == llm.chat(talk.messages[:-1], PARAMS).prompt_token_ids


def test_ctrl_c_before_the_first_token(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's message stays, with an empty answer; ``send`` leaves the conversation as it was."""

    def strike(*args: object, **options: object) -> Any:
        raise KeyboardInterrupt

    talk = Conversation(llm, params=PARAMS)
    talk.send("hello")
    before = talk.messages[:]
    with monkeypatch.context() as patch:
        patch.setattr(llm._engine, "take", strike)
        with pytest.raises(KeyboardInterrupt):
            list(talk.stream("more"))
        assert talk.messages == [*before, user("more"), answer("")]
        with pytest.raises(KeyboardInterrupt):
            talk.regenerate()
    assert talk.messages == [*before, user("more"), answer("")]
    assert llm.kv_usage().in_use == 0
    text = talk.regenerate().text
    assert text and talk.messages == [*before, user("more"), answer(text)]


def test_only_one_answer_at_a_time(llm: LLM, tmp_path: Path) -> None:
    talk = Conversation(llm, params=PARAMS)
    talk.send("hello")
    stream, stale = talk.stream("a"), talk.stream("b")
    next(stream)
    others: list[Callable[[], object]] = [
        talk.undo, talk.clear, talk.fork, talk.regenerate, talk.regenerate_stream, lambda: talk.send("c"),
        lambda: talk.stream("c"), lambda: talk.save(tmp_path / "x"), lambda: setattr(talk, "system", "x"), lambda: next(stale),
    ]  # fmt: skip
    for other in others[:-1]:
        with pytest.raises(RequestError, match="still being streamed"):
            other()
    list(stream)
    said = talk.messages[:]
    assert len(said) == 4
    with pytest.raises(RequestError, match="has changed"):
        next(stale)
    assert talk.messages == said


def test_another_answer_has_the_next_seed(llm: LLM) -> None:
    talk = Conversation(llm, params=PARAMS)
    with pytest.raises(RequestError, match="no answer yet"):
        talk.regenerate()
    first = talk.send("hello").text
    found = [first, talk.regenerate().text, "".join(step.text for step in talk.regenerate_stream())]
    assert found == [llm.chat([user("hello")], replace(PARAMS, seed=seed)).text for seed in (4, 5, 6)]
    assert len(set(found)) == 3
    assert talk.messages == [user("hello"), answer(found[-1])]
    # The next message begins with the seed itself.
    expected = llm.chat([*talk.messages, user("more")], PARAMS).text
    assert talk.send("more").text == expected


def test_undo(llm: LLM) -> None:
    talk = Conversation(llm, params=PARAMS, system="Be kind.")
    with pytest.raises(RequestError, match="no message yet"):
        talk.undo()
    talk.send("hello")
    before = talk.messages[:]
    first = talk.send("more").text
    assert talk.undo() == user("more")
    assert talk.messages == before
    talk.regenerate()
    talk.undo()
    assert talk.messages == before[:1]
    talk.messages = before[:]
    assert talk.send("more").text == first


def test_an_error_removes_the_message(llm: LLM) -> None:
    talk = Conversation(llm, params=PARAMS)
    talk.send("hello")
    before = talk.messages[:]
    asks: tuple[Callable[[str], object], ...] = (talk.send, talk.stream)
    for ask in asks:
        with pytest.raises(RequestError, match="context of 256"):
            ask("x" * 600)
        with pytest.raises(RequestError, match="expected a text"):
            ask(5)  # type: ignore[arg-type]
    assert talk.messages == before

    def fail(*args: object, **options: object) -> Iterator[Any]:
        yield from list(llm.stream("hello", PARAMS))[:2]
        raise ResourceError("no pages")

    whole = llm.chat_stream
    llm.chat_stream = fail  # type: ignore[assignment, method-assign]
    try:
        with pytest.raises(ResourceError):
            list(talk.stream("more"))
        with pytest.raises(ResourceError):
            list(talk.regenerate_stream())
    finally:
        llm.chat_stream = whole  # type: ignore[method-assign]
    assert talk.messages == before


def test_forks_are_independent(llm: LLM) -> None:
    talk = Conversation(llm, params=PARAMS, template_args={"a": [1]})
    talk.send("hello " * 12)
    twin = talk.fork()
    before = talk.messages[:]
    assert (twin.messages, twin.params, twin.template_args) == (before, talk.params, {"a": [1]})
    llm.clear_cache()
    first = talk.send("more")
    assert twin.messages == before
    second = twin.send("more of it")
    assert second.timings.cached_tokens >= len(llm.tokenizer.encode("hello " * 12))
    assert talk.messages == [*before, user("more"), answer(first.text)]
    assert twin.messages == [*before, user("more of it"), answer(second.text)]
    twin.messages[0]["content"] = "changed"
    twin.template_args["a"].append(2)
    assert talk.messages[0] == before[0] == user("hello " * 12) and talk.template_args == {"a": [1]}


def test_forgetful(llm: LLM) -> None:
    """Answers equal those of a conversation without the dropped messages; the system message stays."""
    kind = {"role": "system", "content": "Be kind."}
    talk = Conversation(llm, system="Be kind.", params=PARAMS, forgetful=True)
    kept: list[dict[str, str]] = []
    forgotten = 0
    for letter in "abcdefg":
        kept.append(user(letter * 40))
        while len(llm.tokenizer.encode(llm.chat_template.render([kind, *kept]), parse_special=True)) + 10 > 256:
            del kept[:2]
            forgotten += 1
        found = llm.chat([kind, *kept], PARAMS)
        assert talk.send(letter * 40).token_ids == found.token_ids
        kept.append(answer(found.text))
        assert talk.messages == [kind, *kept]
        assert talk.forgotten == forgotten
    assert forgotten > 1
    before = talk.messages[:]
    with pytest.raises(RequestError, match="context"):
        talk.send("x" * 300)
    assert (talk.messages, talk.forgotten) == (before, forgotten)


def test_forgetful_with_a_small_kv_cache(tiny: Path) -> None:
    with LLM(tiny, n_ctx=256, kv_tokens=128) as llm:
        talk = Conversation(llm, params=PARAMS, forgetful=True)
        for letter in "abcd":
            talk.send(letter * 40)
        assert talk.forgotten > 0


# ---------------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("seed", [4, None])
def test_a_loaded_conversation_continues(tiny: Path, tmp_path: Path, seed: int | None) -> None:
    path = tmp_path / "a.session"
    params = replace(PARAMS, seed=seed, temperature=PARAMS.temperature if seed else 0.0)
    bias = {5: -3.5, 9: -float("inf")}
    params = replace(params, logit_bias=bias, stop=["\x01", "\x02"], samplers=["top_k", "temperature"])
    with LLM(tiny) as llm:
        talk = Conversation(
            llm, system="Be kind.", params=params, template_args={"x": {"y": [1, None]}}, forgetful=True
        )
        talk.send("hello")
        talk.regenerate()
        talk.save(path)
        saved = talk.fork()
        expected = [talk.regenerate().token_ids, talk.send("more").token_ids]
    with LLM(tiny) as llm:
        found = Conversation.load(llm, path)
        for name in ("messages", "params", "template_args", "forgetful", "forgotten", "system"):
            assert getattr(found, name) == getattr(saved, name), name
        first = found.regenerate()
        assert [first.token_ids, found.send("more").token_ids] == expected
        assert first.timings.cached_tokens == len(first.prompt_token_ids) - 1  # only the new tokens were computed
        assert llm.kv_usage().in_use == 0


def test_a_conversation_without_messages(llm: LLM, tmp_path: Path) -> None:
    for system in (None, "Be kind."):
        talk = Conversation(llm, system=system)
        talk.save(tmp_path / "a")
        assert Conversation.load(llm, tmp_path / "a").messages == talk.messages


def test_settings_survive_a_round_trip() -> None:
    for outputs in (None, StructuredOutputsParams(choice=["a", "b"]), StructuredOutputsParams(json={"type": "object"})):
        params = SamplingParams(
            structured_outputs=outputs, allowed_token_ids=[1, 2], bad_words="x", logit_bias={3: 1.5}, seed=2**64 - 1
        )
        assert params_of(json.loads(json.dumps(settings_of(params)))) == params


def test_settings_that_cannot_be_saved(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(RequestError, match="logits_processors"):
        Conversation(llm, params=SamplingParams(logits_processors=[lambda ids, logits: logits])).save(path)
    with pytest.raises(RequestError, match="JSON"):
        Conversation(llm, template_args={"x": {1}}).save(path)
    talk = Conversation(llm)
    talk.messages = [{"role": "user", "content": None}]
    with pytest.raises(RequestError, match=r"messages\[0\]: there is no content"):
        talk.save(path)
    with pytest.raises(ResourceError, match="cannot be written"):
        Conversation(llm).save(tmp_path / "none" / "a")
    assert not list(tmp_path.glob("a*"))


WRONG: list[tuple[str, Any, str]] = [
    ("kind", "letter", "a session, but not of a conversation"),
    ("version", 2, "version: expected 1, found 2"),
    ("version", True, "version: expected 1, found True"),
    ("messages", {}, "messages: expected a list"),
    ("messages", ["x"], r"messages\[0\]: expected a mapping"),
    ("messages", [{"content": "x"}], r"messages\[0\]: there is no role"),
    (
        "messages",
        [{"role": "user", "content": "x"}, {"role": "user", "content": 5}],
        r"messages\[1\].content: .* found 5",
    ),
    ("params", [], "params: expected an object"),
    ("params", {"temperature": "hot"}, "params: temperature: expected a number"),
    ("params", {"top_k": -2}, "params: top_k: expected an integer"),
    ("params", {"wit": 1}, "params: 'wit' is not a parameter"),
    ("params", {"logits_processors": []}, "params: 'logits_processors' is not a parameter"),
    ("params", {"logit_bias": [[1]]}, "params: logit_bias: expected"),
    ("params", {"structured_outputs": "x"}, "params: structured_outputs: expected an object"),
    ("params", {"structured_outputs": {"xml": "x"}}, "params: structured_outputs: expected an object"),
    ("params", {"structured_outputs": {"regex": 5}}, "params: regex: expected a string"),
    ("template_args", 5, "template_args: expected an object"),
    ("template_args", {"messages": 5}, "template_args: 'messages' is not the name"),
    ("forgetful", 1, "forgetful: expected true or false"),
    ("forgotten", -1, "forgotten: expected an integer from 0"),
    ("attempt", "x", "attempt: expected an integer from 0"),
    ("attempt", 1 << 40, "attempt: expected an integer from 0"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_notes_that_are_wrong(llm: LLM, tmp_path: Path, name: str, value: Any, says: str) -> None:
    path = tmp_path / "a.session"
    talk = Conversation(llm, params=PARAMS)
    talk.save(path)
    _, notes = llm.load_session(path)
    assert set(notes) == {"kind", "version", "messages", "params", "template_args", "forgetful", "forgotten", "attempt"}
    llm.save_session(path, [1], {**notes, name: value})
    with pytest.raises(RequestError, match=rf"a\.session: {says}"):
        Conversation.load(llm, path)
    del notes[name]
    llm.save_session(path, [1], notes)
    with pytest.raises(RequestError, match=rf"a\.session: (a session|{name}: expected)"):
        Conversation.load(llm, path)


def test_files_without_a_conversation(llm: LLM, tmp_path: Path) -> None:
    for notes in (None, [], "x", {}):
        llm.save_session(tmp_path / "a", [1], notes)
        with pytest.raises(RequestError, match="not of a conversation"):
            Conversation.load(llm, tmp_path / "a")
    with pytest.raises(RequestError, match="cannot be read"):
        Conversation.load(llm, tmp_path / "none")


def test_arguments_that_are_wrong(llm: LLM) -> None:
    with pytest.raises(RequestError, match="params: expected SamplingParams"):
        llm.conversation(params={"seed": 1})
    with pytest.raises(RequestError, match="system: expected a text"):
        llm.conversation(system=5)
    with pytest.raises(RequestError, match="template_args: 'messages'"):
        llm.conversation(template_args={"messages": []})


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_messages_in_parts(llm: LLM, tmp_path: Path) -> None:
    """They are sent, kept and saved as their text, and so are messages that the caller inserts in parts."""
    plain, other = (Conversation(llm, params=PARAMS) for _ in range(2))
    for text in ("hello you", "more"):
        plain.send(text)
    other.send(parts("hello", " you"))
    assert [step.choice for step in other.stream(parts("more"))]
    assert other.messages == plain.messages
    other.messages[0] = {"role": "user", "content": parts("hello ", "you")}
    other.save(tmp_path / "a")
    assert Conversation.load(llm, tmp_path / "a").messages == plain.messages
    assert other.send("again").text == plain.send("again").text
    before = list(other.messages)
    for wrong in ([{"type": "image_url"}], 5, None, b"x", {}):
        with pytest.raises(RequestError, match=r"^text(\[0\])?: (expected a text|gumba reads text alone)"):
            other.send(wrong)  # type: ignore[arg-type]
    assert other.messages == before
