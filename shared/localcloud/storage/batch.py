"""`POST /batch/storage/v1`: many small JSON calls in one `multipart/mixed` body.

Source: https://cloud.google.com/storage/docs/batch, read 2026-11-25.
"""

import http
from collections.abc import Awaitable, Callable
from email.message import Message
from email.parser import BytesParser
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message as Event

from localcloud.storage.errors import invalid
from localcloud.storage.related import boundary
from localcloud.storage.requests import read_body

CALLS_MAX = 1000
BYTES_MAX = 10 << 20

Answer = Callable[[Request], Awaitable[Response]]


async def batch(request: Request, answer: Answer) -> Response:
    """Answer each call in order, one part each; a failed call does not stop the others."""
    content_type = request.headers.get("content-type", "")
    boundary(content_type, "multipart/mixed")
    body = await read_body(request, BYTES_MAX)
    parsed = BytesParser().parsebytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body)
    calls = parsed.get_payload()
    if not isinstance(calls, list) or not calls or len(calls) > CALLS_MAX:
        raise invalid(f"A batch holds 1 to {CALLS_MAX} calls")
    mark = f"batch_{uuid4().hex}"
    parts: list[bytes] = []
    for number, call in enumerate(calls, start=1):
        if not isinstance(call, Message):
            raise invalid("Failed to parse batch request")
        response = await answer(_inner_request(request, call))
        parts.append(_part(mark, call.get("Content-ID") or f"<{number}>", response))
    return Response(
        b"".join(parts) + f"--{mark}--\r\n".encode(), headers={"content-type": f'multipart/mixed; boundary="{mark}"'}
    )


def _inner_request(outer: Request, call: Message) -> Request:
    """Build the request as if the call had come alone over the same connection."""
    raw = call.get_payload(decode=True)
    head, separator, body = (raw if isinstance(raw, bytes) else b"").replace(b"\r\n", b"\n").partition(b"\n\n")
    line, _, header_lines = head.partition(b"\n")
    method, _, rest = line.decode("latin-1").partition(" ")
    target = urlsplit(rest.partition(" ")[0])
    if not method or not target.path.startswith("/") or not separator:
        raise invalid("Failed to parse batch request")
    headers = [(b"host", outer.headers.get("host", "").encode("latin-1"))]
    for header in header_lines.split(b"\n"):
        name, colon, value = header.partition(b":")
        if colon and name.strip().lower() not in {b"host", b"content-length", b"transfer-encoding"}:
            headers.append((name.strip().lower(), value.strip()))
    body = body.rstrip(b"\n")
    headers.append((b"content-length", str(len(body)).encode()))
    scope = {
        **outer.scope,
        "method": method.upper(),
        "path": target.path,
        "raw_path": target.path.encode("latin-1"),
        "query_string": target.query.encode("latin-1"),
        "headers": headers,
    }
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Event:
        return events.pop() if events else {"type": "http.disconnect"}

    return Request(scope, receive)


def _part(mark: str, content_id: str, response: Response) -> bytes:
    try:
        phrase = http.HTTPStatus(response.status_code).phrase
    except ValueError:
        phrase = "Unknown"
    plain_id = content_id.strip().strip("<>").replace("\r", "").replace("\n", "")
    head = [
        f"--{mark}",
        "Content-Type: application/http",
        f"Content-ID: <response-{plain_id}>",
        "",
        f"HTTP/1.1 {response.status_code} {phrase}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
        "",
    ]
    return "\r\n".join(head).encode("latin-1", "replace") + b"\r\n" + bytes(response.body) + b"\r\n"
