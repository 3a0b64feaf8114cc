"""Parses references to models on a hub: a repository, optionally with a type or file, and a revision.

The forms are those of ``llama-cli -hf``, ``ollama run`` and a browser's address bar:

- ``owner/name``, and ids without an owner (``gpt2``);
- ``owner/name:TYPE``, the GGUF file of that type (``:latest`` is not a type), and ``owner/name:FILE.gguf``;
- ``owner/name/FILE.gguf``, a file of the repository, also in a subfolder;
- each of these after ``hf.co/``, ``huggingface.co/``, ``modelscope:`` or ``modelscope.cn/models/``;
- ``https://`` URLs of a repository or of a file in it (``/resolve/REVISION/FILE``, ``/blob/REVISION/FILE``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from gumba.errors import RequestError

MODELSCOPE = "modelscope:"
#: Each of these, set to 1, makes ids without a site mean ModelScope; the first one that is set decides.
SWITCHES = ("GUMBA_USE_MODELSCOPE", "VLLM_USE_MODELSCOPE", "FASTCHAT_USE_MODELSCOPE")

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TAG = re.compile(r"[\w.-]{1,255}", re.ASCII)
_HUB_HOSTS = ("hf.co", "huggingface.co", "www.huggingface.co")
_MODELSCOPE_HOSTS = ("modelscope.cn", "www.modelscope.cn")
_OTHER_REPOSITORIES = ("datasets", "spaces", "buckets")
#: The path components between a repository and a revision in a URL.
_VIEWS = ("resolve", "blob", "raw", "tree")


@dataclass(frozen=True)
class Reference:
    """A repository of a hub, and the type, file and revision in it.

    Attributes:
        repository: Its id, ``owner/name`` or ``name``.
        modelscope: Whether it is on ModelScope, not on the Hugging Face hub.
        type: The type of a GGUF file, as written ("Q4_K_M"); None: any.
        file: The path of a GGUF file in the repository; None: any.
        revision: A branch, tag or commit; None: the default branch.
        token: An access token; None: the one that the hub's library finds.
        cache_dir: The folder of the cache; None: the default of the hub's library.
    """

    repository: str
    modelscope: bool = False
    type: str | None = None
    file: str | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    cache_dir: Path | None = None

    def __str__(self) -> str:
        return (MODELSCOPE if self.modelscope else "") + self.repository

    @property
    def at(self) -> str:
        """The repository, with the revision if there is one: the start of error messages."""
        return str(self) + (f" at revision {self.revision}" if self.revision else "")

    @property
    def host(self) -> str:
        """The host that the model is downloaded from."""
        setting = os.environ.get("MODELSCOPE_ENDPOINT" if self.modelscope else "HF_ENDPOINT", "")
        return _netloc(setting) or setting or ("modelscope.cn" if self.modelscope else "huggingface.co")

    @property
    def names_file(self) -> bool:
        """Whether the reference selects a GGUF file, by type or name."""
        return self.type is not None or self.file is not None

    def with_revision(self, revision: str | None) -> Reference:
        """The same reference at ``revision``, if that is not None. Raises RequestError if it has another revision already."""
        if revision is None or revision == self.revision:
            return self
        if self.revision is not None:
            raise RequestError(f"revision: found {revision!r}, but the URL has {self.revision!r}")
        if not revision or revision.startswith("-") or any(not c.isprintable() or c.isspace() for c in revision):
            raise RequestError(f"revision: expected a branch, tag or commit, found {revision!r}")
        return replace(self, revision=revision)


def prefers_modelscope() -> bool:
    """Whether ids without a site mean ModelScope. Raises RequestError if a switch is neither yes nor no."""
    for name in SWITCHES:
        setting = os.environ.get(name)
        if setting is not None:
            if setting.strip().lower() not in _YES + _NO:
                raise RequestError(f"{name} is {setting!r}, expected 1 or 0")
            return setting.strip().lower() in _YES
    return False


def parse(text: str) -> Reference | None:
    """Parse ``text``; None if it does not have the form of a reference.

    Raises RequestError for a URL of another site or of something other than a model, and for an invalid path in a
    repository.
    """
    if re.match(r"https?://", text, re.IGNORECASE):
        return _of_address(text)
    if text.startswith(MODELSCOPE):
        return _of_path(text, text[len(MODELSCOPE) :].split("/"), True)
    host, slash, path = text.partition("/")
    if slash and host.lower() in _HUB_HOSTS:
        return _of_path(text, path.split("/"), False, explicit=True)
    if slash and host.lower() in _MODELSCOPE_HOSTS:
        return _of_path(text, path.removeprefix("models/").split("/"), True, explicit=True)
    reference = _of_path(text, text.split("/"), False)
    return reference and replace(reference, modelscope=prefers_modelscope())


def _of_address(text: str) -> Reference:
    """The reference of an ``https://`` URL."""
    try:
        url = urlsplit(text)
        hub, modelscope = _site(url)
        parts = [unquote(part, errors="strict") for part in url.path.strip("/").split("/")]
    except ValueError as error:
        raise RequestError(f"{text}: not a valid URL ({error})") from None
    if not hub and not modelscope:
        raise RequestError(
            f"{text}: gumba downloads from huggingface.co and modelscope.cn only; download the file and pass its path"
        )
    if modelscope and parts[:1] == ["models"]:
        parts = parts[1:]
    shown = parse_qs(url.query).get("show_file_info")
    if shown and len(parts) == 2:
        parts += shown[0].split("/")
    reference = _of_path(text, parts, modelscope, explicit=True)
    assert reference is not None
    return reference


def _site(url: SplitResult) -> tuple[bool, bool]:
    """Whether a URL belongs to the Hugging Face hub, and whether to ModelScope, or to their configured endpoints."""
    host = url.netloc.lower()
    hub = host in _HUB_HOSTS or host == _netloc(os.environ.get("HF_ENDPOINT", ""))
    named = os.environ.get("MODELSCOPE_ENDPOINT", "")
    named = named if "//" in named else f"//{named}"
    return bool(host) and hub, bool(host) and (host in _MODELSCOPE_HOSTS or host == _netloc(named))


def _netloc(address: str) -> str:
    """Host and port of an address in lower case; "" if it has none or is malformed."""
    try:
        return urlsplit(address).netloc.lower()
    except ValueError:
        return ""


def _of_path(text: str, parts: list[str], modelscope: bool, *, explicit: bool = False) -> Reference | None:
    """Parse the components of a path. ``explicit``: the text names a site, so an invalid path is an error instead of None."""
    if explicit and parts[0] in _OTHER_REPOSITORIES:
        raise RequestError(f"{text}: expected a model, found one of the hub's {parts[0]}")
    owned = len(parts) > 1 and parts[1] not in _VIEWS
    head, rest = parts[: 1 + owned], parts[1 + owned :]
    if modelscope and rest[:2] == ["file", "view"]:
        rest = ["blob", *rest[2:]]
    name, colon, tag = head[-1].partition(":")
    fits = all(map(_PART.fullmatch, (*head[:-1], name))) and (not colon or _TAG.fullmatch(tag))
    if fits and not rest:
        return _tagged("/".join([*head[:-1], name]), modelscope, tag)
    if fits and not colon:
        repository, revision = "/".join(head), None
        if rest[0] in _VIEWS and len(rest) > 1:
            revision, rest = rest[1], rest[2:]
            if rest[:1] and revision == "refs" and len(rest) >= 2:
                revision, rest = "/".join(["refs", *rest[:2]]), rest[2:]
        elif rest[0] in (*_VIEWS, "summary", "files"):
            rest = []
        if not rest:
            return Reference(repository, modelscope).with_revision(revision)
        if rest[-1].lower().endswith(".gguf") and (explicit or ".." not in rest):
            return Reference(repository, modelscope, file=checked_path("/".join(rest), text)).with_revision(revision)
    if explicit:
        raise RequestError(
            f"{text}: expected a repository (owner/name), a type in one (owner/name:TYPE) or a GGUF file in one"
        )
    return None


def _tagged(repository: str, modelscope: bool, tag: str) -> Reference:
    if tag.lower().endswith(".gguf"):
        return Reference(repository, modelscope, file=tag)
    return Reference(repository, modelscope, type=None if tag.lower() in ("", "latest") else tag)


def checked_path(path: str, where: str) -> str:
    """Return ``path``, of a file in a repository. Raises RequestError if it leads out of the repository's folder."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(not c.isprintable() or c in "\\:" for c in path):
        raise RequestError(f"{where}: {path!r} is not a valid path in a repository")
    return path
