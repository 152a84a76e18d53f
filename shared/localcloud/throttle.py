"""A service as Cloud Run runs it under request-based billing: without CPU unless a request is in flight.

`python -m localcloud.throttle --port 8081 -- COMMAND WORDS…` starts the command, whose word `{port}` becomes a free
port, passes requests on to it, and stops its process (SIGSTOP) while no request is in flight. Work that the command
leaves for after its responses then waits for the next request, as it does in production.

Source: cloud.google.com/run/docs/configuring/billing-settings, read 2026-12-01.
"""

import argparse
import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

HOST = "127.0.0.1"
START_S_MAX = 60.0
REQUEST_S_MAX = 3600.0
"""As long as Cloud Run lets a request take at most."""
END_S_MAX = 10.0
"""Between SIGTERM and SIGKILL, as Cloud Run gives."""
HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})


class Throttled:
    """An ASGI app that passes requests on to a process, which runs only while there are any."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self._client = httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=REQUEST_S_MAX, trust_env=False)
        self._in_flight = 0
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
        if not self._in_flight and self._process.poll() is None:
            self.stops += 1
            self._process.send_signal(signal.SIGSTOP)

    def _enter(self) -> None:
        self._in_flight += 1
        if self._in_flight == 1:
            self.resume()

    def _leave(self) -> None:
        self._in_flight -= 1
        self.rest()

    async def _answer(self, request: Request) -> Response:
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        headers = [(name, value) for name, value in request.headers.raw if name.decode().lower() not in HOP_BY_HOP]
        passed = self._client.build_request(request.method, url, headers=headers, content=request.stream())
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


async def _started(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the process listens; False when it ends before, or takes too long."""
    deadline = asyncio.get_running_loop().time() + START_S_MAX
    while process.poll() is None and asyncio.get_running_loop().time() < deadline:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return True
    return False


async def _serve(sock: socket.socket, command: Sequence[str]) -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(  # noqa: ASYNC220  Signals are sent to it, and it is awaited in a thread.
        [word.replace("{port}", str(port)) for word in command]
    )
    throttled = Throttled(process, port)
    server = uvicorn.Server(
        uvicorn.Config(throttled, log_level="warning", lifespan="off", timeout_graceful_shutdown=int(END_S_MAX))
    )
    try:
        if not await _started(process, port):
            sys.stderr.write("localcloud.throttle: the command does not listen on its port\n")
            return 1
        throttled.rest()
        await server.serve(sockets=[sock])
        return 0
    finally:
        throttled.resume()
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, END_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()


def main(words: list[str] | None = None) -> int:
    """Serve until SIGTERM and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m localcloud.throttle", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, required=True, help="Port to listen on; 0: any free one.")
    parser.add_argument("command", nargs="+", help="The service; {port} becomes the port that it must listen on.")
    said = parser.parse_args(words)
    sock = socket.create_server((HOST, said.port))
    return asyncio.run(_serve(sock, said.command))


if __name__ == "__main__":
    sys.exit(main())
