"""Fetching a checkpoint from the Hugging Face hub: only the files that a conversion reads, and nothing is sent.

Ids that begin with `modelscope:` are fetched from there, see `gumba_convert.modelscope`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from gumba.errors import DownloadError
from gumba_convert import modelscope

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
NEEDED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "qwen.tiktoken",
    "tekken.json",
    "tokenization_chatglm.py",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]_*/config.json",
    "[0-9]_Dense/model.safetensors",
    "README.md",
]
# Old layouts of sentence-transformers have the checkpoint in a folder.
NEEDED += [f"0_Transformer/{name}" for name in NEEDED if "/" not in name]


def is_id(text: str) -> bool:
    """Whether a text can be the id of a model on a hub."""
    return HUB_ID.fullmatch(text.removeprefix(modelscope.PREFIX)) is not None


def whole_id(hub_id: str) -> str:
    """A hub id that also says where the model is, whatever GUMBA_USE_MODELSCOPE says."""
    name = modelscope.named(hub_id)
    return hub_id if name is None else modelscope.PREFIX + name


def fetch(hub_id: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """The local folder of a hub model, downloaded or taken from the cache. HF_ENDPOINT, HF_HOME and HF_TOKEN count.

    Raises:
        DownloadError: no such model or revision, no access, no connection (and nothing in the cache), or disk full. It
            also says that there is no folder of that name, which may be what was meant.
    """
    try:
        return _fetch(hub_id, revision, cache_dir)
    except DownloadError as error:
        if hub_id.startswith(modelscope.PREFIX) or Path(hub_id).is_dir():
            raise
        raise DownloadError(f"{error} (nor is there a folder {hub_id} here)") from None


def _fetch(hub_id: str, revision: str | None, cache_dir: Path | None) -> Path:
    name = modelscope.named(hub_id)
    if name is not None:
        return modelscope.fetch(name, NEEDED, revision=revision, cache_dir=cache_dir)
    # Imported here: huggingface_hub takes 0.2 s, and a local folder does not need it.
    from huggingface_hub import snapshot_download

    with _hub_errors(hub_id, revision):
        return Path(
            snapshot_download(hub_id, revision=revision, cache_dir=cache_dir, allow_patterns=NEEDED, max_workers=4)
        )


def fetch_file(
    hub_id: str,
    pattern: str,
    *,
    local_dir: str | PathLike[str] | None = None,
    cache_dir: str | PathLike[str] | None = None,
) -> Path:
    """One file of a hub model, downloaded (into ``local_dir``, if given) or taken from the cache.

    ``pattern``: its name, or a glob pattern that fits no other. HF_ENDPOINT, HF_HOME and HF_TOKEN count.

    Raises:
        RequestError: No file fits, or several do.
        DownloadError: As ``fetch``.
    """
    places = [None if each is None else Path(each) for each in (local_dir, cache_dir)]
    there = modelscope.named(hub_id)
    if there is not None:
        return modelscope.fetch_file(there, pattern, local_dir=places[0], cache_dir=places[1])
    from huggingface_hub import hf_hub_download, list_repo_files

    with _hub_errors(hub_id, None):
        name = pattern
        if any(sign in pattern for sign in "*?["):  # a plain name is found in the cache without asking the hub
            name = modelscope.one_of(hub_id, list_repo_files(hub_id), pattern)
        return Path(hf_hub_download(hub_id, name, local_dir=places[0], cache_dir=places[1]))


@contextlib.contextmanager
def _hub_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    """What goes wrong with the hub, as DownloadError."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except GatedRepoError:
        raise DownloadError(f"{hub_id}: access must be granted on the hub first; then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise DownloadError(f"{hub_id}: no such model on the hub, or it is private (set HF_TOKEN)") from None
    except RevisionNotFoundError:
        raise DownloadError(f"{hub_id}: the hub has no revision {revision}") from None
    except HFValidationError:
        raise DownloadError(f"{hub_id!r} is neither a folder nor a valid hub id") from None
    except LocalEntryNotFoundError:
        raise DownloadError(f"{hub_id}{at}: the hub cannot be reached, and the model is not in the cache") from None
    except EntryNotFoundError as error:
        raise DownloadError(f"{hub_id}: the hub has no such file: {str(error).splitlines()[0]}") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise DownloadError(f"{hub_id}{at}: the hub answered {status}") from None
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(f"{hub_id}{at}: download failed: {reason}") from None
