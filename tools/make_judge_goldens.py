"""Make tests/data/judge_*.gguf and .npz: tiny random rerankers and classifiers, and what transformers says of pairs of texts.

    python tools/make_judge_goldens.py --torch PYTHON

`--torch`: an interpreter with torch, transformers and safetensors; this one has gumba. The models are built as those of
make_arch_goldens.py, with tokenizers of the kinds that encoders have; the texts go through the checkpoint's own tokenizer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from arch_cases import SIZES, Case
from judge_tokenizers import tokenizer_files
from make_arch_goldens import DATA, build

PAIRS = [("the cat sat on the mat", "a dog ran"), ("is it 7?", "The cat is 7, or 8!"), ("the cat", "the cat")]
HEAD = "ForSequenceClassification"
BERT: dict[str, Any] = {"max_position_embeddings": 96, "pad_token_id": 0, "tie_word_embeddings": True}
LABELS = {0: "contradiction", 1: "entailment", 2: "neutral"}
ROBERTA = BERT | {"max_position_embeddings": 98, "pad_token_id": 1, "type_vocab_size": 1}
MODERN: dict[str, Any] = {"num_hidden_layers": 4, "local_attention": 20, "pad_token_id": 1, "cls_token_id": 0}
#: The models, each with its kind of tokenizer.
CASES = [
    (Case("bert_pairs", "Bert", BERT | {"id2label": LABELS}, head=HEAD), "words"),
    (Case("bert_ranks", "Bert", BERT | {"num_labels": 1, "type_vocab_size": 1}, head=HEAD), "words"),
    (Case("roberta", "Roberta", ROBERTA | {"num_labels": 2}, head=HEAD), "roberta"),
    (Case("xlmr", "XLMRoberta", ROBERTA | {"num_labels": 1}, head=HEAD), "pieces"),
    (Case("modern_bert", "ModernBert", MODERN | {"sep_token_id": 2, "id2label": LABELS}, head=HEAD), "roberta"),
]


def make_checkpoints(folder: Path) -> None:
    """Write every checkpoint to a folder of its name, and the pairs with their scores beside it."""
    import torch
    from transformers import PreTrainedTokenizerFast

    for case, kind in CASES:
        model = build(case, {})
        model.save_pretrained(folder / case.name)
        for name, content in tokenizer_files(kind, SIZES["vocab_size"]).items():
            (folder / case.name / name).write_text(json.dumps(content), encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / case.name / "tokenizer.json"))
        types, scores = getattr(model.config, "type_vocab_size", 1) > 1, []
        for first, second in PAIRS:
            given = tokenizer(first, second, return_tensors="pt", return_token_type_ids=types)
            with torch.no_grad():
                scores.append(model(**given).logits[0].float().numpy())
        np.savez_compressed(folder / f"{case.name}.npz", pairs=np.array(PAIRS), pair_scores=np.array(scores))


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=sys.executable, help="interpreter with torch and transformers")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        make_checkpoints(arguments.folder)
        return
    from gumba_convert import convert

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([arguments.torch, __file__, "--folder", folder], check=True)
        for case, _ in CASES:
            convert(folder / case.name, DATA / f"judge_{case.name}.gguf", type="f32", name="gumba golden")
            (DATA / f"judge_{case.name}.npz").write_bytes((folder / f"{case.name}.npz").read_bytes())


if __name__ == "__main__":
    main()
