"""One HTTP exchange with a provider that rents out machines. Each provider's `api` module interprets the response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import msgspec

from goblin import __version__
from goblin.core import decoding
from goblin.core.errors import ProviderUnavailable
from goblin.core.redaction import learn
from goblin.providers.common.http import read_up_to
from httpguard.text import is_bounded

CONNECT_S = 5.0
BYTES_MAX = 16 * 1024 * 1024
"""Longest response that is read; a longer one is cut off and then does not parse."""

T = TypeVar("T")


def build(
    method: str, url: str, key: str, *, within_s: float, params: Mapping[str, str] | None,
    body: Mapping[str, Any] | None,
) -> httpx.Request:  # fmt: skip
    """Build a request. The key is in a header, so that it appears in no log of URLs."""
    learn(key)
    headers = {"authorization": f"Bearer {key}", "accept": "application/json", "accept-encoding": "identity"}
    headers["user-agent"] = f"goblin/{__version__}"
    content = None if body is None else msgspec.json.encode(body)
    if content is not None:
        headers["content-type"] = "application/json"
    waits = {"connect": CONNECT_S, "read": within_s, "write": within_s, "pool": CONNECT_S}
    at = httpx.URL(url, params=params) if params else httpx.URL(url)
    return httpx.Request(method, at, headers=headers, content=content, extensions={"timeout": waits})


async def exchange(client: httpx.AsyncClient, request: httpx.Request) -> tuple[httpx.Response, bytes]:
    """Send a request and read its whole response. Raises the errors of httpx."""
    response = await client.send(request, stream=True)
    try:
        return response, await read_up_to(response, BYTES_MAX)
    finally:
        await response.aclose()


def parse(name: str, data: bytes, kind: type[T]) -> T:
    """Parse a response, which is untrusted. Raises `ProviderUnavailable`."""
    try:
        if not is_bounded(data):
            raise RecursionError
        return msgspec.json.decode(data, type=kind)
    except decoding.UNREADABLE as error:
        raise ProviderUnavailable(f"{name} sent an answer that cannot be read.") from error
