"""The chat templates of a checkpoint, from the files that transformers 5.24 reads, in its order."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gumba.errors import ConvertError
from gumba.validation import show
from gumba_convert.checkpoint.folder import Checkpoint, Folder

DEFAULT = "default"
_FOLDER = "additional_chat_templates"


def read_templates(checkpoint: Checkpoint, config: Mapping[str, object]) -> tuple[dict[str, str], list[str]]:
    """Chat templates by name, and warnings about those that are omitted.

    Those of chat_template.jinja and additional_chat_templates/*.jinja replace those in tokenizer_config.json (whose default one
    is kept if the files have none); chat_template.json applies if there are no others.

    Args:
        config: tokenizer_config.json, or empty.

    Raises:
        ConvertError: a template is not a string, or has no name.
    """
    own = _named(config.get("chat_template"), f"{checkpoint.folder / 'tokenizer_config.json'}")
    old = _named(
        (checkpoint.json("chat_template.json") or {}).get("chat_template"), f"{checkpoint.folder}/chat_template.json"
    )
    files = _files(checkpoint)
    warnings = []
    if files:
        templates = ({DEFAULT: own[DEFAULT]} if DEFAULT in own else {}) | files
        names = sorted(name for name, text in own.items() if templates.get(name) != text)
        if names:
            warnings.append(
                f"tokenizer_config.json: chat template {', '.join(map(show, names))} is omitted: chat_template.jinja and "
                f"{_FOLDER} take precedence"
            )
    else:
        templates = own or old
    if old and any(templates.get(name) != text for name, text in old.items()):
        warnings.append("chat_template.json: its chat template is omitted: another file takes precedence")
    return _with_plain_names(templates, warnings), warnings


def _files(checkpoint: Checkpoint) -> dict[str, str]:
    """The templates in separate files."""
    templates = {}
    default = checkpoint.text("chat_template.jinja")
    if default is not None:
        templates[DEFAULT] = default
    path = checkpoint.path(_FOLDER)
    if path.is_dir():
        folder = Folder(path, root=checkpoint.root)
        for name in sorted(file.name for file in path.glob("*.jinja")):
            text = folder.text(name)
            if text is not None:
                templates[name.removesuffix(".jinja")] = text
    return templates


def _named(value: object, where: str) -> dict[str, str]:
    """The templates of a JSON file: a string, a list of objects with a name and a template, or an object by name."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    pairs: list[tuple[object, object]]
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        pairs = [(entry.get("name"), entry.get("template")) for entry in value]
    else:
        raise ConvertError(
            f"{where}: chat_template: expected a string or a list of named templates, found {show(value)}"
        )
    templates: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(name, str) or not name or not isinstance(text, str):
            raise ConvertError(f"{where}: chat_template: expected names and strings, found {show(name)}: {show(text)}")
        templates[name] = text
    return templates


def _with_plain_names(templates: dict[str, str], warnings: list[str]) -> dict[str, str]:
    """``templates`` with names of letters, digits and _ only, as llama.cpp's converter writes them into keys."""
    renamed: dict[str, str] = {}
    for name, text in templates.items():
        plain = name if name == DEFAULT else re.sub("[^A-Za-z0-9]", "_", name)
        if renamed.setdefault(plain, text) != text:
            warnings.append(
                f"chat template {show(name)} is omitted: another template also has the name {plain} in GGUF"
            )
    return renamed
