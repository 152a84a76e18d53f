"""The receipt of a request: what was asked, who was tried and why, what came of it and what it cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice

from goblin.core.errors import NotFound, StoreUnavailable
from goblin.core.ports import Clock
from goblin.gateway.domain.chat import Usage
from goblin.gateway.domain.requests import EmbeddingsRequest, InferenceRequest
from goblin.gateway.policy.route import NoRoute, Route, RouteChoice
from goblin.gateway.ports import ApiKey, AttemptRecord, CandidateRecord, Receipt, ReceiptBatchStore, ReceiptStore
from goblin.gateway.upstream_attempt import UpstreamAttempt

log = logging.getLogger(__name__)

RECEIPT_LIFE = timedelta(days=30)


async def find(store: ReceiptStore, key: ApiKey, request_id: str) -> Receipt:
    """The receipt of a request of the same caller. Raises `NotFound`, also for somebody else's."""
    found = await store.get(request_id) if request_id.isalnum() and len(request_id) <= 64 else None
    if found is None or found.key_digest != key.digest:
        raise NotFound(f"There is no receipt `{request_id[:64]}`.")
    return found


async def put(store: ReceiptStore, record: Receipt) -> None:
    """Write one. Never raises: the answer was served, and a receipt that cannot be written must not take it back."""
    try:
        await store.put(record)
    except StoreUnavailable as error:
        log.warning("no receipt for request %s: %s", record.request_id, error.message)


def record_of(
    *,
    request_id: str,
    operation: str,
    key: ApiKey,
    request: InferenceRequest,
    route: Route | NoRoute | None,
    unpaid: Mapping[str, str],
    attempts: Sequence[UpstreamAttempt],
    provider: str | None,
    outcome: str,
    usage: Usage | None,
    usage_estimated: bool,
    cost_usd_micros: int,
    created_at: datetime,
    started_s: float,
    duration_s: float,
) -> Receipt:
    """All that is known of a request that has ended.

    Args:
        unpaid: Endpoints that were not asked for want of money, each with the reason.
        started_s: When it came, in monotonic seconds, as `UpstreamAttempt.started_s`.
        The others: as the record's fields of that name.
    """
    rejected = route.rejected if route is not None else ()
    firsts = [attempt.first_token_ms for attempt in attempts if attempt.first_token_ms is not None]
    used = usage or Usage()
    return Receipt(
        request_id=request_id,
        key_digest=key.digest,
        key_name=key.name,
        operation=operation,
        model=request.model,
        stream=not isinstance(request, EmbeddingsRequest) and bool(request.stream),
        strategy=route.strategy if isinstance(route, Route) else "",
        outcome=outcome,
        provider=provider,
        attempts=tuple(_attempt(attempt, started_s) for attempt in attempts),
        candidates=tuple(_candidate(choice) for choice in route.candidates) if isinstance(route, Route) else (),
        rejected={**{choice.endpoint.name: choice.reason for choice in rejected}, **unpaid},
        cost_usd_micros=cost_usd_micros,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        usage_estimated=usage_estimated,
        first_token_ms=round(firsts[-1]) if firsts and provider else None,
        duration_ms=round(duration_s * 1000),
        created_at=created_at,
        expires_at=created_at + RECEIPT_LIFE,
    )


def _candidate(choice: RouteChoice) -> CandidateRecord:
    forecast = choice.forecast
    return CandidateRecord(
        endpoint=choice.endpoint.name,
        reason=choice.reason,
        predicted_first_token_ms=round(forecast.first_token_ms) if forecast is not None else None,
        predicted_cost_usd_micros=choice.cost_usd_micros,
    )


def _attempt(attempt: UpstreamAttempt, started_s: float) -> AttemptRecord:
    return replace(attempt.record(), began_ms=round((attempt.started_s - started_s) * 1000))


log = logging.getLogger(__name__)


EVERY_S = 1.0


BATCH_MAX = 200
"""Firestore takes up to 10 MiB at once, and a receipt with every endpoint in it is some kilobytes."""


HELD_MAX = 5000


class ReceiptWriter:
    """The port `RequestStore` over one that writes many at once."""

    def __init__(
        self,
        store: ReceiptBatchStore,
        clock: Clock,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._pause = pause
        self._held: dict[str, Receipt] = {}
        self._going: dict[str, Receipt] = {}
        """Being written now."""
        self._wrote_s = -EVERY_S
        self._turn: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._ending = False

    async def put(self, record: Receipt) -> None:
        """Take one, and write it now if that is due. Raises `StoreUnavailable`: too many wait already."""
        if len(self._held) >= HELD_MAX:
            raise StoreUnavailable("Too many receipts wait to be written.")
        self._held[record.request_id] = record
        if self._turn is not None:
            return
        if self._ending or self._clock.monotonic() - self._wrote_s >= EVERY_S:
            await self._write()
        if self._held and self._turn is None:
            self._turn = asyncio.create_task(self._write_later())

    async def get(self, request_id: str) -> Receipt | None:
        """Find one, written or not."""
        here = self._held.get(request_id) or self._going.get(request_id)
        return here or await self._store.get(request_id)

    async def close(self) -> None:
        """Write what waits, and from now on what comes; before the process ends."""
        self._ending = True
        if self._turn is not None:
            self._turn.cancel()
        while self._held and await self._write():
            pass

    async def _write_later(self) -> None:
        try:
            while self._held:
                await self._pause(EVERY_S)
                await self._write()
        finally:
            self._turn = None

    async def _write(self) -> bool:
        """Write one batch; what cannot be written waits on."""
        async with self._one_at_a_time:
            self._wrote_s = self._clock.monotonic()
            self._going = batch = dict(islice(self._held.items(), BATCH_MAX))
            for request_id in batch:
                del self._held[request_id]
            written = False
            try:
                await self._store.put_all(tuple(batch.values()))
                written = True
            except StoreUnavailable as error:
                log.warning("%d receipts wait on: %s", len(batch), error.message)
            finally:
                if not written:
                    self._held = {**batch, **self._held}
                self._going = {}
            return written
