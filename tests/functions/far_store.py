"""Firestore at a distance: the same server behind a wire that takes its time, or goes dead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

AWAY_S = 0.04
"""One way to a region on the other side of an ocean."""


class Wire:
    """What stands between a client and a server on loopback."""

    def __init__(self, address: str, away_s: float) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._away_s = away_s
        self._alive = threading.Event()
        self._alive.set()
        self.address = ""

    def dies(self) -> None:
        """Nothing comes through any more, and nobody is told: connections stay open."""
        self._alive.clear()

    def lives(self) -> None:
        """What comes from now on goes through; what came in between is lost, as its connections are."""
        self._alive.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._carry(reader, there[1]), self._carry(there[0], writer), return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending: set[asyncio.Task[None]] = set()
        lost = False
        while data := await reader.read(65536):
            if not self._alive.is_set():
                lost = True
            if lost and self._alive.is_set():
                break  # A part of the stream is missing.
            if not lost:
                pending.add(task := asyncio.create_task(self._later(writer, data)))
                task.add_done_callback(pending.discard)
        await asyncio.gather(*pending, return_exceptions=True)
        writer.close()

    async def _later(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        await asyncio.sleep(self._away_s)
        writer.write(data)


@contextmanager
def far_away(address: str, away_s: float = AWAY_S) -> Iterator[Wire]:
    """A wire to the server; `wire.address` is where to connect instead."""
    wire, loop, ready = Wire(address, away_s), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        server = await asyncio.start_server(wire.connected, "127.0.0.1", 0)
        wire.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the wire was not laid")
    try:
        yield wire
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
