"""The folders of models, conversions and the state of commands."""

from __future__ import annotations

import os
from pathlib import Path

from gumba.errors import ResourceError


def models_folder() -> Path:
    """The folder of pulled models (it may not exist yet). Raises ResourceError if there is no home folder."""
    return _home("models")


def converted_folder() -> Path:
    """The folder of converted checkpoints (it may not exist yet). Raises ResourceError if there is no home folder."""
    return _home("converted")


def state_folder() -> Path:
    """The folder of state that commands keep between runs, such as the input history (it may not exist yet).

    Raises ResourceError if there is no home folder.
    """
    return _home("state")


def has_home() -> bool:
    """Whether this user has a home folder: HOME is set, or there is a passwd entry."""
    return os.path.expanduser("~") != "~"  # noqa: PTH111 - Path.expanduser raises if there is no home


def no_home(use: str, setting: str) -> ResourceError:
    """The error for a missing home folder, with its ``use`` and the environment variable that sets another folder."""
    return ResourceError(f"{use}: this user has no home folder (HOME is not set); set {setting} to a folder")


def unusable(folder: Path, use: str, error: OSError) -> ResourceError:
    """The error for a ``folder`` that cannot be written, with the setting that determines it."""
    setting = os.environ.get("GUMBA_HOME")
    origin = f"GUMBA_HOME is {setting}" if setting else "set GUMBA_HOME to use another folder"
    return ResourceError(f"{folder}, the folder of {use}, cannot be written: {error.strerror or error} ({origin})")


def _home(room: str) -> Path:
    setting = os.environ.get("GUMBA_HOME")
    if setting:
        try:
            return Path(setting).expanduser().absolute() / room
        except RuntimeError:
            raise ResourceError(f"GUMBA_HOME is {setting}: that user has no home folder") from None
    import platformdirs

    places = {"models": platformdirs.user_data_dir, "state": platformdirs.user_state_dir}
    try:
        folder = Path(places.get(room, platformdirs.user_cache_dir)("gumba", appauthor=False))
    except RuntimeError:
        folder = Path("~")
    if folder.parts[:1] == ("~",):  # returned by older versions of platformdirs
        raise no_home("the folder of models", "GUMBA_HOME")
    return folder / room
