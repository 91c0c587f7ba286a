"""Whole model repositories from the Hub: at a commit, from the cache where it has them."""

import atexit
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import ModelInfo

from resilient_heads.errors import HubError
from resilient_heads.text.hub.client import (
    ANSWER_SECONDS,
    HubSettings,
    check_reachable,
    explaining,
    is_unwritable,
    settings_from,
)

logger = logging.getLogger(__name__)


def fetch_snapshot(
    repo: str,
    files: Sequence[str],
    *,
    any_of: Sequence[str],
    revision: str | None,
    offline: bool = False,
    settings: HubSettings | None = None,
) -> Path:
    """Return the folder with the files of a model repository; its name is the commit.

    A commit that is cached is taken without asking the Hub. A branch, or no revision, asks the Hub for the newest and
    falls back on what is cached of it when the Hub gives no answer.

    Args:
        repo: ``"owner/name"``.
        files: Patterns of files to take, as far as the repository has them.
        any_of: Names of the file that matters, of which the first that the repository has is taken.
        revision: Commit, branch or tag; None takes the newest and logs which that is.
        offline: Use only what is cached.
        settings: How the Hub is reached; ``offline`` adds to it.

    Raises:
        HubError: The files cannot be had.
    """
    settings = settings_from(settings, offline)
    _require_revision(revision)
    cached = _cached(repo, revision, files, any_of, settings)
    if cached is not None and (settings.is_offline or cached.name == revision):
        return _told(repo, cached, revision)
    if settings.is_offline:
        raise HubError(
            f"{repo} at {revision or 'its newest commit'} could not be had: it is not in the cache, and offline mode "
            "forbids fetching it."
        )
    try:
        listing = _listing(repo, revision, settings)
    except HubError as error:
        if cached is None or not error.temporary:
            raise
        logger.warning("%s Took what is cached of it, commit %s.", error, cached.name)
        return _told(repo, cached, revision)
    names = {one.rfilename for one in listing.siblings or ()}
    wanted = [*files, *[name for name in any_of if name in names][:1]]
    return _told(repo, _download(repo, revision, wanted, settings), revision)


def newest_commit(repo: str, *, revision: str | None, settings: HubSettings) -> str:
    """Return the commit that :func:`fetch_snapshot` would take, without taking it.

    Returns:
        40 hexadecimal digits; empty where only the Hub knows, and it cannot be asked now.

    Raises:
        HubError: The Hub refuses, or has no such repository or revision.
    """
    _require_revision(revision)
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if not settings.is_offline:
        try:
            return str(_listing(repo, revision, settings).sha)
        except HubError as error:
            if not error.temporary:
                raise
            logger.warning("%s", error)
    cached = _cached(repo, revision, (), (), settings)
    return "" if cached is None else cached.name


def _require_revision(revision: str | None) -> None:
    """Refuse what names no revision."""
    if revision is not None and (not isinstance(revision, str) or not revision.strip()):
        raise HubError(f"revision must be a commit, branch or tag, or None for the newest; found {revision!r:.60}.")


def _cached(
    repo: str, revision: str | None, files: Sequence[str], any_of: Sequence[str], settings: HubSettings
) -> Path | None:
    """Return the cache's folder if it is there and holds the file that matters; never touches the network."""
    for name in any_of or ("",):
        try:
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*files, name],
                cache_dir=settings.cache_dir,
                endpoint=settings.address,
                local_files_only=True,  # raises where the client knows that files are missing
            )
        except (OSError, HFValidationError):
            continue
        if not name or (Path(folder) / name).is_file():
            return Path(folder)
    return None


def _listing(repo: str, revision: str | None, settings: HubSettings) -> ModelInfo:
    """Ask the Hub, once and without patience, what it has: the client would repeat a refusal for half a minute."""
    check_reachable(settings.address)
    with explaining(f"{repo} at {revision or 'its newest commit'}", settings):
        api = HfApi(endpoint=settings.address, token=settings.token)
        return api.model_info(repo, revision=revision or "main", timeout=ANSWER_SECONDS)


def _download(repo: str, revision: str | None, wanted: Sequence[str], settings: HubSettings) -> Path:
    """Download into the client's cache, or past it where the cache cannot be written."""

    def to(cache: str | Path | None) -> Path:
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(wanted),
                cache_dir=cache,
                endpoint=settings.address,
                token=settings.token,
            )
        )

    with explaining(f"{repo} at {revision or 'its newest commit'}", settings):
        try:
            return to(settings.cache_dir)
        except OSError as error:
            if not is_unwritable(error):
                raise
            logger.warning("The cache cannot be written (%s); %s is kept until this process ends.", error, repo)
            temporary = tempfile.mkdtemp()
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)
            return to(temporary)


def _told(repo: str, folder: Path, revision: str | None) -> Path:
    """Say which commit was taken where nobody had asked for one."""
    if revision != folder.name:
        logger.warning("Took %s at commit %s; pin it: revision=%r.", repo, folder.name, folder.name)
    return folder
