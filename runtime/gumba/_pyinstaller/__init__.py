"""Where PyInstaller finds the hook that packs gumba into a frozen application (an entry point in pyproject.toml says so)."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folders of PyInstaller hooks."""
    return [str(Path(__file__).parent)]
