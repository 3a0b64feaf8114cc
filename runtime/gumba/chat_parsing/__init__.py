"""What a chat model's answer consists of: reasoning, the answer proper, and calls of tools.

One file per form of tool calls; ``formats`` finds the forms that a chat template speaks.
"""

from gumba.chat_parsing.answer import AnswerFormat, AnswerParser
from gumba.chat_parsing.formats import REASONING, answer_format
from gumba.chat_parsing.tools import checked_tools

__all__ = ["REASONING", "AnswerFormat", "AnswerParser", "answer_format", "checked_tools"]
