"""Backends: what runs programs on one kind of hardware. ``base`` declares their interface, the only part that others use."""

from __future__ import annotations

from gumba.backends.base import Backend


def get(name: str = "cpu", *, portable: bool = False) -> Backend:
    """The backend of that name, for the device in use. ValueError for an unknown name.

    ``portable``: one whose results have the same bits on every device, even where the device has something faster.
    """
    if name == "cpu":
        from gumba.backends.cpu.backend import CPUBackend

        return CPUBackend(portable=portable)
    raise ValueError(f"backend {name!r}: expected cpu")
