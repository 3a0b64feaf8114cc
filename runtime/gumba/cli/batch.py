"""``gumba batch``: answer all requests of a file in batches, and resume an interrupted run."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gumba._version import __version__
from gumba.cli.batch_file import Job, Lines, Results
from gumba.cli.interrupts import Interruptible
from gumba.cli.open_model import compile_seconds, find_model, open_llm
from gumba.cli.options import (
    Commands,
    add_generation,
    add_model,
    add_template,
    command,
    integer,
    sampling_params,
    template_args,
)
from gumba.cli.terminal import count, note, printable
from gumba.errors import EngineError, GumbaError, RequestError, ResourceError
from gumba.openai.batch_lines import Line
from gumba.openai.requests import ChatRequest, CompletionRequest
from gumba.progress import Progress

if TYPE_CHECKING:
    from gumba.llm.llm import LLM
    from gumba.outputs import RequestOutput
    from gumba.sampling_params import SamplingParams
_EXAMPLES = """
gumba batch requests.jsonl -o answers.jsonl model.gguf
gumba batch requests.jsonl -o answers.jsonl model.gguf -n 200 --temp 0 --parallel 64
"""
_DETAILS = """\
Each line of FILE is a request in OpenAI's batch format (/v1/chat/completions or /v1/completions), or an object with
"prompt" or "messages", optionally "id" (or "custom_id") and fields of SamplingParams. Options of the command are
defaults for the lines.
Each line of OUT answers the line of FILE whose number it has; answers are written as they finish. A bad line gets an
error. If OUT has errors only, rerunning the command with corrected requests replaces it.
Results are kept in OUT.part until all are complete: the same command resumes after Ctrl-C, a kill or a crash.

Exit code: 0 if every line was answered, 1 if OUT is complete but has errors, 2 if the run failed, 130 after Ctrl-C.
"""
#: Errors that stop the whole run.
_FATAL = (EngineError, ResourceError)
#: A model file is identified by a hash of this many evenly spread pieces, of this many bytes each.
_PIECES, _PIECE_BYTES = 64, 1 << 20


def add_parser(commands: Commands) -> None:
    """Add ``batch`` to the command line."""
    parser = command(commands, "batch", batch, "answer all requests of a file together", _EXAMPLES)
    parser.description = f"{parser.description}\n\n{_DETAILS}"
    parser.add_argument("file", metavar="FILE", type=Path, help="the requests, one JSON object per line")
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the answers, one per line")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT and discard an earlier run's results")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first line that cannot be answered")
    parser.add_argument(
        "--parallel",
        metavar="N",
        type=integer(1, 4096),
        default=32,
        help="maximum number of requests in a batch (default: 32)",
    )
    add_generation(parser, "maximum number of tokens per answer (default: until the end of text or context)")
    add_template(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print the summary and notices on stderr")


def batch(args: argparse.Namespace) -> int:
    """Run ``gumba batch``."""
    params, variables = sampling_params(args), template_args(args)
    defaults = {name: value for name, value in vars(params).items() if name != "seed"}
    with Lines(args.file) as lines:
        with Progress() as progress:
            survey = lines.survey(lambda done, total: progress("read", done, total))
        path = find_model(args.model, args.revision, quiet=args.quiet)
        args.model, args.revision = str(path), None  # resolve only once: a hub is not queried again
        job: Job = {
            "gumba": __version__,
            "input": {"bytes": survey.n_bytes, "lines": survey.n_lines, "sha256": survey.sha256},
            "model": fingerprint(path),
            "options": {
                "--ctx": args.ctx,
                "--kv-type": args.kv_type,
                "--portable": args.portable,
                "--chat-template": args.chat_template,
                "--template-arg": variables,
                **{k: repr(v) for k, v in defaults.items()},
            },
        }
        chosen = {
            "seed": secrets.randbits(32) if params.seed is None else params.seed,
            "created": int(survey.modified),
        }
        given = {} if params.seed is None else {"seed": params.seed}
        with Results(args.output, args.file, job, chosen, given, overwrite=args.overwrite) as results:
            run = _Run(lines, results, survey.n_requests, defaults, variables, args, path.stem)
            try:
                if results.n_kept < survey.n_requests:
                    llm, _ = open_llm(args, max_sequences=args.parallel)
                    with llm:
                        run.all(llm)
                lines.check_unchanged(survey)
                results.complete()
            except KeyboardInterrupt:
                if not args.quiet:
                    note(f"gumba: stopped with {run.done} of {survey.n_requests} lines done; the same command resumes")
                raise
    if not args.quiet:
        for line in run.summary(args.output):
            note(line)
    return 1 if run.failed else 0


def fingerprint(path: Path) -> str:
    """Identify a model file: a hash of the sizes of its shards, and of pieces spread over them."""
    from gumba.gguf import GGUFFile

    digest = hashlib.sha256()
    with GGUFFile(path) as file:
        shards = [Path(shard) for shard in file.shards]
    for shard in shards:
        with shard.open("rb") as data:
            n_bytes = data.seek(0, 2)
            digest.update(b"%d " % n_bytes)
            step = max(_PIECE_BYTES, n_bytes // _PIECES)
            for start in [*range(0, n_bytes, step), max(0, n_bytes - _PIECE_BYTES)]:
                data.seek(start)
                digest.update(data.read(_PIECE_BYTES))
    return digest.hexdigest()


@dataclass
class _Tally:
    """Counts of this run."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Run:
    """One run over the lines without a result."""

    def __init__(
        self,
        lines: Lines,
        results: Results,
        n_requests: int,
        defaults: dict[str, object],
        variables: dict[str, object],
        args: argparse.Namespace,
        model: str,
    ) -> None:
        self._lines, self._results, self._n_requests, self._defaults = lines, results, n_requests, defaults
        self._variables, self._args, self._model = variables, args, model
        self._tally = _Tally()
        self._first_error = ""
        #: Hashes of the ids of lines, and the first id that occurs twice, with its line.
        self._names: set[int] = set()
        self._twice: tuple[str | int, int] | None = None
        self._began = time.perf_counter()
        self._elapsed = 0.0

    @property
    def done(self) -> int:
        """Lines that have a result."""
        return self._results.n_kept + self._tally.answered + self._tally.failed

    @property
    def failed(self) -> int:
        """Lines whose result is an error, in this run or an earlier one."""
        return self._results.n_kept_errors + self._tally.failed

    def all(self, llm: LLM) -> None:
        """Answer every line without a result."""
        compiled = compile_seconds()
        self._began = time.perf_counter()
        with Progress("lines") as progress, Interruptible():
            asyncio.run(self._answer_all(llm, progress))
        self._elapsed = max(0.0, time.perf_counter() - self._began - (compile_seconds() - compiled))

    async def _answer_all(self, llm: LLM, progress: Progress) -> None:
        """Keep twice as many lines in flight as one batch holds, so that a finished one is replaced at once."""
        window = 2 * self._args.parallel
        running: _Running = {}
        for line, request, params in self._requests():
            task = asyncio.ensure_future(_compute(llm, request, params, self._variables))
            running[task] = line, isinstance(request, ChatRequest)
            if len(running) >= window:
                await self._take(running, llm, progress)
        while running:
            await self._take(running, llm, progress)

    def _requests(self) -> Iterator[tuple[Line, ChatRequest | CompletionRequest, list[SamplingParams]]]:
        """The valid lines without a result; a line that cannot be parsed gets its error here."""
        for number, data in self._lines:
            if self._results.has(number):
                continue
            line = Line(number, data)
            try:
                request = line.parse()
                params = line.sampling_params(request, self._defaults, self._results.seed)
            except GumbaError as error:
                self._fail(line, error)
            else:
                self._note_name(line)
                yield line, request, params

    def _note_name(self, line: Line) -> None:
        if line.name is not None and self._twice is None:
            mark = hash(line.name)
            if mark in self._names:
                self._twice = line.name, line.number
            self._names.add(mark)

    async def _take(self, running: _Running, llm: LLM, progress: Progress) -> None:
        """Wait until at least one line is finished, and write the results of the finished ones."""
        ready, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in ready:
            line, chat = running.pop(task)
            result = task.result()
            if isinstance(result, list):
                self._write(line, result, chat, llm)
            elif isinstance(result, GumbaError) and not isinstance(result, _FATAL):
                self._fail(line, result)
            else:
                raise result
        rate = self._tally.completion_tokens / max(1e-9, time.perf_counter() - self._began)
        progress("batch", self.done, self._n_requests, figure=f"{rate:.0f} tokens/s")

    def _write(self, line: Line, outputs: list[RequestOutput], chat: bool, llm: LLM) -> None:
        created, token_bytes = self._results.created, llm.tokenizer.token_bytes
        self._results.add(
            line.response(outputs, chat=chat, model=self._model, created=created, token_bytes=token_bytes)
        )
        self._tally.answered += 1
        self._tally.prompt_tokens += sum(output.prompt_tokens for output in outputs)
        self._tally.completion_tokens += sum(len(choice.token_ids) for output in outputs for choice in output.outputs)

    def _fail(self, line: Line, error: GumbaError) -> None:
        if self._args.fail_fast:
            raise RequestError(f"{self._args.file}, line {line.number}: {error}") from error
        self._results.add(line.error(error))
        self._first_error = self._first_error or f"line {line.number}: {error}"
        self._tally.failed += 1

    def summary(self, output: Path) -> list[str]:
        """Lines for stderr: counts and speed, the first error, and an id that occurs twice."""
        if not self._n_requests:
            return [f"gumba: {self._args.file} has no requests | {output}"]
        t, kept = self._tally, self._results.n_kept
        parts = [count(t.answered, "request") + f" answered in {self._elapsed:.1f} s"]
        if t.failed:
            parts.append(count(t.failed, "line") + " with an error")
        if kept:
            errors = self._results.n_kept_errors
            parts.append(
                f"{kept} kept from an earlier run" + (f" ({count(errors, 'error')} among them)" if errors else "")
            )
        speed = ""
        if self._elapsed and t.answered:
            speed = (
                f" | prompt {count(t.prompt_tokens, 'token')}, decode {count(t.completion_tokens, 'token')}, "
                f"{t.completion_tokens / self._elapsed:.1f}/s"
            )
        notes = [f"gumba: {', '.join(parts)}{speed} | {output}"]
        if self._first_error:
            notes.append(f"gumba: the first error: {printable(self._first_error)}")
        if self._twice is not None:
            name, number = self._twice
            notes.append(f"gumba: {printable(str(name))[:60]}: more than one line has this id (line {number} again)")
        return notes


async def _compute(
    llm: LLM, request: ChatRequest | CompletionRequest, params: list[SamplingParams], variables: dict[str, object]
) -> list[RequestOutput] | Exception:
    """The answers of a line, or the error. ``variables``: of the chat template, unless the line sets them."""
    try:
        if isinstance(request, ChatRequest):
            variables = {**variables, **request.template_args}
            return [
                await llm.achat(
                    request.messages,
                    params[0],
                    tools=request.tools,
                    reasoning=request.reasoning,
                    template_args=variables,
                )
            ]
        return await llm.agenerate(request.prompts, params)
    except Exception as error:
        return error


#: The lines being computed; True for chat requests.
_Running: TypeAlias = "dict[asyncio.Task[list[RequestOutput] | Exception], tuple[Line, bool]]"
