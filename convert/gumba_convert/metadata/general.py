"""The `general.*` metadata: name and origin of the model.

They come from the gguf package's heuristics (model card, config.json, folder name), as in other converters' files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.gguf_writer import STRING, Value, string

if TYPE_CHECKING:
    from gguf.gguf_writer import GGUFValue

#: Prefix of sampler settings, which gguf takes from generation_config.json unchecked.
SAMPLING = "general.sampling."


def metadata(checkpoint: Checkpoint, name: str | None, n_parameters: int) -> tuple[dict[str, Value], list[str]]:
    """`general.*` keys, and warnings. A malformed model card loses its details, but does not stop the conversion."""
    import gguf

    warnings = []
    checkpoint.outer.path("README.md")  # checks that a link does not lead out of the folder; gguf reads it below
    checkpoint.path("generation_config.json")
    try:
        loaded = gguf.Metadata.load(model_path=checkpoint.outer.folder, model_name=name, total_params=n_parameters)
        loaded.name = name or loaded.name or checkpoint.outer.folder.resolve().name
        loaded.size_label = loaded.size_label or gguf.size_label(n_parameters, 0, 0, 0)
        writer = gguf.GGUFWriter(None, "")
        loaded.set_gguf_meta_model(writer)
    except Exception as error:  # gguf raises many kinds of errors for malformed files
        warnings.append(
            f"README.md, config.json or generation_config.json could not be parsed ({type(error).__name__}: {error})"
        )
        return {"general.name": string(name or checkpoint.outer.folder.resolve().name)}, warnings
    described = dict(writer.kv_data[0])
    described.pop("general.architecture", None)
    for key in [key for key, value in described.items() if key.startswith(SAMPLING) and not _is_setting(value)]:
        name, value = key.removeprefix(SAMPLING), described.pop(key).value
        warnings.append(f"generation_config.json: {name} is {value!r:.80}, not a valid value: omitted")
    return {key: Value(int(value.type), value.value, STRING) for key, value in described.items()}, warnings


def _is_setting(entry: GGUFValue) -> bool:
    """Whether the value of a sampler setting fits its GGUF type: a string, an integer, or a non-negative number."""
    value, kind = entry.value, entry.type.name
    if kind == "STRING" or isinstance(value, bool) or not isinstance(value, (int, float)):
        return kind == "STRING" and isinstance(value, str)
    return 0 <= value < 3e38 if kind == "FLOAT32" else abs(value) < 1 << 31 and value == int(value)
