"""The dataset, read in ranges as needed: it is not held in memory, and no connection stays open for hours."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx

from goblin_worker.controller import Controller, Grant
from goblin_worker.retries import EXPIRED, LOST, Hopeless, Tries, said

RANGE_BYTES = 1024 * 1024
LINE_BYTES_MAX = 2 * 1024 * 1024
"""Longer than the controller accepts."""
TIMEOUT_S = 60.0


class Unreadable(Exception):
    """The dataset cannot be read from the bucket."""


async def lines(
    http: httpx.AsyncClient, controller: Controller, grant: Grant, offset: int
) -> AsyncGenerator[bytes, None]:
    """Yield the lines from a byte offset on, without blank ones.

    Raises:
        Unreadable: The bucket refuses, or does not answer.
        Hopeless: A line is too long.
    """
    rest = b""
    while True:
        chunk, grant = await _range(http, controller, grant, offset)
        offset += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise Hopeless(f"a line of the dataset has more than {LINE_BYTES_MAX} bytes")
        for line in whole:
            if line.strip():
                yield line
        if len(chunk) < RANGE_BYTES:
            break
    if rest.strip():
        yield rest


async def _range(http: httpx.AsyncClient, controller: Controller, grant: Grant, start: int) -> tuple[bytes, Grant]:
    tries = Tries()
    while True:
        headers = {**grant.headers, "range": f"bytes={start}-{start + RANGE_BYTES - 1}", "accept-encoding": "identity"}
        answer: httpx.Response | Exception
        try:
            answer = await http.get(grant.url, headers=headers, timeout=TIMEOUT_S)
        except LOST as error:
            answer = error
        else:
            if answer.status_code == 206:
                return answer.content, grant
            if answer.status_code == 416:
                return b"", grant  # The last range ended exactly at the end.
        if not await tries.failed(answer):
            raise Unreadable(f"cannot read the dataset at byte {start}: {said(answer)}")
        if isinstance(answer, httpx.Response) and answer.status_code in EXPIRED:
            grant = await controller.dataset()  # The signed request has expired.
