"""Precedence of a checkpoint's chat templates, as in transformers 5.24 (AutoTokenizer.from_pretrained)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gumba.errors import ConvertError
from gumba_convert.checkpoint.folder import Checkpoint
from gumba_convert.vocabulary.chat_templates import read_templates
from support.tiny_checkpoints import write_checkpoint

JINJA, TOOL_USE = "chat_template.jinja", "additional_chat_templates/tool_use.jinja"
#: The template of tokenizer_config.json, other files, the templates, and what warnings name.
CASES = [
    ("OLD", {JINJA: "NEW"}, {"default": "NEW"}, ["'default'"]),
    ("SAME", {JINJA: "SAME"}, {"default": "SAME"}, []),
    (None, {JINJA: "DEF", TOOL_USE: "TOOL"}, {"default": "DEF", "tool_use": "TOOL"}, []),
    ([{"name": "default", "template": "OLD"}, {"name": "rag", "template": "R"}], {JINJA: "NEW"}, {"default": "NEW"}, ["'rag'"]),
    ([{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}], {}, {"default": "D", "rag": "R"}, []),
    ({"default": "D", "rag": "R"}, {}, {"default": "D", "rag": "R"}, []),
    ("OLD", {TOOL_USE: "TOOL"}, {"default": "OLD", "tool_use": "TOOL"}, []),  # transformers has no default then
    (None, {"chat_template.json": {"chat_template": "J"}}, {"default": "J"}, []),
    ("OLD", {"chat_template.json": {"chat_template": "J"}}, {"default": "OLD"}, ["chat_template.json"]),
    ({"a-b": "1", "a_b": "2"}, {}, {"a_b": "1"}, ["'a_b'"]),
    ("", {}, {"default": ""}, []),
]  # fmt: skip


def checkpoint(folder: Path, template: Any, files: dict[str, Any]) -> tuple[Checkpoint, dict[str, Any]]:
    (folder / "hf" / "additional_chat_templates").mkdir(parents=True)
    write_checkpoint(folder / "hf", files=files)
    return Checkpoint(folder / "hf"), {} if template is None else {"chat_template": template}


@pytest.mark.parametrize(("template", "files", "wanted", "warned"), CASES)
def test_precedence_of_templates(
    tmp_path: Path, template: Any, files: dict[str, Any], wanted: dict[str, str], warned: list[str]
) -> None:
    found, warnings = read_templates(*checkpoint(tmp_path, template, files))
    assert found == wanted
    assert len(warnings) == len(warned)
    assert all(name in text for name, text in zip(warned, warnings, strict=True))


@pytest.mark.parametrize(
    "template",
    [7, True, ["A"], [{"name": "default"}], [{"template": "A"}], {"default": 7}, [{"name": "", "template": "A"}]],
)
@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.json"])
def test_invalid_templates_are_refused(tmp_path: Path, template: Any, where: str) -> None:
    files = {where: {"chat_template": template}}
    folder, config = checkpoint(tmp_path, template if where.startswith("tok") else None, files)
    with pytest.raises(ConvertError, match=f"{where}: chat_template: expected"):
        read_templates(folder, config)
