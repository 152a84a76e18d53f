"""What one request pays: each attempt's worst case is put aside before it is sent, and what it cost is settled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from goblin.billing.budget_client import BudgetClient, Reservation, request_settlement
from goblin.billing.domain.ledger import named
from goblin.billing.policy import prices
from goblin.billing.policy.allocation import InsufficientBudget
from goblin.core.endpoints import Endpoint, Price
from goblin.core.errors import BudgetExhausted, GoblinError, StoreUnavailable
from goblin.core.money import show_usd
from goblin.gateway.domain.chat import Usage
from goblin.gateway.domain.requests import InferenceRequest
from goblin.gateway.policy import worst_case
from goblin.gateway.policy.uptime import UptimeSession
from goblin.gateway.policy.worst_case import Unpriced
from goblin.gateway.uptime import UptimeSessions

JOB = "job:"
"""How the keys of attempts are called, before the job's id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaymentRefusal:
    """Why an endpoint is not asked."""

    endpoint: Endpoint
    error: GoblinError


@dataclass(slots=True)
class Payment:
    """The money for one attempt."""

    budget_client: BudgetClient
    uptime: UptimeSessions
    endpoint: Endpoint
    request: InferenceRequest
    """As it may be sent: with the limit that bounds it."""
    reservation: Reservation | None
    """None where nothing costs anything."""
    session: UptimeSession | None = None
    """Where the time of a machine is billed."""

    def left_s(self) -> float:
        """How long it may take at the most: no longer than what was put aside covers."""
        return math.inf if self.session is None else self.session.left_s(self.uptime.now_s())

    def leave(self, *, woke: bool) -> None:
        """The machine is done with it, whenever it is settled; only the first time counts."""
        if self.session is not None:
            self.session.end(self.uptime.now_s(), woke=woke)

    def cost_usd_micros(self, usage: Usage | None) -> int:
        """What it comes to; None: nothing was used."""
        price, cost = self.endpoint.price, 0
        if self.session is not None:
            cost = self.session.cost_usd_micros(self.session.charged_s or 0.0)
        if usage is None or price is None:
            return cost
        return cost + price.cost_usd_micros(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)

    async def settle(self, usage: Usage | None, *, estimated: bool = False) -> None:
        """Replace the worst case by what it cost; a second time does nothing. Never raises."""
        if self.reservation is None:
            return
        self.leave(woke=usage is not None)
        cost, said = self.cost_usd_micros(usage), []
        if usage is not None:
            counted = "about " if estimated else ""
            said.append(f"{counted}{usage.prompt_tokens} tokens in, {usage.completion_tokens} out")
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
    """One request, over all its attempts."""

    def __init__(
        self,
        budget_client: BudgetClient,
        uptime: UptimeSessions,
        prices: Mapping[tuple[str, str], Price],
        *,
        request_id: str,
        key_name: str,
        why_frozen: Callable[[Sequence[str]], str] = lambda _: "",
    ) -> None:
        self._budget_client = budget_client
        self._uptime = uptime
        self._prices = prices
        self._request_id = request_id
        self._key_name = key_name
        self._why_frozen = why_frozen
        self._attempts = 0
        self.refusals: list[PaymentRefusal] = []
        """Every endpoint that was not asked for want of money."""

    async def pay(self, endpoint: Endpoint, request: InferenceRequest) -> Payment | None:
        """Put the worst case of an attempt aside; None when that cannot be, and why is among the refusals."""
        model = endpoint.upstream_model or request.model
        endpoint = replace(endpoint, price=worst_case.price_of(self._prices, endpoint, model))
        if prices.is_free(endpoint):
            return Payment(self._budget_client, self._uptime, endpoint, request, None)
        found = await self._reserve(endpoint, request)
        if isinstance(found, Payment):
            return found
        self.refusals.append(PaymentRefusal(endpoint=endpoint, error=found))
        return None

    async def _reserve(self, endpoint: Endpoint, request: InferenceRequest) -> Payment | GoblinError:
        bound = worst_case.worst_case(request, endpoint)
        if isinstance(bound, Unpriced):
            return BudgetExhausted(f"{endpoint.name} is not asked: {bound.reason}.", code="price_unknown")
        self._attempts += 1
        key, *others = _payers(self._key_name)
        if reason := self._why_frozen((key, *others, f"{endpoint.provider}/{key.removeprefix('key/')}")):
            return BudgetExhausted(f"{endpoint.name} is not asked: {reason}.")
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


def _payers(key_name: str) -> tuple[str, ...]:
    """Whose budgets a request counts in beside its provider's: its key's, and of an attempt's key its job's."""
    key = named("key", key_name)
    return (key, named("job", key_name.removeprefix(JOB))) if key_name.startswith(JOB) else (key,)


def payment_error(refusals: Sequence[PaymentRefusal]) -> GoblinError | None:
    """What to tell a caller for whom nobody was asked; None when money was not the reason.

    That nobody knows what is left may mend itself and is said first.
    """

    def order(refusal: PaymentRefusal) -> int:
        if isinstance(refusal.error, StoreUnavailable):
            return 0
        return 1 if refusal.error.code == BudgetExhausted.code else 2

    return min(refusals, key=order).error if refusals else None


def rejected(refusals: Sequence[PaymentRefusal]) -> dict[str, str]:
    """For the receipt: endpoints and why they were not asked."""
    return {refusal.endpoint.name: refusal.error.message for refusal in refusals}


def _said(short: InsufficientBudget) -> str:
    again = f" It starts anew at {short.resets_at:%Y-%m-%dT%H:%M:%SZ}." if short.resets_at else ""
    return (
        f"The {short.period} budget of {short.account}, {show_usd(short.limit_usd_micros)}, has "
        f"{show_usd(short.left_usd_micros)} left, and this request may cost up to {show_usd(short.need_usd_micros)}."
        f"{again}"
    )
