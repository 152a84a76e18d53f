"""A service as Cloud Run runs it under request-based billing: without CPU unless a request is in flight.

`python -m localcloud.throttle --port 8081 -- COMMAND WORDS…` starts the command, whose word `{port}` becomes a free
port, passes requests on to it, and stops its process (SIGSTOP) while no request is in flight. Work that the command
leaves for after its responses then waits for the next request, as it does in production.

On SIGTERM or SIGINT the command runs again, gets SIGTERM, and may take `END_S_MAX` to end. On Linux the kernel kills it
when this process is killed.

Source: cloud.google.com/run/docs/configuring/billing-settings, read 2026-12-01.
"""

import argparse
import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Sequence

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from httpguard import LOOPBACK, Guard
from httpguard.lines import log_lines
from httpguard.protocol import Protocol

HOST = "127.0.0.1"
START_S_MAX = 60.0
REQUEST_S_MAX = 3600.0
"""As long as Cloud Run lets a request take at most."""
END_S_MAX = 10.0
"""Between SIGTERM and SIGKILL, as Cloud Run gives."""
HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
PR_SET_PDEATHSIG = 1
"""From Linux's `<linux/prctl.h>`: the signal that a process gets when its parent ends."""


class Throttled:
    """An ASGI app that passes requests on to a process, which runs only while there are any."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self._client = httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=REQUEST_S_MAX, trust_env=False)
        self._in_flight = 0
        self._ending = False
        self.stops = 0
        """How often the process was stopped."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self._enter()
        try:
            await (await self._answer(Request(scope, receive)))(scope, receive, send)
        finally:
            self._leave()

    def resume(self) -> None:
        """Let the process run, whether or not there are requests."""
        self._process.send_signal(signal.SIGCONT)

    def rest(self) -> None:
        """Stop the process if no request is in flight."""
        if not self._in_flight and not self._ending and self._process.poll() is None:
            self.stops += 1
            self._process.send_signal(signal.SIGSTOP)

    async def end(self) -> None:
        """Let the process run, send it SIGTERM, and wait until it has ended. It is not stopped again."""
        self._ending = True
        self.resume()
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _enter(self) -> None:
        self._in_flight += 1
        if self._in_flight == 1:
            self.resume()

    def _leave(self) -> None:
        self._in_flight -= 1
        self.rest()

    async def _answer(self, request: Request) -> Response:
        # As it came: httpx.URL reads "//fn" as a host, and decodes what a service may tell apart, such as "%2F".
        query: bytes = request.scope["query_string"]
        target: bytes = request.scope["raw_path"] + (b"?" + query if query else b"")
        headers = [(name, value) for name, value in request.headers.raw if name.decode().lower() not in HOP_BY_HOP]
        passed = self._client.build_request(
            request.method, "/", headers=headers, content=request.stream(), extensions={"target": target}
        )
        try:
            answer = await self._client.send(passed, stream=True)
        except httpx.TransportError as error:
            return JSONResponse({"error": f"the service does not answer: {type(error).__name__}"}, 503)

        async def body() -> AsyncGenerator[bytes, None]:
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        response = StreamingResponse(body(), answer.status_code)
        response.raw_headers = [
            (name.lower(), value) for name, value in answer.headers.raw if name.decode().lower() not in HOP_BY_HOP
        ]
        return response


def _killed_with_parent() -> Callable[[], None] | None:
    """Return what a child runs before its command, so that it ends with this process; None where there is no way."""
    if sys.platform != "linux":
        return None
    # Loaded here: between fork and exec a child must not import.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


async def _started(process: subprocess.Popen[bytes], port: int, ended: asyncio.Event) -> bool:
    """Wait until the process listens; False when it ends before, takes too long, or is not wanted any more."""
    deadline = asyncio.get_running_loop().time() + START_S_MAX
    while process.poll() is None and not ended.is_set() and asyncio.get_running_loop().time() < deadline:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return True
    return False


async def _stop(server: uvicorn.Server, ended: asyncio.Event) -> None:
    await ended.wait()
    server.should_exit = True


async def _serve(sock: socket.socket, command: Sequence[str]) -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Uvicorn raises a signal again after it has stopped. Python's own handler would then end this process at once.
        loop.add_signal_handler(number, ended.set)
    process = subprocess.Popen(  # noqa: ASYNC220  Signals are sent to it, and it is awaited in a thread.
        [word.replace("{port}", str(port)) for word in command],
        preexec_fn=_killed_with_parent(),  # Safe: no other thread holds a lock now.
    )
    throttled = Throttled(process, port)
    server = uvicorn.Server(
        uvicorn.Config(
            # A page of another site does not even wake the process.
            Guard(throttled, hosts=LOOPBACK),
            http=Protocol,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(END_S_MAX),
        )
    )
    try:
        if not await _started(process, port, ended):
            if ended.is_set():
                return 0
            sys.stderr.write("localcloud.throttle: the command does not listen on its port\n")
            return 1
        throttled.rest()
        # Uvicorn's own handlers miss a signal that comes before them.
        stopping = asyncio.create_task(_stop(server, ended))
        await server.serve(sockets=[sock])
        stopping.cancel()
        return 0
    finally:
        await throttled.end()


def main(words: list[str] | None = None) -> int:
    """Serve until SIGTERM and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m localcloud.throttle", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, required=True, help="Port to listen on; 0: any free one.")
    parser.add_argument("command", nargs="+", help="The service; {port} becomes the port that it must listen on.")
    said = parser.parse_args(words)
    log_lines()
    sock = socket.create_server((HOST, said.port))
    return asyncio.run(_serve(sock, said.command))


if __name__ == "__main__":
    sys.exit(main())
