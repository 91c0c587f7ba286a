"""Model repositories from the Hub: the needed files of one commit, from the cache if possible."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resilient_heads.errors import HubError
from resilient_heads.text.hub.client import TIMEOUT, download, translate_errors
from resilient_heads.text.hub.settings import HubSettings, check_revision

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)


def fetch_snapshot(
    repo: str, files: Sequence[str], *, any_of: Sequence[str], revision: str | None, settings: HubSettings
) -> Path:
    """Return a folder with files of a model repository. The folder's name is the commit.

    A commit that is in the cache is used without asking the Hub. For a branch, or without a revision, the function asks
    the Hub for the newest commit; if the Hub does not answer, it uses the newest commit in the cache.

    Args:
        repo: ``"owner/name"``.
        files: Patterns of files to download; a pattern that matches nothing is ignored.
        any_of: Names of the required file in order of preference; the first that the repository has is downloaded.
        revision: Commit, branch or tag; None uses the newest commit and logs it.
        settings: How to reach the Hub.

    Raises:
        HubError: The files cannot be downloaded.
    """
    folder = _cached(repo, revision, files, any_of, settings)
    if folder is None and settings.is_offline:
        raise HubError(f"{_title(repo, revision)} is not in the cache, and offline mode forbids downloading it.")
    if folder is None or not (settings.is_offline or folder.name == revision):
        try:
            listing = _listing(repo, revision, settings)
        except HubError as error:
            if folder is None or not error.temporary:
                raise
            logger.warning("%s Using the cached commit %s instead.", error, folder.name)
        else:
            present = {sibling.rfilename for sibling in listing.siblings or ()}
            patterns = [*files, *[name for name in any_of if name in present][:1]]
            folder = _download(repo, revision, patterns, settings)
    if revision != folder.name:
        logger.warning("Using %s at commit %s. To pin it, pass revision=%r.", repo, folder.name, folder.name)
    return folder


def newest_commit(repo: str, *, revision: str | None, settings: HubSettings) -> str:
    """Return the commit that :func:`fetch_snapshot` would use, without downloading the files.

    The commit is "" if the cache does not know it and the Hub does not answer.

    Raises:
        HubError: The Hub refuses access, or has no such repository or revision.
    """
    cached = _cached(repo, revision, (), (), settings)
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if not settings.is_offline:
        try:
            return str(_listing(repo, revision, settings).sha)
        except HubError as error:
            if not error.temporary:
                raise
            logger.warning("%s", error)
    return "" if cached is None else cached.name


def _download(repo: str, revision: str | None, patterns: Sequence[str], settings: HubSettings) -> Path:
    from huggingface_hub import snapshot_download

    location: dict[str, Any] = {"revision": revision, "endpoint": settings.address, "token": settings.token}
    with translate_errors(f"{_title(repo, revision)} could not be downloaded", settings):
        return download(
            lambda cache: str(snapshot_download(repo, allow_patterns=list(patterns), cache_dir=cache, **location)),
            settings,
        )


def _cached(
    repo: str, revision: str | None, files: Sequence[str], any_of: Sequence[str], settings: HubSettings
) -> Path | None:
    """Return the cached folder if it has one of the required files, or None. Uses no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    check_revision("revision", revision)
    for name in any_of or ("",):
        try:
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*files, name],
                cache_dir=settings.cache_dir,
                endpoint=settings.address,
                local_files_only=True,  # raises if the client knows that files are missing
            )
        except (OSError, HFValidationError):
            continue
        if not name or (Path(folder) / name).is_file():
            return Path(folder)
    return None


def _listing(repo: str, revision: str | None, settings: HubSettings) -> "ModelInfo":
    """Ask the Hub once, without retries, for the commit and its files."""
    from huggingface_hub import HfApi

    with translate_errors(f"{_title(repo, revision)} could not be found", settings):
        api = HfApi(endpoint=settings.address, token=settings.token)
        return api.model_info(repo, revision=revision or "main", timeout=TIMEOUT)


def _title(repo: str, revision: str | None) -> str:
    return f"{repo} at {revision or 'its newest commit'}"
