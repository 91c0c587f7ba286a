"""Upload a folder to the Hub as one commit."""

import re
from collections.abc import Sequence
from pathlib import Path

from resilient_heads.errors import ArgumentError, HubError
from resilient_heads.text.hub.client import TIMEOUT, RepoType, translate_errors
from resilient_heads.text.hub.settings import HubSettings


def check_upload(repo: str, settings: HubSettings) -> None:
    """Raise HubError within seconds if an upload to ``repo`` cannot start, or ArgumentError if it is no name.

    The client's own uploading requests have no time limit for connecting.
    """
    if not isinstance(repo, str) or not re.fullmatch(r"[^/\s]+/[^/\s]+", repo):
        raise ArgumentError(f'repo must be "owner/name", found {repo!r:.80}.')
    if settings.is_offline:
        raise HubError("Publishing needs the network, and offline mode forbids it.")
    from huggingface_hub import get_session

    with translate_errors(f"Publishing to {repo} failed", settings):
        get_session().head(settings.address, timeout=TIMEOUT)


def upload_folder(
    folder: Path,
    repo: str,
    *,
    files: Sequence[str],
    message: str,
    repo_type: RepoType,
    private: bool,
    settings: HubSettings,
) -> str:
    """Upload files of a folder, create the repository if needed (``private`` or public), and return the commit."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=settings.address, token=settings.token)
    with translate_errors(f"Publishing to {repo} failed", settings):
        api.create_repo(repo, repo_type=repo_type, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, repo_type=repo_type, folder_path=folder, allow_patterns=list(files), commit_message=message
        )
    return str(commit.oid)
