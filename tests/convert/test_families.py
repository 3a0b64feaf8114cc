"""Every family of checkpoints: tensors and metadata against tiny_families.py's tables, and refused settings."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from safetensors.numpy import save_file

from gumba.errors import ConvertError
from gumba.gguf import GGUFFile
from gumba_convert import convert, families
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common import decoder, parallel
from support.family_checkpoints import checkpoint_tensors, read, write
from support.tiny_checkpoints import write_checkpoint
from support.tiny_families import CTX, EXPERTS, FAMILIES, GROUPS, HEADS, LAYERS, STREAMS, F, Family, V, W


def wanted_tensors(family: Family, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        ours: make([tensors[name] for name in ([theirs] if isinstance(theirs, str) else theirs)])
        for ours, (theirs, _, make) in family.tensors().items()
    }


def test_every_family_is_in_the_table() -> None:
    modules = {family.module for family in FAMILIES.values()}
    assert modules == {module.__name__.rpartition(".")[2] for module in families.MODULES}


@pytest.mark.parametrize(
    ("name", "type"), [("llama", "q6_k"), ("bert", "q8_0"), ("modern bert", "q8_0"), ("t5", "q6_k")]
)
def test_the_default_type_of_encoders_is_another(tmp_path: Path, name: str, type: str) -> None:
    write(tmp_path / "hf", FAMILIES[name], checkpoint_tensors(FAMILIES[name]))
    assert convert(tmp_path / "hf", tmp_path / "out.gguf").type == type
    assert convert(tmp_path / "hf", tmp_path / "out.gguf", type="Q4_1").type == "q4_1"


def test_every_architecture_has_a_golden() -> None:
    """tools/make_arch_goldens.py made a file and transformers' results for each."""
    data = Path(__file__).parent.parent / "data"
    found = {}
    for path in sorted(data.glob("arch_*.gguf")):
        assert path.with_suffix(".npz").exists()
        with GGUFFile(path) as file:
            found[path.stem] = file.require("general.architecture", str)
    assert set(found.values()) == {family.architecture for family in FAMILIES.values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    tensors = checkpoint_tensors(family)
    write(tmp_path / "hf", family, tensors)
    wanted = wanted_tensors(family, tensors)
    for chunk in (1 << 20, 50):  # in one piece, and in many that cut through heads and matrices
        monkeypatch.setattr(parallel, "CHUNK", chunk)
        convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
        _, found = read(tmp_path / "out.gguf")
        assert found.keys() == wanted.keys()
        for ours, values in wanted.items():
            assert found[ours].tensor_type == gguf.GGMLQuantizationType.F32
            assert tuple(found[ours].shape[::-1]) == values.shape, ours
            np.testing.assert_array_equal(np.asarray(found[ours].data).reshape(values.shape), values, err_msg=ours)


@pytest.mark.parametrize("name", FAMILIES)
def test_metadata(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    write(tmp_path / "hf", family, checkpoint_tensors(family))
    report = convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
    fields, _ = read(tmp_path / "out.gguf")
    assert report.architecture == fields["general.architecture"] == family.architecture
    sizes = {
        "block_count": LAYERS,
        "context_length": CTX,
        "embedding_length": W,
        "feed_forward_length": family.config.get("intermediate_size", F),
        "attention.head_count": HEADS,
        "attention.head_count_kv": GROUPS if "num_key_value_heads" not in family.without else HEADS,
        "vocab_size": V,
    }
    for key, value in (sizes | family.keys).items():
        found = fields.get(f"{family.architecture}.{key}")
        if isinstance(value, list):
            assert list(found) == value, key
        else:
            assert found == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key


@pytest.mark.parametrize("name", FAMILIES)
def test_wrong_tensors_are_named(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    tensors = checkpoint_tensors(family)
    gone = next(theirs for theirs, *_ in reversed(family.tensors().values()) if theirs)
    gone = gone if isinstance(gone, str) else gone[0]
    del tensors[gone]
    first = next(name for name in tensors if name not in family.spare)
    tensors[first] = np.concatenate([tensors[first], tensors[first]])
    tensors["model.surprise.weight"] = np.zeros(3, np.float32)
    write(tmp_path / "hf", family, tensors)
    with pytest.raises(ConvertError) as caught:
        convert(tmp_path / "hf", tmp_path / "out.gguf")
    message = str(caught.value)
    missing = re.search(r"(\S+) is missing", message)
    assert missing and (gone.endswith(missing[1]) or missing[1].endswith(gone))
    assert "model.surprise.weight is unexpected" in message
    assert re.search(rf"{re.escape(first)} is \[.*\], expected \[", message)


SLIDE = ["sliding_attention", "full_attention"]
REFUSED = [
    ("mixtral", {"num_experts_per_tok": 4}, "num_experts_per_tok is 4, more than the 3 experts"),
    ("mixtral", {"num_local_experts": 1 << 20}, "num_local_experts is 1048576"),
    ("qwen", {"no_bias": False}, "no_bias"),
    ("qwen", {"intermediate_size": 2 * F + 1}, "intermediate_size"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen2", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ("qwen2", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen2", {"is_causal": False}, "is_causal is 'False'"),
    ("gemma2", {"is_causal": False}, "is_causal is 'False'"),
    ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("qwen2moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
    ("qwen2moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
    ("chatglm", {"rmsnorm": False}, "rmsnorm"),
    ("chatglm", {"add_bias_linear": True}, "add_bias_linear"),
    ("glm4", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ("glm4", {"partial_rotary_factor": 0.25}, "head_dim is 4, of which 0.25 are rotated"),
    ("gemma", {"hidden_activation": "gelu"}, "hidden_activation"),
    ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144; with these sizes only 4"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3n", {"altup_active_idx": STREAMS}, "altup_active_idx is 3, but there are 3 streams"),
    ("gemma3n", {"altup_correct_scale": False}, "altup_correct_scale"),
    ("gemma3n", {"attention_bias": True}, "attention_bias"),
    ("gemma3n", {"intermediate_size": [F]}, "intermediate_size is"),
    ("gemma3n", {"activation_sparsity_pattern": [0.5, 1.0]}, "activation_sparsity_pattern is"),
    ("gemma3n", {"altup_active_idx": ""}, "altup_active_idx is '', expected a positive integer"),
    ("gemma3n", {"altup_active_idx": False}, "altup_active_idx is False, expected a positive integer"),
    ("gemma3n", {"rope_parameters": {"full_attention": 5}}, "rope_parameters.full_attention is 5, expected an object"),
    ("gemma3n", {"num_kv_shared_layers": None}, "num_kv_shared_layers is 15: no earlier layer"),
    ("gemma3n", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    ("gemma4", {"attention_bias": True}, "attention_bias"),
    ("gemma4", {"num_kv_shared_layers": 2}, "num_kv_shared_layers is 2: no earlier layer"),
    ("gemma4", {"layer_types": SLIDE}, "num_kv_shared_layers is 1: no earlier layer"),
    ("gemma4_experts", {"layer_types": SLIDE[:1] * 2, "per_layer_config": {}}, "global layers"),
    ("gemma4", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "only proportional is supported"),
    ("gemma4", {"global_head_dim": 7}, "do not fit"),
    ("gemma4_experts", {"per_layer_config": {"0": {"head_dim": 6}}}, "per_layer_config of layer 0"),
    ("gemma4_experts", {"per_layer_config": {"1": {"sliding_window": 6}}}, "per_layer_config of layer 1"),
    ("gemma4_experts", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "plain RoPE"),
    ("gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ("phi2", {"qk_layernorm": True}, "qk_layernorm"),
    ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "long_factor"),
    ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0, -1.0], "short_factor": [1, 1]}}, "long_factor"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ("gptneox", {"hidden_act": "gelu_fast"}, "hidden_act"),
    ("stablelm", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ("falcon 7B", {"alibi": True}, "alibi"),
    ("falcon 7B", {"parallel_attn": False}, "parallel_attn"),
    ("olmo2", {"sliding_window": 40}, "sliding_window"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}, "no_rope_layer_interval"),
    ("exaone4", {"sliding_window_pattern": "LXG"}, "sliding_window_pattern"),
    ("exaone4", {"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "no sliding_window"),
    ("cohere2", {"rotary_pct": 0.5}, "rotary_pct"),
    ("deepseek2", {"topk_method": "group_limited_greedy"}, "topk_method"),
    ("deepseek2", {"first_k_dense_replace": 3}, "first_k_dense_replace"),
    ("deepseek2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7}}, "mscale"),
    ("gpt_oss", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "truncate"),
    ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ("qwen35", {"linear_value_head_dim": 4}, "linear_value_head_dim"),
    ("qwen35", {"linear_num_key_heads": 4}, "linear_num_key_heads is 4"),
    ("qwen35", {"layer_types": ["linear_attention", "sliding_attention"]}, "layer_types"),
    ("command r", {"use_qk_norm": True}, "use_qk_norm"),
    ("seed oss", {"attention_out_bias": True}, "attention_out_bias"),
    ("llama4", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("llama4", {"moe_layers": [0, 1]}, "moe_layers"),
    ("llama4", {"use_qk_norm": False}, "use_qk_norm"),
    ("llama4", {"attn_temperature_tuning": False}, "attn_temperature_tuning"),
    ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
    ("t5", {"decoder_start_token_id": -1}, "decoder_start_token_id"),
    ("t5", {"relative_attention_max_distance": 64}, "relative_attention_max_distance"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("roberta labels", {"pad_token_id": CTX}, "pad_token_id"),
    ("roberta labels", {"id2label": {"0": "no", "2": "yes"}}, "id2label"),
    ("modern bert", {"norm_bias": True}, "norm_bias"),
    ("modern bert", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("modern bert labels", {"classifier_pooling": "max"}, "classifier_pooling"),
    ("jina bert", {"feed_forward_type": "reglu"}, "feed_forward_type"),
    ("jina bert", {"position_embedding_type": "absolute"}, "position_embedding_type"),
    ("jina bert", {"emb_pooler": "cls"}, "emb_pooler"),
    ("jina 3", {"position_embedding_type": "absolute"}, "position_embedding_type"),
    ("lfm2", {"conv_bias": True}, "conv_bias"),
    ("lfm2", {"layer_types": ["conv", "sliding_attention"]}, "layer_types"),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED)
def test_settings_without_a_form_in_gguf_are_refused(
    tmp_path: Path, name: str, config: dict[str, Any], message: str
) -> None:
    write(tmp_path / "hf", FAMILIES[name], checkpoint_tensors(FAMILIES[name]), **config)
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


@pytest.mark.parametrize("tied", [False, True])
def test_a_reranker_keeps_the_rows_of_two_words(tmp_path: Path, tied: bool) -> None:
    """Recognized by the question in its card or template, or by vLLM's key: the head has the rows of yes and no."""
    family = FAMILIES["qwen3"]
    tensors = checkpoint_tensors(family)
    if tied:
        del tensors["lm_head.weight"]
    source = {"is_original_qwen3_reranker": True, "tie_word_embeddings": tied}
    question = "Judge whether the Document meets the requirements based on the Query and the Instruct provided."
    folder = tmp_path / "hf"
    write(folder, family, tensors, **source)
    with pytest.raises(ConvertError, match="yes and no"):
        convert(folder, tmp_path / "out.gguf")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    words = {"yes": vocabulary.pop("Y"), "no": vocabulary.pop("N")}
    vocabulary |= words
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for file, text, config in (
        ("README.md", "", source),
        ("README.md", f"---\nx: y\n---\n# A model\nprefix = '<|im_start|>system\\n{question} Note", {}),
        ("chat_template.jinja", f"<|im_start|>system\n{question}", {}),
    ):
        (folder / file).write_text(text, encoding="utf-8")
        given = family.full_config() | {"tie_word_embeddings": tied} | config
        (folder / "config.json").write_text(json.dumps(given), encoding="utf-8")
        convert(folder, tmp_path / "out.gguf", type="f32")
        (folder / file).unlink()
        fields, found = read(tmp_path / "out.gguf")
        assert "output.weight" not in found
        rows = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
        np.testing.assert_array_equal(found["cls.output.weight"].data, rows[[words["yes"], words["no"]]])
        assert fields["qwen3.pooling_type"] == 4 and list(fields["qwen3.classifier.output_labels"]) == ["yes", "no"]
        assert "{query}" in fields["tokenizer.chat_template.rerank"]


@pytest.mark.parametrize("kind", ["ForCausalLM", "ForSequenceClassification"])
def test_a_reranker_by_name_alone_is_a_warning(tmp_path: Path, kind: str) -> None:
    """Neither the folder's nor the source's name nor a heading makes a model a reranker."""
    family = FAMILIES["qwen3"]
    tensors = checkpoint_tensors(family)
    if kind != "ForCausalLM":
        del tensors["lm_head.weight"]
        tensors["score.weight"] = np.ones((1, W), np.float32)
    folder = tmp_path / "qwen3-reranker"
    write(folder, family, tensors, _name_or_path="Qwen/Qwen3-Reranker-4B", architectures=[f"Qwen3{kind}"], num_labels=1)
    (folder / "README.md").write_text("# Qwen3-Reranker-4B", encoding="utf-8")
    report = convert(folder, tmp_path / "out.gguf", type="f32")
    fields, found = read(tmp_path / "out.gguf")
    assert "tokenizer.chat_template.rerank" not in fields and ("output.weight" in found) == (kind == "ForCausalLM")
    assert any("the model's name is that of a reranker, but no file says so" in each for each in report.warnings)


def test_a_reranker_with_a_head_of_its_own_has_the_same_template(tmp_path: Path) -> None:
    family = FAMILIES["qwen3"]
    tensors = checkpoint_tensors(family)
    del tensors["lm_head.weight"]
    tensors["score.weight"] = np.ones((1, W), np.float32)
    folder = tmp_path / "hf"
    write(folder, family, tensors, architectures=["Qwen3ForSequenceClassification"], num_labels=1)
    (folder / "README.md").write_text(
        "Judge whether the Document meets the requirements based on the Query and the Instruct provided.",
        encoding="utf-8",
    )
    convert(folder, tmp_path / "out.gguf", type="f32")
    fields, found = read(tmp_path / "out.gguf")
    np.testing.assert_array_equal(found["cls.output.weight"].data, tensors["score.weight"])
    assert "{query}" in fields["tokenizer.chat_template.rerank"]
    assert list(fields["qwen3.classifier.output_labels"]) == ["LABEL_0"]


def test_model_type_selects_the_family(tmp_path: Path) -> None:
    family = FAMILIES["qwen3"]
    write(tmp_path / "hf", family, checkpoint_tensors(family), architectures=None, model_type="qwen3")
    assert convert(tmp_path / "hf", tmp_path / "out.gguf").architecture == "qwen3"


@pytest.mark.parametrize(
    ("name", "beginning", "others"),
    [
        ("gemma3", "language_model.model.", ("vision_tower.some.weight", "multi_modal_projector.other.weight")),
        ("gemma3n", "model.language_model.", ("model.vision_tower.a", "model.audio_tower.b", "model.embed_audio.c")),
        ("gemma4", "model.language_model.", ("model.vision_tower.a", "model.audio_tower.b", "model.embed_vision.c")),
    ],
)
def test_a_language_model_in_a_multimodal_one(
    tmp_path: Path, name: str, beginning: str, others: tuple[str, ...]
) -> None:
    family = FAMILIES[name]
    tensors = checkpoint_tensors(family)
    inside = {name.replace("model.", beginning, 1): values for name, values in tensors.items()}
    inside |= dict.fromkeys(others, np.ones((2, 2), np.float32))
    config = {key: value for key, value in family.full_config().items() if key != "architectures"}
    (architecture,) = family.config["architectures"]
    whole = architecture.replace("CausalLM", "ConditionalGeneration")
    outer = {"architectures": [whole], "model_type": name, "text_config": config}
    write_checkpoint(tmp_path / "hf", tensors=inside, files={"config.json": outer})
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
    _, found = read(tmp_path / "out.gguf")
    wanted = wanted_tensors(family, tensors)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name].data).reshape(values.shape), values)


def test_gemma3s_default_pattern_is_not_written(tmp_path: Path) -> None:
    family = FAMILIES["gemma3"]
    write(tmp_path / "hf", family, checkpoint_tensors(family), layer_types=None, sliding_window_pattern=6)
    convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert "gemma3.attention.sliding_window_pattern" not in read(tmp_path / "out.gguf")[0]


def test_gemma4s_suppressed_tokens(tmp_path: Path) -> None:
    family = FAMILIES["gemma4"]
    write(tmp_path / "hf", family, checkpoint_tensors(family), architectures=["Gemma4UnifiedForCausalLM"])
    settings = tmp_path / "hf" / "generation_config.json"
    settings.write_text(json.dumps({"suppress_tokens": [7, V - 1]}), encoding="utf-8")
    convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert list(read(tmp_path / "out.gguf")[0]["tokenizer.ggml.suppress_tokens"]) == [7, V - 1]
    settings.write_text(json.dumps({"suppress_tokens": [V]}), encoding="utf-8")
    with pytest.raises(ConvertError, match="suppress_tokens is"):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


def test_omitted_adapters_are_named(tmp_path: Path) -> None:
    family = FAMILIES["jina 3, adapters"]
    write(tmp_path / "hf", family, checkpoint_tensors(family))
    warnings = convert(tmp_path / "hf", tmp_path / "out.gguf").warnings
    assert any("separation, classification" in warning and "omitted" in warning for warning in warnings)


def test_old_names_of_norms(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    tensors = checkpoint_tensors(family)
    old = {
        re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)): values
        for name, values in tensors.items()
    }
    write(tmp_path / "hf", family, old)
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
    _, found = read(tmp_path / "out.gguf")
    wanted = tensors["bert.encoder.layer.1.output.LayerNorm.bias"]
    np.testing.assert_array_equal(found["blk.1.layer_output_norm.bias"].data, wanted)


def test_baichuan_2_has_an_output_of_unit_rows(tmp_path: Path) -> None:
    from gumba_convert.families.baichuan import unit_rows

    values = np.array([[3, 4], [0, 0], [-1, 0]], np.float32)
    np.testing.assert_allclose(unit_rows(values), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_yarn_of_deepseek_scales_attention(tmp_path: Path) -> None:
    family = FAMILIES["deepseek2"]
    rope = {
        "type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
    }
    write(tmp_path / "hf", family, checkpoint_tensors(family), rope_scaling=rope)
    convert(tmp_path / "hf", tmp_path / "out.gguf")
    fields, _ = read(tmp_path / "out.gguf")
    key = "deepseek2.rope.scaling."
    assert fields[key + "type"] == "yarn" and fields[key + "yarn_log_multiplier"] == pytest.approx(0.07)


def test_mxfp4_is_decoded(tmp_path: Path) -> None:
    """gpt-oss with OpenAI's MXFP4 experts: the file has the values that gguf decodes from the same blocks."""
    family = FAMILIES["gpt_oss"]
    config = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "num_key_value_heads": 1}
    rng = np.random.default_rng(1)
    tensors: dict[str, np.ndarray] = {}
    wide = {W: 32, F: 32, 2 * F: 64}
    for theirs, shape, _ in family.tensors().values():
        names = [theirs] if isinstance(theirs, str) else theirs
        grown = tuple(wide.get(n, n) for n in shape)
        tensors |= {name: rng.standard_normal(grown).astype(np.float32) for name in names if "down_proj" not in name}
    tensors = {name: values for name, values in tensors.items() if not name.endswith("gate_up_proj")}
    codes = {}
    for i in range(LAYERS):
        inner = f"model.layers.{i}.mlp.experts."
        tensors[f"{inner}down_proj_bias"] = rng.standard_normal((EXPERTS, 32)).astype(np.float32)
        for part, n_rows in (("gate_up_proj", 64), ("down_proj", 32)):
            blocks = rng.integers(0, 256, (EXPERTS, n_rows, 1, 16)).astype(np.uint8)
            scales = rng.integers(120, 135, (EXPERTS, n_rows, 1)).astype(np.uint8)
            tensors |= {f"{inner}{part}_blocks": blocks, f"{inner}{part}_scales": scales}
            codes[i, part] = _mxfp4(blocks, scales)
    write(tmp_path / "hf", family, {}, **config, quantization_config={"quant_method": "mxfp4"})
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="f32")
    _, found = read(tmp_path / "out.gguf")
    for i in range(LAYERS):
        for ours, part, turn in (("gate", "gate_up_proj", 0), ("up", "gate_up_proj", 1)):
            np.testing.assert_array_equal(found[f"blk.{i}.ffn_{ours}_exps.weight"].data, codes[i, part][:, turn::2])
        np.testing.assert_array_equal(found[f"blk.{i}.ffn_down_exps.weight"].data, codes[i, "down_proj"])


def _mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Values by the format's definition: sign, two bits of exponent (bias 1), one of fraction, times 2 ** (scale - 127)."""
    result = np.zeros((*scales.shape, 32), np.float32)
    for where in np.ndindex(*scales.shape):
        for i in range(32):
            code = int(blocks[where][i // 2]) >> (4 * (i % 2)) & 15
            exponent, fraction = code >> 1 & 3, code & 1
            size = (1 + fraction / 2) * 2 ** (exponent - 1) if exponent else fraction / 2
            result[(*where, i)] = math.ldexp(-size if code & 8 else size, int(scales[where]) - 127)
    return result.reshape(*scales.shape[:-1], -1)


@pytest.mark.parametrize("name", ["gpt2", "granitemoe", "lfm2", "qwen2moe"])
def test_small_tables_stay_f32(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    write(tmp_path / "hf", family, checkpoint_tensors(family))
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="f16")
    _, found = read(tmp_path / "out.gguf")
    kept = re.compile(r".*(_norm|ffn_gate_inp|ffn_gate_inp_shexp|position_embd|shortconv\.conv)\.weight|.*\.bias")
    for ours, tensor in found.items():
        wanted = "F32" if kept.fullmatch(ours) else "F16"
        assert tensor.tensor_type.name == wanted, ours


def test_experts_are_encoded_like_gguf(tmp_path: Path) -> None:
    family = FAMILIES["granitemoe"]
    tensors = checkpoint_tensors(family)
    wide = {name: np.repeat(values, 2, -1) if values.shape[-1:] == (W,) else values for name, values in tensors.items()}
    wide = {name: values for name, values in wide.items() if ".self_attn" not in name}
    for i in range(LAYERS):
        for part, n_rows in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
            wide[f"model.layers.{i}.self_attn.{part}_proj.weight"] = np.ones((n_rows, 32), np.float32)
        wide[f"model.layers.{i}.block_sparse_moe.output_linear.weight"] = np.ones((EXPERTS, 32, 8), np.float32)
        wide[f"model.layers.{i}.shared_mlp.output_linear.weight"] = np.ones((32, 12), np.float32)
    write(tmp_path / "hf", family, wide, hidden_size=2 * W)
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="q8_0")
    _, found = read(tmp_path / "out.gguf")
    whole = wide["model.layers.1.block_sparse_moe.input_linear.weight"]
    wanted = quantize(np.ascontiguousarray(whole[:, 8:]), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(found["blk.1.ffn_up_exps.weight"].data, wanted)


@pytest.mark.parametrize(("whole", "part", "tied"), [(True, False, True), (False, True, False), (None, True, True)])
def test_the_multimodal_configuration_sets_what_is_tied(
    tmp_path: Path, whole: bool | None, part: bool, tied: bool
) -> None:
    """As transformers ties a vision-language model, regardless of its text_config."""
    config = {"text_config": {"tie_word_embeddings": part}, "tie_word_embeddings": whole}
    write_checkpoint(tmp_path, config=config, tensors={})
    assert decoder.text_config(Checkpoint(tmp_path)).flag("tie_word_embeddings", False) is tied
