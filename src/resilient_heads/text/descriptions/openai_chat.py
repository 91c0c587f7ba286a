"""Language models behind servers that speak OpenAI's protocol."""

import json
import os
import time
from typing import Any

from resilient_heads.errors import LanguageModelError
from resilient_heads.extras import require


class OpenAIChat:
    """A chat model, as a function from prompt to answer.

    A request is made once: :func:`generate_descriptions` asks again itself. With
    ``retries`` the official client repeats what times out or meets 408, 409, 429 or 5xx, waiting longer each time.

    Args:
        model: Name of the model at the server.
        base_url: Address of the server; None takes OPENAI_BASE_URL, or the public one.
        key_variable: Environment variable that holds the key. The key is never stored or shown.
        timeout: Seconds that the server may take to connect, to begin its answer, between two pieces of it, and from
            its beginning to its end. Servers that send blanks to keep a connection open meet only the last.
        retries: How often the client repeats a request whose answer has not begun.
        max_tokens: Longest answer; None leaves it to the server, for those that reject the setting.
        temperature: 0 for the likeliest words; None leaves it to the server.

    Raises:
        LanguageModelError: The environment variable is not set, or a choice that makes no sense.
        MissingExtraError: The client is not installed.
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
        if type(retries) is not int or retries < 0:
            raise LanguageModelError(f"retries must be an integer, 0 or more, found {retries!r}.")
        if type(timeout) not in (int, float) or not 0 < timeout < float("inf"):
            raise LanguageModelError(f"timeout must be a positive number of seconds, found {timeout!r}.")
        self._package: Any = require("openai", extra="llm", purpose="OpenAIChat")
        key = os.environ.get(key_variable)
        if not key:
            raise LanguageModelError(
                f"The environment variable {key_variable} is not set; export {key_variable}=..., or name another one: "
                "OpenAIChat(model, key_variable=...). A server that needs no key takes any text."
            )
        self._timeout = timeout
        self._client = self._package.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=retries)
        self.id = model
        chosen = {"max_tokens": max_tokens, "temperature": temperature}
        self._choices = {name: value for name, value in chosen.items() if value is not None}

    def __repr__(self) -> str:
        return f"OpenAIChat({self.id!r})"

    def __call__(self, prompt: str) -> str:
        """Return the model's answer.

        Raises:
            LanguageModelError: The server refuses, cannot be reached, or its answer is no chat completion.
        """
        try:
            choice = json.loads(self._ask(prompt))["choices"][0]
            answer, reason = choice["message"]["content"], choice.get("finish_reason")
        except (AttributeError, IndexError, TypeError, KeyError, ValueError, RecursionError) as error:
            raise LanguageModelError(f"The server's answer is no chat completion: {error!r}") from error
        if not isinstance(answer, str):
            raise LanguageModelError(f"{self.id} answered without text.")
        if reason not in ("stop", None):
            raise LanguageModelError(f"{self.id} broke its answer off ({reason}); allow more with max_tokens=.")
        return answer

    def _ask(self, prompt: str) -> bytes:
        """Return the body of the server's answer, read in pieces so that it can be given up on the way."""
        request = self._client.chat.completions.with_streaming_response.create(
            model=self.id, messages=[{"role": "user", "content": prompt}], **self._choices
        )
        body = bytearray()
        try:
            with request as response:
                until = time.monotonic() + self._timeout
                for piece in response.iter_bytes():
                    body += piece
                    if time.monotonic() > until:
                        raise LanguageModelError(
                            f"{self.id} began to answer and had not ended {self._timeout:g} s later; allow more with "
                            "timeout=, or a shorter answer with max_tokens=."
                        )
        except LanguageModelError:
            raise
        except self._package.OpenAIError as error:
            raise LanguageModelError(f"{self.id} did not answer: {error}") from error
        except Exception as error:  # of the HTTP library below the client, which changes with the client's version
            raise LanguageModelError(f"{self.id} broke its answer off: {error!r}") from error
        return bytes(body)
