"""Translates errors of the Hugging Face hub and its library to DownloadError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gumba.errors import DownloadError, GumbaError
from gumba.hub.reference import Reference


class UnreachableError(DownloadError):
    """The hub cannot be reached."""


class NotFoundError(DownloadError):
    """The hub has no such model, or does not show it to this user."""


@contextlib.contextmanager
def hub_errors(reference: Reference) -> Iterator[None]:
    """Raise DownloadError for errors of the hub in the ``with`` block."""
    from huggingface_hub import constants, errors

    at, name = reference.at, str(reference)
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    unreachable = f"{at}: {reason}, and the model is not in the cache"
    try:
        yield
    except GumbaError:
        raise
    except errors.GatedRepoError:
        raise DownloadError(f"{name}: access must be granted on the hub first; then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise NotFoundError(f"{name}: no such model on the hub, or it is private (set HF_TOKEN)") from None
    except errors.RevisionNotFoundError:
        raise DownloadError(f"{name}: the hub has no revision {reference.revision}") from None
    except errors.HFValidationError:
        raise NotFoundError(f"{name!r} is neither a folder nor a valid hub id") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UnreachableError(unreachable) from None
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{name}: the hub has no such file: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        if status in (401, 403):
            raise DownloadError(f"{at}: the hub refuses access ({status}): check HF_TOKEN") from None
        kind = UnreachableError if status == 429 or (isinstance(status, int) and status >= 500) else DownloadError
        raise kind(f"{at}: the hub returned {status}") from None
    except OSError as error:
        if _of_connection(error):
            raise UnreachableError(unreachable) from None
        raise DownloadError(f"{at}: download failed: {_first_line(error)}") from None
    except Exception as error:  # of the library's HTTP client, which differs between its versions
        if _of_connection(error):
            raise UnreachableError(unreachable) from None
        raise DownloadError(f"{at}: unexpected response of the hub: {_first_line(error)}") from None


def _of_connection(error: BaseException) -> bool:
    """Whether an HTTP client's error is about the connection, by its class name: the client depends on the library."""
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"ConnectionError", "ConnectError", "TransportError", "TimeoutException", "Timeout"})


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
