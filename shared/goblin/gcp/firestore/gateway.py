"""Firestore: `keys/{sha256}`, `health/{endpoint}` and `requests/{id}`: API keys, endpoint health and receipts.

Every call has a deadline and no retries by the client itself: a request that waits for a store must fail soon if the
store does not answer. The client belongs to the event loop it was created in.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from google.api_core.exceptions import GoogleAPICallError, NotFound, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import AsyncClient
from google.cloud.firestore_v1.types import CommitRequest

from goblin.core import decoding
from goblin.core.errors import StoreUnavailable
from goblin.gateway.domain.endpoint_health import EndpointHealth, Pause
from goblin.gateway.ports import ApiKey, Receipt
from goblin.gcp.firestore.documents import plain_instants

log = logging.getLogger(__name__)

DEADLINE_S = 2.5
LISTED_MAX = 1000
T = TypeVar("T")


async def _in_time(call: Awaitable[T], what: str) -> T:
    try:
        async with asyncio.timeout(DEADLINE_S + 0.5):
            return await call
    except (GoogleAPICallError, GoogleAuthError, RetryError, TimeoutError) as error:
        raise StoreUnavailable(f"Firestore did not answer in time ({what}).") from error


class FirestoreKeys:
    """The port `KeyStore`."""

    def __init__(self, client: AsyncClient) -> None:
        self._keys = client.collection("keys")

    async def get(self, digest: str) -> ApiKey | None:
        found = await _in_time(self._keys.document(digest).get(timeout=DEADLINE_S, retry=None), "read of an API key")
        fields = found.to_dict()
        return None if fields is None else _read(ApiKey, {**fields, "digest": digest})

    async def put(self, key: ApiKey) -> None:
        fields = _plain(key)
        digest = fields.pop("digest")
        await _in_time(self._keys.document(digest).set(fields, timeout=DEADLINE_S, retry=None), "write of an API key")

    async def all(self) -> Sequence[ApiKey]:
        found = await _in_time(
            self._keys.order_by("created_at").limit(LISTED_MAX).get(timeout=DEADLINE_S, retry=None), "list of API keys"
        )
        return [_read(ApiKey, {**(document.to_dict() or {}), "digest": document.id}) for document in found]

    async def disable(self, digest: str) -> bool:
        change = self._keys.document(digest).update({"disabled": True}, timeout=DEADLINE_S, retry=None)
        try:
            await _in_time(change, "write of an API key")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, NotFound):
                return False
            raise
        return True


class FirestoreHealth:
    """The port `HealthStore`."""

    def __init__(self, client: AsyncClient) -> None:
        self._health = client.collection("health")

    async def all(self) -> Mapping[str, EndpointHealth]:
        found = await _in_time(self._health.limit(1000).get(timeout=DEADLINE_S, retry=None), "read of provider health")
        judged = {}
        for document in found:
            fields = document.to_dict() or {}
            if "status" not in fields:
                continue  # The endpoint was paused before its first health check.
            try:
                pauses = list(fields.pop("pauses", {}).values())
                judged[document.id] = _read(EndpointHealth, {**fields, "pauses": pauses})
            except StoreUnavailable as error:
                # One document that a newer version or a person wrote must not hide the others.
                log.warning("The health document of %s is skipped: %s", document.id, error.message)
        return judged

    async def put(self, health: EndpointHealth) -> None:
        fields = _plain(health)
        del fields["pauses"]
        await self._merge(health.endpoint, fields)

    async def pause(self, endpoint: str, pause: Pause) -> None:
        # A model's name may be invalid as a field name, so the field is a digest; model and kind are inside.
        key = hashlib.sha256(f"{pause.kind}/{pause.model}".encode()).hexdigest()[:24]
        await self._merge(endpoint, {"pauses": {f"p{key}": _plain(pause)}})

    async def _merge(self, endpoint: str, fields: dict[str, Any]) -> None:
        await _in_time(
            self._health.document(endpoint).set(fields, merge=True, timeout=DEADLINE_S, retry=None),
            "write of provider health",
        )


class FirestoreReceipts:
    """The port `ReceiptBatchStore`; `expires_at` is the collection's TTL field."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._requests = client.collection("requests")

    async def put_all(self, records: Sequence[Receipt]) -> None:
        # The client's own batch builds a wrapper for every field of every receipt, which takes ten times as long.
        request = CommitRequest()
        raw = CommitRequest.pb(request)
        raw.database = self._client._database_string
        for record in records:
            document = raw.writes.add().update
            document.name = self._requests.document(record.request_id)._document_path
            for name, value in _plain(record).items():
                _fill(document.fields[name], value)
        call = self._client._firestore_api.commit(
            request=request, metadata=self._client._rpc_metadata, timeout=DEADLINE_S, retry=None
        )
        await _in_time(call, "write of receipts")

    async def put(self, record: Receipt) -> None:
        await _in_time(
            self._requests.document(record.request_id).set(_plain(record), timeout=DEADLINE_S, retry=None),
            "write of a receipt",
        )

    async def get(self, request_id: str) -> Receipt | None:
        found = await _in_time(
            self._requests.document(request_id).get(timeout=DEADLINE_S, retry=None), "read of a receipt"
        )
        fields = found.to_dict()
        return None if fields is None else _read(Receipt, fields)


def _plain(noun: Any) -> dict[str, Any]:
    """Convert a noun to types that Firestore has: tuples become arrays, instants stay instants."""
    plain: dict[str, Any] = msgspec.to_builtins(noun, builtin_types=(datetime,))
    return plain


def _fill(message: Any, value: Any) -> None:
    """Set the value of a protobuf `Value`."""
    match value:
        case None:
            message.null_value = 0
        case bool():
            message.boolean_value = value
        case int():
            message.integer_value = value
        case float():
            message.double_value = value
        case str():
            message.string_value = value
        case datetime():
            message.timestamp_value.FromDatetime(value)
        case dict():
            message.map_value.SetInParent()  # Without it, an empty map would be absent.
            for name, inner in value.items():
                _fill(message.map_value.fields[name], inner)
        case list() | tuple():
            message.array_value.SetInParent()
            for inner in value:
                _fill(message.array_value.values.add(), inner)
        case _:
            raise TypeError(f"A receipt holds a value of an unsupported type: {type(value).__name__}.")


def _read(kind: type[T], fields: Mapping[str, Any]) -> T:
    try:
        return msgspec.convert(plain_instants(fields), kind)
    except decoding.UNREADABLE as error:
        raise StoreUnavailable(
            f"A document in Firestore is not a {kind.__name__}: {decoding.reason(error)}."
        ) from error
