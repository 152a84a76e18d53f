"""Handlers for `/storage/v1/b/B/o`: objects in the JSON API."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from httpguard import whole_number
from localcloud.storage import downloads, preconditions
from localcloud.storage.errors import invalid
from localcloud.storage.listing import from_query, list_page
from localcloud.storage.objects import Objects
from localcloud.storage.preconditions import Preconditions
from localcloud.storage.records import StoredObject
from localcloud.storage.requests import endpoint, generation, read_json, refuse_customer_keys
from localcloud.storage.uploads import json_response, object_response

_REWRITE_STEP = 1 << 20
_REWRITE_MAX = 1 << 62
"""Bytes; `maxBytesRewrittenPerCall` is a multiple of it."""


class Resources:
    """The handlers; each takes the request and the names in its path."""

    def __init__(self, objects: Objects) -> None:
        """Use the objects."""
        self._objects = objects
        self._catalog = objects.catalog

    async def list(self, request: Request, bucket: str) -> Response:
        """GET `/b/B/o`."""
        self._catalog.bucket(bucket)
        page = list_page(self._catalog, bucket, from_query(request.query_params))
        answer: dict[str, Any] = {"kind": "storage#objects"}
        if page.token:
            answer["nextPageToken"] = page.token
        if page.prefixes:
            answer["prefixes"] = page.prefixes
        if page.items:
            answer["items"] = [stored.as_json(endpoint(request)) for stored in page.items]
        return json_response(answer)

    async def get(self, request: Request, bucket: str, name: str) -> Response:
        """GET `/b/B/o/O`: the resource, or its bytes with `alt=media`."""
        refuse_customer_keys(request.headers)
        stored = self._catalog.object(bucket, name, generation(request.query_params))
        preconditions.from_request(request.query_params, request.headers).check(stored, reading=True)
        if request.query_params.get("alt") == "media":
            return await downloads.send(self._objects.files, stored, request)
        return object_response(request, stored)

    async def patch(self, request: Request, bucket: str, name: str) -> Response:
        """PATCH `/b/B/o/O`: merge the fields; null removes one."""
        return self._change(request, bucket, name, await read_json(request), whole=False)

    async def update(self, request: Request, bucket: str, name: str) -> Response:
        """PUT `/b/B/o/O`: replace all fields."""
        return self._change(request, bucket, name, await read_json(request), whole=True)

    async def delete(self, request: Request, bucket: str, name: str) -> Response:
        """DELETE `/b/B/o/O`."""
        await self._objects.delete(
            bucket,
            name,
            generation=generation(request.query_params),
            preconditions=preconditions.from_request(request.query_params, request.headers),
        )
        return Response(status_code=204)

    async def compose(self, request: Request, bucket: str, name: str) -> Response:
        """POST `/b/B/o/O/compose`: concatenate up to 32 objects."""
        refuse_customer_keys(request.headers)
        body = await read_json(request)
        sources = body.get("sourceObjects") or []
        if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
            raise invalid("sourceObjects must be a list of objects")
        parts = [self._source(bucket, source) for source in sources]
        stored = await self._objects.compose(
            bucket,
            name,
            parts,
            fields=_members(body, "destination"),
            preconditions=preconditions.from_query(request.query_params),
        )
        return object_response(request, stored)

    async def rewrite(self, request: Request, bucket: str, name: str, to_bucket: str, to_name: str) -> Response:
        """POST `/b/B/o/O/rewriteTo/b/B2/o/O2`: copy, in several calls if the client wants small steps."""
        refuse_customer_keys(request.headers)
        body = await read_json(request)
        query = request.query_params
        source = self._checked_source(query, bucket, name)
        size = source.content.size
        answer: dict[str, Any] = {"kind": "storage#rewriteResponse", "objectSize": str(size)}
        done = _rewritten(query, source, to_bucket, to_name)
        if done < size:
            preconditions.from_query(query).check(self._catalog.find_object(to_bucket, to_name))
            token = _RewriteToken(source.generation, to_bucket, to_name, done)
            return json_response(
                {**answer, "done": False, "totalBytesRewritten": str(done), "rewriteToken": token.packed()}
            )
        stored = await self._copy(query, source, to_bucket, to_name, body)
        resource = stored.as_json(endpoint(request))
        return json_response({**answer, "done": True, "totalBytesRewritten": str(size), "resource": resource})

    async def copy(self, request: Request, bucket: str, name: str, to_bucket: str, to_name: str) -> Response:
        """POST `/b/B/o/O/copyTo/b/B2/o/O2`."""
        refuse_customer_keys(request.headers)
        body = await read_json(request)
        source = self._checked_source(request.query_params, bucket, name)
        return object_response(request, await self._copy(request.query_params, source, to_bucket, to_name, body))

    async def move(self, request: Request, bucket: str, name: str, to_name: str) -> Response:
        """POST `/b/B/o/O/moveTo/o/O2`: rename within a bucket."""
        source = self._checked_source(request.query_params, bucket, name)
        if name == to_name:
            raise invalid("The source and the destination of a move must differ")
        stored = await self._objects.move(source, to_name, preconditions=preconditions.from_query(request.query_params))
        return object_response(request, stored)

    def _source(self, bucket: str, source: Mapping[str, Any]) -> StoredObject:
        """Return one source of a composition, checked against its own preconditions."""
        name = source.get("name")
        if not isinstance(name, str):
            raise invalid("Each source object needs a name")
        numbers = {"generation": str(source["generation"])} if source.get("generation") else {}
        stored = self._catalog.object(bucket, name, generation(numbers))
        wanted = _members(source, "objectPreconditions")
        preconditions.from_query({key: str(value) for key, value in wanted.items()}).check(stored)
        return stored

    def _checked_source(self, query: Mapping[str, str], bucket: str, name: str) -> StoredObject:
        source = self._catalog.object(bucket, name, generation(query, "sourceGeneration"))
        preconditions.from_query(query, source=True).check(source)
        return source

    async def _copy(
        self, query: Mapping[str, str], source: StoredObject, bucket: str, name: str, fields: Mapping[str, Any]
    ) -> StoredObject:
        return await self._objects.copy(
            source, bucket, name, fields=fields, preconditions=preconditions.from_query(query)
        )

    def _change(self, request: Request, bucket: str, name: str, changes: Mapping[str, Any], *, whole: bool) -> Response:
        wanted: Preconditions = preconditions.from_request(request.query_params, request.headers)
        stored = self._objects.patch(
            bucket,
            name,
            changes,
            generation=generation(request.query_params),
            preconditions=wanted,
            whole=whole,
        )
        return object_response(request, stored)


class _RewriteToken(msgspec.Struct, frozen=True, array_like=True):
    """The progress of a rewrite, bound to its source and target, so that it cannot continue another."""

    generation: int
    bucket: str
    name: str
    done: int

    def packed(self) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode()


def _rewritten(query: Mapping[str, str], source: StoredObject, bucket: str, name: str) -> int:
    """Return how many bytes are copied after this call."""
    step = source.content.size
    if raw := query.get("maxBytesRewrittenPerCall"):
        wanted = whole_number(raw, _REWRITE_MAX)
        if not wanted or wanted % _REWRITE_STEP:
            raise invalid("maxBytesRewrittenPerCall must be a multiple of 1 MiB")
        step = wanted
    before = 0
    if token := query.get("rewriteToken"):
        try:
            read = msgspec.json.decode(base64.urlsafe_b64decode(token), type=_RewriteToken)
        except (binascii.Error, ValueError) as error:
            raise invalid("Invalid rewriteToken") from error
        if (read.generation, read.bucket, read.name) != (source.generation, bucket, name):
            raise invalid("The rewriteToken belongs to another rewrite")
        before = read.done
    return min(source.content.size, before + step)


def _members(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = body.get(name) or {}
    if not isinstance(found, dict):
        raise invalid(f"{name} must be an object")
    return found
