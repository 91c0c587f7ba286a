"""Chat models behind servers that speak OpenAI's protocol."""

import json
import os
import time
from typing import Any

from resilient_heads.checks import real_number, whole_number
from resilient_heads.errors import LanguageModelError
from resilient_heads.extras import require
from resilient_heads.redaction import Secret, check_address, raise_redacted


class OpenAIChat:
    """A chat model as a function from prompt to answer, for :func:`generate_descriptions`.

    Args:
        model: Name of the model on the server.
        base_url: Address of the server; None uses ``OPENAI_BASE_URL``, or else OpenAI's own.
        key_variable: Environment variable with the key. The key is never shown.
        timeout: Seconds the server may take to connect, to begin its answer, between two parts of the answer, and for
            the whole answer. The last limit also stops servers that send blanks to keep a connection open.
        retries: How often the official client repeats a request that timed out or met HTTP status 408, 409, 429 or
            5xx. The default is 0, since :func:`generate_descriptions` retries by itself.
        max_tokens: Maximal length of an answer; None omits the setting, for servers that reject it.
        temperature: 0 prefers the likeliest words; None omits the setting.

    Raises:
        ArgumentError: ``timeout`` or ``retries`` is out of its range, or the server's address holds a password.
        LanguageModelError: The environment variable is not set.
        MissingExtraError: The package ``openai`` is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 0,
        max_tokens: int | None = 120,
        temperature: float | None = 0.7,
    ) -> None:
        whole_number("retries", retries, least=0)
        self._timeout = real_number("timeout", timeout, above=0, below=float("inf"))
        self._package: Any = require("openai", extra="llm", purpose="OpenAIChat")
        key = os.environ.get(key_variable)
        if not key:
            raise LanguageModelError(
                f"The environment variable {key_variable} is not set; export {key_variable}=..., or name another "
                "variable: OpenAIChat(model, key_variable=...). If the server needs no key, any text will do."
            )
        instead = f"put the key into {key_variable}"
        check_address("base_url", base_url or "", instead)
        check_address("OPENAI_BASE_URL", os.environ.get("OPENAI_BASE_URL", ""), instead)
        self._key = Secret(key)
        self._client = self._package.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=retries)
        self.id = model
        settings = {"max_tokens": max_tokens, "temperature": temperature}
        self._settings = {name: value for name, value in settings.items() if value is not None}

    def __repr__(self) -> str:
        return f"OpenAIChat({self.id!r})"

    def __call__(self, prompt: str) -> str:
        """Return the model's answer.

        Raises:
            LanguageModelError: The server refuses or does not answer in time, or the answer is incomplete.
        """
        try:
            choice = json.loads(self._request(prompt))["choices"][0]
            answer, reason = choice["message"]["content"], choice.get("finish_reason")
        except (AttributeError, IndexError, TypeError, KeyError, ValueError, RecursionError) as error:
            problem = LanguageModelError(f"The server's answer is not a chat completion: {error!r}")
            raise_redacted(problem, error, self._key)
        if not isinstance(answer, str):
            raise LanguageModelError(f"{self.id} answered without text.")
        if reason not in ("stop", None):
            raise LanguageModelError(f"{self.id} did not complete its answer ({reason}); increase max_tokens.")
        return answer

    def _request(self, prompt: str) -> bytes:
        """Return the body of the answer. It is read in parts, so that the time limit holds for the whole of it."""
        request = self._client.chat.completions.with_streaming_response.create(
            model=self.id, messages=[{"role": "user", "content": prompt}], **self._settings
        )
        body = bytearray()
        try:
            with request as response:
                deadline = time.monotonic() + self._timeout
                for part in response.iter_bytes():
                    body += part
                    if time.monotonic() > deadline:
                        raise LanguageModelError(
                            f"{self.id} began to answer and did not finish within {self._timeout:g} s; increase "
                            "timeout, or decrease max_tokens."
                        )
        except LanguageModelError:
            raise
        except self._package.OpenAIError as error:
            raise_redacted(LanguageModelError(f"{self.id} did not answer: {error}"), error, self._key)
        except Exception as error:  # the HTTP library below the client differs between the client's versions
            raise_redacted(LanguageModelError(f"{self.id} interrupted its answer: {error!r}"), error, self._key)
        return bytes(body)
