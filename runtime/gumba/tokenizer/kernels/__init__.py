"""Compiled loops of the tokenizers."""
