"""Metadata of a file beside its architecture and vocabulary: `general.*` keys, end-of-generation tokens, sampler settings."""
