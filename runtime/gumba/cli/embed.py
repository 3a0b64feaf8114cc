"""``gumba embed``: vectors that stand for texts."""

from __future__ import annotations

import argparse

from gumba.cli.engine import open_llm
from gumba.cli.options import Commands, add_context, add_model, add_threads, command
from gumba.cli.text import argument_text, print_json, read_text
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
        "make vectors that stand for texts (arguments, or lines of a file or of stdin)",
        _EXAMPLES,
    )
    add_model(parser)
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", default=[], help="the texts; without any, the lines of stdin are texts"
    )
    parser.add_argument("-f", "--file", metavar="FILE", help="take the lines of a file as texts; - is stdin")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls", "last", "none"),
        help="which tokens' states make the vector; none: one for each token (default: as the model was trained)",
    )
    parser.add_argument("--no-normalize", action="store_true", help="leave vectors as long as they are")
    parser.add_argument(
        "--prompt",
        metavar="NAME",
        help='put the prompt of that name before every text (`gumba inspect` lists them as gumba.embedding.prompt.NAME); "": '
        "none (default: the one that the file names)",
    )
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts that are too long for the model; otherwise they are an error"
    )
    add_context(parser)
    add_threads(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no notices on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all vectors")


def embed(args: argparse.Namespace) -> int:
    """Carry out ``gumba embed``: one line of numbers per vector."""
    if args.texts and args.file is not None:
        raise RequestError("give texts as arguments or with -f, not both")
    texts = [argument_text(text) for text in args.texts] or read_text(args.file or "-").splitlines()
    if not texts:
        raise RequestError("there are no texts")
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
                message = "it is empty, and this model adds no token of its own to a text"
            raise RequestError(f"{place} {error.index + 1}{source}: {message}") from None
    if args.json:
        print_json({"embeddings": [vector.tolist() for vector in vectors]})
        return 0
    for vector in vectors:
        for row in vector if vector.ndim == 2 else [vector]:
            print(" ".join(f"{number:.7g}" for number in row.tolist()))
    return 0
