"""How an embedding model makes one vector of many, as sentence-transformers' files say; and heads that classify."""

from __future__ import annotations

from gumba.errors import ConvertError
from gumba_convert.checkpoint import Checkpoint
from gumba_convert.gguf_writer import Value, strings, u32
from gumba_convert.plan import ConfigReader

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
MODES = {"mean": MEAN, "cls": CLS, "lasttoken": LAST}
FLAGS = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS, "pooling_mode_lasttoken": LAST}
MAX_LABELS = 1 << 20


def pooling_metadata(checkpoint: Checkpoint, architecture: str) -> dict[str, Value]:
    """`pooling_type`, where modules.json names a pooling module.

    Raises:
        ConvertError: that module is not there, or pools in another way than by mean, first or last token.
    """
    text = checkpoint.text("modules.json")
    if text is None:
        return {}
    folder = _pooling_folder(checkpoint, text)
    if folder is None:
        return {}
    module = checkpoint.below(folder, "modules.json")
    if module is None:
        raise ConvertError(f"{checkpoint.folder}: no folder {folder!r}, though modules.json names it")
    found = [kind for key, kind in FLAGS.items() if module.config.get(key) is True]
    mode = module.config.get("pooling_mode")
    if isinstance(mode, str) and mode in MODES:
        found = [MODES[mode]]
    if len(found) != 1:
        raise ConvertError(f"{module.folder / 'config.json'}: only pooling by mean, cls or lasttoken is supported")
    return {f"{architecture}.pooling_type": u32(found[0])}


def _pooling_folder(checkpoint: Checkpoint, text: str) -> str | None:
    import json

    try:
        modules = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{checkpoint.folder / 'modules.json'}: not valid JSON: {error}") from None
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, dict) and str(module.get("type", "")).endswith("Pooling"):
            path = module.get("path")
            return path if isinstance(path, str) else repr(path)
    return None


def labels(reader: ConfigReader) -> list[str]:
    """The names of the classes, in the order of their numbers.

    Raises:
        ConvertError: they are not numbered from 0 without gaps.
    """
    given = reader.config.get("id2label")
    if given is None:
        return [f"LABEL_{i}" for i in range(reader.integer("num_labels", 2))]
    if not isinstance(given, dict) or not 0 < len(given) <= MAX_LABELS:
        raise reader.fail("id2label", f"is {str(given)[:100]}, expected names by number")
    names = [given.get(str(i)) for i in range(len(given))]
    if not all(isinstance(name, str) for name in names):
        raise reader.fail("id2label", f"is {str(given)[:100]}, expected a name for each number from 0")
    return [str(name) for name in names]


def classifier_metadata(architecture: str, names: list[str]) -> dict[str, Value]:
    """The metadata of a model whose result is a score for each class."""
    return {
        f"{architecture}.pooling_type": u32(RANK),
        f"{architecture}.classifier.output_labels": strings(names),
    }
