"""The life of the process: bind, announce, load behind an open port, drain on a signal, end.

0 s   bind; probes answer "Loading model"
SIGTERM at T: readiness 503, new requests 503, running answers go on
T + grace (8 s): what still runs is given its last chunk
T + grace + 1 s: exit 0, whatever happens; a second signal exits at once
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from .fetch import Fetch
from .loaded import LoadSettings
from .model import quiet_llama
from .server import Server, ServerSettings
from .serving import LoadRefused, Serving
from .source import ModelSource

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""The engine's thread must get the interpreter back soon after each decode; the default is 5 ms."""
CUT_S = 0.7
"""From the last chunks to the exit."""


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    model: ModelSource
    fetch: Fetch
    aliases: tuple[str, ...]
    host: str
    port: int
    port_file: Path | None
    grace_s: float
    cores: int


class _Listener(uvicorn.Server):
    """uvicorn without its signal handlers: ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(process: ProcessSettings, load: LoadSettings, server: ServerSettings) -> int:
    """Serve until a signal; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It would log signed URLs, which are secrets.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    quiet_llama()
    bound = _bind(process.host, process.port)
    serving = Serving(load, aliases=process.aliases, cores=process.cores, fetch=process.fetch)
    app = Server(serving, server).app()
    listener = _Listener(
        uvicorn.Config(app, access_log=False, log_config=None, lifespan="off", timeout_graceful_shutdown=1, ws="none")
    )
    stopping = asyncio.Event()
    _on_signals(stopping)

    listening = asyncio.create_task(listener.serve(sockets=[bound]))
    _announce(bound, process)
    loading = asyncio.create_task(serving.load_first(process.model))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({loading, listening, stop}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and (refusal := _refusal(loading)):
        listener.should_exit = True
        await listening
        sys.stderr.write(f"the model could not be loaded: {refusal}\n")
        return 1
    await asyncio.wait({listening, stop}, return_when=asyncio.FIRST_COMPLETED)
    await _end(serving, listener, listening, loading, process.grace_s)
    return 0


def _refusal(loading: asyncio.Task[None]) -> str | None:
    """Why there is nothing to serve; a fault of ours is raised."""
    try:
        loading.result()
    except LoadRefused as error:
        return str(error)
    return None


async def _end(
    serving: Serving,
    listener: uvicorn.Server,
    listening: asyncio.Task[None],
    loading: asyncio.Task[None],
    grace_s: float,
) -> None:
    log.info("draining")
    serving.drain()
    # Whatever hangs, the platform must see a clean exit before it kills. Not a timer of the event loop, which
    # ends before the threads do.
    last_resort = threading.Timer(grace_s + 1, os._exit, (0,))
    last_resort.daemon = True
    last_resort.start()
    if not loading.done():
        os._exit(0)  # Loading can not be interrupted, and nobody waits for an answer.
    await serving.finish(grace_s=grace_s, cut_s=CUT_S)
    listener.should_exit = True
    await listening


def _on_signals(stopping: asyncio.Event) -> None:
    def on_signal() -> None:
        if stopping.is_set():
            os._exit(0)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        sys.stderr.write(f"can not listen on {host}:{port}: {error.strerror}\n")
        raise SystemExit(1) from None
    bound.listen(512)
    return bound


def _announce(bound: socket.socket, process: ProcessSettings) -> None:
    port = bound.getsockname()[1]
    host = f"[{process.host}]" if ":" in process.host else process.host
    sys.stdout.write(f"listening on http://{host}:{port}\n")
    sys.stdout.flush()
    if process.port_file:
        # Renamed into place, so that a reader never sees half a number.
        partial = process.port_file.with_suffix(".partial")
        partial.write_text(str(port))
        partial.replace(process.port_file)
