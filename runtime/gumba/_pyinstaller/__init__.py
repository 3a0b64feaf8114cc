"""The folder of the PyInstaller hook, which an entry point in pyproject.toml names."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folders of PyInstaller hooks."""
    return [str(Path(__file__).parent)]
