"""Make the models that tools/race.py races embeddings with: each as a folder, as ONNX files and as GGUF files.

    python tools/make_embedders.py MINILM OUT --python PYTHON

`MINILM` is sentence-transformers' all-MiniLM-L6-v2, which goes into the race as it is, but with 512 tokens instead of 256. BGE
small and base get their published sizes, random weights and MiniLM's tokenizer: speed depends on none of the numbers. `PYTHON`
has torch, transformers, onnx, onnxscript and onnxruntime; this one has gumba. For each model `OUT` gets NAME, a folder with
model.onnx (float32, fused by onnxruntime's optimizer for BERT) and model_int8.onnx (dynamic quantization of that), and
NAME-q8_0.gguf and NAME-f16.gguf.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

#: hidden size, layers, heads, feed-forward size, pooled token; None: MiniLM as it is.
SHAPES: dict[str, tuple[int, int, int, int, str] | None] = {
    "minilm": None,
    "bge-small": (384, 12, 12, 1536, "cls"),
    "bge-base": (768, 12, 12, 3072, "cls"),
}
TYPES = ("q8_0", "f16")
MAX_TOKENS = 512


def write_folder(source: Path, target: Path, shape: tuple[int, int, int, int, str] | None) -> None:
    """A sentence-transformers folder: ``source`` itself, or a random model of a shape with its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    shutil.copytree(source, target, dirs_exist_ok=True)
    (target / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    )
    if shape is None:
        return
    width, layers, heads, inner, pooled = shape
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        initializer_range=0.05,
    )  # fmt: skip
    BertModel(config).save_pretrained(target)
    pooling = json.loads((target / "1_Pooling" / "config.json").read_text())
    pooling |= {"word_embedding_dimension": width, "pooling_mode_mean_tokens": False}
    pooling["pooling_mode_cls_token"] = pooled == "cls"
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def write_onnx(folder: Path) -> None:
    """``folder``/model.onnx and model_int8.onnx."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModel

    class States(torch.nn.Module):
        """Only the last hidden states."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones((2, 8), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "states"]}
    raw, whole = folder / "raw.onnx", folder / "model.onnx"
    torch.onnx.export(
        States(model), (ids, ids, ids * 0), str(raw), input_names=names, output_names=["states"], dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip
    fused = optimize_model(
        str(raw), model_type="bert", num_heads=model.config.num_attention_heads, hidden_size=model.config.hidden_size
    )
    print(folder.name, fused.get_fused_operator_statistics())
    fused.save_model_to_file(str(whole))
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # what lies between fused operators has no type of its own
    quantize_dynamic(str(whole), str(folder / "model_int8.onnx"), weight_type=QuantType.QInt8, extra_options=options)
    raw.unlink()


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter with torch, transformers, onnx, onnxruntime"
    )
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        folder = options.out / options.stage
        write_folder(options.minilm, folder, SHAPES[options.stage])
        write_onnx(folder)
        return
    from gumba_convert import convert

    options.out.mkdir(parents=True, exist_ok=True)
    for name in SHAPES:
        if not (options.out / name / "model_int8.onnx").exists():
            command = [options.python, __file__, str(options.minilm), str(options.out), "--stage", name]
            subprocess.run(command, check=True)
        for kind in TYPES:
            file = options.out / f"{name}-{kind}.gguf"
            if not file.exists():
                convert(options.out / name, file, type=kind)
                print(file)


if __name__ == "__main__":
    main()
