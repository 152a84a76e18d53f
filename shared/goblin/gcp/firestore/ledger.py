"""The spend ledger in Firestore.

    ledger/{entry_id}            created once, never changed
    balances/{window}:{account}:{part}  a part of the sum of its entries in a month or a day, changed in their commit
    accounts/{account}           limits, and what is spent and allocated in the current windows
    leases/{allocation_id}       one allocation
    freezes/{entry_id}           created in the commit of a freeze, deleted in the commit of its thaw

A step of an allocation reads the allocation and its accounts, decides, and writes them on condition that none has
changed; otherwise it reads and decides again. Settlements from an allocation are written without reading: entries,
balances and the allocation's own document, so that requests contend for nothing. Each allocation writes to one part of
the balances, so that processes do not write one document more often than Firestore allows. A `/` of an account is `~`
in a document's name.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.api_core.exceptions import Aborted, AlreadyExists, FailedPrecondition, NotFound, ServiceUnavailable
from google.api_core.retry import AsyncRetry, if_exception_type
from google.cloud.firestore import AsyncClient, Increment, Query
from google.cloud.firestore_v1.base_query import FieldFilter

from goblin.billing.domain.accounts import Account, Allocation, Limit, Period
from goblin.billing.domain.ledger import (
    ACTIONS,
    LENDING,
    Balance,
    EntryKind,
    Freeze,
    LedgerEntry,
    day_of,
    is_instance_settlement,
    lineage,
    month_of,
)
from goblin.billing.policy import allocation as allocation_policy
from goblin.billing.policy.allocation import AllocationRequest, AllocationResult
from goblin.core.errors import Conflict, StoreUnavailable
from goblin.gcp.firestore.documents import CALL, DEADLINE_S, in_time, plain, read

LISTED_MAX = 10_000
AGAIN = AsyncRetry(if_exception_type(Aborted, ServiceUnavailable), initial=0.02, maximum=0.5, timeout=DEADLINE_S)
"""Retry of commits that contend for balances, which all writers share. The `create` in them makes a retry harmless."""
CONTENDED = (Aborted, AlreadyExists, FailedPrecondition, NotFound)
"""Answers to a commit when another writer changed a document first: read again."""
WRITTEN_BEFORE = (AlreadyExists, NotFound)
PAUSES_MAX, PAUSE_S_MAX = 16, 1.0
"""The longest pause between tries: as a multiple of the time that the last try took, and in seconds. The more writers
want the same documents, and the longer each takes, the longer the pauses must be."""
YIELDS = 4
"""How many times longer a step pauses at first if no request waits for it."""
PARTS = 16
"""Parts of a balance. With 64 busy processes, each part is written about four times a second."""
STORED_AS = {"allocation_id": "lease_id", "allocated_usd_micros": "leased_usd_micros", "usages": "tallies"}
"""Older names under which fields are stored, by present name."""
Decide = Callable[[Allocation | None, Sequence[Account]], AllocationResult]


class FirestoreLedger:
    """The ports `Ledger` and `AllocationStore`."""

    def __init__(self, client: AsyncClient, *, declared: Mapping[str, Sequence[Limit]] | None = None) -> None:
        """Keep the client.

        Args:
            client: Firestore's client of this event loop.
            declared: Configured limits by account, which hold beside those that are stored.
        """
        self._client = client
        self._declared = declared or {}
        self._entries = client.collection("ledger")
        self._balances = client.collection("balances")
        self._accounts = client.collection("accounts")
        self._allocations = client.collection("leases")
        self._freezes = client.collection("freezes")
        # Steps of one process wait for each other here, instead of aborting each other's commits.
        self._turn = asyncio.Lock()

    async def record(self, entry: LedgerEntry) -> bool:
        if entry.kind in ACTIONS:
            return await self._act(entry)
        result = await self._step(
            None,
            entry.accounts,
            lambda _, accounts: allocation_policy.record_entry(entry, accounts, now=entry.at),
            unless=entry,
        )
        return result.writes

    async def _act(self, entry: LedgerEntry) -> bool:
        batch = self._client.batch()
        written = self._entries.document(entry.entry_id)
        batch.create(written, _document(entry))
        if entry.kind is EntryKind.FREEZE:
            freeze = Freeze(
                entry_id=entry.entry_id, account=entry.account, reason=entry.note, since=entry.at, action=entry.reaction
            )
            batch.set(self._freezes.document(entry.entry_id), plain(freeze))
        for lifted in entry.lifts:
            batch.delete(self._freezes.document(lifted))
        try:
            await in_time(batch.commit(timeout=DEADLINE_S, retry=AGAIN), "write of a budget action")
        except AlreadyExists:
            _check_same(entry, read(LedgerEntry, (await in_time(written.get(**CALL), "read of an entry")).to_dict()))
            return False
        return True

    async def exchange(self, request: AllocationRequest, *, now: datetime) -> AllocationResult:
        accounts = (*lineage(request.account), *request.also)
        return await self._step(
            request.allocation_id,
            accounts,
            lambda allocation, found: allocation_policy.exchange(request, allocation, found, now=now),
            eager=request.need_usd_micros > 0,
        )

    async def settle(self, allocation_id: str, entries: Sequence[LedgerEntry]) -> bool:
        batch = self._client.batch()
        for entry in entries:
            batch.create(self._entries.document(entry.entry_id), _document(entry))
        self._count(batch, entries, allocation_id)
        spent = sum(entry.spent_usd_micros for entry in entries)
        batch.update(self._allocations.document(allocation_id), {"settled_usd_micros": Increment(spent)})
        try:
            await in_time(batch.commit(timeout=DEADLINE_S, retry=AGAIN), "write of settlements", answers=WRITTEN_BEFORE)
        except AlreadyExists:
            return True  # This same batch was written earlier, and its answer was lost.
        except NotFound:
            return False
        return True

    async def allocations(self) -> Sequence[Allocation]:
        found = await in_time(self._allocations.limit(LISTED_MAX).get(**CALL), "list of allocations")
        return [
            read(Allocation, document.to_dict(), STORED_AS)
            for document in sorted(found, key=lambda document: document.id)
        ]

    async def expire(self, allocation_id: str, *, now: datetime) -> AllocationResult:
        return await self._lease_step(
            allocation_id, lambda allocation, found: allocation_policy.expire(allocation, found, now=now)
        )

    async def resolve(self, allocation_id: str, *, spent_usd_micros: int, now: datetime) -> AllocationResult:
        return await self._lease_step(
            allocation_id,
            lambda allocation, found: allocation_policy.resolve(
                allocation, found, spent_usd_micros=spent_usd_micros, now=now
            ),
        )

    async def _lease_step(
        self, allocation_id: str, decide: Callable[[Allocation, Sequence[Account]], AllocationResult]
    ) -> AllocationResult:
        fields = (
            await in_time(self._allocations.document(allocation_id).get(**CALL), "read of an allocation")
        ).to_dict()
        if fields is None:
            return AllocationResult(writes=False)
        names = read(Allocation, fields, STORED_AS).accounts
        return await self._step(
            allocation_id,
            names,
            lambda allocation, found: (
                AllocationResult(writes=False) if allocation is None else decide(allocation, found)
            ),
        )

    async def _step(
        self,
        allocation_id: str | None,
        names: Sequence[str],
        decide: Decide,
        *,
        unless: LedgerEntry | None = None,
        eager: bool = False,
    ) -> AllocationResult:
        """Read, decide, and write if nothing has changed in between. Repeat until it succeeds or the deadline passes.

        Args:
            allocation_id: The allocation to read and write.
            names: The accounts to read and write.
            decide: The policy function.
            unless: Nothing is done when this entry exists already.
            eager: Whether a request waits for the step, so that it pauses less than others.
        """
        try:
            async with asyncio.timeout(DEADLINE_S), self._turn:
                clock, pauses = asyncio.get_running_loop().time, 1 if eager else YIELDS
                while True:
                    started = clock()
                    result = await self._try_step(allocation_id, names, decide, unless)
                    if result is not None:
                        return result
                    pauses = min(2 * pauses, PAUSES_MAX)
                    await asyncio.sleep(random.uniform(0, min(pauses * (clock() - started), PAUSE_S_MAX)))
        except TimeoutError as error:
            raise StoreUnavailable("The spend ledger is too busy, or does not answer. Try again later.") from error

    async def _try_step(
        self, allocation_id: str | None, names: Sequence[str], decide: Decide, unless: LedgerEntry | None
    ) -> AllocationResult | None:
        """Try a step once; None: another writer changed a document first."""
        wanted = [self._accounts.document(_named(name)) for name in names]
        if allocation_id is not None:
            wanted.append(self._allocations.document(allocation_id))
        if unless is not None:
            wanted.append(self._entries.document(unless.entry_id))
        found = await in_time(self._read(wanted), "read of accounts")
        if unless is not None and (there := found[f"ledger/{unless.entry_id}"]).exists:
            _check_same(unless, read(LedgerEntry, there.to_dict()))
            return AllocationResult(writes=False)
        documents = [found[f"accounts/{_named(name)}"] for name in names]
        kept = [_account(name, document) for name, document in zip(names, documents, strict=True)]
        there = found.get(f"leases/{allocation_id}")
        allocation = read(Allocation, there.to_dict(), STORED_AS) if there is not None and there.exists else None
        result = decide(allocation, [self._limited(account) for account in kept])
        if not result.writes:
            return result

        batch = self._client.batch()
        for account, before, document in zip(result.accounts, kept, documents, strict=True):
            # Configured limits are not stored, as the configuration may change.
            self._write(batch, document, plain(replace(account, limits=before.limits), STORED_AS))
        if there is not None:
            self._write(batch, there, plain(result.allocation, STORED_AS) if result.allocation is not None else None)
        for entry in result.entries:
            batch.create(self._entries.document(entry.entry_id), _document(entry))
        self._count(batch, result.entries, allocation_id or result.entries[0].entry_id)
        try:
            await in_time(batch.commit(**CALL), "write of accounts", answers=CONTENDED)
        except CONTENDED:
            return None
        return result

    async def _read(self, wanted: list[Any]) -> dict[str, Any]:
        """Read documents as of one instant, by collection and id."""
        return {
            "/".join(document.reference.path.split("/")[-2:]): document
            async for document in self._client.get_all(wanted, **CALL)
        }

    def _write(self, batch: Any, before: Any, fields: Mapping[str, Any] | None) -> None:
        """Write a document on condition that it has not changed since it was read."""
        if not before.exists:
            if fields is not None:
                batch.create(before.reference, fields)
            return
        unchanged = self._client.write_option(last_update_time=before.update_time)
        if fields is None:
            batch.delete(before.reference, option=unchanged)
        else:
            batch.update(before.reference, fields, option=unchanged)

    def _count(self, batch: Any, entries: Sequence[LedgerEntry], writer: str) -> None:
        """Add to the writer's part of the balances of all accounts, once for each."""
        part = zlib.crc32(writer.encode()) % PARTS
        sums: dict[tuple[str, str], list[int]] = defaultdict(list)
        for entry in entries:
            if entry.kind in LENDING:
                continue
            for window in (month_of(entry.at), day_of(entry.at)):
                for account in entry.accounts:
                    sums[window, account].append(entry.spent_usd_micros)
        for (window, account), amounts in sums.items():
            change = {
                "account": account,
                "window": window,
                "spent_usd_micros": Increment(sum(amounts)),
                "entries": Increment(len(amounts)),
            }
            batch.set(self._balances.document(f"{window}:{_named(account)}:{part}"), change, merge=True)

    async def balances(self, window: str) -> Sequence[Balance]:
        query = self._balances.where(filter=FieldFilter("window", "==", window)).limit(LISTED_MAX * PARTS)
        found = await in_time(query.get(**CALL), "list of balances")
        sums: dict[str, Balance] = {}
        for part in (read(Balance, document.to_dict()) for document in found):
            sums[part.account] = sums[part.account] + part if part.account in sums else part
        return [sums[account] for account in sorted(sums)]

    async def entries(self, *, limit: int) -> Sequence[LedgerEntry]:
        query = self._entries.order_by("at", direction=Query.DESCENDING).limit(limit)
        return [
            read(LedgerEntry, document.to_dict())
            for document in await in_time(query.get(**CALL), "list of ledger entries")
        ]

    async def instance_settlements(self, day: str) -> Sequence[LedgerEntry]:
        query = self._entries.where(filter=FieldFilter("rented_on", "==", day)).limit(LISTED_MAX)
        found = await in_time(query.get(**CALL), "list of instance settlements")
        return [read(LedgerEntry, document.to_dict()) for document in sorted(found, key=lambda document: document.id)]

    async def actions(self, *, limit: int) -> Sequence[LedgerEntry]:
        query = self._entries.where(filter=FieldFilter("action", "==", True))
        query = query.order_by("at", direction=Query.DESCENDING).limit(limit)
        return [
            read(LedgerEntry, document.to_dict())
            for document in await in_time(query.get(**CALL), "list of budget actions")
        ]

    async def freezes(self) -> Sequence[Freeze]:
        found = await in_time(self._freezes.limit(LISTED_MAX).get(**CALL), "read of freezes")
        return sorted((read(Freeze, document.to_dict()) for document in found), key=lambda freeze: freeze.since)

    async def accounts(self) -> Sequence[Account]:
        found = await in_time(self._accounts.limit(LISTED_MAX).get(**CALL), "list of accounts")
        kept = {
            account.name: account for account in (read(Account, document.to_dict(), STORED_AS) for document in found)
        }
        names = sorted({*kept, *self._declared})
        return [self._limited(kept.get(name, Account(name=name))) for name in names]

    async def limited(self, accounts: Sequence[str]) -> Sequence[Account]:
        documents = [self._accounts.document(_named(name)) for name in accounts]
        found = await in_time(self._all(documents), "read of limits")
        kept = {
            account.name: account
            for account in (read(Account, one.to_dict(), STORED_AS) for one in found if one.exists)
        }
        every = (self._limited(kept.get(name, Account(name=name))) for name in accounts)
        return [account for account in every if account.limits]

    async def _all(self, documents: list[Any]) -> list[Any]:
        return [one async for one in self._client.get_all(documents, **CALL)]

    async def limit(self, account: str, period: Period, limit: Limit | None) -> None:
        document = self._accounts.document(_named(account))
        async with asyncio.timeout(DEADLINE_S):
            while True:
                before = await in_time(document.get(**CALL), "read of a limit")
                kept = [one for one in _account(account, before).limits if one.period is not period]
                limits = [plain(one) for one in (*kept, *([limit] if limit is not None else []))]
                batch = self._client.batch()
                # The usage belongs to the steps of allocations, so only the limits are written.
                self._write(batch, before, {"limits": limits} if before.exists else {"name": account, "limits": limits})
                try:
                    await in_time(batch.commit(**CALL), "write of a limit", answers=CONTENDED)
                except CONTENDED:
                    continue
                return

    def _limited(self, account: Account) -> Account:
        return replace(account, limits=(*account.limits, *self._declared.get(account.name, ())))


def _named(account: str) -> str:
    return account.replace("/", "~")


def _account(name: str, document: Any) -> Account:
    return read(Account, {"name": name, **(document.to_dict() or {})}, STORED_AS)


def _document(entry: LedgerEntry) -> dict[str, Any]:
    # Two extra fields for queries: `action` lists actions in order, `rented_on` a day's settlements of instances.
    rented = {"rented_on": day_of(entry.at)} if is_instance_settlement(entry) else {}
    return {**plain(entry), "action": entry.kind in ACTIONS, **rented}


def _check_same(entry: LedgerEntry, there: LedgerEntry) -> None:
    if (entry.accounts, entry.spent_usd_micros) != (there.accounts, there.spent_usd_micros):
        raise Conflict(f"The spend ledger has entry {entry.entry_id} already, with other accounts or another amount.")
