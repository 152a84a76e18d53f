"""The bounds of a connection, over real sockets."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from httpguard import Limits, protocol
from tests.fakes.serving import serve


class Quick(protocol.Protocol):
    limits = Limits(head_s=0.3, unread_s=0.3)


left = threading.Event()
"""Set when the answer to `/large` has ended."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was read; `/deaf` answers without reading, `/large` with 64 MiB."""
    if scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        left.set()
        return
    body = b""
    while scope["path"] != "/deaf":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    told = json.dumps({"body": len(body), "headers": [name.decode() for name, _ in scope["headers"]]}).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(told)).encode())]}
    )
    await send({"type": "http.response.body", "body": told})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    before = protocol.auto.AutoHTTPProtocol
    protocol.auto.AutoHTTPProtocol = Quick
    try:
        with serve(app) as url:
            yield "127.0.0.1", int(url.rpartition(":")[2])
    finally:
        protocol.auto.AutoHTTPProtocol = before


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=10) as sock:
        yield sock


def answer(sock: socket.socket) -> bytes:
    """Everything until the server closes."""
    held = b""
    while piece := sock.recv(65536):
        held += piece
    return held


def status(said: bytes) -> int:
    return int(said.split(b" ")[1])


def test_heads_up_to_the_limit_pass(address: tuple[str, int]) -> None:
    url = f"http://{address[0]}:{address[1]}/"
    assert httpx.get(url, headers={"x-long": "a" * 60_000}).status_code == 200
    assert httpx.get(url, headers={f"x-{n}": "a" for n in range(110)}).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 66_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 129 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: %s\r\n" % (n, b"a" * 6000) for n in range(12)) + b"\r\n",
    ],
)  # fmt: skip
def test_larger_heads_get_431(address: tuple[str, int], head: bytes) -> None:
    with connected(address) as sock:
        sock.sendall(head)
        said = answer(sock)
    assert status(said) == 431
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


def test_a_header_that_never_ends_is_not_gathered(address: tuple[str, int]) -> None:
    sent = 0
    with connected(address) as sock, suppress(OSError):
        sock.sendall(b"GET / HTTP/1.1\r\nx: ")
        while sent < 100 * 1024 * 1024:
            sent += sock.send(b"a" * 65536)
    assert sent < 32 * 1024 * 1024, "what the sockets themselves hold"


@pytest.mark.parametrize("beginning", [b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nhost: a\r\nx:"])
def test_a_head_that_does_not_end_gets_408(address: tuple[str, int], beginning: bytes) -> None:
    with connected(address) as sock:
        sock.sendall(beginning)
        assert status(answer(sock)) == 408


def test_an_answer_that_nobody_reads_is_given_up(address: tuple[str, int]) -> None:
    """Else whoever asks and does not read holds a place, and an endpoint's connection, for ever."""
    left.clear()
    with connected(address) as sock:
        sock.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        assert left.wait(10)
        assert len(answer(sock)) < 64 * 2**20


def test_an_answer_that_is_read_slowly_comes_whole(address: tuple[str, int]) -> None:
    left.clear()
    with connected(address) as sock:
        sock.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        held, began = 0, time.monotonic()
        while piece := sock.recv(2**20):
            held += len(piece)
            if time.monotonic() < began + 1:
                time.sleep(0.02)  # A slow reader is what is tried.
    assert held > 64 * 2**20
    assert left.is_set()


def test_a_head_that_trickles_gets_408(address: tuple[str, int]) -> None:
    started = time.monotonic()
    with connected(address) as sock:
        said = b""
        sock.settimeout(0.02)
        sock.sendall(b"GET / HTTP/1.1\r\n")
        while not said and time.monotonic() - started < 10:
            try:
                sock.sendall(b"x: y\r\n")
                said = sock.recv(1000)
            except TimeoutError:
                continue
    assert status(said) == 408


def test_a_connection_that_says_nothing_is_closed(address: tuple[str, int]) -> None:
    with connected(address) as sock:
        assert answer(sock) == b""


def test_requests_follow_one_another_on_a_connection(address: tuple[str, int]) -> None:
    one = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
    last = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    with connected(address) as sock:
        sock.sendall(one + one + last)
        said = answer(sock)
    assert said.count(b"HTTP/1.1 200") == 3
    assert said.count(b'"body": 3') == 2


def test_headers_after_the_body_are_not_seen(address: tuple[str, int]) -> None:
    with connected(address) as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            b"1\r\na\r\n0\r\nauthorization: Bearer x\r\n\r\n"
        )
        told = json.loads(answer(sock).partition(b"\r\n\r\n")[2])
    assert told["body"] == 1
    assert "authorization" not in told["headers"]


def test_what_is_no_http_gets_400_in_the_servers_words(address: tuple[str, int]) -> None:
    with connected(address) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\r\n\r\n")
        said = answer(sock)
    assert status(said) == 400
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


@pytest.mark.parametrize(
    "target",
    ["/a%00b", "/a%0ab", "/%0D%0Aset-cookie:x", "/%0A", "http://evil.example/", "*", "/#x", "/a%00?b"],
)
def test_a_target_that_no_router_matches_is_refused(address: tuple[str, int], target: str) -> None:
    with connected(address) as sock:
        for piece in (f"GET {target[:3]}", f"{target[3:]} HTTP/1.1\r\nhost: a\r\n\r\n"):
            sock.sendall(piece.encode())
        said = answer(sock)
    assert status(said) == 400
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] in ("invalid_target", "invalid_http")


def test_in_a_query_a_line_end_is_a_value_like_any_other(address: tuple[str, int]) -> None:
    assert httpx.get(f"http://{address[0]}:{address[1]}/deaf?x=%0a%00&u=http://a/").status_code == 200


@pytest.mark.parametrize("method", ["TRACE", "PURGE", "CONNECT", "PROPFIND", "LINK"])
def test_a_method_that_no_route_has_is_refused(address: tuple[str, int], method: str) -> None:
    target = "a:1" if method == "CONNECT" else "/"
    with connected(address) as sock:
        sock.sendall(f"{method} {target} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        said = answer(sock)
    assert status(said) in (400, 405)


def test_a_body_that_nobody_reads_ends_with_the_connection(address: tuple[str, int], monkeypatch: Any) -> None:
    monkeypatch.setattr(protocol, "PAUSE_S", 0.2)
    with connected(address) as sock:
        sock.sendall(b"POST /deaf HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nabc")
        assert status(answer(sock)) == 200


def test_a_body_that_stops_ends_with_the_connection(address: tuple[str, int], monkeypatch: Any) -> None:
    monkeypatch.setattr(protocol, "PAUSE_S", 0.2)
    with connected(address) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc")
        assert answer(sock) == b""


def test_an_idle_connection_outlives_the_clients_patience() -> None:
    """A server that gives up as soon as its clients do resets requests that cross its farewell."""
    expiry_s = inspect.signature(httpx.Limits).parameters["keepalive_expiry"].default
    made = protocol.Protocol(uvicorn.Config(app, timeout_keep_alive=2), ServerState(), {}, asyncio.new_event_loop())
    assert made.timeout_keep_alive >= 10 * expiry_s
    made.loop.close()
