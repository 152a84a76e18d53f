"""One exchange with somebody who rents out machines; what an answer means is told by each API's own file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import httpx
import msgspec

from goblin import __version__
from goblin.core.errors import ProviderUnavailable
from goblin.providers.common.http import read_up_to

CONNECT_S = 5.0
BYTES_MAX = 16 * 1024 * 1024
"""Of an answer; what was cut does not parse."""

T = TypeVar("T")


def build(
    method: str, url: str, key: str, *, within_s: float, params: Mapping[str, str] | None,
    body: Mapping[str, Any] | None,
) -> httpx.Request:  # fmt: skip
    """A request with the key in its header, where it gets into no log."""
    headers = {"authorization": f"Bearer {key}", "accept": "application/json", "accept-encoding": "identity"}
    headers["user-agent"] = f"goblin/{__version__}"
    content = None if body is None else msgspec.json.encode(body)
    if content is not None:
        headers["content-type"] = "application/json"
    waits = {"connect": CONNECT_S, "read": within_s, "write": within_s, "pool": CONNECT_S}
    at = httpx.URL(url, params=params) if params else httpx.URL(url)
    return httpx.Request(method, at, headers=headers, content=content, extensions={"timeout": waits})


async def exchange(client: httpx.AsyncClient, request: httpx.Request) -> tuple[httpx.Response, bytes]:
    """Send and read it all. Raises as httpx does."""
    response = await client.send(request, stream=True)
    try:
        return response, await read_up_to(response, BYTES_MAX)
    finally:
        await response.aclose()


def parse(name: str, data: bytes, kind: type[T]) -> T:
    """Parse what came back, which is not to be trusted. Raises `ProviderUnavailable`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderUnavailable(f"{name} sent an answer that cannot be read.") from error
