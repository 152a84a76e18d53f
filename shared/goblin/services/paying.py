"""What one request pays: each attempt's worst case is put aside before it is sent, and what it cost is settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from goblin.domain.chat import Usage
from goblin.domain.models import Endpoint, Price
from goblin.domain.money import named, show_usd
from goblin.domain.requests import InferenceRequest
from goblin.errors import BudgetExhausted, GoblinError, StoreUnavailable
from goblin.policy import pricing
from goblin.policy.pricing import Unpriced
from goblin.policy.spending import Shortage
from goblin.services.spending import Reservation, Spender, spent_entry

JOB = "job:"
"""How the keys of attempts are called, before the job's id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoMoney:
    """Why an endpoint is not asked."""

    endpoint: Endpoint
    error: GoblinError


@dataclass(slots=True)
class Payment:
    """The money for one attempt."""

    spender: Spender
    endpoint: Endpoint
    request: InferenceRequest
    """As it may be sent: with the limit that bounds it."""
    reservation: Reservation | None
    """None where nothing costs anything."""

    def cost_usd_micros(self, usage: Usage | None) -> int:
        """What it comes to; None: nothing was used."""
        price = self.endpoint.price
        if usage is None or price is None:
            return 0
        return price.cost_usd_micros(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)

    async def settle(self, usage: Usage | None, *, estimated: bool = False) -> None:
        """Replace the worst case by what it cost; a second time does nothing. Never raises."""
        if self.reservation is None:
            return
        entry = None
        if usage is not None:
            counted = "about " if estimated else ""
            entry = spent_entry(
                self.reservation,
                self.cost_usd_micros(usage),
                model=named("model", self.request.model),
                note=f"{self.endpoint.name}: {counted}{usage.prompt_tokens} tokens in, {usage.completion_tokens} out",
            )
        await self.spender.settle(self.reservation, entry)


class Payer:
    """One request, over all its attempts."""

    def __init__(
        self, spender: Spender, prices: Mapping[tuple[str, str], Price], *, request_id: str, key_name: str
    ) -> None:
        self._spender = spender
        self._prices = prices
        self._request_id = request_id
        self._key_name = key_name
        self._attempts = 0
        self.refusals: list[NoMoney] = []
        """Every endpoint that was not asked for want of money."""

    async def pay(self, endpoint: Endpoint, request: InferenceRequest) -> Payment | None:
        """Put the worst case of an attempt aside; None when that cannot be, and why is among the refusals."""
        model = endpoint.upstream_model or request.model
        endpoint = replace(endpoint, price=pricing.price_of(self._prices, endpoint, model))
        if pricing.is_free(endpoint):
            return Payment(self._spender, endpoint, request, None)
        found = await self._reserve(endpoint, request)
        if isinstance(found, Payment):
            return found
        self.refusals.append(NoMoney(endpoint=endpoint, error=found))
        return None

    async def _reserve(self, endpoint: Endpoint, request: InferenceRequest) -> Payment | GoblinError:
        bound = pricing.worst_case(request, endpoint)
        if isinstance(bound, Unpriced):
            return BudgetExhausted(f"{endpoint.name} is not asked: {bound.reason}.", code="price_unknown")
        self._attempts += 1
        key, *others = _payers(self._key_name)
        try:
            reserved = await self._spender.reserve(
                f"{endpoint.provider}/{key.removeprefix('key/')}",
                (key, *others),
                self._request_id if self._attempts == 1 else f"{self._request_id}:{self._attempts}",
                bound.cost_usd_micros,
            )
        except StoreUnavailable as error:
            return error
        if isinstance(reserved, Shortage):
            return BudgetExhausted(_said(reserved))
        return Payment(self._spender, endpoint, pricing.limited(request, bound), reserved)


def _payers(key_name: str) -> tuple[str, ...]:
    """Whose budgets a request counts in beside its provider's: its key's, and of an attempt's key its job's."""
    key = named("key", key_name)
    return (key, named("job", key_name.removeprefix(JOB))) if key_name.startswith(JOB) else (key,)


def why_nobody_is_paid(refusals: Sequence[NoMoney]) -> GoblinError | None:
    """What to tell a caller for whom nobody was asked; None when money was not the reason.

    That nobody knows what is left may mend itself and is said first.
    """

    def order(refusal: NoMoney) -> int:
        if isinstance(refusal.error, StoreUnavailable):
            return 0
        return 1 if refusal.error.code == BudgetExhausted.code else 2

    return min(refusals, key=order).error if refusals else None


def rejected(refusals: Sequence[NoMoney]) -> dict[str, str]:
    """For the receipt: endpoints and why they were not asked."""
    return {refusal.endpoint.name: refusal.error.message for refusal in refusals}


def _said(short: Shortage) -> str:
    again = f" It starts anew at {short.resets_at:%Y-%m-%dT%H:%M:%SZ}." if short.resets_at else ""
    return (
        f"The {short.period} budget of {short.account}, {show_usd(short.limit_usd_micros)}, has "
        f"{show_usd(short.left_usd_micros)} left, and this request may cost up to {show_usd(short.need_usd_micros)}."
        f"{again}"
    )


def spent_of(underway: Any) -> tuple[Usage | None, bool]:
    """What an attempt used, and whether that is an estimate."""
    spent = underway.spent()
    return (None, False) if spent is None else (spent.usage, spent.estimated)
