"""What a request pays for its attempts: nothing is sent that is not paid for, and what is free goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from goblin.domain.accounts import Limit, Period
from goblin.domain.models import Price
from goblin.errors import BudgetExhausted, Fault, ProviderUnavailable, StoreUnavailable
from tests.fakes.inference import ScriptedProvider, World, world
from tests.services.test_chat import ask, asked, receipt, scripted

PRICE = Price(input_usd_micros_per_mtok=1_000_000, output_usd_micros_per_mtok=1_000_000)
PAID: dict[str, Any] = {"price": PRICE}
CENT = {"key/tests": (Limit(period=Period.MONTH, limit_usd_micros=10_000),)}


def shop(**providers: ScriptedProvider) -> World:
    """Endpoints whose names begin with `p` cost something."""
    return world(endpoints={name: PAID for name in providers if name.startswith("p")}, **providers)


async def test_over_budget_the_endpoint_is_skipped_and_the_receipt_says_so() -> None:
    here = shop(paid=ScriptedProvider(), free=ScriptedProvider())
    here.ledger.declared = CENT
    heard = await ask(here, asked(max_tokens=50_000))
    assert heard.error is None
    assert here.providers["paid"].requests == 0
    kept = receipt(here)
    assert kept.provider == "free"
    assert "$0.01 left" in kept.rejected["paid"]
    assert here.ledger.settled() == []


async def test_when_nothing_is_left_the_caller_hears_how_much_and_until_when() -> None:
    here = shop(paid=ScriptedProvider(), plain=ScriptedProvider())
    here.ledger.declared = CENT
    heard = await ask(here, asked(max_tokens=50_000))
    assert isinstance(heard.error, BudgetExhausted)
    assert heard.refused
    assert "starts anew at 2026-12-01T00:00:00Z" in heard.error.message
    assert here.providers["paid"].requests + here.providers["plain"].requests == 0


async def test_a_silent_ledger_stops_what_costs_and_not_what_is_free() -> None:
    here = shop(paid=ScriptedProvider())
    await ask(here)  # The router has looked, and nothing is frozen.
    here.ledger.down = True
    here.clock.forward(30)
    heard = await ask(here)
    assert isinstance(heard.error, StoreUnavailable)
    assert here.providers["paid"].requests == 1
    both = shop(paid=ScriptedProvider(), free=ScriptedProvider())
    both.ledger.down = True
    assert (await ask(both)).error is None
    assert both.providers["paid"].requests == 0


async def test_every_attempt_is_paid_and_the_refused_ones_cost_nothing() -> None:
    failing = scripted(ProviderUnavailable("full", fault=Fault.CAPACITY))
    here = shop(pfull=failing, paid=ScriptedProvider())
    assert (await ask(here, asked(max_tokens=10))).error is None
    await here.deps.spender.close()
    (entry,) = here.ledger.settled()
    assert entry.amount_usd_micros == receipt(here).cost_usd_micros == 13
    assert "paid" in entry.note
    assert await here.ledger.leases() == []


async def test_what_was_put_aside_bounds_what_is_sent() -> None:
    here = shop(paid=ScriptedProvider())
    here.ledger.declared = {"total": (Limit(period=Period.DAY, limit_usd_micros=4_096 + 300),)}
    assert (await ask(here)).error is None  # Our own limit, and the prompt.
    here.ledger.declared = {"total": (Limit(period=Period.DAY, limit_usd_micros=4_096),)}
    assert isinstance((await ask(here)).error, BudgetExhausted)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unknown_price_is_refused(stream: bool) -> None:
    here = world(endpoints={"dark": {"price": None}}, dark=ScriptedProvider())
    heard = await ask(here, asked(stream=stream))
    assert isinstance(heard.error, BudgetExhausted)
    assert heard.error.code == "price_unknown"
    assert here.providers["dark"].requests == 0


async def test_what_an_attempts_key_asks_for_is_paid_from_its_jobs_budget() -> None:
    here = shop(paid=ScriptedProvider())
    digest, key = next(iter(here.keys.keys.items()))
    here.keys.keys[digest] = replace(key, name="job:j")
    here.ledger.declared = {"job/j": (Limit(period=Period.LIFETIME, limit_usd_micros=10_000),)}
    assert (await ask(here, asked(max_tokens=100))).error is None
    (entry,) = here.ledger.settled()
    assert entry.accounts == ("total", "openai", "openai/job-j", "key/job-j", "job/j", "model/m")
    heard = await ask(here, asked(max_tokens=50_000))
    assert isinstance(heard.error, BudgetExhausted)
    assert "budget of job/j" in heard.error.message
    assert here.providers["paid"].requests == 1
