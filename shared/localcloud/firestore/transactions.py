"""Transactions: what each has read, and whether that is unchanged when it commits.

Pessimistic transactions lock what they read, so they wait for one another; optimistic ones read a snapshot and
hold no locks. Both are validated at commit: every document and every query result they read must be unchanged, so
a commit is as if the whole transaction had run at that instant. A transaction that lost a race is refused at
commit and never at a read, because clients retry only there.
Limits: https://cloud.google.com/firestore/quotas, read 2026-11-25.
"""

import itertools
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from localcloud.firestore import times
from localcloud.firestore.documents import Documents
from localcloud.firestore.locks import Locks, Owner
from localcloud.firestore.protos import Pb, TransactionOptions
from localcloud.firestore.query import Query
from localcloud.firestore.refusals import aborted, invalid, refuse_unsupported

Mode = Literal["pessimistic", "optimistic"]

IDLE_US_MAX = 60_000_000
TOTAL_US_MAX = 270_000_000
ID_BYTES = 16
"""Eight bytes that identify one start of the server, then a number."""
OPEN_MAX = 10_000
"""Most open transactions; more are refused."""
REMEMBERED_MAX = 10_000
"""Most ended transactions whose age a retry may still inherit."""

Concurrency = TransactionOptions.ConcurrencyMode


@dataclass(eq=False, slots=True)
class Transaction:
    """One open transaction."""

    transaction_id: bytes
    database: int
    kind: Literal["pessimistic", "optimistic", "read_only"]
    owner: Owner
    started_us: int
    used_us: int
    snapshot_us: int | None = None
    """The time that its reads see; None while it has not read, and always when it uses locks instead."""
    documents_read: dict[bytes, int | None] = field(default_factory=dict)
    """The version of each document read; None where there was none."""
    queries_read: dict[object, tuple[Query, object]] = field(default_factory=dict)
    """Each query by its fingerprint, with the versions of its results."""
    calls: int = 0
    """Requests of this transaction being answered; it is not idle while there are any."""


class Transactions:
    """The open transactions of all databases."""

    def __init__(self, documents: Documents, mode: Mode) -> None:
        self.locks = Locks()
        self._documents = documents
        self._mode = mode
        self._open: dict[bytes, Transaction] = {}
        self._ended: OrderedDict[bytes, int] = OrderedDict()
        self._born = secrets.token_bytes(8)
        self._numbers = itertools.count(1)

    def begin(self, database: int, options: Pb) -> Transaction:
        """Open a transaction."""
        if len(self._open) >= OPEN_MAX:
            raise aborted("Too many open transactions.")
        kind = self._kind(options)
        now_us = self._documents.now_us()
        transaction = Transaction(
            transaction_id=self._born + next(self._numbers).to_bytes(8, "big"),
            database=database,
            kind=kind,
            owner=self._owner(options.read_write.retry_transaction),
            started_us=now_us,
            used_us=now_us,
        )
        if kind == "read_only":
            transaction.snapshot_us = self._documents.open_snapshot()
        self._open[transaction.transaction_id] = transaction
        return transaction

    def _kind(self, options: Pb) -> Literal["pessimistic", "optimistic", "read_only"]:
        if options.HasField("read_only"):
            if options.read_only.HasField("read_time"):
                refuse_unsupported("reads at a past time")
            return "read_only"
        match options.read_write.concurrency_mode:
            case Concurrency.PESSIMISTIC:
                return "pessimistic"
            case Concurrency.OPTIMISTIC:
                return "optimistic"
        return self._mode

    def _owner(self, retried: bytes) -> Owner:
        # The Python client keeps the id to retry on the decorated function, which threads share: the id may be that of
        # another thread's transaction, still open. Take over its age and leave it alone otherwise.
        previous = self._open.get(retried)
        age = previous.owner.age if previous is not None else self._ended.get(retried)
        return Owner() if age is None else Owner(age=age)

    def get(self, transaction_id: bytes, database: int) -> Transaction:
        """Return an open transaction and note that it is used.

        Raises:
            Refused: It is not open. ABORTED, which clients retry, when it was opened before a restart.
        """
        transaction = self._open.get(transaction_id)
        if len(transaction_id) != ID_BYTES:
            raise invalid("Invalid transaction.")
        if not self._is_ours(transaction_id):
            raise aborted("The transaction was lost when the server restarted.")
        if transaction is None or transaction.database != database:
            raise invalid("The referenced transaction has expired or is no longer valid.")
        transaction.used_us = self._documents.now_us()
        return transaction

    def rollback(self, transaction_id: bytes, database: int) -> None:
        """End a transaction without a commit; one that has ended already stays so."""
        transaction = self._open.get(transaction_id)
        if transaction is not None and transaction.database == database:
            self.end(transaction)
        elif len(transaction_id) != ID_BYTES or (self._is_ours(transaction_id) and transaction_id not in self._ended):
            raise invalid("Invalid transaction.")

    def _is_ours(self, transaction_id: bytes) -> bool:
        """Return whether it was opened since this server started."""
        return transaction_id.startswith(self._born)

    def end(self, transaction: Transaction) -> None:
        """Close a transaction and release its locks."""
        if self._open.pop(transaction.transaction_id, None) is None:
            return
        self.locks.give_up(transaction.owner)
        if transaction.snapshot_us is not None:
            self._documents.close_snapshot(transaction.snapshot_us)
        self._ended[transaction.transaction_id] = transaction.owner.age
        while len(self._ended) > REMEMBERED_MAX:
            self._ended.popitem(last=False)

    def expire(self) -> None:
        """Close the transactions that were left open too long."""
        now_us = self._documents.now_us()
        for transaction in list(self._open.values()):
            idle = not transaction.calls and now_us - transaction.used_us >= IDLE_US_MAX
            if idle or now_us - transaction.started_us >= TOTAL_US_MAX:
                self.end(transaction)

    # Reading.

    async def lock(self, transaction: Transaction, keys: list[object], *, wait_s: float) -> None:
        """Lock what a pessimistic transaction is about to read; after a failure its commit is refused."""
        if transaction.kind != "pessimistic":
            return
        transaction.calls += 1
        try:
            await self.locks.acquire(transaction.owner, keys, wait_s=wait_s)
        finally:
            transaction.calls -= 1
            transaction.used_us = self._documents.now_us()

    def read_time_us(self, transaction: Transaction) -> int | None:
        """Return the instant that a transaction's reads see; None is now."""
        if transaction.kind == "optimistic" and transaction.snapshot_us is None:
            transaction.snapshot_us = self._documents.open_snapshot()
        return transaction.snapshot_us

    def saw_document(self, transaction: Transaction, path: bytes, document: Pb | None) -> None:
        """Remember the first version that a transaction read."""
        transaction.documents_read.setdefault(path, version(document))

    def saw_results(self, transaction: Transaction, query: Query, results: list[Pb]) -> None:
        """Remember the first results of a query."""
        transaction.queries_read.setdefault(query.fingerprint, (query, versions(results)))

    # Committing.

    def validate(self, transaction: Transaction) -> None:
        """Refuse the commit of a transaction whose reads are outdated.

        Raises:
            Refused: ABORTED.
        """
        if transaction.kind == "read_only":
            return
        for path, seen in transaction.documents_read.items():
            if version(self._documents.get(transaction.database, path)) != seen:
                raise aborted("A document that the transaction read has changed. Please try again.")
        for query, seen_results in transaction.queries_read.values():
            if versions(query.run()[0]) != seen_results:
                raise aborted("A query that the transaction ran would answer differently now. Please try again.")


def version(document: Pb | None) -> int | None:
    """Return a document's version; None where there is no document."""
    return None if document is None else times.from_timestamp(document.update_time)


def versions(documents: list[Pb]) -> object:
    """Return a value that identifies a list of results."""
    return [(document.name, version(document)) for document in documents]
