"""gumba_convert.export: round trips of converted files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from gumba.errors import ConvertError, GGUFError
from gumba_convert import convert, export
from gumba_convert.checkpoint import shards
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.vocabulary.vocabulary import read_vocabulary
from support.tiny_checkpoints import CONFIG, TEMPLATE, tokenizer, write_checkpoint

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CONFIGS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "head_dim": 32},
    {"attention_bias": True, "mlp_bias": True},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    {"rope_scaling": YARN},
    {"rope_scaling": YARN | {"attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0}},
    {"rope_scaling": LLAMA3, "head_dim": 64, "rope_theta": 500000.0},
    {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64, "high_freq_factor": 6.0}, "head_dim": 64},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: ", ".join(map(str, config)) or "plain")
def test_round_trip(tmp_path: Path, config: dict[str, Any]) -> None:
    tensors = write_checkpoint(tmp_path / "hf", config=config)
    convert(tmp_path / "hf", tmp_path / "a.gguf", type="f32", name="same")
    export(tmp_path / "a.gguf", tmp_path / "back", dtype="float32")
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    for key, value in (CONFIG | {"rope_scaling": None} | config).items():
        if isinstance(value, dict):
            assert back[key] == {k: pytest.approx(v, rel=1e-3) if type(v) is float else v for k, v in value.items()}
        else:
            assert back[key] == value, key
    convert(tmp_path / "back", tmp_path / "b.gguf", type="f32", name="same")
    a, b = (gguf.GGUFReader(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    for tensor, twin in zip(a.tensors, b.tensors, strict=True):
        assert tensor.name == twin.name
        np.testing.assert_allclose(tensor.data, twin.data, rtol=1e-5 if tensor.name == "rope_freqs.weight" else 0)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_0"])
def test_decoded_and_rounded_once(tmp_path: Path, dtype: str, kind: str, type: str) -> None:
    write_checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "a.gguf", type=type)
    report = export(tmp_path / "a.gguf", tmp_path / "back", dtype=dtype)
    tensors = Checkpoint(tmp_path / "back").tensors
    assert {tensor.dtype for tensor in tensors.values()} == {kind}
    assert report.n_tensors == len(tensors) and report.n_bytes == sum(t.n_bytes for t in tensors.values())
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    stored = reader["blk.0.ffn_up.weight"]
    wanted = gguf.quants.dequantize(stored.data, stored.tensor_type)
    stored_as = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[kind]
    tensor = tensors["model.layers.0.mlp.up_proj.weight"]
    found = np.fromfile(tensor.path, stored_as, tensor.n_elements, offset=tensor.start)
    if kind == "BF16":
        bits = wanted.reshape(-1).view(np.uint32).astype(np.uint64)
        np.testing.assert_array_equal(found, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    else:
        np.testing.assert_array_equal(found, wanted.reshape(-1).astype(stored_as))


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = write_checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "a.gguf", type="f32")
    monkeypatch.setattr(shards, "SHARD_BYTES", 60_000)
    report = export(tmp_path / "a.gguf", tmp_path / "back", dtype="float32")
    files = [name for name in report.files if name.endswith(".safetensors")]
    assert len(files) > 2 and all(re.fullmatch(rf"model-\d{{5}}-of-{len(files):05d}\.safetensors", f) for f in files)
    found = {name: values for file in files for name, values in load_file(tmp_path / "back" / file).items()}
    for name, values in tensors.items():
        np.testing.assert_array_equal(found[name], values)
    assert Checkpoint(tmp_path / "back").tensors.keys() == tensors.keys()


def test_tokenizer_round_trip(tmp_path: Path) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    digits = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, tokenizer()["pre_tokenizer"]],
    }
    json_file = tokenizer(post_processor=template, pre_tokenizer=digits)
    write_checkpoint(tmp_path / "hf", files={"tokenizer.json": json_file})
    convert(tmp_path / "hf", tmp_path / "a.gguf")
    export(tmp_path / "a.gguf", tmp_path / "back")
    a, b = (read_vocabulary(Checkpoint(tmp_path / name), CONFIG["vocab_size"]) for name in ("hf", "back"))
    assert (a.tokens, a.merges, a.pre, a.special.ids) == (b.tokens, b.merges, b.pre, b.special.ids)
    assert (a.special.add, a.special.templates) == (b.special.add, b.special.templates)
    assert a.types.tolist() == b.types.tolist()
    back = json.loads((tmp_path / "back" / "tokenizer.json").read_text(encoding="utf-8"))
    assert back["post_processor"]["single"] == template["single"]
    assert back["model"]["vocab"] == json_file["model"]["vocab"]
    config = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["chat_template"]) == (
        "<|im_start|>",
        "<|im_end|>",
        TEMPLATE,
    )


def test_sentencepiece_round_trip(tmp_path: Path) -> None:
    from support.sentencepiece_models import N_PIECES, PIECES, write_sentencepiece

    write_sentencepiece(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "a.gguf")
    export(tmp_path / "a.gguf", tmp_path / "back")
    a, b = (read_vocabulary(Checkpoint(tmp_path / name), N_PIECES + 4) for name in ("hf", "back"))
    assert a.tokens == b.tokens and a.types.tolist() == b.types.tolist() and a.special.ids == b.special.ids
    back = json.loads((tmp_path / "back" / "tokenizer.json").read_text(encoding="utf-8"))
    made = list(dict.fromkeys("".join(pair) for pair in back["model"]["merges"]))
    assert made == [text for text in PIECES if len(text) > 1]  # best score first
    assert ["▁t", "he"] in back["model"]["merges"] and ["t", "h"] not in back["model"]["merges"]
    assert back["post_processor"]["single"][0]["SpecialToken"]["id"] == "<s>"  # GGUF's default for this kind


def change(path: Path, **changes: Any) -> Path:
    """A copy of a GGUF file with other metadata or tensors (None: omitted), written by gguf's writer."""
    reader = gguf.GGUFReader(path)
    out = path.with_name("changed.gguf")
    writer = gguf.GGUFWriter(out, changes.pop("architecture", "llama"))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.pop(name, field.contents())
        if value is not None:
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, value, field.types[0], sub)
    for tensor in reader.tensors:
        if tensor.name in changes and changes.pop(tensor.name) is None:
            continue
        writer.add_tensor(tensor.name, tensor.data)
    for name, value in changes.items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
        else:
            writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


REFUSED = [
    ({"architecture": "gemma"}, "'gemma' models cannot be exported, only files of the architecture llama"),
    ({"tokenizer.ggml.pre": "sunflower"}, "unknown pre-tokenizer 'sunflower'"),
    ({"tokenizer.ggml.pre": "afmoe"}, "'afmoe' has no known form"),
    ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'"),
    ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id is 1000000"),
    ({"tokenizer.ggml.merges": ["a b", "q q"]}, r"merges\[1\]"),
    ({"tokenizer.ggml.token_type": [1, 2]}, "2 token types"),
    ({"llama.rope.dimension_count": 8}, "rope.dimension_count is 8"),
    ({"llama.expert_count": 4}, "expert_count is 4"),
    ({"llama.rope.scaling.type": "longrope"}, "longrope"),
    ({"llama.block_count": 2**31}, "block_count"),
    ({"llama.attention.head_count": 0}, "head_count is 0"),
    ({"blk.1.attn_q.weight": None}, "blk.1.attn_q.weight is missing"),
    ({"blk.1.attn_q_norm.weight": np.ones(16, np.float32)}, "attn_q_norm.weight is unexpected"),
    ({"blk.1.attn_q.bias": np.ones(64, np.float32)}, "blk.0.attn_q.bias is missing"),
    ({"rope_freqs.weight": np.array([1, 5, 1, 1, 1, 1, 1, 8], np.float32)}, "other factors than llama3's"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "a.gguf", type="f32")
    path = change(tmp_path / "a.gguf", **changes)
    with pytest.raises(ConvertError, match=message):
        export(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_bad_arguments(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUX")
    with pytest.raises(GGUFError):
        export(tmp_path / "a.gguf", tmp_path / "back")
    with pytest.raises(ConvertError, match="'float8'; known are"):
        export(tmp_path / "a.gguf", tmp_path / "back", dtype="float8")
