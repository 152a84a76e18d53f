"""Bodies: sizes, times and encodings."""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import pytest

from httpguard import Limits, Refusal, read_body

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMITS = Limits(body_bytes=1000, body_s=0.2, pause_s=0.1, encodings=frozenset({"gzip", "zstd"}))
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}


def pieces(*parts: bytes, ending: str = "whole", every_s: float = 0.0) -> Callable[[], Awaitable[Any]]:
    """ASGI's receive: the parts, then the end, a hang-up, or nothing."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if ending == "whole":
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    elif ending == "left":
        messages.append({"type": "http.disconnect"})

    async def receive() -> Any:
        if every_s or not messages:
            await asyncio.sleep(every_s or 60)
        return messages.pop(0)

    return receive


async def refused(
    receive: Callable[[], Awaitable[Any]], headers: dict[str, str] | None = None, limits: Limits = LIMITS
) -> tuple[int, str]:
    with pytest.raises(Refusal) as error:
        await read_body(headers or {}, receive, limits)
    return error.value.status, error.value.code


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert (
        await read_body({"content-length": "1000"}, pieces(b"a" * 400, b"b" * 600), LIMITS) == b"a" * 400 + b"b" * 600
    )


@pytest.mark.parametrize("length", ["1001", "9" * 400, "99999999999999999999"])
async def test_an_announced_body_over_the_limit_is_not_read(length: str) -> None:
    assert await refused(pieces(ending="never"), {"content-length": length}) == (413, "request_too_large")


async def test_an_unannounced_body_over_the_limit_is_not_read_to_its_end() -> None:
    assert await refused(pieces(*[b"a" * 501] * 2, ending="never")) == (413, "request_too_large")


async def test_a_pause_that_is_too_long_ends_the_request() -> None:
    assert await refused(pieces(b"a", ending="never")) == (408, "body_timeout")


async def test_a_body_that_trickles_ends_too() -> None:
    assert await refused(pieces(*[b"a"] * 99, every_s=0.02)) == (408, "body_timeout")


async def test_a_hang_up_ends_the_request() -> None:
    assert await refused(pieces(b"a", ending="left")) == (400, "incomplete_body")


@pytest.mark.parametrize("name", PACK)
async def test_a_packed_body_is_unpacked(name: str) -> None:
    text = b'{"a": "' + b"b" * 900 + b'"}'
    packed = PACK[name](text)
    assert await read_body({"content-encoding": name.upper()}, pieces(packed[:9], packed[9:]), LIMITS) == text
    two = PACK[name](text[:400]) + PACK[name](text[400:])
    assert await read_body({"content-encoding": name}, pieces(two), LIMITS) == text


@pytest.mark.parametrize("name", PACK)
async def test_a_small_packed_body_that_unpacks_to_a_large_one_is_refused(name: str) -> None:
    packed = PACK[name](b"0" * 1001)
    assert len(packed) < 200
    assert await refused(pieces(packed), {"content-encoding": name}) == (413, "request_too_large")
    many = PACK[name](b"0" * 600) * 2
    assert await refused(pieces(many), {"content-encoding": name}) == (413, "request_too_large")


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"x" + b, lambda b: b + b"rest"])
async def test_a_damaged_packed_body_is_refused(name: str, damage: Callable[[bytes], bytes]) -> None:
    packed = damage(PACK[name](bytes(range(200))))
    assert await refused(pieces(packed), {"content-encoding": name}) == (400, "invalid_encoding")


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd,gzip", "compress", "x"])
async def test_another_encoding_is_refused_before_the_body_is_read(encoding: str) -> None:
    assert await refused(pieces(ending="never"), {"content-encoding": encoding}) == (415, "unsupported_encoding")
    assert await refused(pieces(ending="never"), {"content-encoding": "gzip"}, Limits()) == (
        415,
        "unsupported_encoding",
    )


async def test_identity_is_no_encoding() -> None:
    assert await read_body({"content-encoding": "identity"}, pieces(b"a"), Limits()) == b"a"


async def stopped(receive: Callable[[], Awaitable[Any]], limits: Limits) -> str | bytes:
    try:
        return await read_body({}, receive, limits)
    except Refusal as refusal:
        return refusal.code


async def test_bodies_that_never_end_leave_room_for_those_that_come_quickly() -> None:
    """A caller is counted once its body is there; until then it could take all memory with bodies that never end."""
    limits = Limits(body_bytes=1000, room_bytes=5000, body_s=5, pause_s=5)
    hoarders = [asyncio.create_task(stopped(pieces(b"a" * 900, ending="never"), limits)) for _ in range(100)]
    first = islice(asyncio.as_completed(hoarders), 95)  # The other five fit.
    assert [await task for task in first] == ["too_many_bodies"] * 95
    quick = [asyncio.create_task(stopped(pieces(b"b" * 400, b"b" * 600), limits)) for _ in range(3)]
    assert await asyncio.gather(*quick) == [b"b" * 1000] * 3
    for task in hoarders:
        task.cancel()
    await asyncio.gather(*hoarders, return_exceptions=True)
    # What they held is free again.
    after = [stopped(pieces(b"c" * 990, b"c", every_s=0.001), limits) for _ in range(5)]
    assert await asyncio.gather(*after) == [b"c" * 991] * 5


async def test_a_slow_small_body_is_not_put_out_for_large_ones() -> None:
    limits = Limits(body_bytes=1000, room_bytes=3000, body_s=5, pause_s=5)
    small = asyncio.create_task(stopped(pieces(b"a", b"a", b"a", every_s=0.05), limits))
    large = [asyncio.create_task(stopped(pieces(b"b" * 999, b"b" * 1, ending="never"), limits)) for _ in range(10)]
    assert await small == b"aaa"
    for task in large:
        task.cancel()
    await asyncio.gather(*large, return_exceptions=True)


async def test_a_body_as_large_as_its_own_limit_always_fits() -> None:
    limits = Limits(body_bytes=1000, room_bytes=10, body_s=5, pause_s=5)
    assert await stopped(pieces(b"a" * 500, b"a" * 500), limits) == b"a" * 1000
