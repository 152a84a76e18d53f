"""Log lines as Cloud Logging reads them: one JSON object a line, with severity, time and the trace of the request.

Every function imports `asgi`, which calls `install`; on a laptop the lines are the same. A line has what the log call
passed and nothing else of the request: no header, no body, no setting. Credentials in it are redacted, also in a stack.

`LOG_EXECUTION_ID` must stay unset: with it functions-framework replaces the root logger's handler by its own, at level
WARNING. Source: functions-framework 3.10.2, read 2026-12-01.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime

from starlette.types import Scope

from goblin.core.redaction import redact

LINE_BYTES_MAX = 64 * 1024
"""Most bytes of a line, its newline included. Cloud Logging takes four times as much."""
_LOGGER_CHARACTERS_MAX = 200
# W3C Trace Context: version, trace id, parent id, flags. Google's own header: trace id, then perhaps span and options.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-|$)")
_CLOUD_TRACE = re.compile(rb"(?!0{32})([0-9a-f]{32})(?:[/;]|$)", re.IGNORECASE)

_trace: ContextVar[str] = ContextVar("trace", default="")
_ask_project: Callable[[], str] = str


def install() -> None:
    """Write what this process logs from INFO on to standard error as JSON lines.

    Does nothing when the root logger has a handler: after the first call, and where the process brought its own.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # At INFO it logs the URL of every upstream request, and a URL may hold a key.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)


def name_project(ask: Callable[[], str]) -> None:
    """Set the function that returns the Google Cloud project, empty if unknown. A trace's name begins with it."""
    global _ask_project
    _ask_project = ask


def follow(scope: Scope) -> None:
    """Put the trace of a request into the lines that its task, and the tasks it starts, log from now on."""
    found = None
    for name, value in scope["headers"]:
        if name == b"traceparent" and (standard := _TRACEPARENT.match(value)):
            found = standard
            break
        if name == b"x-cloud-trace-context":
            found = _CLOUD_TRACE.match(value)
    _trace.set(found[1].decode().lower() if found else "")


class JsonLine(logging.Formatter):
    """One JSON object per record, in ASCII, so that no text of a caller can begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)  # The call passed the wrong arguments. Its text is better than no line.
        fields = {
            "severity": _severity(record.levelno),
            "message": redact(message),
            "logger": record.name[:_LOGGER_CHARACTERS_MAX],
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
        }
        if stack := self._stack(record):
            # Error Reporting looks for a stack here before it looks into `message`. Source: Google's page
            # "Format a log entry to report error events", read 2026-12-01.
            fields["stack_trace"] = redact(stack)
        if trace := _trace.get():
            project = _ask_project()
            fields["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace}" if project else trace
        return _bounded(fields)

    def _stack(self, record: logging.LogRecord) -> str:
        raised = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        return "\n".join(part for part in (raised, record.stack_info) if part)


def _severity(level: int) -> str:
    """Return Cloud Logging's name of a level; a level between two has the lower one's."""
    for name in ("CRITICAL", "ERROR", "WARNING", "INFO"):
        if level >= getattr(logging, name):
            return name
    return "DEBUG"


def _bounded(fields: dict[str, str]) -> str:
    """Encode the fields; cut message and stack in their middles until the line is within its limit."""
    room = LINE_BYTES_MAX
    while True:
        shown = {name: _cut(text, room) for name, text in fields.items()}
        line = json.dumps(shown, separators=(",", ":")).replace("\x7f", "\\u007f")  # JSON lets it stand as it is.
        if len(line) < LINE_BYTES_MAX:
            return line
        room //= 2


def _cut(text: str, room: int) -> str:
    """Return at most about `room` characters: beginning and end, because a stack says at its end what was raised."""
    if len(text) <= room:
        return text
    half = room // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"
