"""A local cloud that counts what it is asked for, in the units of Google's bills, where requests arrive."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from localcloud.server import Addresses, LocalCloud
from tests.clouds import RunningCloud

PUBSUB_BYTES_MIN = 1000
"""The least that a publish or pull is billed as."""


class Usage(Counter[str]):
    """Counts by unit: `firestore_reads`, `storage_class_a`, …; and `rpc NAME` and `http METHOD PATH` for reading."""

    def firestore(self, name: str, request: Any, responses: int) -> None:
        """Count one RPC. Each document returned is a read, and so is an empty answer; each written one is a write.

        Source: cloud.google.com/firestore/pricing, in a stored copy, read 2026-12-01.
        """
        self[f"rpc {name}"] += 1
        if name in ("Commit", "BatchWrite"):
            deletes = sum(write.WhichOneof("operation") == "delete" for write in request.writes)
            self["firestore_deletes"] += deletes
            self["firestore_writes"] += len(request.writes) - deletes
        elif name in ("CreateDocument", "UpdateDocument"):
            self["firestore_writes"] += 1
        elif name == "DeleteDocument":
            self["firestore_deletes"] += 1
        elif name not in ("BeginTransaction", "Rollback"):
            self["firestore_reads"] += max(1, responses)

    def pubsub(self, name: str, request: Any) -> None:
        """Count one RPC of Pub/Sub."""
        self[f"rpc {name}"] += 1
        self["pubsub_bytes"] += max(PUBSUB_BYTES_MIN, request.ByteSize()) if name in ("Publish", "Pull") else 0

    def http(self, method: str, path: str) -> None:
        """Count one HTTP request. Source of the classes: cloud.google.com/storage/pricing, as of `firestore`."""
        self[f"http {method} {path}"] += 1
        if path.endswith(":access"):
            self["secret_reads"] += 1
        elif path.startswith(("/storage/v1/", "/upload/storage/v1/", "/download/storage/v1/")):
            listing = path.endswith(("/o", "/b"))
            if method in ("POST", "PUT", "PATCH") or (method == "GET" and listing):
                self["storage_class_a"] += 1
            elif method in ("GET", "HEAD"):
                self["storage_class_b"] += 1


class _Handlers(grpc.GenericRpcHandler):
    """Handlers of one service, counted."""

    def __init__(self, inner: grpc.GenericRpcHandler, usage: Usage) -> None:
        self._inner = inner
        self._usage = usage

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        found: Any = self._inner.service(handler_call_details)
        path = handler_call_details.method
        service, _, name = path.rpartition("/")
        if found is None or service.endswith("SecretManagerService"):
            return found

        async def unary(request: Any, context: Any) -> Any:
            response = await found.unary_unary(request, context)
            if "firestore" in service:
                documents = len(response.documents) if name == "ListDocuments" else 1
                self._usage.firestore(name, request, documents)
            else:
                self._usage.pubsub(name, request)
            return response

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            # All of it first: a client may leave as soon as it has what it wants.
            responses = [response async for response in found.unary_stream(request, context)]
            # A query also answers with its read time alone; of a lookup, what is missing is a read too.
            documents = [one for one in responses if name != "RunQuery" or one.HasField("document")]
            self._usage.firestore(name, request, 1 if name == "RunAggregationQuery" else len(documents))
            for response in responses:
                yield response

        serializers = (found.request_deserializer, found.response_serializer)
        if found.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, *serializers)
        if found.unary_stream:
            return grpc.unary_stream_rpc_method_handler(stream, *serializers)
        self._usage[f"rpc {name}"] += 1
        return found


class _Counted(LocalCloud):
    usage: Usage

    async def _listen(self, handlers: list[grpc.GenericRpcHandler], port: int) -> str:
        return await super()._listen([_Handlers(handler, self.usage) for handler in handlers], port)

    async def _listen_http(self, port: int) -> str:
        address = await super()._listen_http(port)
        assert self._http is not None
        inner: Callable[..., Awaitable[None]] = self._http.config.app  # type: ignore[assignment]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.usage.http(scope["method"], scope["path"])
            await inner(scope, receive, send)

        self._http.config.app = app
        return address


class CountingCloud(RunningCloud):
    """A local cloud in a thread, with its `usage`."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self.usage = Usage()

    async def _start(self) -> Addresses:
        cloud = self.cloud = _Counted(self.options)
        cloud.usage = self.usage
        return await cloud.start()


__all__ = ["CountingCloud", "Usage"]
