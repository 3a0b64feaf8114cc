"""The tool parsers, in the order in which a chat template is searched for their markers.

A new parser is a file of this folder and a line of ``PARSERS``.
"""

from __future__ import annotations

from gumba.chat.tool_parsers.base import ToolParser
from gumba.chat.tool_parsers.deepseek import DeepSeek
from gumba.chat.tool_parsers.gemma4 import Gemma4
from gumba.chat.tool_parsers.glm4 import GLM4, GLM45
from gumba.chat.tool_parsers.hermes import Hermes
from gumba.chat.tool_parsers.kimi import Kimi
from gumba.chat.tool_parsers.llama3 import Llama3
from gumba.chat.tool_parsers.marked_json import MarkedJSON
from gumba.chat.tool_parsers.mistral import Mistral
from gumba.chat.tool_parsers.pythonic import Pythonic
from gumba.chat.tool_parsers.qwen_xml import QwenXML

#: The parser of templates that contain no marker of any parser.
DEFAULT = Hermes()
#: More specific markers come first: several templates contain "<tool_call>".
PARSERS: tuple[ToolParser, ...] = (
    Mistral(),
    DeepSeek(),
    Kimi(),
    MarkedJSON("<|START_ACTION|>", "<|END_ACTION|>"),
    Pythonic(),
    Gemma4(),
    MarkedJSON("<|function_call|>", "<|message_sep|>"),
    MarkedJSON("<tool_calls>", "</tool_calls>"),
    GLM45(),
    QwenXML("<seed:tool_call>", "</seed:tool_call>"),
    QwenXML(),
    Hermes(),
    MarkedJSON("<|tool_call|>", "<|/tool_call|>"),
    Llama3(),
    GLM4(),
)


def parser_of(source: str) -> ToolParser:
    """The parser for a chat template: the first one with a template marker in its text."""
    return next((parser for parser in PARSERS if any(marker in source for marker in parser.template_markers)), DEFAULT)
