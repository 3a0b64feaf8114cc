"""Parsers of tool calls, one file per form."""
