"""How an embedding model makes one vector of many, as sentence-transformers' files say; and heads that classify."""

from __future__ import annotations

import json

from gumba.errors import ConvertError
from gumba_convert.checkpoint import Checkpoint
from gumba_convert.gguf_writer import Value, strings, u32
from gumba_convert.plan import ConfigReader

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
MODES = {"mean": MEAN, "cls": CLS, "lasttoken": LAST}
FLAGS = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS, "pooling_mode_lasttoken": LAST}
_NO_MODES = ("include_prompt",)
MAX_LABELS = 1 << 20


def pooling_metadata(checkpoint: Checkpoint, architecture: str) -> dict[str, Value]:
    """`pooling_type`, where modules.json names a pooling module.

    Raises:
        ConvertError: that module is not there, or pools in another way than by mean, first or last token.
    """
    pools = modules(checkpoint, "Pooling")
    if not pools:
        return {}
    module = pools[0]
    found = [kind for key, kind in FLAGS.items() if module.config.get(key) is True]
    mode = module.config.get("pooling_mode")
    if isinstance(mode, str) and mode in MODES:
        found = [MODES[mode]]
    if len(found) != 1:
        flags = [key.removeprefix("pooling_mode_") for key, each in module.config.items() if each is True]
        modes = [str(mode)] if mode is not None else [each for each in flags if each not in _NO_MODES]
        raise ConvertError(
            f"{module.folder / 'config.json'}: pooling is by {' and '.join(modes)[:200] or 'nothing'}; "
            "only by one of mean, cls or lasttoken is supported"
        )
    return {f"{architecture}.pooling_type": u32(found[0])}


def projections(checkpoint: Checkpoint, n_embd: int) -> list[tuple[Checkpoint, int, int]]:
    """The two projections behind the pooling: the folder of each, columns and rows of its matrix. Empty without any.

    Raises:
        ConvertError: others than two without a bias and an activation, from `n_embd` and back to it.
    """
    found = []
    for module in modules(checkpoint, "Dense"):
        reader = ConfigReader(module.config, f"{module.folder / 'config.json'}")
        reader.must_be("bias", False)
        reader.must_be("activation_function", "torch.nn.modules.linear.Identity")
        found.append((module, reader.integer("in_features"), reader.integer("out_features")))
    if found and not (len(found) == 2 and found[0][1] == n_embd == found[1][2] and found[0][2] == found[1][1]):
        raise ConvertError(
            f"{checkpoint.folder / 'modules.json'}: expected two projections, from {n_embd} and back to it"
        )
    return found


def no_projections(checkpoint: Checkpoint) -> None:
    """Refuse a model whose vectors are projected: GGUF has a form of that for one architecture only.

    Raises:
        ConvertError: modules.json names such a module.
    """
    if modules(checkpoint, "Dense"):
        raise ConvertError(
            f"{checkpoint.folder / 'modules.json'}: a projection behind the pooling is not supported in this family"
        )


def modules(checkpoint: Checkpoint, kind: str) -> list[Checkpoint]:
    """The folders of a kind of module, in the order of modules.json; empty without that file.

    Raises:
        ConvertError: it is malformed, or a folder that it names is not there.
    """
    text = checkpoint.text("modules.json")
    try:
        listed = [] if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{checkpoint.folder / 'modules.json'}: not valid JSON: {error}") from None
    found = []
    for module in listed if isinstance(listed, list) else []:
        if isinstance(module, dict) and str(module.get("type", "")).rpartition(".")[2] == kind:
            path = module.get("path")
            part = checkpoint.below(path, "modules.json")
            if part is None:
                raise ConvertError(f"{checkpoint.folder}: no folder {path!r}, though modules.json names it")
            found.append(part)
    return found


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
