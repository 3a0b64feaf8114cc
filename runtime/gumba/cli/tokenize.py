"""``gumba tokenize``: show the token ids of a text."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gumba.cli.open_model import find_model, watch_compilation
from gumba.cli.options import Commands, add_model, command
from gumba.cli.terminal import argument_text, print_json, printable, read_text
from gumba.errors import RequestError
from gumba.progress import Progress

if TYPE_CHECKING:
    from gumba.runner.aot import Function

_EXAMPLES = """
gumba tokenize model.gguf "Hello, world"
gumba tokenize model.gguf -f chapter.txt --json
echo -n "<|im_start|>user" | gumba tokenize model.gguf --parse-special
"""


def add_parser(commands: Commands) -> None:
    """Add ``tokenize`` to the command line."""
    parser = command(commands, "tokenize", tokenize, "show the token ids of a text", _EXAMPLES)
    add_model(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", default=[], help="the text (default: stdin)")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the text from a file; - is stdin")
    parser.add_argument("--no-special", action="store_true", help="do not add BOS or EOS")
    parser.add_argument("--parse-special", action="store_true", help="parse special tokens in the text")
    parser.add_argument("--json", action="store_true", help="print one JSON object with ids and pieces")


def tokenize(args: argparse.Namespace) -> int:
    """Run ``gumba tokenize``: one line per token, id and piece."""
    if len(args.texts) > 1:
        raise RequestError("expected one TEXT; quote one that has spaces")
    if args.texts and args.file is not None:
        raise RequestError("give the text as an argument or with -f, not both")
    path = find_model(args.model, args.revision)
    text = argument_text(args.texts[0]) if args.texts and args.texts != ["-"] else read_text(args.file or "-")
    from gumba.gguf import GGUFFile
    from gumba.tokenizer.tokenizer import Tokenizer

    with GGUFFile(path) as file, Progress() as progress:
        if "tokenizer.ggml.merges" in file.metadata:  # merging is compiled code; nothing else here is
            watch_compilation(progress, lambda: _needed(file.metadata))
        tokenizer = Tokenizer.from_gguf(file)
        ids = tokenizer.encode(text, add_special=not args.no_special, parse_special=args.parse_special)
    pieces = [tokenizer.token_bytes(i).decode("utf-8", errors="backslashreplace") for i in ids]
    if args.json:
        print_json({"count": len(ids), "ids": ids, "pieces": pieces})
    else:
        for i, piece in zip(ids, pieces):
            print(f"{i:7d}  {printable(piece)}")
    return 0


def _needed(metadata: Mapping[str, object]) -> list[Function]:
    from gumba.runner.aot import tokenizer_functions

    return [function for function in tokenizer_functions(metadata) if function.is_missing]
