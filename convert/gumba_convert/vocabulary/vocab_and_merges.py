"""GPT-2's files, vocab.json and merges.txt, converted to the tokenizer.json that transformers builds from them.

The files do not define the pre-tokenizer; the code of transformers' tokenizer class does.
"""

from __future__ import annotations

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.checkpoint.json_object import JsonObject
from gumba_convert.vocabulary.pre_tokenizers import to_json
from gumba_convert.vocabulary.special_tokens import text_of

FILES = ("vocab.json", "merges.txt")
_GPT2 = ("GPT2", "CodeGen")
_ROBERTA = ("Roberta", "Bart", "Longformer", "LED")
_QWEN2 = ("Qwen2",)
#: Classes by config.json's `model_type`, where tokenizer_config.json names none.
_BY_MODEL_TYPE = {"gpt2": "GPT2", "phi": "CodeGen", "roberta": "Roberta", "qwen2": "Qwen2", "qwen2_moe": "Qwen2"}
#: Default special tokens by role.
_END = "<|endoftext|>"
_DEFAULTS = {
    "GPT2": {"bos": _END, "eos": _END, "unk": _END},
    "Qwen2": {"eos": _END, "unk": _END, "pad": _END},
    "Roberta": {
        "bos": "<s>",
        "eos": "</s>",
        "sep": "</s>",
        "cls": "<s>",
        "unk": "<unk>",
        "pad": "<pad>",
        "mask": "<mask>",
    },
}


def from_files(checkpoint: Checkpoint, config: JsonObject) -> tuple[JsonObject, JsonObject] | None:
    """Build tokenizer.json from the two files, and add the class's default special tokens to tokenizer_config.json.

    Returns None if the checkpoint does not have the files.

    Raises:
        ConvertError: the tokenizer's class is unknown, or a file is malformed.
    """
    if not all(checkpoint.has(name) for name in FILES):
        return None
    vocab, merges = checkpoint.json(FILES[0]), checkpoint.text(FILES[1])
    kind = _kind(checkpoint, config)
    listed = checkpoint.json("special_tokens_map.json") or {}
    defaults = {f"{role}_token": text for role, text in _DEFAULTS[kind].items()}
    config = defaults | {key: value for key, value in listed.items() if key in defaults} | config
    entries = [config.get(key) for key in defaults]
    flags = {
        text_of(entry): entry if isinstance(entry, dict) else {} for entry in entries if text_of(entry) is not None
    }
    extra = checkpoint.json("added_tokens.json") or {}
    ids = {text: i for text, i in (vocab or {}).items() if text in flags} | extra
    added = [
        {**flags.get(text, {}), "id": i, "content": text, "special": text in flags, "normalized": False}
        for text, i in ids.items()
    ]
    tokenizer: JsonObject = {
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if kind == "Qwen2" else None,
        "pre_tokenizer": _pre_tokenizer(kind, config),
        "post_processor": _post_processor(kind, config, ids),
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": _merges(merges or "")},
    }
    return tokenizer, config


def _kind(checkpoint: Checkpoint, config: JsonObject) -> str:
    name = config.get("tokenizer_class")
    if name is None:
        name = _BY_MODEL_TYPE.get(str(checkpoint.config.get("model_type")))
    name = str(name).removesuffix("Fast").removesuffix("Tokenizer")
    for kind, names in (("GPT2", _GPT2), ("Roberta", _ROBERTA), ("Qwen2", _QWEN2)):
        if name in names:
            return kind
    known = ", ".join(f"{name}Tokenizer" for name in (*_GPT2, *_ROBERTA, *_QWEN2))
    raise ConvertError(
        f"{checkpoint.folder}: {FILES[0]} and {FILES[1]} do not define the pre-tokenizer, and the tokenizer class "
        f"{config.get('tokenizer_class')!r:.100} is unknown (known are {known}): add its tokenizer.json, which "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes"
    )


def _merges(text: str) -> list[str]:
    lines = text.splitlines()
    return [line for line in lines[lines[:1] != [] and lines[0].startswith("#version") :] if line]


def _pre_tokenizer(kind: str, config: JsonObject) -> JsonObject:
    """The pre-tokenizer of the class, with add_prefix_space from the configuration."""
    prefix = config.get("add_prefix_space") is True
    if kind != "Qwen2":
        return {"type": "ByteLevel", "add_prefix_space": prefix, "use_regex": True}
    step = to_json("qwen2")
    step["pretokenizers"][-1]["add_prefix_space"] = prefix
    return step


def _post_processor(kind: str, config: JsonObject, ids: JsonObject) -> JsonObject | None:
    if kind == "Roberta":
        ends = {role: text_of(config[f"{role}_token"]) for role in ("cls", "sep")}
        return {"type": "RobertaProcessing"} | {role: [text, ids.get(text or "")] for role, text in ends.items()}
    bos = text_of(config.get("bos_token"))
    if kind == "GPT2" and config.get("add_bos_token") is True and bos is not None:
        parts = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        return {
            "type": "TemplateProcessing",
            "single": parts,
            "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        }
    return None
