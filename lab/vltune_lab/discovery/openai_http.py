"""One request to an endpoint: what is sent, what came back, nothing decided.

`requests` is used because NVIDIA FLARE needs it and the lock file pins it already; the `openai`
package would add its own repeats, clock and some ten dependencies to one POST.
"""

import ipaddress
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from vltune_lab.discovery.backend import BackendError

KEY_VARIABLES = ("VLTUNE_LLM_KEY", "OPENAI_API_KEY")
MAX_BYTES = 8_000_000
CONNECT_SECONDS = 10.0


class NoReplyError(Exception):
    """Nothing usable came over the line; asking again may help."""


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: its status, its body as text, and how long the server asks us to wait."""

    status: int
    text: str
    wait_seconds: float = 0.0


@dataclass(frozen=True)
class Endpoint:
    """Where to ask.

    Attributes:
        base_url: Without a route such as `/chat/completions`: `https://api.openai.com/v1`.
        timeout_seconds: For a whole answer.
        key: Sent as bearer; empty sends none. It enters no message, file or `repr`.
    """

    base_url: str
    timeout_seconds: float
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_address = is_address and parts.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            shown = "(hidden)" if "@" in self.base_url else f"{self.base_url!r:.200}"
            raise BackendError(
                f"--base-url {shown}: expected http:// or https:// and a host, such as "
                "http://127.0.0.1:8000/v1."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BackendError(
                f"--base-url: {parts.hostname} comes with a user, a query or a fragment. Give the "
                f"address alone, and the key in {KEY_VARIABLES[0]}."
            )

    @property
    def is_key_exposed(self) -> bool:
        """Whether the key would travel unencrypted to another machine."""
        parts = urlsplit(self.base_url)
        host = parts.hostname or ""
        try:
            is_here = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_here = host == "localhost"
        return bool(self.key) and parts.scheme == "http" and not is_here

    def hide_key(self, text: str) -> str:
        """Return `text` without the key, should a server repeat it."""
        return text.replace(self.key, "(key)") if self.key else text


def read_key(environment: Mapping[str, str] = os.environ) -> str:
    """Return the key from the environment, or nothing.

    Raises:
        BackendError: It holds what no header can; the message does not show it.
    """
    for name in KEY_VARIABLES:
        key = environment.get(name, "").strip()
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise BackendError(
                    f"{name}: holds a space, a line break or a letter that no key has. Set it anew."
                )
            return key
    return ""


class _Bearer(requests.auth.AuthBase):
    """The key as a header. As `auth`, not `headers`, or a .netrc entry would take its place."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def post_json(endpoint: Endpoint, route: str, body: Mapping[str, Any]) -> Reply:
    """Send a request to `route`, such as `/chat/completions`, and read the whole reply.

    Redirects are not followed: they would take the question, or the key, to another host.

    Raises:
        NoReplyError: No connection, no end within the time, a broken or an endless reply.
    """
    url = endpoint.base_url.rstrip("/") + route
    until = time.monotonic() + endpoint.timeout_seconds
    try:
        with (
            requests.Session() as session,
            session.post(
                url,
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                auth=_Bearer(endpoint.key),
                timeout=(min(CONNECT_SECONDS, endpoint.timeout_seconds), endpoint.timeout_seconds),
                allow_redirects=False,
                stream=True,
            ) as response,
        ):
            text = _read(response, until).decode("utf-8", "replace")
            return Reply(response.status_code, text, _retry_after(response))
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise NoReplyError(f"no answer within {endpoint.timeout_seconds:g} s") from error
    except requests.ConnectionError as error:
        kind = type(error).__name__
        raise NoReplyError(f"no connection, or it broke off ({kind})") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise NoReplyError(f"the answer broke off ({type(error).__name__})") from error


def _read(response: requests.Response, until: float) -> bytes:
    # The library's timeout is per read: a server that sends a byte now and then would never end.
    parts = []
    size = 0
    while part := response.raw.read1(65536, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise NoReplyError(f"the answer has more than {MAX_BYTES} bytes")
        if time.monotonic() > until:
            raise NoReplyError("the answer did not end in time")
    missing = response.raw.length_remaining
    if missing:
        raise NoReplyError(f"the answer broke off, {missing} bytes are missing")
    return b"".join(parts)


def _retry_after(response: requests.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0
