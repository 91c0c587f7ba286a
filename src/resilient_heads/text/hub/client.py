"""What every request to the Hub shares: time limits, clear errors, and a way round a cache that is read-only."""

import atexit
import contextlib
import errno
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from resilient_heads.errors import HubError
from resilient_heads.redaction import raise_redacted
from resilient_heads.text.hub.settings import HubSettings

logger = logging.getLogger(__name__)

RepoType = Literal["model", "dataset"]
# Seconds to connect, and to wait for each piece of an answer. The Hub client types its timeouts as float and hands them
# to its HTTP library, which also takes this pair.
TIMEOUT: Any = (2.0, 10.0)
_HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2"}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextlib.contextmanager
def translate_errors(failure: str, settings: HubSettings) -> Iterator[None]:
    """Turn errors of the Hub client inside the block into HubError; the message starts with ``failure``."""
    try:
        yield
    except Exception as error:
        library = type(error).__module__.split(".")[0]
        # The client's own errors are OSError or ValueError; those of the HTTP library below it are neither.
        if isinstance(error, HubError) or not (isinstance(error, OSError | ValueError) or library in _HTTP_LIBRARIES):
            raise
        raise_redacted(_hub_error(error, failure, settings), error, *settings.secrets)


def download(fetch: Callable[[str | Path | None], str], settings: HubSettings) -> Path:
    """Call ``fetch`` with the cache folder (None is the client's), or a temporary folder if the cache is read-only."""
    try:
        return Path(fetch(settings.cache_dir))
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        logger.warning("The Hub cache cannot be written (%s). Downloading to a temporary folder instead.", error)
        temporary = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return Path(fetch(temporary))


def _hub_error(error: Exception, failure: str, settings: HubSettings) -> HubError:
    """Say what went wrong and what the user can do."""
    from huggingface_hub import errors

    # The client hides the Hub's answer behind a LocalEntryNotFoundError; its cause still has the status.
    responses = (getattr(source, "response", None) for source in (error, error.__cause__))
    status = next((response.status_code for response in responses if response is not None), None)
    missing_locally = isinstance(error, errors.LocalEntryNotFoundError)
    temporary = False
    if isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError):
        reason = "there is no such repository, or it is private; check the name, or log in with `hf auth login`"
    elif status in (401, 403):
        reason = "access is refused; log in with `hf auth login`, or set HF_TOKEN to a token that has access"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = "there is no such revision"
    elif missing_locally and settings.is_offline:
        reason = "it is not in the cache, and offline mode forbids downloading it"
    elif isinstance(error, errors.EntryNotFoundError) and not missing_locally:
        reason = "the repository has no such file"
    elif status is not None:
        temporary = status >= 500 or status == 429
        reason = f"the Hub answered {status}" + ("; try again later" if temporary else "")
    elif missing_locally or not isinstance(error, OSError | ValueError):
        temporary = True
        reason = (
            f"{settings.address} could not be reached ({str(error) or type(error).__name__}); without a network, pass "
            "offline=True or set HF_HUB_OFFLINE=1"
        )
    else:
        reason = f"{type(error).__name__}: {error}"
    translated = HubError(f"{failure}: {reason}.")
    translated.temporary = temporary
    return translated
