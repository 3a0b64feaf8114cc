"""Backends: what runs a model's program on one kind of device."""
