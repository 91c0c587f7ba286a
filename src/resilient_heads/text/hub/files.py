"""Single files from the Hub: from the cache if possible, and checked against a sha256."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from resilient_heads.errors import HubError
from resilient_heads.text.hub.client import TIMEOUT, RepoType, download, translate_errors
from resilient_heads.text.hub.settings import HubSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a repository on the Hub.

    Attributes:
        repo: ``"owner/name"``.
        file: Path in the repository.
        revision: Commit, branch or tag.
        sha256: Hex digest that the content must have; None accepts any content.
        repo_type: Kind of repository.
    """

    repo: str
    file: str
    revision: str
    sha256: str | None = None
    repo_type: RepoType = "dataset"

    def __str__(self) -> str:
        return f"{self.repo}/{self.file} at {self.revision[:12]}"


def cached_file(wanted: HubFile, settings: HubSettings) -> bytes | None:
    """Return a file's content from the cache, or None if it is missing or damaged. Uses no network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        path = hf_hub_download(
            wanted.repo,
            wanted.file,
            repo_type=wanted.repo_type,
            revision=wanted.revision,
            cache_dir=settings.cache_dir,
            endpoint=settings.address,
            local_files_only=True,
        )
        content = Path(path).read_bytes()
    except (OSError, HFValidationError):
        return None
    if wanted.sha256 is not None and hashlib.sha256(content).hexdigest() != wanted.sha256:
        logger.warning("The cached file %s is damaged and is not used.", wanted)
        return None
    return content


def fetch_file(wanted: HubFile, settings: HubSettings) -> bytes:
    """Return a file's content from the cache or the Hub, with its sha256 checked.

    Raises:
        HubError: The Hub cannot be reached or refuses, or the content does not have the expected sha256.
    """
    content = cached_file(wanted, settings)
    if content is not None:
        return content
    if settings.is_offline:
        raise HubError(f"{wanted} is not in the cache, and offline mode forbids downloading it.")
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    with translate_errors(f"{wanted} could not be downloaded", settings):
        # Ask once without retries: the download itself would repeat a refused request for half a minute.
        url = hf_hub_url(
            wanted.repo,
            wanted.file,
            repo_type=wanted.repo_type,
            revision=wanted.revision,
            endpoint=settings.address,
        )
        get_hf_file_metadata(url, timeout=TIMEOUT, token=settings.token, endpoint=settings.address)
        path = download(
            lambda cache: hf_hub_download(
                wanted.repo,
                wanted.file,
                repo_type=wanted.repo_type,
                revision=wanted.revision,
                cache_dir=cache,
                endpoint=settings.address,
                token=settings.token,
                force_download=True,  # the cached copy, if there is one, is damaged
            ),
            settings,
        )
        content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if wanted.sha256 is not None and digest != wanted.sha256:
        raise HubError(
            f"{wanted} has sha256 {digest[:12]}, expected {wanted.sha256[:12]}: the file was damaged during the "
            "download, or replaced on the Hub. It is not used."
        )
    return content
