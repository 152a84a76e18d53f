"""The part of the XML API that signed URLs and `upload_chunks_concurrently` need: `/{bucket}/{object}`.

A URL that claims a signature must have a valid one. A URL without one is allowed, as in the JSON API: the caller
runs localcloud on their own machine.
Source: https://cloud.google.com/storage/docs/xml-api/reference-methods, read 2026-11-25.
"""

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response

from localcloud.clock import Clock
from localcloud.storage import downloads, preconditions, signed
from localcloud.storage.errors import StorageError, invalid, required, unkept
from localcloud.storage.objects import Objects, check_name
from localcloud.storage.parts import PARTS_MAX, Parts
from localcloud.storage.records import StoredObject, rfc3339
from localcloud.storage.requests import (
    bounded,
    digests,
    endpoint,
    generation,
    read_body,
    refuse_customer_keys,
)
from localcloud.storage.sessions import Plan, Sessions
from localcloud.storage.uploads import CANCELLED, incomplete, receive_chunk

COMPLETE_BYTES_MAX = 2 << 20
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_FIELDS_OF_HEADERS = {
    "cache-control": "cacheControl",
    "content-disposition": "contentDisposition",
    "content-encoding": "contentEncoding",
    "content-language": "contentLanguage",
    "content-type": "contentType",
    "x-goog-custom-time": "customTime",
    "x-goog-storage-class": "storageClass",
}
_META = "x-goog-meta-"
_LENGTH_RANGE = re.compile(r"(\d{1,18}),(\d{1,18})")


class Xml:
    """The handlers of all methods on an object."""

    def __init__(
        self,
        objects: Objects,
        sessions: Sessions,
        *,
        signers: signed.Signers,
        clock: Clock,
    ) -> None:
        """Use the objects and sessions; `signers` and `clock` decide about signed URLs."""
        self._objects = objects
        self._sessions = sessions
        self._parts = Parts(objects, sessions)
        self._signers = signers
        self._clock = clock

    async def handle(self, request: Request, bucket: str, name: str) -> Response:
        """Check the signature, then dispatch by method and query."""
        headers = _joined_headers(request)
        self._authenticate(request, bucket, name, headers)
        refuse_customer_keys(headers)
        check_name(name)
        query = dict(parse_qsl(request.url.query, keep_blank_values=True))
        match request.method:
            case "GET" | "HEAD" if "uploadId" in query:
                return self._list_parts(bucket, name, query)
            case "GET" | "HEAD":
                return await self._get(request, bucket, name, query, headers)
            case "PUT" if "uploadId" in query:
                return await self._put_part(request, bucket, name, query, headers)
            case "PUT" if "upload_id" in query:
                return await self._resume(request)
            case "PUT":
                return await self._put(request, bucket, name, headers)
            case "POST" if "uploads" in query:
                return self._begin_parts(bucket, name, headers)
            case "POST" if "uploadId" in query:
                return await self._complete(request, bucket, name, query["uploadId"])
            case "POST" if headers.get("x-goog-resumable") == "start":
                return self._begin_session(request, bucket, name, headers)
            case "DELETE" if "uploadId" in query:
                await self._parts.abort(self._parts.find(query["uploadId"], bucket, name))
                return Response(status_code=204)
            case "DELETE" if "upload_id" in query:
                await self._sessions.cancel(query["upload_id"])
                return Response(status_code=CANCELLED)
            case "DELETE":
                await self._objects.delete(
                    bucket,
                    name,
                    generation=generation(query),
                    preconditions=preconditions.from_headers(headers),
                )
                return Response(status_code=204)
        raise unkept(f"{request.method} in the XML API")

    def _authenticate(self, request: Request, bucket: str, name: str, headers: Mapping[str, str]) -> None:
        query = parse_qsl(request.url.query, keep_blank_values=True)
        if not signed.is_signed(query):
            return
        if headers.get("x-goog-content-sha256", "UNSIGNED-PAYLOAD") != "UNSIGNED-PAYLOAD":
            raise unkept("A signed payload")
        signed.verify(
            method=request.method,
            path=f"/{bucket}/{name}",
            query=query,
            headers=headers,
            signers=self._signers,
            now=self._clock(),
        )

    async def _get(
        self, request: Request, bucket: str, name: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> Response:
        stored = self._objects.catalog.object(bucket, name, generation(query))
        preconditions.from_headers(headers).check(stored, reading=True)
        overrides = {"etag": f'"{stored.xml_etag}"'}
        for parameter in ("response-content-type", "response-content-disposition"):
            if value := query.get(parameter):
                overrides[parameter.removeprefix("response-")] = downloads.header_text(value)
        return await downloads.send(self._objects.files, stored, request, overrides=overrides)

    async def _put(self, request: Request, bucket: str, name: str, headers: Mapping[str, str]) -> Response:
        if "x-goog-copy-source" in headers:
            raise unkept("Copying in the XML API")
        incoming = await self._objects.files.received(within_range(bounded(request.stream()), headers))
        stored = await self._objects.receive(
            bucket,
            name,
            incoming,
            fields=fields_of(headers),
            preconditions=preconditions.from_headers(headers),
            expected=digests(headers),
        )
        return _stored(stored)

    async def _resume(self, request: Request) -> Response:
        outcome = await receive_chunk(self._sessions, request)
        return incomplete(outcome) if isinstance(outcome, int) else _stored(outcome)

    def _begin_session(self, request: Request, bucket: str, name: str, headers: Mapping[str, str]) -> Response:
        upload_id = self._sessions.begin(bucket, name, _plan(headers))
        location = f"{endpoint(request)}/{bucket}/{quote(name)}?upload_id={upload_id}"
        return Response(status_code=201, headers={"location": location, "x-guploader-uploadid": upload_id})

    def _begin_parts(self, bucket: str, name: str, headers: Mapping[str, str]) -> Response:
        upload_id = self._parts.begin(bucket, name, _plan(headers))
        return _document(
            "InitiateMultipartUploadResult",
            f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(name)}</Key><UploadId>{upload_id}</UploadId>",
        )

    async def _put_part(
        self, request: Request, bucket: str, name: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> Response:
        number = query.get("partNumber", "")
        if not number.isascii() or not number.isdigit() or len(number) > 9:
            raise required("partNumber")
        session = self._parts.find(query["uploadId"], bucket, name)
        chunks = within_range(bounded(request.stream()), headers)
        etag, content = await self._parts.put(session, int(number), chunks, digests(headers))
        hashes = f"crc32c={content.crc32c},md5={content.md5}"
        return Response(headers={"etag": f'"{etag}"', "x-goog-hash": hashes})

    def _list_parts(self, bucket: str, name: str, query: Mapping[str, str]) -> Response:
        session = self._parts.find(query["uploadId"], bucket, name)
        after, limit = _whole(query.get("part-number-marker"), 0), _whole(query.get("max-parts"), 1000)
        found = self._parts.list(session, after=after, limit=min(limit, 1000) + 1)
        shown, more = found[: min(limit, 1000)], len(found) > min(limit, 1000)
        rows = "".join(
            f"<Part><PartNumber>{part.number}</PartNumber><LastModified>{rfc3339(part.updated_us)}</LastModified>"
            f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{part.size}</Size></Part>"
            for part in shown
        )
        marker = f"<NextPartNumberMarker>{shown[-1].number}</NextPartNumberMarker>" if more and shown else ""
        return _document(
            "ListPartsResult",
            f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(name)}</Key><UploadId>{session.upload_id}</UploadId>"
            f"<PartNumberMarker>{after}</PartNumberMarker>{marker}<MaxParts>{limit}</MaxParts>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{rows}",
        )

    async def _complete(self, request: Request, bucket: str, name: str, upload_id: str) -> Response:
        session = self._parts.find(upload_id, bucket, name)
        wanted = parse_complete(await read_body(request, COMPLETE_BYTES_MAX))
        stored = await self._parts.complete(session, wanted)
        location = f"{endpoint(request)}/{bucket}/{quote(name)}"
        answer = _document(
            "CompleteMultipartUploadResult",
            f"<Location>{escape(location)}</Location><Bucket>{escape(bucket)}</Bucket>"
            f"<Key>{escape(name)}</Key><ETag>&quot;{escape(stored.xml_etag)}&quot;</ETag>",
        )
        answer.headers["x-goog-generation"] = str(stored.generation)
        answer.headers["x-goog-hash"] = stored.hashes
        return answer


def fields_of(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the object's fields that came as headers."""
    fields: dict[str, Any] = {
        field: headers[header] for header, field in _FIELDS_OF_HEADERS.items() if headers.get(header)
    }
    metadata = {name.removeprefix(_META): value for name, value in headers.items() if name.startswith(_META)}
    return {**fields, "metadata": metadata} if metadata else fields


def parse_complete(body: bytes) -> list[tuple[int, str]]:
    """Parse `(number, etag)` of each part in `CompleteMultipartUpload`."""
    if b"<!" in body:
        raise invalid("XML declarations such as DOCTYPE are not allowed", xml_code="MalformedXMLError")
    try:
        root = ET.fromstring(body)  # noqa: S314 (Entities need a declaration.)
        parts = [
            (int(part.findtext("{*}PartNumber", "")), part.findtext("{*}ETag", "")) for part in root.findall("{*}Part")
        ]
    except (ET.ParseError, ValueError) as error:
        raise invalid("The XML you provided was not well-formed", xml_code="MalformedXML") from error
    if len(parts) > PARTS_MAX:
        raise invalid(f"An upload has at most {PARTS_MAX} parts", xml_code="MalformedXML")
    return parts


async def within_range(chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Yield the same chunks; raises 400 if `x-goog-content-length-range` forbids their size."""
    raw = headers.get("x-goog-content-length-range")
    match = _LENGTH_RANGE.fullmatch(raw.replace(" ", "")) if raw is not None else None
    if raw is not None and match is None:
        raise invalid("Invalid x-goog-content-length-range")
    least, most = (int(match[1]), int(match[2])) if match else (0, None)
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if most is not None and size > most:
            raise StorageError(
                400, "invalid", "Your proposed upload exceeds the maximum allowed size.", xml_code="EntityTooLarge"
            )
        yield chunk
    if size < least:
        raise StorageError(
            400, "invalid", "Your proposed upload is smaller than the minimum allowed size.", xml_code="EntityTooSmall"
        )


def _joined_headers(request: Request) -> dict[str, str]:
    """Return headers by small name. Repeated ones are joined, so that the checked value is the used one."""
    joined: dict[str, list[str]] = defaultdict(list)
    for name, value in request.headers.items():
        joined[name.lower()].append(value.strip())
    return {name: ",".join(values) for name, values in joined.items()}


def _plan(headers: Mapping[str, str]) -> Plan:
    if "x-goog-content-length-range" in headers:
        raise unkept("x-goog-content-length-range on an upload in pieces")
    return Plan(
        fields=fields_of(headers),
        preconditions=preconditions.from_headers(headers),
        expected=digests(headers) if headers.get("content-length", "0") == "0" else {},
    )


def _stored(stored: StoredObject) -> Response:
    headers = downloads.object_headers(stored)
    kept = {name: value for name, value in headers.items() if name.startswith("x-goog-")}
    return Response(headers={**kept, "etag": f'"{stored.xml_etag}"'})


def _document(root: str, inside: str) -> Response:
    body = f"<?xml version='1.0' encoding='UTF-8'?><{root} xmlns='{NAMESPACE}'>{inside}</{root}>"
    return Response(body, media_type="application/xml")


def _whole(raw: str | None, default: int) -> int:
    if raw is None:
        return default
    if not raw.isascii() or not raw.isdigit() or len(raw) > 9:
        raise invalid("The value must be a whole number")
    return int(raw)
