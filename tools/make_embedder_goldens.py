"""Make tests/data/embedder_*.gguf and .npz: tiny random models of sentence-transformers, and the vectors that it gives.

    python tools/make_embedder_goldens.py --torch PYTHON

`--torch`: an interpreter with torch and sentence-transformers; this one has gumba. The models are built as those of
make_arch_goldens.py, saved with prompts, a pooling and a longest text, and loaded again by sentence-transformers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arch_cases import Case
from arch_settings import DISTIL, SIZES
from golden_tokenizers import tokenizer_files
from make_arch_goldens import DATA, build

TEXTS = ["the cat", "The dog ran on 7 mats, and 8 cats sat.", "a", "", "the mat the mat the mat the dog"]
PROMPTS = {"query": "find the cat: ", "document": "dog ", "none": ""}
BERT: dict[str, Any] = {"max_position_embeddings": 96, "pad_token_id": 0}


@dataclass(frozen=True)
class Embedder:
    """`settings` of the pooling; `longest` text in tokens; `side` where longer ones are cut."""

    case: Case
    tokenizer: str
    settings: dict[str, Any]
    longest: int
    default: str | None = None
    side: str = "right"
    files: dict[str, Any] = field(default_factory=dict)


EMBEDDERS = [
    Embedder(
        Case("bert", "Bert", BERT, head="Model"),
        "words",
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        13,
    ),
    Embedder(
        Case("distilbert", "DistilBert", DISTIL, head="Model"),
        "words",
        {"pooling_mode_cls_token": True, "include_prompt": False},
        12,
        "document",
        "left",
    ),
    Embedder(
        Case("mpnet", "MPNet", {"max_position_embeddings": 98, "pad_token_id": 1}, head="Model"),
        "mpnet",
        {"pooling_mode": "mean", "embedding_dimension": SIZES["hidden_size"]},
        14,
        "query",
        files={"truncate_dim": 24},
    ),
]


def write_checkpoint(each: Embedder, folder: Path) -> None:
    """The folder as sentence-transformers has it."""
    build(each.case, {}).save_pretrained(folder)
    files = tokenizer_files(each.tokenizer, SIZES["vocab_size"])
    files["tokenizer_config.json"] |= {"tokenizer_class": "PreTrainedTokenizerFast", "truncation_side": each.side}
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    files["modules.json"] = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    files["sentence_bert_config.json"] = {"max_seq_length": each.longest, "do_lower_case": False}
    prompts = {"prompts": PROMPTS, "default_prompt_name": each.default}
    files["config_sentence_transformers.json"] = prompts | each.files
    files["1_Pooling/config.json"] = each.settings | {"word_embedding_dimension": SIZES["hidden_size"]}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    (folder / "2_Normalize").mkdir(exist_ok=True)


def make_checkpoints(folder: Path) -> None:
    """Write every checkpoint to a folder of its name, and its vectors with each prompt beside it."""
    from sentence_transformers import SentenceTransformer

    for each in EMBEDDERS:
        write_checkpoint(each, folder / each.case.name)
        model = SentenceTransformer(str(folder / each.case.name), device="cpu")
        found = {name: model.encode(TEXTS, prompt_name=name, normalize_embeddings=True) for name in PROMPTS}
        found["default"] = model.encode(TEXTS, normalize_embeddings=True)
        lengths = [len(model.tokenizer(text)["input_ids"]) for text in TEXTS]
        print(each.case.name, "tokens:", lengths, "at most", each.longest)
        np.savez_compressed(folder / f"{each.case.name}.npz", **found)


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=sys.executable, help="interpreter with torch and sentence-transformers")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        make_checkpoints(arguments.folder)
        return
    from gumba_convert import convert

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([arguments.torch, __file__, "--folder", folder], check=True)
        for each in EMBEDDERS:
            path = DATA / f"embedder_{each.case.name}.gguf"
            for warning in convert(folder / each.case.name, path, type="f32", name="gumba golden").warnings:
                print(f"{each.case.name}: {warning}")
            path.with_suffix(".npz").write_bytes((folder / f"{each.case.name}.npz").read_bytes())


if __name__ == "__main__":
    main()
