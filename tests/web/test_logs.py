"""Log lines: one JSON object each, with severity and trace, whatever is logged; and only what was logged."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from goblin.web import logs
from localcloud.google import free_port

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
OTHER = "105445aa7843bc8bf206b12000100000"


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_ask_project", lambda: "p-1")


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    yield
    logs._trace.set("")


def line(level: int = logging.INFO, text: Any = "hello", *words: Any, error: BaseException | None = None) -> str:
    exc_info = (type(error), error, error.__traceback__) if error else None
    return logs.JsonLine().format(logging.LogRecord("goblin.x", level, "x.py", 1, text, words, exc_info))


def read(text: str) -> dict[str, str]:
    assert "\n" not in text
    assert text.isascii()
    found: dict[str, str] = json.loads(text)
    return found


def follow(**headers: str) -> None:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    logs.follow({"type": "http", "headers": pairs})


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("level", "severity"),
    [(10, "DEBUG"), (20, "INFO"), (25, "INFO"), (30, "WARNING"), (40, "ERROR"), (50, "CRITICAL"), (99, "CRITICAL")],
)
def test_a_level_is_a_severity_of_cloud_logging(level: int, severity: str) -> None:
    assert read(line(level))["severity"] == severity


def test_a_line_says_who_logged_what_and_when() -> None:
    before = time.time()
    fields = read(line(logging.INFO, "%s of %d", "one", 2))
    assert fields.keys() == {"severity", "message", "logger", "time"}
    assert (fields["message"], fields["logger"]) == ("one of 2", "goblin.x")
    assert before - 1 <= datetime.fromisoformat(fields["time"]).timestamp() <= time.time() + 1
    assert datetime.fromisoformat(fields["time"]).utcoffset() is not None


@pytest.mark.parametrize("text", ["two\nlines", 'a "quote" \\', "\x00\x1b[31m\r\u2028\u0085", "ü 🦉", "\ud800", ""])
def test_any_text_stays_in_its_line(text: str) -> None:
    assert read(line(logging.INFO, text))["message"] == text


def test_wrong_arguments_do_not_lose_the_line() -> None:
    assert read(line(logging.INFO, "%d of %d", "one"))["message"] == "%d of %d"


def test_an_exception_is_one_line_with_its_stack_where_error_reporting_looks() -> None:
    fields = read(line(logging.ERROR, "It failed.", error=raised(ValueError("two\nlines"))))
    assert fields["message"] == "It failed."
    assert fields["stack_trace"].startswith("Traceback (most recent call last):\n")
    assert fields["stack_trace"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize("letter", ["a", "\n", "\x00", "🦉"])
def test_a_line_is_bounded_and_keeps_both_ends(letter: str) -> None:
    text = f"begin{letter * 300_000}end"
    told = line(logging.ERROR, text, error=raised(ValueError(text)))
    assert len(told) + 1 <= logs.LINE_BYTES_MAX
    fields = read(told)
    assert fields["message"].startswith("begin")
    assert fields["message"].endswith("end")
    assert "characters left out" in fields["message"]
    assert fields["stack_trace"].startswith("Traceback")
    assert fields["stack_trace"].endswith("end")


def test_a_line_that_just_fits_is_whole() -> None:
    text = "a" * (logs.LINE_BYTES_MAX - 200)
    assert read(line(logging.INFO, text))["message"] == text


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        ({"traceparent": PARENT}, TRACE),
        ({"traceparent": f"01-{TRACE}-00f067aa0ba902b7-01-more"}, TRACE),
        ({"x_cloud_trace_context": f"{OTHER}/123;o=1"}, OTHER),
        ({"x_cloud_trace_context": OTHER.upper()}, OTHER),
        ({"x_cloud_trace_context": f"{OTHER}/1", "traceparent": PARENT}, TRACE),
        ({"traceparent": PARENT, "x_cloud_trace_context": f"{OTHER}/1"}, TRACE),
        ({"x_cloud_trace_context": f"{OTHER}/1", "traceparent": "broken"}, OTHER),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"ff-{TRACE}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"00-{TRACE}"}, None),
        ({"x_cloud_trace_context": f"{TRACE}0/1"}, None),
        ({"x_cloud_trace_context": '"}\n{"severity":"ALERT'}, None),
        ({}, None),
    ],
)
def test_the_trace_comes_from_the_request(headers: dict[str, str], trace: str | None) -> None:
    follow(**headers)
    told = read(line()).get("logging.googleapis.com/trace")
    assert told == (f"projects/p-1/traces/{trace}" if trace else None)


def test_without_a_project_the_trace_is_told_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_ask_project", str)
    follow(traceparent=PARENT)
    assert read(line())["logging.googleapis.com/trace"] == TRACE


async def test_requests_at_the_same_time_keep_their_traces() -> None:
    async def request(trace: str) -> list[str]:
        follow(traceparent=f"00-{trace}-00f067aa0ba902b7-01")
        told = []
        for _ in range(3):
            await asyncio.sleep(0)
            told.append(read(await asyncio.create_task(asyncio.to_thread(line)))["logging.googleapis.com/trace"])
        return told

    traces = [f"{number:032x}" for number in range(1, 9)]
    told = await asyncio.gather(*map(request, traces))
    assert told == [[f"projects/p-1/traces/{trace}"] * 3 for trace in traces]


def test_a_process_with_a_handler_of_its_own_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    assert handlers  # pytest's.
    logs.install()
    assert (root.handlers, root.level) == (handlers, level)
    assert not any(isinstance(handler.formatter, logs.JsonLine) for handler in handlers)
    logging.getLogger("goblin.x").warning("seen")
    assert caplog.messages == ["seen"]


FUNCTION = """\
import logging, warnings
import functions_framework.aio
from starlette.responses import Response
from goblin.web import asgi, logs
from goblin.wiring import process

log = logging.getLogger("goblin.probe")
logs.install()

@functions_framework.aio.http
async def probe(request):
    return await _raises(request) if request.url.path == "/raises" else await _bare(request)

@asgi.answers_errors
async def _raises(request):
    log.debug("too quiet")
    log.info("two\\nlines")
    logging.getLogger("httpx").info("GET https://upstream/?key=hidden")
    warnings.warn("old")
    raise RuntimeError("it broke")

async def _bare(request):
    logs.follow(request.scope)
    raise ValueError("outside")
"""


@contextmanager
def framework(folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """The function above, served as Google serves it: its URL, and the file of what the process printed."""
    (folder / "probe.py").write_text(FUNCTION)
    out, port = folder / "out", free_port()
    command = [str(Path(sys.executable).with_name("functions-framework"))]
    env = {**environment, "FUNCTION_TARGET": "probe", "FUNCTION_SOURCE": "probe.py", "PORT": str(port)}
    with out.open("wb") as file, subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file) as process:
        try:
            until = time.monotonic() + 60
            while process.poll() is None:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/robots.txt", timeout=5)
                    break
                except httpx.TransportError:
                    assert time.monotonic() < until, out.read_text()
                    time.sleep(0.05)  # Another process: there is nothing to be woken by.
            yield f"http://127.0.0.1:{port}", out
        finally:
            process.send_signal(signal.SIGTERM)


def test_under_functions_framework_every_line_has_severity_and_trace(tmp_path: Path) -> None:
    secrets = {"authorization": "Bearer gob-very-secret", "x-api-key": "sk-very-secret", "cookie": "c=very-secret"}
    with framework(tmp_path, {"GCS_PROJECT_ID": "p-2", "OPENAI_API_KEY": "sk-very-secret"}) as (url, out):
        assert httpx.post(f"{url}/raises", headers={"traceparent": PARENT, **secrets}).status_code == 500
        google = {"x-cloud-trace-context": f"{OTHER}/1;o=1"}
        assert httpx.post(f"{url}/", headers={**google, **secrets}).status_code == 500
    told = [read(text) for text in out.read_text().splitlines()]
    first, second = [f"projects/p-2/traces/{trace}" for trace in (TRACE, OTHER)]
    assert [(one["severity"], one["logger"]) for one in told] == [
        ("INFO", "goblin.probe"),
        ("WARNING", "py.warnings"),
        ("ERROR", "goblin.web.asgi"),
        ("ERROR", "goblin.web.asgi"),
        ("ERROR", "root"),
    ]
    assert told[0]["message"] == "two\nlines"
    assert told[2]["stack_trace"].endswith("RuntimeError: it broke")
    assert "ValueError: outside" in told[4]["message"]  # Told by functions-framework itself.
    assert [one.get("logging.googleapis.com/trace") for one in told] == [first] * 4 + [second]
    assert "secret" not in out.read_text()
    assert "hidden" not in out.read_text()
