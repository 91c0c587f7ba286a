"""How to reach the Hugging Face Hub. This module does not import the Hub client, which is slow to load."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError
from resilient_heads.redaction import Secret, check_address

_INSTEAD = "pass the access token as token=, or in HF_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """How to reach the Hugging Face Hub. The defaults are those of the Hub client.

    Attributes:
        offline: Use only cached files. The environment variable ``HF_HUB_OFFLINE=1`` has the same effect.
        endpoint: Address of the Hub; None uses ``HF_ENDPOINT``, or else the public Hub.
        cache_dir: Folder of the client's cache; None uses ``HF_HUB_CACHE``, or else the client's default.
        token: Access token; None uses ``HF_TOKEN``, or else the token that ``hf auth login`` stored. A pickle of the
            settings does not hold it.

    Raises:
        ArgumentError: A value has the wrong type, or the endpoint holds a password.

    Example:
        >>> import resilient_heads as rh
        >>> rh.text.HubSettings(endpoint="https://hub.example.org/").address
        'https://hub.example.org'
    """

    offline: bool = False
    endpoint: str | None = None
    cache_dir: str | Path | None = None
    token: str | None = dataclasses.field(default=None, repr=False)  # a secret

    def __post_init__(self) -> None:
        for name in ("endpoint", "token"):
            if not isinstance(getattr(self, name), str | None):
                kind = type(getattr(self, name)).__name__  # never the value: it may be a secret
                raise ArgumentError(f"{name} of HubSettings must be a string or None, found a value of type {kind}.")
        if self.endpoint is not None:
            check_address("endpoint of HubSettings", self.endpoint, _INSTEAD)
        if self.token is not None:
            object.__setattr__(self, "token", Secret(self.token))
        if not isinstance(self.cache_dir, str | Path | None):
            raise ArgumentError(f"cache_dir of HubSettings must be a path or None, found {self.cache_dir!r:.60}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.offline, self.endpoint, self.cache_dir)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @classmethod
    def from_options(cls, hub: Self | None, *, offline: bool = False) -> Self:
        """Combine the ``hub=`` and ``offline=`` arguments of a function.

        Raises:
            ArgumentError: ``hub`` is neither None nor a HubSettings.
        """
        settings = cls() if hub is None else instance_of("hub", hub, cls, example='HubSettings(endpoint="https://...")')
        return dataclasses.replace(settings, offline=True) if offline else settings

    @property
    def is_offline(self) -> bool:
        """Whether network access is forbidden, by these settings or by the environment."""
        from huggingface_hub import constants

        variable = os.environ.get("HF_HUB_OFFLINE", "").strip().upper()  # the client reads it only when it is imported
        return self.offline or variable in {"1", "ON", "YES", "TRUE"} or bool(constants.HF_HUB_OFFLINE)

    @property
    def address(self) -> str:
        """Address of the Hub, without a slash at the end.

        Raises:
            ArgumentError: ``HF_ENDPOINT`` holds a password.
        """
        variable = check_address("HF_ENDPOINT", os.environ.get("HF_ENDPOINT", ""), _INSTEAD)
        return (self.endpoint or variable or "https://huggingface.co").rstrip("/")

    @property
    def secrets(self) -> tuple[str | None, ...]:
        """What no message may show."""
        return (self.token, os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN"))


def _unpickled(offline: bool, endpoint: str | None, cache_dir: str | Path | None) -> HubSettings:
    """Return settings from a pickle."""
    return HubSettings(offline=offline, endpoint=endpoint, cache_dir=cache_dir)


def check_revision(name: str, revision: str | None) -> None:
    """Raise ArgumentError unless ``revision`` may name a commit, branch or tag; None is the default revision."""
    if revision is not None and (not isinstance(revision, str) or not revision.strip()):
        raise ArgumentError(f"{name} must be a commit, branch or tag, or None; found {revision!r:.60}.")
