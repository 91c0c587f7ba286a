"""Files from the Hugging Face Hub: from the cache first, pinned, verified, and never waited for without a network."""

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
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
ANSWER_SECONDS = 10.0


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

    def __post_init__(self) -> None:
        for name in ("endpoint", "token"):
            if not isinstance(getattr(self, name), str | None):
                kind = type(getattr(self, name)).__name__  # never the value: it may be a secret
                raise HubError(f"{name} of HubSettings must be text or None, found a {kind}.")
        if not isinstance(self.cache_dir, str | Path | None):
            raise HubError(f"cache_dir of HubSettings must be a path or None, found {self.cache_dir!r:.60}.")

    def with_offline(self, offline: bool) -> Self:
        """Return the same settings, offline if either says so."""
        return dataclasses.replace(self, offline=True) if offline and not self.offline else self

    @property
    def is_offline(self) -> bool:
        """Whether the network must not be touched."""
        named = os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        return bool(self.offline or named or constants.HF_HUB_OFFLINE)

    @property
    def address(self) -> str:
        """The Hub's address, without a slash at its end."""
        return (self.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def settings_from(hub: HubSettings | None, offline: bool = False) -> HubSettings:
    """Return what a caller passed as ``hub=`` and ``offline=``, or the usual settings.

    Raises:
        HubError: It is something else.
    """
    if hub is not None and not isinstance(hub, HubSettings):
        raise HubError(f'hub must be HubSettings(endpoint="https://..."), found {hub!r:.60}.')
    return (hub or HubSettings()).with_offline(offline)


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
        get_hf_file_metadata(url, timeout=ANSWER_SECONDS, token=settings.token, endpoint=settings.address)
        content = _download(repo, file, revision, repo_type, settings)
    if sha256 is not None and (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise HubError(
            f"{repo}/{file} at {revision[:12]} is not what was pinned: sha256 {digest[:12]}, expected {sha256[:12]}. "
            "It was damaged on the way or replaced; nothing of it is used."
        )
    return content


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
    if status is None:  # the client hides what the Hub said behind "cannot find the file on the Hub"
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
    refused = "access is refused; log in with `hf auth login`, or set HF_TOKEN to a token that is allowed to"
    temporary = False
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
    elif isinstance(error, LocalEntryNotFoundError) and status is None:
        reason, temporary = f"{settings.address} could not be reached, and it is not in the cache", True
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        reason = "the repository has no such file"
    elif status is not None:
        temporary = status >= 500 or status == 429
        reason = f"the Hub answered {status}" + ("; try again later" if temporary else "")
    else:
        reason, temporary = f"{type(error).__name__}: {error}", not isinstance(error, (OSError, ValueError))
    found = HubError(f"{what} could not be had: {reason}.")
    found.temporary = temporary
    return found


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
            etag_timeout=ANSWER_SECONDS,
        )
        return Path(path).read_bytes()

    try:
        return to(settings.cache_dir)
    except OSError as error:
        if not is_unwritable(error):
            raise
        logger.warning("The cache cannot be written (%s); the file is fetched without it.", error)
        temporary = tempfile.mkdtemp()
        try:
            return to(temporary)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)


def is_unwritable(error: OSError) -> bool:
    """Whether an error of the client says that its cache folder cannot be written."""
    return error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def check_repo(repo: str) -> None:
    """Raise HubError where a repository is not named ``"owner/name"``."""
    if not isinstance(repo, str) or not re.fullmatch(r"[^/\s]+/[^/\s]+", repo):
        raise HubError(f'repo must be "owner/name", found {repo!r:.80}.')


def check_reachable(address: str) -> None:
    """Raise at once where nothing listens: the client would retry for tens of seconds.

    All addresses of the host are tried at the same time, so that one which leads nowhere takes no time from another.
    """
    parts = urlsplit(address)
    if parts.scheme in getproxies() or "all" in getproxies():
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as invalid:
        raise HubError(f"{address} is no address: {invalid}.") from invalid
    answered, over = threading.Event(), threading.Event()

    def knock(family: int, target: Any) -> None:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as one:
            one.settimeout(_CONNECT_SECONDS)
            one.connect(target)
            answered.set()
            over.set()

    def knock_everywhere() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found = {
                (own[0], own[4]) for own in socket.getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
            }
            knocks = [threading.Thread(target=knock, args=own, daemon=True) for own in found]
            for one in knocks:
                one.start()
            for one in knocks:
                one.join()
        over.set()

    threading.Thread(target=knock_everywhere, daemon=True).start()  # looking up a name knows no time limit of its own
    over.wait(_CONNECT_SECONDS)
    if not answered.is_set():
        error = HubError(f"{address} could not be reached; with no network, pass offline=True or set HF_HUB_OFFLINE=1.")
        error.temporary = True
        raise error
