"""What options are called elsewhere: llama.cpp, ollama, transformers, SWIFT, vLLM, qwen.cpp and chatglm.cpp.

``translate`` rewrites a command line before it is parsed: another name becomes gumba's, with underscores or dashes; what gumba
does anyway is left out; what it cannot do is refused by name. An option that a command has itself is never touched, and a name
without a meaning for the command is left for the parser to complain about.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

#: Other names of options, with dashes. The first of the options named that the command has is meant.
_NAMES: dict[str, tuple[str, ...]] = {
    "--predict": ("-n",),
    "--n-predict": ("-n",),
    "--num-predict": ("-n",),
    "--max-new-tokens": ("-n",),
    "--max-tokens": ("-n",),
    "--ctx-size": ("--ctx",),
    "--num-ctx": ("--ctx",),
    "--max-model-len": ("--ctx",),
    "--max-context-length": ("--ctx",),
    "--temperature": ("--temp",),
    "--repetition-penalty": ("--repeat-penalty",),
    "--typical-p": ("--typical",),
    "--num-threads": ("--threads",),
    "-s": ("--seed",),
    "-r": ("--stop",),
    "--reverse-prompt": ("--stop",),
    "--stop-words": ("--stop",),
    "-sys": ("--system",),
    "--system-prompt": ("--system",),
    "-j": ("--json-schema",),
    "-cnv": ("--chat",),
    "--conversation": ("--chat",),
    "-no-cnv": ("--no-chat",),
    "--no-conversation": ("--no-chat",),
    "--outfile": ("--output",),
    "--save-path": ("--output",),
    "--outtype": ("--type",),
}
#: Other names in one command only: those of llama-bench.
_NAMES_OF = {
    "bench": {
        "-p": "--prompt", "--n-prompt": "--prompt", "-n": "--gen", "--n-gen": "--gen", "-d": "--depth", "--n-depth": "--depth",
        "-r": "--repeat", "--repetitions": "--repeat",
    },
}  # fmt: skip
#: Options whose values are arguments without a name here.
_PLAIN = {"embed": ("-p",), "tokenize": ("-p", "--prompt"), "perplexity": ("-f", "--file")}
#: Options of files whose contents are given here behind an @.
_FILES = {"--grammar-file": "--grammar", "-jf": "--json-schema", "--json-schema-file": "--json-schema"}
#: Options that name the model, or what is converted.
_MODELS = (
    "-m", "--model", "-hf", "-hfr", "--hf-repo", "-i", "--input", "--model-id-or-path", "--model-name-or-path", "--model-path",
    "--ckpt-dir",
)  # fmt: skip
#: Flags of what gumba does anyway.
_FLAGS = (
    "--jinja", "--no-display-prompt", "--no-warmup", "--no-mmap", "--simple-io", "--no-perf",
    "--nowordwrap", "--log-disable", "--trust-remote-code",
)  # fmt: skip
#: Options whose values change nothing here when they are one of these.
_VALUES: dict[str, tuple[str, ...]] = {
    "-ngl": ("0",),
    "--gpu-layers": ("0",),
    "--n-gpu-layers": ("0",),
    "--num-gpu": ("0",),
    "--num-beams": ("1",),
    "--num-return-sequences": ("1",),
    "--stream": ("true",),
    "--device": ("cpu", "none"),
}
_GPU = "gumba computes on the processor: leave it out, or give 0"
#: Why an option cannot be, and what to do.
_REFUSED: dict[str, str] = {
    "-ngl": _GPU,
    "--gpu-layers": _GPU,
    "--n-gpu-layers": _GPU,
    "--num-gpu": _GPU,
    "--device": "gumba computes on the processor: leave it out",
    "--num-beams": "beam search is LLM.beam_search, from Python",
    "--num-return-sequences": "several answers are SamplingParams(n=...), from Python, or n in a line of gumba batch",
    "--max-length": "it counts the prompt too: say with -n how long the answer may be",
    "-tb": "prompts and answers are computed by the same threads: -t",
    "--threads-batch": "prompts and answers are computed by the same threads: -t",
    "-ctk": "keys and values are of one type: --kv-type",
    "-ctv": "keys and values are of one type: --kv-type",
    "--cache-type-k": "keys and values are of one type: --kv-type",
    "--cache-type-v": "keys and values are of one type: --kv-type",
    "--mlock": "gumba does not lock memory",
    "-i": "to talk with a model: gumba chat",
    "--interactive": "to talk with a model: gumba chat",
    "--interactive-first": "to talk with a model: gumba chat",
    "--tiktoken": "the vocabulary is in the GGUF file",
    "--model-type": "the model's files say of what kind it is",
    "--template": "the model's file has its chat template; --chat-template takes another",
    "--template-type": "the model's file has its chat template; --chat-template takes another",
    "--lora": "gumba has no adapters: merge it into the checkpoint, then gumba convert",
    "--adapters": "gumba has no adapters: merge it into the checkpoint, then gumba convert",
    "--lora-model-name-or-path": "gumba has no adapters: merge it into the checkpoint first",
    "--mmproj": "gumba runs the text part of models only",
    "--stream": "answers are always shown as they come; --json shows one at its end",
}


def translate(argv: Sequence[str], commands: dict[str, argparse.ArgumentParser]) -> list[str]:
    """``argv`` in gumba's own words. Exits with a message for an option that is refused."""
    if not argv or argv[0] not in commands:
        return list(argv)
    command = commands[argv[0]]
    end = list(argv).index("--") if "--" in argv else len(argv)
    words = _Words(command, list(argv[1:end]))
    return [argv[0], *words.translated(), *argv[end:]]


def names_of(command: argparse.ArgumentParser) -> set[str]:
    """All names of options that ``command`` takes, other programs' included, but for those that its help keeps quiet about."""
    own = {name for each in command._actions if each.help != argparse.SUPPRESS for name in each.option_strings}
    return own | {name for name, meant in _NAMES.items() if own.intersection(meant)}


class _Words:
    """The words behind the name of ``command``."""

    def __init__(self, command: argparse.ArgumentParser, words: list[str]) -> None:
        self._command = command
        self._name = command.prog.rpartition(" ")[2]
        self._own = {name for action in command._actions for name in action.option_strings}
        self._places = [action.dest for action in command._actions if not action.option_strings]
        self._left = words
        self._models: list[str] = []
        self._plain: list[str] = []

    def translated(self) -> list[str]:
        found: list[str] = []
        while self._left:
            found += self._next(self._left.pop(0))
        if self._place() == 0:
            return [*self._models, *found, *self._plain]
        return [*found, *self._models, *self._plain]

    def _place(self) -> int:
        """The place of the model among the arguments without a name; -1 of a command without one."""
        return next((i for i, name in enumerate(self._places) if name in ("model", "source")), -1)

    def _next(self, word: str) -> Iterator[str]:
        given, equals, value = word.partition("=")
        if not given.startswith("-") or given in ("-", "--"):
            yield word
            return
        if self._name == "convert" and given == "-t" and self._names_a_type(equals, value):
            yield f"--type{equals}{value}"
            return
        if given in self._own:
            yield word
            return
        name = "--" + given[2:].replace("_", "-") if given.startswith("--") else given
        names = (name, *_NAMES_OF.get(self._name, {}).get(name, "").split(), *_NAMES.get(name, ()))
        own = next((each for each in names if each in self._own), None)
        if own is not None:
            yield from [own, value] if equals and not own.startswith("--") else [f"{own}{equals}{value}"]
        elif name in _FILES and _FILES[name] in self._own:
            yield f"{_FILES[name]}=@{self._value(given, equals, value)}"
        elif name == "--do-sample" and "--temp" in self._own:
            said = value if equals else self._left.pop(0) if self._left and _is_bool(self._left[0]) else "true"
            if not _is_bool(said):
                self._command.error(f"{given}: expected true or false, found {said!r}")
            yield from [] if said.lower() == "true" else ["--temp", "0"]
        elif name in _MODELS and self._place() >= 0 and not (name == "-i" and "source" not in self._places):
            self._models.append(self._value(given, equals, value))
        elif name in _PLAIN.get(self._name, ()):
            self._plain.append(self._value(given, equals, value))
        elif name in _FLAGS and self._place() >= 0:
            return
        elif name in _VALUES and self._place() >= 0:
            said = self._value(given, equals, value)
            if said.lower() not in _VALUES[name]:
                self._command.error(f"{given} {said}: {_REFUSED[name]}")
        elif name in _REFUSED:
            self._command.error(f"{given}: {_REFUSED[name]}")
        else:
            yield word

    def _names_a_type(self, equals: str, value: str) -> bool:
        """Whether the value of ``-t`` is one of qwen.cpp's ``-t``, a type, and no number of threads."""
        said = value if equals else self._left[0] if self._left else "0"
        return not said.lstrip("+-").isdigit()

    def _value(self, given: str, equals: str, value: str) -> str:
        if equals:
            return value
        if not self._left:
            self._command.error(f"argument {given}: expected one argument")
        return self._left.pop(0)


def _is_bool(text: str) -> bool:
    return text.lower() in ("true", "false")
