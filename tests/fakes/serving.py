"""Real servers on loopback for tests: bound to a free port, closed when the block ends."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """Serve an application in a thread; gives its base URL."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = _Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        if not server.ready.wait(10):
            raise RuntimeError("the test server did not start")
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()


def closed_port() -> str:
    """A base URL where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


class Startable:
    """A fake with an `app`: `async with FakeX() as fake: fake.url`, or `python -m tests.fakes.x [PORT]`."""

    app: ASGIApp
    path = ""
    """What an endpoint's URL ends in."""
    base = ""
    """Where it is served, without a path."""
    _serving: AbstractContextManager[str]

    @property
    def url(self) -> str:
        return self.base + self.path

    async def __aenter__(self) -> Self:
        self._serving = serve(self.app)
        self.base = await asyncio.to_thread(self._serving.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._serving.__exit__, None, None, None)


def run(fake: Startable) -> None:
    """Serve one fake until it is interrupted; prints its URL first."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with socket.create_server(("127.0.0.1", port)) as sock:
        fake.base = f"http://127.0.0.1:{sock.getsockname()[1]}"
        print(fake.url, flush=True)
        server = uvicorn.Server(uvicorn.Config(fake.app, log_level="warning", lifespan="off"))
        server.run(sockets=[sock])
