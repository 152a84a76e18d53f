"""Firestore's parts put together without gRPC, and the messages that tests say to them."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localcloud.firestore import protos
from localcloud.firestore.commits import Commits
from localcloud.firestore.documents import Documents
from localcloud.firestore.indexes import CompositeIndex
from localcloud.firestore.reads import Reads
from localcloud.firestore.transactions import Mode, Transactions

DATABASE = "projects/p/databases/(default)"
ROOT = f"{DATABASE}/documents"
Filter = protos.StructuredQuery.Filter
Op = protos.FieldFilter.Operator


class FakeClock:
    """Stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


class Room:
    """One Firestore, called as its RPCs call it."""

    def __init__(
        self,
        mode: Mode = "pessimistic",
        *,
        path: Path | None = None,
        indexes: Sequence[CompositeIndex] = (),
        wait_s: float = 10.0,
    ) -> None:
        self.clock = FakeClock()
        self.documents = Documents(path, self.clock)
        self.transactions = Transactions(self.documents, mode)
        self.reads = Reads(self.documents, self.transactions, indexes, lock_wait_s=wait_s)
        self.commits = Commits(self.documents, self.transactions, lock_wait_s=wait_s, write_wait_s=wait_s)

    def begin(self, retry: bytes = b"", **options: Any) -> bytes:
        request = protos.TransactionOptions(**options)
        if retry:
            request.read_write.retry_transaction = retry
        return self.transactions.begin(self.documents.database(DATABASE), request).transaction_id

    async def read(self, path: str, transaction: bytes = b"") -> int | None:
        """The field `n` of a document, None when there is no document."""
        request = protos.BatchGetDocumentsRequest(database=DATABASE, documents=[f"{ROOT}/{path}"])
        if transaction:
            request.transaction = transaction
        (response,) = [response async for response in self.reads.batch_get(request)]
        return response.found.fields["n"].integer_value if response.HasField("found") else None

    async def query_above(self, collection: str, bound: int, transaction: bytes = b"") -> dict[str, int]:
        """The documents of a collection whose `n` is above a bound."""
        request = protos.RunQueryRequest(parent=ROOT, structured_query=above(collection, bound))
        if transaction:
            request.transaction = transaction
        found = [response async for response in self.reads.run_query(request)]
        return {
            one.document.name.removeprefix(f"{ROOT}/"): one.document.fields["n"].integer_value
            for one in found
            if one.HasField("document")
        }

    async def commit(self, changes: dict[str, int | None], transaction: bytes = b"") -> Any:
        """Set the field `n` of documents; None deletes one."""
        request = protos.CommitRequest(database=DATABASE, writes=writes(changes), transaction=transaction)
        return await self.commits.commit(request)


def writes(changes: dict[str, int | None]) -> list[Any]:
    return [
        protos.Write(delete=f"{ROOT}/{path}")
        if n is None
        else protos.Write(update=document(path, n=protos.Value(integer_value=n)))
        for path, n in changes.items()
    ]


def document(path: str, **fields: Any) -> Any:
    return protos.Document(name=f"{ROOT}/{path}", fields=fields)


def above(collection: str, bound: int) -> Any:
    query = protos.StructuredQuery(from_=[{"collection_id": collection}])
    query.where.field_filter.field.field_path = "n"
    query.where.field_filter.op = Op.GREATER_THAN
    query.where.field_filter.value.integer_value = bound
    return query
