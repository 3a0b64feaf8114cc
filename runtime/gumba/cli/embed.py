"""``gumba embed``: compute embedding vectors of texts."""

from __future__ import annotations

import argparse

from gumba.cli.open_model import open_llm
from gumba.cli.options import Commands, add_context, add_model, add_threads, command
from gumba.cli.terminal import argument_text, print_json, read_text
from gumba.errors import RequestError

_EXAMPLES = """
gumba embed model.gguf "The cat sat on the mat." "A dog ran."
gumba embed model.gguf --pooling cls -c 512 "The cat sat on the mat."
gumba embed model.gguf -f sentences.txt --json --truncate
gumba embed model.gguf --prompt query "where do cats sleep?"
echo "a line is a text" | gumba embed model.gguf --pooling cls
"""


def add_parser(commands: Commands) -> None:
    """Add ``embed`` to the command line."""
    parser = command(
        commands,
        "embed",
        embed,
        "compute embedding vectors of texts (arguments, or the lines of a file or of stdin)",
        _EXAMPLES,
    )
    add_model(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", default=[], help="the texts (default: the lines of stdin)")
    parser.add_argument("-f", "--file", metavar="FILE", help="embed the lines of a file; - is stdin")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls", "last", "none"),
        help="how to pool the token vectors; none: one vector per token (default: as the model was trained)",
    )
    parser.add_argument("--no-normalize", action="store_true", help="do not scale the vectors to length 1 (L2 norm)")
    parser.add_argument(
        "--prompt",
        metavar="NAME",
        help="prepend the model's prompt of that name to every text (`gumba inspect` lists them as gumba.embedding.prompt.NAME); "
        '"": no prompt (default: the model\'s default prompt)',
    )
    parser.add_argument(
        "--truncate", action="store_true", help="truncate texts that are too long for the model (default: an error)"
    )
    add_context(parser)
    add_threads(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print no notices on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all vectors")


def embed(args: argparse.Namespace) -> int:
    """Run ``gumba embed``: one line of numbers per vector."""
    if args.texts and args.file is not None:
        raise RequestError("give texts as arguments or with -f, not both")
    texts = [argument_text(text) for text in args.texts] or read_text(args.file or "-").splitlines()
    if not texts:
        raise RequestError("no texts: expected TEXT arguments, or lines in the file or on stdin")
    llm, _ = open_llm(args)
    with llm:
        try:
            vectors = llm.embed(
                texts,
                pooling=args.pooling,
                normalize=not args.no_normalize,
                prompt=args.prompt,
                truncate=args.truncate,
            )
        except RequestError as error:
            if error.index is None:
                raise
            place = "text" if args.texts else "line"
            source = "" if args.texts else f" of {'stdin' if args.file in (None, '-') else args.file}"
            message = str(error).removeprefix(f"prompts[{error.index}]: ")
            if not texts[error.index]:
                message = "the text is empty, and this model adds no special tokens to it"
            raise RequestError(f"{place} {error.index + 1}{source}: {message}") from None
    if args.json:
        print_json({"embeddings": [vector.tolist() for vector in vectors]})
        return 0
    for vector in vectors:
        for row in vector if vector.ndim == 2 else [vector]:
            print(" ".join(f"{number:.7g}" for number in row.tolist()))
    return 0
