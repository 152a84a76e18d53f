"""The RPCs that read: each computes its whole answer without an `await`, so that it shows one instant."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import grpc

from localcloud.firestore import aggregates, indexes, names, rules, times, values
from localcloud.firestore.documents import Documents, Scope
from localcloud.firestore.indexes import Declared
from localcloud.firestore.orders import ASCENDING, sorted_by_also
from localcloud.firestore.protos import (
    AggregationResult,
    BatchGetDocumentsResponse,
    Cursor,
    ListCollectionIdsResponse,
    ListDocumentsResponse,
    PartitionQueryResponse,
    Pb,
    RunAggregationQueryResponse,
    RunQueryResponse,
    Value,
)
from localcloud.firestore.query import Query, masked
from localcloud.firestore.refusals import Refused, invalid, refuse_unsupported
from localcloud.firestore.transactions import Transaction, Transactions

PAGE_SIZE_DEFAULT = 300
PAGE_SIZE_MAX = 5000
PAGE_BYTES_MAX = 3 << 20
"""Bytes of one page: clients of an emulator may refuse messages over gRPC's default of 4 MiB."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The transaction that a request reads in."""

    transaction: Transaction | None = None
    announced: bytes = b""
    """The id that the first response carries, when the request opened the transaction."""


class Reads:
    """The handlers of reading RPCs."""

    def __init__(
        self,
        documents: Documents,
        transactions: Transactions,
        declared: Sequence[Declared],
        *,
        lock_wait_s: float,
    ) -> None:
        self._documents = documents
        self._transactions = transactions
        self._declared = declared
        self._lock_wait_s = lock_wait_s

    def _reading(self, request: Pb, database: int) -> _Reading:
        match request.WhichOneof("consistency_selector"):
            case "transaction":
                return _Reading(self._transactions.get(request.transaction, database))
            case "new_transaction":
                opened = self._transactions.begin(database, request.new_transaction)
                return _Reading(opened, opened.transaction_id)
            case "read_time":
                refuse_unsupported("reads at a past time")
        return _Reading()

    def _at_us(self, reading: _Reading) -> int | None:
        return None if reading.transaction is None else self._transactions.read_time_us(reading.transaction)

    def _stamp(self, at_us: int | None) -> Pb:
        return times.to_timestamp(self._documents.now_us() if at_us is None else at_us)

    # Documents by name.

    async def batch_get(self, request: Pb) -> AsyncIterator[Pb]:
        database = self._documents.database(request.database)
        wanted = {name: names.document_path(request.database, name) for name in request.documents}
        mask = _mask(request)
        reading = self._reading(request, database)
        if reading.transaction is not None:
            keys: list[object] = [(database, path) for path in sorted(wanted.values())]
            await self._transactions.lock(reading.transaction, keys, wait_s=self._lock_wait_s)
        at_us = self._at_us(reading)
        found = {name: self._get(database, path, reading, at_us) for name, path in wanted.items()}
        stamp, announced = self._stamp(at_us), reading.announced
        if announced and not found:
            yield BatchGetDocumentsResponse(transaction=announced)
        for name, document in found.items():
            response = BatchGetDocumentsResponse(read_time=stamp, transaction=announced)
            announced = b""
            if document is None:
                response.missing = name
            else:
                response.found.CopyFrom(document if mask is None else masked(document, mask))
            yield response

    def _get(self, database: int, path: bytes, reading: _Reading, at_us: int | None) -> Pb | None:
        document = self._documents.get(database, path, at_us)
        if reading.transaction is not None:
            self._transactions.saw_document(reading.transaction, path, document)
        return document

    async def get_document(self, request: Pb) -> Pb:
        owner, _ = names.split(request.name)
        database, path = self._documents.database(owner), names.document_path(owner, request.name)
        mask = _mask(request)
        reading = self._reading(request, database)
        if reading.transaction is not None:
            await self._transactions.lock(reading.transaction, [(database, path)], wait_s=self._lock_wait_s)
        document = self._get(database, path, reading, self._at_us(reading))
        if document is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f'Document "{request.name}" not found.')
        return document if mask is None else masked(document, mask)

    # Queries.

    async def run_query(self, request: Pb) -> AsyncIterator[Pb]:
        query = self._query(request, request.structured_query, ())
        reading = self._reading(request, query.scope.database)
        results, skipped, stamp = await self._results(query, reading)
        if reading.announced:
            yield RunQueryResponse(transaction=reading.announced)
        if not results:
            yield RunQueryResponse(read_time=stamp, skipped_results=skipped)
        for document in results:
            yield RunQueryResponse(document=query.project(document), read_time=stamp, skipped_results=skipped)
            skipped = 0

    async def run_aggregation(self, request: Pb) -> AsyncIterator[Pb]:
        aggregations = request.structured_aggregation_query.aggregations
        aggregates.check(aggregations)
        structured = request.structured_aggregation_query.structured_query
        query = self._query(request, structured, aggregates.fields(aggregations))
        reading = self._reading(request, query.scope.database)
        results, _, stamp = await self._results(query, reading)
        answer = aggregates.compute(aggregations, results)
        yield RunAggregationQueryResponse(
            result=AggregationResult(aggregate_fields=answer), read_time=stamp, transaction=reading.announced
        )

    def _query(self, request: Pb, structured: Pb, aggregated: Sequence[values.FieldPath]) -> Query:
        if request.HasField("explain_options"):
            refuse_unsupported("query explanations")
        query = Query(self._documents, request.parent, structured)
        indexes.check(structured, self._declared, aggregated)
        if not aggregated:
            return query
        rules.check_aggregated(structured, query.terms, query.orders, aggregated)
        # Aggregated fields are read from the index that sorts by them.
        return Query(self._documents, request.parent, sorted_by_also(structured, query.orders, aggregated))

    async def _results(self, query: Query, reading: _Reading) -> tuple[list[Pb], int, Pb]:
        transaction = reading.transaction
        if transaction is not None:
            await self._lock_results(query, transaction)
        at_us = self._at_us(reading)
        results, skipped = query.run(at_us)
        if transaction is not None:
            self._transactions.saw_results(transaction, query, results)
        return results, skipped, self._stamp(at_us)

    async def _lock_results(self, query: Query, transaction: Transaction) -> None:
        # First lock the query itself, so that transactions with the same query wait in one queue. Then lock the
        # results, until waiting for the locks has not changed the results.
        if transaction.kind != "pessimistic":
            return
        await self._transactions.lock(transaction, [query.fingerprint], wait_s=self._lock_wait_s)
        while not transaction.owner.lost:
            paths = (names.encode(names.split(document.name)[1]) for document in query.run()[0])
            keys: list[object] = [(query.scope.database, path) for path in sorted(paths)]
            if transaction.owner.held.issuperset(keys):
                return
            await self._transactions.lock(transaction, keys, wait_s=self._lock_wait_s)

    async def partition_query(self, request: Pb) -> Pb:
        """Return split points that divide a collection group's documents evenly, all in one page."""
        if request.partition_count < 1:
            raise invalid("The partition count must be positive.")
        structured = request.structured_query
        orders = [(order.field.field_path, order.direction) for order in structured.order_by]
        if not structured.from_ or not structured.from_[0].all_descendants or orders != [("__name__", ASCENDING)]:
            raise invalid("A partitioned query reads a collection group ordered by __name__.")
        results, _ = Query(self._documents, request.parent, structured).run()
        count = min(request.partition_count, max(len(results) - 1, 0))
        splits = [results[len(results) * at // (count + 1)].name for at in range(1, count + 1)]
        return PartitionQueryResponse(
            partitions=[Cursor(values=[Value(reference_value=name)], before=True) for name in splits]
        )

    # Lists.

    async def list_documents(self, request: Pb) -> Pb:
        if not request.collection_id:
            refuse_unsupported("ListDocuments over all collections")
        if request.WhichOneof("consistency_selector") is not None:
            refuse_unsupported("ListDocuments at a given time or in a transaction")
        if request.order_by not in {"", "__name__", "__name__ asc"}:
            refuse_unsupported("ListDocuments in another order than by name")
        owner, segments = names.parent_segments(request.parent)
        database = self._documents.database(owner)
        parent = names.encode((*segments, request.collection_id))
        after = _page_token(request)
        mask = _mask(request)
        response, size = ListDocumentsResponse(), 0
        listed = self._present_or_missing if request.show_missing else self._present
        for path, document in listed(database, parent, after):
            if len(response.documents) == _page_size(request) or size > PAGE_BYTES_MAX:
                response.next_page_token = after.hex()
                break
            if document is None:
                response.documents.add(name=names.join(owner, names.decode(path)))
            else:
                response.documents.append(document if mask is None else masked(document, mask))
            size += response.documents[-1].ByteSize()
            after = path
        return response

    def _present(self, database: int, parent: bytes, after: bytes) -> Iterator[tuple[bytes, Pb]]:
        *above, collection = names.decode(parent)
        low = after + b"\x00" if after else b""
        yield from self._documents.scan(Scope(database, names.encode(tuple(above)), collection, False, low))

    def _present_or_missing(self, database: int, parent: bytes, after: bytes) -> Iterator[tuple[bytes, Pb | None]]:
        for path in self._documents.children(database, parent, after):
            yield path, self._documents.get(database, path)

    async def list_collection_ids(self, request: Pb) -> Pb:
        if request.WhichOneof("consistency_selector") is not None:
            refuse_unsupported("reads at a past time")
        owner, segments = names.parent_segments(request.parent)
        after = _page_token(request)
        response = ListCollectionIdsResponse()
        for path in self._documents.children(self._documents.database(owner), names.encode(segments), after):
            if len(response.collection_ids) == _page_size(request):
                response.next_page_token = after.hex()
                break
            response.collection_ids.append(names.decode(path)[-1])
            after = path
        return response


def _mask(request: Pb) -> list[values.FieldPath] | None:
    return [values.parse_path(path) for path in request.mask.field_paths] if request.HasField("mask") else None


def _page_size(request: Pb) -> int:
    if request.page_size < 0:
        raise invalid("The page size must not be negative.")
    return min(request.page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def _page_token(request: Pb) -> bytes:
    try:
        return bytes.fromhex(request.page_token)
    except ValueError as error:
        raise invalid("Invalid page token.") from error
