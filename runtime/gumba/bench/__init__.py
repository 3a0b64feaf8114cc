"""Measurements: speed, profile and perplexity of a model."""
