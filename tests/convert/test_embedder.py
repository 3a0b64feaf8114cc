"""Settings of sentence-transformers' files: followed, refused by name, or mentioned in a warning.

The right values are those of sentence-transformers 6.2: several poolings are concatenated, no pooling mode means the mean, a
default prompt is put before every text, and a model without max_seq_length is limited by its tokenizer's model_max_length.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gumba import Tokenizer
from gumba.errors import ConvertError
from gumba_convert import convert
from support.family_checkpoints import checkpoint_tensors, read, write
from support.tiny_families import CTX, FAMILIES, W

TRANSFORMER = ("", "sentence_transformers.models.Transformer", None)
POOLING = ("1_Pooling", "sentence_transformers.models.Pooling", {"pooling_mode_mean_tokens": True})
IDENTITY = "torch.nn.modules.linear.Identity"
Entries = list[tuple[Any, str, dict[str, Any] | None]]


def embedder(folder: Path, modules: Entries | None = None, *, name: str = "bert", **files: dict[str, Any]) -> Path:
    """A checkpoint with modules (path, type, config.json), and further files by the first letters of their names."""
    write(folder, FAMILIES[name], checkpoint_tensors(FAMILIES[name]))
    listed = [TRANSFORMER, POOLING] if modules is None else modules
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind, _) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(entries), encoding="utf-8")
    for path, _, config in listed:
        if config is not None:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = {
        "settings": "config_sentence_transformers.json",
        "bert": "sentence_bert_config.json",
        "roberta": "sentence_roberta_config.json",
    }
    for short, content in files.items():
        (folder / names[short]).write_text(json.dumps(content), encoding="utf-8")
    return folder


def converted(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metadata of the converted file, and the warnings."""
    out = folder.parent / f"{folder.name}.gguf"
    report = convert(folder, out)
    return read(out)[0], report.warnings


def own(metadata: dict[str, Any]) -> dict[str, Any]:
    """gumba's own keys without their prefix."""
    start = "gumba.embedding."
    return {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode": "lasttoken", "embedding_dimension": W}, 3),
        ({"pooling_mode": ["cls"], "pooling_mode_mean_tokens": True}, 2),
        ({"word_embedding_dimension": W}, 1),
        ({}, 1),
        ({"pooling_mode_max_tokens": True, "include_prompt": True}, "pooling is by max; only by one of mean, cls or"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "is by cls and mean; only"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "is by cls and max; only"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "is by mean_sqrt_len_tokens; only"),
        ({"pooling_mode_weightedmean_tokens": True}, "is by weightedmean; only"),
        ({"pooling_mode": ["mean", "max"]}, "is by mean and max; only"),
        ({"pooling_mode": "max"}, "pooling is by max; only"),
        ({"pooling_mode_mean_tokens": False}, "pooling is by nothing; only"),
        ({"pooling_mode_mean_tokens": 1}, "pooling_mode_mean_tokens is 1, expected true or false"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_new": True}, "pooling_mode_new is True, which is not"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": "no"}, "include_prompt is 'no', expected true or"),
        (None, "no folder '1_Pooling'"),
    ],
)
def test_pooling(tmp_path: Path, config: dict[str, Any] | None, wanted: int | str) -> None:
    folder = embedder(tmp_path / "hf", [TRANSFORMER, ("1_Pooling", POOLING[1], config)])
    if isinstance(wanted, str):
        with pytest.raises(ConvertError, match=wanted):
            convert(folder, tmp_path / "out.gguf")
    else:
        metadata, warnings = converted(folder)
        assert metadata["bert.pooling_type"] == wanted and not own(metadata) and not warnings


@pytest.mark.parametrize("path", ["../outside", "/etc", 7])
def test_pooling_folder_stays_inside(tmp_path: Path, path: Any) -> None:
    folder = embedder(tmp_path / "hf", [TRANSFORMER, (path, POOLING[1], None)])
    with pytest.raises(ConvertError, match=r"not a plain file name|no folder"):
        convert(folder, tmp_path / "out.gguf")


def module(kind: str, config: dict[str, Any] | None = None, package: str = "sentence_transformers.models") -> Any:
    return (f"2_{kind}", f"{package}.{kind}", config)


@pytest.mark.parametrize(
    "kind",
    ["LayerNorm", "CNN", "LSTM", "WordWeights", "BoW", "WordEmbeddings", "WeightedLayerPooling", "Router", "Asym",
     "StaticEmbedding", "CLIPModel", "SpladePooling", "LogitScore"],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 1, 2])
def test_unsupported_modules(tmp_path: Path, kind: str, place: int) -> None:
    modules = [TRANSFORMER, POOLING]
    modules.insert(place, module(kind, {}))
    with pytest.raises(ConvertError, match=rf"module {place}, sentence_transformers\.models\.{kind}, is not supported"):
        convert(embedder(tmp_path / "hf", modules), tmp_path / "out.gguf")


def test_modules_without_effect(tmp_path: Path) -> None:
    """Dropout, and the normalization that embed does by default; both classes have had two names."""
    new = "sentence_transformers.sentence_transformer.modules.pooling"
    modules = [
        ("", "sentence_transformers.base.modules.transformer.Transformer", None),
        module("Dropout", {"dropout": 0.2}),
        ("1_Pooling", f"{new}.Pooling", {"pooling_mode": "mean", "embedding_dimension": W, "include_prompt": True}),
        (
            "3_Normalize",
            "sentence_transformers.base.modules.normalize.Normalize",
            {"module_input_name": "sentence_embedding"},
        ),
    ]
    metadata, warnings = converted(embedder(tmp_path / "hf", modules))
    assert metadata["bert.pooling_type"] == 1 and not own(metadata) and not warnings


def test_modules_without_a_pooling_cause_a_warning(tmp_path: Path) -> None:
    metadata, (warning,) = converted(embedder(tmp_path / "hf", [TRANSFORMER]))
    assert "bert.pooling_type" not in metadata and "modules.json has no Pooling" in warning


def test_a_reranker_of_sentence_transformers(tmp_path: Path) -> None:
    """Its score uses the words yes and no; others are refused. It has neither pooling nor prompts."""
    score = {"true_token_id": 7, "false_token_id": 8, "module_input_name": "causal_logits"}
    modules = [
        TRANSFORMER,
        ("1_LogitScore", "sentence_transformers.cross_encoder.modules.logit_score.LogitScore", score),
    ]
    settings = {"model_type": "CrossEncoder", "prompts": {"web": "Given a query"}, "default_prompt_name": "web"}
    task = {"transformer_task": "text-generation"}
    folder = embedder(tmp_path / "hf", modules, name="qwen3", settings=settings, bert=task)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {"yes": vocabulary.pop("Y"), "no": vocabulary.pop("N")}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ConvertError, match=r"true_token_id is '7'; only \d+ is supported"):
        convert(folder, tmp_path / "out.gguf")
    score |= {"true_token_id": vocabulary["yes"], "false_token_id": vocabulary["no"]}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(score), encoding="utf-8")
    metadata, warnings = converted(folder)
    assert metadata["qwen3.pooling_type"] == 4 and not own(metadata)
    assert [warning for warning in warnings if "prompts" in warning]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([TRANSFORMER, module("Normalize"), POOLING], "module 2, .*Pooling, is in the wrong order"),
        ([TRANSFORMER, POOLING, POOLING], "module 2, .*Pooling, is in the wrong order"),
        ([TRANSFORMER, TRANSFORMER, POOLING], "module 1, .*Transformer, is in the wrong order"),
        ([POOLING], "module 0, .*Pooling, is in the wrong order"),
        (
            [TRANSFORMER, POOLING, module("Normalize", {"module_input_name": "token_embeddings"})],
            "module_input_name is",
        ),
        ([TRANSFORMER, module("Pooling", {}, "custom_st")], "module 1, custom_st.Pooling, is not supported"),
    ],
)
def test_modules_in_another_order(tmp_path: Path, modules: Entries, message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(embedder(tmp_path / "hf", modules), tmp_path / "out.gguf")


def test_old_layout(tmp_path: Path) -> None:
    """The checkpoint in a subfolder, with prompts and modules outside: the same file."""
    settings = {"prompts": {"query": "query: "}}
    new = converted(embedder(tmp_path / "model", settings=settings, bert={"max_seq_length": 20}))
    old = tmp_path / "old" / "model"
    embedder(old, [("0_Transformer", *TRANSFORMER[1:]), POOLING], settings=settings, bert={"max_seq_length": 20})
    kept = {"modules.json", "1_Pooling", "config_sentence_transformers.json"}
    moved = [path for path in old.iterdir() if path.name not in kept]
    with pytest.raises(ConvertError, match="no folder '0_Transformer', though"):
        convert(old, tmp_path / "out.gguf")
    (old / "0_Transformer").mkdir()
    for path in moved:
        path.rename(old / "0_Transformer" / path.name)
    assert converted(old) == new
    assert (tmp_path / "model.gguf").read_bytes() == (tmp_path / "old" / "model.gguf").read_bytes()


@pytest.mark.parametrize("text", ["{", "{}", '["x"]', '[{"path": ""}]', "[" * 100000])
def test_malformed_modules(tmp_path: Path, text: str) -> None:
    folder = embedder(tmp_path / "hf")
    (folder / "modules.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConvertError, match=r"modules\.json: (not valid JSON|expected a list|module 0 is)"):
        convert(folder, tmp_path / "out.gguf")


def test_a_custom_class(tmp_path: Path) -> None:
    modules = [("", "custom_st.Transformer", None), POOLING]
    _, warnings = converted(embedder(tmp_path / "hf", modules))
    assert any("custom_st.Transformer" in warning and "not run" in warning for warning in warnings)


def test_prompts(tmp_path: Path) -> None:
    prompts = {"query": "query: ", "document": "", "a.b": None, "質問": "質問: "}
    settings = {
        "prompts": prompts,
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 8,
        "extra": 1,
    }
    modules = [TRANSFORMER, ("1_Pooling", POOLING[1], {"pooling_mode_mean_tokens": True, "include_prompt": False})]
    metadata, warnings = converted(embedder(tmp_path / "hf", modules, settings=settings))
    assert own(metadata) == {f"prompt.{name}": text or "" for name, text in prompts.items()} | {
        "default_prompt": "query",
        "include_prompt": False,
        "dimensions": 8,
    }
    for words in (
        "prompt 'query' ('query: ')",
        "include_prompt",
        "truncate_dim",
        "similarity is 'dot'",
        "extra unknown",
    ):
        assert any(words in warning for warning in warnings), words


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"default_prompt_name": "query"},
            "default_prompt_name is 'query', expected one of the prompts: there are none",
        ),
        ({"prompts": {"a": "x", "b": "y"}, "default_prompt_name": "c"}, "expected one of the prompts: a, b"),
        ({"prompts": ["query"]}, "prompts is .*expected at most 1000 texts by name"),
        ({"prompts": {"query": 7}}, "prompts has 'query': '7', expected a text"),
        ({"prompts": {"q\0": "x"}}, "expected a text by a short name"),
        ({"prompts": {"q" * 201: "x"}}, "expected a text by a short name"),
        ({"prompts": {"q\ud800": "x"}}, "expected a text by a short name"),
        ({"prompts": {"q": "x\udfff"}}, "expected a text by a short name"),
        ({"prompts": {str(i): "x" for i in range(1001)}}, "expected at most 1000 texts"),
        ({"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'"),
        ({"truncate_dim": 0}, "truncate_dim is 0"),
    ],
)
def test_invalid_prompts(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(embedder(tmp_path / "hf", settings=settings), tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("file", "tokenizer", "wanted"),
    [
        ({"bert": {"max_seq_length": 20, "do_lower_case": False}}, {"model_max_length": 30}, 20),
        ({"roberta": {"max_seq_length": 20}}, {}, 20),
        ({"bert": {}, "roberta": {"max_seq_length": 21}}, {}, 21),
        ({"bert": {"max_seq_length": CTX}}, {"model_max_length": 30}, None),
        ({"bert": {"max_seq_length": 10**30}}, {"model_max_length": 30}, None),
        ({}, {"model_max_length": 30.0}, 30),
        ({"bert": {"max_seq_length": None}}, {"model_max_length": 30}, 30),
        ({}, {"model_max_length": 10**30}, None),
        ({}, {}, None),
    ],
)
def test_longest_text(tmp_path: Path, file: dict[str, Any], tokenizer: dict[str, Any], wanted: int | None) -> None:
    folder = embedder(tmp_path / "hf", **file)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | tokenizer), encoding="utf-8")
    assert own(converted(folder)[0]) == ({} if wanted is None else {"max_seq_length": wanted})


def test_truncation_side(tmp_path: Path) -> None:
    folder = embedder(tmp_path / "hf")
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("{", '{"truncation_side": "left", ', 1), encoding="utf-8")
    assert own(converted(folder)[0]) == {"truncation_side": "left"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_seq_length": 0}, "max_seq_length is 0"),
        ({"max_seq_length": "128"}, "max_seq_length is '128'"),
        ({"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        (
            {"modality_config": {"text": {"method": "get_text_features", "method_output_name": "pooler_output"}}},
            "modality",
        ),
        ({"modality_config": {"message": {"method": "forward"}}}, "modality_config is"),
        ({"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs is"),
        ({"tokenizer_args": {"add_special_tokens": False}}, "tokenizer_args.add_special_tokens is False, which is not"),
        ({"model_args": {"torch_dtype": "float16", "head": 2}}, "model_args.head is 2, which is not"),
        ({"prefix": "query: "}, "prefix is query: , which is not"),
    ],
)
def test_settings_of_the_transformer(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        convert(embedder(tmp_path / "hf", bert=settings), tmp_path / "out.gguf")


def test_lower_case(tmp_path: Path) -> None:
    """A Lowercase step is added before the tokenizer's normalizers unless it has one, as in sentence-transformers."""
    folder = embedder(tmp_path / "hf", bert={"do_lower_case": True})
    out = tmp_path / "out.gguf"
    assert any("Lowercase" in warning for warning in convert(folder, out).warnings)
    tokenizer = Tokenizer.from_gguf(out)
    assert tokenizer.encode("ABC ÄÖ") == tokenizer.encode("abc äö")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\na\n", encoding="utf-8")
    assert converted(folder)[0]["tokenizer.ggml.normalizer.lowercase"] is True
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    with pytest.raises(ConvertError, match="do_lower_case is True; only false is supported without"):
        convert(folder, out)


def test_settings_without_effect(tmp_path: Path) -> None:
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "unpad_inputs": False,
        "model_args": {"attn_implementation": "sdpa", "torch_dtype": "float16"},
        "processing_kwargs": {},
        "cache_dir": None,
    }
    metadata, warnings = converted(embedder(tmp_path / "hf", bert=settings))
    assert not own(metadata) and not warnings


def write_projections(folder: Path, *shapes: tuple[int, int], **changes: Any) -> list[np.ndarray]:
    """sentence-transformers' modules of mean pooling and projections; returns their matrices."""
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    matrices: list[np.ndarray] = []
    for i, (rows, columns) in enumerate(shapes, 2):
        part = folder / f"{i}_Dense"
        part.mkdir()
        settings = {
            "in_features": columns,
            "out_features": rows,
            "bias": False,
            "activation_function": IDENTITY,
        } | changes
        (part / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        matrices.append(np.random.default_rng(i).standard_normal((rows, columns)).astype(np.float32))
        save_file({"linear.weight": matrices[-1]}, part / "model.safetensors")
        modules.append({"idx": i, "path": part.name, "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    return matrices


def test_projections_after_the_pooling(tmp_path: Path) -> None:
    family = FAMILIES["gemma embeds"]
    write(tmp_path / "hf", family, checkpoint_tensors(family))
    matrices = write_projections(tmp_path / "hf", (48, W), (W, 48))
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
    fields, found = read(tmp_path / "out.gguf")
    for i, matrix in enumerate(matrices, 2):
        np.testing.assert_array_equal(found[f"dense_{i}.weight"].data, matrix)
        sizes = [fields[f"gemma-embedding.dense_{i}_feat_{side}"] for side in ("out", "in")]
        assert tuple(sizes) == matrix.shape


@pytest.mark.parametrize(
    ("name", "shapes", "changes", "message"),
    [
        ("gemma embeds", [(48, W)], {}, "expected two projections"),
        ("gemma embeds", [(48, W), (24, 48)], {}, "expected two projections"),
        ("gemma embeds", [(48, W), (W, 48)], {"bias": True}, "bias"),
        ("gemma embeds", [(48, W), (W, 48)], {"activation_function": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ("gemma embeds", [(48, W), (W, 48)], {"activation_function": None}, "activation_function is 'torch.*Tanh'"),
        ("gemma embeds", [(48, W), (W, 48)], {"bias": None}, "bias is 'True'"),
        ("gemma embeds", [(48, W), (W, 48)], {"use_residual": True}, "use_residual is 'True'"),
        ("gemma embeds", [(48, W), (W, 48)], {"scale": 2}, "scale is 2, which is not"),
        ("gemma embeds", [(48, W), (W, 48)], {"out_features": 40}, "expected"),
        ("bert", [(48, W), (W, 48)], {}, "not supported in this family"),
    ],
)
def test_other_projections_are_refused(
    tmp_path: Path, name: str, shapes: list[tuple[int, int]], changes: dict[str, Any], message: str
) -> None:
    write(tmp_path / "hf", FAMILIES[name], checkpoint_tensors(FAMILIES[name]))
    write_projections(tmp_path / "hf", *shapes, **changes)
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "hf", tmp_path / "out.gguf")
