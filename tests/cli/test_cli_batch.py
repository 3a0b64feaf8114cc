"""gumba batch: every line is answered once, as by the library, even if the run is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gumba import LLM, SamplingParams

posix = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    with LLM(tiny) as llm:
        yield llm


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def results(path: Path) -> dict[int, Any]:
    """The results by line number; no number occurs twice."""
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    found = [json.loads(line) for line in lines]
    assert len({each["line"] for each in found}) == len(found)
    return {each["line"]: each for each in found}


def texts(result: dict[str, Any]) -> list[str]:
    choices = result["response"]["body"]["choices"]
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]


def post(name: str, url: str, **body: object) -> dict[str, object]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def test_answers_equal_the_librarys(gumba: Callable, tiny: Path, llm: LLM, requests: Path, out: Path) -> None:
    write(
        requests,
        {"prompt": "hello", "id": 7, "temperature": 0, "max_tokens": 9},
        {"prompt": [262, 263], "top_k": 3, "seed": 5, "repetition_penalty": 1.2},
        {"messages": HI, "id": "é", "seed": 1, "max_tokens": None},
        post("a", CHAT, messages=HI, model="mine", max_completion_tokens=4, n=2, seed=3, user="me", stream=False),
        post("b", TEXT, prompt=["hello", "w"], seed=3, stop=["zz"], min_p=0),
        post("c", TEXT, prompt=[[262], [263, 261]], seed=2**64 - 1, repeat_penalty=1.5, repeat_last_n=9),
        {"custom_id": "d", "prompt": "hello", "temperature": 0, "max_tokens": 9},
        post("e", CHAT, messages=[{"role": "user", "content": [{"type": "text", "text": t} for t in "hi"]}], seed=1),
        {"custom_id": 9, "prompt": "hello", "temperature": 0, "logit_bias": {"5": 1000}, "max_tokens": 3},
    )
    result = gumba("batch", requests, "-o", out, tiny, "-n", 12, "--top-p", 0.9, "--parallel", 3)
    assert (result.code, result.out) == (0, "")
    assert "9 requests answered" in result.err and "tokens, " in result.err and str(out) in result.err
    found = results(out)

    def texts_of(prompts: list[Any], **params: Any) -> list[str]:
        given = SamplingParams(**{"max_tokens": 12, "top_p": 0.9, **params})
        return [each.text for output in llm.generate(prompts, given) for each in output.outputs]

    def chat(**params: Any) -> list[str]:
        return [
            each.text for each in llm.chat(HI, SamplingParams(**{"max_tokens": 12, "top_p": 0.9, **params})).outputs
        ]

    assert texts(found[1]) == texts_of(["hello"], temperature=0, max_tokens=9)
    assert texts(found[2]) == texts_of([[262, 263]], top_k=3, seed=5, repetition_penalty=1.2)
    assert texts(found[3]) == chat(seed=1)
    assert texts(found[4]) == chat(seed=3, n=2, max_tokens=4)
    assert texts(found[5]) == texts_of(["hello", "w"], seed=3, stop="zz", min_p=0)
    assert texts(found[6]) == texts_of([[262], [263, 261]], seed=2**64 - 1, repetition_penalty=1.5, repetition_window=9)
    assert texts(found[7]) == texts(found[1]) and texts(found[8]) == texts(found[3])
    assert texts(found[9]) == texts_of(["hello"], temperature=0, max_tokens=3, logit_bias={5: 1000}) != texts(found[1])
    assert [found[i]["custom_id"] for i in (7, 8, 9)] == ["d", "e", 9]
    assert [found[i].get("id") for i in range(1, 7)] == [7, None, "é", "batch_req_4", "batch_req_5", "batch_req_6"]
    assert [found[i].get("custom_id") for i in range(1, 7)] == [None, None, None, "a", "b", "c"]
    body = found[4]["response"]["body"]
    assert (body["object"], body["model"], found[4]["response"]["status_code"]) == ("chat.completion", "mine", 200)
    n_prompt = llm.chat(HI, SamplingParams(max_tokens=1)).prompt_tokens
    assert body["usage"] == {"prompt_tokens": n_prompt, "completion_tokens": 8, "total_tokens": n_prompt + 8}
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert {choice["finish_reason"] for choice in body["choices"]} <= {"stop", "length"}
    assert (found[5]["response"]["body"]["object"], found[5]["response"]["body"]["model"]) == (
        "text_completion",
        "tiny",
    )
    assert all(each["error"] is None for each in found.values())


def test_results_depend_on_the_seed_and_not_on_parallel(
    gumba: Callable, tiny: Path, requests: Path, tmp_path: Path
) -> None:
    """Equal lines without a seed get different answers, which --seed reproduces in every run."""
    write(requests, *[{"prompt": "hello", "max_tokens": 6 + i % 9} for i in range(60)])
    found = []
    for i, options in enumerate([("--parallel", 1), ("--parallel", 64, "-t", 2), ("--parallel", 7)]):
        out = tmp_path / f"{i}.jsonl"
        assert gumba("batch", requests, "-o", out, tiny, "--temp", 2, "--top-k", 0, "--seed", 5, *options).code == 0
        found.append(sorted(out.read_bytes().splitlines()))
    assert found[0] == found[1] == found[2]
    answers = [texts(json.loads(line))[0] for line in found[0]]
    assert len(set(answers)) > 50
    other = tmp_path / "other.jsonl"
    assert gumba("batch", requests, "-o", other, tiny, "--temp", 2, "--top-k", 0, "--seed", 6).code == 0
    assert sorted(other.read_bytes().splitlines()) != found[0]


BAD: list[tuple[str | bytes, str]] = [
    ("nonsense", "the line is not JSON"),
    ('{"prompt": "x"', "the line is not JSON"),
    ('{"prompt": "x"} {}', "the line is not JSON"),
    (b'{"prompt": "\xff"}', "not UTF-8 text (byte 12)"),
    ("[1, 2]", "no JSON object, but [1, 2]"),
    ("null", "no JSON object, but None"),
    ("[" * 100_000, "nested too deeply"),
    ('{"id": ' + "9" * 5000 + ', "prompt": "x"}', "the line is not JSON"),
    ("{}", "there is no 'prompt' and no 'messages'"),
    ('{"prompt": null}', "there is no 'prompt'"),
    ('{"prompt": "x", "messages": []}', "found both"),
    ('{"prompt": "x", "id": [1]}', "id: expected a string or an integer, found [1]"),
    ('{"prompt": "x", "id": NaN}', "id: expected a string or an integer, found nan"),
    ('{"prompt": 3}', "prompt: expected a text"),
    ('{"prompt": []}', "prompt: expected a text"),
    ('{"prompt": ""}', "prompt: expected at least one token"),
    ('{"prompt": [1, "x"]}', "prompt: expected integer token ids, found 'x'"),
    ('{"prompt": [1, 100000]}', "prompt: expected token ids from 0 to"),
    ('{"prompt": [[]]}', "prompt: expected at least one token"),
    (json.dumps({"prompt": "y" * 300}), "leave no room in the context"),
    ('{"prompt": "\\ud800"}', ""),
    ('{"prompt": "x", "temprature": 1}', "temprature: there is no such parameter"),
    ('{"prompt": "x", "temperature": "hot"}', "temperature: expected a number"),
    ('{"prompt": "x", "temperature": NaN}', "temperature: expected a number"),
    ('{"prompt": "x", "max_tokens": 0}', "max_tokens: expected an integer"),
    ('{"prompt": "x", "max_tokens": 1, "max_completion_tokens": 2}', "max_tokens is said twice"),
    ('{"prompt": "x", "logits_processors": []}', "logits_processors: there is no such parameter"),
    ('{"prompt": "x", "logit_bias": {"x": 1}}', "logit_bias"),
    ('{"prompt": "x", "structured_outputs": {"yaml": "x"}}', "structured_outputs: expected an object with one of"),
    ('{"prompt": "x", "response_format": {"type": "yaml"}}', "response_format: expected"),
    ('{"prompt": "x", "top_logprobs": 3}', "expected logprobs to be true"),
    ('{"prompt": "x", "stream": true}', "stream: a batch does not support it"),
    ('{"messages": "hello"}', "messages: expected a list"),
    ('{"messages": []}', "messages: expected at least one message"),
    ('{"messages": [{"content": "x"}]}', "messages[0]: there is no role"),
    ('{"messages": [{"role": "user"}]}', "messages[0]: there is no content"),
    (
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        "messages[0].content[0]: gumba reads text",
    ),
    ('{"prompt": "x", "custom_id": [1]}', "custom_id: expected a string or an integer, found [1]"),
    ('{"prompt": "x", "custom_id": "a", "id": "b"}', "either a custom_id or an id, found both"),
    ('{"custom_id": "a"}', "there is no 'prompt' and no 'messages'"),
    ('{"prompt": "x", "detokenize": false}', "detokenize: a batch does not support it"),
    ('{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": 1}', "chat_template_kwargs: expected"),
    (
        '{"messages": [{"role": "user", "content": "x"}], "template_args": {}, "chat_template_kwargs": {}}',
        "are the same setting",
    ),
    (json.dumps({**post("q", TEXT, prompt="x"), "custom_id": 3}), "custom_id: expected a string, found 3"),
    (json.dumps({"url": TEXT, "body": {"prompt": "x"}}), "custom_id: expected a string, found None"),
    (json.dumps({**post("q", TEXT, prompt="x"), "method": "GET"}), "method: expected 'POST'"),
    (json.dumps(post("q", "/v1/embeddings", input="x")), "url: expected /v1/chat/completions"),
    (json.dumps({**post("q", TEXT), "body": 1}), "body: expected an object, found 1"),
    (json.dumps({**post("q", TEXT, prompt="x"), "prompt": "x"}), "prompt: not a field of a batch line"),
    (json.dumps(post("q", CHAT, prompt="x")), "there is no 'messages'"),
    (json.dumps(post("q", TEXT, prompt="x", model=3)), "model: expected a string"),
]


def test_bad_lines_get_an_error(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    """Valid lines are before, between and after them; one has no line break, one a byte order mark."""
    good = b'{"prompt": "hello", "max_tokens": 2}'
    lines = [b"\xef\xbb\xbf" + good]
    for bad, _ in BAD:
        lines += [bad if isinstance(bad, bytes) else bad.encode(), b"  "]
    requests.write_bytes(b"\r\n".join([*lines, good]))
    result = gumba("batch", requests, "-o", out, tiny, "-n", 3)
    found = results(out)
    assert result.code == 1
    assert sorted(found) == [1, *range(2, 2 * len(BAD) + 1, 2), 2 * len(BAD) + 2]
    for i, (bad, says) in enumerate(BAD):
        each = found[2 + 2 * i]
        if each["error"] is None:  # what the tokenizer or the template takes; nothing was said of it above
            assert not says, (bad, each)
            continue
        assert each["response"] is None
        assert says in each["error"]["message"], (bad, each)
        assert len(each["error"]["message"]) < 400
    n_bad = sum(each["error"] is not None for each in found.values())
    assert n_bad >= len(BAD) - 2 and f"{n_bad} lines with an error" in result.err
    assert found[1]["error"] is None and found[2 * len(BAD) + 2]["error"] is None
    assert {each["custom_id"] for each in found.values() if "custom_id" in each} == {"q", "a", None}


def test_a_line_that_is_too_long(
    gumba: Callable, tiny: Path, requests: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gumba.cli.batch_file.LINE_LIMIT", 40)
    good = {"prompt": "hello", "max_tokens": 2}
    write(requests, good, {"prompt": "x" * 1000}, good)
    assert gumba("batch", requests, "-o", out, tiny).code == 1
    found = results(out)
    assert found[2]["error"]["message"] == "the line is too long"
    assert found[1]["error"] is None and found[3]["error"] is None


def test_fail_fast(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    write(requests, {"prompt": "hello", "max_tokens": 2}, {"prompt": "x", "top_p": 7}, {"prompt": "hello"})
    result = gumba("batch", requests, "-o", out, tiny, "--fail-fast")
    assert result.code == 2 and f"gumba: error: {requests}, line 2: top_p: expected" in result.err
    assert not out.exists()
    requests.write_text(json.dumps({"prompt": "y" * 300}) + "\n")
    result = gumba("batch", requests, "-o", out, tiny, "--fail-fast", "--overwrite")
    assert result.code == 2 and "line 1: prompt: 300 tokens leave no room" in result.err


def start(*args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "gumba", "batch", *map(str, args)], stderr=subprocess.PIPE)


def wait_for_results(process: subprocess.Popen[bytes], part: Path, n: int) -> None:
    """Wait until a run has written ``n`` results."""
    deadline = time.monotonic() + 240
    while not part.exists() or part.read_bytes().count(b"\n") < n:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


@posix
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_resumes_after_a_signal(gumba: Callable, tiny: Path, requests: Path, out: Path, how: str) -> None:
    """After two interruptions, one within a line, the result equals that of an uninterrupted run byte for byte."""
    lines: list[object] = [{"prompt": f"hello {i}", "max_tokens": 150, "ignore_eos": True} for i in range(120)]
    lines[30] = {"prompt": "x", "top_p": 7}
    lines[31] = post("é", CHAT, messages=HI, max_tokens=5)
    write(requests, *lines)
    whole = out.with_name("whole.jsonl")
    common = (tiny, "--seed", 9, "--temp", 1, "-t", 1)
    assert gumba("batch", requests, "-o", whole, *common).code == 1

    part = out.with_name(out.name + ".part")
    kept = b""
    for n in (10, 40):
        process = start(requests, "-o", out, *common, "--parallel", 4)
        wait_for_results(process, part, n)
        process.send_signal(getattr(signal, how))
        said = process.communicate(timeout=60)[1].decode()
        assert process.returncode == (130 if how == "SIGINT" else -signal.SIGKILL)
        assert not out.exists() and part.read_bytes().startswith(kept)
        if how == "SIGINT":
            assert "of 120 lines done; the same command resumes" in said and "Traceback" not in said
        kept = part.read_bytes()
        kept = kept[: kept.rfind(b"\n") + 1]
        assert n <= kept.count(b"\n") < 120
        part.write_bytes(kept + b'{"line": 119, "response')

    result = gumba("batch", requests, "-o", out, *common)
    n_kept = kept.count(b"\n")
    assert (b"top_p: expected" in kept) == ("error among them" in result.err)
    assert result.code == 1 and f"{n_kept} kept from an earlier run" in result.err
    assert out.read_bytes().startswith(kept)
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert sorted(out.parent.glob("out*")) == [out]


def begin(gumba: Callable, tiny: Path, requests: Path, out: Path, *options: object) -> bytes:
    """Leave the files of a run that was killed after its first result; return that result."""
    write(requests, {"prompt": "hello", "max_tokens": 4}, {"prompt": "hello", "top_p": 3})
    arguments = (requests, "-o", out, tiny, *options)
    assert gumba("batch", *arguments, "--fail-fast").code == 2
    line = b'{"line": 1, "id": null, "response": null, "error": "of the first run"}\n'
    part = out.with_name(out.name + ".part")
    part.write_bytes(line)
    return line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("requests", "the requests have changed"),
        ("model", "the model differs"),
        ("temp", "temperature was 0.8 and is now 0.5"),
        ("ctx", "--ctx was None and is now 64"),
        ("seed", "seed was 3 and is now 4"),
        ("sidecar", "of an unknown job"),
        ("damage", "of an unknown job"),
    ],
)
def test_results_of_another_job_are_refused(
    gumba: Callable, tiny: Path, requests: Path, out: Path, tmp_path: Path, change: str, says: str
) -> None:
    line = begin(gumba, tiny, requests, out, "--seed", 3)
    state = out.with_name(out.name + ".part.json")
    part = out.with_name(out.name + ".part")
    model, options = tiny, ["--seed", 3]
    if change == "requests":
        write(requests, {"prompt": "hellO", "max_tokens": 4}, {"prompt": "hello", "top_p": 3})
    elif change == "model":
        model = tmp_path / "other.gguf"
        model.write_bytes(tiny.read_bytes()[:-4] + b"\0\0\0\0")
    elif change == "sidecar":
        state.unlink()
    elif change == "damage":
        state.write_text("{}")
    else:
        options = {"temp": [*options, "--temp", 0.5], "ctx": [*options, "-c", 64], "seed": ["--seed", 4]}[change]
    result = gumba("batch", requests, "-o", out, model, *options)
    assert result.code == 2 and says in result.err and "--overwrite" in result.err
    assert part.read_bytes() == line and not out.exists()
    assert gumba("batch", requests, "-o", out, model, *options, "--overwrite").code == 1
    assert results(out)[1]["error"] is None
    assert sorted(out.parent.glob("out*")) == [out]


def test_settings_that_may_change_between_runs(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    """The batch size and the number of threads may change; the chosen seed is kept."""
    line = begin(gumba, tiny, requests, out)
    seed = json.loads(out.with_name(out.name + ".part.json").read_text())["chosen"]["seed"]
    result = gumba("batch", requests, "-o", out, tiny, "--parallel", 5, "-t", 2, "--seed", seed)
    assert result.code == 1 and "1 kept from an earlier run (1 error among them)" in result.err
    assert out.read_bytes().startswith(line) and sorted(results(out)) == [1, 2]


@pytest.mark.parametrize(
    "damage",
    [b'{"line": 1}\n', b'{"line": 99}\n', b"\0\0\0\n", b"[]\n", b'{"line": true}\n', b'{"line": 2' + b" " * 9999],
    ids=range(6),
)
def test_damaged_results_are_recomputed(gumba: Callable, tiny: Path, requests: Path, out: Path, damage: bytes) -> None:
    line = begin(gumba, tiny, requests, out)
    out.with_name(out.name + ".part").write_bytes(line + damage)
    assert gumba("batch", requests, "-o", out, tiny).code == 1
    assert out.read_bytes().startswith(line) and sorted(results(out)) == [1, 2]


def test_existing_results_are_not_replaced(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    write(requests, {"prompt": "hello", "max_tokens": 2})
    assert gumba("batch", requests, "-o", out, tiny, "-q") == gumba(
        "batch", requests, "-o", out, tiny, "-q", "--overwrite"
    )
    before = out.read_bytes()
    result = gumba("batch", requests, "-o", out, tiny)
    assert result.code == 2 and "exists already: give --overwrite" in result.err
    assert out.read_bytes() == before and sorted(out.parent.glob("out*")) == [out]
    line = begin(gumba, tiny, requests, out, "--overwrite")  # this run may replace it, and so may the one that goes on
    assert out.read_bytes() == before
    assert gumba("batch", requests, "-o", out, tiny).code == 1
    assert out.read_bytes().startswith(line) and sorted(results(out)) == [1, 2]


def test_complete_results_are_only_renamed(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    line = begin(gumba, tiny, requests, out)
    both = line + line.replace(b"1", b"2")
    out.with_name(out.name + ".part").write_bytes(both)
    assert gumba("batch", requests, "-o", out, tiny).code == 1
    assert out.read_bytes() == both


@posix
def test_two_at_once(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    import fcntl

    write(requests, {"prompt": "hello", "max_tokens": 2})
    with out.with_name(out.name + ".part").open("wb") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        result = gumba("batch", requests, "-o", out, tiny)
        assert result.code == 2 and "another gumba batch is writing it" in result.err
    assert gumba("batch", requests, "-o", out, tiny).code == 0


FULL = """
import resource, sys
from gumba.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@posix
def test_a_full_disk_names_the_file_and_nothing_is_lost(
    gumba: Callable, gumba_process: Callable, tiny: Path, requests: Path, out: Path
) -> None:
    """With files limited to 3000 bytes, a result is written in part, as on a full disk."""
    write(requests, *({"prompt": "hello", "id": i} for i in range(20)))
    command = ["batch", requests, tiny, "-o", out, "-n", 2, "-t", 1, "--seed", 1]
    full = gumba_process(*command, program=["-c", FULL])
    assert full.code == 2 and not out.exists()
    assert full.err.startswith(f"gumba: error: {out}.part cannot be written: ") and full.err.count("\n") == 1
    assert "; the same command resumes where it stopped" in full.err
    again = gumba(*command)
    assert again.code == 0 and "kept from an earlier run" in again.err
    assert len(results(out)) == 20


def test_requests_that_change_while_they_are_read(
    gumba: Callable, tiny: Path, requests: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gumba.cli import batch

    write(requests, {"prompt": "hello", "max_tokens": 2})
    opened = batch.open_llm

    def meanwhile(*args: Any, **options: Any) -> Any:
        write(requests, {"prompt": "hellO", "max_tokens": 2})
        return opened(*args, **options)

    monkeypatch.setattr(batch, "open_llm", meanwhile)
    result = gumba("batch", requests, "-o", out, tiny)
    assert result.code == 2 and "was changed while it was read" in result.err and not out.exists()


def test_an_engine_that_fails_ends_the_run(
    gumba: Callable, tiny: Path, requests: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines must not get its error, which is not their fault."""
    from gumba.errors import EngineError

    async def fail(*args: Any) -> Any:
        raise EngineError("the engine has failed")

    write(requests, *[{"prompt": "hello", "max_tokens": 2}] * 9)
    with monkeypatch.context() as patch:
        patch.setattr(LLM, "agenerate", fail)
        result = gumba("batch", requests, "-o", out, tiny)
        assert (result.code, result.err) == (2, "gumba: error: the engine has failed\n")
    assert gumba("batch", requests, "-o", out, tiny).code == 0
    assert sorted(results(out)) == [*range(1, 10)]


def test_bad_files(gumba: Callable, tiny: Path, requests: Path, out: Path, tmp_path: Path) -> None:
    write(requests, {"prompt": "hello", "max_tokens": 2})
    (tmp_path / "folder").mkdir()
    for args, says in (
        ((tiny, "-o", out), f"{tiny}: expected a JSON object on each line of UTF-8 text, found binary data"),
        ((tmp_path / "none.jsonl", "-o", out), "none.jsonl: no such file"),
        ((tmp_path, "-o", out), "not a plain file"),
        ((requests, "-o", tmp_path / "no" / "out.jsonl"), "there is no folder"),
        ((requests, "-o", tmp_path / "folder", "--overwrite"), "not a plain file"),
        ((requests, "-o", requests, "--overwrite"), "a file of requests"),
    ):
        result = gumba("batch", *args, tiny)
        assert result.code == 2 and says in result.err, (args, result)
    assert len(requests.read_bytes().splitlines()) == 1


def test_no_requests_at_all(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    requests.write_bytes(b"\n \n")
    result = gumba("batch", requests, "-o", out, tiny)
    assert result.code == 0 and f"{requests} has no requests" in result.err
    assert out.read_bytes() == b""


def test_a_file_of_errors_only_is_replaced(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    """The command with corrected requests replaces an OUT without answers; one with an answer is kept."""
    write(requests, *[{"prompt": "hello", "max_tokns": 2}] * 3)
    command = ("batch", requests, "-o", out, tiny)
    result = gumba(*command)
    assert (result.code, result.out) == (1, "") and "3 lines with an error" in result.err
    assert "the first error: line 1: max_tokns: there is no such parameter\n" in result.err
    assert gumba(*command, "-q").code == 1 and len(results(out)) == 3
    write(requests, {"prompt": "hello", "max_tokens": 2}, {"prompt": "hello", "max_tokns": 2})
    result = gumba(*command)
    assert result.code == 1 and "1 request answered" in result.err and "1 line with an error" in result.err
    found = results(out)
    assert found[1]["error"] is None and found[2]["response"] is None
    write(requests, *[{"prompt": "hello", "max_tokens": 2}] * 2)
    result = gumba(*command)
    assert result.code == 2 and "exists already: give --overwrite" in result.err
    assert results(out) == found
    assert gumba(*command, "--overwrite").code == 0
    out.write_text("dear all")
    assert gumba(*command).code == 2 and out.read_text() == "dear all"


def test_duplicate_ids_are_reported(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    line = {"prompt": "hello", "max_tokens": 2}
    write(requests, {**line, "id": "a"}, line, line, {**line, "custom_id": "b"}, {**line, "custom_id": "a"})
    result = gumba("batch", requests, "-o", out, tiny)
    assert result.code == 0 and "gumba: a: more than one line has this id (line 5 again)\n" in result.err
    assert sorted(results(out)) == [1, 2, 3, 4, 5]
    write(requests, {**line, "id": "a"}, line, line, {**line, "id": 1}, {**line, "id": "1"})
    assert "more than one" not in gumba("batch", requests, "-o", out, tiny, "--overwrite").err


def test_a_big_batch_needs_little_memory(gumba: Callable, tiny: Path, requests: Path, out: Path) -> None:
    """At most twice as many requests are alive as are computed at once."""
    from gumba.cli import batch

    alive = most = 0
    compute = batch._compute

    async def counted(*args: Any) -> Any:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        try:
            return await compute(*args)
        finally:
            alive -= 1

    write(requests, *[{"prompt": f"hello {i}", "max_tokens": 1 + i % 3} for i in range(600)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_compute", counted)
        assert gumba("batch", requests, "-o", out, tiny, "--parallel", 16).code == 0
    assert sorted(results(out)) == [*range(1, 601)]
    assert 17 <= most <= 32


def test_progress_on_a_terminal(gumba: Callable, tiny: Path, requests: Path, out: Path, monkeypatch: Any) -> None:
    import io

    from gumba import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    write(requests, *[{"prompt": "hello", "max_tokens": 2}] * 3)
    monkeypatch.setattr(progress, "_INTERVAL_S", 0)
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert gumba("batch", requests, "-o", out, tiny).code == 0
    assert "3 of 3" in terminal.getvalue() and "tokens/s" in terminal.getvalue()
