"""Cloud Storage alone, on a port of its own: in a thread of the test, or as a process that can be killed."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self
from unittest import mock

import uvicorn
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs
from starlette.applications import Starlette

from localcloud.storage import Storage

START_S = 20.0


def connect(url: str, project: str = "test-project") -> gcs.Client:
    """The real client, pointed at `url` as its users point it."""
    with mock.patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": url}):
        return gcs.Client(project=project, credentials=AnonymousCredentials())


def listen(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


async def serve(storage: Storage, sock: socket.socket, ready: Any) -> None:
    """Serve until cancelled or told to exit; calls `ready(server)` when requests are taken."""
    app = Starlette(routes=storage.routes())
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=2)
    )
    await storage.start()
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[sock])
    ready(server)
    try:
        await server.main_loop()
    finally:
        await server.shutdown(sockets=[sock])
        await storage.close()


class StorageThread:
    """A server in a thread; options go to `Storage`, made on the thread's loop."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        self._options = options
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._sock = listen()
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def client(self) -> gcs.Client:
        return connect(self.url)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_S)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(START_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._ready.set()

    async def _main(self) -> None:
        await serve(Storage(self._folder, **self._options), self._sock, self._started)

    def _started(self, server: uvicorn.Server) -> None:
        self._server = server
        self._ready.set()


class StorageProcess:
    """A server in a process of its own, on one port for all its lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with listen() as sock:
            self.port: int = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> gcs.Client:
        return connect(self.url)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.folder), str(self.port)], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_S)
        assert readable
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(START_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


if __name__ == "__main__":
    asyncio.run(serve(Storage(Path(sys.argv[1])), listen(int(sys.argv[2])), lambda _: print("ready", flush=True)))
