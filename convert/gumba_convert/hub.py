"""Fetching a checkpoint from the Hugging Face hub: only the files that a conversion reads, and nothing is sent."""

from __future__ import annotations

import re
from pathlib import Path

from gumba.errors import DownloadError

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
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
]


def fetch(hub_id: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """The local folder of a hub model, downloaded or taken from the cache. HF_ENDPOINT, HF_HOME and HF_TOKEN count.

    Raises:
        DownloadError: no such model or revision, no access, no connection (and nothing in the cache), or disk full.
    """
    # Imported here: huggingface_hub takes 0.2 s, and a local folder does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, cache_dir=cache_dir, allow_patterns=NEEDED, max_workers=4)
        )
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
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise DownloadError(f"{hub_id}{at}: the hub answered {status}") from None
    except OSError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(f"{hub_id}{at}: download failed: {reason}") from None
