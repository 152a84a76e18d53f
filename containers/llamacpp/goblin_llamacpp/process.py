"""Lifecycle of the process: bind the port, announce it, load the model, drain on a signal, exit.

start              bind the port; probes get 503 "Loading model" until the model is loaded
SIGTERM at T       readiness and new requests get 503; running answers go on
T + grace (8 s)    running answers are cut and get their last chunk
T + grace + 1 s    exit 0 in any case; a second signal exits at once
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

from httpguard.lines import escape, log_lines
from httpguard.protocol import Protocol

from .fetch import Fetch
from .loaded import LoadSettings
from .model import quiet_llama
from .server import Server, ServerSettings
from .serving import LoadRefused, Serving
from .source import ModelSource

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""Python's thread switch interval. Its default is 5 ms, but the engine's thread needs the GIL soon after a decode."""
CUT_S = 0.7
"""Time for the last chunks, from the cut to the exit."""


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
    """uvicorn without its signal handlers, because this module drains on signals first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(process: ProcessSettings, load: LoadSettings, server: ServerSettings) -> int:
    """Serve until a signal.

    Returns:
        The exit status: 0, or 1 if the model could not be loaded.
    """
    log_lines()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    quiet_llama()
    bound = _bind(process.host, process.port)
    serving = Serving(load, aliases=process.aliases, cores=process.cores, fetch=process.fetch)
    app = Server(serving, server).app()
    listener = _Listener(
        uvicorn.Config(
            app,
            http=Protocol,
            access_log=False,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=1,
            ws="none",
        )
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
        sys.stderr.write(f"The model could not be loaded: {escape(refusal)}\n")  # It may quote the file.
        return 1
    await asyncio.wait({listening, stop}, return_when=asyncio.FIRST_COMPLETED)
    await _end(serving, listener, listening, loading, process.grace_s)
    return 0


def _refusal(loading: asyncio.Task[None]) -> str | None:
    """Return why the model could not be loaded, or None. A bug in the loader is raised."""
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
    # Even if a thread hangs, the platform must see exit 0 before it kills the process. A timer of the event loop would
    # not do, because the loop ends before the threads.
    last_resort = threading.Timer(grace_s + 1, os._exit, (0,))
    last_resort.daemon = True
    last_resort.start()
    if not loading.done():
        os._exit(0)  # Loading cannot be interrupted, and no answer is running yet.
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
        sys.stderr.write(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --host or --port.\n")
        raise SystemExit(1) from None
    bound.listen(512)
    return bound


def _announce(bound: socket.socket, process: ProcessSettings) -> None:
    port = bound.getsockname()[1]
    host = f"[{process.host}]" if ":" in process.host else process.host
    sys.stdout.write(f"listening on http://{host}:{port}\n")
    sys.stdout.flush()
    if process.port_file:
        # Written beside it and renamed, so that a reader never sees half a number.
        partial = process.port_file.with_suffix(".partial")
        partial.write_text(str(port))
        partial.replace(process.port_file)
