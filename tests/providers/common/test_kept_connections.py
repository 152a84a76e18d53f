"""The transport to providers, against servers that keep, close, cut, stall and talk nonsense."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from goblin.providers.common.kept_connections import HELD_BYTES_MAX, KeptConnections, PlainClient

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Here:
    """One server, and a client of it; counts connections and what was asked."""

    def __init__(self, serve: Serve, *, most: int = 8) -> None:
        self._serve = serve
        self.connections = 0
        self.asked: list[bytes] = []
        self.left = asyncio.Event()
        self.transport = KeptConnections(tls=ssl.create_default_context(), most=most, kept=4)
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
            while await reader.read(1024):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # It left, or the test is over.
        finally:
            self.left.set()
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        self.asked.append(head + await reader.readexactly(length))


@asynccontextmanager
async def serving(
    answers: list[bytes], *, most: int = 8, then_close: bool = False
) -> AsyncIterator[tuple[Here, httpx.AsyncClient]]:
    """On each connection the answers in turn."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await here.read(reader)
            writer.write(answer)
            await writer.drain()
        if then_close:
            writer.close()

    here = Here(serve, most=most)
    server = await asyncio.start_server(here.answer, "127.0.0.1", 0)
    here.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with asyncio.timeout(10), PlainClient(here.transport) as client:
        yield here, client
    server.close()


async def test_a_connection_is_kept_and_the_request_goes_out_whole() -> None:
    async with serving([OK] * 3) as (here, client):
        for _ in range(3):
            assert (await client.post(here.url, content=b"{}", headers={"x-a": "b"})).content == b"ok"
        assert here.connections == 1
        assert here.asked[0].startswith(b"POST /v1 HTTP/1.1\r\n")
        assert b"\r\nx-a: b\r\n" in here.asked[0].lower()
        assert here.asked[0].endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_answers_of_every_shape(answer: bytes) -> None:
    async with serving([answer] * 2) as (here, client):
        for _ in range(2):
            assert (await client.get(here.url)).content == b"ok"
        assert here.connections == 1


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with serving([b"HTTP/1.1 200 OK\r\n\r\nok"], then_close=True) as (here, client):
        for _ in range(2):
            assert (await client.get(here.url)).content == b"ok"
        assert here.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
        b"220 ready\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_cut_or_nonsense_is_an_error(answer: bytes) -> None:
    async with serving([answer], then_close=True) as (here, client):
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await client.get(here.url)


async def test_what_came_before_a_cut_is_passed_on() -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"
    async with serving([cut], then_close=True) as (here, client), client.stream("GET", here.url) as answer:
        pieces = answer.aiter_bytes()
        assert await anext(pieces) == b"ok"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)


async def test_a_second_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async with serving([OK + OK]) as (here, client):
        assert (await client.get(here.url)).content == b"ok"
        assert (await client.get(here.url)).content == b"ok"
        assert here.connections == 2


async def test_leaving_early_closes_the_connection() -> None:
    async with serving([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"]) as (here, client):
        async with client.stream("GET", here.url):
            pass
        await here.left.wait()


async def test_being_cancelled_before_the_answer_closes_the_connection() -> None:
    async with serving([b""], most=1) as (here, client):
        asking = asyncio.create_task(client.get(here.url))
        while not here.asked:  # noqa: ASYNC110  The server is no part of the code.
            await asyncio.sleep(0)
        asking.cancel()
        await here.left.wait()
        with pytest.raises(httpx.ReadTimeout):  # And its place is free again: this one waits for an answer only.
            await client.get(here.url, timeout=httpx.Timeout(5, read=0.01))


async def test_no_place_no_connection_and_no_tls_are_told_apart(unused_tcp_port: int) -> None:
    async with serving([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"], most=1) as (here, client):
        async with client.stream("GET", here.url):
            with pytest.raises(httpx.PoolTimeout):
                await client.get(here.url, timeout=httpx.Timeout(5, pool=0.01))
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{unused_tcp_port}")
        with pytest.raises(httpx.ConnectTimeout):  # The server waits for more than a TLS hello.
            await client.get(here.url.replace("http:", "https:"), timeout=httpx.Timeout(5, connect=0.05))


async def test_kept_connections_that_died_are_not_tried_again() -> None:
    async with serving([OK], then_close=True) as (here, client):
        for _ in range(3):
            assert (await client.get(here.url)).content == b"ok"
            await here.left.wait()
            here.left.clear()
            await asyncio.sleep(0.01)  # The news of the end comes through the network.
        assert here.connections == 3


async def test_a_slow_reader_holds_the_sender_back() -> None:
    size = 64 * HELD_BYTES_MAX
    async with serving([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size]) as (here, client):
        largest = total = 0
        async with client.stream("GET", here.url) as answer:
            async for piece in answer.aiter_raw():
                largest, total = max(largest, len(piece)), total + len(piece)
                await asyncio.sleep(0)
        assert total == size
        assert largest <= 2 * HELD_BYTES_MAX


@pytest.mark.parametrize("headers", [{"x": "a\r\nb: c"}, {"transfer-encoding": "chunked"}])
async def test_a_header_cannot_smuggle(headers: dict[str, str]) -> None:
    async with serving([OK]) as (here, client):
        with pytest.raises(httpx.LocalProtocolError):
            await client.post(here.url, content=b"", headers=headers)
        assert here.connections == 0


def certificate(folder: Path) -> Path:
    """A key and a certificate that it signed itself, for `localhost`, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (path := folder / "both.pem").write_bytes(secret + made.public_bytes(pem))
    return path


@pytest.mark.parametrize(
    ("host", "trusted", "good"), [("localhost", True, True), ("localhost", False, False), ("127.0.0.1", True, False)]
)
async def test_over_tls_only_a_trusted_certificate_of_that_host_will_do(
    tmp_path: Path, host: str, trusted: bool, good: bool
) -> None:
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(path := certificate(tmp_path))
    tls = ssl.create_default_context(cafile=str(path) if trusted else None)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=served)
    transport = KeptConnections(tls=tls, most=1, kept=1)
    url = f"https://{host}:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(10), PlainClient(transport) as client:
        if good:
            assert (await client.get(url)).content == b"ok"
        else:
            with pytest.raises(httpx.ConnectError):
                await client.get(url)
    server.close()
