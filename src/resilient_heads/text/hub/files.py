"""Single files from the Hub: from the cache if possible, and checked against a sha256."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resilient_heads.errors import HubError
from resilient_heads.text.hub.client import TIMEOUT, download, translate_errors
from resilient_heads.text.hub.settings import HubSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a dataset repository on the Hub.

    Attributes:
        repo: ``"owner/name"``.
        file: Path in the repository.
        revision: Commit, branch or tag.
        sha256: Hex digest that the content must have; None accepts any content.
    """

    repo: str
    file: str
    revision: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}/{self.file} at {self.revision[:12]}"


def fetch_file(wanted: HubFile, settings: HubSettings) -> bytes:
    """Return a file's content from the cache or the Hub, with its sha256 checked; log where it came from.

    Raises:
        HubError: The Hub cannot be reached or refuses, or the content does not have the expected sha256.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    location: dict[str, Any] = {
        "repo_id": wanted.repo,
        "filename": wanted.file,
        "repo_type": "dataset",
        "revision": wanted.revision,
        "endpoint": settings.address,
    }
    try:
        cached = Path(hf_hub_download(**location, cache_dir=settings.cache_dir, local_files_only=True)).read_bytes()
    except (OSError, HFValidationError):
        cached = None
    if cached is not None and wanted.sha256 in (None, _sha256(cached)):
        logger.info("Using the cached %s.", wanted)
        return cached
    if cached is not None:
        logger.warning("The cached %s is damaged and is not used.", wanted)
    if settings.is_offline:
        raise HubError(f"{wanted} is not in the cache, and offline mode forbids downloading it.")
    with translate_errors(f"{wanted} could not be downloaded", settings):
        # Ask once without retries: the download itself would repeat a refused request for half a minute.
        get_hf_file_metadata(hf_hub_url(**location), timeout=TIMEOUT, token=settings.token, endpoint=settings.address)
        content = download(
            lambda cache: hf_hub_download(**location, cache_dir=cache, token=settings.token, force_download=True),
            settings,
        ).read_bytes()
    digest = _sha256(content)
    if wanted.sha256 not in (None, digest):
        raise HubError(
            f"{wanted} has sha256 {digest[:12]}, expected {str(wanted.sha256)[:12]}: the file was damaged during the "
            "download, or replaced on the Hub. It is not used."
        )
    logger.info("Downloaded %s.", wanted)
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
