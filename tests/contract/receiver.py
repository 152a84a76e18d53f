"""A push endpoint on loopback that remembers what it was sent and answers as a test scripts it."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Connections that wait to be accepted; the default of 5 would make the others try again after a second."""


class Receiver:
    """Answers each request with the next scripted status, and 204 after the last one."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.at_work_max = 0
        self._at_work = 0
        self._statuses: list[int] = []
        self._changed = threading.Condition()
        self._open = threading.Event()
        self._open.set()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def script(self, *statuses: int) -> None:
        """What to answer to the next requests, in order."""
        self._statuses += statuses

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def wait(self, count: int, *, path: str | None = None, timeout_s: float = 10) -> list[Request]:
        """The requests to a path, once there are this many."""
        self.wait_until(lambda: len(self._to(path)) >= count, timeout_s=timeout_s)
        return self._to(path)

    def wait_until(self, true: Callable[[], bool], *, timeout_s: float = 10) -> None:
        with self._changed:
            if not self._changed.wait_for(true, timeout_s):
                bodies = [request.body[:200] for request in self.requests]
                raise TimeoutError(f"after {timeout_s} s only {len(bodies)} requests: {bodies}")

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _to(self, path: str | None) -> list[Request]:
        return [request for request in self.requests if path is None or request.path == path]

    def _arrived(self, request: Request) -> int:
        with self._changed:
            self.requests.append(request)
            self._at_work += 1
            self.at_work_max = max(self.at_work_max, self._at_work)
            status = self._statuses.pop(0) if self._statuses else 204
            self._changed.notify_all()
        self._open.wait()
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()
        return status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = receiver._arrived(Request(self.path, headers, body))
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # The caller gave up first.

            def log_message(self, *_: Any) -> None:
                """Say nothing on the test's output."""

        return Handler


@contextmanager
def receiving(*, scripted: Sequence[int] = ()) -> Iterator[Receiver]:
    """A receiver for as long as a test needs it."""
    receiver = Receiver()
    receiver.script(*scripted)
    try:
        yield receiver
    finally:
        receiver.close()
