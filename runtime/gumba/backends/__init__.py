"""Backends: what computes a program. ``base`` says what one provides; the runner names no other part of it."""

from __future__ import annotations

from gumba.backends.base import Backend


def get(name: str = "cpu") -> Backend:
    """The backend of that name, for the device in use. ValueError for an unknown name."""
    if name == "cpu":
        from gumba.backends.cpu.backend import CPUBackend

        return CPUBackend()
    raise ValueError(f"backend {name!r}: expected cpu")
