"""Where everything of a `goblin up` listens."""

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
    """Somebody listens there already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """One for each server."""

    http: int
    pubsub: int
    firestore: int
    storage: int
    llamacpp: int
    market: int


def is_free(port: int) -> bool:
    """Whether nobody listens on the port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def choose(http: int) -> Ports:
    """Take the usual ports where they are free, any free one elsewhere; HTTP's is the person's word.

    Raises:
        Taken: The HTTP port is.
    """
    if not is_free(http):
        raise Taken(f"port {http} is taken. Choose another with --port PORT.")

    def usual(port: int) -> int:
        return port if port != http and is_free(port) else google.free_port()

    return Ports(
        http=http, pubsub=usual(8085), firestore=usual(8086), storage=usual(4443), llamacpp=google.free_port(),
        market=usual(8087),
    )  # fmt: skip


def take_turn() -> int:
    """Wait until no other `up` of this person is choosing ports; closing the descriptor ends the turn.

    A port that is free is still free when our child binds it only if nobody else chose it meanwhile.
    """
    path = Path(tempfile.gettempdir(), f"goblin-ports-{os.getuid()}.lock")
    turn = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(turn, fcntl.LOCK_EX)
    return turn


async def listens(port: int) -> bool:
    """Whether somebody answers on the port."""
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True
