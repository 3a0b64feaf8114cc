"""Chat: templates that turn messages into prompts, and parsers of reasoning and tool calls in answers."""
