"""The settings of sentence-transformers: modules.json, prompts, and the maximum text length.

modules.json lists modules by class and folder: the transformer, its pooling, optional projections and a normalization. GGUF has a
key for the pooling; gumba adds keys for the rest:

    gumba.embedding.max_seq_length   u32     tokens of the longest text, if less than the context
    gumba.embedding.truncation_side  string  "left": truncate longer texts at the start
    gumba.embedding.prompt.NAME      string  the text to prepend
    gumba.embedding.default_prompt   string  the name of the prompt used by default
    gumba.embedding.include_prompt   bool    false: pooling omits the prompt's tokens
    gumba.embedding.dimensions       u32     the number of leading values of a vector to keep
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.common.pooling import no_other_keys, pooling_type
from gumba_convert.gguf_writer import Value, boolean, string, u32

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
#: Files with the settings of the transformer; the first one that is not empty is used.
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
PREFIX = "gumba.embedding."
PACKAGE = "sentence_transformers."
#: The only supported order of modules; a Dropout has no effect after training.
ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
NO_EFFECT = "Dropout"
#: A reranker's score from the logits of two words (see `families.qwen3`).
LOGIT_SCORE = "LogitScore"
LOADING_KEYS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
#: Loading arguments that do not change results, except for rounding.
HARMLESS_ARGUMENTS = {
    "add_pooling_layer", "attn_implementation", "cache_dir", "device_map", "dtype", "local_files_only",
    "low_cpu_mem_usage", "revision", "token", "torch_dtype", "trust_remote_code", "use_fast", "use_safetensors",
}  # fmt: skip
KNOWN_SETTINGS = {
    "__version__", "default_prompt_name", "model_type", "prompts", "requirements", "similarity_fn_name", "truncate_dim",
}  # fmt: skip
MAX_PROMPTS, MAX_PROMPT_NAME = 1000, 200
DENSE_KEYS = {
    "activation_function", "bias", "in_features", "module_input_name", "module_output_name", "out_features", "use_residual",
}  # fmt: skip
IDENTITIES = ("torch.nn.modules.linear.Identity", "torch.nn.Identity")


@dataclass(frozen=True)
class Module:
    """An entry of modules.json: the class's name, with and without the package, and the folder, as the file names it."""

    kind: str
    full_name: str
    path: object
    index: int


@dataclass(frozen=True)
class Embedder:
    """The metadata of the files, and warnings for the user."""

    values: dict[str, Value] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_embedder(
    checkpoint: Checkpoint, architecture: str, n_ctx: int, *, has_classifier: bool, projected: bool
) -> Embedder:
    """Read modules.json and the files beside it; empty without modules.json.

    Args:
        n_ctx: tokens of the model's context.
        has_classifier: the model has a classification head, hence no pooling and no prompts.
        projected: the architecture has the projections of `Dense` modules.

    Raises:
        ConvertError: a file is malformed, or has an unsupported setting.
    """
    listed = modules(checkpoint)
    if not listed:
        return Embedder()
    warnings = _check_kinds(checkpoint, listed, has_classifier=has_classifier, projected=projected)
    if has_classifier:
        if (checkpoint.outer.json(SETTINGS) or {}).get("prompts"):
            warnings.append(
                f"the prompts of {SETTINGS} are omitted: gumba does not apply prompts to classifiers and rerankers"
            )
        return Embedder({}, warnings)
    values: dict[str, Value] = {}
    if not any(module.kind == "Pooling" for module in listed):
        warnings.append(
            f"{MODULES} has no Pooling, which sentence-transformers needs for a vector: gumba uses mean pooling"
        )
    for module in listed:
        if module.kind == "Pooling":
            folder = part(checkpoint, module)
            reader = ConfigReader(folder.config, f"{folder.folder / 'config.json'}")
            values[f"{architecture}.pooling_type"] = u32(pooling_type(reader))
            if not reader.flag("include_prompt", True):
                values[f"{PREFIX}include_prompt"] = boolean(False)
                warnings.append("the pooling leaves out the prompt's tokens (include_prompt); llama.cpp does not")
        elif module.kind == "Normalize":
            _check_normalize(checkpoint, module)
    _transformer(checkpoint, n_ctx, values)
    _settings(checkpoint, values, warnings, normalizes=any(module.kind == "Normalize" for module in listed))
    return Embedder(values, warnings)


def modules(checkpoint: Checkpoint) -> list[Module]:
    """The entries of modules.json, in order; empty without that file.

    Raises:
        ConvertError: it is malformed.
    """
    text = checkpoint.outer.text(MODULES)
    if text is None:
        return []
    where = checkpoint.outer.folder / MODULES
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(listed, list):
        raise ConvertError(f"{where}: expected a list of modules")
    result = []
    for i, entry in enumerate(listed):
        name = entry.get("type") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(name, str):
            raise ConvertError(f"{where}: module {i} is {str(entry)[:100]}, expected an object with a type")
        result.append(Module(name.rpartition(".")[2], name, entry.get("path"), i))
    return result


def part(checkpoint: Checkpoint, module: Module) -> Checkpoint:
    """The folder of a module.

    Raises:
        ConvertError: it does not exist, or has no config.json.
    """
    folder = checkpoint.outer.below(module.path, MODULES)
    if folder is None:
        raise ConvertError(f"{checkpoint.outer.folder}: no folder {module.path!r}, though modules.json names it")
    return folder


def projections(checkpoint: Checkpoint, n_embd: int) -> list[tuple[Checkpoint, int, int]]:
    """The two projections after the pooling: folder, columns and rows of each matrix. Empty if there are none.

    Raises:
        ConvertError: not two matrices without bias and activation, from `n_embd` and back to it.
    """
    matrices = []
    for module in modules(checkpoint):
        if module.kind != "Dense":
            continue
        folder = part(checkpoint, module)
        reader = ConfigReader(folder.config, f"{folder.folder / 'config.json'}")
        # The defaults are a bias and tanh.
        for key, default, allowed in (
            ("bias", True, (False,)),
            ("activation_function", "torch.nn.modules.activation.Tanh", IDENTITIES),
            ("use_residual", False, (False,)),
            ("module_input_name", "sentence_embedding", ("sentence_embedding",)),
            ("module_output_name", "sentence_embedding", ("sentence_embedding",)),
        ):
            value = reader.config[key] if reader.has(key) else default
            if value not in allowed:
                raise reader.fail(key, f"is {str(value)[:100]!r}; only {allowed[0]!r} is supported")
        no_other_keys(reader, DENSE_KEYS)
        matrices.append((folder, reader.integer("in_features"), reader.integer("out_features")))
    if matrices and not (
        len(matrices) == 2 and matrices[0][1] == n_embd == matrices[1][2] and matrices[0][2] == matrices[1][1]
    ):
        raise ConvertError(
            f"{checkpoint.outer.folder / MODULES}: expected two projections, from {n_embd} and back to it"
        )
    return matrices


def _check_kinds(checkpoint: Checkpoint, listed: list[Module], *, has_classifier: bool, projected: bool) -> list[str]:
    """Refuse unsupported modules and any order other than ``ORDER``; warn about custom classes."""
    where = f"{checkpoint.outer.folder / MODULES}"
    warnings, last = [], -1
    for module in listed:
        own = module.full_name.startswith(PACKAGE)
        if has_classifier and own and module.kind == LOGIT_SCORE:
            _check_words(checkpoint, part(checkpoint, module))
            continue
        if own and module.kind == NO_EFFECT:
            continue
        known = module.kind in ORDER and (own or module.kind == ORDER[0])
        if not known or (module.kind == "Dense" and not projected):
            supported = [kind for kind in ORDER if projected or kind != "Dense"]
            raise ConvertError(
                f"{where}: module {module.index}, {module.full_name:.200}, is not supported in this family: "
                f"{', '.join(supported)} and {NO_EFFECT} are"
            )
        index = ORDER.index(module.kind)
        if index < last or (index == last and module.kind != "Dense") or (index and last < 0):
            raise ConvertError(
                f"{where}: module {module.index}, {module.full_name:.200}, is in the wrong order: "
                f"expected {', '.join(ORDER)}, in this order"
            )
        if not own:
            warnings.append(
                f"{MODULES} names a custom class, {module.full_name:.200}, whose code gumba does not run: "
                "it is taken for sentence-transformers' Transformer"
            )
        last = index
    return warnings


def _check_words(checkpoint: Checkpoint, score: Checkpoint) -> None:
    """Refuse a reranker whose score uses other words than yes and no, in this order (see `families.qwen3`)."""
    model = (checkpoint.json("tokenizer.json") or {}).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        vocabulary = {}
    reader = ConfigReader(score.config, f"{score.folder / 'config.json'}")
    reader.must_be("true_token_id", vocabulary.get("yes"))
    reader.must_be("false_token_id", vocabulary.get("no"))
    reader.must_be("module_input_name", "causal_logits")


def _check_normalize(checkpoint: Checkpoint, module: Module) -> None:
    """Refuse a Normalize of anything but the vector; older versions write no config.json for it."""
    folder = f"{module.path}"
    path = checkpoint.outer.path(folder, MODULES)
    if not (path / "config.json").exists():
        return
    reader = ConfigReader(part(checkpoint, module).config, f"{path / 'config.json'}")
    reader.must_be("module_input_name", "sentence_embedding")
    reader.must_be("module_output_name", "sentence_embedding")


def _transformer(checkpoint: Checkpoint, n_ctx: int, values: dict[str, Value]) -> None:
    """The transformer's settings: the maximum text length, and the side at which longer texts are truncated.

    Without `max_seq_length` the tokenizer's `model_max_length` counts, as in sentence-transformers.
    """
    reader = transformer_settings(checkpoint)
    reader.must_be("transformer_task", "feature-extraction")
    reader.must_be("module_output_name", "token_embeddings")
    for key in ("processing_kwargs", "query_expansion", "query_length", "document_length", "tokenizer_name_or_path"):
        reader.must_be(key, {}, "")
    modalities = reader.config.get("modality_config") or {}
    plain = {"method": "forward", "method_output_name": "last_hidden_state"}
    if not isinstance(modalities, dict) or modalities.get("text", plain) != plain or "message" in modalities:
        raise reader.fail(
            "modality_config", f"is {str(modalities)[:200]}; only the last hidden states of texts are supported"
        )
    tokenizer = checkpoint.json("tokenizer_config.json") or {}
    lowers = checkpoint.has("tokenizer.json") or (checkpoint.has("vocab.txt") and tokenizer.get("do_lower_case", True))
    if reader.flag("do_lower_case", False) and not lowers:
        raise reader.fail("do_lower_case", "is True; only false is supported without tokenizer.json")
    for key in LOADING_KEYS:
        given = reader.section(key)
        other = sorted(name for name in given.config if name not in HARMLESS_ARGUMENTS) if given is not None else []
        if given is not None and other:
            raise given.fail(other[0], f"is {str(given.config[other[0]])[:100]}, which is not supported")
    no_other_keys(
        reader,
        {"backend", "cache_dir", "do_lower_case", "document_length", "max_seq_length", "modality_config"}
        | {"module_output_name", "processing_kwargs", "query_expansion", "query_length", "tokenizer_name_or_path"}
        | {"transformer_task", "unpad_inputs", *LOADING_KEYS},
    )
    longest = tokenizer.get("model_max_length")
    if reader.has("max_seq_length"):
        longest = reader.config["max_seq_length"]
        if type(longest) is not int or longest < 1:  # some have 10**30 for no limit
            raise reader.fail("max_seq_length", f"is {longest!r}, expected a positive integer")
    if isinstance(longest, int | float) and 0 < longest < n_ctx:
        if longest != int(longest):
            raise ConvertError(f"{checkpoint.folder / 'tokenizer_config.json'}: model_max_length is {longest}")
        longest = int(longest)
        values[f"{PREFIX}max_seq_length"] = u32(longest)
    truncation = (checkpoint.json("tokenizer.json") or {}).get("truncation")
    side = tokenizer.get("truncation_side") or (truncation.get("direction") if isinstance(truncation, dict) else None)
    if side not in (None, "right", "Right"):
        if side not in ("left", "Left"):
            raise ConvertError(f"{checkpoint.folder}: the tokenizer's truncation_side is {str(side)[:100]!r}")
        values[f"{PREFIX}truncation_side"] = string("left")


def transformer_settings(checkpoint: Checkpoint) -> ConfigReader:
    """The settings of sentence-transformers' transformer; empty without such a file."""
    for name in TRANSFORMER_SETTINGS:
        config = checkpoint.json(name)
        if config:
            return ConfigReader(config, f"{checkpoint.folder / name}")
    return ConfigReader({}, f"{checkpoint.folder / TRANSFORMER_SETTINGS[0]}")


def _is_name(name: str) -> bool:
    """Whether a name can be a part of a metadata key."""
    return len(name) <= MAX_PROMPT_NAME and "\0" not in name and _is_unicode(name)


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which JSON can encode and UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _settings(checkpoint: Checkpoint, values: dict[str, Value], warnings: list[str], *, normalizes: bool) -> None:
    """The metadata and warnings of the model's settings: prompts, dimensions, similarity."""
    config = checkpoint.outer.json(SETTINGS) or {}
    reader = ConfigReader(config, f"{checkpoint.outer.folder / SETTINGS}")
    reader.must_be("model_type", "SentenceTransformer")
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or len(prompts) > MAX_PROMPTS:
        raise reader.fail("prompts", f"is {str(prompts)[:100]}, expected at most {MAX_PROMPTS} texts by name")
    for name, text in prompts.items():
        if not isinstance(text, (str, type(None))) or not _is_name(name) or not _is_unicode(text or ""):
            raise reader.fail("prompts", f"has {name[:100]!r}: {str(text)[:100]!r}, expected a text by a short name")
        values[f"{PREFIX}prompt.{name}"] = string(text or "")
    default = config.get("default_prompt_name")
    if default is not None:
        if not isinstance(default, str) or default not in prompts:
            raise reader.fail(
                "default_prompt_name",
                f"is {default!r}, expected one of the prompts: {', '.join(prompts) or 'there are none'}",
            )
        values[f"{PREFIX}default_prompt"] = string(default)
        if prompts[default]:
            warnings.append(
                f"the prompt {default!r} ({prompts[default]!r:.100}) is prepended to every text; llama.cpp does not do that"
            )
    if reader.has("truncate_dim"):
        values[f"{PREFIX}dimensions"] = u32(reader.integer("truncate_dim"))
        warnings.append("gumba returns the first truncate_dim values of each vector; llama.cpp returns all")
    if not normalizes and config.get("similarity_fn_name") in ("dot", "dot_product", "euclidean", "manhattan"):
        warnings.append(
            f"the model's similarity is {config['similarity_fn_name']!r}, of vectors that are not normalized: "
            "use embed(..., normalize=False) or --no-normalize"
        )
    other = sorted(str(key) for key in config if key not in KNOWN_SETTINGS)
    if other:
        warnings.append(f"{SETTINGS}: {', '.join(other)[:200]} unknown to gumba, omitted")
