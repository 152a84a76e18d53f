"""Firestore: `jobs/{job_id}`, written only at the update time that was read, holders of outputs, the market history,
and attempts' keys.

A commit whose answer was lost looks like another process's write: the caller reads again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from google.api_core.datetime_helpers import DatetimeWithNanoseconds
from google.api_core.exceptions import AlreadyExists, FailedPrecondition, GoogleAPICallError, NotFound, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud.firestore import AsyncClient, AsyncTransaction, Query, async_transactional
from google.cloud.firestore_v1.base_query import FieldFilter

from goblin.core import decoding
from goblin.core.errors import Broken, StoreUnavailable
from goblin.gateway.ports import ApiKey, Scope
from goblin.gcp.firestore.documents import plain_instants
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import LEASED, AskerKey, Job
from goblin.jobs.policy.spot.market_history import MarketHistory
from goblin.jobs.ports import StoredJob, UnreadableJob

log = logging.getLogger(__name__)

DEADLINE_S = 5.0
PLACE_TRIES = 3
HOLD_TRIES = 5
STORED_AS = {"reservations": "rents", "invalid_reports": "lies"}
"""Older names under which fields of a job are stored, by present name."""
T = TypeVar("T")


async def _in_time(call: Awaitable[T], what: str) -> T:
    try:
        async with asyncio.timeout(DEADLINE_S + 0.5):
            return await call
    except (AlreadyExists, FailedPrecondition, NotFound):
        raise  # These are answers; the caller decides.
    except (GoogleAPICallError, GoogleAuthError, RetryError, TimeoutError) as error:
        raise StoreUnavailable(f"Firestore did not answer in time ({what}).") from error


class FirestoreJobs:
    """The port `JobStore`."""

    def __init__(self, client: AsyncClient) -> None:
        self._jobs = client.collection("jobs")
        self._outputs = client.collection("outputs")
        self._client = client

    async def create(self, job: Job) -> StoredJob | None:
        call = self._jobs.document(job.job_id).create(_fields(job), timeout=DEADLINE_S, retry=None)
        try:
            written = await _in_time(call, "create of a job")
        except AlreadyExists:
            return None
        return StoredJob(job=job, version=_version(written))

    async def get(self, job_id: str) -> StoredJob | None:
        call = self._jobs.document(job_id).get(timeout=DEADLINE_S, retry=None)
        found = await _in_time(call, "read of a job")
        return _stored(found) if found.exists else None

    async def replace(self, job: Job, version: str) -> StoredJob | None:
        option = self._client.write_option(last_update_time=_timestamp(version))
        # `set` takes no precondition; an update of every field is the same write.
        call = self._jobs.document(job.job_id).update(_fields(job), option=option, timeout=DEADLINE_S, retry=None)
        try:
            written = await _in_time(call, "write of a job")
        except (FailedPrecondition, NotFound):
            return None
        return StoredJob(job=job, version=_version(written))

    async def place(self, job: Job, version: str, *, limit: int) -> StoredJob | None:
        written = self._jobs.document(job.job_id)
        query = self._jobs.where(filter=FieldFilter("open", "==", True)).where(
            filter=FieldFilter("state", "in", sorted(LEASED))
        )

        @async_transactional
        async def attempt(transaction: AsyncTransaction) -> bool:
            now = await written.get(transaction=transaction, timeout=DEADLINE_S, retry=None)
            if not now.exists or _version(now) != version:
                return False
            placed = [one async for one in query.stream(transaction=transaction, timeout=DEADLINE_S, retry=None)]
            # The kind is compared here, because in the query it would need a further index.
            if sum(_has_place(one, job.spec.kind) for one in placed if one.id != job.job_id) >= limit:
                return False
            transaction.update(written, _fields(job))
            return True

        try:
            if not await _in_time(attempt(self._client.transaction(max_attempts=PLACE_TRIES)), "placing of a job"):
                return None
        except ValueError as error:
            # The client raises ValueError for a transaction that other writers kept aborting.
            raise StoreUnavailable("Other processes are placing jobs at the same time. Try again.") from error
        stored = await self.get(job.job_id)
        return stored if stored is not None and stored.job == job else None

    async def hold_output(self, uri: str, job_id: str, *, instead_of: str = "") -> str:
        document = self._outputs.document(hashlib.sha256(uri.encode()).hexdigest())
        fields = {"uri": uri, "job_id": job_id}
        for _ in range(HOLD_TRIES):
            try:
                await _in_time(document.create(fields, timeout=DEADLINE_S, retry=None), "create of an output's holder")
                return job_id
            except AlreadyExists:
                found = await _in_time(document.get(timeout=DEADLINE_S, retry=None), "read of an output's holder")
            if not found.exists:
                continue  # Given back in between.
            holder = str((found.to_dict() or {}).get("job_id"))
            if holder == job_id or holder != instead_of:
                return holder
            option = self._client.write_option(last_update_time=_timestamp(_version(found)))
            call = document.update(fields, option=option, timeout=DEADLINE_S, retry=None)
            try:
                await _in_time(call, "write of an output's holder")
                return job_id
            except (FailedPrecondition, NotFound):
                continue  # Another job was faster.
        raise StoreUnavailable(f"Other jobs are asking for {uri} at the same time. Try again.")

    async def release_output(self, uri: str, job_id: str) -> None:
        document = self._outputs.document(hashlib.sha256(uri.encode()).hexdigest())
        found = await _in_time(document.get(timeout=DEADLINE_S, retry=None), "read of an output's holder")
        if not found.exists or (found.to_dict() or {}).get("job_id") != job_id:
            return
        option = self._client.write_option(last_update_time=_timestamp(_version(found)))
        try:
            call = document.delete(option=option, timeout=DEADLINE_S, retry=None)
            await _in_time(call, "delete of an output's holder")
        except (FailedPrecondition, NotFound):
            return  # Another job has taken it over.

    async def list_open(self, limit: int) -> Sequence[StoredJob]:
        query = self._jobs.where(filter=FieldFilter("open", "==", True)).order_by("requested_at").limit(limit)
        found = await _in_time(query.get(timeout=DEADLINE_S, retry=None), "list of open jobs")
        return _readable(found)

    async def list_recent(self, limit: int, *, tenant: str | None) -> Sequence[Job]:
        # In the query, not after it: a tenant with few jobs among many must still see all of its own.
        jobs = self._jobs if tenant is None else self._jobs.where(filter=FieldFilter("owner.tenant", "==", tenant))
        query = jobs.order_by("requested_at", direction=Query.DESCENDING).limit(limit)
        found = await _in_time(query.get(timeout=DEADLINE_S, retry=None), "list of jobs")
        return [stored.job for stored in _readable(found)]


class FirestoreMarketHistory:
    """The port `MarketHistoryStore`: one document with JSON; as fields it would need thousands of index entries."""

    def __init__(self, client: AsyncClient) -> None:
        self._document = client.collection("market").document("watched")
        self._client = client

    async def load(self) -> tuple[MarketHistory, str | None]:
        found = await _in_time(self._document.get(timeout=DEADLINE_S, retry=None), "read of the market history")
        if not found.exists:
            return MarketHistory(), None
        try:
            return decoding.decode(str((found.to_dict() or {}).get("json")), MarketHistory, Broken), _version(found)
        except Broken as error:
            # Written by another version of this program: the statistics are learned again.
            log.warning("The market history cannot be read and begins anew: %s", error.message)
            return MarketHistory(), _version(found)

    async def save(self, history: MarketHistory, version: str | None) -> bool:
        fields = {"json": msgspec.json.encode(history).decode()}
        if version is None:
            call = self._document.create(fields, timeout=DEADLINE_S, retry=None)
        else:
            option = self._client.write_option(last_update_time=_timestamp(version))
            call = self._document.update(fields, option=option, timeout=DEADLINE_S, retry=None)
        try:
            await _in_time(call, "write of the market history")
        except (AlreadyExists, FailedPrecondition, NotFound):
            return False
        return True


class FirestoreAttemptKeys:
    """The port `AttemptKeys`: documents in `keys`, where the gateway looks up API keys."""

    def __init__(self, client: AsyncClient) -> None:
        self._keys = client.collection("keys")

    async def open(self, digest: str, *, name: str, until: datetime, asker: str, models: Sequence[str] | None) -> None:
        fields = {"name": name, "disabled": False, "created_at": datetime.now(UTC), "expires_at": until}
        # A rented host may send inference requests, and nothing else that keys allow.
        fields |= {"scopes": ["inference"], "asker": asker, "models": None if models is None else list(models)}
        await _in_time(self._keys.document(digest).set(fields, timeout=DEADLINE_S, retry=None), "write of a key")

    async def close(self, digest: str) -> None:
        await _in_time(self._keys.document(digest).delete(timeout=DEADLINE_S, retry=None), "delete of a key")

    async def asker(self, digest: str) -> AskerKey | None:
        found = await _in_time(self._keys.document(digest).get(timeout=DEADLINE_S, retry=None), "read of an API key")
        if not found.exists:
            return None
        try:
            key = msgspec.convert({**plain_instants(found.to_dict()), "digest": digest}, ApiKey)
        except msgspec.ValidationError as error:
            raise StoreUnavailable(f"The API key {digest[:12]} cannot be read: {error}") from error
        return AskerKey(disabled=key.disabled, expires_at=key.expires_at, runs_jobs=Scope.JOBS in key.scopes)


def _fields(job: Job) -> dict[str, Any]:
    """Convert a job to a document that a person can read in the console.

    The caller's parameters are stored as the text that came: Firestore has no lists of lists, at most 20 levels and no
    integers over 64 bits.
    """
    fields: dict[str, Any] = msgspec.to_builtins(job, builtin_types=(datetime, msgspec.Raw))
    fields["spec"]["parameters"] = bytes(job.spec.parameters).decode()
    return {STORED_AS.get(name, name): value for name, value in fields.items()}


def _readable(documents: Iterable[Any]) -> list[StoredJob]:
    """Read documents; one that cannot be read is logged and left out, and hides no other."""
    found = []
    for document in documents:
        try:
            found.append(_stored(document))
        except UnreadableJob as error:
            log.error("Left out of the list: %s", error.message)
    return found


def _stored(document: Any) -> StoredJob:
    """Read a document. Raises `UnreadableJob`: another version, or a person, may have written it."""
    fields: dict[str, Any] = {}
    try:
        fields = plain_instants(document.to_dict())
        fields["spec"]["parameters"] = msgspec.Raw(fields["spec"]["parameters"].encode())
        for name, stored_as in STORED_AS.items():
            if stored_as in fields:
                fields[name] = fields.pop(stored_as)
        job = msgspec.convert(fields, Job)
        if job.job_id != document.id:
            raise ValueError(f"it describes job {job.job_id}")
        return StoredJob(job=job, version=_version(document))
    except (*decoding.UNREADABLE, KeyError, AttributeError) as error:
        raise UnreadableJob(document.id, decoding.reason(error), lease=_lease(fields)) from error


def _lease(fields: dict[str, Any]) -> AttemptLease | None:
    try:
        return msgspec.convert(fields.get("lease"), AttemptLease)
    except decoding.UNREADABLE:
        return None


def _has_place(document: Any, kind: str) -> bool:
    """Check whether an open job, by its document, takes one of the places of a kind.

    One that cannot be read takes its place for as long as its instance may be at work. Nobody prolongs that lease, so
    it does not keep other jobs out until a person deletes it.
    """
    try:
        return _stored(document).job.spec.kind == kind
    except UnreadableJob as error:
        spec, lease = document.to_dict().get("spec"), error.lease
        if lease is None or not isinstance(spec, dict) or spec.get("kind") != kind:
            return False
        return bool(document.read_time < lease.until)


def _version(written: Any) -> str:
    """Return the update time, to the nanosecond."""
    return str(written.update_time.rfc3339())


def _timestamp(version: str) -> Any:
    return DatetimeWithNanoseconds.from_rfc3339(version).timestamp_pb()
