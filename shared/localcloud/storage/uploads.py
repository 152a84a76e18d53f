"""The three uploads of the JSON API: media, multipart, resumable."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from httpguard import whole_number
from localcloud.storage import preconditions, transcoding
from localcloud.storage.errors import StorageError, invalid, required
from localcloud.storage.objects import Objects, check_name
from localcloud.storage.records import StoredObject
from localcloud.storage.related import Related, boundary
from localcloud.storage.requests import bounded, digests, endpoint, read_json, refuse_customer_keys
from localcloud.storage.sessions import SIZE_MAX, Plan, Sessions, parse_content_range

CANCELLED = 499
"""Production's status for a cancelled upload."""


class Uploads:
    """Handlers below `/upload/storage/v1`."""

    def __init__(self, objects: Objects, sessions: Sessions) -> None:
        """Use the objects and upload sessions."""
        self._objects = objects
        self._sessions = sessions

    async def insert(self, request: Request, bucket: str) -> Response:
        """POST: a whole object, or the start of a resumable upload."""
        refuse_customer_keys(request.headers)
        if "upload_id" in request.query_params:
            return await self.resume(request, bucket)
        kind = request.query_params.get("uploadType") or request.headers.get("x-goog-upload-protocol")
        if kind == "media":
            return await self._media(request, bucket)
        if kind == "multipart":
            return await self._multipart(request, bucket)
        if kind == "resumable":
            return await self._begin(request, bucket)
        if not kind:
            raise invalid('The parameter uploadType is missing. Set it to "media", "multipart" or "resumable".')
        raise invalid(f'Unknown uploadType: {kind}. Set it to "media", "multipart" or "resumable".')

    async def resume(self, request: Request, bucket: str) -> Response:
        """PUT: the next chunk of a resumable upload, or a status query."""
        del bucket  # The session knows its own bucket.
        outcome = await receive_chunk(self._sessions, request)
        if isinstance(outcome, int):
            return incomplete(outcome)
        return object_response(request, outcome)

    async def cancel(self, request: Request, bucket: str) -> Response:
        """DELETE: cancel a resumable upload."""
        del bucket
        await self._sessions.cancel(_upload_id(request))
        return Response(status_code=CANCELLED)

    async def _media(self, request: Request, bucket: str) -> Response:
        name = _name(request, {})
        fields = _query_fields(request.query_params, request.headers.get("content-type", ""))
        chunks = transcoding.body(request, fields.get("contentEncoding"))
        incoming = await self._objects.files.received(bounded(chunks))
        stored = await self._objects.receive(
            bucket,
            name,
            incoming,
            fields=fields,
            preconditions=preconditions.from_query(request.query_params),
            expected=digests(request.headers),
        )
        return object_response(request, stored)

    async def _multipart(self, request: Request, bucket: str) -> Response:
        mark = boundary(request.headers.get("content-type", ""), "multipart/related")
        body = Related(bounded(transcoding.body(request)), mark)
        metadata = await body.metadata()
        name = _name(request, metadata)
        incoming = await self._objects.files.received(body.media())
        stored = await self._objects.receive(
            bucket,
            name,
            incoming,
            fields={**_query_fields(request.query_params, body.media_type), **metadata},
            preconditions=preconditions.from_query(request.query_params),
            expected=digests(request.headers, metadata),
        )
        return object_response(request, stored)

    async def _begin(self, request: Request, bucket: str) -> Response:
        metadata = await read_json(request)
        name = _name(request, metadata)
        declared = request.headers.get("x-upload-content-length", "")
        plan = Plan(
            fields={
                **_query_fields(request.query_params, request.headers.get("x-upload-content-type", "")),
                **metadata,
            },
            preconditions=preconditions.from_query(request.query_params),
            expected=digests(request.headers, metadata),
            total=whole_number(declared, SIZE_MAX),
        )
        upload_id = self._sessions.begin(bucket, name, plan)
        location = (
            f"{endpoint(request)}/upload/storage/v1/b/{bucket}/o"
            f"?uploadType=resumable&name={quote(name, safe='')}&upload_id={upload_id}"
        )
        return Response(headers={"location": location, "x-guploader-uploadid": upload_id})


async def receive_chunk(sessions: Sessions, request: Request) -> StoredObject | int:
    """Pass a request's body to the session it names; both APIs send chunks the same way."""
    upload_id = _upload_id(request)
    encoding = sessions.find(upload_id).plan.fields.get("contentEncoding")
    # The length of a packed body says nothing about the object's.
    packed = transcoding.is_packed(request.headers, encoding)
    where = parse_content_range(
        request.headers.get("content-range"), None if packed else request.headers.get("content-length")
    )
    chunks = transcoding.body(request, encoding)
    return await sessions.receive(upload_id, where, bounded(chunks), digests(request.headers))


def incomplete(size: int) -> Response:
    """Return 308: `size` bytes are received, more are expected."""
    return Response(status_code=308, headers={"range": f"bytes=0-{size - 1}"} if size else {})


def object_response(request: Request, stored: StoredObject) -> Response:
    """Return the object's resource."""
    return json_response(stored.as_json(endpoint(request)), etag=stored.etag)


def json_response(resource: Mapping[str, Any], *, etag: str | None = None) -> Response:
    """Return 200 with a JSON body."""
    headers = {"cache-control": "no-cache, no-store, max-age=0, must-revalidate"}
    if etag is not None:
        headers["etag"] = etag
    return Response(msgspec.json.encode(resource), media_type="application/json", headers=headers)


def _upload_id(request: Request) -> str:
    upload_id = request.query_params.get("upload_id")
    if not upload_id:
        raise required("upload_id")
    return upload_id


def _name(request: Request, metadata: Mapping[str, Any]) -> str:
    name = metadata.get("name") or request.query_params.get("name")
    if not isinstance(name, str) or not name:
        raise StorageError(400, "required", "Required object name", location=("parameter", "name"))
    check_name(name)
    return name


def _query_fields(query: Mapping[str, str], content_type: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"contentType": content_type} if content_type else {}
    if "contentEncoding" in query:
        fields["contentEncoding"] = query["contentEncoding"]
    return fields
