"""The receipt of a request: what was asked, who was tried and why, what came of it and what it cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from goblin.core.errors import NotFound, StoreUnavailable
from goblin.gateway.domain.chat import Usage
from goblin.gateway.domain.requests import EmbeddingsRequest, InferenceRequest
from goblin.gateway.policy.route import Choice, NoRoute, Route
from goblin.gateway.ports import ApiKey, AttemptRecord, CandidateRecord, RequestRecord, RequestStore
from goblin.gateway.upstream_attempt import Attempt

log = logging.getLogger(__name__)

RECEIPT_LIFE = timedelta(days=30)


async def find(store: RequestStore, key: ApiKey, request_id: str) -> RequestRecord:
    """The receipt of a request of the same caller. Raises `NotFound`, also for somebody else's."""
    found = await store.get(request_id) if request_id.isalnum() and len(request_id) <= 64 else None
    if found is None or found.key_digest != key.digest:
        raise NotFound(f"There is no receipt `{request_id[:64]}`.")
    return found


async def put(store: RequestStore, record: RequestRecord) -> None:
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
    attempts: Sequence[Attempt],
    provider: str | None,
    outcome: str,
    usage: Usage | None,
    usage_estimated: bool,
    cost_usd_micros: int,
    created_at: datetime,
    started_s: float,
    duration_s: float,
) -> RequestRecord:
    """All that is known of a request that has ended.

    Args:
        unpaid: Endpoints that were not asked for want of money, each with the reason.
        started_s: When it came, in monotonic seconds, as `Attempt.started_s`.
        The others: as the record's fields of that name.
    """
    rejected = route.rejected if route is not None else ()
    firsts = [attempt.first_token_ms for attempt in attempts if attempt.first_token_ms is not None]
    used = usage or Usage()
    return RequestRecord(
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


def _candidate(choice: Choice) -> CandidateRecord:
    forecast = choice.forecast
    return CandidateRecord(
        endpoint=choice.endpoint.name,
        reason=choice.reason,
        predicted_first_token_ms=round(forecast.first_token_ms) if forecast is not None else None,
        predicted_cost_usd_micros=choice.cost_usd_micros,
    )


def _attempt(attempt: Attempt, started_s: float) -> AttemptRecord:
    return replace(attempt.record(), began_ms=round((attempt.started_s - started_s) * 1000))
