"""The `general.*` metadata: what the model is called and where it comes from.

Found by gguf's own heuristics (model card, config.json, folder name), so that names agree with other converters' files.
"""

from __future__ import annotations

from gumba_convert.checkpoint import Checkpoint
from gumba_convert.gguf_writer import STRING, Value, string


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
            f"README.md or generation_config.json could not be understood ({type(error).__name__}: {error})"
        )
        return {"general.name": string(name or checkpoint.outer.folder.resolve().name)}, warnings
    described = writer.kv_data[0].items()
    return {
        key: Value(int(value.type), value.value, STRING) for key, value in described if key != "general.architecture"
    }, warnings
