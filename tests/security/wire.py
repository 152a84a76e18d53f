"""A client that sends any bytes and reads what comes back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 90.0
"""Far above what any answer takes."""


@dataclass
class Reply:
    """An answer; status 0 if the server closed the connection without one."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=TIMEOUT_S) as sock:
        yield sock


def head(method: str, target: str, headers: Mapping[str, str | bytes]) -> bytes:
    """The head of a request, whatever is in its parts."""
    lines = [f"{method} {target} HTTP/1.1".encode("utf-8", "surrogateescape")]
    for name, value in headers.items():
        said = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        lines.append(name.encode() + b": " + said)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def request(
    address: tuple[str, int], method: str, target: str, headers: Mapping[str, str | bytes], body: bytes | None = None
) -> Reply:
    """Send one whole request on a connection of its own."""
    said: dict[str, str | bytes] = {"host": f"{address[0]}:{address[1]}", "connection": "close", **headers}
    if body is not None and "content-length" not in said and "transfer-encoding" not in said:
        said["content-length"] = str(len(body))
    return send(address, head(method, target, said) + (body or b""))


def send(address: tuple[str, int], data: bytes, *, leaves: bool = False) -> Reply:
    """Send bytes, then read one answer and whatever follows it.

    Args:
        address: The server's.
        data: What is sent.
        leaves: Whether to say then that nothing follows: the server may wait for more of it, or for another request.
    """
    with connected(address) as sock:
        # A server may refuse, and close, before it has everything.
        with suppress(OSError):
            sock.sendall(data)
            if leaves:
                sock.shutdown(socket.SHUT_WR)
        return read(sock)


def read(sock: socket.socket) -> Reply:
    """Read until the server closes; return the first answer."""
    start, _, body = read_all(sock).partition(b"\r\n\r\n")
    first, *lines = start.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.1 "):
        return Reply()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Reply(int(first[9:12]), headers, body)


def read_all(sock: socket.socket) -> bytes:
    """Read until the server closes."""
    held = bytearray()
    with suppress(ConnectionError):
        while piece := sock.recv(65536):
            held += piece
    return bytes(held)
