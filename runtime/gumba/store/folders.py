"""The folders of models, conversions and the state of commands."""

from __future__ import annotations

import os
from pathlib import Path

from gumba.errors import ResourceError
from gumba.hub.home import no_home


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


def unusable(folder: Path, use: str, error: OSError) -> ResourceError:
    """The error for a ``folder`` that cannot be written, with the setting that determines it."""
    setting = os.environ.get("GUMBA_HOME")
    origin = f"GUMBA_HOME is {setting}" if setting else "set GUMBA_HOME to use another folder"
    return ResourceError(f"{folder}, the folder of {use}, cannot be written: {error.strerror or error} ({origin})")


def _home(name: str) -> Path:
    setting = os.environ.get("GUMBA_HOME")
    if setting:
        try:
            return Path(setting).expanduser().absolute() / name
        except RuntimeError:
            raise ResourceError(f"GUMBA_HOME is {setting}: that user has no home folder") from None
    import platformdirs

    folders = {"models": platformdirs.user_data_dir, "state": platformdirs.user_state_dir}
    try:
        folder = Path(folders.get(name, platformdirs.user_cache_dir)("gumba", appauthor=False))
    except RuntimeError:
        folder = Path("~")
    if folder.parts[:1] == ("~",):  # returned by older versions of platformdirs
        raise no_home("the folder of models", "GUMBA_HOME")
    return folder / name
