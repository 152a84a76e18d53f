"""Download of a large file: in parallel ranges if the server supports them, else as one stream.

A single connection to Cloud Storage reaches a fraction of an instance's bandwidth. Eight ranges of 32 MiB fill it.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from httpguard import whole_number

METADATA_TOKEN = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105
TRIES = 4
BACKOFF_S = 0.5
TIMEOUT = httpx.Timeout(30.0, connect=10.0)


class FetchFailed(Exception):
    """The download failed. The partial file is deleted."""


def _no_progress(_done: int, _total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Download settings."""

    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    bytes_max: int = 200 * 2**30
    range_bytes: int = 32 * 2**20
    at_once: int = 8
    on_progress: Callable[[int, int], None] = _no_progress
    """Called with the bytes downloaded so far and the size of the file."""
    transport: httpx.AsyncBaseTransport | None = None
    storage_host: str | None = None
    """Address to use instead of Cloud Storage, such as an emulator's. Requests to it carry no token."""


async def download(address: str, fetch: Fetch, *, follow_redirects: bool = True) -> Path:
    """Download into a new file in the folder. The caller deletes it.

    Args:
        address: An `https://`, `http://` or `gs://` URL.
        fetch: The settings.
        follow_redirects: Whether another server may be named by the first.

    Raises:
        FetchFailed: The URL is wrong, the server refused, the file is too large, or the connection broke repeatedly.
    """
    if urlsplit(address).scheme not in ("https", "http", "gs"):
        raise FetchFailed("The URL of a model must start with https://, http:// or gs://.")
    fetch.folder.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix="model-", suffix=".gguf", dir=fetch.folder)
    path = Path(name)
    try:
        client = httpx.AsyncClient(transport=fetch.transport, timeout=TIMEOUT, follow_redirects=follow_redirects)
        async with client as http:
            url, headers = await _resolve(http, address, fetch)
            await _fill(http, url, headers, number, fetch)
    except BaseException as error:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        if isinstance(error, httpx.HTTPError | OSError):
            raise FetchFailed(f"The download failed: {error or type(error).__name__}.") from error
        raise
    finally:
        os.close(number)
    return path


async def _resolve(http: httpx.AsyncClient, address: str, fetch: Fetch) -> tuple[str, dict[str, str]]:
    """Convert `gs://bucket/object` to the URL and headers of the JSON API, with the instance's own token."""
    parts = urlsplit(address)
    if parts.scheme != "gs":
        return address, {}
    path = f"/storage/v1/b/{parts.netloc}/o/{quote(parts.path.lstrip('/'), safe='')}?alt=media"
    if fetch.storage_host:
        host = fetch.storage_host if "://" in fetch.storage_host else f"http://{fetch.storage_host}"
        return host.rstrip("/") + path, {}
    answer = await http.get(METADATA_TOKEN, headers={"Metadata-Flavor": "Google"})
    answer.raise_for_status()
    token = answer.json()["access_token"]
    return f"https://storage.googleapis.com{path}", {"Authorization": f"Bearer {token}"}


async def _fill(http: httpx.AsyncClient, url: str, headers: dict[str, str], number: int, fetch: Fetch) -> None:
    total = await _first(http, url, headers, number, fetch)
    if total is None:
        return  # The server sent the whole file.
    done = min(fetch.range_bytes, total)
    fetch.on_progress(done, total)
    starts = iter(range(fetch.range_bytes, total, fetch.range_bytes))

    async def work() -> None:
        nonlocal done
        for start in starts:  # Workers share this iterator: each takes the next range.
            end = min(start + fetch.range_bytes, total)
            await _range(http, url, headers, number, start, end)
            done += end - start
            fetch.on_progress(done, total)

    workers = [asyncio.create_task(work()) for _ in range(fetch.at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        # After a failure the other workers must have stopped writing before the file is closed.
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _first(http: httpx.AsyncClient, url: str, headers: dict[str, str], number: int, fetch: Fetch) -> int | None:
    """Fetch the first range, which shows whether the server supports ranges.

    Returns:
        The size of the file, or None if the server sent the whole file.
    """
    asked = headers | {"Range": f"bytes=0-{fetch.range_bytes - 1}", "Accept-Encoding": "identity"}
    async with http.stream("GET", url, headers=asked) as answer:
        if answer.status_code not in (200, 206):
            raise FetchFailed(f"The file server answered {answer.status_code}.")
        ranged = answer.status_code == 206
        total = _number(answer.headers.get("Content-Range", "").rpartition("/")[2]) if ranged else None
        said = total if total is not None else _number(answer.headers.get("Content-Length", "0"))
        if said > fetch.bytes_max:
            raise FetchFailed(f"The file has {said} bytes, more than the {fetch.bytes_max} allowed.")
        at = 0
        async for chunk in answer.aiter_raw():
            at = _write(number, chunk, at)
            if at > fetch.bytes_max:
                raise FetchFailed(f"The file has more than the {fetch.bytes_max} bytes allowed.")
    if total is not None and at < min(fetch.range_bytes, total):
        await _range(http, url, headers, number, at, min(fetch.range_bytes, total))
    return total


def _number(text: str) -> int:
    size = whole_number(text, 10**19 - 1)
    if size is None:
        raise FetchFailed("The file server did not say how large the file is.")
    return size


async def _range(http: httpx.AsyncClient, url: str, headers: dict[str, str], number: int, start: int, end: int) -> None:
    """Fetch the bytes [start, end), resuming after a broken connection. Give up after `TRIES` tries without a byte."""
    at, tries = start, 0
    while at < end:
        before = at
        try:
            asked = headers | {"Range": f"bytes={at}-{end - 1}", "Accept-Encoding": "identity"}
            async with http.stream("GET", url, headers=asked) as answer:
                if answer.status_code == 206:
                    async for chunk in answer.aiter_raw():
                        at = _write(number, chunk[: end - at], at)
                elif answer.status_code < 500 and answer.status_code != 429:
                    raise FetchFailed(f"The file server answered {answer.status_code} to a range request.")
        except httpx.TransportError:
            if tries + 1 >= TRIES:
                raise
        if at < end:
            tries = 1 if at > before else tries + 1
            if tries >= TRIES:
                raise FetchFailed(f"The file server broke off the download {TRIES} times.")
            await asyncio.sleep(BACKOFF_S * 2**tries)


def _write(number: int, data: bytes, at: int) -> int:
    """Write all of `data` at an offset of the file, and return the offset after it."""
    view = memoryview(data)
    while view:
        count = os.pwrite(number, view, at)
        at += count
        view = view[count:]
    return at
