"""Keep secrets out of everything that is shown: passwords and tokens in addresses, headers, and messages of servers."""

import re
import traceback
from typing import NoReturn
from urllib.parse import urlsplit

from resilient_heads.errors import ArgumentError

_HIDDEN = "***"
_NAMES = "token|key|secret|passw|signature|sig|auth|credential"
_LONGEST = 100  # of a name: without a bound, a text of question marks would take quadratic time
_FIELDS = "api[_-]?key|(?:access|auth|refresh)[_-]?token|client[_-]?secret|password|passwd"
_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s?#'\"]{1,4096}(?=@)"), _HIDDEN),
    (
        re.compile(
            rf"([?&#][^=&\s'\"]{{0,{_LONGEST}}}?(?:{_NAMES})[^=&\s'\"]{{0,{_LONGEST}}}=)[^&\s'\"#]+", re.IGNORECASE
        ),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"\b(Bearer|Basic)\s+(?=\S{0,4096}?[\d=])[\w.~+/=-]{4,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
    (
        re.compile(rf"((?:{_FIELDS})['\"]?\s{{0,4}}[:=]\s{{0,4}}['\"]?)[^\s'\",;&*]{{4,}}", re.IGNORECASE),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"\b(hf_|sk-|gh[opsu]_|github_pat_|gsk_|xai-|AIza)[\w-]{8,}"), rf"\1{_HIDDEN}"),
)
_SHORTEST = 4  # shorter words would hide parts of ordinary words


class Secret(str):
    """A string that shows nothing in a representation."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(_HIDDEN)


def redact(text: str, *secrets: str | None) -> str:
    """Return a text without the given secrets, and without what looks like one.

    >>> redact("GET http://me:pass@example.org/a?token=abc with Bearer abc123")
    'GET http://***@example.org/a?token=*** with Bearer ***'
    """
    for secret in sorted((secret for secret in secrets if secret), key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def without_secrets(error: BaseException, *secrets: str | None) -> BaseException:
    """Return an error as the cause of another: itself, or a stand-in without its chain if that shows a secret.

    The stand-in has the name, the redacted message and the HTTP status of the error.
    """
    shown = "".join(traceback.format_exception(error))
    if redact(shown, *secrets) == shown:
        return error
    kind = type(type(error).__name__, (Exception,), {"status_code": getattr(error, "status_code", None)})
    stand_in: BaseException = kind(redact(str(error), *secrets))
    return stand_in


def raise_redacted(problem: Exception, cause: BaseException, *secrets: str | None) -> NoReturn:
    """Raise an error with its cause, neither of which shows a secret."""
    problem.args = (redact(str(problem), *secrets),)
    try:
        raise problem from without_secrets(cause, *secrets)
    finally:
        problem.__context__ = None  # it may show what the cause does not


def check_address(name: str, address: str, instead: str) -> str:
    """Return an address; raise ArgumentError if it holds a secret, which libraries below would log.

    Args:
        name: What the user calls the address.
        address: The address; the message does not show it.
        instead: Where the secret belongs, as the end of a sentence.
    """
    try:
        parts = urlsplit(address)
        secret = "@" in parts.netloc or redact(address) != address
    except ValueError:
        raise ArgumentError(f"{name} must be an address such as https://example.org.") from None
    if secret:
        raise ArgumentError(f"{name} must be an address without a user, a password or a key in it; {instead}.")
    return address
