"""Make tests/data/classifier_*.gguf and .npz: tiny random rerankers and classifiers, and their scores in transformers.

    python tools/make_classifier_goldens.py --torch PYTHON

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

from arch_cases import Case
from arch_settings import SIZES
from golden_tokenizers import tokenizer_files
from make_arch_goldens import DATA, build

PAIRS = [("the cat sat on the mat", "a dog ran"), ("is it 7?", "The cat is 7, or 8!"), ("the cat", "the cat")]
HEAD = "ForSequenceClassification"
BERT: dict[str, Any] = {"max_position_embeddings": 96, "pad_token_id": 0, "tie_word_embeddings": True}
LABELS = {0: "contradiction", 1: "entailment", 2: "neutral"}
ROBERTA = BERT | {"max_position_embeddings": 98, "pad_token_id": 1, "type_vocab_size": 1}
MODERN: dict[str, Any] = {"num_hidden_layers": 4, "local_attention": 20, "pad_token_id": 1, "cls_token_id": 0}
#: The prompt of Qwen3-Reranker, as in its model card.
PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: {}\n<Document>: {}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
#: The models, each with its kind of tokenizer. The last one is a language model; its configuration says so.
CASES = [
    (Case("bert_pairs", "Bert", BERT | {"id2label": LABELS}, head=HEAD), "words"),
    (Case("bert_ranks", "Bert", BERT | {"num_labels": 1, "type_vocab_size": 1}, head=HEAD), "words"),
    (Case("roberta", "Roberta", ROBERTA | {"num_labels": 2}, head=HEAD), "roberta"),
    (Case("xlmr", "XLMRoberta", ROBERTA | {"num_labels": 1}, head=HEAD), "pieces"),
    (Case("modern_bert", "ModernBert", MODERN | {"sep_token_id": 2, "id2label": LABELS}, head=HEAD), "roberta"),
    (
        Case(
            "qwen3-reranker",
            "Qwen3",
            {"max_position_embeddings": 1024, "tie_word_embeddings": True, "is_original_qwen3_reranker": True},
        ),
        "yes_no",
    ),
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
        reranks = case.head != HEAD
        for pair in PAIRS:
            texts = (PROMPT.format(*pair),) if reranks else pair
            given = tokenizer(*texts, return_tensors="pt", return_token_type_ids=types and not reranks)
            with torch.no_grad():
                logits = model(**given).logits[0].float().numpy()
            scores.append(logits[-1, tokenizer.convert_tokens_to_ids(["yes", "no"])] if reranks else logits)
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
            path = DATA / f"classifier_{case.name.replace('-', '_')}.gguf"
            convert(folder / case.name, path, type="f32", name="gumba golden")
            path.with_suffix(".npz").write_bytes((folder / f"{case.name}.npz").read_bytes())


if __name__ == "__main__":
    main()
