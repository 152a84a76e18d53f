"""Routing: from a path to its handler, and from an error to the shape of its API.

Paths are matched undecoded, as sent: an object named `a/b` is the one segment `a%2Fb`. Clients leave out parts of the
JSON API's paths or add to them; `canonical` knows which.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from localcloud.storage.batch import batch
from localcloud.storage.buckets import Buckets
from localcloud.storage.downloads import RangeNotSatisfiable
from localcloud.storage.errors import NOT_IMPLEMENTED, StorageError, invalid, unkept
from localcloud.storage.resources import Resources
from localcloud.storage.uploads import Uploads
from localcloud.storage.xml import Xml

log = logging.getLogger(__name__)

Handler = Callable[..., Awaitable[Response]]
DRAINED_MAX = 8 << 20
"""Bytes of an unread body that are read and dropped, so that the client reads our refusal."""

_JSON_PREFIXES = ("/storage/", "/upload/", "/download/", "/resumable/", "/batch")
_BARE = re.compile(r"(?P<head>/upload|/download|)(?P<rest>/b|/b/.*|/projects/[^/]+/serviceAccount)")


class Routes:
    """The ASGI application of Cloud Storage."""

    def __init__(self, buckets: Buckets, resources: Resources, uploads: Uploads, xml: Xml) -> None:
        """Route to these handlers."""
        self._xml = xml
        one, bucket = "/storage/v1", "/storage/v1/b/{}"
        thing = bucket + "/o/{}"
        table: dict[str, dict[str, Handler]] = {
            f"{one}/b": {"GET": buckets.list, "POST": buckets.insert},
            f"{one}/projects/{{}}/serviceAccount": {"GET": buckets.service_account},
            bucket: {
                "GET": buckets.get,
                "PATCH": buckets.patch,
                "PUT": buckets.update,
                "DELETE": buckets.delete,
            },
            f"{bucket}/storageLayout": {"GET": buckets.layout},
            f"{bucket}/managedFolders": {"GET": buckets.list_managed_folders},
            f"{bucket}/notificationConfigs": {
                "GET": buckets.list_notifications,
                "POST": buckets.insert_notification,
            },
            f"{bucket}/notificationConfigs/{{}}": {
                "GET": buckets.get_notification,
                "DELETE": buckets.delete_notification,
            },
            f"{bucket}/o": {"GET": resources.list},
            thing: {
                "GET": resources.get,
                "PATCH": resources.patch,
                "PUT": resources.update,
                "DELETE": resources.delete,
            },
            f"{thing}/compose": {"POST": resources.compose},
            f"{thing}/rewriteTo/b/{{}}/o/{{}}": {"POST": resources.rewrite},
            f"{thing}/copyTo/b/{{}}/o/{{}}": {"POST": resources.copy},
            f"{thing}/moveTo/o/{{}}": {"POST": resources.move},
            f"/download{thing}": {"GET": resources.get},
            f"/upload{bucket}/o": {"POST": uploads.insert, "PUT": uploads.resume, "DELETE": uploads.cancel},
        }
        self._table = [
            (re.compile(re.escape(pattern).replace(r"\{\}", "([^/]+)")), handlers)
            for pattern, handlers in table.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            response = await self.answer(request)
        except ClientDisconnect:
            log.info("The client hung up during %s %s.", request.method, request.url.path)
            return
        await response(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """Find the handler and turn its refusal into a response."""
        sent: str = request.scope.get("raw_path", request.url.path.encode()).decode("latin-1").partition("?")[0]
        path = canonical(sent)
        is_json = path.startswith(_JSON_PREFIXES)
        try:
            if path.startswith("/batch"):
                return await batch(request, self._answer_json)
            return await (self._json(request, path) if is_json else self._object(request, path))
        except StorageError as error:
            if error.reason == NOT_IMPLEMENTED:
                log.warning("%s %s: %s", request.method, path, error.message)
            await _drain(request)
            return error_response(error, is_json=is_json)

    async def _answer_json(self, request: Request) -> Response:
        """Answer one call of a batch: JSON only, no batch inside a batch, no media."""
        path = canonical(request.scope["raw_path"].decode("latin-1"))
        try:
            if request.query_params.get("alt") == "media":
                raise invalid("A batch request cannot carry media")
            return await self._json(request, path)
        except StorageError as error:
            return error_response(error, is_json=True)

    async def _json(self, request: Request, path: str) -> Response:
        for pattern, handlers in self._table:
            match = pattern.fullmatch(path)
            if match is not None and (handler := handlers.get(request.method)) is not None:
                return await handler(request, *map(_decode, match.groups()))
        raise unkept(f"{request.method} {path}")

    async def _object(self, request: Request, path: str) -> Response:
        bucket, _, name = path.removeprefix("/").partition("/")
        if not bucket or not name:
            raise unkept(f"{request.method} {path}")
        return await self._xml.handle(request, _decode(bucket), _decode(name))


def canonical(path: str) -> str:
    """Return a path as the JSON API documents it; a path of the XML API stays as it is.

    - Node's client leaves out `/storage/v1` when it is set to an emulator. No bucket can be called `b`: too short.
    - `gcloud storage` starts resumable uploads below `/resumable/upload`, as the API's discovery document says.
    """
    path = "/upload/" + path.removeprefix("/resumable/upload/") if path.startswith("/resumable/upload/") else path
    bare = _BARE.fullmatch(path)
    return f"{bare['head']}/storage/v1{bare['rest']}" if bare else path


def error_response(error: StorageError, *, is_json: bool) -> Response:
    """Build the error response in the shape of the API that was called."""
    headers: dict[str, str] = {}
    if isinstance(error, RangeNotSatisfiable):
        headers["content-range"] = f"bytes */{error.size}"
    if error.status == 304:
        return Response(status_code=304, headers=headers)
    body, kind = (error.as_json(), "application/json") if is_json else (error.as_xml(), "application/xml")
    return Response(body, error.status, headers=headers, media_type=kind)


def _decode(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError as error:
        raise invalid("Names must be UTF-8") from error


async def _drain(request: Request) -> None:
    """Read the rest of a small body: a client that is still sending may not read a refusal."""
    stream: Any = request.stream()
    size = 0
    try:
        async for chunk in stream:
            size += len(chunk)
            if size > DRAINED_MAX:
                return
    except (RuntimeError, ClientDisconnect):
        return  # The body is read already, or the client has gone.
