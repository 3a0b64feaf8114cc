"""Structured outputs: output constrained to a JSON schema, regular expression, choice or grammar."""
