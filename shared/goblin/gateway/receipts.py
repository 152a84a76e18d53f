"""The receipt of a request: the model, the endpoints tried and why, the outcome and the cost."""

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
from goblin.gateway.domain.requests import InferenceRequest, WholeRequest
from goblin.gateway.policy.route import NoRoute, Route, RouteChoice
from goblin.gateway.ports import ApiKey, AttemptRecord, CandidateRecord, Receipt, ReceiptBatchStore, ReceiptStore
from goblin.gateway.upstream_attempt import UpstreamAttempt

log = logging.getLogger(__name__)

RECEIPT_LIFE = timedelta(days=30)


async def find(store: ReceiptStore, key: ApiKey, request_id: str) -> Receipt:
    """Find the receipt of a request of the same API key. Raises `NotFound`, also for a receipt of another key."""
    found = await store.get(request_id) if request_id.isalnum() and len(request_id) <= 64 else None
    if found is None or found.key_digest != key.digest:
        raise NotFound(f"There is no receipt `{request_id[:64]}` for this API key.")
    return found


async def put(store: ReceiptStore, record: Receipt) -> None:
    """Write a receipt. Never raises: the answer was served, and a failed write must not turn it into an error."""
    try:
        await store.put(record)
    except StoreUnavailable as error:
        log.warning("Receipt of request %s was not written: %s", record.request_id, error.message)


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
    """Build the receipt of a request that has ended.

    Args:
        unpaid: Endpoints that were skipped because no budget covered the attempt, each with the reason.
        started_s: When the request arrived, in monotonic seconds, like `UpstreamAttempt.started_s`.

        The other arguments have the meaning of the fields of `Receipt` with the same name.
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
        stream=not isinstance(request, WholeRequest) and bool(request.stream),
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
"""Receipts per write. Firestore takes up to 10 MiB at once; a receipt with every endpoint is some kilobytes."""


HELD_MAX = 5000


class ReceiptWriter:
    """A `ReceiptStore` that collects receipts and writes them in batches to a `ReceiptBatchStore`."""

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
        """Receipts that are being written now."""
        self._wrote_s = -EVERY_S
        self._turn: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._ending = False

    async def put(self, record: Receipt) -> None:
        """Take a receipt, and write at once if a write is due. Raises `StoreUnavailable` when too many are waiting."""
        if len(self._held) >= HELD_MAX:
            raise StoreUnavailable("Too many receipts are waiting to be written.")
        self._held[record.request_id] = record
        if self._turn is not None:
            return
        if self._ending or self._clock.monotonic() - self._wrote_s >= EVERY_S:
            await self._write()
        if self._held and self._turn is None:
            self._turn = asyncio.create_task(self._write_later())

    async def get(self, request_id: str) -> Receipt | None:
        """Find a receipt, whether or not it is written yet."""
        here = self._held.get(request_id) or self._going.get(request_id)
        return here or await self._store.get(request_id)

    async def close(self) -> None:
        """Write the waiting receipts, and from now on each new one at once. Called before the process ends."""
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
        """Write one batch; if that fails, its receipts keep waiting. Returns whether it was written."""
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
                log.warning("%d receipts were not written and keep waiting: %s", len(batch), error.message)
            finally:
                if not written:
                    self._held = {**batch, **self._held}
                self._going = {}
            return written
