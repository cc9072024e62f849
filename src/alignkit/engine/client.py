"""A server's endpoints over HTTP: an object is answered, or a reason why not."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

from alignkit.terminal import one_line

logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs each request: a rollout has hundreds

_CONNECT = 10.0  # seconds
_KEY = "OPENAI_API_KEY"  # where every client of this protocol looks
_MAX_CHARS = 200  # of what a server says of an error


class Unanswered(Exception):
    """Nobody answers; the text goes on behind the address."""


class TimedOut(Unanswered):
    """Somebody may be there, and does not answer in time."""


class Refused(Exception):
    """A server answered a request with an error, or with what the protocol does not have; the text says what."""


def is_address(url: str) -> bool:
    """Tell whether a text is an address such as http://localhost:8000."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


class Client:
    """Asks one server; threads may share it.

    Args:
        url: the address, with or without `/v1`. Where `OPENAI_API_KEY` is set, requests carry it.
        timeout: seconds that an answer may take.
    """

    def __init__(self, url: str, *, timeout: float) -> None:
        key = os.environ.get(_KEY)
        self._client = httpx2.Client(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT)),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=True,
        )

    def close(self) -> None:
        self._client.close()

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request; the object that is answered.

        Raises:
            Unanswered: nobody answers, or a key is missing.
            Refused: an error is answered, or no object.
        """
        response = self._send(path, body)
        content = _json(response)
        if response.is_error or not isinstance(content, dict):
            raise Refused(_reason(response, content))
        return content

    def tell(self, path: str, body: Mapping[str, Any]) -> None:
        """Send a request whose answer is only that it was done.

        Raises:
            Unanswered: nobody answers, or a key is missing.
            Refused: an error is answered.
        """
        response = self._send(path, body)
        if response.is_error:
            raise Refused(_reason(response, _json(response)))

    def _send(self, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        try:
            response = self._client.request("GET" if body is None else "POST", path, json=body)
        except httpx2.TimeoutException as error:
            raise TimedOut(f"did not answer {path} in time") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unanswered(f"does not answer: {one_line(str(error), _MAX_CHARS)}; is it running?") from error
        if response.status_code in (401, 403):
            raise Unanswered(f"wants a key, or another one: export {_KEY}=…")
        return response


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _reason(response: httpx2.Response, content: Any) -> str:
    words = _words(content) or f"no JSON object, but {response.headers.get('content-type', 'nothing')}"
    return f"HTTP {response.status_code}: {one_line(words, _MAX_CHARS)}"


def _words(content: Any) -> str:
    """The message of an error in the forms in which servers write it."""
    while isinstance(content, dict):
        content = content.get("error") or content.get("message") or content.get("detail")
    return content if isinstance(content, str) else ""
