"""Every error that gumba raises on purpose.

    GumbaError
    ├── GGUFError            the file is not a well-formed GGUF file (path, field, byte offset)
    ├── ModelError           a well-formed file, but not a model that its architecture's rules allow
    │   └── UnsupportedError a model that needs something this version does not have (architecture, type, option)
    ├── TokenizerError       the vocabulary is inconsistent, or text cannot be encoded
    ├── TemplateError        the chat template is wrong, unsafe, too slow or too large
    ├── RequestError         a prompt, token id, parameter or message is out of range
    ├── ConvertError         a checkpoint cannot be read, or a file cannot be written
    ├── DownloadError        a model source is unknown, unreachable, or failed its checksum
    ├── ResourceError        not enough memory, disk or pages: says what is needed and what there is
    │   └── QueueFullError   more requests wait than may: try again later
    └── EngineError          the engine cannot work here (closed, forked, unknown instruction set)

A message says what was found, where, what was expected and, where there is one, what to do.
At the command line each of them is one line on stderr and exit code 2.
"""

from __future__ import annotations

from os import PathLike, fspath


class GumbaError(Exception):
    """Base of all errors that gumba raises on purpose."""


class GGUFError(GumbaError):
    """A file is not well-formed GGUF.

    ``path`` is the file, ``field`` the header field, metadata key or tensor at fault, ``offset`` the byte offset in
    the file where it was read (None when the fault has no single place).
    """

    def __init__(
        self, message: str, *, path: str | PathLike[str] | None = None, field: str = "", offset: int | None = None
    ) -> None:
        self.path = None if path is None else fspath(path)
        self.field = field
        self.offset = offset
        where = [part for part in (self.path, field) if part]
        if offset is not None:
            where.append(f"byte {offset}")
        super().__init__(f"{', '.join(where)}: {message}" if where else message)


class ModelError(GumbaError):
    """A well-formed file whose contents do not make a model: missing tensors, wrong shapes, impossible sizes."""


class UnsupportedError(ModelError):
    """A model that needs an architecture, tensor type or option that this version does not have."""


class TokenizerError(GumbaError):
    """A vocabulary is inconsistent, or a text or id cannot be encoded or decoded."""


class TemplateError(GumbaError):
    """A chat template is wrong, unsafe, too slow or too large, or rejects the messages."""


class RequestError(GumbaError, ValueError):
    """A prompt, token id, parameter or message is out of range.

    ``index``: which one of several prompts is at fault, None where the message does not begin with it.
    """

    index: int | None = None


class ConvertError(GumbaError):
    """A checkpoint cannot be read, or a converted file cannot be written."""


class DownloadError(GumbaError):
    """A model source is unknown, unreachable, or what came from it failed its checksum."""


class ResourceError(GumbaError):
    """Not enough memory, disk or KV pages."""


class QueueFullError(ResourceError):
    """More requests wait than may; the same request may well succeed later."""


class EngineError(GumbaError, RuntimeError):
    """The engine cannot do this here: it is closed, was forked, or the processor lacks what was asked for."""
