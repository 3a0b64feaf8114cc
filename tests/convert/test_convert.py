"""gumba_convert.convert against plain NumPy and gguf's own reader and quantizers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from gumba import quants
from gumba.errors import ConvertError, ResourceError
from gumba_convert import convert
from gumba_convert.common import parallel
from gumba_convert.quantize.recipe import FILE_TYPES, fallback
from support.tiny_checkpoints import CONFIG, TEMPLATE, VOCAB, expected, weights, write_checkpoint, write_safetensors

Types = gguf.GGMLQuantizationType


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors as gguf's reader sees them."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def run(
    tmp_path: Path, type: str = "f32", pure: bool = False, **checkpoint: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    write_checkpoint(tmp_path / "hf", **checkpoint)
    convert(tmp_path / "hf", tmp_path / "out.gguf", type=type, pure=pure)
    return read(tmp_path / "out.gguf")


@pytest.mark.parametrize("kind", ["text", "empty", "short", "device", "link"])
def test_a_target_that_is_not_gguf_is_kept(tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path / "hf")
    out = kept = tmp_path / "thesis.txt"
    kept.write_bytes({"empty": b"", "short": b"GGU"}.get(kind, b"three years of work"))
    if kind == "device":
        out = Path(os.devnull)
    elif kind == "link":
        out = tmp_path / "link.gguf"
        out.symlink_to(kept)
    before = kept.read_bytes()
    with pytest.raises(ConvertError, match="exists and is not a GGUF file"):
        convert(tmp_path / "hf", out)
    assert kept.read_bytes() == before and (kind != "link" or out.is_symlink())


def test_a_gguf_file_is_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    out = tmp_path / "out.gguf"
    out.write_bytes(b"GGUF and what was there")
    report = convert(tmp_path / "hf", out)
    assert out.stat().st_size == report.n_bytes


@pytest.mark.parametrize("place", ["hf/model.gguf", "hf/below/model.gguf", "hf/../hf/new.gguf", "link/model.gguf"])
def test_nothing_is_written_into_the_source(tmp_path: Path, place: str) -> None:
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "below").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "hf", target_is_directory=True)
    before = sorted((tmp_path / "hf").rglob("*"))
    with pytest.raises(ConvertError, match="inside the source folder"):
        convert(tmp_path / "hf", tmp_path / place)
    assert sorted((tmp_path / "hf").rglob("*")) == before


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": True, "head_dim": 32},
        {"attention_bias": True, "mlp_bias": True},
        {"architectures": ["MistralForCausalLM"], "sliding_window": None, "num_key_value_heads": 1},
    ],
    ids=["plain", "tied, wide heads", "biases", "mistral"],
)
def test_every_tensor_is_written(tmp_path: Path, dtype: str, config: dict[str, Any]) -> None:
    full = CONFIG | config
    tensors = weights(full)
    if dtype == "F16":
        tensors = {name: values.astype(np.float16).astype(np.float32) for name, values in tensors.items()}
    _, found = run(tmp_path, config=config, tensors=tensors, dtype=dtype)
    wanted = expected(full, tensors)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].tensor_type == Types.F32
        np.testing.assert_array_equal(np.asarray(found[name].data).reshape(values.shape), values, err_msg=name)


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_encoded_like_gguf(tmp_path: Path, type: str) -> None:
    tensors = weights(CONFIG)
    _, found = run(tmp_path, type=type, pure=True, tensors=tensors)
    kind = Types[type.upper()]
    for name, values in expected(CONFIG, tensors).items():
        if values.ndim == 1:
            assert found[name].tensor_type == Types.F32
            np.testing.assert_array_equal(found[name].data, values)
        else:
            assert found[name].tensor_type == kind, name
            np.testing.assert_array_equal(
                np.asarray(found[name].data).view(np.uint8).reshape(-1),
                quantize(values, kind).view(np.uint8).reshape(-1),
                err_msg=name,
            )


def test_q6_k_output_is_close(tmp_path: Path) -> None:
    config = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    tensors = weights(CONFIG | config)
    _, found = run(tmp_path, type="q4_0", config=config, tensors=tensors)
    output = found["output.weight"]
    assert output.tensor_type == Types.Q6_K
    error = dequantize(output.data, Types.Q6_K) - tensors["lm_head.weight"]
    assert np.sqrt(np.mean(error**2)) < 0.03
    assert found["token_embd.weight"].tensor_type == Types.Q4_0


def test_mixture(tmp_path: Path) -> None:
    """Types as llama.cpp gives them, decoded by gguf-py to about the weights; upper case is the same."""
    config = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    tensors = weights(CONFIG | config)
    fields, found = run(tmp_path, type="Q4_K_M", config=config, tensors=tensors)
    assert fields["general.file_type"] == 15
    for name, values in expected(CONFIG | config, tensors).items():
        if values.ndim > 1:
            more = name in ("output.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight")  # layer 1 of 2 is the last
            kind = Types.Q6_K if more else Types.Q4_K
            assert found[name].tensor_type == kind, name
            error = dequantize(found[name].data, kind) - values
            assert np.sqrt(np.mean(error**2)) < (0.03 if kind == Types.Q6_K else 0.1) * values.std(), name


def test_metadata(tmp_path: Path) -> None:
    fields, _ = run(tmp_path, type="q8_0", files={"generation_config.json": {"temperature": 0.5, "top_k": 7}})
    n_rows = CONFIG["vocab_size"]
    wanted = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "general.sampling.temp": pytest.approx(0.5),
        "general.sampling.top_k": 7,
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 50000.0,
        "llama.vocab_size": n_rows,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*VOCAB, *(f"[PAD{i}]" for i in range(n_rows - 3, n_rows))],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (n_rows - 6) + [5] * 3,
        "tokenizer.ggml.merges": ["a b", "ab c", "Ġ t"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {key: fields.get(key) for key in wanted} == wanted
    assert "llama.attention.key_length" not in fields
    assert not any(key.startswith("llama.rope.scaling") for key in fields)


def test_head_dim_independent_of_the_width(tmp_path: Path) -> None:
    fields, _ = run(tmp_path, config={"head_dim": 32})
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    assert [fields[f"llama.{key}"] for key in keys] == [32, 32, 32]


def test_name_of_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "out.gguf", name="Ada")
    assert read(tmp_path / "out.gguf")[0]["general.name"] == "Ada"


ROPE = [
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"type": "linear", "factor": 4.0}),
    ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0}}, {"type": "linear", "factor": 4.0}),
    (
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "attention_factor": 1.5,
                "beta_fast": 16,
                "beta_slow": 2.0,
            }
        },
        {
            "type": "yarn",
            "factor": 4.0,
            "original_context_length": 32,
            "attn_factor": pytest.approx(1.5 / (0.1 * math.log(4.0) + 1)),
            "yarn_beta_fast": 16.0,
            "yarn_beta_slow": 2.0,
        },
    ),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {}),
]


@pytest.mark.parametrize(("config", "wanted"), ROPE)
def test_rope_scaling(tmp_path: Path, config: dict[str, Any], wanted: dict[str, Any]) -> None:
    fields, _ = run(tmp_path, config=config)
    prefix = "llama.rope.scaling."
    assert {key.removeprefix(prefix): fields[key] for key in fields if key.startswith(prefix)} == wanted
    assert fields["llama.rope.freq_base"] == (7.0 if "rope_parameters" in config else 50000.0)


def test_llama3_frequency_factors(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    _, found = run(tmp_path, config={"rope_scaling": rope, "head_dim": 32})
    factors = []
    for k in range(16):
        wavelength = 2 * math.pi * 50000.0 ** (2 * k / 32)
        if wavelength < 32 / 4:
            factors.append(1.0)
        elif wavelength > 32 / 1:
            factors.append(8.0)
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 8 + smooth))
    assert 1.0 < sorted(set(factors))[1] < 8.0  # one of the smoothed kind, at least
    np.testing.assert_allclose(found["rope_freqs.weight"].data, factors, rtol=1e-6)


def test_shards_give_the_same_file(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path / "one")
    write_checkpoint(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        write_safetensors(tmp_path / "two" / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for folder in ("one", "two"):
        convert(tmp_path / folder, tmp_path / f"{folder}.gguf", name="same")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_threads_and_pieces_do_not_change_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "hf", config={"attention_bias": True})
    convert(tmp_path / "hf", tmp_path / "a.gguf", type="q4_0", n_threads=1)
    monkeypatch.setattr(parallel, "CHUNK", 130)
    convert(tmp_path / "hf", tmp_path / "b.gguf", type="q4_0", n_threads=5)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_progress_ends_at_the_file_size(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    seen: list[tuple[str, int, int]] = []
    report = convert(tmp_path / "hf", tmp_path / "a.gguf", progress=lambda *step: seen.append(step))
    size = (tmp_path / "a.gguf").stat().st_size
    assert seen[-1] == ("convert", size, size)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert (report.n_bytes, report.n_tensors, report.formats) == (size, 21, {"q8_0": 16, "f32": 5})


def test_tied_checkpoint_with_a_copy(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    _, found = run(tmp_path, config={"tie_word_embeddings": True}, tensors=tensors)
    assert "output.weight" not in found


BAD_VALUES = [("F32", np.nan), ("F32", np.inf), ("F16", -np.inf), ("BF16", np.nan)]


@pytest.mark.parametrize(("dtype", "value"), BAD_VALUES)
@pytest.mark.parametrize("type", ["f32", "bf16", "q4_0"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_not_finite(tmp_path: Path, dtype: str, value: float, type: str, name: str) -> None:
    tensors = weights(CONFIG)
    tensors[name].reshape(-1)[33] = value
    write_checkpoint(tmp_path / "hf", tensors=tensors, dtype=dtype)
    with pytest.raises(ConvertError, match=rf"model\.safetensors: tensor '{name}'.*finite"):
        convert(tmp_path / "hf", tmp_path / "out.gguf", type=type)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_too_large_for_the_type(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    tensors["lm_head.weight"][5, 5] = 1e30
    write_checkpoint(tmp_path / "hf", tensors=tensors)
    convert(tmp_path / "hf", tmp_path / "out.gguf", type="bf16")
    for type in ("f16", "q8_0", "q4_0"):
        with pytest.raises(ConvertError, match=r"lm_head\.weight.*too large"):
            convert(tmp_path / "hf", tmp_path / "out.gguf", type=type)


REFUSED = [
    ({"architectures": ["NoSuchLMHeadModel"]}, r"config\.json: NoSuchLMHeadModel is not supported; .* lists what is$"),
    ({"architectures": None, "model_type": "mamba"}, "model_type mamba without architectures is not supported; docs/"),
    ({"architectures": None, "model_type": None}, "architectures None is not supported; docs/"),
    ({"architectures": [1, 2]}, r"architectures \[1, 2\] is not supported; docs/"),
    ({"hidden_act": "gelu"}, "hidden_act.*gelu"),
    (
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"quantization_config names a quantization \(gptq\): use the checkpoint with full weights$",
    ),
    ({"quantization_config": "awq"}, r"names a quantization \(awq\)"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"sliding_window": 64}, "sliding_window.*64"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 64.0}, "sliding_window"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, r"rope_scaling\.rope_type.*dynamic"),
    ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor is missing"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, r"rope_scaling\.factor"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, r"rope_scaling\.mscale"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    ({"num_hidden_layers": 2**30}, "num_hidden_layers"),
    ({"num_attention_heads": 3}, "num_attention_heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"head_dim": 15}, "head_dim"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_config_refused_by_key(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path / "hf", config=config, tensors=weights(CONFIG))
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


WINDOWS = [({"sliding_window": 128}, None), ({"sliding_window": 40}, 40), ({"max_position_embeddings": 8192}, 4096)]


@pytest.mark.parametrize(("config", "window"), WINDOWS)
def test_mistrals_window(tmp_path: Path, config: dict[str, Any], window: int | None) -> None:
    fields, _ = run(tmp_path, config=config | {"architectures": ["MistralForCausalLM"]})
    assert fields.get("llama.attention.sliding_window") == window


def test_wrong_tensors_are_named_together(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_checkpoint(tmp_path / "hf", tensors=tensors)
    with pytest.raises(ConvertError) as caught:
        convert(tmp_path / "hf", tmp_path / "out.gguf")
    message = str(caught.value)
    assert "model.norm.weight is missing" in message
    assert "q_norm.weight is unexpected" in message
    assert "lm_head.weight is [104, 64], expected [105, 64]" in message
    assert "inv_freq" not in message


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = write_checkpoint(tmp_path / "hf")
    save_file(tensors | {"model.norm.weight": np.ones(64, np.int32)}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ConvertError, match=r"model\.norm\.weight.*I32"):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


SOURCES = [("missing/folder/here", "no such folder"), ("file.gguf", "GGUF file already"), ("file.txt", "is a file")]


@pytest.mark.parametrize(("source", "message"), SOURCES)
def test_source_that_is_not_a_folder(tmp_path: Path, source: str, message: str) -> None:
    for name in ("file.gguf", "file.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / source, tmp_path / "out.gguf")


def test_pytorch_weights_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model.bin")
    with pytest.raises(ConvertError, match=r"save_pretrained.*safetensors"):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


def test_missing_weights(tmp_path: Path) -> None:
    """A link of an incomplete download, and the files of an adapter, which transformers would apply."""
    folder = tmp_path / "hf"
    write_checkpoint(folder)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert ["adapter" in warning for warning in convert(folder, tmp_path / "out.gguf").warnings] == [True]
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(ConvertError, match=r"an adapter .* not a model: merge it"):
        convert(folder, tmp_path / "out.gguf")
    (folder / "model.safetensors").symlink_to(folder / "nothing")
    with pytest.raises(ConvertError, match=r"model\.safetensors: a link to nothing"):
        convert(folder, tmp_path / "out.gguf")


def test_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="'q3'; known are f32, f16, bf16, q8_0, q6_k, q5_k_m"):
        convert(tmp_path, tmp_path / "out.gguf", type="q3")


def test_every_type_can_be_written() -> None:
    formats = {file_type.format for file_type in FILE_TYPES.values()}
    for name in formats | {fallback(name, 32) for name in formats}:
        assert quants.get(name).loops()[0] is not None, name


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "hf")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ResourceError, match="free"):
        convert(tmp_path / "hf", tmp_path / "out.gguf")


def test_malformed_model_card_loses_its_details_only(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", files={"README.md": "---\nlicense: [\n---\n"})
    report = convert(tmp_path / "hf", tmp_path / "out.gguf")
    assert len(report.warnings) == 1 and "README.md" in report.warnings[0]


MEASURE = """
import pathlib, resource, sys
from gumba_convert import convert
convert(sys.argv[1], sys.argv[2], type="q4_0", n_threads=2)
status = pathlib.Path("/proc/self/status")
if status.exists():  # Linux's ru_maxrss remembers the parent's memory at the fork
    print(1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    # Two matrices of 205 MB, as holes in the file: more than the whole process may take.
    config = {"hidden_size": 1024, "num_attention_heads": 8, "vocab_size": 100_000, "num_hidden_layers": 1}
    write_checkpoint(tmp_path / "hf", config=config, tensors={})
    from support.tiny_checkpoints import shapes

    header, end = {}, 0
    for name, shape in shapes(CONFIG | config).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "hf" / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "hf"), str(tmp_path / "out.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert end > 400e6
    assert int(done.stdout) < 300e6
