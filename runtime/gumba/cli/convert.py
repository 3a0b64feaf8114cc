"""``gumba convert``: convert a Hugging Face checkpoint to a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path

from gumba.cli.open_model import watch_compilation
from gumba.cli.options import Commands, add_revision, add_threads, command
from gumba.cli.terminal import note, printable
from gumba.errors import ConvertError
from gumba.progress import Progress, size

_EXAMPLES = """
gumba convert ./SmolLM2-135M-Instruct -o smollm2.gguf --type q4_k_m
gumba convert HuggingFaceTB/SmolLM2-135M-Instruct -o smollm2-f16.gguf --type f16
"""


#: ``gumba_convert.quantize.recipe``'s file types and aliases.
TYPES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "q3_k_l",
    "q3_k_m", "q3_k_s", "q2_k", "iq4_nl", "iq4_xs", "mxfp4_moe", "q2_0", "tq2_0", "tq1_0", "q1_0", "q5_k", "q4_k", "q3_k",
)  # fmt: skip


def add_parser(commands: Commands) -> None:
    """Add ``convert`` to the command line."""
    parser = command(commands, "convert", convert, "convert a Hugging Face checkpoint to a GGUF file", _EXAMPLES)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder (config.json, safetensors, tokenizer) or a hub id (owner/name, modelscope:owner/name)",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the GGUF file to write; an existing one is replaced"
    )
    parser.add_argument(
        "--type",
        type=str.lower,
        choices=TYPES,
        metavar="TYPE",
        help="type of the weights, in upper or lower case (default: q6_k, of encoders q8_0): f32, f16, bf16; q8_0, q6_k, q5_1, "
        "q5_0, q4_1, q4_0; the mixtures q5_k_m, q5_k_s, q4_k_m, q4_k_s, iq4_nl, iq4_xs, q3_k_l, q3_k_m, q3_k_s, q2_k with "
        "llama.cpp's choice for each tensor (q5_k, q4_k and q3_k mean those ending in _m); mxfp4_moe for models with experts; "
        "q2_0, tq2_0, tq1_0, q1_0 for models trained with such weights",
    )
    parser.add_argument(
        "--pure",
        action="store_true",
        help="use that type for every matrix, without the exceptions that give some more bits",
    )
    parser.add_argument(
        "--pre-tokenizer",
        metavar="NAME",
        help="name of the pre-tokenizer in GGUF (tokenizer.ggml.pre), for a checkpoint whose own is not recognized",
    )
    add_revision(parser)
    add_threads(parser)


def convert(args: argparse.Namespace) -> int:
    """Run ``gumba convert``."""
    if args.output == "-":
        raise ConvertError("-o -: a GGUF file cannot be written to stdout; name a file")
    out = Path(args.output)
    with Progress() as progress:
        watch_compilation(progress)
        from gumba_convert import convert as convert_checkpoint

        report = convert_checkpoint(
            args.source,
            out,
            type=args.type,
            pure=args.pure,
            pre_tokenizer=args.pre_tokenizer,
            revision=args.revision,
            n_threads=args.threads,
            progress=progress,
        )
    for warning in report.warnings:
        note(f"gumba: warning: {printable(warning)}")
    note(
        f"gumba: {printable(str(out))}: {report.architecture}, {report.n_parameters:,} parameters, {size(report.n_bytes)} "
        f"in {report.seconds:.1f} s"
    )
    return 0
