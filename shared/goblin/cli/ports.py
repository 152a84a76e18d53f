"""Ports on which the servers of `goblin up` listen."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from localcloud import google

HOST = "127.0.0.1"


class Taken(Exception):
    """The chosen port is in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """One port for each server."""

    http: int
    pubsub: int
    firestore: int
    storage: int
    llamacpp: int
    market: int
    jobs: int


def is_free(port: int) -> bool:
    """Whether the port is free on this machine."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def choose(http: int) -> Ports:
    """Choose the usual ports where they are free, else any free ones; the HTTP port is the given one.

    Raises:
        Taken: The HTTP port is in use.
    """
    if not is_free(http):
        raise Taken(f"Port {http} is in use. Choose another with --port PORT.")

    def usual(port: int) -> int:
        return port if port != http and is_free(port) else google.free_port()

    return Ports(
        http=http, pubsub=usual(8085), firestore=usual(8086), storage=usual(4443), llamacpp=google.free_port(),
        market=usual(8087), jobs=google.free_port(),
    )  # fmt: skip


def take_turn() -> int:
    """Wait until no other `goblin up` of this user is choosing ports; return a descriptor to close afterwards.

    A free port stays free until our child binds it only if no other `goblin up` chooses it meanwhile.
    """
    path = Path(tempfile.gettempdir(), f"goblin-ports-{os.getuid()}.lock")
    turn = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(turn, fcntl.LOCK_EX)
    return turn


async def listens(port: int) -> bool:
    """Whether a server accepts connections on the port."""
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True
