"""Measurements of a model: speed, time per operation, perplexity."""
