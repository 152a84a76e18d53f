"""The spend ledger in Firestore.

    ledger/{entry_id}                  created once, never changed
    balances/{window}:{account}        the sum of its entries, moved by Increment in the commit that creates one
    freezes/{entry_id}                 made in the commit that creates a freeze, gone with the one of its thaw

Nothing is read before it is written, so no document is contended: the create is the one precondition, and when it
fails the whole commit does. A `/` of an account is written `~` in a document's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.api_core.exceptions import Aborted, AlreadyExists, ServiceUnavailable
from google.api_core.retry import AsyncRetry, if_exception_type
from google.cloud.firestore import AsyncClient, Increment, Query
from google.cloud.firestore_v1.base_query import FieldFilter

from goblin.adapters.gcp.documents import CALL, DEADLINE_S, in_time, plain, read
from goblin.domain.money import ACTIONS, Balance, Entry, EntryKind, Freeze, lineage, month_of
from goblin.errors import Conflict

ACCOUNTS_MAX = 10_000
AGAIN = AsyncRetry(if_exception_type(Aborted, ServiceUnavailable), initial=0.02, maximum=0.5, timeout=DEADLINE_S)
"""Balances are shared by all writers, so a commit may meet another; its create makes a second try harmless."""


class FirestoreLedger:
    """The port `Ledger`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._entries = client.collection("ledger")
        self._balances = client.collection("balances")
        self._freezes = client.collection("freezes")

    async def record(self, entry: Entry) -> bool:
        batch = self._client.batch()
        written = self._entries.document(entry.entry_id)
        # `action` makes the list of actions one query over one field and an order.
        batch.create(written, {**plain(entry), "action": entry.kind in ACTIONS})
        if entry.kind in ACTIONS:
            self._freeze(batch, entry)
        else:
            self._count(batch, entry)
        try:
            await in_time(batch.commit(timeout=DEADLINE_S, retry=AGAIN), "write of a ledger entry")
        except AlreadyExists:
            there = await in_time(written.get(**CALL), "read of a ledger entry")
            _check_same(entry, _entry(there.to_dict()))
            return False
        return True

    def _count(self, batch: Any, entry: Entry) -> None:
        window = month_of(entry.at)
        for account in lineage(entry.account):
            change = {
                "account": account,
                "window": window,
                "spent_usd_micros": Increment(entry.spent_usd_micros),
                "entries": Increment(1),
            }
            batch.set(self._balances.document(f"{window}:{_named(account)}"), change, merge=True)

    def _freeze(self, batch: Any, entry: Entry) -> None:
        if entry.kind is EntryKind.FREEZE:
            freeze = Freeze(entry_id=entry.entry_id, account=entry.account, reason=entry.note, since=entry.at)
            batch.set(self._freezes.document(entry.entry_id), plain(freeze))
        for lifted in entry.lifts:
            batch.delete(self._freezes.document(lifted))

    async def balances(self, window: str) -> Sequence[Balance]:
        query = self._balances.where(filter=FieldFilter("window", "==", window)).limit(ACCOUNTS_MAX)
        found = await in_time(query.get(**CALL), "list of balances")
        return sorted((read(Balance, document.to_dict()) for document in found), key=lambda balance: balance.account)

    async def entries(self, *, limit: int) -> Sequence[Entry]:
        query = self._entries.order_by("at", direction=Query.DESCENDING).limit(limit)
        return [_entry(document.to_dict()) for document in await in_time(query.get(**CALL), "list of ledger entries")]

    async def actions(self, *, limit: int) -> Sequence[Entry]:
        query = self._entries.where(filter=FieldFilter("action", "==", True))
        query = query.order_by("at", direction=Query.DESCENDING).limit(limit)
        return [_entry(document.to_dict()) for document in await in_time(query.get(**CALL), "list of budget actions")]

    async def freezes(self) -> Sequence[Freeze]:
        found = await in_time(self._freezes.limit(ACCOUNTS_MAX).get(**CALL), "read of freezes")
        return sorted((read(Freeze, document.to_dict()) for document in found), key=lambda freeze: freeze.since)


def _named(account: str) -> str:
    return account.replace("/", "~")


def _entry(fields: Mapping[str, Any] | None) -> Entry:
    return read(Entry, fields)


def _check_same(entry: Entry, there: Entry) -> None:
    if (entry.account, entry.spent_usd_micros) != (there.account, there.spent_usd_micros):
        raise Conflict(f"The ledger has another entry {entry.entry_id}.")
