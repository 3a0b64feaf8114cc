"""run, chat, bench and perplexity with a tiny random model: their output streams, and equality with the library."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from gumba import LLM, GGUFFile, SamplingParams
from support import tiny_chat

TIMINGS = (
    r"gumba: (compile [\d.]+ s \| )?load [\d.]+ s \| "
    r"prompt (1 token|\d+ tokens), [\d.]+/s \| decode (1 token|\d+ tokens), [\d.]+/s\n"
)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny) as llm:
        yield llm


def greedy(llm: LLM, prompt: str, n: int) -> str:
    return llm.generate(prompt, SamplingParams(max_tokens=n, temperature=0))[0].text


# -------------------------------------------------------------------------------------------------------------- run


def test_run_prints_the_text_alone(gumba_process: Callable, tiny: Path, llm: LLM) -> None:
    result = gumba_process("run", tiny, "-p", "hello", "-n", 12, "--temp", 0)
    assert result.code == 0
    assert result.out.rstrip("\n") == greedy(llm, "hello", 12).rstrip("\n")
    assert re.fullmatch(TIMINGS, result.err)


def test_run_takes_its_prompt_from_all_sources(gumba: Callable, tiny: Path, llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hello", encoding="utf-8")
    common = ("-n", 5, "--temp", 0, "--quiet")
    expected = (0, gumba("run", tiny, "-p", "hello", *common).out, "")
    assert expected[1].rstrip("\n") == greedy(llm, "hello", 5).rstrip("\n")
    for result in (
        gumba("run", tiny, "-f", file, *common),
        gumba("run", tiny, "-f", "-", *common, stdin="hello\n"),
        gumba("run", tiny, *common, stdin="hello\r\n"),
        gumba("run", tiny, "-f", "-", *common, stdin="hello"),
        gumba("run", tiny, "-p", "-", *common, stdin="hello"),
        gumba("run", tiny, *common, stdin="hello"),
    ):
        assert (result.code, result.out, result.err) == expected
    file.write_bytes(b"hello\n\n")
    assert json.loads(gumba("run", tiny, "-f", file, *common, "--json").out)["prompt"] == "hello\n"


def test_run_reports_its_seed(gumba: Callable, tiny: Path) -> None:
    command = ("run", tiny, "-p", "hello", "--temp", 3, "--top-k", 0, "--top-p", 1, "--min-p", 0, "-n", 12, "--json")
    first, second = (json.loads(gumba(*command).out) for _ in range(2))
    assert first["seed"] != second["seed"] and first["token_ids"] != second["token_ids"]
    again = json.loads(gumba(*command, "--seed", first["seed"]).out)
    assert again["token_ids"] == first["token_ids"]
    greedy = ("run", tiny, "-p", "hello", "--temp", 0, "-n", 2, "--json")  # nothing is drawn
    assert json.loads(gumba(*greedy).out)["seed"] is None
    assert json.loads(gumba(*greedy, "--seed", 5).out)["seed"] == 5


def test_run_takes_llama_cpps_names(gumba: Callable, tiny: Path) -> None:
    plain = gumba("run", tiny, "-p", "hello", "--temp", 0, "-q", "-n", 5, "-c", 64)
    assert gumba("run", tiny, "-p", "hello", "--temp", 0, "-q", "--n-predict", 5, "--ctx-size", 64) == plain
    assert gumba("run", tiny, "-p", "hello", "--ctx-size", 4000).code == 2
    assert "n-predict" not in gumba("run", "--help").out


def test_compile_time_is_separate(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 s of compiling before the first token and 2 s after it are in neither rate."""
    from gumba.cli import run
    from gumba.outputs import StreamOutput, Timings

    clock = iter([10.0, 13.0, 15.0])
    monkeypatch.setattr(run, "compile_seconds", lambda: next(clock))
    answer = run.Answer()
    timings = Timings(queue_s=0, prompt_s=4, decode_s=4, prompt_tokens=8, generated_tokens=2)
    steps = [StreamOutput("a", 1, 0), StreamOutput("b", 2, 1, "length", timings)]
    assert "".join(step.text for step in answer.watch(iter(steps))) == "ab"
    assert answer.summary() == "prompt 8 tokens, 8.0/s | decode 2 tokens, 0.5/s"


def test_run_json(gumba: Callable, tiny: Path, llm: LLM) -> None:
    result = gumba("run", tiny, "-p", "hello", "-n", 7, "--seed", 3, "--json")
    found = json.loads(result.out)
    [expected] = llm.generate("hello", SamplingParams(max_tokens=7, seed=3))
    assert found["text"] == expected.text
    assert found["token_ids"] == expected.token_ids
    assert found["finish_reason"] == expected.finish_reason
    assert (found["prompt"], found["prompt_tokens"]) == ("hello", 1)
    assert found["completion_tokens"] == len(expected.token_ids)
    assert all(value >= 0 for value in found["timings"].values())
    assert re.fullmatch(TIMINGS, result.err)


def test_run_options_reach_the_sampler(gumba: Callable, tiny: Path, llm: LLM) -> None:
    options = {"temp": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.3, "seed": 11}
    args = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    found = json.loads(gumba("run", tiny, "-p", "hello", "-n", 20, "--json", "--ctx", 64, "--threads", 1, *args).out)
    params = SamplingParams(
        max_tokens=20, temperature=1.7, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.3, seed=11
    )
    [expected] = llm.generate("hello", params)
    assert found["token_ids"] == expected.token_ids


def test_run_stops_at_any_of_several_strings(gumba: Callable, tiny: Path, llm: LLM) -> None:
    text = greedy(llm, "hello", 30)
    stop = next(c for c in text[3:] if c.isascii() and c.isprintable() and c not in text[:3])
    result = gumba("run", tiny, "-p", "hello", "-n", 30, "--temp", 0, "--json", "--stop", "\x01\x02", "--stop", stop)
    found = json.loads(result.out)
    assert found["text"] == text[: text.index(stop)]
    assert found["finish_reason"] == "stop"


def test_run_chat_uses_the_models_template(gumba: Callable, tiny: Path, llm: LLM) -> None:
    result = gumba("run", tiny, "--chat", "--system", "Be kind.", "-p", "hello", "-n", 9, "--temp", 0, "--json")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    assert json.loads(result.out)["text"] == llm.chat(messages, SamplingParams(max_tokens=9, temperature=0)).text


def test_run_that_does_not_fit_is_one_line(gumba: Callable, tiny: Path) -> None:
    result = gumba("run", tiny, "-p", "x" * (2 * tiny_chat.CONTEXT))
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"gumba: error: [^\n]*context[^\n]*\n", result.err)


def test_the_first_start_announces_compilation(gumba_process: Callable, tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gumba", "run", str(tiny), "-p", "hello", "-n", "3", "--temp", "0"]
    cache = tmp_path / "cache"
    env = {**os.environ, "GUMBA_CACHE_DIR": str(cache), "GUMBA_ISA": "generic"}
    first = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert first.returncode == 0
    notice, *progress, timings = first.stderr.splitlines(keepends=True)
    line = r"gumba: compiling kernels (\d+) of (\d+), \d+%(, \d+:\d\d left)?\n"
    assert all(re.fullmatch(line, each) for each in progress), progress
    assert re.fullmatch(r"gumba: compiling kernels for this processor[^\n]* \(only once\)[^\n]* \.\.\.\n", notice)
    compiled, load = map(float, re.match(r"gumba: compile ([\d.]+) s \| load ([\d.]+) s", timings).groups())
    assert re.fullmatch(TIMINGS, timings) and compiled > load
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0
    assert re.fullmatch(TIMINGS, again.stderr) and "compile" not in again.stderr


def test_quiet_also_hides_compilation(tiny: Path, nearly_full_cache: Path) -> None:
    before = sorted(nearly_full_cache.rglob("*"))
    command = [sys.executable, "-m", "gumba", "run", str(tiny), "-p", "hello", "-n", "1", "-q"]
    env = {**os.environ, "GUMBA_CACHE_DIR": str(nearly_full_cache), "GUMBA_ISA": "generic"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(sorted(nearly_full_cache.rglob("*"))) == len(before) + 1


def test_the_readmes_example(tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("smollm2-135m-instruct", tiny.as_posix()), {})
    assert capsys.readouterr().out == greedy(llm, "The capital of France is", 32)


@pytest.mark.model
def test_run_knows_the_capital_of_france(gumba_process: Callable, real_model: Path) -> None:
    result = gumba_process("run", real_model, "-p", "The capital of France is", "-n", 16, "--temp", 0)
    assert result.code == 0
    assert "Paris" in result.out


# ------------------------------------------------------------------------------------------------------------- chat


def test_chat_answers_each_line_with_the_history(gumba: Callable, tiny: Path, llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, temperature=0)
    messages = [{"role": "user", "content": "hello"}]
    first = llm.chat(messages, params).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "more"}]
    second = llm.chat(messages, params).text
    result = gumba("chat", tiny, "-n", 8, "--temp", 0, stdin="hello\n\nmore\n")
    assert (result.code, result.out) == (0, f"{first}\n{second}\n")


def test_chat_commands(gumba: Callable, tiny: Path, llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, temperature=0)
    kind = {"role": "system", "content": "Be kind."}
    hello = {"role": "user", "content": "hello\nyou"}
    plain, told = llm.chat([hello], params).text, llm.chat([kind, hello], params).text
    assert plain != told
    script = [
        "/help", "/stats", "hello\\", "you", "/stats", "/regen", "/clear", "hello\\", "you", "/nonsense",
        "/system Be kind.", "/system", "hello\\", "you", "/undo", "hello\\", "you", "/exit", "hello",
    ]  # fmt: skip
    result = gumba("chat", tiny, "-n", 8, "--temp", 0, stdin="\n".join(script))
    assert result.code == 0
    assert result.out == f"{plain}\n" * 3 + f"{told}\n" * 2
    for said in ("/regen", "no answer yet", "prompt ", "no command /nonsense", "Be kind."):
        assert said in result.err


def test_chat_regenerates_something_else(gumba: Callable, tiny: Path, llm: LLM) -> None:
    wild = {"temperature": 3, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 9}
    hello = [{"role": "user", "content": "hello"}]
    answers = [llm.chat(hello, SamplingParams(seed=seed, **wild)).text for seed in (5, 6, 7, 5)]
    args = ("--temp", 3, "--top-k", 0, "--top-p", 1, "--min-p", 0, "-n", 9, "--seed", 5)
    result = gumba("chat", tiny, *args, stdin="hello\n/regen\n/regen\n/clear\nhello\n")
    assert result.out == "".join(f"{text}\n" for text in answers) and len(set(answers)) == 3
    assert "the same" not in result.err
    assert "the answer will be the same" in gumba("chat", tiny, "-n", 1, "--temp", 0, stdin="hello\n/regen\n").err


def test_chat_explains_why_an_answer_was_cut_off(gumba: Callable, tiny: Path) -> None:
    assert (
        gumba("chat", tiny, "-n", 4, "--temp", 0, stdin="hello\n").err == "[cut off after 4 tokens: max_tokens (-n)]\n"
    )
    full = gumba("chat", tiny, "-c", 64, "--temp", 0, "--stop", "\x01\x02", stdin="hello\n").err
    assert (
        full == "[cut off: the context of 64 tokens is full; /clear forgets the conversation, -c N sets a larger one]\n"
    )


def test_chat_sends_a_slash(gumba: Callable, tiny: Path, llm: LLM) -> None:
    text = llm.chat([{"role": "user", "content": "/exit"}], SamplingParams(max_tokens=8, temperature=0)).text
    assert gumba("chat", tiny, "-n", 8, "--temp", 0, "-q", stdin="//exit\n").out == text + "\n"


def test_piped_chat_forgets_the_oldest_messages(gumba: Callable, tiny: Path, llm: LLM) -> None:
    """Answers equal those without the oldest messages; the system message is kept; a long message is an error."""
    params = SamplingParams(max_tokens=8, temperature=0)
    kind = {"role": "system", "content": "Be kind."}
    messages = [{"role": "user", "content": letter * 40} for letter in "abcd"]
    answers, kept = [], []
    for message in messages:
        kept.append(message)
        while len(llm.tokenizer.encode(llm.chat_template.render([kind, *kept]), parse_special=True)) + 8 > 160:
            del kept[:2]
        answers.append(llm.chat([kind, *kept], params).text)
        kept.append({"role": "assistant", "content": answers[-1]})
    assert kept[0] != messages[0]
    lines = "".join(message["content"] + "\n" for message in messages)
    args = ("chat", tiny, "-n", 8, "--temp", 0, "-c", 160, "--system", "Be kind.")
    result = gumba(*args, stdin=lines)
    assert (result.code, result.out) == (0, "".join(f"{text}\n" for text in answers))
    assert "gumba: the context is full: 1 old message forgotten\n" in result.err
    too_long = gumba(*args, stdin="x" * 300)
    assert (too_long.code, too_long.out) == (2, "")


def test_chat_with_nothing_to_undo(gumba: Callable, tiny: Path) -> None:
    for line in ("/regen", "/undo"):
        result = gumba("chat", tiny, stdin=line + "\n")
        assert (result.code, result.out) == (2, "")
        assert re.fullmatch(r"gumba: error: there is no (answer|message) yet\n", result.err)


@pytest.mark.skipif(os.name != "posix", reason="terminals are POSIX here")
def test_chat_at_a_terminal(tiny: Path, home: Path) -> None:
    """Ctrl-C stops an answer and keeps the conversation; a message that is too long is refused; Ctrl-D leaves."""
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "gumba", "chat", str(tiny), "--ctx", "256", "--temp", "0"]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    seen, deadline = b"", time.monotonic() + 300

    def wait_for(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], deadline - time.monotonic())[0], (text, seen)
            seen += os.read(master, 65536)
        seen = seen.partition(text)[2]

    try:
        wait_for(b"/help lists the commands")
        wait_for(b"> ")
        os.write(master, b"x" * 600 + b"\n")
        wait_for(b"context")
        wait_for(b"> ")
        os.write(master, b"hello\n")
        wait_for(b"> ")
        os.write(master, b"/stats\n")
        wait_for(b"prompt ")
        wait_for(b"> ")
        os.write(master, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_ctrl_c_at_a_terminal_keeps_the_conversation(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from gumba.cli import chat, reasoning

    shown: list[str] = []

    def show(text: str, style: str = "") -> None:
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat, "show", show)
    monkeypatch.setattr(reasoning, "show", show)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    talk = chat.Talk(llm, SamplingParams(temperature=0))
    assert talk.take("hello")
    whole = llm.chat([{"role": "user", "content": "hello"}], SamplingParams(temperature=0)).text
    kept = talk.conversation.messages[1]["content"]
    assert talk.conversation.messages[0] == {"role": "user", "content": "hello"}
    assert kept and whole.startswith(kept) and len(kept) < len(whole)
    assert talk.take("more")
    assert len(talk.conversation.messages) == 4


# ------------------------------------------------------------------------------------------------------------ bench


def test_bench_json(gumba: Callable, tiny: Path) -> None:
    sizes = ("--prompt", 32, "--gen", 4, "--depth", 40, "--sequences", 3, "--threads", 1, "--repeat", 2)
    result = gumba("bench", tiny, *sizes, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert {name: found[name] for name in ("prompt", "gen", "depth", "sequences", "threads", "repeat")} == {
        "prompt": 32, "gen": 4, "depth": 40, "sequences": 3, "threads": 1, "repeat": 2,
    }  # fmt: skip
    for phase in ("prefill", "decode"):
        assert 0 < found[f"{phase}_min"] <= found[f"{phase}_tokens_per_s"] <= found[f"{phase}_max"]
    assert found["load_s"] > 0 and found["compile_s"] >= 0
    assert found["peak_rss_mb"] is None or 20 < found["peak_rss_mb"] < 10_000


def test_bench_measures_the_reported_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records positions, lengths and outputs of every timed step, with a fake clock."""
    from gumba.bench import benchmark
    from gumba.runner.load import Model

    steps: list[list[tuple[int, int, str]]] = []
    forward = Model.forward

    def watched(self: Model, chunks: list) -> np.ndarray:
        steps.append([(c.position, len(c.tokens), c.outputs) for c in chunks])
        return forward(self, chunks)

    monkeypatch.setattr(Model, "forward", watched)
    monkeypatch.setattr(benchmark.time, "perf_counter", iter(range(1000)).__next__)
    speed = benchmark.measure(tiny, benchmark.Workload(32, 4, depth=40, sequences=3, n_threads=1), repeat=2)
    # every measured span lasts one tick of this clock
    assert (speed.prefill_tokens_per_s, speed.decode_tokens_per_s) == (32, 12)
    assert [step for step in steps if len(step) == 1 and step[0][0] == 40] == [[(40, 32, "last")]] * 3
    decode = [step for step in steps if len(step) == 3]
    assert decode == [[(40 + i, 1, "last")] * 3 for i in range(4)] * 3
    assert sum(1 for step in steps if step == [(0, 40, "none")]) == 3


def test_bench_without_json_is_a_table(gumba: Callable, tiny: Path) -> None:
    result = gumba("bench", tiny, "--prompt", 8, "--gen", 0, "--repeat", 1, "--threads", 1)
    rows = dict(line.split() for line in result.out.splitlines())
    assert float(rows["prefill_tokens_per_s"]) > 0
    assert rows["prefill_min"] == rows["prefill_max"] == rows["prefill_tokens_per_s"]
    assert rows["decode_tokens_per_s"] == rows["decode_min"] == rows["decode_max"] == "-"


def test_bench_beyond_the_context(gumba: Callable, tiny: Path) -> None:
    result = gumba("bench", tiny, "--depth", 4 * tiny_chat.CONTEXT, "--threads", 1)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(
        rf"gumba: error: [^\n]* context of 1536 tokens [^\n]* supports {tiny_chat.CONTEXT}: [^\n]*--prompt[^\n]*\n",
        result.err,
    )


ENCODER = Path(__file__).parent.parent / "data" / "arch_bert.gguf"


def test_bench_of_an_encoder(gumba: Callable) -> None:
    """By default a prompt of its training length, and no decode steps."""
    found = json.loads(gumba("bench", ENCODER, "--repeat", 1, "--threads", 1, "--json").out)
    with GGUFFile(ENCODER) as file:
        assert found["prompt"] == min(512, file.metadata["bert.context_length"])
    assert found["gen"] == 0 and found["decode_tokens_per_s"] is None and found["prefill_tokens_per_s"] > 0
    result = gumba("bench", ENCODER, "--prompt", 8, "--gen", 4)
    assert result.code == 2 and "generates no text: there are no decode steps (--gen 0)" in result.err
    result = gumba("bench", ENCODER, "--prompt", 8, "--depth", 4)
    assert result.code == 2 and "--depth must be 0" in result.err


def test_bench_with_a_short_context(gumba: Callable, tiny: Path) -> None:
    found = json.loads(gumba("bench", tiny, "--repeat", 1, "--threads", 1, "--gen", 1, "--json").out)
    assert (found["prompt"], found["gen"]) == (tiny_chat.CONTEXT, 1)


@pytest.mark.parametrize("command", [("chat",), ("run", "--chat", "-p", "x"), ("run", "-p", "x")])
def test_models_without_generation_are_refused(gumba: Callable, command: tuple[str, ...]) -> None:
    result = gumba(command[0], ENCODER, *command[1:], "--quiet")
    assert (result.code, result.out) == (2, "")
    assert result.err == "gumba: error: bert models are encoders, without logits, and generate no text: use embed\n"


def test_rerankers_and_classifiers_are_for_python(gumba: Callable) -> None:
    result = gumba("chat", ENCODER.with_name("classifier_bert_ranks.gguf"), "--quiet")
    assert result.code == 2 and result.err.endswith("instead of logits; use rerank of LLM, from Python\n")


def test_more_context_than_the_model_was_trained_for(gumba: Callable, tiny: Path) -> None:
    most = tiny_chat.CONTEXT
    result = gumba("run", tiny, "-p", "x", "-c", most + 1)
    said = f"-c/--ctx is {most + 1}: the model supports a context of at most {most} tokens"
    assert result.code == 2 and said in result.err
    result = gumba("run", tiny, "-p", "x" * (most + 9))
    assert result.code == 2 and "-c N" not in result.err and f"supports at most {most} tokens" in result.err
    result = gumba("run", tiny, "-p", "x" * 40, "-c", 20)
    assert result.code == 2 and "ask for more context with -c N" in result.err


def test_a_plot_is_complete_or_absent(
    gumba: Callable, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    picture = tmp_path / "profile.svg"
    picture.write_text("the earlier one")
    monkeypatch.setattr("os.fsync", full)
    result = gumba(
        "bench", tiny, "--profile", "--prompt", 4, "--gen", 0, "--threads", 1, "--repeat", 1, "--plot", picture
    )
    assert (result.code, result.err) == (2, f"gumba: error: {picture} cannot be written: No space left on device\n")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["the earlier one"]


def test_profile(gumba: Callable, tiny: Path, tmp_path: Path) -> None:
    """One table per phase, equal JSON, and a well-formed SVG with every operation."""
    picture = tmp_path / "profile.svg"
    sizes = ("--prompt", 32, "--gen", 4, "--threads", 2, "--repeat", 1)
    result = gumba("bench", tiny, "--profile", *sizes, "--json", "--plot", picture)
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert (found["model"], found["prompt"], found["limits"]["threads"]) == (tiny.name, 32, 2)
    for which in ("one", "all"):
        assert all(rate > 0 for rate in found["limits"][which].values()) and len(found["limits"][which]) == 5
    shown = " ".join(ElementTree.parse(picture).getroot().itertext())
    for name in ("prefill", "decode"):
        phase = found[name]
        parts = sum(op["ms"] for op in phase["operations"])
        assert parts == pytest.approx(phase["operations_ms"], rel=1e-3)
        whole = max(phase["step_ms"], phase["operations_ms"])
        assert phase["overhead_ms"] >= 0 and phase["operations_ms"] + phase["overhead_ms"] == pytest.approx(
            whole, rel=1e-3
        )
        for op in phase["operations"]:
            assert f"{op['name']} {op['shape']}".rstrip() in shown
            assert op["share"] == pytest.approx(op["ms"] / phase["step_ms"], rel=1e-3, abs=1e-6)
        assert f"{name}: " in shown
    table = gumba("bench", tiny, "--profile", *sizes).out
    for name in ("prefill", "decode"):
        for op in found[name]["operations"]:
            assert op["name"] in table
    assert table.count("overhead") == 2 and "memory read, GB/s" in table


@pytest.mark.parametrize("name", ["x", "matmul[q4_1,avx512_bf16]" * 4])
def test_no_text_of_a_plot_is_cut(name: str) -> None:
    """DejaVu Sans, among the widest of the usual fonts, has digits of 0.636 and capitals of up to 0.86 of its size."""
    from gumba.bench.profiler import Limits, OperationTime, Phase, Profile, Rates
    from gumba.cli.profile import plot

    rates = Rates(**{field.name: 123456.0 for field in dataclasses.fields(Rates)})
    op = OperationTime(name, "1x2", 3, 900.0, 0.9, 12345.6, 1234.5, 800.0, "memory")
    phase = Phase("decode", 8, 8, 800.0, 1.5, 900.0, 5, 1.0, 1.0, 1.0, [op])
    assert phase.overhead_ms == 0
    picture = ElementTree.fromstring(plot(Profile(Limits("generic", 2, rates, rates), None, phase), "model.gguf"))
    width = float(picture.attrib["width"])
    texts = [each for each in picture if each.tag.endswith("text")]
    assert len(texts) == 9
    for each in texts:
        length = len(each.text or "") * float(each.attrib["font-size"]) * 0.63
        start = float(each.attrib["x"]) - (length if each.attrib["text-anchor"] == "end" else 0)
        assert start >= 0 and start + length <= width, each.text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--plot", "x.svg"), "--plot draws a profile: give --profile as well"),
        (("--profile", "--plot", "x.png"), "--plot x.png: expected a name that ends in .svg"),
        (("--profile", "--plot", "no/such/folder/x.svg", "--gen", 0, "--prompt", 1), "cannot be written"),
    ],
)
def test_invalid_plots(gumba: Callable, tiny: Path, args: tuple, says: str) -> None:
    result = gumba("bench", tiny, *args, "--repeat", 1)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(rf"gumba: error: [^\n]*{re.escape(says)}[^\n]*\n", result.err)


# ------------------------------------------------------------------------------------------------------- perplexity


def test_perplexity_equals_that_of_the_logits(gumba: Callable, tiny: Path, llm: LLM, tmp_path: Path) -> None:
    text = "hello world, so many letters. " * 20
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    n_ctx = 37
    ids = llm.tokenizer.encode(text)
    scores = []
    for start in range(0, len(ids) - n_ctx + 1, n_ctx):
        window = ids[start : start + n_ctx]
        logits = llm.logits(window).astype(np.float64)
        scores += [
            math.log(np.exp(logits[i] - logits[i].max()).sum()) + logits[i].max() - logits[i][window[i + 1]]
            for i in range(n_ctx // 2, n_ctx - 1)
        ]
    result = gumba("perplexity", tiny, file, "--ctx", n_ctx, "--threads", 1, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(scores)), rel=1e-9)
    assert found["error"] == pytest.approx(found["perplexity"] * np.std(scores) / math.sqrt(len(scores) - 1), rel=1e-6)
    assert (found["scored"], found["windows"], found["tokens"]) == (len(scores), len(ids) // n_ctx, len(ids))
    shown = gumba("perplexity", tiny, file, "--ctx", n_ctx, "--threads", 1).out
    assert shown.startswith(f"perplexity {found['perplexity']:.4f} +/- ")


def test_perplexity_adds_bos_if_the_model_does(tiny: Path, llm: LLM) -> None:
    from gumba.bench import perplexity

    llm.clear_cache()
    ids = llm.tokenizer.encode("hello world, so many letters. " * 5)
    with_bos = list(perplexity.perplexity(llm.model, ids, 16, 1))
    replaced = [1 if i % 16 == 0 else token for i, token in enumerate(ids)]
    assert with_bos == list(perplexity.perplexity(llm.model, replaced, 16))
    assert with_bos != list(perplexity.perplexity(llm.model, ids, 16))


def test_perplexity_of_too_little(gumba: Callable, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("hello " * 10, encoding="utf-8")
    result = gumba("perplexity", tiny, file, "--ctx", 100)
    assert result.code == 2
    assert re.fullmatch(r"gumba: error: [^\n]* has \d+ tokens; --ctx 100 needs at least 200\n", result.err)


@pytest.mark.model
def test_perplexity_of_a_real_model_is_llama_cpps(gumba: Callable, real_model: Path) -> None:
    """tools/llama_peer.py perplexity, on this repository's LICENSE. gumba: 17.65 with float16 pages, 17.68 with float32's, 17.79
    with bfloat16's: which of them is the default depends on the instruction set.
    """
    licence = Path(__file__).parents[2] / "LICENSE"
    found = json.loads(gumba("perplexity", real_model, licence, "--ctx", 256, "--json").out)
    assert found["perplexity"] == pytest.approx(17.7438, rel=0.0075)


def test_advanced_sampling_options(gumba: Callable, tiny: Path, tmp_path: Path) -> None:
    """They reach the sampler: a grammar, a strong penalty, and prompt lookup, which changes nothing."""
    pytest.importorskip("llguidance")
    run = ("run", tiny, "-p", "hello", "-n", 40, "--seed", 3, "--temp", 1.5)
    grammar = tmp_path / "g.gbnf"
    grammar.write_text('root ::= ("yes" | "no") "!"', encoding="utf-8")
    for given in (grammar.read_text(encoding="utf-8"), f"@{grammar}"):
        assert gumba(*run, "--grammar", given).out.strip() in ("yes!", "no!")
    schema = '{"enum": ["a", "b"]}'
    assert gumba(*run, "--json-schema", schema).out.strip() in ('"a"', '"b"')
    plain = gumba(*run).out
    assert gumba(*run, "--lookup", 5).out == plain
    assert gumba(*run, "--presence-penalty", 50, "--repeat-last-n", -1).out != plain
    shifted = gumba(
        "run", tiny, "-p", "hello", "-n", 90, "-c", 32, "--seed", 3, "--context-shift", "--keep", 0, "--json"
    )
    assert json.loads(shifted.out)["finish_reason"] in ("length", "stop")
    wrong = gumba(*run, "--grammar", f"@{tmp_path / 'none'}")
    assert wrong.code == 2 and "cannot be read" in wrong.err
    assert gumba(*run, "--grammar", "root ::= x").code == 2
    assert gumba(*run, "--grammar", "a", "--json-schema", "{}").code == 2


@pytest.mark.parametrize(
    "size, code", [("64M", 0), ("1g", 0), ("900000", 0), ("10", 2), ("2T", 2), ("-1", 2), ("x", 2)]
)
def test_memory_of_the_kv_cache(gumba: Callable, tiny: Path, size: str, code: int) -> None:
    result = gumba("run", tiny, "-p", "hello", "-n", 2, f"--kv-memory={size}")
    assert result.code == code
    if code:
        assert "--kv-memory" in result.err
