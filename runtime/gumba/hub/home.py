"""The user's home folder, which the caches of the hubs' libraries need."""

from __future__ import annotations

import os

from gumba.errors import ResourceError


def has_home() -> bool:
    """Whether this user has a home folder: HOME is set, or there is a passwd entry."""
    return os.path.expanduser("~") != "~"  # noqa: PTH111 - Path.expanduser raises if there is no home


def no_home(use: str, setting: str) -> ResourceError:
    """The error for a missing home folder, with its ``use`` and the environment variable that sets another folder."""
    return ResourceError(f"{use}: this user has no home folder (HOME is not set); set {setting} to a folder")
