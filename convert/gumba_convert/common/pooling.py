"""Pooling settings of sentence-transformers' Pooling module, and metadata of classification heads."""

from __future__ import annotations

from gumba.errors import ConvertError
from gumba_convert.common.config_reader import ConfigReader
from gumba_convert.gguf_writer import Value, strings, u32

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
MODES = {"mean": MEAN, "cls": CLS, "lasttoken": LAST}
#: sentence-transformers' modes by the keys of its older files.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MAX_LABELS = 1 << 20


def pooling_type(reader: ConfigReader) -> int:
    """GGUF's `pooling_type` of a Pooling module's config.json.

    Raises:
        ConvertError: another mode than mean, first or last token, several modes (whose vectors sentence-transformers
            concatenates), or an unknown key.
    """
    modes: list[str] = [mode for key, mode in FLAGS.items() if reader.flag(key, False)]
    given = reader.config.get("pooling_mode")
    if given is not None:
        modes = [str(mode) for mode in given] if isinstance(given, list) else [str(given)]
    elif not any(key in reader.config for key in FLAGS):
        modes = ["mean"]
    if len(modes) != 1 or modes[0] not in MODES:
        raise ConvertError(
            f"{reader.where}: pooling is by {' and '.join(modes)[:200] or 'nothing'}; "
            "only by one of mean, cls or lasttoken is supported"
        )
    no_other_keys(reader, {*FLAGS, "pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension"})
    return MODES[modes[0]]


def no_other_keys(reader: ConfigReader, known: set[str]) -> None:
    """Refuse a key that is not known, unless it is null, false or empty.

    Raises:
        ConvertError: there is one.
    """
    for key, value in reader.config.items():
        if key not in known and value not in (None, False, "", {}, []):
            raise reader.fail(key, f"is {str(value)[:100]}, which is not supported")


def labels(reader: ConfigReader) -> list[str]:
    """The labels of the classes in order.

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
    """The metadata of a model with a score per class."""
    return {
        f"{architecture}.pooling_type": u32(RANK),
        f"{architecture}.classifier.output_labels": strings(names),
    }
