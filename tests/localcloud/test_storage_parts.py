"""The pieces of Cloud Storage that need no server: parsing, listing, the outbox."""

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcloud.storage import transcoding
from localcloud.storage.catalog import Catalog
from localcloud.storage.downloads import RangeNotSatisfiable, parse_range
from localcloud.storage.errors import StorageError
from localcloud.storage.files import Files
from localcloud.storage.listing import after_prefix, glob_pattern
from localcloud.storage.notifications import Notifications
from localcloud.storage.objects import Objects, merge
from localcloud.storage.preconditions import NONE
from localcloud.storage.records import Bucket, etag
from localcloud.storage.related import Related, boundary
from localcloud.storage.routes import canonical
from localcloud.storage.sessions import parse_content_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-", (2, 8)),
        ("bytes=2-99", (2, 8)),
        ("bytes=-3", (7, 3)),
        ("bytes=-99", (0, 10)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=1-2,4-5", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 5000 + "-", None),
    ],
)
def test_a_range_is_read_or_ignored(header: str | None, wanted: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == wanted


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=0-", 0), ("bytes=-0", 10), ("bytes=-5", 0)])
def test_a_range_past_the_end_is_refused(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, size)


@pytest.mark.parametrize(
    ("header", "content_length", "wanted"),
    [
        (None, "7", (0, 7, 7)),
        (None, None, (0, None, None)),
        ("bytes 0-9/10", "10", (0, 10, 10)),
        ("bytes 5-9/*", "5", (5, 5, None)),
        ("bytes */10", "0", (None, None, 10)),
        ("bytes */*", "0", (None, None, None)),
        ("bytes 0-*/*", None, (0, None, None)),
        ("bytes 5-*/10", None, (5, None, 10)),
    ],
)
def test_a_content_range_says_where_the_bytes_go(
    header: str | None, content_length: str | None, wanted: tuple[int | None, int | None, int | None]
) -> None:
    where = parse_content_range(header, content_length)
    assert (where.first, where.length, where.total) == wanted


@pytest.mark.parametrize("header", ["", "bytes", "bytes 1-2", "bytes 3-2/9", "bytes 0-9/9", "bytes -1-2/9", "bytes a"])
def test_a_content_range_that_cannot_be_meant_is_refused(header: str) -> None:
    with pytest.raises(StorageError):
        parse_content_range(header, None)


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=3))
def test_after_a_prefix_comes_exactly_what_does_not_start_with_it(prefix: str, name: str, tail: str) -> None:
    after = after_prefix(prefix)
    for candidate in (name, prefix + tail):
        is_behind = after is not None and candidate.encode() >= after.encode()
        is_before = candidate.encode() < prefix.encode()
        assert candidate.startswith(prefix) == (not is_behind and not is_before)


@given(st.text(alphabet="ab/*?[]{},!-^\\", max_size=12), st.text(alphabet="ab/", max_size=6))
def test_any_glob_is_read_or_refused(glob: str, name: str) -> None:
    with suppress(StorageError):
        glob_pattern(glob).fullmatch(name)


async def pieces(data: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        yield data[start:end]


@given(
    media=st.one_of(
        st.binary(max_size=200), st.sampled_from([b"\r\n--mark", b"\r\n--mar", b"--mark--\r\n", b"\r\n", b"\n", b"\r"])
    ),
    cuts=st.lists(st.integers(0, 1000), max_size=8),
    line_end=st.sampled_from([b"\r\n", b"\n"]),
)
def test_a_multipart_body_is_read_alike_however_it_is_cut(media: bytes, cuts: list[int], line_end: bytes) -> None:
    if line_end + b"--mark" in media:
        media = media.replace(line_end + b"--mark", b"")
    body = (
        b'--mark\ncontent-type: application/json\n\n{"name": "x"}\n--mark\ncontent-type: text/x\n\n'.replace(
            b"\n", line_end
        )
        + media
        + line_end
        + b"--mark--"
    )

    async def read() -> tuple[dict[str, object], str, bytes]:
        related = Related(pieces(body, cuts), b"mark")
        metadata = await related.metadata()
        return metadata, related.media_type, b"".join([chunk async for chunk in related.media()])

    assert asyncio.run(read()) == ({"name": "x"}, "text/x", media)


async def test_a_multipart_body_that_ends_early_is_refused() -> None:
    body = b"--mark\r\n\r\n{}\r\n--mark\r\n\r\nhalf of it"
    related = Related(pieces(body, []), b"mark")
    await related.metadata()
    with pytest.raises(StorageError, match="ends early"):
        assert [chunk async for chunk in related.media()]


@pytest.mark.parametrize("value", ["", "text/plain", "multipart/related", "multipart/mixed; boundary=x"])
def test_a_content_type_without_a_boundary_is_refused(value: str) -> None:
    with pytest.raises(StorageError):
        boundary(value, "multipart/related")


@pytest.mark.parametrize("value", ["mark", '"mark"', "'mark'"])
def test_a_boundary_is_read_without_its_quotes(value: str) -> None:
    assert boundary(f"multipart/related; boundary={value}", "multipart/related") == b"mark"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/b", "/storage/v1/b"),
        ("/b/x/o/a%2Fb", "/storage/v1/b/x/o/a%2Fb"),
        ("/upload/b/x/o", "/upload/storage/v1/b/x/o"),
        ("/download/b/x/o/y", "/download/storage/v1/b/x/o/y"),
        ("/resumable/upload/storage/v1/b/x/o", "/upload/storage/v1/b/x/o"),
        ("/resumable/upload/b/x/o", "/upload/storage/v1/b/x/o"),
        ("/projects/p/serviceAccount", "/storage/v1/projects/p/serviceAccount"),
        ("/storage/v1/b/x", "/storage/v1/b/x"),
        ("/bucket/b/x", "/bucket/b/x"),
        ("/projects/p/other", "/projects/p/other"),
        ("/", "/"),
    ],
)
def test_a_path_of_the_json_api_is_completed(path: str, wanted: str) -> None:
    assert canonical(path) == wanted
    assert canonical(wanted) == wanted


@pytest.mark.parametrize(
    ("fields", "accepted", "wanted"),
    [
        ({"contentEncoding": "gzip"}, "", True),
        ({"contentEncoding": "gzip"}, "identity", True),
        ({"contentEncoding": "gzip"}, "deflate, gzip;q=0", True),
        ({"contentEncoding": "gzip"}, "gzip;q=0.000", True),
        ({"contentEncoding": "gzip"}, "gzip", False),
        ({"contentEncoding": "gzip"}, "br, GZIP;q=0.5", False),
        ({"contentEncoding": "gzip", "cacheControl": "public, no-transform"}, "", False),
        ({"contentEncoding": "br"}, "", False),
        ({}, "", False),
    ],
)
def test_a_packed_object_is_unpacked_for_a_client_that_does_not_accept_gzip(
    fields: dict[str, object], accepted: str, wanted: bool
) -> None:
    assert transcoding.is_served_unpacked(fields, accepted) == wanted


@given(members=st.lists(st.binary(max_size=50), max_size=3), cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_gzip_is_unpacked_alike_however_it_is_cut(members: list[bytes], cuts: list[int]) -> None:
    packed = b"".join(gzip.compress(member) for member in members)

    async def unpack(data: bytes) -> bytes:
        return b"".join([chunk async for chunk in transcoding.gunzip(pieces(data, cuts))])

    assert asyncio.run(unpack(packed)) == b"".join(members)
    if packed:
        with pytest.raises(StorageError, match="ends early"):
            asyncio.run(unpack(packed[:-1]))


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), json_values), st.dictionaries(st.sampled_from("abc"), json_values))
def test_a_patch_applied_twice_is_the_patch_applied_once(old: dict[str, object], change: dict[str, object]) -> None:
    once = merge(merge({}, old), change)
    assert merge(once, change) == once
    assert "null" not in json.dumps(once)


def test_etags_are_productions() -> None:
    assert etag(1) == "CAE="
    generation = 1795641530073555
    packed = base64.b64decode(etag(generation, 3))
    assert packed[0] == 0x08  # Field 1, a varint.
    assert sum((byte & 0x7F) << 7 * at for at, byte in enumerate(packed[1:-2])) == generation
    assert packed[-2:] == b"\x10\x03"  # Field 2, the metageneration.


class Outbox:
    """A catalog with one bucket that tells one topic, and a Pub/Sub that may fail."""

    def __init__(self, folder: Path, *, failures: int = 0) -> None:
        self.folder = folder
        self.told: list[tuple[str, str]] = []
        self.news = asyncio.Event()
        self.failures = failures
        self.catalog = Catalog(folder / "storage.db", clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
        self.notifications = Notifications(self.catalog, self.publish)
        self.objects = Objects(self.catalog, Files(folder), self.notifications)

    async def publish(self, topic: str, data: bytes, attributes: Mapping[str, str]) -> str:
        del data
        if self.failures:
            self.failures -= 1
            raise ConnectionError("Pub/Sub is away")
        self.told.append((topic, attributes["objectId"]))
        self.news.set()
        return "1"

    def begin(self) -> None:
        self.catalog.save_bucket(Bucket(name="b", project="p", metageneration=1, created_us=1, updated_us=1, fields={}))
        topic = "//pubsub.googleapis.com/projects/p/topics/t"
        self.notifications.create("b", {"topic": topic, "payload_format": "NONE"})

    async def put(self, name: str) -> None:
        incoming = self.objects.files.incoming()
        await incoming.write(b"x")
        await self.objects.receive("b", name, incoming, fields={}, preconditions=NONE, expected={})

    def files(self) -> int:
        return sum(1 for kind in ("objects", "incoming") for path in (self.folder / kind).rglob("*") if path.is_file())

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.told) < count:
                self.news.clear()
                await self.news.wait()


async def test_an_event_waits_until_pubsub_takes_it(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, failures=1)
    outbox.begin()
    outbox.notifications.start()
    await outbox.put("one")
    await outbox.put("two")
    await outbox.wait_for(2)
    assert outbox.told == [("projects/p/topics/t", "one"), ("projects/p/topics/t", "two")]
    await outbox.notifications.close()


async def test_an_event_is_told_after_a_restart(tmp_path: Path) -> None:
    before = Outbox(tmp_path)
    before.begin()
    await before.put("one")  # Never started: as if killed between the commit and the publishing.
    after = Outbox(tmp_path)
    after.notifications.start()
    await after.wait_for(1)
    assert after.told == [("projects/p/topics/t", "one")]
    await after.notifications.close()


async def test_generations_grow_though_the_clock_stands_still_and_across_restarts(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        outbox = Outbox(tmp_path)
        outbox.begin()
        for name in ("one", "one", "two"):
            await outbox.put(name)
            stored = outbox.catalog.object("b", name)
            seen.append(stored.generation)
            await outbox.objects.delete("b", name, generation=None, preconditions=NONE)
        outbox.catalog.close()
    assert seen == sorted(set(seen))


async def test_a_put_that_fails_leaves_neither_row_nor_file(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.begin()
    await outbox.put("kept")

    def fail(_: object) -> None:
        raise RuntimeError("the disk is full")

    incoming = outbox.objects.files.incoming()
    await incoming.write(b"y")
    content = await incoming.finish()
    with pytest.raises(RuntimeError):
        await outbox.objects.put("b", "kept", incoming.path, content, fields={}, preconditions=NONE, within=fail)
    await incoming.discard()
    assert outbox.catalog.object("b", "kept").content.size == 1
    assert outbox.files() == 1
