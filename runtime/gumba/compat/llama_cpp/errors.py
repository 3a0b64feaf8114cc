"""Errors that are also of the built-in types that llama-cpp-python raises."""

from __future__ import annotations

from gumba.errors import EngineError, ModelError, RequestError, TemplateError, UnsupportedError


class LoadError(ModelError, ValueError):
    """A file that cannot be loaded. Also a ValueError, as in llama-cpp-python."""


class OptionError(UnsupportedError, ValueError):
    """A kind of model, or an option of llama-cpp-python, that gumba does not support. Also a ValueError."""


class ArgumentError(RequestError, TypeError):
    """An argument of the wrong type. Also a TypeError, as in llama-cpp-python."""


class ChatTemplateError(TemplateError, ValueError):
    """A chat template that is malformed or rejects the messages. Also a ValueError, as in llama-cpp-python."""


class PickleError(EngineError, TypeError):
    """A model cannot be pickled. Also a TypeError, as for any object that cannot be pickled."""


class PackageError(EngineError, ImportError):
    """A package that a method needs is not installed. Also an ImportError, as in llama-cpp-python."""


class InstallError(EngineError, ImportError):
    """Another module ``llama_cpp`` is already imported. Also an ImportError."""
