"""Single files from the Hub: from the cache if possible, and checked against a sha256."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from resilient_heads.errors import HubError
from resilient_heads.text.hub.client import TIMEOUT, download, translate_errors
from resilient_heads.text.hub.settings import HubSettings

logger = logging.getLogger(__name__)


def fetch_file(repo: str, file: str, *, revision: str, sha256: str | None = None, settings: HubSettings) -> bytes:
    """Return a file of a dataset repository, and log where it came from: the cache or the Hub.

    Args:
        repo: ``"owner/name"``.
        file: Path in the repository.
        revision: Commit, branch or tag.
        sha256: Hex digest that the content must have; None accepts any content.
        settings: How to reach the Hub.

    Raises:
        HubError: The Hub cannot be reached or refuses, or the content does not have the expected sha256.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    title = f"{repo}/{file} at {revision[:12]}"
    location: dict[str, Any] = {
        "repo_id": repo,
        "filename": file,
        "repo_type": "dataset",
        "revision": revision,
        "endpoint": settings.address,
    }
    # Without a digest, the cached file of a branch may be outdated.
    if settings.is_offline or sha256 is not None or re.fullmatch("[0-9a-f]{40}", revision):
        try:
            cached = Path(hf_hub_download(**location, cache_dir=settings.cache_dir, local_files_only=True)).read_bytes()
        except (OSError, HFValidationError):
            cached = None
        if cached is not None and sha256 in (None, hashlib.sha256(cached).hexdigest()):
            logger.info("Using the cached %s.", title)
            return cached
        if cached is not None:
            logger.warning("The cached %s has another sha256 than expected and is not used.", title)
    if settings.is_offline:
        raise HubError(f"{title} is not in the cache, and offline mode forbids downloading it.")
    with translate_errors(f"{title} could not be downloaded", settings):
        # Ask once without retries: the download itself would repeat a refused request for half a minute.
        get_hf_file_metadata(hf_hub_url(**location), timeout=TIMEOUT, token=settings.token, endpoint=settings.address)
        content = download(
            lambda cache: hf_hub_download(**location, cache_dir=cache, token=settings.token, force_download=True),
            settings,
        ).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, digest):
        raise HubError(
            f"{title} has sha256 {digest[:12]}, expected {str(sha256)[:12]}: the file was damaged during the "
            "download, or replaced on the Hub. It is not used."
        )
    logger.info("Downloaded %s.", title)
    return content
