"""Files from the Hugging Face Hub: from the cache first, pinned, verified, and never waited for without a network."""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from resilient_heads.errors import HubError

logger = logging.getLogger(__name__)

RepoType = Literal["model", "dataset"]
_CONNECT_SECONDS = 1.5
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """How the Hub is reached.

    Attributes:
        offline: Use only what is cached. HF_HUB_OFFLINE=1 in the environment says the same.
        endpoint: Address of the Hub; None takes HF_ENDPOINT, or the public one.
        cache_dir: Folder of the client's cache; None takes HF_HUB_CACHE, or the usual one.
        token: Access token; None takes HF_TOKEN, or the one that ``hf auth login`` stored.
    """

    offline: bool = False
    endpoint: str | None = None
    cache_dir: str | Path | None = None
    token: str | None = None

    @property
    def is_offline(self) -> bool:
        """Whether the network must not be touched."""
        named = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        return bool(self.offline or named or constants.HF_HUB_OFFLINE)

    @property
    def address(self) -> str:
        """The Hub's address, without a slash at its end."""
        return (self.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def cached_file(
    repo: str, file: str, *, revision: str, sha256: str | None, repo_type: RepoType, settings: HubSettings
) -> bytes | None:
    """Return a file's content if the cache holds it whole; never touches the network.

    Args:
        repo: ``"owner/name"``.
        file: Path in the repository.
        revision: Commit, branch or tag.
        sha256: Hex digest that the content must have; None checks nothing.
        repo_type: Kind of repository.
        settings: How the Hub is reached.
    """
    try:
        path = hf_hub_download(
            repo,
            file,
            repo_type=repo_type,
            revision=revision,
            cache_dir=settings.cache_dir,
            endpoint=settings.address,
            local_files_only=True,
        )
        content = Path(path).read_bytes()
    except (OSError, HFValidationError):
        return None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        logger.warning("The cached %s of %s is damaged and is not used.", file, repo)
        return None
    return content


def fetch_file(
    repo: str, file: str, *, revision: str, sha256: str | None, repo_type: RepoType, settings: HubSettings
) -> bytes:
    """Return a file's content from the cache or the Hub, verified.

    Arguments are those of :func:`cached_file`.

    Raises:
        HubError: The Hub cannot be reached, refuses, or what it gives is not what was pinned.
    """
    content = cached_file(repo, file, revision=revision, sha256=sha256, repo_type=repo_type, settings=settings)
    if content is not None:
        return content
    if settings.is_offline:
        raise HubError(f"{repo}/{file} at {revision[:12]} is not in the cache, and offline mode forbids fetching it.")
    check_reachable(settings.address)
    with explaining(f"{repo}/{file} at {revision[:12]}", settings):
        # A request without retries first: the client would repeat a refusal for half a minute.
        url = hf_hub_url(repo, file, repo_type=repo_type, revision=revision, endpoint=settings.address)
        get_hf_file_metadata(url, timeout=_ANSWER_SECONDS, token=settings.token, endpoint=settings.address)
        content = _download(repo, file, revision, repo_type, settings)
    if sha256 is not None and (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise HubError(
            f"{repo}/{file} at {revision[:12]} is not what was pinned: sha256 {digest[:12]}, expected {sha256[:12]}. "
            "It was damaged on the way or replaced; nothing of it is used."
        )
    return content


def fetch_snapshot(
    repo: str, files: Sequence[str], *, revision: str | None, offline: bool = False, settings: HubSettings | None = None
) -> Path:
    """Return the cache's folder with the files of a model repository; its name is the commit.

    Args:
        repo: ``"owner/name"``.
        files: Patterns of the files that are needed.
        revision: Commit, branch or tag; None takes the newest and logs which that is.
        offline: Use only what is cached.
        settings: How the Hub is reached; ``offline`` adds to it.

    Raises:
        HubError: The files cannot be had.
    """
    settings = settings or HubSettings(offline=offline)
    local = settings.is_offline or offline
    if not local:
        try:
            check_reachable(settings.address)
        except HubError:
            if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
                raise
            local = True  # a commit never changes, so what is cached of it is as good as the Hub
    with explaining(f"{repo} at {revision or 'its newest commit'}", settings):
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(files),
                cache_dir=settings.cache_dir,
                endpoint=settings.address,
                token=settings.token,
                local_files_only=local,
            )
        )
    if revision != folder.name:
        logger.warning("Took %s at commit %s; pin it: revision=%r.", repo, folder.name, folder.name)
    return folder


@contextlib.contextmanager
def explaining(what: str, settings: HubSettings) -> Iterator[None]:
    """Raise HubError for whatever the Hub's client raises inside the block."""
    try:
        yield
    except (HfHubHTTPError, OSError, HFValidationError, EntryNotFoundError) as error:
        raise explained(error, what, settings) from error
    except Exception as error:
        # The HTTP library of the client changes between its releases, and its errors are no OSError.
        if type(error).__module__.split(".")[0] not in {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}:
            raise
        raise explained(error, what, settings) from error


def explained(error: Exception, what: str, settings: HubSettings) -> HubError:
    """Turn an error of the Hub's client into ours, which says what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    refused = "access is refused; log in with `hf auth login`, or set HF_TOKEN to a token that is allowed to"
    if isinstance(error, GatedRepoError):
        reason = refused
    elif isinstance(error, RepositoryNotFoundError):  # the Hub answers 401 to strangers, to hide private ones
        reason = "there is no such repository, or it is private; check the name, or log in with `hf auth login`"
    elif status in (401, 403):
        reason = refused
    elif isinstance(error, RevisionNotFoundError):
        reason = "there is no such revision"
    elif isinstance(error, LocalEntryNotFoundError) and settings.is_offline:
        reason = "it is not in the cache, and offline mode forbids fetching it"
    elif isinstance(error, LocalEntryNotFoundError):
        reason = f"{settings.address} could not be reached, and it is not in the cache"
    elif isinstance(error, EntryNotFoundError):
        reason = "the repository has no such file"
    elif status is not None:
        reason = f"the Hub answered {status}; try again later"
    else:
        reason = f"{type(error).__name__}: {error}"
    return HubError(f"{what} could not be had: {reason}.")


def _download(repo: str, file: str, revision: str, repo_type: RepoType, settings: HubSettings) -> bytes:
    """Download through the client's cache, or past it where the cache cannot be written."""

    def to(cache: str | Path | None) -> bytes:
        path = hf_hub_download(
            repo,
            file,
            repo_type=repo_type,
            revision=revision,
            cache_dir=cache,
            endpoint=settings.address,
            token=settings.token,
            # The cache was found wanting: whatever it holds under this name is missing or damaged.
            force_download=True,
            etag_timeout=_ANSWER_SECONDS,
        )
        return Path(path).read_bytes()

    try:
        return to(settings.cache_dir)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        logger.warning("The cache cannot be written (%s); the file is fetched without it.", error)
        temporary = tempfile.mkdtemp()
        try:
            return to(temporary)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)


def check_reachable(address: str) -> None:
    """Raise at once where nothing listens: the client would retry for tens of seconds."""
    parts = urlsplit(address)
    if parts.scheme in getproxies() or "all" in getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    answered: list[bool] = []

    def knock() -> None:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", port), _CONNECT_SECONDS):
            answered.append(True)

    thread = threading.Thread(target=knock, daemon=True)  # looking up a name knows no time limit of its own
    thread.start()
    thread.join(_CONNECT_SECONDS)
    if not answered:
        raise HubError(f"{address} could not be reached; with no network, pass offline=True or set HF_HUB_OFFLINE=1.")
