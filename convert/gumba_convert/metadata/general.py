"""The `general.*` metadata: what the model is called and where it comes from.

Found by gguf's own heuristics (model card, config.json, folder name), so that names agree with other converters' files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.gguf_writer import STRING, Value, string

if TYPE_CHECKING:
    from gguf.gguf_writer import GGUFValue

#: Keys of sampler settings, which gguf takes from generation_config.json without a look at them.
SAMPLING = "general.sampling."


def metadata(checkpoint: Checkpoint, name: str | None, n_parameters: int) -> tuple[dict[str, Value], list[str]]:
    """`general.*` keys, and warnings. A model card that cannot be understood costs its details, not the conversion."""
    import gguf

    warnings = []
    checkpoint.outer.path("README.md")  # it is read by name below: it must not lead out of the folder
    checkpoint.path("generation_config.json")
    try:
        found = gguf.Metadata.load(model_path=checkpoint.outer.folder, model_name=name, total_params=n_parameters)
        found.name = name or found.name or checkpoint.outer.folder.resolve().name
        found.size_label = found.size_label or gguf.size_label(n_parameters, 0, 0, 0)
        writer = gguf.GGUFWriter(None, "")
        found.set_gguf_meta_model(writer)
    except Exception as error:  # any file of the folder can be malformed in any way, and gguf does not say how
        warnings.append(
            f"README.md, config.json or generation_config.json could not be understood ({type(error).__name__}: {error})"
        )
        return {"general.name": string(name or checkpoint.outer.folder.resolve().name)}, warnings
    described = dict(writer.kv_data[0])
    described.pop("general.architecture", None)
    for key in [key for key, value in described.items() if key.startswith(SAMPLING) and not _is_setting(value)]:
        name, value = key.removeprefix(SAMPLING), described.pop(key).value
        warnings.append(f"generation_config.json: {name} is {value!r:.80}, not a valid value: omitted")
    return {key: Value(int(value.type), value.value, STRING) for key, value in described.items()}, warnings


def _is_setting(entry: GGUFValue) -> bool:
    """Whether the value of a sampler setting is of its GGUF type: a text, an integer, or a number that is not negative."""
    value, kind = entry.value, entry.type.name
    if kind == "STRING" or isinstance(value, bool) or not isinstance(value, (int, float)):
        return kind == "STRING" and isinstance(value, str)
    return 0 <= value < 3e38 if kind == "FLOAT32" else abs(value) < 1 << 31 and value == int(value)
