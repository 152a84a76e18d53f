"""Firestore v1 over gRPC: the RPCs that Google's clients send; every other is logged and answered UNIMPLEMENTED.

Atomicity comes from one event loop: a request is decided and stored without an `await` in between.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from localcloud.clock import utc_now
from localcloud.firestore import protos
from localcloud.firestore import ttl as ttls
from localcloud.firestore.commits import Commits
from localcloud.firestore.documents import Documents
from localcloud.firestore.indexes import Declared
from localcloud.firestore.listen import Listening
from localcloud.firestore.locks import LOCK_WAIT_S, WRITE_WAIT_S, Owner
from localcloud.firestore.protos import Pb
from localcloud.firestore.reads import Reads
from localcloud.firestore.refusals import Refused, invalid
from localcloud.firestore.transactions import Mode, Transactions
from localcloud.firestore.ttl import TtlField

log = logging.getLogger(__name__)

SERVICE = "/google.firestore.v1.Firestore/"
REQUEST_BYTES_MAX = 10 << 20
EXPIRE_EVERY_S = 1.0
SWEEP_EVERY_S = 60.0


class Firestore:
    """The service. Add `handlers` to any `grpc.aio` server whose message limit is above 10 MiB."""

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Callable[[], datetime] = utc_now,
        indexes: Sequence[Declared] = (),
        ttl: Sequence[TtlField] = (),
        mode: Mode = "pessimistic",
        ttl_delay_s: float = 0.0,
    ) -> None:
        """Open the state.

        Args:
            path: The SQLite file. None keeps everything in memory.
            clock: Returns the time, aware UTC.
            indexes: The composite indexes that exist; a query that needs another is refused.
            ttl: The fields that hold when a document expires.
            mode: The concurrency mode of transactions that do not choose one.
            ttl_delay_s: The least seconds between a document's expiry and its deletion.
        """
        self._documents = Documents(path, clock)
        self._transactions = Transactions(self._documents, mode)
        self._reads = Reads(self._documents, self._transactions, indexes, lock_wait_s=LOCK_WAIT_S)
        self._commits = Commits(self._documents, self._transactions, lock_wait_s=LOCK_WAIT_S, write_wait_s=WRITE_WAIT_S)
        self._indexes = indexes
        self._ttl = ttl
        self._ttl_delay_us = round(ttl_delay_s * 1_000_000)
        self._chores: list[asyncio.Task[None]] = []

    def handlers(self) -> Sequence[grpc.GenericRpcHandler]:
        """Return the handlers for a `grpc.aio` server."""
        return [_Rpcs(self._methods())]

    def _methods(self) -> dict[str, grpc.RpcMethodHandler]:
        return {
            "BatchGetDocuments": _stream(protos.BatchGetDocumentsRequest, self._reads.batch_get),
            "BatchWrite": _unary(protos.BatchWriteRequest, self._commits.batch_write),
            "BeginTransaction": _unary(protos.BeginTransactionRequest, self._begin),
            "Commit": _unary(protos.CommitRequest, self._commits.commit),
            "CreateDocument": _unary(protos.CreateDocumentRequest, self._commits.create_document),
            "DeleteDocument": _unary(protos.DeleteDocumentRequest, self._delete),
            "GetDocument": _unary(protos.GetDocumentRequest, self._reads.get_document),
            "ListCollectionIds": _unary(protos.ListCollectionIdsRequest, self._reads.list_collection_ids),
            "ListDocuments": _unary(protos.ListDocumentsRequest, self._reads.list_documents),
            "Listen": _duplex(protos.ListenRequest, self._listen),
            "PartitionQuery": _unary(protos.PartitionQueryRequest, self._reads.partition_query),
            "Rollback": _unary(protos.RollbackRequest, self._rollback),
            "RunAggregationQuery": _stream(protos.RunAggregationQueryRequest, self._reads.run_aggregation),
            "RunQuery": _stream(protos.RunQueryRequest, self._reads.run_query),
            "UpdateDocument": _unary(protos.UpdateDocumentRequest, self._commits.update_document),
        }

    async def _begin(self, request: Pb) -> Pb:
        database = self._documents.database(request.database)
        opened = self._transactions.begin(database, request.options)
        return protos.BeginTransactionResponse(transaction=opened.transaction_id)

    async def _rollback(self, request: Pb) -> Empty:
        self._transactions.rollback(request.transaction, self._documents.database(request.database))
        return Empty()

    async def _delete(self, request: Pb) -> Empty:
        await self._commits.delete_document(request)
        return Empty()

    def _listen(self, requests: AsyncIterator[Pb]) -> AsyncIterator[Pb]:
        return Listening(self._documents, self._indexes).answer(requests)

    # Periodic tasks.

    async def start(self) -> None:
        """Start to expire transactions and documents."""
        self._chores = [
            asyncio.create_task(_repeat(EXPIRE_EVERY_S, self.expire_transactions)),
            asyncio.create_task(_repeat(SWEEP_EVERY_S, self.sweep)),
        ]

    def expire_transactions(self) -> None:
        """End the transactions that were left open too long."""
        self._transactions.expire()

    def sweep(self) -> None:
        """Delete the documents that have expired, except those that a transaction holds locks on."""
        before_us = self._documents.now_us() - self._ttl_delay_us
        nobody = Owner()
        for ttl in self._ttl:
            for database, path in list(ttls.expired(self._documents, ttl, before_us=before_us)):
                if not self._transactions.locks.is_held_by_another(nobody, (database, path)):
                    self._documents.write(database, {path: None}, self._documents.next_us())

    async def close(self) -> None:
        """Stop the periodic tasks and close the file."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        self._documents.close()


async def _repeat(every_s: float, chore: Callable[[], None]) -> None:
    while True:
        try:
            chore()
        except (sqlite3.Error, Refused):
            log.exception("A periodic task failed. It runs again in %s s.", every_s)
        await asyncio.sleep(every_s)


# gRPC.


class _Rpcs(grpc.GenericRpcHandler):
    """The handlers by RPC name; RPCs of Firestore that this server lacks are refused by name."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler]) -> None:
        self._methods = methods

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = handler_call_details.method
        if not name.startswith("/google.firestore."):
            return None
        if name.startswith(SERVICE) and (known := self._methods.get(name.removeprefix(SERVICE))):
            return known

        async def refuse(_requests: AsyncIterator[bytes], context: Any) -> None:
            log.warning("A client called %s, which is not implemented here.", name)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"localcloud does not implement {name}")

        return grpc.stream_stream_rpc_method_handler(refuse)


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _check_size(request: Pb) -> None:
    if request.ByteSize() > REQUEST_BYTES_MAX:
        raise invalid(f"Request payload size exceeds the limit: {REQUEST_BYTES_MAX} bytes.")


def _unary(request_type: Pb, answer: Callable[[Pb], Awaitable[Any]]) -> grpc.RpcMethodHandler:
    async def handle(request: Pb, context: Any) -> Any:
        try:
            _check_size(request)
            return await answer(request)
        except Refused as refused:
            await context.abort(refused.code, refused.message)

    return grpc.unary_unary_rpc_method_handler(handle, request_type.FromString, _serialize)


def _stream(request_type: Pb, answer: Callable[[Pb], AsyncIterator[Any]]) -> grpc.RpcMethodHandler:
    async def handle(request: Pb, context: Any) -> AsyncIterator[Any]:
        try:
            _check_size(request)
            async for response in answer(request):
                yield response
        except Refused as refused:
            await context.abort(refused.code, refused.message)

    return grpc.unary_stream_rpc_method_handler(handle, request_type.FromString, _serialize)


def _duplex(request_type: Pb, answer: Callable[[AsyncIterator[Pb]], AsyncIterator[Any]]) -> grpc.RpcMethodHandler:
    async def handle(requests: AsyncIterator[Pb], context: Any) -> AsyncIterator[Any]:
        responses = answer(requests)
        try:
            async with contextlib.aclosing(responses):  # type: ignore[type-var]
                async for response in responses:
                    yield response
        except Refused as refused:
            await context.abort(refused.code, refused.message)

    return grpc.stream_stream_rpc_method_handler(handle, request_type.FromString, _serialize)
