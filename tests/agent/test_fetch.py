"""Downloads: ranges in parallel, resumed, verified; from a bucket on a socket that breaks off, lies and expires."""

import asyncio
import base64
import hashlib
import random
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from goblin_agent import fetch as module
from goblin_agent.fetch import Unreadable, fetch
from goblin_worker import retries
from goblin_worker.controller import File, Grant
from tests.fakes.serving import serve

DATA = random.Random(1).randbytes(50_000)
RANGE = 4096


@dataclass
class Bucket:
    """One object, and how it misbehaves."""

    data: bytes = DATA
    asked: list[tuple[int, int]] = field(default_factory=list)
    break_after: int | None = None
    """Bytes of an answer before the connection breaks."""
    statuses: list[int] = field(default_factory=list)
    """What it answers first."""
    good: set[str] = field(default_factory=lambda: {"1"})
    """Keys that have not expired."""
    whole: bool = False
    """It does not know ranges."""
    at_once: int = 0
    at_once_max: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    async def get(self, request: Request) -> Response:
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        assert request.headers["x-signed"] == "yes"
        with self.lock:
            self.asked.append((first, last))
            if self.statuses:
                return Response("not now", self.statuses.pop(0))
        if request.query_params["key"] not in self.good:
            return Response("ExpiredToken", 400)
        if self.whole:
            return Response(self.data)
        body = self.data[first : last + 1]

        async def chunks() -> AsyncIterator[bytes]:
            self.at_once += 1
            self.at_once_max = max(self.at_once_max, self.at_once)
            await asyncio.sleep(0.005)  # So that requests that can overlap do.
            self.at_once -= 1
            if self.break_after is not None and len(body) > self.break_after:
                yield body[: self.break_after]
                raise ConnectionError("cut")
            yield body

        return StreamingResponse(chunks(), 206, headers={"content-length": str(len(body))})

    def grant(self, key: str = "1") -> Grant:
        return Grant(url=f"{self.url}/o?key={key}", headers={"x-signed": "yes"})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setattr(module, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(retries, "BACKOFF_S_MAX", 0.001)
    bucket = Bucket()
    with serve(Starlette(routes=[Route("/o", bucket.get)])) as bucket.url:
        yield bucket


def file(bucket: Bucket, data: bytes = DATA, *, name: str = "data", sha256: bool = True) -> File:
    checksum = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
    digest = hashlib.sha256(data).hexdigest() if sha256 else None
    return File(name=name, size=len(data), crc32c=checksum, sha256=digest, grant=bucket.grant())


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def bring(bucket: Bucket, folder: Path, wanted: File | None = None, *, keys: tuple[str, ...] = ()) -> Path:
    left = list(keys)

    async def renew() -> Grant:
        return bucket.grant(left.pop(0))

    async with httpx.AsyncClient() as http:
        return await fetch(http, wanted or file(bucket), folder, renew)


async def test_ranges_come_in_parallel_and_make_the_file(bucket: Bucket, tmp_path: Path) -> None:
    path = await bring(bucket, tmp_path)
    assert path.read_bytes() == DATA
    assert sorted(bucket.asked) == [(at, min(at + RANGE, len(DATA)) - 1) for at in range(0, len(DATA), RANGE)]
    assert 1 < bucket.at_once_max <= module.PARALLEL
    assert names(tmp_path) == ["data"]


async def test_a_range_goes_on_where_its_connection_broke(bucket: Bucket, tmp_path: Path) -> None:
    bucket.break_after = 1500
    path = await bring(bucket, tmp_path)
    assert path.read_bytes() == DATA
    assert (1500, RANGE - 1) in bucket.asked
    assert (3000, RANGE - 1) in bucket.asked


async def test_what_a_killed_agent_has_brought_is_not_brought_again(bucket: Bucket, tmp_path: Path) -> None:
    # As it was left: two ranges written and noted, a third written and its line torn.
    (tmp_path / ".data.part").write_bytes(DATA[: 3 * RANGE] + bytes(len(DATA) - 3 * RANGE))
    (tmp_path / ".data.ranges").write_text(f"{len(DATA)} {file(bucket).crc32c} {RANGE}\n0\n{RANGE}\n{2 * RANGE}")
    path = await bring(bucket, tmp_path)
    assert path.read_bytes() == DATA
    assert min(bucket.asked)[0] == 2 * RANGE


async def test_the_rest_of_another_file_is_not_used(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / ".data.part").write_bytes(b"\0" * len(DATA))
    ranges = "".join(f"{at}\n" for at in range(0, len(DATA), RANGE))
    (tmp_path / ".data.ranges").write_text(f"{len(DATA)} AAAAAA== {RANGE}\n{ranges}")
    (tmp_path / "data").write_bytes(b"an older one")
    path = await bring(bucket, tmp_path)
    assert path.read_bytes() == DATA


async def test_a_file_that_is_here_is_not_asked_for(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    await bring(bucket, tmp_path)
    assert bucket.asked == []


async def test_a_wrong_file_is_never_seen(bucket: Bucket, tmp_path: Path) -> None:
    bucket.data = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(Unreadable, match="crc32c"):
        await bring(bucket, tmp_path, file(bucket, sha256=False))
    assert len(bucket.asked) == 2 * -(-len(DATA) // RANGE), "it is brought once more, it may have been the line"
    assert names(tmp_path) == []


async def test_a_file_with_the_right_checksum_and_another_digest_is_never_seen(bucket: Bucket, tmp_path: Path) -> None:
    wanted = file(bucket)
    forged = File(**{**wanted.__dict__, "sha256": "0" * 64})
    with pytest.raises(Unreadable, match="sha256"):
        await bring(bucket, tmp_path, forged)


async def test_an_expired_grant_is_renewed_once_for_all_ranges(bucket: Bucket, tmp_path: Path) -> None:
    bucket.good = {"2"}
    path = await bring(bucket, tmp_path, keys=("2",))
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("status", [500, 503, 429, 404])
async def test_a_bucket_that_is_away_for_a_moment_is_asked_again(bucket: Bucket, tmp_path: Path, status: int) -> None:
    bucket.statuses = [status] * 3
    assert (await bring(bucket, tmp_path)).read_bytes() == DATA


async def test_a_bucket_that_ignores_ranges_is_not_read(bucket: Bucket, tmp_path: Path) -> None:
    bucket.whole = True
    with pytest.raises(Unreadable, match="200"):
        await bring(bucket, tmp_path)


def test_what_an_earlier_process_had_to_do_with_other_files_goes(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("data", ".data.part", ".data.ranges", "old", ".old.part", ".old.ranges"):
        (tmp_path / name).touch()
    module.tidy(tmp_path, [file(bucket)])
    assert names(tmp_path) == [".data.part", ".data.ranges", "data"]


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "", "x\n"])
async def test_a_name_is_a_path_nowhere(bucket: Bucket, tmp_path: Path, name: str) -> None:
    with pytest.raises(Unreadable, match="cannot be named"):
        await bring(bucket, tmp_path, file(bucket, name=name))
    assert bucket.asked == []
