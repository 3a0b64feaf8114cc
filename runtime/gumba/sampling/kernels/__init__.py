"""Compiled loops of the sampler."""
