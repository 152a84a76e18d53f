import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from goblin.billing import budgets
from goblin.billing.domain.accounts import Limit, Period
from goblin.billing.domain.ledger import BudgetAction, EntryKind, LedgerEntry
from goblin.core.endpoints import Endpoint, Price
from goblin.core.errors import InvalidRequest, MalformedEvent, NotFound, StoreUnavailable
from goblin.core.events import Event
from tests.fakes.ledger import MemoryLedger
from tests.fakes.registry import FixedClock

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
PAID = Endpoint(
    name="paid", provider="openai", url="http://x",
    price=Price(input_usd_micros_per_mtok=2_000_000, output_usd_micros_per_mtok=8_000_000),
)  # fmt: skip
FREE = Endpoint(
    name="free", provider="llamacpp", url="http://x",
    price=Price(input_usd_micros_per_mtok=0, output_usd_micros_per_mtok=0),
)  # fmt: skip
OURS = {"account": "openai", "window": "2026-11", "spent_usd_micros": 10, "limit_usd_micros": 10}
BILLING = {
    "budgetDisplayName": "b", "costAmount": 10.01, "costIntervalStart": "2026-11-01T08:00:00Z", "budgetAmount": 10.0,
    "budgetAmountType": "SPECIFIED_AMOUNT", "currencyCode": "USD",
}  # fmt: skip
FROM_BILLING = {"billingAccountId": "01-23", "budgetId": "b-1", "schemaVersion": "1.0"}


@pytest.fixture
def deps() -> budgets.BudgetDeps:
    return budgets.BudgetDeps(ledger=MemoryLedger(), clock=FixedClock(NOW))


def event(body: Any, **attributes: str) -> Event:
    return Event(event_id="m", data=json.dumps(body).encode(), attributes=attributes)


async def test_a_crossing_freezes_once_and_a_thaw_holds(deps: Any) -> None:
    deps.ledger.used("openai", spent=10, at=NOW)
    await budgets.follow(event(OURS), deps)
    await budgets.follow(event({**OURS, "spent_usd_micros": 11}), deps)
    assert len(await deps.ledger.actions(limit=9)) == 1
    (lifted,) = await budgets.thaw("openai", actor="ann", wish_id="w", deps=deps)
    assert "openai" in lifted.reason
    await budgets.follow(event(OURS), deps)  # Delivered once more.
    await budgets.follow(event({**OURS, "threshold": 1.2, "spent_usd_micros": 12}), deps)  # Made up.
    assert await deps.ledger.freezes() == []


@pytest.mark.parametrize("account", ["total", "openai", "openai/ann", "key/ann", "job/1"])
async def test_an_invented_event_is_looked_into_and_does_nothing(deps: Any, account: str) -> None:
    deps.ledger.used("openai", spent=4, at=NOW)
    deps.ledger.declared = {"total": (Limit(period=Period.MONTH, limit_usd_micros=10, action=BudgetAction.FREEZE),)}
    invented = {**OURS, "account": account, "spent_usd_micros": 10**12, "limit_usd_micros": 1}
    for action in BudgetAction:
        for window in ("2026-11", "2026-11-25", "lifetime", "2026-10", "2026-12"):
            await budgets.follow(event({**invented, "action": action, "window": window, "threshold": 9}), deps)
    assert await deps.ledger.actions(limit=9) == []


async def test_cloud_billing_without_a_threshold_leaves_no_trace(deps: Any) -> None:
    await budgets.follow(event(BILLING, **FROM_BILLING), deps)
    assert await deps.ledger.entries(limit=9) == []
    for _ in range(2):
        await budgets.follow(event({**BILLING, "alertThresholdExceeded": 1.0}, **FROM_BILLING), deps)
    (freeze,) = await deps.ledger.freezes()
    assert freeze.account == "total"
    assert "$10.01 of $10.00" in freeze.reason


@pytest.mark.parametrize(
    ("body", "attributes"),
    [({}, {}), ([], {}), (OURS, FROM_BILLING), ({**OURS, "account": "a b"}, {}), ({"x": 1}, FROM_BILLING)],
)
async def test_what_is_neither_is_for_a_person(deps: Any, body: Any, attributes: dict[str, str]) -> None:
    with pytest.raises(MalformedEvent):
        await budgets.follow(event(body, **attributes), deps)
    assert await deps.ledger.entries(limit=9) == []


async def test_nothing_is_acknowledged_that_was_not_written(deps: Any) -> None:
    deps.ledger.used("openai", spent=10, at=NOW)
    deps.ledger.down = True
    with pytest.raises(StoreUnavailable):
        await budgets.follow(event(OURS), deps)


async def test_thawing_what_is_not_frozen_is_refused(deps: Any) -> None:
    with pytest.raises(NotFound):
        await budgets.thaw("openai", actor="ann", wish_id="w", deps=deps)
    with pytest.raises(InvalidRequest):
        await budgets.thaw("a b", actor="ann", wish_id="w", deps=deps)


@pytest.mark.parametrize(
    ("declared", "chosen", "source", "limit", "beside"),
    [
        (20, 300, "GOBLIN_MONTHLY_BUDGET", 20, "set of $300.00"),
        (300, 20, "set", 20, "GOBLIN_MONTHLY_BUDGET of $300.00"),
        (20, 20, "set", 20, "GOBLIN_MONTHLY_BUDGET of $20.00"),
        (20, None, "GOBLIN_MONTHLY_BUDGET", 20, ""),
    ],
)
async def test_a_declared_budget_and_a_set_one_are_one_row_that_says_its_source(
    deps: Any, declared: int, chosen: int | None, source: str, limit: int, beside: str
) -> None:
    def of(dollars: int, variable: str = "") -> Limit:
        return Limit(period=Period.MONTH, limit_usd_micros=dollars * 1_000_000, variable=variable)

    deps.ledger.declared = {"total": (of(declared, "GOBLIN_MONTHLY_BUDGET"),)}
    if chosen is not None:
        await budgets.limit("total", Period.MONTH, of(chosen), deps)
    await budgets.limit("total", Period.DAY, replace(of(5), period=Period.DAY), deps)
    day, month = await budgets.overview(deps)
    assert (day.period, day.source) == (Period.DAY, "set")
    assert (month.source, month.limit_usd_micros, month.beside) == (source, limit * 1_000_000, beside)


async def test_budgets_are_shown_as_they_stand(deps: Any) -> None:
    day = Limit(period=Period.DAY, limit_usd_micros=100, action=BudgetAction.STOP_JOBS)
    await budgets.limit("openai", Period.DAY, day, deps)
    await deps.ledger.record(
        LedgerEntry(entry_id="e", kind=EntryKind.SETTLE, account="openai/ann", amount_usd_micros=30, at=NOW)
    )
    (shown,) = await budgets.overview(deps)
    assert (shown.window, shown.spent_usd_micros, shown.left_usd_micros) == ("2026-11-25", 30, 70)
    assert (shown.source, shown.beside) == ("set", "")
    assert shown.resets_at == datetime(2026, 11, 26, tzinfo=UTC)
    deps.ledger.used(
        "openai", spent=100, limit=100, period=Period.DAY, action=BudgetAction.STOP_JOBS, at=deps.clock.now()
    )
    threshold_event = {**OURS, "window": "2026-11-25"}
    await budgets.follow(event(threshold_event), deps)
    assert await budgets.reactions(deps, BudgetAction.STOP_JOBS) == {"openai"}
    assert await budgets.reactions(deps, BudgetAction.SCALE_TO_ZERO) == frozenset()
    (shown,) = await budgets.overview(deps)
    assert "openai spent" in shown.frozen
    deps.clock.at += timedelta(days=1)
    assert (await budgets.overview(deps))[0].left_usd_micros == 100
    await budgets.thaw("openai", actor="ann", wish_id="w", deps=deps)
    assert await budgets.reactions(deps, BudgetAction.STOP_JOBS) == frozenset()
    await budgets.limit("openai", Period.DAY, None, deps)
    assert await budgets.overview(deps) == []
    with pytest.raises(InvalidRequest):
        await budgets.limit("a b", Period.DAY, day, deps)


async def test_a_budget_that_only_alerts_freezes_nothing(deps: Any) -> None:
    deps.ledger.used("openai", spent=10, action=BudgetAction.ALERT, at=NOW)
    await budgets.follow(event(OURS), deps)
    assert await deps.ledger.freezes() == []
    assert [entry.kind for entry in await deps.ledger.actions(limit=9)] == [EntryKind.ALERT]
    with pytest.raises(MalformedEvent):
        await budgets.follow(event({**OURS, "action": "explode"}), deps)


async def test_the_router_learns_of_a_freeze_and_of_a_thaw(deps: Any) -> None:
    view = budgets.FreezeView(deps)
    await view.current()
    assert view.why_frozen(PAID) == ""
    deps.ledger.used("openai", spent=10, at=NOW)
    await budgets.follow(event(OURS), deps)
    deps.clock.at += timedelta(seconds=budgets.REFRESH_S + 1)
    await view.current()  # Starts to read, and does not wait for it.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "openai spent" in view.why_frozen(PAID)
    assert view.why_frozen(FREE) == ""
    await budgets.thaw("openai", actor="ann", wish_id="w", deps=deps)
    await view.refresh()
    assert view.why_frozen(PAID) == ""


async def test_requests_do_not_each_ask_the_ledger(deps: Any) -> None:
    view = budgets.FreezeView(deps)
    await asyncio.gather(*(view.current() for _ in range(50)))
    assert deps.ledger.reads == 1


async def test_the_first_request_after_an_idle_night_is_not_refused(deps: Any) -> None:
    view = budgets.FreezeView(deps)
    await view.current()
    deps.clock.at += timedelta(hours=9)
    await view.current()
    assert view.why_frozen(PAID) == ""


async def test_after_a_quiet_time_and_after_a_thaw_the_first_request_knows(deps: Any) -> None:
    view = budgets.FreezeView(deps)
    await view.current()
    deps.ledger.used("openai", spent=10, at=NOW)
    await budgets.follow(event(OURS), deps)
    deps.clock.at += timedelta(seconds=budgets.LOOK_FIRST_AFTER_S + 1)
    await view.current()
    assert view.why_frozen(PAID).startswith("openai spent")
    await budgets.thaw("openai", actor="ann", wish_id="w", deps=deps)
    deps.clock.at += timedelta(seconds=budgets.REFRESH_S + 1)
    await view.current()
    assert view.why_frozen(PAID) == ""


async def test_a_slow_ledger_is_not_waited_for_long(deps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view = budgets.FreezeView(deps)
    deps.ledger.used("openai", spent=10, at=NOW)
    await budgets.follow(event(OURS), deps)
    await view.current()
    answered = asyncio.Event()

    async def slow() -> Any:
        await answered.wait()
        return []

    monkeypatch.setattr(budgets, "LOOK_S_MAX", 0.02)
    monkeypatch.setattr(deps.ledger, "freezes", slow)
    deps.clock.at += timedelta(seconds=budgets.REFRESH_S + 1)
    await view.current()
    assert view.why_frozen(PAID).startswith("openai spent")  # What it knew.
    answered.set()
    await view.current()
    assert view.why_frozen(PAID) == ""


async def test_when_the_ledger_is_silent_only_what_is_free_goes_on(deps: Any) -> None:
    view = budgets.FreezeView(deps)
    deps.ledger.down = True
    await view.current()
    assert view.blind
    assert view.why_frozen(PAID) == budgets.BLIND
    assert view.why_frozen(FREE) == ""
    deps.ledger.down = False
    await view.refresh()
    deps.ledger.down = True
    deps.clock.at += timedelta(seconds=budgets.BLIND_AFTER_S)
    await view.refresh()
    assert view.why_frozen(PAID) == ""  # The last look is good enough, for a minute.
    deps.clock.at += timedelta(seconds=1)
    assert view.why_frozen(PAID) == budgets.BLIND
