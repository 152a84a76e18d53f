"""The throttle: requests pass as they came, and the command ends with the throttle."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from localcloud.throttle import HOST

WAIT_S_MAX = 30.0
COMMAND = textwrap.dedent("""
    import http.server, json, os, signal, sys

    folder = sys.argv[2]

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.dumps(self.requestline.split(" ")).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    def end(number, frame):
        with open(os.path.join(folder, "ended"), "w") as file:
            file.write("gave back")
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Echo)
    server.serve_forever()
""")


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S_MAX} s"


class Started:
    """A throttle and its command, which is stopped."""

    def __init__(self, folder: Path, command: str = COMMAND) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = int(free.getsockname()[1])
        words = [sys.executable, "-c", command, "{port}", str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "localcloud.throttle", "--port", str(self.port), "--", *words]
        )
        until(lambda: bool(psutil.Process(self.process.pid).children()), "the command starts")
        [self.command] = psutil.Process(self.process.pid).children()

    def until_stopped(self) -> None:
        until(lambda: self.command.status() == psutil.STATUS_STOPPED, "the command is stopped")

    def gone(self) -> bool:
        return not self.command.is_running() or self.command.status() == psutil.STATUS_ZOMBIE

    def post(self, target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=WAIT_S_MAX)
        with contextlib.closing(connection):
            connection.putrequest("POST", target, skip_accept_encoding=True)
            connection.putheader("content-length", "0")
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextlib.contextmanager
def throttled(folder: Path, command: str = COMMAND) -> Iterator[Started]:
    it = Started(folder, command)
    try:
        yield it
    finally:
        for pid in (it.process.pid, it.command.pid):
            if pid == it.process.pid or it.command.is_running():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        it.process.wait(WAIT_S_MAX)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    with throttled(tmp_path) as it:
        yield it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_ends_by_its_own_handler(started: Started, tmp_path: Path, number: signal.Signals) -> None:
    started.until_stopped()
    started.process.send_signal(number)
    assert started.process.wait(WAIT_S_MAX) == 0
    assert started.gone()
    assert (tmp_path / "ended").read_text() == "gave back"


def test_a_command_that_does_not_listen_yet_ends_by_its_own_handler(tmp_path: Path) -> None:
    deaf = COMMAND.partition("server = ")[0] + 'open(os.path.join(folder, "ready"), "w").close()\nsignal.pause()\n'
    with throttled(tmp_path, deaf) as started:
        until((tmp_path / "ready").exists, "the command handles SIGTERM")
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(WAIT_S_MAX) == 0
        assert started.gone()
        assert (tmp_path / "ended").read_text() == "gave back"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_a_stopped_command_is_killed_with_the_throttle(started: Started) -> None:
    started.until_stopped()
    started.process.kill()
    started.process.wait(WAIT_S_MAX)
    until(started.gone, "the command is killed")


@pytest.mark.parametrize("target", ["//fn/reconcile", "/fn//x?a=%2F&b=+&c", "/a%2Fb/%C3%A9/../c", "/x?a=//b?c"])
def test_the_target_passes_as_it_came(started: Started, target: str) -> None:
    started.until_stopped()
    status, body = started.post(target)
    assert (status, json.loads(body)[1]) == (200, target)
    started.until_stopped()


def test_a_page_of_another_site_does_not_wake_the_command(tmp_path: Path) -> None:
    with throttled(tmp_path) as it:
        it.until_stopped()
        for attack in ({"origin": "https://evil"}, {"host": "evil.example"}, {"sec-fetch-site": "cross-site"}):
            connection = http.client.HTTPConnection(HOST, it.port, timeout=WAIT_S_MAX)
            with contextlib.closing(connection):
                connection.request("POST", "/fn/reconcile/", headers=attack)
                assert connection.getresponse().status in (403, 421)
        assert it.command.status() == psutil.STATUS_STOPPED
        assert it.post("/fn/reconcile/")[0] == 200
