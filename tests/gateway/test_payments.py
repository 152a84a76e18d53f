"""What a request pays for its attempts: nothing is sent that is not paid for, and what is free goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import EntryKind, Freeze, LedgerEntry
from goblin.billing.policy.budgets import why_frozen
from goblin.core.endpoints import Price
from goblin.core.errors import BudgetExhausted, Fault, InvalidRequest, ProviderUnavailable, StoreUnavailable
from goblin.gateway.domain.chat import ChatChunk, Usage
from goblin.gateway.domain.requests import ChatRequest
from goblin.gateway.policy.tokens import COUNTED_MAX
from goblin.web import anthropic_requests
from tests.fakes.inference import FakeClock, ScriptedProvider, World, says, world
from tests.gateway.test_inference import ask, asked, receipt, scripted

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
    assert "resets at 2026-12-01T00:00:00Z" in heard.error.message
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


async def test_a_frozen_key_spends_nothing_and_what_is_free_goes_on() -> None:
    here = shop(paid=ScriptedProvider(), free=ScriptedProvider())
    note = LedgerEntry(
        entry_id="f", kind=EntryKind.FREEZE, account="key/tests", amount_usd_micros=0, at=here.clock.now(), note="over"
    )
    await here.ledger.record(note)
    assert (await ask(here)).error is None
    assert receipt(here).rejected["paid"] == "Endpoint paid was skipped: over."
    assert here.providers["paid"].requests == 0
    alone = shop(paid=ScriptedProvider())
    await alone.ledger.record(note)
    heard = await ask(alone)
    assert isinstance(heard.error, BudgetExhausted)
    assert heard.error.code == "budget_exhausted"


async def test_every_attempt_is_paid_and_the_refused_ones_cost_nothing() -> None:
    failing = scripted(ProviderUnavailable("full", fault=Fault.CAPACITY))
    here = shop(pfull=failing, paid=ScriptedProvider())
    assert (await ask(here, asked(max_tokens=10))).error is None
    await here.deps.budget_client.close()
    (entry,) = here.ledger.settled()
    assert entry.amount_usd_micros == receipt(here).cost_usd_micros == 13
    assert "paid" in entry.note
    assert await here.ledger.allocations() == []


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


async def test_what_a_limited_keys_job_asks_for_is_paid_by_that_key_and_by_the_job() -> None:
    here = shop(paid=ScriptedProvider())
    digest, key = next(iter(here.keys.keys.items()))
    here.keys.keys["asker"] = replace(key, digest="asker", name="ann")
    here.keys.keys[digest] = replace(key, name="job:j", asker="asker")
    here.ledger.declared = {"key/ann": (Limit(period=Period.MONTH, limit_usd_micros=10_000),)}
    assert (await ask(here, asked(max_tokens=100))).error is None
    (entry,) = here.ledger.settled()
    assert entry.accounts == ("total", "openai", "openai/ann", "key/ann", "job/j", "model/m")
    heard = await ask(here, asked(max_tokens=50_000))
    assert isinstance(heard.error, BudgetExhausted)
    assert "budget of key/ann" in heard.error.message
    assert here.providers["paid"].requests == 1


@dataclass
class Slow(ScriptedProvider):
    """Takes its time before each step, by the clock of the world."""

    step_s: float = 8.0
    clock: FakeClock = field(default_factory=FakeClock)

    async def _play(self) -> AsyncGenerator[ChatChunk, None]:
        async with aclosing(super()._play()) as steps:
            async for item in steps:
                self.clock.forward(self.step_s)
                yield item


BY_THE_SECOND: dict[str, Any] = {"price": None, "price_usd_micros_per_hour": 3_600_000, "sleeps_after_s": 600}
"""A thousandth of a dollar each."""


def garage(limit_usd_micros: int, provider: ScriptedProvider, **more: Any) -> World:
    here = world(endpoints={"gpu": {**BY_THE_SECOND, **more}}, gpu=provider)
    here.ledger.declared = {"total": (Limit(period=Period.MONTH, limit_usd_micros=limit_usd_micros),)}
    if isinstance(provider, Slow):
        provider.clock = here.clock
    return here


async def test_a_machine_is_paid_for_its_start_its_work_and_its_tail() -> None:
    here = garage(1_000_000, Slow(steps=says("Hel", "lo")))  # Five steps of eight seconds.
    assert (await ask(here)).error is None
    assert receipt(here).cost_usd_micros == (40 + 600) * 1000
    assert (await ask(here)).error is None  # Its tail is paid already; this makes it end later.
    assert (await ask(here)).error is None
    await here.deps.budget_client.close()
    first, second, third = here.ledger.settled()
    assert [entry.amount_usd_micros for entry in (first, second, third)] == [640_000, 40_000, 40_000]
    assert first.note == "gpu: 11 tokens in, 2 out, 640.0 s awake"


async def test_the_longest_that_it_could_take_is_put_aside_first() -> None:
    here = garage((300 + 10 + 600) * 1000 - 1, Slow())
    assert isinstance((await ask(here)).error, BudgetExhausted)
    assert here.providers["gpu"].requests == 0
    here.ledger.declared = {"total": (Limit(period=Period.MONTH, limit_usd_micros=(300 + 10 + 600) * 1000),)}
    here.clock.forward(1)
    assert (await ask(here)).error is None


async def test_what_takes_longer_than_was_paid_for_is_cut_off() -> None:
    here = garage(10_000_000, Slow(steps=says(*"abcdefgh"), step_s=20), request_s_max=100)
    heard = await ask(here)
    assert isinstance(heard.error, ProviderUnavailable)
    assert heard.text == "abcd"
    assert here.providers["gpu"].closed == 1
    await here.deps.budget_client.close()
    (entry,) = here.ledger.settled()
    assert entry.amount_usd_micros == (100 + 600) * 1000


async def test_who_refuses_at_once_has_woken_nobody() -> None:
    here = garage(10_000_000, scripted(ProviderUnavailable("full", fault=Fault.MISSING)))
    assert (await ask(here)).error is not None
    await here.deps.budget_client.close()
    assert here.ledger.settled() == []
    assert await here.ledger.allocations() == []


async def test_no_price_for_tokens_makes_a_machine_free() -> None:
    here = garage(0, ScriptedProvider(), price=Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0))
    assert isinstance((await ask(here)).error, BudgetExhausted)
    (endpoint,) = here.deps.router.catalog.endpoints
    freeze = Freeze(entry_id="f", account="total", reason="over", since=here.clock.now())
    assert why_frozen(endpoint, [freeze]) == "over"
    assert why_frozen(replace(endpoint, sleeps_after_s=None), [freeze]) == ""  # Its bill runs anyway.


async def test_an_endpoint_that_bills_is_not_sent_what_it_could_bill_besides_and_the_receipt_says_so() -> None:
    here = shop(paid=ScriptedProvider())
    heard = await ask(here, asked(service_tier="priority", tools=[{"type": "web_search"}], temperature=0.5))
    assert heard.error is None
    (sent,) = here.providers["paid"].asked
    assert sent.body.keys() == {"model", "messages", "stream", "temperature", "max_completion_tokens"}
    (attempt,) = receipt(here).attempts
    assert attempt.dropped == ("service_tier", "tools[web_search]")


async def test_a_tool_that_nobody_may_run_can_still_be_demanded_of_nobody() -> None:
    here = shop(paid=ScriptedProvider())
    heard = await ask(here, asked(tools=[{"type": "mcp"}], tool_choice="required"))
    assert isinstance(heard.error, InvalidRequest)
    assert (heard.error.code, here.providers["paid"].requests) == ("tool_not_allowed", 0)


async def test_an_answer_to_less_than_was_asked_is_not_kept_for_others() -> None:
    here = shop(paid=ScriptedProvider())
    for _ in range(2):
        await ask(here, asked(temperature=0, plugins=[{"id": "web"}]))
    assert here.providers["paid"].requests == 2


@pytest.mark.parametrize(
    ("asked_tokens", "answered"), [(-5, -7), (-(2**62), 1), (2**62, 1), (1, 2**62), (COUNTED_MAX + 1, 0), (0, -1)]
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_count_that_cannot_be_one_is_estimated_and_says_so(
    asked_tokens: int, answered: int, stream: bool
) -> None:
    """Else a host could make a budget grow, or use up all of it with one answer."""
    said = says("Hel", "lo", usage=Usage(prompt_tokens=asked_tokens, completion_tokens=answered))
    here = shop(paid=ScriptedProvider(steps=said))
    heard = await ask(here, asked(stream=stream))
    assert heard.error is None
    (entry,) = here.ledger.settled()
    assert 0 < entry.amount_usd_micros < 100
    kept = receipt(here)
    assert kept.usage_estimated
    assert 0 < kept.cost_usd_micros < 100
    assert heard.usage is not None
    assert 0 < heard.usage.prompt_tokens < 100


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_far_over_its_limit_costs_what_was_reserved(stream: bool) -> None:
    """Without a count the text is counted, and an endpoint may send any amount of it."""
    here = shop(paid=ScriptedProvider(steps=says(*["word " * 50_000] * 20, usage=None)))
    heard = await ask(here, asked(stream=stream, max_tokens=5))
    assert heard.error is None
    (entry,) = here.ledger.settled()
    assert 0 < entry.amount_usd_micros < 1000
    assert receipt(here).usage_estimated
    assert receipt(here).cost_usd_micros == entry.amount_usd_micros


CLAUDE = replace(
    PRICE, context_tokens=200_000, server_tools={"web_search": 10_000}, cache_read_usd_micros_per_mtok=100_000
)
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 1}


def searching() -> Any:
    said: dict[str, Any] = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}
    return anthropic_requests.parse(json.dumps({**said, "tools": [SEARCH], "stream": True}).encode())


@pytest.mark.parametrize(("limit_usd_micros", "tools"), [(1_000_000, [SEARCH]), (100_000, None)])
async def test_a_search_is_left_out_where_no_budget_covers_it(limit_usd_micros: int, tools: Any) -> None:
    here = world(endpoints={"claude": {"provider": "anthropic", "price": CLAUDE}}, claude=ScriptedProvider())
    here.ledger.declared = {"key/tests": (Limit(period=Period.MONTH, limit_usd_micros=limit_usd_micros),)}
    heard = await ask(here, searching())
    assert heard.error is None
    (sent,) = here.providers["claude"].asked
    assert isinstance(sent, ChatRequest)
    assert sent.original is not None
    assert sent.original.body.get("tools") == tools
    (attempt,) = receipt(here).attempts
    assert attempt.dropped == (() if tools else ("tools[web_search_20250305]",))


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
@pytest.mark.parametrize(("limit_usd_micros", "dropped"), [(1_000_000, ()), (100_000, ("files",))])
async def test_a_file_is_left_out_where_no_budget_covers_it_and_the_model_is_told(
    limit_usd_micros: int, dropped: tuple[str, ...], provider: str
) -> None:
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}
    said = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": [pdf]}], "stream": True}
    here = world(endpoints={"paid": {"provider": provider, "price": CLAUDE}}, paid=ScriptedProvider())
    here.ledger.declared = {"key/tests": (Limit(period=Period.MONTH, limit_usd_micros=limit_usd_micros),)}
    heard = await ask(here, anthropic_requests.parse(json.dumps(said).encode()))
    assert heard.error is None
    (sent,) = here.providers["paid"].asked
    assert isinstance(sent, ChatRequest)
    assert sent.original is not None
    content = (
        sent.original.body["messages"][0]["content"] if provider == "anthropic" else sent.body["messages"][0]["content"]
    )
    assert (content == [pdf] if provider == "anthropic" else content[0]["type"] == "file") == (not dropped)
    assert ("no budget covers" in json.dumps(content)) == bool(dropped)
    (attempt,) = receipt(here).attempts
    assert attempt.dropped == dropped


async def test_a_file_in_openais_wire_that_no_budget_covers_is_refused() -> None:
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}}
    here = world(endpoints={"paid": {"price": CLAUDE}}, paid=ScriptedProvider())
    here.ledger.declared = CENT
    heard = await ask(here, asked(messages=[{"role": "user", "content": [part]}]))
    assert isinstance(heard.error, BudgetExhausted)


@pytest.mark.parametrize(
    ("details", "cost", "note"),
    [
        ({}, 1000 + 10, ""),
        ({"cached_tokens": 800}, 200 + 80 + 10, "800 from the cache"),
        ({"cached_tokens": 5000}, 100 + 10, "1000 from the cache"),
        ({"cached_tokens": -1, "cache_creation_tokens": True, "web_search_requests": "9"}, 1000 + 10, ""),
        ({"cache_creation_tokens": 500}, 500 + 1000 + 10, "500 into it"),
        # No search was asked for, so none was reserved, and a claim costs no more than was.
        ({"web_search_requests": 2}, 4237, ""),
    ],
)
async def test_what_came_from_the_cache_is_charged_at_its_price(details: dict[str, Any], cost: int, note: str) -> None:
    usage = Usage(prompt_tokens=1000, completion_tokens=10, total_tokens=1010, prompt_tokens_details=details)
    here = world(endpoints={"claude": {"price": CLAUDE}}, claude=scripted(*says("x", usage=usage)))
    await ask(here)
    (entry,) = here.ledger.settled()
    assert entry.amount_usd_micros == cost
    assert note in entry.note
    plain = world(endpoints={"claude": {"price": PRICE}}, claude=scripted(*says("x", usage=usage)))
    await ask(plain)
    (entry,) = plain.ledger.settled()
    assert ("at the full price" in entry.note) == (details.get("cached_tokens", 0) > 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_claim_of_a_provider_costs_no_more_than_was_reserved(stream: bool) -> None:
    """The bill has the last word; until then one answer must not use up a budget."""
    said = says("x", usage=Usage(prompt_tokens=9, completion_tokens=40_000_000))
    here = shop(paid=ScriptedProvider(steps=said))
    await ask(here, asked(stream=stream, max_tokens=5))
    (entry,) = here.ledger.settled()
    assert 0 < entry.amount_usd_micros < 1000
