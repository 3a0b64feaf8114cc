"""Option names of other programs: llama.cpp, ollama, transformers, SWIFT, vLLM, qwen.cpp and chatglm.cpp.

``translate`` rewrites a command line before it is parsed. It replaces another program's name, with underscores or dashes, by
gumba's; drops options for what gumba does anyway; and refuses by name what gumba cannot do. It never touches a command's own
options, and leaves unknown names for the parser to report.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

#: Aliases, with dashes, and the options they stand for; the first of these that the command has is used.
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
#: Aliases of a single command: those of llama-bench.
_NAMES_OF = {
    "bench": {
        "-p": "--prompt", "--n-prompt": "--prompt", "-n": "--gen", "--n-gen": "--gen", "-d": "--depth", "--n-depth": "--depth",
        "-r": "--repeat", "--repetitions": "--repeat",
    },
}  # fmt: skip
#: Options of other programs whose values are positional arguments here.
_PLAIN = {"embed": ("-p",), "tokenize": ("-p", "--prompt"), "perplexity": ("-f", "--file")}
#: Options that take a file; here the option takes @FILE.
_FILES = {"--grammar-file": "--grammar", "-jf": "--json-schema", "--json-schema-file": "--json-schema"}
#: Options that name the model, or the source of a conversion.
_MODELS = (
    "-m", "--model", "-hf", "-hfr", "--hf-repo", "-i", "--input", "--model-id-or-path", "--model-name-or-path", "--model-path",
    "--ckpt-dir",
)  # fmt: skip
#: Flags for what gumba does anyway; ignored.
_FLAGS = (
    "--jinja", "--no-display-prompt", "--no-warmup", "--no-mmap", "--simple-io", "--no-perf",
    "--nowordwrap", "--log-disable", "--trust-remote-code", "--color", "-co", "--verbose", "-v", "--no-escape", "-fa",
    "--flash-attn",
)  # fmt: skip
#: Further flags that are ignored in one command only.
_FLAGS_OF = {"run": ("-st", "--single-turn")}
#: Options that are ignored with any value: batch sizes, placement, the idle timeout of a server.
_WITHOUT_EFFECT = (
    "-b", "--batch-size", "-ub", "--ubatch-size", "--numa", "--poll", "--prio", "--keepalive", "--keep-alive", "--infer-backend",
)  # fmt: skip
#: Flags that stand for an option with a value.
_FLAG_VALUES: dict[str, tuple[str, str]] = {"--hidethinking": ("--reasoning", "hide")}
#: Values that mean the default: no limit of the answer, a random seed, the default number of threads.
_UNSET: dict[str, tuple[str, ...]] = {"-n": ("-1", "-2"), "--seed": ("-1",), "--threads": ("-1",), "-t": ("-1",)}
_BOOLEANS = ("true", "false")
#: Values that may follow a flag; ignored with it.
_VALUES_OF_FLAGS: dict[str, tuple[str, ...]] = {
    "-fa": ("on", "off", "auto", "1", "0", *_BOOLEANS),
    "--flash-attn": ("on", "off", "auto", "1", "0", *_BOOLEANS),
    "--trust-remote-code": _BOOLEANS,
}
#: Options that are ignored with one of these values.
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
_POSITIONS = "the model file sets how positions are computed"
_ESCAPES = "escape sequences in the prompt are not processed; bash writes a line break as $'\\n'"
_GPU = "gumba runs on the CPU only: omit the option, or pass 0"
#: Why an option is refused, and what to do instead.
_REFUSED: dict[str, str] = {
    "-ngl": _GPU,
    "--gpu-layers": _GPU,
    "--n-gpu-layers": _GPU,
    "--num-gpu": _GPU,
    "--device": "gumba runs on the CPU only: omit the option",
    "--num-beams": "beam search is available from Python only: LLM.beam_search",
    "--num-return-sequences": "for several answers use n in a line of gumba batch, or SamplingParams(n=...) from Python",
    "--max-length": "it includes the prompt: set the length of the answer with -n",
    "-tb": "prefill and decode use the same threads: -t",
    "--threads-batch": "prefill and decode use the same threads: -t",
    "-ctk": "keys and values have the same type: --kv-type",
    "-ctv": "keys and values have the same type: --kv-type",
    "--cache-type-k": "keys and values have the same type: --kv-type",
    "--cache-type-v": "keys and values have the same type: --kv-type",
    "--mlock": "gumba cannot lock memory: omit the option",
    "-i": "to chat with a model, use gumba chat",
    "--interactive": "to chat with a model, use gumba chat",
    "--interactive-first": "to chat with a model, use gumba chat",
    "--tiktoken": "the GGUF file contains the vocabulary: omit the option",
    "--model-type": "the model's files state its type: omit the option",
    "--template": "the model file has a chat template; --chat-template sets another",
    "--template-type": "the model file has a chat template; --chat-template sets another",
    "--lora": "gumba does not load adapters: merge it into the checkpoint, then run gumba convert",
    "--adapters": "gumba does not load adapters: merge it into the checkpoint, then run gumba convert",
    "--lora-model-name-or-path": "gumba does not load adapters: merge it into the checkpoint first",
    "--mmproj": "gumba runs only the text part of models",
    "--stream": "answers are always streamed; --json prints one when it is complete",
    "-e": _ESCAPES,
    "--escape": _ESCAPES,
    "-st": "for a single answer, use gumba run MODEL PROMPT",
    "--single-turn": "for a single answer, use gumba run MODEL PROMPT",
    "--format": 'for an answer in JSON, use --json-schema \'{"type": "object"}\'',
    "--think": "for templates that support it, use --template-arg enable_thinking=false",
    "--prompt-cache": "gumba chat saves conversations: /save FILE, /load FILE",
    "--rope-scaling": _POSITIONS,
    "--rope-scale": _POSITIONS,
    "--rope-freq-base": _POSITIONS,
    "--rope-freq-scale": _POSITIONS,
    "--yarn-orig-ctx": _POSITIONS,
    "--override-kv": "metadata is read from the model file only",
    "--log-file": "redirect stderr to a file: 2> FILE",
}
#: Commands of other programs: the one that gumba has, or why it has none.
_COMMANDS: dict[str, str] = {
    **dict.fromkeys(("list", "ls"), "to list models, use gumba pull --list"),
    **dict.fromkeys(("generate", "infer", "cli"), "to generate text, use gumba run"),
    **dict.fromkeys(("serve", "server", "start"), "this version has no HTTP server"),
    **dict.fromkeys(("ps", "stop"), "no server keeps models in memory"),
    "rm": "models are plain files: delete the file whose path gumba pull prints",
    "show": "for metadata and tensors, use gumba inspect",
    **dict.fromkeys(("quantize", "create"), "to convert a checkpoint to GGUF, use gumba convert"),
    "download": "to download a model, use gumba pull",
    "help": "for help, use gumba --help",
    "version": "for the version, use gumba --version",
}


def hint_for_command(given: str) -> str:
    """A hint to append to an error message about the unknown command ``given``, or "" if there is none."""
    if given in _COMMANDS:
        return f"; {_COMMANDS[given]}"
    return f"; did you mean gumba run {given}?" if given.lower().endswith(".gguf") else ""


def translate(argv: Sequence[str], commands: dict[str, argparse.ArgumentParser]) -> list[str]:
    """``argv`` with gumba's own option names. Exits with a message if an option is refused."""
    if not argv or argv[0] not in commands:
        return list(argv)
    command = commands[argv[0]]
    end = list(argv).index("--") if "--" in argv else len(argv)
    words = _Words(command, list(argv[1:end]))
    return [argv[0], *words.translated(), *argv[end:]]


def names_of(command: argparse.ArgumentParser) -> set[str]:
    """All option names that ``command`` accepts, aliases included, except those hidden from its help."""
    own = {name for action in command._actions if action.help != argparse.SUPPRESS for name in action.option_strings}
    return own | {alias for alias, options in _NAMES.items() if own.intersection(options)}


class _Words:
    """Translates the arguments of ``command``."""

    def __init__(self, command: argparse.ArgumentParser, words: list[str]) -> None:
        self._command = command
        self._name = command.prog.rpartition(" ")[2]
        self._own = {name: action for action in command._actions for name in action.option_strings}
        self._positionals = [action.dest for action in command._actions if not action.option_strings]
        self._left = words
        self._models: list[str] = []
        self._plain: list[str] = []
        self._greedy = False

    def translated(self) -> list[str]:
        """The words with gumba's option names; exits with a message if an option is refused."""
        translated: list[str] = []
        while self._left:
            translated += self._next(self._left.pop(0))
        if len(self._models) > 1:
            self._command.error(f"several models: {', '.join(self._models)}")
        if self._greedy:  # regardless of any other temperature on the command line
            translated += ["--temp", "0"]
        if self._model_index() == 0:
            return [*self._models, *translated, *self._plain]
        return [*translated, *self._models, *self._plain]

    def _model_index(self) -> int:
        """The index of the model among the positional arguments; -1 if the command has none."""
        return next((i for i, name in enumerate(self._positionals) if name in ("model", "source")), -1)

    def _next(self, word: str) -> Iterator[str]:
        """Translate ``word``, taking its value from the words that are left."""
        given, equals, value = word.partition("=")
        if not given.startswith("-") or given in ("-", "--"):
            yield word
            return
        if self._name == "convert" and given == "-t" and self._is_type(equals, value):
            yield f"--type{equals}{value}"
            return
        if given in self._own:
            if not self._is_unset(given, equals, value):
                yield word
                yield from [] if equals else self._value_of(given)
            return
        name = "--" + given[2:].replace("_", "-") if given.startswith("--") else given
        names = (name, *_NAMES_OF.get(self._name, {}).get(name, "").split(), *_NAMES.get(name, ()))
        own = next((option for option in names if option in self._own), None)
        if own is not None and self._is_unset(own, equals, value):
            return
        if own is not None:
            yield from [own, value] if equals and not own.startswith("--") else [f"{own}{equals}{value}"]
            yield from [] if equals else self._value_of(own)
        elif name in _FILES and _FILES[name] in self._own:
            yield f"{_FILES[name]}=@{self._value(given, equals, value)}"
        elif name == "--do-sample" and "--temp" in self._own:
            text = value if equals else self._next_if_in(_BOOLEANS) or "true"
            if text.lower() not in _BOOLEANS:
                self._command.error(f"{given}: expected true or false, found {text!r}")
            self._greedy = text.lower() == "false"
        elif name in _MODELS and self._model_index() >= 0 and not (name == "-i" and "source" not in self._positionals):
            self._models.append(self._value(given, equals, value))
        elif name in _PLAIN.get(self._name, ()):
            self._plain.append(self._value(given, equals, value))
        elif name in _FLAG_VALUES and _FLAG_VALUES[name][0] in self._own:
            yield from _FLAG_VALUES[name]
        elif name in (*_FLAGS, *_FLAGS_OF.get(self._name, ())) and self._model_index() >= 0:
            if not equals:
                self._next_if_in(_VALUES_OF_FLAGS.get(name, ()))
        elif name in _WITHOUT_EFFECT and self._model_index() >= 0:
            self._value(given, equals, value)
        elif name in _VALUES and self._model_index() >= 0:
            text = self._value(given, equals, value)
            if text.lower() not in _VALUES[name]:
                self._command.error(f"{given} {text}: {_REFUSED[name]}")
        elif name in _REFUSED:
            self._command.error(f"{given}: {_REFUSED[name]}")
        else:
            yield word

    def _is_unset(self, own: str, equals: str, value: str) -> bool:
        """Whether the value of the option ``own`` means the default; such a value is removed from the words."""
        text = value if equals else self._left[0] if self._left else ""
        if text not in _UNSET.get(own, ()):
            return False
        if not equals:
            self._left.pop(0)
        return True

    def _is_type(self, equals: str, value: str) -> bool:
        """Whether the value of ``-t`` is a type, as in qwen.cpp, and not a number of threads."""
        text = value if equals else self._left[0] if self._left else "0"
        return not text.lstrip("+-").isdigit()

    def _value_of(self, own: str) -> list[str]:
        """The next word if it is the value of gumba's option ``own``: a text that may look like an option of others."""
        return [self._left.pop(0)] if self._own[own].nargs is None and self._left else []

    def _next_if_in(self, words: Sequence[str]) -> str | None:
        """The next word if it is one of ``words``; case is ignored."""
        return self._left.pop(0) if self._left and self._left[0].lower() in words else None

    def _value(self, given: str, equals: str, value: str) -> str:
        if equals:
            return value
        if not self._left:
            self._command.error(f"argument {given}: expected one argument")
        return self._left.pop(0)
