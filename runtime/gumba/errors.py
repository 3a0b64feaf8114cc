"""The exceptions of gumba.

    GumbaError
    ├── GGUFError            the file is not a well-formed GGUF file (path, field, byte offset)
    ├── ModelError           a well-formed file, but not a valid model of its architecture
    │   └── UnsupportedError the model needs something that this version does not support (architecture, type, option)
    ├── TokenizerError       the vocabulary is inconsistent, or text cannot be encoded
    ├── TemplateError        the chat template is invalid, unsafe, too slow or too large
    ├── RequestError         a prompt, token id, parameter or message is out of range
    ├── ConvertError         a checkpoint cannot be read, or a file cannot be written
    ├── DownloadError        a model source is unknown or unreachable, or a checksum differs
    ├── ResourceError        not enough memory, disk or pages: the message has what is needed and what is available
    │   └── QueueFullError   the queue of requests is full: try again later
    └── EngineError          the engine cannot run (closed, forked, unknown instruction set)

A message names what was found, where, what was expected and, if possible, what to do. The command line prints it as one line
on stderr and exits with code 2.
"""

from __future__ import annotations

from os import PathLike, fspath


class GumbaError(Exception):
    """Base class of the exceptions of gumba."""


class GGUFError(GumbaError):
    """A file is not well-formed GGUF.

    ``path`` is the file, ``field`` the header field, metadata key or tensor at fault, ``offset`` its byte offset in the file
    (None if there is no single one).
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
    """A well-formed file without a valid model: missing tensors, wrong shapes, impossible sizes."""


class UnsupportedError(ModelError):
    """A model needs an architecture, tensor type or option that this version does not support."""


class TokenizerError(GumbaError):
    """A vocabulary is inconsistent, or a text or id cannot be encoded or decoded."""


class TemplateError(GumbaError):
    """A chat template is invalid, unsafe, too slow or too large, or rejects the messages."""


class RequestError(GumbaError, ValueError):
    """A prompt, token id, parameter or message is out of range.

    ``index``: index of the prompt at fault among several; None if the message does not begin with it.
    """

    index: int | None = None


class ConvertError(GumbaError):
    """A checkpoint cannot be read, or a converted file cannot be written."""


class DownloadError(GumbaError):
    """A model source is unknown or unreachable, or the checksum of a download differs."""


class ResourceError(GumbaError):
    """Not enough memory, disk or KV pages."""


class QueueFullError(ResourceError):
    """The queue of requests is full; the same request may succeed later."""


class EngineError(GumbaError, RuntimeError):
    """The engine cannot do this: it is closed or was forked, or the processor lacks an instruction set."""
