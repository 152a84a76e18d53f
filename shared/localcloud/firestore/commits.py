"""The RPCs that write: wait for locks, then validate, apply and store without an `await` in between."""

from collections.abc import Sequence
from uuid import uuid4

from localcloud.firestore import names, times, values, writes
from localcloud.firestore.documents import Documents
from localcloud.firestore.locks import Owner
from localcloud.firestore.protos import BatchWriteResponse, CommitResponse, Document, Pb, Status, Write, WriteResult
from localcloud.firestore.query import masked
from localcloud.firestore.refusals import Refused, aborted, invalid
from localcloud.firestore.transactions import Transactions


class Commits:
    """The handlers of writing RPCs."""

    def __init__(
        self, documents: Documents, transactions: Transactions, *, lock_wait_s: float, write_wait_s: float
    ) -> None:
        self._documents = documents
        self._transactions = transactions
        self._lock_wait_s = lock_wait_s
        self._write_wait_s = write_wait_s

    async def commit(self, request: Pb) -> Pb:
        if not request.transaction:
            return await self.write(request.database, request.writes)
        database = self._documents.database(request.database)
        transaction = self._transactions.get(request.transaction, database)
        try:
            paths = _paths(request.database, request.writes)
            if paths and transaction.kind == "read_only":
                raise invalid("A read-only transaction cannot write.")
            await self._lock(transaction.owner, database, paths, wait_s=self._lock_wait_s)
            self._transactions.validate(transaction)
            return self._apply(database, paths, request.writes)
        finally:
            # In any case the transaction is over; a client that retries begins another.
            self._transactions.end(transaction)

    async def write(self, database_name: str, requested: Sequence[Pb]) -> Pb:
        """Commit outside of any transaction; waits a little for transactions that hold locks on the documents."""
        database = self._documents.database(database_name)
        paths = _paths(database_name, requested)
        owner = Owner()
        try:
            await self._lock(owner, database, paths, wait_s=self._write_wait_s)
            return self._apply(database, paths, requested)
        finally:
            self._transactions.locks.release(owner)

    async def _lock(self, owner: Owner, database: int, paths: Sequence[bytes], *, wait_s: float) -> None:
        keys = [(database, path) for path in sorted(set(paths))]
        if not await self._transactions.locks.acquire(owner, keys, wait_s=wait_s):
            raise aborted("Too much contention on these documents. Please try again.")

    def _apply(self, database: int, paths: Sequence[bytes], requested: Sequence[Pb]) -> Pb:
        writes.check_transform_count(requested)
        now_us = self._documents.next_us()
        before: dict[bytes, Pb | None] = {path: self._documents.get(database, path) for path in paths}
        after = dict(before)
        response = CommitResponse()
        for path, write in zip(paths, requested, strict=True):
            after[path], result = writes.apply(after[path], write, now_us)
            response.write_results.append(result)
        changed = {path: document for path, document in after.items() if _differ(before[path], document)}
        if changed:
            self._documents.write(database, changed, now_us)
        response.commit_time.CopyFrom(times.to_timestamp(now_us if changed else self._documents.now_us()))
        return response

    async def batch_write(self, request: Pb) -> Pb:
        """Commit each write by itself; a refused one does not affect the others."""
        targets = [writes.target(write) for write in request.writes]
        if len(set(targets)) < len(targets):
            raise invalid("A batch may write a document only once.")
        response = BatchWriteResponse()
        for write in request.writes:
            try:
                committed = await self.write(request.database, [write])
            except Refused as refused:
                response.write_results.append(WriteResult())
                response.status.append(Status(code=refused.code.value[0], message=refused.message))
            else:
                response.write_results.append(committed.write_results[0])
                response.status.append(Status())
        return response

    # Single documents.

    async def create_document(self, request: Pb) -> Pb:
        database_name, above = names.parent_segments(request.parent)
        below = (request.collection_id, request.document_id or uuid4().hex[:20])
        if any("/" in segment for segment in below):
            raise invalid("Ids do not contain slashes.")
        name = names.join(database_name, (*above, *below))
        write = Write(update=Document(name=name, fields=request.document.fields))
        write.current_document.exists = False
        return await self._write_one(name, write, request)

    async def update_document(self, request: Pb) -> Pb:
        write = Write(update=request.document)
        if request.HasField("update_mask"):
            write.update_mask.CopyFrom(request.update_mask)
        if request.HasField("current_document"):
            write.current_document.CopyFrom(request.current_document)
        return await self._write_one(request.document.name, write, request)

    async def delete_document(self, request: Pb) -> None:
        write = Write(delete=request.name)
        if request.HasField("current_document"):
            write.current_document.CopyFrom(request.current_document)
        await self.write(names.split(request.name)[0], [write])

    async def _write_one(self, name: str, write: Pb, request: Pb) -> Pb:
        database_name, _ = names.split(name)
        await self.write(database_name, [write])
        path = names.document_path(database_name, name)
        document = self._documents.get(self._documents.database(database_name), path)
        if not request.HasField("mask"):
            return document
        return masked(document, map(values.parse_path, request.mask.field_paths))


def _paths(database_name: str, requested: Sequence[Pb]) -> list[bytes]:
    return [names.document_path(database_name, writes.target(write)) for write in requested]


def _differ(before: Pb | None, after: Pb | None) -> bool:
    if before is None or after is None:
        return before is not after
    return bool(before.update_time != after.update_time)
