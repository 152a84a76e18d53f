"""Payments of one request: reserve the worst case of each attempt before it is sent, then settle what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from goblin.billing.budget_client import BudgetClient, Reservation, request_settlement
from goblin.billing.domain.ledger import named
from goblin.billing.policy import prices
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.core.endpoints import Endpoint, Price
from goblin.core.errors import BudgetExhausted, GoblinError, StoreUnavailable
from goblin.core.money import show_usd
from goblin.gateway.domain.chat import Usage
from goblin.gateway.domain.requests import InferenceRequest
from goblin.gateway.policy import blind, worst_case
from goblin.gateway.policy.passed_fields import NothingLeft, PassedFields, passed_fields
from goblin.gateway.policy.uptime import UptimeSession
from goblin.gateway.policy.worst_case import Unpriced
from goblin.gateway.uptime import UptimeSessions

JOB = "job:"
"""The prefix, before the job's id, of the names of keys that belong to a job's attempts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentRefusal:
    """An endpoint that was skipped because an attempt could not be paid or asked, and the reason."""

    endpoint: Endpoint
    error: GoblinError


@dataclass(slots=True)
class Payment:
    """The money for one upstream attempt."""

    budget_client: BudgetClient
    uptime: UptimeSessions
    endpoint: Endpoint
    request: InferenceRequest
    """The request to send: without what is not passed on, with the output limit that bounds its cost."""
    reservation: Reservation | None
    """None if the endpoint is free."""
    session: UptimeSession | None = None
    """Set if the endpoint bills uptime."""
    dropped: tuple[str, ...] = ()
    """What of the caller's request is not passed on, by name."""

    def left_s(self) -> float:
        """Return how many more seconds the attempt may take: only as long as the reservation covers."""
        return math.inf if self.session is None else self.session.left_s(self.uptime.now_s())

    def leave(self, *, woke: bool) -> None:
        """End the uptime session, if any: the machine no longer works for the request. A second call does nothing."""
        if self.session is not None:
            self.session.end(self.uptime.now_s(), woke=woke)

    def cost_usd_micros(self, usage: Usage | None) -> int:
        """Compute the cost of the attempt, which is never more than was reserved.

        The reservation covers all that the endpoint was asked for. One that sends any amount of text, or claims any
        number of tokens, must not use up a budget with it; if its bill is higher after all, settlement finds it.

        Args:
            usage: None when no tokens were used.
        """
        price, cost = self.endpoint.price, 0
        if self.session is not None:
            cost = self.session.cost_usd_micros(self.session.charged_s or 0.0)
        if usage is None or price is None:
            return cost
        said = cached(usage)
        tokens = price.cost_usd_micros(
            input_tokens=max(usage.prompt_tokens, said.read + said.written),
            output_tokens=usage.completion_tokens,
            cache_read_tokens=said.read,
            cache_write_tokens=said.written,
            cache_write_1h_tokens=min(said.written_1h, said.written),
            uses=said.uses,
        )
        if self.reservation is not None:
            tokens = min(tokens, max(0, self.reservation.amount_usd_micros - cost))
        return cost + tokens

    async def settle(self, usage: Usage | None, *, estimated: bool = False) -> None:
        """Replace the reserved worst case by the actual cost. A second call does nothing. Never raises."""
        if self.reservation is None:
            return
        self.leave(woke=usage is not None)
        cost, said = self.cost_usd_micros(usage), []
        if usage is not None:
            counted = "about " if estimated else ""
            said.append(f"{counted}{usage.prompt_tokens} tokens in, {usage.completion_tokens} out")
            said += _cache_note(usage, self.endpoint.price)
        if self.session is not None and self.session.charged_s:
            said.append(f"{self.session.charged_s:.1f} s awake")
        entry = None
        if usage is not None or cost:
            model = named("model", self.request.model)
            entry = request_settlement(
                self.reservation, cost, model=model, note=f"{self.endpoint.name}: {', '.join(said)}"
            )
        await self.budget_client.settle(self.reservation, entry)


class Payer:
    """Pays the upstream attempts of one request."""

    def __init__(
        self,
        budget_client: BudgetClient,
        uptime: UptimeSessions,
        prices: Mapping[tuple[str, str], Price],
        *,
        request_id: str,
        key_name: str,
        asker_name: str = "",
        why_frozen: Callable[[Sequence[str]], str] = lambda _: "",
    ) -> None:
        self._budget_client = budget_client
        self._uptime = uptime
        self._prices = prices
        self._request_id = request_id
        self._payers = _payers(key_name, asker_name)
        self._why_frozen = why_frozen
        self._attempts = 0
        self.refusals: list[PaymentRefusal] = []
        """Every endpoint that was skipped because an attempt could not be paid."""

    async def pay(self, endpoint: Endpoint, request: InferenceRequest) -> Payment | None:
        """Reserve the worst case of an upstream attempt; None when that fails, with the reason in `refusals`."""
        model = endpoint.upstream_model or request.model
        endpoint = replace(endpoint, price=worst_case.price_of(self._prices, endpoint, model))
        passed = passed_fields(request, endpoint)
        if isinstance(passed, NothingLeft):
            self.refusals.append(PaymentRefusal(endpoint=endpoint, error=passed.error))
            return None
        if prices.is_free(endpoint):
            return Payment(self._budget_client, self._uptime, endpoint, passed.request, None, dropped=passed.dropped)
        found = await self._reserve(endpoint, passed.request)
        for plainer in _plainer(request, endpoint):
            if not isinstance(found, BudgetExhausted):
                break
            if plainer.dropped != passed.dropped:
                passed, found = plainer, await self._reserve(endpoint, plainer.request)
        if isinstance(found, Payment):
            found.dropped = passed.dropped
            return found
        self.refusals.append(PaymentRefusal(endpoint=endpoint, error=found))
        return None

    async def _reserve(self, endpoint: Endpoint, request: InferenceRequest) -> Payment | GoblinError:
        bound = worst_case.worst_case(request, endpoint)
        if isinstance(bound, Unpriced):
            return BudgetExhausted(f"Endpoint {endpoint.name} was skipped: {bound.reason}.", code="price_unknown")
        self._attempts += 1
        key, *others = self._payers
        if reason := self._why_frozen((key, *others, f"{endpoint.provider}/{key.removeprefix('key/')}")):
            return BudgetExhausted(f"Endpoint {endpoint.name} was skipped: {reason}.")
        session, most = self._uptime.begin_session(endpoint), bound.cost_usd_micros
        if session is not None:
            most += session.cost_usd_micros(session.worst_s())
        reserved: Reservation | InsufficientBudget | None = None
        try:
            reserved = await self._budget_client.reserve(
                f"{endpoint.provider}/{key.removeprefix('key/')}",
                (key, *others),
                self._request_id if self._attempts == 1 else f"{self._request_id}:{self._attempts}",
                most,
            )
        except StoreUnavailable as error:
            return error
        finally:
            if session is not None and not isinstance(reserved, Reservation):
                session.end(session.began_s, woke=False)
        if isinstance(reserved, InsufficientBudget):
            return BudgetExhausted(_said(reserved))
        return Payment(
            self._budget_client, self._uptime, endpoint, worst_case.limited(request, bound), reserved, session
        )


def _plainer(request: InferenceRequest, endpoint: Endpoint) -> Iterator[PassedFields]:
    """Yield what may be sent where no budget covers the whole request: without searches, then without files as well.

    Before each search the whole context may be read again, and a file may fill it: their worst case is far from what
    they mostly cost. A session goes on without them, and its model is told.
    """
    if endpoint.price is not None and endpoint.price.server_tools:
        endpoint = replace(endpoint, price=replace(endpoint.price, server_tools={}))
        if isinstance(plainer := passed_fields(request, endpoint), PassedFields):
            yield plainer
    if (fewer := blind.without_files(request)) is not None and isinstance(
        plainer := passed_fields(fewer, endpoint), PassedFields
    ):
        yield plainer


class CachedTokens(NamedTuple):
    """What of a usage has a price of its own."""

    read: int
    written: int
    written_1h: int
    """Those of `written` that stay in the cache for an hour."""
    uses: Mapping[str, int]
    """How often each tool that the provider runs was used."""


def cached(usage: Usage) -> CachedTokens:
    """Read the details of a usage. Counts that make no sense are none."""
    details = usage.prompt_tokens_details or {}

    def count(name: str) -> int:
        said = details.get(name)
        return said if isinstance(said, int) and not isinstance(said, bool) and said > 0 else 0

    uses = {tool: count(f"{tool}_requests") for tool in ("web_search", "web_fetch")}
    return CachedTokens(
        min(count("cached_tokens"), max(usage.prompt_tokens, 0)),
        count("cache_creation_tokens"),
        count("cache_creation_1h_tokens"),
        {tool: times for tool, times in uses.items() if times},
    )


def _cache_note(usage: Usage, price: Price | None) -> list[str]:
    found = cached(usage)
    if not (found.read or found.written) or price is None:
        return []
    full = ", at the full price" if found.read and price.cache_read_usd_micros_per_mtok is None else ""
    return [f"{found.read} from the cache{full}", f"{found.written} into it"]


def _payers(key_name: str, asker_name: str) -> tuple[str, ...]:
    """List the accounts of a request besides its provider's: its key's, and its job's for the key of an attempt.

    An attempt's key has no account of its own where another key asked for the job: that one pays.
    """
    key = named("key", asker_name or key_name)
    return (key, named("job", key_name.removeprefix(JOB))) if key_name.startswith(JOB) else (key,)


def payment_error(refusals: Sequence[PaymentRefusal]) -> GoblinError | None:
    """Choose the error for a caller whose request could not be paid anywhere; None when money was not the reason.

    An unreachable ledger comes first, because it is temporary; then an exhausted budget; then an unknown price.
    """

    def order(refusal: PaymentRefusal) -> int:
        if isinstance(refusal.error, StoreUnavailable):
            return 0
        return 1 if refusal.error.code == BudgetExhausted.code else 2

    return min(refusals, key=order).error if refusals else None


def rejected(refusals: Sequence[PaymentRefusal]) -> dict[str, str]:
    """Return, for the receipt, the skipped endpoints and the reasons."""
    return {refusal.endpoint.name: refusal.error.message for refusal in refusals}


def _said(short: InsufficientBudget) -> str:
    again = f" The budget resets at {short.resets_at:%Y-%m-%dT%H:%M:%SZ}." if short.resets_at else ""
    return (
        f"The {short.period} budget of {short.account}, {show_usd(short.limit_usd_micros)}, has "
        f"{show_usd(short.left_usd_micros)} left, and this request may cost up to {show_usd(short.need_usd_micros)}."
        f"{again}"
    )
