"""Make tests/data/arch_*.gguf and .npz: tiny random models of every architecture, and the logits that transformers gives.

    python tools/make_arch_goldens.py --torch PYTHON --llama PYTHON [NAME ...]

`--torch`: an interpreter with torch, transformers and safetensors; `--llama`: one with llama-cpp-python; this one has
gumba. Models of tools/arch_numpy.py need neither. Afterwards it records the hashes that are missing in tests/data and updates
docs/models.md. A model of tools/arch_cases.py is built by transformers with random weights, large enough that attention is far
from uniform and logits far from flat, and saved as a checkpoint of float32 safetensors with a small byte-level
tokenizer; gumba converts that to a float32 GGUF file. The logits of every position of one prompt come from
transformers in float32 with eager attention. A model whose special feature does not move the logits is refused, and
so is one whose file gives other logits in llama.cpp (float32 KV cache), at once or token by token.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from arch_cases import CASES, Case
from arch_numpy import OWN
from arch_remote import REMOTE
from arch_settings import SIZES

DATA = Path(__file__).parent.parent / "tests" / "data"
#: llama.cpp looks GELU up in a table of half precision; a wrong formula is off by far more than this.
TOLERANCE = 1e-2
#: How far the logits must move, relative to the greatest one, without what is special in a model.
MOVED = 0.02
N_CTX = 256


def tokenizer_files(n_vocab: int) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json of a small byte-level tokenizer."""
    special = ["<|unk|>", "<|im_start|>", "<|im_end|>"]
    merges = [["a", "b"], ["ab", "c"], ["Ġ", "t"]]
    texts = [*special, *(chr(c) for c in range(33, 127)), "Ġ", "Ċ", *("".join(pair) for pair in merges)]
    return {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [
                {"id": i, "content": text, "special": True, "normalized": False} for i, text in enumerate(special)
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": None,
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(texts[:n_vocab])}, "merges": merges},
        },
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    }


# With torch and transformers -------------------------------------------------------------------------------------------


def weights(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights of one parameter; they depend on the names only, so that leaving one out changes no other."""
    rng = np.random.default_rng([*case.name.encode(), 0, *name.encode()])
    values = rng.standard_normal(shape)
    if name.endswith("sinks"):
        return values
    if name.endswith(("A_log", "dt_bias")):
        return 0.5 * values
    if name.endswith("modality_router.weight"):  # its input is divided by its size
        return 4 * values
    if len(shape) == 1:
        centre = 1.0 if "linear_attn.norm" in name else case.centre
        return 0.4 * values if name.endswith("bias") else centre + 0.3 * values
    if name.endswith("bias"):  # of experts
        return 0.4 * values
    if any(word in name for word in ("embed", "wte", "wpe")):
        return values * (2 / math.sqrt(shape[-1]))
    columns = case.family in ("GPT2", "GptOss", "Llama4") and ("experts" in name or ".c_" in name)
    fan_in = shape[-2] if columns else math.prod(shape[1:]) if "conv" in name else shape[-1]
    return values * ((2.0 if "lm_head" in name else 1.5) / math.sqrt(fan_in))


def build(case: Case, overrides: dict[str, Any]) -> Any:
    """The model of a case (the same weights whatever the overrides)."""
    import torch
    import transformers

    # What a family's configuration does not know would be stored without effect, and is left out.
    config_class = getattr(transformers, config_name(case))
    known = set(config_class().to_dict()) | set(case.settings)
    if "text_config" in case.settings:  # the sizes are in there
        known = set(case.settings)
    settings = {key: value for key, value in SIZES.items() if key in known} | case.settings | overrides
    config = config_class(**settings)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = getattr(transformers, case.family + case.head)(config)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(weights(case, name, tuple(parameter.shape)).astype(np.float32)))
        for name, buffer in sorted(model.named_buffers()):
            if name.endswith("layer_scalar"):
                buffer.copy_(torch.from_numpy(weights(case, name, tuple(buffer.shape)).astype(np.float32)))
    return model.eval()


def config_name(case: Case) -> str:
    """transformers' class of the configuration."""
    special = {
        "Gemma3": "Gemma3TextConfig",
        "Llama4": "Llama4TextConfig",
        "Gemma3Text": "Gemma3TextConfig",
        "Gemma3n": "Gemma3nTextConfig",
        "Gemma4": "Gemma4TextConfig",
        "Qwen3_5": "Qwen3_5TextConfig",
        "Qwen3_5Moe": "Qwen3_5MoeTextConfig",
    }
    return special.get(case.family, f"{case.family}Config")


def run(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of every position, float32 [n_tokens, n_vocab]; an encoder's last hidden states [n_tokens, width], or the
    scores of the whole [n_labels]."""
    import torch

    with torch.no_grad():
        whole = torch.from_numpy(tokens.astype(np.int64))[None]
        if model.config.is_encoder_decoder:  # the first half is read, the second written
            result = model(input_ids=whole[:, : len(tokens) // 2], decoder_input_ids=whole[:, len(tokens) // 2 :])
        else:
            result = model(input_ids=whole)
        found = result.logits if hasattr(result, "logits") else result.last_hidden_state
        return np.asarray(found[0].float().numpy())


def compute_there(case: Case, overrides: dict[str, Any], tokens: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """What transformers' model of a case gives; its checkpoint is left in `folder`."""
    model = build(case, overrides)
    if folder is not None:
        model.save_pretrained(folder)
    return run(model, tokens)


def compute_here(case: Case, overrides: dict[str, Any], tokens: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """The same of a model that transformers does not have, see arch_numpy.py."""
    from safetensors.numpy import save_file

    settings = SIZES | case.settings | overrides
    config, tensors, found = OWN[case.family](settings, lambda name, shape: weights(case, name, shape), tokens)
    if folder is not None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, folder / "model.safetensors")
    return found.astype(np.float32)


def build_checkpoint(case: Case, folder: Path) -> None:
    """Write the checkpoint of a case to `folder / "hf"`, and tokens and logits to `folder / "golden.npz"`."""
    tokens = np.random.default_rng([*case.name.encode()]).integers(3, 100, case.n_tokens).astype(np.int32)
    compute = compute_here if case.family in OWN else compute_there
    logits = compute(case, {}, tokens, folder / "hf")
    if case.remote:
        rewrite(case.remote, folder / "hf")
    for name, content in tokenizer_files(SIZES["vocab_size"]).items():
        (folder / "hf" / name).write_text(json.dumps(content), encoding="utf-8")
    for matrix in write_projections(case, folder / "hf"):
        logits = logits @ matrix.T
    np.savez_compressed(folder / "golden.npz", tokens=tokens, logits=logits)
    note = f"logits std {logits.std():.2f} max {np.abs(logits).max():.1f}"
    if case.without:
        moved = distance(compute(case, case.without, tokens), logits)
        note += f", without its feature {moved:.2f}"
        if moved < MOVED:
            sys.exit(f"{case.name}: its special feature moves the logits by only {moved:.1e}")
    print(f"{case.name}: {note}")


def write_projections(case: Case, folder: Path) -> list[np.ndarray]:
    """sentence-transformers' files beside a checkpoint: the mean, and the projections behind it; the latters' matrices."""
    from safetensors.numpy import save_file

    if not case.n_dense:
        return []
    parts: list[tuple[str, str, dict[str, Any]]] = [
        ("Transformer", "", {}),
        ("Pooling", "1_Pooling", {"pooling_mode_mean_tokens": True}),
    ]
    matrices = []
    width = SIZES["hidden_size"]
    for i, shape in enumerate([(case.n_dense, width), (width, case.n_dense)], 2):
        settings = {"in_features": shape[1], "out_features": shape[0], "bias": False}
        parts.append(("Dense", f"{i}_Dense", settings | {"activation_function": "torch.nn.modules.linear.Identity"}))
        matrices.append(weights(case, f"dense_{i}", shape).astype(np.float32))
    listed = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path, _) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    for _, path, settings in parts[1:]:
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for i, matrix in enumerate(matrices, 2):
        save_file({"linear.weight": matrix}, folder / f"{i}_Dense" / "model.safetensors")
    return matrices


def rewrite(remote: str, folder: Path) -> None:
    """Turn a checkpoint into that of a family whose code is not in transformers."""
    from safetensors.numpy import load_file, save_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config, tensors = REMOTE[remote](config, load_file(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, folder / "model.safetensors")


# With llama.cpp --------------------------------------------------------------------------------------------------------


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Greatest difference, relative to the greatest logit."""
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())


def llama_logits(path: Path, tokens: np.ndarray, step: int) -> np.ndarray:
    """llama.cpp's logits of every position, `step` tokens at a time."""
    import llama_cpp

    engine = llama_cpp.Llama(
        str(path),
        n_ctx=N_CTX,
        logits_all=True,
        verbose=False,
        n_threads=1,
        n_threads_batch=1,
        type_k=0,
        type_v=0,
        swa_full=True,
    )
    for start in range(0, len(tokens), step):
        engine.eval(tokens[start : start + step].tolist())
    logits = np.array(engine.scores[: len(tokens)])
    engine.close()
    return logits


def llama_embeddings(path: Path, tokens: np.ndarray, *, rank: bool, mean: bool, encode: bool) -> np.ndarray:
    """llama.cpp's last hidden states, their mean, or the scores of a classifier; `encode`: of a model with two halves."""
    import llama_cpp

    pooling = llama_cpp.LLAMA_POOLING_TYPE_RANK if rank else llama_cpp.LLAMA_POOLING_TYPE_NONE
    if mean:
        pooling = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    engine = llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_ubatch=N_CTX, embedding=True, pooling_type=pooling, verbose=False, n_threads=1
    )
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = int(token), i, 1, 0, 1
    compute = llama_cpp.llama_encode if encode else llama_cpp.llama_decode
    if compute(engine.ctx, batch):
        sys.exit(f"{path}: llama.cpp cannot compute")
    if rank or mean:
        found = llama_cpp.llama_get_embeddings_seq(engine.ctx, 0)
        n = llama_cpp.llama_model_n_cls_out(engine.model) if rank else engine.n_embd()
        result = np.array([found[i] for i in range(n)])
    else:
        rows = [llama_cpp.llama_get_embeddings_ith(engine.ctx, i) for i in range(len(tokens))]
        result = np.array([row[: engine.n_embd()] for row in rows])
    llama_cpp.llama_batch_free(batch)
    engine.close()
    return result


def llama_two_halves(path: Path, tokens: np.ndarray) -> np.ndarray:
    """llama.cpp's logits of the second half of the tokens, written by a decoder whose encoder read the first."""
    import llama_cpp

    engine = llama_cpp.Llama(str(path), n_ctx=N_CTX, n_ubatch=N_CTX, verbose=False, n_threads=1, type_k=0, type_v=0)
    for half, step in (
        (tokens[: len(tokens) // 2], llama_cpp.llama_encode),
        (tokens[len(tokens) // 2 :], llama_cpp.llama_decode),
    ):
        batch = llama_cpp.llama_batch_init(len(half), 0, 1)
        batch.n_tokens = len(half)
        for i, token in enumerate(half):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = (
                int(token),
                i,
                1,
                0,
                1,
            )
        if step(engine.ctx, batch):
            sys.exit(f"{path}: llama.cpp cannot compute")
        n = len(half)
    rows = [llama_cpp.llama_get_logits_ith(engine.ctx, i) for i in range(n)]
    result = np.array([row[: engine.n_vocab()] for row in rows])
    engine.close()
    return result


def check(case: Case, path: Path) -> None:
    """Compare llama.cpp with the stored logits; exit 1 where it differs."""
    if not case.n_llama:
        print(f"{case.name}: llama.cpp does not have it")
        return
    with np.load(path.with_suffix(".npz")) as stored:
        tokens, logits = stored["tokens"], stored["logits"]
    if not case.encoder and case.head != "ForConditionalGeneration":
        tokens, logits = tokens[: case.n_llama], logits[: case.n_llama]
    if case.head == "ForConditionalGeneration" and "text_config" not in case.settings:
        found = [llama_two_halves(path, tokens)]
    elif case.encoder:
        if case.n_dense:  # it projects behind the pooling only
            logits = logits.mean(axis=0)
        rank, mean = logits.ndim == 1 and not case.n_dense, case.n_dense > 0
        found = [llama_embeddings(path, tokens, rank=rank, mean=mean, encode=case.head == "EncoderModel")]
        if case.family == "Qwen3" and logits.ndim == 1:  # its heads give probabilities there
            logits = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    else:
        found = [llama_logits(path, tokens, step) for step in (len(tokens), 1)]
    worst = max(distance(got, logits) for got in found)
    top = min(float(np.mean(got.argmax(-1) == logits.argmax(-1))) for got in found)
    print(f"{case.name}: llama.cpp differs by {worst:.1e} in {len(tokens)} tokens, same top token {top:.0%}")
    if not worst < TOLERANCE:
        sys.exit(f"{case.name}: llama.cpp disagrees: {worst:.1e}")


# The whole -------------------------------------------------------------------------------------------------------------


def make(case: Case, arguments: argparse.Namespace) -> None:
    """Build, convert, check and store one model."""
    from gumba_convert import convert

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary) / case.name
        folder.mkdir(parents=True, exist_ok=True)
        stage(arguments.torch, "build", case, folder)
        path = folder / f"arch_{case.name}.gguf"
        report = convert(
            folder / "hf", path, type="f32", name="gumba golden"
        )  # llama.cpp expects certain tokens of some names
        for warning in report.warnings:
            print(f"{case.name}: {warning}")
        path.with_suffix(".npz").write_bytes((folder / "golden.npz").read_bytes())
        stage(arguments.llama, "check", case, path)
        for suffix in (".gguf", ".npz"):
            data = path.with_suffix(suffix).read_bytes()
            (DATA / path.name).with_suffix(suffix).write_bytes(data)
            print(f"{case.name}: {len(data) / 1000:.0f} kB {suffix}")


def record() -> None:
    """Record what the tests compare beside the goldens: hashes that are missing, and the page of models."""
    import write_models_page  # the interpreters of the other stages may lack gumba

    for module in ("support.logit_hashes", "support.converter_hashes"):
        subprocess.run([sys.executable, "-m", module, "--missing"], cwd=DATA.parent, check=True)
    write_models_page.main()


def stage(python: str, name: str, case: Case, path: Path) -> None:
    """Run a part of this script with another interpreter."""
    done = subprocess.run([python, __file__, "--stage", name, "--path", path, case.name], check=False)
    if done.returncode:
        sys.exit(f"{case.name}: {name} failed")


def main() -> None:
    """Make the named models, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models to make (default: all)")
    parser.add_argument("--torch", default=sys.executable, help="interpreter with torch and transformers")
    parser.add_argument("--llama", default=sys.executable, help="interpreter with llama-cpp-python")
    parser.add_argument("--keep", help="folder for the checkpoints (default: a temporary one)")
    parser.add_argument("--stage", choices=("build", "check"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    known = {case.name: case for case in CASES}
    unknown = sorted(set(arguments.names) - set(known))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    for name in arguments.names or known:
        if arguments.stage == "build":
            build_checkpoint(known[name], arguments.path)
        elif arguments.stage == "check":
            check(known[name], arguments.path)
        else:
            make(known[name], arguments)
    if arguments.stage is None:
        record()


if __name__ == "__main__":
    main()
